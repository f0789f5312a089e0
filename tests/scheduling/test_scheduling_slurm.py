"""Slurm: real daemons of two nodes, real training, and everything that may happen to a job."""

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real_sweep import ENDLESS, LONG, SHORT
from slurm_cluster import CannotStartError, SlurmCluster
from smoke_project import repro, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
ONE_RUNS_ONE_WAITS = ("--jobs", "2", "--sbatch", "nodelist=n1", "--sbatch", "cpus-per-task=2")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    # A short path: a Unix socket's name has room for 107 characters.
    with tempfile.TemporaryDirectory(prefix="repro-slurm-") as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        except CannotStartError as error:
            pytest.skip(str(error))
        finally:
            cluster.stop()


@pytest.fixture
def slurm_sweep(slurm, sweep):
    """A sweep with two jobs that train on the CPU of Slurm's nodes; the queue is empty before and after."""

    def begin(count: int, epochs: int, *options: str):
        words = ("--executor", "slurm", "--job-gpus", "0", *(options or ("--jobs", "2")))
        return sweep(count, epochs, *words, environment=slurm.environment)

    yield begin
    slurm.command("scancel", "--quiet", "--user=root", check=False)
    wait_for(lambda: not slurm.jobs(), "the queue to be empty")


def running_job(slurm: SlurmCluster) -> str:
    """The id of the only job that runs."""
    (job,) = [job for job, state in slurm.jobs().items() if state == "RUNNING"]
    return job


def test_a_sweep_is_one_array_and_says_why_its_jobs_wait_and_needs_no_torch_where_it_is_started(
    slurm_sweep, slurm
):
    its = slurm_sweep(3, SHORT, "--jobs", "2", "--sbatch", "begin=now+1hour")
    its.wait_until_says("2 jobs wait in Slurm's queue: BeginTime")
    for job in slurm.jobs():
        slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert "libtorch" not in Path(f"/proc/{its.process.pid}/maps").read_text()
    assert "3 runs: 3 done" in its.end(0)
    assert len(list((its.context.project.work("smoke") / "slurm").glob("*.sh"))) == 1
    its.assert_nothing_lost_or_duplicated()


def test_jobs_that_find_nothing_left_are_not_waited_for(slurm_sweep, slurm):
    """The last run is done while a task of the array is held in the queue."""
    its = slurm_sweep(2, LONG, *ONE_RUNS_ONE_WAITS)
    wait_for(lambda: sorted(slurm.jobs().values()) == ["PENDING", "RUNNING"], "one job to wait")
    (waiting,) = [job for job, state in slurm.jobs().items() if state == "PENDING"]
    slurm.command("scontrol", "hold", waiting)
    assert "2 runs: 2 done" in its.end(0)
    wait_for(lambda: not slurm.jobs(), "the queue to be empty", 10)


@pytest.mark.parametrize("request_", ["scontrol requeue", "scancel --signal=USR1", "preemption"])
def test_a_job_that_slurm_starts_again_resumes(slurm_sweep, slurm, request_):
    """USR1 is the warning before the time limit: a worker that got further puts its job back by itself."""
    its = slurm_sweep(1, 3 * LONG)
    its.wait_until_training()
    job = running_job(slurm)
    if request_ == "preemption":
        slurm.command("srun", "--partition=high", "--exclusive", "--nodes=2", "true")
    else:
        slurm.command(*request_.split(), job)
    its.end(0)
    assert its.outcomes() == [["interrupted", "done"]]
    assert its.attempts(its.runs[0])[1].resumed_at_step > 0
    assert slurm.jobs() == {} or set(slurm.jobs()) == {job}  # it was the same job
    its.assert_nothing_lost_or_duplicated()


def test_a_job_that_an_administrator_cancels_is_replaced_and_said_so(slurm_sweep, slurm):
    its = slurm_sweep(1, 2 * LONG)
    its.wait_until_training()
    slurm.command("scancel", running_job(slurm))
    assert "its job was cancelled in Slurm" in its.end(0)
    assert its.outcomes() == [["interrupted", "done"]]
    its.assert_nothing_lost_or_duplicated()


def test_a_killed_slurmstepd_leaves_one_record_and_no_orphan(slurm_sweep):
    its = slurm_sweep(1, 2 * LONG)
    its.wait_until_training()
    daemons = [process for process in psutil.process_iter() if process.name() == "slurmstepd"]
    assert daemons
    for daemon in daemons:
        daemon.kill()
    its.end(0)
    assert its.outcomes()[0][0] == "interrupted"
    its.assert_nothing_lost_or_duplicated()


def test_a_killed_controller_loses_nothing(slurm_sweep, slurm):
    its = slurm_sweep(2, 2 * LONG)
    its.wait_until_training(its.runs[0])
    slurm.kill_daemon("slurmctld")
    its.wait_until_says("Slurm does not answer")
    slurm.restart_controller()
    its.end(0)
    its.assert_nothing_lost_or_duplicated()


def test_the_jobs_of_a_node_that_goes_down_go_elsewhere(slurm_sweep, slurm):
    its = slurm_sweep(1, 2 * LONG)
    its.wait_until_training()
    (node,) = slurm.command("squeue", "--noheader", "--format=%N").split()
    try:
        slurm.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        its.end(0)
    finally:
        slurm.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert len(its.attempts(its.runs[0])) >= 2
    its.assert_nothing_lost_or_duplicated()


def test_jobs_outlive_a_killed_supervisor_and_the_next_one_tops_up(slurm_sweep, slurm):
    its = slurm_sweep(3, 2 * LONG, "--jobs", "2")
    its.wait_until_training(*its.runs[:2])
    its.process.kill()
    its.process.wait()
    assert len(its.workers()) == 2
    its.start()
    most = 0
    while its.process.poll() is None:
        most = max(most, len(slurm.jobs()))
        time.sleep(0.5)
    its.end(0)
    assert most == 2
    assert its.outcomes() == [["done"]] * 3
    its.assert_nothing_lost_or_duplicated()


@pytest.mark.parametrize("by", ["SIGTERM", "repro stop"])
def test_a_stopped_sweep_leaves_checkpoints_and_an_empty_queue(slurm_sweep, slurm, by):
    its = slurm_sweep(2, ENDLESS, *ONE_RUNS_ONE_WAITS)
    its.wait_until_training(its.runs[0])
    if by == "SIGTERM":
        its.process.send_signal(signal.SIGTERM)
    else:
        its.repro("stop", "--now")
    its.end(75)
    wait_for(lambda: not slurm.jobs(), "the queue to be empty", 30)
    assert its.outcomes() == [["interrupted"], []]
    assert its.attempts(its.runs[0])[0].saved_step > 0
    assert not its.workers()


@pytest.mark.long
def test_a_sweep_that_is_stopped_while_slurm_is_silent_ends_and_says_what_may_go_on(slurm_sweep, slurm):
    its = slurm_sweep(1, ENDLESS)
    its.wait_until_training()
    slurm.kill_daemon("slurmctld")
    try:
        its.process.send_signal(signal.SIGTERM)
        said = its.end(75)
    finally:
        slurm.restart_controller()
    assert "could not be stopped and may still be running" in said
    assert its.outcomes() == [["interrupted"]]  # it heard of the stop from the results folder


def test_a_partition_that_is_not_there_is_named_with_where_to_look(slurm, tmp_path):
    words = ("--preset", "smoke", "--results", tmp_path, "--executor", "slurm", "--partition", "fast")
    done = repro("run", *words, check=3, environment=slurm.environment)
    assert "sbatch refuses the jobs: " in done.stderr
    assert "`sinfo` lists partitions" in done.stderr
