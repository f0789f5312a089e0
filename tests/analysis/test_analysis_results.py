"""What is averaged and what is not, from records on disk through `repro.record_state`."""

import math
import subprocess
import sys

import pytest
from analysis_records import FINGERPRINT, edit_by_hand, make_record, recorded, write_record

from repro.analysis.results import CellResult, summarise
from repro.analysis.text import seeds_text
from repro.record_state import RecordState, assess
from repro.record_state import damage as damaged
from repro.registry import Run, Selection

CELL = "cifar100/vgg16/cross-entropy"


@pytest.fixture
def runs(registry) -> list[Run]:
    """The three runs of CELL."""
    return [registry.parse(f"{CELL}/seed{seed}") for seed in range(3)]


@pytest.fixture
def put(registry, paper, project):
    """Writes a record of a run and returns its path."""
    return lambda run, accuracy=70.0, preset=paper, **values: write_record(
        project, make_record(registry, preset, run, accuracy, **values)
    )


@pytest.fixture
def three(put, runs):
    """The paths of three good records."""
    return [put(run, accuracy) for run, accuracy in zip(runs, (71.0, 72.0, 74.0), strict=True)]


@pytest.fixture
def summary(registry, paper, project):
    def of(runs: list[Run], fingerprint: str | None = FINGERPRINT) -> CellResult:
        states = assess(runs, registry, paper, project, {"cifar100": fingerprint})
        (result,) = summarise(states, registry, paper)
        return result

    return of


def reasons(result: CellResult) -> list[tuple[int, str, str]]:
    return [(run.seed, run.short, run.reason) for run in result.blanks]


@pytest.mark.usefixtures("three")
def test_three_good_records_are_averaged_with_the_sample_standard_deviation(runs, summary):
    result = summary(runs)
    assert (result.n, result.expected) == (3, 3)
    assert result.mean == pytest.approx(217 / 3)
    # Independently: half the mean squared difference of all pairs is the variance with ddof = 1.
    assert result.std == pytest.approx(math.sqrt((1 + 4 + 9) / (3 * 2)), abs=1e-12)
    assert result.difference == pytest.approx(217 / 3 - 71.86)
    assert [(run.seed, run.accuracy, run.record_state) for run in result.averaged] == [
        (0, 71.0, RecordState.DONE),
        (1, 72.0, RecordState.DONE),
        (2, 74.0, RecordState.DONE),
    ]
    assert (result.blanks, result.notes) == ((), ())


def test_equal_runs_have_a_std_of_exactly_zero_and_one_run_has_none(put, runs, summary):
    put(runs[0], 75.1)
    assert (summary(runs).mean, summary(runs).std) == (75.1, None)
    for run in runs[1:]:
        put(run, 75.1)
    assert (summary(runs).mean, summary(runs).std) == (pytest.approx(75.1, abs=1e-12), 0.0)


def test_a_missing_record_is_named_and_the_others_are_averaged(runs, three, summary):
    three[1].unlink()
    result = summary(runs)
    assert (result.n, result.mean) == (2, 72.5)
    assert reasons(result) == [(1, "not run yet", "not run yet")]
    for path in (three[0], three[2]):
        path.unlink()
    result = summary(runs)
    assert (result.n, result.mean, result.std, result.difference) == (0, None, None, None)
    assert [run.reason for run in result.blanks] == ["not run yet"] * 3


@pytest.mark.parametrize(
    ("damage", "short", "reason"),
    [
        (lambda path: path.write_text(path.read_text()[:900]), "corrupt", "not whole JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "corrupt", "not text"),
        (lambda path: edit_by_hand(path, 99.0), "corrupt", "its content does not match its sha256"),
        (lambda path: path.write_text('{"schema_version": 7}'), "corrupt", "schema version 7"),
        (
            lambda path: path.write_text(path.with_name("seed0.json").read_text()),
            "misplaced",
            f"holds the record of {CELL}/seed0 (preset paper)",
        ),
    ],
    ids=["truncated", "overwritten", "hand-edited", "another schema", "moved"],
)
def test_a_damaged_record_is_never_averaged_and_ends_in_an_error(
    damage, short, reason, runs, three, summary, registry, paper, project
):
    damage(three[2])
    result = summary(runs)
    assert (result.n, result.mean) == (2, 71.5)
    ((seed, said, told),) = reasons(result)
    assert (seed, said) == (2, f"{short} record")
    assert told.startswith(f"{short}: {reason}")
    assert str(project.root) not in told
    (named,) = damaged(assess(runs, registry, paper, project, {}))
    assert named.startswith(f"{three[2]}: ")


@pytest.mark.usefixtures("three")
def test_a_record_of_another_recipe_or_of_other_data_is_never_averaged(runs, put, summary, paper):
    stale = paper.model_copy(update={"recipe": paper.recipe.model_copy(update={"epochs": 7})})
    put(runs[0], 50.0, stale)
    assert summary(runs).mean == 73.0
    assert reasons(summary(runs)) == [(0, "other recipe", "other recipe: epochs 7 → 8")]
    put(runs[0], 50.0, fingerprint="e" * 64)
    assert summary(runs).mean == 73.0
    assert reasons(summary(runs)) == [(0, "other recipe", "other data than the ones prepared here")]


@pytest.mark.usefixtures("three")
def test_without_the_data_records_count_and_are_marked_and_different_ones_are_not_mixed(runs, put, summary):
    result = summary(runs, fingerprint=None)
    assert (result.n, result.notes) == (3, ("data unchecked (not prepared here)",))
    put(runs[1], 50.0, fingerprint="e" * 64)
    result = summary(runs, fingerprint=None)
    assert (result.n, result.mean) == (0, None)
    assert [short for _, short, _ in reasons(result)] == ["data differ"] * 3


@pytest.mark.usefixtures("three")
def test_what_qualifies_a_run_is_noted_with_its_seed(runs, put, summary):
    put(runs[1], 72.0, code="d" * 64)
    result = summary(runs)
    assert (result.n, result.mean) == (3, pytest.approx(217 / 3))
    assert result.notes == ("older code (the training code has changed since): seed 1",)
    put(runs[0], 71.0)
    put(runs[1], 72.0, partial="9 of 100 classes")
    put(runs[2], 74.0, device="NVIDIA H100", precision="bf16")
    assert summary(runs).notes == (
        "partial data (9 of 100 classes): seed 1",
        "mixed precisions: float32 (seeds 0, 1); bf16 (seed 2)",
        "mixed devices: NVIDIA GeForce GTX 1080 Ti (seeds 0, 1); NVIDIA H100 (seed 2)",
    )


@pytest.mark.usefixtures("three")
def test_a_diverged_run_is_named_and_never_averaged(runs, put, summary):
    put(runs[1], diverged_in=3)
    result = summary(runs)
    assert (result.n, result.expected, result.diverged, result.mean) == (2, 3, 1, 72.5)
    assert reasons(result) == [(1, "diverged", "diverged in epoch 4")]


@pytest.mark.usefixtures("three")
def test_a_seed_beyond_the_presets_is_shown_and_not_averaged(runs, put, summary, registry):
    extra = registry.parse(f"{CELL}/seed7")
    put(extra, 75.0)
    result = summary([*runs, extra])
    assert (result.n, result.expected, result.mean) == (3, 3, summary(runs).mean)
    assert [(run.seed, run.accuracy) for run in result.extra] == [(7, 75.0)]


def test_results_come_in_the_registrys_order_and_what_is_beyond_the_paper_last(registry, paper, project):
    states = assess(reversed(registry.select_runs(Selection(), paper)), registry, paper, project, {})
    assert [result.cell for result in summarise(states, registry, paper)] == list(registry.cells)
    ids = ("cifar100/vgg13/cross-entropy", f"{CELL}+rotation=15", CELL)
    states = recorded(registry, paper, [registry.parse(f"{cell}/seed0") for cell in ids], 70.0)
    results = summarise(states, registry, paper)
    assert [result.cell.id for result in results] == [ids[2], ids[1], ids[0]]
    assert [result.difference is None for result in results] == [False, True, True]


def test_many_seeds_in_a_row_are_two_numbers():
    assert seeds_text([1]) == "seed 1"
    assert seeds_text([0, 1, 2]) == "seeds 0, 1, 2"
    assert seeds_text([0, 2, *range(4, 1528)]) == "seeds 0, 2, 4–1527"


def test_help_and_planning_need_neither_pandas_nor_matplotlib_and_tables_no_torch():
    program = (
        "import sys\n"
        "for name in sys.argv[1].split(): sys.modules[name] = None\n"
        "from click.testing import CliRunner\n"
        "from repro.cli import main\n"
        "for words in sys.argv[2:]:\n"
        "    result = CliRunner().invoke(main, words.split())\n"
        "    assert result.exit_code == 0, f'{words} {result.output} {result.exception}'\n"
    )
    for banned, *commands in (
        ("pandas matplotlib torch", "aggregate --help", "plan --table 1"),
        ("torch matplotlib", "aggregate --table 1"),
    ):
        words = [sys.executable, "-c", program, banned, *commands]
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
