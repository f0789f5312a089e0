"""The chaos test: a short one finds nothing, and each planted defect is found and named."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from smoke_project import PROJECT, RUN, record_of, smoke_context, train_here

from chaos import defects
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
        return Counter({harm: count for harm, count in report.counts().items() if count})

    return run


def test_a_kind_that_there_is_not_is_refused_at_once_with_those_that_there_are():
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--kind", "record*", "--kind", "power cut"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    first, *kinds = done.stderr.splitlines()
    assert first == "chaos: --kind 'power cut' fits no kind of fault; there are:"
    assert {"  record torn", "  worker killed at a system call of a commit", "  supervisor: SIGKILL"} < set(
        kinds
    )


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
    assert report["faults"] == sum(report["by_kind"].values())
    assert report["training"] >= 2
    assert report["checkpoints_undisturbed"] >= 2
    assert list(tmp_path.glob("repro-chaos-*")) == [], "nothing is left behind"
    living = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    assert [pid for pid in living if supervisor_of(pid) is not None] == []


@pytest.mark.long
def test_a_commit_that_renames_instead_of_linking_is_a_duplicate(harms):
    found = harms(
        defects.RENAME_INSTEAD_OF_LINK,
        "worker: file locks without effect",
        "a second supervisor*",
        workload=ONE_RUN,
        faults=3,
    )
    assert found["duplicate"] > 0
    assert set(found) == {"duplicate"}


@pytest.mark.long
def test_records_that_are_not_validated_when_read_are_accepted_though_corrupt(harms):
    found = harms(
        defects.NO_VALIDATION_ON_READ,
        "record with an edited number",
        workload=Workload(FEW[:1], epochs=2),
        faults=2,
    )
    assert found["corrupt accepted"] > 0


@pytest.mark.long
def test_an_optimizer_that_is_not_restored_makes_records_unequal(harms):
    found = harms(defects.OPTIMIZER_NOT_RESTORED, "worker: SIGUSR1", workload=TWO_RUNS, faults=4)
    assert set(found) == {"byte-unequal"}


@pytest.mark.long
def test_a_generator_shared_by_two_runs_makes_records_unequal(harms):
    found = harms(
        defects.GENERATOR_SHARED_BY_RUNS,
        "worker: SIGSTOP*",
        workload=Workload(FEW, epochs=4),
        faults=2,
    )
    assert set(found) == {"byte-unequal"}


@pytest.mark.long
def test_workers_without_a_death_signal_are_orphans(harms):
    found = harms(
        defects.NO_DEATH_SIGNAL,
        "supervisor: SIGKILL",
        workload=Workload(FEW[:1], epochs=100),
        faults=1,
        orphan_seconds=3.0,
    )
    assert set(found) == {"orphan"}


@pytest.mark.long
def test_workers_that_train_without_the_runs_lock_are_duplicates(harms):
    found = harms(defects.TRAINS_WITHOUT_LOCK, "worker: SIGUSR2", workload=TWO_RUNS, faults=1)
    assert found["duplicate"] > 0


@pytest.mark.long
def test_a_commit_that_replaces_whatever_is_there_throws_good_records_away(harms):
    found = harms(
        defects.REPLACES_WHATEVER_IS_THERE,
        "worker: file locks without effect",
        "a second supervisor*",
        workload=ONE_RUN,
        faults=3,
    )
    assert set(found) == {"lost"}


@pytest.mark.long
def test_a_worker_that_ignores_a_stop_request_is_named(harms):
    found = harms(
        defects.STOP_IGNORED,
        "repro stop --now",
        workload=Workload(FEW[:1], epochs=100),
        faults=1,
        stop_seconds=10.0,
    )
    assert found["stop ignored"] > 0


@pytest.mark.long
def test_an_interrupted_attempt_that_counts_as_failed_is_blamed(harms):
    found = harms(defects.INTERRUPTED_IS_FAILED, "worker: SIGTERM", workload=ONE_RUN, faults=1)
    assert set(found) == {"blamed"}


@pytest.mark.long
def test_a_damaged_checkpoint_that_is_resumed_from_is_accepted_though_corrupt(harms):
    found = harms(
        defects.DAMAGED_CHECKPOINT_IS_READ,
        "checkpoint with a flipped bit",
        "repro stop --now",  # ends a sweep with checkpoints left, which are damaged before the next
        workload=ONE_RUN,
        faults=6,
    )
    assert found["corrupt accepted"] > 0


def test_no_mutant_of_a_record_is_read_as_one(tmp_path):
    """`python -m chaos.mutations` tries more of them."""
    context = smoke_context(None, tmp_path)
    train_here(context, RUN)
    content = record_of(context, RUN).to_json().encode()
    assert accepted(content, RUN, "smoke", 500, seed=1) == []


@pytest.mark.parametrize(("faults", "percent"), [(1, 95.0), (10, 25.89), (59, 4.95), (1000, 0.2991)])
def test_no_harm_in_n_faults_bounds_their_share(faults, percent):
    assert 100 * upper_bound(0, faults) == pytest.approx(percent, rel=1e-3)


def test_some_harm_bounds_it_as_clopper_and_pearson_do():
    """R: binom.test(k, n, alternative = "less")$conf.int."""
    assert upper_bound(1, 100) == pytest.approx(0.04655981, rel=1e-5)
    assert upper_bound(5, 50) == pytest.approx(0.1988330, rel=1e-5)
    assert upper_bound(3, 3) == 1.0
