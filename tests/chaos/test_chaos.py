"""The chaos test: a short one finds nothing, and each planted defect is found and named."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import PROJECT, RUN, record_of

from chaos import defects
from chaos.__main__ import main
from chaos.mutations import accepted
from chaos.report import upper_bound
from chaos.run_chaos import FEW, ChaosOptions, run_chaos, train_reference
from chaos.sweep import Workload, supervisor_of

ROOT = Path(__file__).resolve().parent.parent.parent
TWO_RUNS, ONE_RUN = Workload(FEW[:2]), Workload(FEW[:1])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Two runs, trained without any defect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_ROOT", str(PROJECT))
        patch.setenv("PYTHONPATH", str(ROOT))
        return train_reference(TWO_RUNS, tmp_path_factory.mktemp("reference") / "home")


@pytest.fixture
def harms(tmp_path, monkeypatch, reference):
    """Runs chaos tests with a defect planted in every process of the sweep: the harms found, by kind.

    Faults strike at random times: one that comes when the defect cannot show itself finds nothing, so other
    seeds follow until one does, five in all.
    """
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def run(defect: str, *only: str, **options) -> Counter[str]:
        monkeypatch.setenv("PYTHONPATH", f"{defects.plant(defect, tmp_path / 'defect')}{os.pathsep}{ROOT}")
        known = reference if options["workload"] in (TWO_RUNS, ONE_RUN) else None
        for seed in range(5):
            report = run_chaos(ChaosOptions(only=only, seed=seed, **options), known, say=lambda line: None)
            assert report.faults >= options["faults"]
            assert report.exit_code == (4 if report.findings else 0)
            assert (report.kept is not None) == bool(report.findings)
            if report.findings:
                break
        return Counter({harm: count for harm, count in report.audit.items() if count})

    return run


def test_a_kind_that_there_is_not_is_refused_at_once_with_those_that_there_are():
    done = CliRunner().invoke(main, ["--kind", "record*", "--kind", "power cut"])
    assert done.exit_code == 2
    first, *kinds = done.stderr.splitlines()
    assert first == "chaos: --kind 'power cut' fits no kind of fault; there are:"
    expected = {"  record torn", "  worker killed at a system call of a commit", "  supervisor: SIGKILL"}
    assert expected < set(kinds)


@pytest.mark.slow
def test_a_short_chaos_test_finds_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--faults", "10", "--seed", "7", "--json"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["audit"].values()) == {0}
    assert report["faults"] >= 10
    assert report["faults"] == sum(report["tables"]["faults by kind"].values())
    assert report["counts"]["that came to train"] >= 2
    assert report["counts"]["checkpoints of an undisturbed run"] >= 2
    assert list(tmp_path.glob("repro-chaos-*")) == [], "nothing is left behind"
    living = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    assert [pid for pid in living if supervisor_of(pid) is not None] == []


LONG_RUN = Workload(FEW[:1], epochs=100)
PLANTED = {
    "a commit renames instead of linking": (
        defects.RENAME_INSTEAD_OF_LINK, ("worker: file locks without effect", "a second supervisor*"),
        {"workload": ONE_RUN, "faults": 3}, {"duplicate"},
    ),
    "an optimizer is not restored": (
        defects.OPTIMIZER_NOT_RESTORED, ("worker: SIGUSR1",), {"workload": TWO_RUNS, "faults": 4}, {"byte-unequal"},
    ),
    "two runs share a generator": (
        defects.GENERATOR_SHARED_BY_RUNS, ("worker: SIGSTOP*",),
        {"workload": Workload(FEW, epochs=4), "faults": 2}, {"byte-unequal"},
    ),
    "workers have no death signal": (
        defects.NO_DEATH_SIGNAL, ("supervisor: SIGKILL",),
        {"workload": LONG_RUN, "faults": 1, "orphan_seconds": 3.0}, {"orphan"},
    ),
    "a commit replaces whatever is there": (
        defects.REPLACES_WHATEVER_IS_THERE, ("worker: file locks without effect", "a second supervisor*"),
        {"workload": ONE_RUN, "faults": 3}, {"lost"},
    ),
    "an interrupted attempt counts as failed": (
        defects.INTERRUPTED_IS_FAILED, ("worker: SIGTERM",), {"workload": ONE_RUN, "faults": 1}, {"blamed"},
    ),
    # These do other harm too.
    "records are not validated when they are read": (
        defects.NO_VALIDATION_ON_READ, ("record with an edited number",),
        {"workload": Workload(FEW[:1], epochs=2), "faults": 2}, "corrupt accepted",
    ),
    "workers train without the run's lock": (
        defects.TRAINS_WITHOUT_LOCK, ("worker: SIGUSR2",), {"workload": TWO_RUNS, "faults": 1}, "duplicate",
    ),
    "a worker ignores a stop request": (
        defects.STOP_IGNORED, ("repro stop --now",),
        {"workload": LONG_RUN, "faults": 1, "stop_seconds": 10.0}, "stop ignored",
    ),
    # A stop ends a sweep with checkpoints left, which are damaged before the next.
    "a damaged checkpoint is resumed from": (
        defects.DAMAGED_CHECKPOINT_IS_READ, ("checkpoint with a flipped bit", "repro stop --now"),
        {"workload": ONE_RUN, "faults": 6}, "corrupt accepted",
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_defect_is_found_and_named(harms, planted):
    defect, only, options, harm = PLANTED[planted]
    found = harms(defect, *only, **options)
    assert found.keys() == harm if isinstance(harm, set) else harm in found


def test_no_mutant_of_a_record_is_read_as_one(trained):
    """`python -m chaos.mutations` tries more of them."""
    content = record_of(trained, RUN).to_json().encode()
    assert accepted(content, RUN, "smoke", 500, seed=1) == []


def test_the_share_of_harmful_faults_is_bounded_as_clopper_and_pearson_do():
    """R: binom.test(k, n, alternative = "less")$conf.int."""
    expected = {(0, 59): 0.0495, (0, 1000): 0.002991, (1, 100): 0.04655981, (5, 50): 0.1988330, (4, 3): 1.0}
    assert {case: upper_bound(*case) for case in expected} == pytest.approx(expected, rel=1e-3)
