"""What is averaged and what is not, from records on disk through `repro.record_state`."""

from collections.abc import Mapping

import pytest
from analysis_records import FINGERPRINT, done, edit_by_hand, make_record, write_record

from repro.analysis.aggregate import CellSummary, integrity_errors, seeds_text, summarise
from repro.config import Preset
from repro.errors import RecordCorruptError, RecordMisplacedError
from repro.paths import Project
from repro.record_state import RecordState, assess
from repro.registry import Registry, Run, Selection

CELL = "cifar100/vgg16/cross-entropy"
AT_HAND: Mapping[str, str | None] = {"cifar100": FINGERPRINT}


@pytest.fixture
def runs(registry: Registry) -> list[Run]:
    """The three runs of CELL."""
    return [registry.parse(f"{CELL}/seed{seed}") for seed in range(3)]


def summary_of(
    runs: list[Run], registry: Registry, preset: Preset, project: Project, fingerprints=AT_HAND
) -> CellSummary:
    (summary,) = summarise(assess(runs, registry, preset, project, fingerprints), registry, preset)
    return summary


def write_three(
    runs: list[Run], registry: Registry, preset: Preset, project: Project, accuracies=(71.0, 72.0, 74.0)
):
    return [
        write_record(project, make_record(registry, preset, run, accuracy))
        for run, accuracy in zip(runs, accuracies, strict=True)
    ]


def test_three_good_records_are_averaged(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.expected) == (3, 3)
    assert summary.mean == pytest.approx(217 / 3)
    assert summary.std == pytest.approx((7 / 3) ** 0.5)
    assert summary.difference == pytest.approx(217 / 3 - 71.86)
    assert [(run.seed, run.accuracy) for run in summary.runs] == [(0, 71.0), (1, 72.0), (2, 74.0)]
    assert [run.record_state for run in summary.runs] == [RecordState.DONE] * 3
    assert summary.blanks == ()
    assert summary.notes == ()


def test_a_missing_record_is_named_and_the_others_are_averaged(runs, registry, paper, project):
    write_three(runs, registry, paper, project)[1].unlink()
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (2, 72.5)
    assert [(blank.seed, blank.reason) for blank in summary.blanks] == [(1, "not run yet")]


def test_a_cell_without_records_has_no_mean_and_three_reasons(runs, registry, paper, project):
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean, summary.std, summary.difference) == (0, None, None, None)
    assert [blank.reason for blank in summary.blanks] == ["not run yet"] * 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_text(path.read_text()[:900]), "corrupt: not whole JSON"),
        (lambda path: path.write_text(""), "corrupt: not whole JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "corrupt: not text"),
        (lambda path: edit_by_hand(path, 99.0), "corrupt: its content does not match its sha256"),
        (lambda path: path.write_text('{"schema_version": 7}'), "corrupt: schema version 7"),
    ],
    ids=["truncated", "emptied", "overwritten", "hand-edited", "another schema"],
)
def test_a_damaged_record_is_never_averaged_and_ends_in_an_error(
    damage, reason, runs, registry, paper, project
):
    path = write_three(runs, registry, paper, project)[2]
    damage(path)
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (2, 71.5)
    (blank,) = summary.blanks
    assert blank.seed == 2
    assert blank.short == "corrupt record"
    assert blank.reason.startswith(reason)
    assert str(project.root) not in blank.reason
    (error,) = integrity_errors(assess(runs, registry, paper, project, AT_HAND))
    assert isinstance(error, RecordCorruptError)
    assert error.exit_code == 4
    assert str(path) in str(error)


def test_a_record_moved_from_another_run_is_never_averaged(runs, registry, paper, project):
    paths = write_three(runs, registry, paper, project)
    paths[2].write_text(paths[0].read_text())
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (2, 71.5)
    (blank,) = summary.blanks
    assert blank.short == "misplaced record"
    assert blank.reason.startswith(f"misplaced: holds the record of {CELL}/seed0 (preset paper)")
    (error,) = integrity_errors(assess(runs, registry, paper, project, AT_HAND))
    assert isinstance(error, RecordMisplacedError)


def test_good_and_missing_records_are_no_integrity_errors(runs, registry, paper, project):
    write_three(runs, registry, paper, project)[0].unlink()
    assert integrity_errors(assess(runs, registry, paper, project, AT_HAND)) == ()


def test_a_record_of_another_recipe_is_never_averaged_and_says_what_changed(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    stale = paper.model_copy(update={"recipe": paper.recipe.model_copy(update={"epochs": 7})})
    write_record(project, make_record(registry, stale, runs[0], 50.0))
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (2, 73.0)
    assert [(blank.short, blank.reason) for blank in summary.blanks] == [
        ("other recipe", "other recipe: epochs 7 → 8")
    ]


def test_a_record_of_other_data_than_those_at_hand_is_never_averaged(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    write_record(project, make_record(registry, paper, runs[0], 50.0, fingerprint="e" * 64))
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (2, 73.0)
    assert summary.blanks[0].reason == "other data than the ones prepared here"


def test_without_the_data_records_count_and_are_marked(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    summary = summary_of(runs, registry, paper, project, {"cifar100": None})
    assert summary.n == 3
    assert summary.notes == ("data unchecked (not prepared here)",)


def test_without_the_data_runs_of_different_data_are_not_mixed(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    write_record(project, make_record(registry, paper, runs[1], 50.0, fingerprint="e" * 64))
    summary = summary_of(runs, registry, paper, project, {"cifar100": None})
    assert (summary.n, summary.mean) == (0, None)
    assert [blank.short for blank in summary.blanks] == ["data differ"] * 3


def test_a_record_of_older_code_counts_and_is_marked_with_its_seed(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    write_record(project, make_record(registry, paper, runs[1], 72.0, code="d" * 64))
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.mean) == (3, pytest.approx(217 / 3))
    assert summary.runs[1].record_state is RecordState.OLDER_CODE
    assert summary.notes == ("older code (what trains has changed since): seed 1",)


def test_a_diverged_run_is_named_and_never_averaged(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    write_record(project, make_record(registry, paper, runs[1], diverged_in=3))
    summary = summary_of(runs, registry, paper, project)
    assert (summary.n, summary.expected, summary.diverged, summary.mean) == (2, 3, 1, 72.5)
    assert [blank.reason for blank in summary.blanks] == ["diverged in epoch 4"]


def test_mixed_devices_and_precisions_are_noted(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    other = make_record(registry, paper, runs[2], 74.0, device="NVIDIA H100", precision="bf16")
    write_record(project, other)
    assert summary_of(runs, registry, paper, project).notes == (
        "mixed precisions: float32 (seeds 0, 1); bf16 (seed 2)",
        "mixed devices: NVIDIA GeForce GTX 1080 Ti (seeds 0, 1); NVIDIA H100 (seed 2)",
    )


def test_generated_and_partial_data_are_noted(runs, registry, paper, project):
    states = [
        done(make_record(registry, paper, runs[0], 71.0, generated=True), registry),
        done(make_record(registry, paper, runs[1], 72.0, partial="9 of 100 classes"), registry),
    ]
    (summary,) = summarise(states, registry, paper)
    assert summary.notes == ("generated data: seed 0", "partial data (9 of 100 classes): seed 1")
    assert [(blank.seed, blank.short) for blank in summary.blanks] == [(2, "not selected")]


def test_a_seed_beyond_the_presets_counts_where_it_was_asked_for(runs, registry, paper, project):
    write_three(runs, registry, paper, project)
    extra = registry.parse(f"{CELL}/seed7")
    write_record(project, make_record(registry, paper, extra, 75.0))
    summary = summary_of([*runs, extra], registry, paper, project)
    assert (summary.n, summary.expected, summary.mean) == (4, 4, 73.0)


def test_summaries_come_in_the_registrys_order(registry, paper, project):
    runs = registry.select_runs(Selection(), paper)
    states = assess(reversed(runs), registry, paper, project, AT_HAND)
    assert [summary.cell for summary in summarise(states, registry, paper)] == list(registry.cells)


def test_networks_and_axes_beyond_the_paper_come_last_and_have_no_reported_value(registry, paper, project):
    ids = ("cifar100/vgg13/cross-entropy", "cifar100/vgg16/cross-entropy+rotation=15", CELL)
    runs = [registry.parse(f"{cell}/seed0") for cell in ids]
    for run in runs:
        write_record(project, make_record(registry, paper, run, 70.0))
    summaries = summarise(assess(runs, registry, paper, project, AT_HAND), registry, paper)
    assert [summary.cell.id for summary in summaries] == [ids[2], ids[1], ids[0]]
    assert [summary.difference is None for summary in summaries] == [False, True, True]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([1], "seed 1"),
        ([0, 1, 2], "seeds 0, 1, 2"),
        ([0, 1, 2, 3], "seeds 0–3"),
        ([0, 2, *range(4, 1528)], "seeds 0, 2, 4–1527"),
        ([*range(10), 12], "seeds 0–9, 12"),
    ],
)
def test_many_seeds_in_a_row_are_two_numbers(seeds, text):
    assert seeds_text(seeds) == text
