"""The figures: what stands where, in words and shapes; and the same bytes from another process."""

import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
import matplotlib.text
import numpy as np
import pytest
from analysis_records import done, make_record, missing, recorded
from matplotlib import image
from matplotlib.figure import Figure

from repro.analysis import style
from repro.analysis.ablations import compute_effects
from repro.analysis.curves import columns_of, draw_curves, draw_gradients
from repro.analysis.dot_plot import draw_ablations, draw_dots
from repro.analysis.figures import draw_figures, draw_logits, draw_weight_norms, find_comparison
from repro.analysis.results import summarise
from repro.analysis.verdicts import Verdict, judge_cells
from repro.config import Preset
from repro.record_state import RecordState, RunState
from repro.registry import Registry, Selection

CELLS = ("cifar100/resnet18/cross-entropy", "cifar100/resnet18/scaled-bn-m1")
NAMES = ("figure2", "figure3", "curves-cifar100-resnet18", "gradients-cifar100-resnet18")


def states_of(registry: Registry, preset: Preset, **options) -> list[RunState]:
    """The ResNet-18 column with every seed of the preset."""
    runs = [registry.parse(f"{cell}/seed{seed}") for cell in CELLS for seed in preset.seeds]
    return recorded(registry, preset, runs, **options)


def with_probes(state: RunState, registry: Registry, **changes) -> RunState:
    """The state with other logits in its record."""
    probes = state.record.probes
    logits = probes.logits.model_copy(update=changes)
    changed = probes.model_copy(update={"logits": logits})
    return done(state.record.model_copy(update={"probes": changed}), registry)


def with_curve(state: RunState, registry: Registry, **changes) -> RunState:
    """The state with these values in every epoch; without any, with no epoch at all."""
    curve = tuple(epoch.model_copy(update=changes) for epoch in state.record.curve if changes)
    return done(state.record.model_copy(update={"curve": curve}), registry)


def texts(figure) -> str:
    """Everything that is written on a figure, then its title and caption, on one line."""
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return " ".join(
        " ".join([*found, figure.title, figure.caption]).replace("\N{NO-BREAK SPACE}", " ").split()
    )


@pytest.fixture(autouse=True)
def _style():
    with style.figure_style():
        yield


@pytest.fixture
def names(monkeypatch, registry, paper, tmp_path):
    """The names of what would be drawn, without the rendering, which takes most of the time; the notices."""
    monkeypatch.setattr("repro.analysis.style.save", lambda figure, folder, name: [folder / name])

    def draw(states):
        files, notices = draw_figures(states, registry, paper, tmp_path)
        return [path.name for path in files if path.name != "captions.txt"], notices

    return draw


DRAW_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import pathlib
from matplotlib import rcParams
experiments, tests, folder = map(pathlib.Path, sys.argv[1:])
sys.path[:0] = [str(tests), str(tests.parent)]
before = rcParams.copy()
from repro.analysis.figures import draw_figures
from repro.registry import Registry
from test_analysis_figures import states_of
registry = Registry.load(experiments)
draw_figures(states_of(registry, registry.preset("paper")), registry, registry.preset("paper"), folder)
assert "matplotlib.pyplot" not in sys.modules, "pyplot keeps state for the whole process"
assert rcParams.copy() == before, "the style leaked"
"""


def test_figures_are_pictures_and_the_same_bytes_from_another_process_without_torch(
    registry, paper, project, tmp_path
):
    files, notices = draw_figures(states_of(registry, paper), registry, paper, tmp_path / "here")
    assert notices == []
    expected = [f"{name}.{kind}" for name in NAMES for kind in ("svg", "pdf", "png")]
    assert [path.name for path in files] == [*expected, "captions.txt"]
    arguments = [project.experiments, Path(__file__).parent, tmp_path / "there"]
    command = [sys.executable, "-W", "error", "-c", DRAW_WITHOUT_TORCH, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for path in files:
        content = path.read_bytes()
        assert content == (tmp_path / "there" / path.name).read_bytes(), path.name
        if path.suffix == ".png":
            picture = image.imread(path)[..., :3]
            assert picture.shape[1] == 6.9 * 200
            assert 300 < picture.shape[0] < 1000
            assert (picture < 0.5).any(axis=2).mean() > 0.005, f"{path.name} is blank"
        elif path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            assert not re.search(rb"CreationDate|ModDate|/Type3", content), "fonts are TrueType"


def test_without_a_run_it_needs_a_figure_is_left_out_and_the_run_is_named(names, registry, paper):
    lacking = [registry.parse(f"{CELLS[1]}/seed{seed}") for seed in paper.seeds]
    drawn, notices = names(states_of(registry, paper)[:3] + missing(lacking))
    assert drawn == list(NAMES[2:])
    assert notices == [
        "Figure 2 and Figure 3 need a run of cifar100/resnet18/scaled-bn-m1 "
        "(seed 0: not run yet; seed 1: not run yet; seed 2: not run yet): "
        "repro run --preset paper --dataset cifar100 --network resnet18 --loss scaled-bn-m1 --seed 0",
    ]
    drawn, notices = names([])
    assert (drawn, len(notices), "none was selected" in notices[0]) == ([], 3, True)


def test_records_that_do_not_count_are_not_drawn_and_diverged_ones_only_in_the_curves(names, registry, paper):
    states = states_of(registry, paper)
    reason = "other recipe: epochs 7 → 8"
    drawn, notices = names([RunState(s.run, RecordState.OTHER_RECIPE, s.record, reason) for s in states])
    assert (drawn, reason in notices[0]) == ([], True)
    first = done(make_record(registry, paper, states[0].run, diverged_in=4), registry)
    assert names([first, *states[1:]])[0] == list(NAMES)
    drawn, notices = names(states_of(registry, paper, diverged_in=4))
    assert drawn == list(NAMES[2:])
    assert "seed 0 diverged" in notices[0]


def pair_of(states, registry):
    """Both losses of the paper's figures."""
    return find_comparison(registry.paper.figures.logits, states, registry)


def test_figure_2_has_both_losses_side_by_side_and_says_its_interval_seed_and_tail(registry, paper):
    pair = pair_of(states_of(registry, paper), registry)
    figure = draw_logits(registry.paper.figures.logits, pair, paper)
    for letter, side in zip("ab", pair.series, strict=True):
        quantiles = side.ended[0].probes.logits.quantiles
        low, high = (f"{quantiles[percent]:.2f}".replace("-", "−") for percent in ("2.5", "97.5"))
        assert f"({letter}) {side.label}" in texts(figure)
        assert f"central 95 %: {low} to {high}" in texts(figure)
    assert "10,000 test images × 100 classes, seed 0." in texts(figure)
    assert "One logit in 100 is that of the image's own class." in texts(figure)
    left, right = figure.axes
    assert left.get_position().x1 < right.get_position().x0
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert left.get_ylabel() == "frequency (% per bin of 0.2)"
    for panel in figure.axes:
        values, _, _ = panel.patches[1].get_data()
        assert values.sum() == pytest.approx(100)


def test_figure_2_counts_what_lies_beyond_10_and_beyond_the_histogram_and_names_both_seeds(registry, paper):
    states = states_of(registry, paper)
    counts = [0] * 400  # of bins of 0.2 from −40 on
    counts[0], counts[149], counts[150], counts[249], counts[250] = 10, 20, 30, 900, 40
    odd = with_probes(states[1], registry, counts=tuple(counts), underflow=1, overflow=2)
    figure = registry.paper.figures.logits
    written = texts(draw_logits(figure, pair_of([odd, states[5]], registry), paper))
    assert f"beyond ±10: {100 * (10 + 20 + 40 + 1 + 2) / 1003:.2g} %" in written
    assert "3 of them beyond the recorded range −40 … 40" in written
    assert "seed 1 (a), seed 2 (b)" in written


def test_figure_3_shows_mean_and_seeds_of_ten_classes(registry, paper):
    pair = pair_of(states_of(registry, paper), registry)
    figure = draw_weight_norms(registry.paper.figures.weight_norms, pair, paper)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    for index, side in enumerate(pair.series):
        norms = np.array([record.probes.weight_norms for record in side.ended])
        assert heights[10 * index : 10 * index + 10] == pytest.approx(list(norms[:, :10].mean(axis=0)))
        assert f"{side.label}, mean {norms.mean():.2f}" in texts(figure)
    assert "n = 3" in texts(figure)


@pytest.mark.parametrize("titled", [False, True])
def test_a_figure_has_its_title_on_request_and_the_name_of_another_preset_always(registry, paper, titled):
    figures, look = registry.paper.figures, style.Look(titled=titled)
    quick = registry.preset("quick")
    for draw, of_paper in ((draw_logits, figures.logits), (draw_weight_norms, figures.weight_norms)):
        for preset in (paper, quick):
            pair = pair_of(states_of(registry, preset, accuracy=30.0), registry)
            figure = draw(of_paper, pair, preset, look)
            drawn = " ".join(text.get_text() for text in figure.texts)
            assert (of_paper.name in drawn) == titled
            assert ("QUICK" in drawn) == (preset is quick)
            assert figure.title.startswith(of_paper.name if preset is paper else f"QUICK {of_paper.name}")
            assert ("QUICK: few images" in figure.caption) == (preset is quick)


@pytest.mark.parametrize("width", [style.COLUMN, style.PAGE])
def test_nothing_is_drawn_beyond_the_width_of_a_column_or_page(registry, paper, width, dots):
    labels = [
        row.model_copy(update={"label": f"{row.label} {'of a long name ' * 4}"})
        for row in registry.table(1).rows
    ]
    long = replace(registry, tables=[registry.table(1).model_copy(update={"rows": tuple(labels)})])
    look = style.Look(width)
    for each in (registry, long):
        states = states_of(each, paper)
        (column,) = columns_of(states, each)
        for figure in (
            draw_curves(column, paper, look),
            draw_gradients(column, paper, look),
            draw_logits(each.paper.figures.logits, pair_of(states, each), paper, look),
            draw_weight_norms(each.paper.figures.weight_norms, pair_of(states, each), paper, look),
            *([dots("paper", look)[0]] if each is long else []),
        ):
            box, (page, height) = figure.get_tightbbox(), figure.get_size_inches()
            assert page == width
            assert box.x0 >= 0 and box.x1 <= page and box.y0 >= 0 and box.y1 <= height, figure.title  # noqa: PT018
            sizes = {text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()}
            assert sizes <= {7.0, 8.0}


@pytest.mark.parametrize("ends", [(0.61, 0.98), (0.3, 1.6), (2e-5, 0.3), (0.9, 40.0), (95.0, 130.0)])
def test_a_log_axis_has_at_least_two_plain_numbers_on_a_range_of_any_width(ends):
    panel = Figure().add_subplot(yscale="log", ylim=ends)
    style.log_ticks(panel.yaxis)
    places = [place for place in panel.get_yticks() if ends[0] <= place <= ends[1]]
    assert 2 <= len(places) <= 8
    texts = [panel.yaxis.get_major_formatter()(place, None) for place in places]
    assert [float(text) for text in texts] == pytest.approx(places)
    assert all(re.fullmatch(r"[0-9.]+", text) for text in texts), texts


def test_a_gradient_of_zero_is_left_out_of_the_log_scale_and_an_empty_curve_has_no_line(registry, paper):
    nothing = {"gradient_at_logits": 0.0, "gradient_at_features": None}
    states = [with_curve(state, registry, **nothing) for state in states_of(registry, paper)]
    (column,) = columns_of(states, registry)
    figure = draw_gradients(column, paper)
    assert not any(len(line.get_xdata()) > 2 for panel in figure.axes for line in panel.lines)
    states = [with_curve(state, registry) for state in states_of(registry, paper, diverged_in=0)]
    (column,) = columns_of(states, registry)
    for draw in (draw_curves, draw_gradients):
        draw(column, paper).draw_without_rendering()


def test_the_legend_has_each_losses_last_accuracy_and_what_diverged(registry, paper):
    table = registry.table(1)
    rows = (table.rows[0].model_copy(update={"label": "5 $ and $ x_1"}), table.rows[1])
    odd = replace(registry, tables=[table.model_copy(update={"rows": rows})])
    states = states_of(odd, paper, accuracy=75.0)
    states[0] = done(make_record(odd, paper, states[0].run, diverged_in=4), odd)

    def legend() -> list[str]:
        (column,) = columns_of(states, odd)
        figure = draw_curves(column, paper)
        # Of the diverged run's end nothing is drawn outside the enlarged panel.
        assert figure.get_tightbbox().width <= style.PAGE
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert legend() == ["5 $ and $ x_1  75.0 (1 of 3 diverged)", "Our Loss (m = 1)  75.0"]
    states[3:] = [done(make_record(odd, paper, state.run, diverged_in=4), odd) for state in states[3:]]
    assert legend() == ["5 $ and $ x_1  75.0 (1 of 3 diverged)", "Our Loss (m = 1)  diverged"]


def test_columns_of_tables_that_share_a_network_have_names_of_their_own(real):
    cells = ("cross-entropy", "logit-scale-s2", "cross-entropy+bias=false")
    runs = [real.parse(f"cifar100/resnet18/{cell}/seed0") for cell in cells]
    columns = columns_of(recorded(real, real.preset("paper"), runs), real)
    assert [column.name for column in columns] == [
        "cifar100-resnet18",
        "cifar100-resnet18+bias=false",
        "cifar100-extended-resnet18",
    ]
    for table in real.tables:
        assert len({str(line) for line in style.line_styles(table).values()}) == len(table.rows)


def test_an_svg_in_a_page_keeps_its_words_and_has_ids_of_its_own(registry, paper):
    figure = draw_weight_norms(
        registry.paper.figures.weight_norms,
        pair_of(states_of(registry, paper), registry),
        paper,
    )
    first, again, other = (style.to_svg(figure, name, "a < b") for name in ("one", "one", "two"))
    assert first == again
    assert "Cross-entropy Loss" in first
    assert 'aria-label="a &lt; b"' in first
    assert 'id="one-' in first
    assert 'id="one-' not in other
    assert "var(--ink)" in first


@pytest.fixture(scope="module")
def dots(real, rules):
    """Table 1 of a preset, VGG whole, ResNet-18 with one seed, ResNet-50 without a run; and its results."""

    @cache
    def draw(name: str, look: style.Look = style.DEFAULT_LOOK):
        preset, states = real.preset(name), []
        for run in real.select_runs(Selection(tables=(1,)), preset):
            offset = {"scaled-bn-m1": -2.0, "pedcc-s10-m0.5": 0.8}.get(run.cell.row, 0.0)
            mean = run.cell.reported.mean + offset + 0.2 * (run.seed - 1)
            if run.cell.network == "vgg16" or (run.cell.network == "resnet18" and run.seed == 0):
                states += recorded(real, preset, [run], mean)
            else:
                states += missing([run])
        results = judge_cells(summarise(states, real, preset), real, preset, rules)
        return draw_dots(real.table(1), results, real.paper.metric, rules, preset, look), results

    return draw


def test_each_cell_is_a_dot_at_its_mean_whose_shape_is_its_verdict(dots):
    figure, results = dots("paper")
    shapes = {Verdict.REPRODUCED: "o", Verdict.OFF: "D", Verdict.UNDECIDED: "s", Verdict.INCOMPLETE: "^"}
    seen = set()
    for panel, network in zip(figure.axes, ("vgg16", "resnet18", "resnet50"), strict=True):
        cells = [result for result in results if result.cell.network == network]
        expected = [(shapes[r.verdict.word], r.mean, line) for line, r in enumerate(cells) if r.mean]
        drawn = [line for line in panel.lines if line.get_marker() in shapes.values()]
        assert [(d.get_marker(), d.get_xdata()[0], d.get_ydata()[0]) for d in drawn] == expected
        seen |= {(line.get_marker(), line.get_color()) for line in drawn}
    assert len({shape for shape, _ in seen}) == len({colour for _, colour in seen}) == len(seen) == 4


def test_a_whisker_is_within_the_bar_exactly_where_the_interval_is_within_the_tolerance(dots):
    figure, results = dots("paper")
    vgg, cells = figure.axes[0], [result for result in results if result.cell.network == "vgg16"]
    ends = [
        line.get_xdata() for line in vgg.lines if line.get_marker() == "None" and np.ptp(line.get_xdata())
    ]
    assert len(ends) == len(vgg.patches) == 8
    for result, (low, high), bar in zip(cells, ends, vgg.patches, strict=True):
        interval = result.verdict.interval
        inside = bar.get_x() <= low and high <= bar.get_x() + bar.get_width()
        assert inside == (interval[0] >= -1 and interval[1] <= 1)
        assert (low, high) == pytest.approx(tuple(result.reported.mean + end for end in interval))
    scales = [np.ptp(panel.get_xlim()) / panel.get_position().width for panel in figure.axes]
    assert scales == pytest.approx([scales[0]] * 3), "a bar is equally wide in every panel"


def test_n_preset_and_every_blank_are_in_words(dots):
    paper, quick = texts(dots("paper")[0]), texts(dots("quick")[0])
    assert "n = 1 to 3" in paper
    assert paper.count("not run yet") == 8
    assert "reproduced off undecided incomplete" in paper
    assert "24 cells: 6 reproduced, 1 off, 1 undecided, 16 incomplete." in paper
    assert "QUICK Table 1" in quick
    assert "24 cells: 24 not comparable." in quick


def test_ambiguities_are_a_panel_each_with_alternatives_sorted_and_their_intervals(real):
    paper = real.preset("paper")
    states = []
    for run in real.select_runs(Selection(studies=("vgg", "rotation")), paper):
        accuracy = 71 + {"vgg13": -1.0, "vgg-lsoftmax": 2.0}.get(run.cell.network, 0.0) + 0.1 * run.seed
        states += recorded(real, paper, [run], accuracy)
    results = {result.cell: result for result in summarise(states, real, paper)}
    effects = compute_effects(real.variations("vgg", "rotation"), results, real.paper.metric)
    figure = draw_ablations(effects, real, paper)
    first, second = figure.axes
    drawn = sorted(effects[:3], key=lambda effect: -effect.difference)
    assert [label.get_text() for label in first.get_yticklabels()] == [
        effect.variation.alternative.label for effect in drawn
    ]
    marks = [line for line in first.lines if line.get_marker() in "oD^s"]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [
        (effect.difference, line) for line, effect in enumerate(drawn)
    ]
    whiskers = [
        tuple(line.get_xdata())
        for line in first.lines
        if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert whiskers == [effect.interval for effect in drawn]
    bars = [line.get_xdata()[0] for line in first.lines if line.get_marker() == "|"]
    assert bars == pytest.approx([71.86 - 71.1] * 3), "where the paper's number is"
    cells = [label.get_text().partition("\n")[2] for label in second.get_yticklabels()]
    assert cells[1] == "CIFAR-100, ResNet-18, Scaled BN (m = 1)"
    assert "away past it" in texts(figure)
    assert "the paper's number" in texts(figure)
