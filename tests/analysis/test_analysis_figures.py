import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from analysis_records import done, make_record, missing
from matplotlib import image

from repro.analysis.comparison import FIGURE_CELLS, make_comparison
from repro.analysis.curves import columns_of, draw_curves, draw_gradients
from repro.analysis.figures import draw_figures
from repro.analysis.logit_figure import draw_figure2
from repro.analysis.style import figure_style
from repro.analysis.weight_figure import draw_figure3
from repro.config import Preset
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Registry

NAMES = ("figure2", "figure3", "curves-cifar100-resnet18", "gradients-cifar100-resnet18")


def states_of(registry: Registry, preset: Preset, **options) -> list[RunState]:
    """The ResNet-18 column with every seed of the preset."""
    return [
        done(make_record(registry, preset, registry.parse(f"{cell}/seed{seed}"), **options), registry)
        for cell in FIGURE_CELLS
        for seed in preset.seeds
    ]


def texts(figure) -> str:
    """Everything that is written on a figure, on one line."""
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return " ".join(" ".join(found).split())


def comparison(registry: Registry, preset: Preset, **options):
    records: list[list[RunRecord]] = [[], []]
    for state in states_of(registry, preset, **options):
        records[FIGURE_CELLS.index(state.run.cell.id)].append(state.record)
    return make_comparison(registry, records)


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the rendering, which takes most of the time, where only the names matter."""
    monkeypatch.setattr("repro.analysis.figures.save", lambda figure, folder, name: [folder / f"{name}.png"])


DRAW_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import pathlib
import matplotlib
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
    drawing = draw_figures(states_of(registry, paper), registry, paper, tmp_path / "here")
    assert drawing.notices == ()
    assert [path.name for path in drawing.files] == [
        f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")
    ]
    arguments = [project.experiments, Path(__file__).parent, tmp_path / "there"]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRAW_WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for path in drawing.files:
        content = path.read_bytes()
        assert content == (tmp_path / "there" / path.name).read_bytes(), path.name
        if path.suffix == ".png":
            picture = image.imread(path)[..., :3]
            assert min(picture.shape[:2]) > 500
            assert (picture < 0.5).any(axis=2).mean() > 0.005, f"{path.name} is blank"
        else:
            assert content.startswith(b"%PDF")
            assert b"CreationDate" not in content
            assert b"ModDate" not in content


def test_tables_load_neither_torch_nor_matplotlib_nor_pandas():
    program = (
        "import sys; from repro.analysis import aggregate, tables; "
        "sys.exit(' '.join({'torch', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules)) or None)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("unsaved")
def test_without_a_run_it_needs_a_figure_is_left_out_and_the_run_is_named(registry, paper, tmp_path):
    lacking = [registry.parse(f"{FIGURE_CELLS[1]}/seed{seed}") for seed in paper.seeds]
    states = states_of(registry, paper)[:3] + missing(lacking)
    drawing = draw_figures(states, registry, paper, tmp_path)
    assert {path.stem for path in drawing.files} == set(NAMES[2:])
    assert drawing.notices == (
        "Figures 2 and 3 need a run of cifar100/resnet18/scaled-bn-m1 "
        "(seed 0: not run yet; seed 1: not run yet; seed 2: not run yet): "
        "repro run --preset paper --dataset cifar100 --network resnet18 --loss scaled-bn-m1 --seed 0",
    )


def test_without_any_record_nothing_is_drawn_and_nothing_raised(registry, paper, tmp_path):
    drawing = draw_figures([], registry, paper, tmp_path)
    assert drawing.files == ()
    assert len(drawing.notices) == 3
    assert "none was selected" in drawing.notices[0]


@pytest.mark.usefixtures("unsaved")
def test_records_that_do_not_count_are_not_drawn(registry, paper, tmp_path):
    states = [
        RunState(state.run, RecordState.OTHER_RECIPE, state.record, "other recipe: epochs 7 → 8")
        for state in states_of(registry, paper)
    ]
    drawing = draw_figures(states, registry, paper, tmp_path)
    assert drawing.files == ()
    assert "other recipe: epochs 7 → 8" in drawing.notices[0]


@pytest.mark.usefixtures("unsaved")
def test_diverged_runs_leave_figures_2_and_3_to_the_other_seeds(registry, paper, tmp_path):
    states = states_of(registry, paper)
    states[0] = done(make_record(registry, paper, states[0].run, diverged_in=4), registry)
    drawing = draw_figures(states, registry, paper, tmp_path)
    assert {path.stem for path in drawing.files} == set(NAMES)


@pytest.mark.usefixtures("unsaved")
def test_a_loss_that_only_diverged_is_still_drawn_in_the_curves(registry, paper, tmp_path):
    states = states_of(registry, paper, diverged_in=4)
    drawing = draw_figures(states, registry, paper, tmp_path)
    assert {path.stem for path in drawing.files} == set(NAMES[2:])
    assert "seed 0 diverged" in drawing.notices[0]


def test_figure_2_says_its_interval_seed_and_sample(registry, paper):
    pair = comparison(registry, paper)
    with figure_style():
        written = texts(draw_figure2(pair, paper))
    for letter, side in zip("ab", pair.sides, strict=True):
        quantiles = side.records[0].probes.logits.quantiles
        low, high = (f"{quantiles[percent]:.2f}".replace("-", "−") for percent in ("2.5", "97.5"))
        assert f"({letter}) {side.label}" in written
        assert f"central 95 %: {low} to {high}" in written
    assert "10,000 test images × 100 classes, seed 0." in written
    assert "One logit in 100 is that of the image's own class." in written


def test_figure_2_draws_a_density_that_sums_to_one(registry, paper):
    with figure_style():
        figure = draw_figure2(comparison(registry, paper), paper)
    for panel in figure.axes:
        values, edges, _ = panel.patches[1].get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1.0)


def test_figure_2_mentions_logits_beyond_the_histogram(registry, paper):
    pair = comparison(registry, paper)
    record = pair.sides[0].records[0]
    logits = record.probes.logits.model_copy(update={"underflow": 30, "overflow": 12})
    odd = record.model_copy(update={"probes": record.probes.model_copy(update={"logits": logits})})
    with figure_style():
        written = texts(draw_figure2(make_comparison(registry, [[odd], pair.sides[1].records]), paper))
    assert "42 of them beyond the recorded range −40 … 40" in written


def test_figure_2_names_both_seeds_where_the_losses_share_none(registry, paper):
    first, second = comparison(registry, paper).sides
    with figure_style():
        written = texts(
            draw_figure2(make_comparison(registry, [first.records[1:2], second.records[2:]]), paper)
        )
    assert "seed 1 (a), seed 2 (b)" in written


def test_figure_3_shows_mean_and_seeds_of_ten_classes(registry, paper):
    pair = comparison(registry, paper)
    with figure_style():
        figure = draw_figure3(pair, paper)
    (panel,) = figure.axes
    heights = [bar.get_height() for bar in panel.patches]
    for index, side in enumerate(pair.sides):
        norms = np.array([record.probes.weight_norms for record in side.records])
        assert heights[10 * index : 10 * index + 10] == pytest.approx(list(norms[:, :10].mean(axis=0)))
        assert f"{side.label} mean {norms.mean():.2f}" in texts(figure)
    assert "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3" in " ".join(text.get_text() for text in figure.texts)


def test_a_figure_of_another_preset_carries_its_title_and_description(registry):
    smoke = registry.preset("smoke")
    pair = comparison(registry, smoke, accuracy=30.0, test_images=80)
    with figure_style():
        for draw in (draw_figure2, draw_figure3):
            written = texts(draw(pair, smoke))
            assert "SMOKE Figure" in written
            assert "SMOKE: generated data." in written


def test_generated_data_are_never_drawn_without_smoke_in_the_title(registry, paper):
    pair = comparison(registry, paper, generated=True)
    with figure_style():
        assert "SMOKE (generated data) Figure 2" in texts(draw_figure2(pair, paper))
        assert "SMOKE (generated data) Figure 3" in texts(draw_figure3(pair, paper))


def test_a_gradient_of_zero_is_left_out_of_the_log_scale(registry, paper):
    states = states_of(registry, paper)
    records = []
    for state in states:
        curve = tuple(
            epoch.model_copy(update={"gradient_at_logits": 0.0, "gradient_at_features": None})
            for epoch in state.record.curve
        )
        records.append(state.record.model_copy(update={"curve": curve}))
    (column,) = columns_of([done(record, registry) for record in records], registry)
    with figure_style():
        figure = draw_gradients(column, paper)
    assert not any(len(line.get_xdata()) > 2 for panel in figure.axes for line in panel.lines)


def test_the_curves_tell_each_losses_last_accuracy_and_what_diverged(registry, paper):
    states = states_of(registry, paper, accuracy=75.0)
    states[0] = done(make_record(registry, paper, states[0].run, diverged_in=4), registry)
    states[3:] = [
        done(make_record(registry, paper, state.run, diverged_in=4), registry) for state in states[3:]
    ]
    (column,) = columns_of(states, registry)
    with figure_style():
        written = texts(draw_curves(column, paper))
    assert "Cross-entropy Loss 75.0 (1 of 3 diverged)" in written
    assert "Our Loss (m = 1) diverged" in written


def test_a_dollar_in_a_label_is_a_dollar(registry, paper, tmp_path):
    table = registry.table(1)
    rows = tuple(row.model_copy(update={"label": "5 $ and $ x_1"}) for row in table.rows)
    odd = Registry([table.model_copy(update={"rows": rows})], registry.presets)
    (column,) = columns_of(states_of(odd, paper), odd)
    with figure_style():
        figure = draw_curves(column, paper)
        figure.draw_without_rendering()
    assert "5 $ and $ x_1" in texts(figure)


def labels_of_ticks_out_of_view(figure):
    """matplotlib keeps a tick just beyond an axis's limits and does not draw it."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    yield from (tick.label1, tick.label2)


def test_every_label_lies_inside_the_page(registry, paper):
    states = states_of(registry, paper)
    states[0] = done(make_record(registry, paper, states[0].run, diverged_in=4), registry)
    (column,) = columns_of(states, registry)
    pair = comparison(registry, paper)
    with figure_style():
        for figure in (
            draw_figure2(pair, paper),
            draw_figure3(pair, paper),
            draw_curves(column, paper),
            draw_gradients(column, paper),
        ):
            figure.draw_without_rendering()
            not_drawn = set(labels_of_ticks_out_of_view(figure))
            for text in figure.findobj(matplotlib.text.Text):
                if text.get_text() and text.get_visible() and text not in not_drawn:
                    box = text.get_window_extent()
                    assert box.x0 >= 0, text
                    assert box.y0 >= 0, text
                    assert box.x1 <= figure.bbox.width, text
                    assert box.y1 <= figure.bbox.height, text


def test_runs_that_diverged_in_their_first_epoch_are_drawn_without_a_line(registry, paper):
    records = []
    for state in states_of(registry, paper, diverged_in=0):
        records.append(state.record.model_copy(update={"curve": ()}))
    (column,) = columns_of([done(record, registry) for record in records], registry)
    with figure_style():
        for draw in (draw_curves, draw_gradients):
            draw(column, paper).draw_without_rendering()
