"""The dot plot: what stands where, and that a verdict shows in shape as well as in colour."""

import matplotlib.text
import numpy as np
import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from matplotlib.colors import to_hex

from repro.analysis.aggregate import summarise
from repro.analysis.cell_verdict import Judged, Verdict
from repro.analysis.dot_plot import draw_dots
from repro.analysis.figures import draw_figures
from repro.analysis.rules import Rules, read_rules
from repro.analysis.style import figure_style
from repro.analysis.verdicts import judge_cells
from repro.record_state import RunState
from repro.registry import Registry, Selection

OFFSETS = {"scaled-bn-m1": -2.0, "pedcc-s10-m0.5": 0.8}
MARKERS = {Verdict.REPRODUCED: "o", Verdict.OFF: "D", Verdict.UNDECIDED: "s", Verdict.INCOMPLETE: "^"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules(EXPERIMENTS / "claims.toml")


def states_of(registry: Registry, preset: str) -> list[RunState]:
    """Table 1: VGG whole, ResNet-18 with one seed, ResNet-50 without a run."""
    states = []
    for run in registry.select_runs(Selection(tables=(1,)), registry.preset(preset)):
        if run.cell.network == "vgg16" or (run.cell.network == "resnet18" and run.seed == 0):
            mean = run.cell.reported.mean + OFFSETS.get(run.cell.row, 0.0) + 0.2 * (run.seed - 1)
            states.append(done(make_record(registry, registry.preset(preset), run, mean), registry))
        else:
            states += missing([run])
    return states


@pytest.fixture(scope="module")
def drawn(registry, rules):
    """The figure of a preset with the verdicts it shows."""

    def draw(preset: str):
        summaries = summarise(states_of(registry, preset), registry, registry.preset(preset))
        judged = Judged(judge_cells(summaries, registry, registry.preset(preset), rules), rules)
        with figure_style():
            return draw_dots(registry.table(1), summaries, judged, registry.preset(preset)), judged

    return draw


def words(figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text)).split())


def markers(panel) -> dict[tuple[float, int], tuple[str, str]]:
    """(accuracy, line) → (shape, colour) of each dot."""
    return {
        (round(float(line.get_xdata()[0]), 6), int(line.get_ydata()[0])): (
            line.get_marker(),
            to_hex(line.get_color()),
        )
        for line in panel.lines
        if line.get_marker() not in ("None", "")
    }


def test_each_cell_is_a_dot_at_its_mean_whose_shape_and_colour_are_its_verdict(drawn):
    figure, judged = drawn("paper")
    networks = ("vgg16", "resnet18", "resnet50")
    looks = set()
    for panel, network in zip(figure.axes, networks, strict=True):
        found = markers(panel)
        cells = [verdict for verdict in judged.cells if verdict.cell.network == network]
        expected = {
            (round(verdict.mean, 6), line): MARKERS[verdict.word]
            for line, verdict in enumerate(cells)
            if verdict.mean is not None
        }
        assert {place: look[0] for place, look in found.items()} == expected
        looks |= set(found.values())
    assert len(looks) == len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 4


def test_a_whisker_is_within_the_bar_exactly_where_the_interval_is_within_the_tolerance(drawn):
    figure, judged = drawn("paper")
    (vgg, *_), cells = figure.axes, [v for v in judged.cells if v.cell.network == "vgg16"]
    whiskers = [
        line.get_xdata()
        for line in vgg.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    ]
    assert len(whiskers) == len(vgg.patches) == 8
    for verdict, (low, high), bar in zip(cells, whiskers, vgg.patches, strict=True):
        inside = bar.get_x() <= low and high <= bar.get_x() + bar.get_width()
        assert inside == (verdict.interval[0] >= -1 and verdict.interval[1] <= 1)
        assert (low, high) == pytest.approx(tuple(verdict.reported_mean + end for end in verdict.interval))
        assert bar.get_width() == pytest.approx(2.0)


def test_bars_are_equally_wide_in_every_panel(drawn):
    figure, _ = drawn("paper")
    scales = [np.ptp(panel.get_xlim()) / panel.get_position().width for panel in figure.axes]
    assert scales == pytest.approx([scales[0]] * 3)


def test_n_preset_and_every_blank_are_in_words(drawn):
    paper, quick = words(drawn("paper")[0]), words(drawn("quick")[0])
    assert "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1 to 3" in paper or "n = 1 to 3" in paper
    assert paper.count("not run yet") == 8
    assert "reproduced off undecided incomplete" in paper
    assert "24 cells:" in paper
    assert "top-1 accuracy (%)" in paper
    assert "QUICK Table 1" in quick
    assert "it proves nothing about the paper" in quick
    assert "24 cells: 24 not comparable." in quick


def test_all_that_is_written_lies_on_the_page(drawn):
    for preset in ("paper", "quick"):
        figure, _ = drawn(preset)
        figure.draw_without_rendering()
        unseen = {
            label
            for panel in figure.axes
            for label in panel.get_xticklabels()
            if not panel.get_xlim()[0] <= label.get_position()[0] <= panel.get_xlim()[1]
        }
        for text in figure.findobj(matplotlib.text.Text):
            if text.get_text().strip() and text not in unseen:
                box = text.get_window_extent()
                assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
                assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, text.get_text()


def test_a_table_with_a_number_of_ours_is_drawn_and_only_by_rules(registry, rules, tmp_path, monkeypatch):
    monkeypatch.setattr("repro.analysis.figures.save", lambda figure, folder, name: [folder / name])
    # The curves are other tests' and most of the time.
    monkeypatch.setattr("repro.analysis.figures.columns_of", lambda states, registry: ())
    paper = registry.preset("paper")
    states = states_of(registry, "paper") + missing(registry.select_runs(Selection(tables=(2, 3)), paper))
    with_rules = draw_figures(states, registry, paper, tmp_path, rules)
    assert [path.name for path in with_rules.files if path.name.startswith("table")] == ["table1"]
    without = draw_figures(states, registry, paper, tmp_path)
    assert not [path.name for path in without.files if path.name.startswith("table")]
