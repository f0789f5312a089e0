"""Slurm: real daemons of two nodes, real training, and everything that may happen to a job."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_sweep import LONG, ClusterSweep, assert_nothing_lost_or_duplicated, report, some_runs, workers
from slurm_cluster import CannotStartError, SlurmCluster
from sweep_bench import PRESET, ROOT, Bench, wait_for

from repro.errors import SetupError
from repro.scheduling.executors.slurm import SlurmExecutor, SlurmPace, SlurmRequest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
FAST = SlurmPace(notes=0.2, queue=0.5, queue_longest=2.0)


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    pytest.importorskip("submitit", reason="submitit is not installed (the extra slurm)")
    # A short path: a Unix socket's name has room for 107 characters.
    with tempfile.TemporaryDirectory(prefix="repro-slurm-") as folder:
        cluster = SlurmCluster(Path(folder))
        before = dict(os.environ)
        try:
            cluster.start()
            os.environ.update(cluster.environment)
            yield cluster
        except CannotStartError as error:
            pytest.skip(str(error))
        finally:
            os.environ.clear()
            os.environ.update(before)
            cluster.stop()


def executor_for(bench: Bench, **request) -> SlurmExecutor:
    return SlurmExecutor(bench.project.work(PRESET) / "slurm", SlurmRequest(**request), FAST)


def sweep_on(bench: Bench, runs, jobs: int = 2, **request) -> ClusterSweep:
    return ClusterSweep(bench, runs, executor_for(bench, **request), "slurm", jobs)


def start_command(bench: Bench, runs, *options: str, epochs: int = LONG) -> subprocess.Popen:
    """`repro run --executor slurm` on a login node: without a GPU, and without torch."""
    losses = [word for run in runs for word in ("--loss", run.id.split("/")[2].split("+")[0])]
    argv = ["run", "--preset", PRESET, "--table", "1", "--network", "resnet18", *losses, "--set"]
    argv += [
        f"epochs={epochs}",
        "--results",
        str(bench.project.results),
        "--executor",
        "slurm",
        "--job-gpus",
        "0",
        *options,
    ]
    program = "import sys; sys.modules['torch'] = None; from repro.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, "REPRO_ROOT": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def running_job(slurm: SlurmCluster) -> str:
    """The id of the only job that runs."""
    (job,) = [job for job, state in slurm.jobs().items() if state == "RUNNING"]
    return job


def test_the_command_trains_on_slurm_without_torch_on_the_login_node(slurm, bench):
    runs = some_runs(bench, 2)
    command = start_command(bench, runs, "--jobs", "2")
    _, lines = command.communicate(timeout=120)
    assert command.returncode == 0, lines
    assert "2 runs: 2 done" in lines
    assert_nothing_lost_or_duplicated(bench, runs)
    scripts = (bench.project.work(PRESET) / "slurm").glob("*_submission.sh")
    assert ["#SBATCH --array=0-1%2" in path.read_text() for path in scripts] == [True]
    logs = sorted((bench.project.work(PRESET) / "logs").glob("*.log"))
    assert [run.id in log.read_text() for run, log in zip(sorted(runs, key=str), logs, strict=True)]


def test_a_job_that_slurm_requeues_resumes_and_leaves_one_record(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training()
    slurm.command("scontrol", "requeue", running_job(slurm))
    assert sweep.end().exit_code == 0, sweep.said()
    assert bench.attempts(runs[0]) == ["interrupted", "done"]
    assert sweep.causes() == []
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_job_that_an_administrator_cancels_is_tried_again_and_said_so(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training()
    slurm.command("scancel", running_job(slurm))
    assert sweep.end().exit_code == 0, sweep.said()
    assert bench.attempts(runs[0]) == ["interrupted", "done"]
    assert sweep.causes() == ["its job was cancelled in Slurm"]
    assert_nothing_lost_or_duplicated(bench, runs)


def test_the_warning_before_the_time_limit_leaves_a_checkpoint_and_no_blame(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    for attempt in (1, 2):
        wait_for(
            lambda number=attempt: report(bench, runs[0]).get("attempt") == number, "an attempt to train"
        )
        slurm.command("scancel", "--signal=USR1", running_job(slurm))
    assert sweep.end().exit_code == 0, sweep.said()
    limit = "interrupted: its job reached Slurm's time limit"
    assert bench.attempts(runs[0]) == [limit, limit, "done"]
    assert sweep.causes() == ["its job reached Slurm's time limit"] * 2
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_killed_slurmstepd_leaves_one_record_and_no_orphan(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training()
    daemons = [p for p in psutil.process_iter() if p.name() == "slurmstepd"]
    assert daemons
    for daemon in daemons:
        daemon.kill()
    assert sweep.end().exit_code == 0, sweep.said()
    cause = "the Slurm daemon that supervised its job died"
    assert sweep.causes() == [cause]
    assert bench.attempts(runs[0]) == [f"interrupted: {cause}", "done"]
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_killed_controller_loses_nothing(slurm, bench):
    runs = some_runs(bench, 2)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training(runs[0])
    slurm.kill_daemon("slurmctld")
    wait_for(lambda: "Slurm does not answer" in sweep.said(), "the user to be told")
    slurm.restart_controller()
    assert sweep.end().exit_code == 0, sweep.said()
    assert_nothing_lost_or_duplicated(bench, runs)


def test_the_jobs_of_a_node_that_goes_down_go_elsewhere(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training()
    (node,) = slurm.command("squeue", "--noheader", "--format=%N").split()
    try:
        slurm.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        assert sweep.end().exit_code == 0, sweep.said()
    finally:
        slurm.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert len(bench.attempts(runs[0])) >= 2
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_preempted_job_resumes(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs)
    sweep.wait_until_training()
    urgent = ("--partition=high", "--exclusive", "--nodes=2", "true")
    slurm.command("srun", *urgent)
    assert sweep.end().exit_code == 0, sweep.said()
    assert bench.attempts(runs[0]) == ["interrupted", "done"]
    assert_nothing_lost_or_duplicated(bench, runs)


def test_jobs_outlive_a_killed_scheduler_and_the_next_one_takes_them_over(slurm, bench):
    runs = some_runs(bench, 3)
    first = start_command(bench, runs, "--jobs", "2")
    wait_for(lambda: len(workers(bench.project.results)) >= 2, "two workers")
    first.kill()
    first.communicate(timeout=60)
    in_queue = set(slurm.jobs())
    second = start_command(bench, runs, "--jobs", "2")
    _, lines = second.communicate(timeout=120)
    assert second.returncode == 0, lines
    assert "going on with 2 jobs of an earlier scheduler" in lines
    assert in_queue
    assert [bench.attempts(run) for run in runs] == [["done"]] * 3
    assert_nothing_lost_or_duplicated(bench, runs)


def test_sigterm_stops_the_jobs_at_a_checkpoint_and_empties_the_queue(slurm, bench):
    runs = some_runs(bench, 2)
    command = start_command(bench, runs, "--jobs", "2", "--sbatch", "nodelist=n1", "--sbatch", "exclusive")
    wait_for(lambda: workers(bench.project.results), "the first worker")
    wait_for(lambda: any(report(bench, run) for run in runs), "a run to train")
    command.terminate()
    _, lines = command.communicate(timeout=120)
    assert command.returncode == 75, lines
    wait_for(lambda: not slurm.jobs(), "the queue to be empty")
    assert sorted(len(bench.attempts(run)) for run in runs) == [0, 1]
    assert "done" not in [outcome for run in runs for outcome in bench.attempts(run)]
    assert not workers(bench.project.results)


def test_a_job_waits_for_a_reason_that_is_said_and_gets_its_share_of_a_gpu(slurm, bench):
    runs = some_runs(bench, 1)
    sweep = sweep_on(bench, runs, gres="shard:2", extra={"begin": "now+3"})
    sweep.wait_until_training()
    assert "1 job waits in Slurm's queue" in sweep.said()
    assert "BeginTime" in sweep.said()
    (worker,) = workers(bench.project.results)
    assert worker.environ()["CUDA_VISIBLE_DEVICES"] == "0"
    assert sweep.end().exit_code == 0, sweep.said()


def test_a_partition_that_is_not_there_is_named_with_where_to_look(slurm, bench):
    sweep = executor_for(bench, partition="fast")
    with pytest.raises(SetupError, match=r"sbatch does not take the jobs: .*partition.*`sinfo` lists"):
        bench.scheduler(some_runs(bench, 1), sweep).run()


def test_a_scheduler_that_is_told_to_stop_while_slurm_is_silent_ends_and_says_what_stays(slurm, bench):
    # Each word takes scancel some ten seconds now: said job by job, four would not be in time.
    runs = some_runs(bench, 4, epochs=100 * LONG)
    first = start_command(bench, runs, "--jobs", "4", epochs=100 * LONG)
    wait_for(lambda: report(bench, runs[0]), "the run to train")
    slurm.kill_daemon("slurmctld")
    try:
        first.terminate()
        time.sleep(1)
        first.terminate()
        _, lines = first.communicate(timeout=120)
    finally:
        first.kill()
        slurm.restart_controller()
    assert first.returncode == 75, lines
    assert re.search(
        r"4 jobs of Slurm \(.*, …\) were not cancelled; the next `repro run` takes them over", lines
    )
    # A job has perhaps heard the word to stop, perhaps not: it ends by itself, or stays and is cancelled here.
    slurm.command("scancel", "--user=root")
    wait_for(lambda: not slurm.jobs(), "the queue to be empty")
    wait_for(lambda: not workers(bench.project.results), "the workers to end")
