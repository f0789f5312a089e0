"""The report as a file: what stands in it, that it needs nothing beside it, and how large it grows."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from analysis_records import done, make_record, missing, recorded

from repro.analysis.report import Origin, render_report
from repro.analysis.rules import Printed
from repro.attempts import NOT_RUN_YET
from repro.experiments import Row
from repro.paper import Paper
from repro.record_state import RecordState, RunState
from repro.registry import Selection

ORIGIN = Origin(version="0.1.0", commit="0123456789ab", results="results/paper", supplied=False)


@pytest.fixture
def drawn_report_of(rules):
    # What is printed of a table that the small project lacks is left out.
    without = rules.model_copy(update={"printed": Printed()})
    return lambda states, registry, preset: render_report(states, [], registry, preset, without, ORIGIN)


@pytest.fixture
def report_of(drawn_report_of, monkeypatch):
    """The page without its figures, which take most of the time."""
    monkeypatch.setattr("repro.analysis.style.to_svg", lambda figure, name, description: "")
    return drawn_report_of


class Page(HTMLParser):
    """Tags with their attributes, and ids, in order; balanced or an AssertionError."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, attribute: str) -> list[str]:
        return [given[attribute] for _, given in self.tags if given.get(attribute)]


@pytest.fixture
def states(registry, paper) -> list[RunState]:
    runs = registry.select_runs(Selection(), paper)
    states = recorded(registry, paper, runs[:8])
    states[1] = done(make_record(registry, paper, runs[1], diverged_in=3), registry)
    states.append(RunState(runs[8], RecordState.CORRUPT, reason=f"x/{runs[8].id}.json: not whole JSON"))
    return states + missing(runs[9:])


def test_the_page_needs_nothing_beside_it_and_is_the_same_bytes_each_time(
    states, registry, paper, drawn_report_of
):
    text = drawn_report_of(states, registry, paper)
    assert text == drawn_report_of(states, registry, paper)
    page = Page(text)
    assert not [tag for tag, given in page.tags if tag in ("link", "img", "iframe")]
    assert page.all("src") == []
    assert [address for address in page.all("href") if not address.startswith("#")] == []
    styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in page.all("href")} <= set(ids)


def test_every_cell_opens_its_runs_with_the_command_that_repeats_each(states, registry, paper, report_of):
    text = report_of(states, registry, paper)
    linked = [given["href"] for tag, given in Page(text).tags if tag == "a" and "data-cell" in given]
    tried = [state for state in states if state.reason != NOT_RUN_YET]
    assert len(linked) == len({state.run.cell for state in tried})
    for state in states:
        command = f"<code>repro train {state.run.id} --preset paper</code>"
        assert (command in text) is (state in tried), "a run that does not exist takes no space"


def test_a_blank_a_diverged_and_a_damaged_run_say_so(states, registry, paper, report_of):
    text = report_of(states, registry, paper)
    assert "diverged in epoch 4" in text
    assert "</b>: Interim" not in text, "a verdict is said once"
    assert "interim</b>: 0 of 9 columns complete; the verdict is given at 9" in text
    counts = re.sub(r"<[^>]+>", "", re.search(r'<p class="counts">(.*?)</p>', text, re.DOTALL)[1])
    assert " ".join(counts.split()).startswith("Runs: 7 done, 1 corrupt, 3 missing, 1 diverged.")


def section(text: str, name: str) -> str:
    """The words of a section of the page."""
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_what_is_missing_and_what_is_stale_are_listed_with_the_commands(states, registry, paper, report_of):
    runs = registry.select_runs(Selection(), paper)
    older = [done(make_record(registry, paper, run), registry, RecordState.OLDER_CODE) for run in runs[:2]]
    words = section(report_of([*older, *states[2:]], registry, paper), "open")
    assert "corrupt: not whole JSON — Cross-entropy Loss on ResNet-18 (seed 1) not run yet — " in words
    assert "To run them: repro run --preset paper --table 1 " in words
    assert "made by older code — every loss on VGG (seed 0)" in words
    assert "They count. To redo them: repro run --preset paper --table 1 --stale rerun" in words
    # A run that diverged is not still to run.
    text = report_of(recorded(registry, paper, runs, diverged_in=3), registry, paper)
    assert "0 of 12 runs counted</p>" in text
    assert "To run them" not in text


def test_a_table_says_why_it_is_not_comparable_and_is_folded_where_it_alone_has_no_run(real, report_of):
    paper = real.preset("paper")
    runs = real.select_runs(Selection(networks=("vgg16",), seeds=(0,)), paper)
    states = recorded(real, paper, [run for run in runs if run.cell.table == 2], test_images=50)
    states += missing([run for run in runs if run.cell.table != 2])
    text = report_of(states, real, paper)
    why = "Not comparable: 200 classes, 100,000 training and 50 test images; the paper says"
    folded = "<summary>No run yet: every cell, with what is reported of it</summary>"
    assert (text.count(why), text.count(folded)) == (1, 2)
    Page(text)
    assert folded not in report_of(missing(runs), real, paper)


def test_the_audit_is_one_table_that_leads_with_the_pooled_test(states, registry, paper, real, report_of):
    alone = replace(registry, paper=Paper())
    assert 'id="audit"' not in report_of(states, alone, paper), "nothing is said of what the paper proposes"
    preset = real.preset("paper")
    text = report_of(missing(real.select_runs(Selection(networks=("vgg16",)), preset)), real, preset)
    words = section(text, "audit")
    assert "With the spread pooled over a table, 18 / 16 of the 27 are shown" in words
    assert words.index("spread pooled") < words.index("Welch")
    assert text.count('<tr class="quiet"><th scope="row">') == 11


def test_without_a_record_the_page_says_what_it_waits_for(registry, paper, report_of):
    text = report_of(missing(registry.select_runs(Selection(), paper)), registry, paper)
    assert "Figure 2 and Figure 3 need a run of cifar100/resnet18/cross-entropy" in text
    assert 'id="curves"' not in text
    assert "12 of 12 runs are missing: <code>repro run --preset paper</code>" in text
    assert "<code>repro run --preset paper --table 1</code>" in text


def test_another_preset_stands_in_the_title_and_above_the_tables(registry, report_of):
    quick = registry.preset("quick")
    states = recorded(registry, quick, registry.select_runs(Selection(losses=("cross-entropy",)), quick))
    text = report_of(states, registry, quick)
    assert re.search(r"<title>QUICK: ", text)
    assert '<p class="warning" role="note"><strong>QUICK</strong>: few images: it proves nothing' in text
    assert "QUICK Table 1: CIFAR-100" in text


def test_markup_in_a_label_stays_text(registry, paper, report_of):
    table = registry.table(1)
    row: Row = table.rows[0].model_copy(update={"label": "<script>alert(1)</script> & co"})
    odd = replace(registry, tables=[table.model_copy(update={"rows": (row, table.rows[1])})])
    states = recorded(odd, paper, odd.select_runs(Selection(seeds=(0,)), paper))
    text = report_of(states, odd, paper)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text


def test_the_numbers_behind_figures_2_and_3_are_the_records(registry, paper, report_of):
    states = recorded(registry, paper, registry.select_runs(Selection(networks=("resnet18",)), paper))
    text = report_of(states, registry, paper)
    logits = states[0].record.probes.logits
    assert f"<td>{logits.mean:.2f}</td><td>{logits.std:.2f}</td>".replace("-", "−") in text
    of_loss = [state.record for state in states if state.run.cell.row == "cross-entropy"]
    first = sum(record.probes.weight_norms[0] for record in of_loss) / len(of_loss)
    assert f'<th scope="row">class 0</th><td>{first:.3f}</td>' in text


def test_a_third_of_216_records_makes_a_page_under_a_third_of_5_mb(real, drawn_report_of):
    paper = real.preset("paper")
    text = drawn_report_of(
        recorded(real, paper, real.select_runs(Selection(tables=(1,)), paper)), real, paper
    )
    assert len(text.encode()) < 5_000_000 / 3
    assert text.count('<section class="cell"') == 24
    page = Page(text)
    assert len(set(page.all("id"))) == len(page.all("id"))
