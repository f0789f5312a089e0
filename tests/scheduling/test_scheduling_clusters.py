"""Slurm and Ray: real daemons of both on this machine, real training, and everything that may happen to a job.

Both in one file, so that pytest-xdist gives them to one process: each wants the whole machine.
"""

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real_sweep import ENDLESS, LONG, SHORT
from slurm_cluster import NODES, CannotStartError, SlurmCluster
from smoke_project import repro, wait_for

pytestmark = pytest.mark.slow
needs_slurm, needs_ray = pytest.mark.slurm, pytest.mark.ray
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
    for node in NODES:
        slurm.set_node(node, "resume")
    slurm.command("scancel", "--quiet", "--user=root", check=False)
    wait_for(lambda: not slurm.jobs(), "the queue to be empty")


def running_job(slurm: SlurmCluster) -> str:
    """The id of the only job that runs."""
    (job,) = [job for job, state in slurm.jobs().items() if state == "RUNNING"]
    return job


@needs_slurm
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


@needs_slurm
def test_jobs_that_find_nothing_left_are_not_waited_for(slurm_sweep, slurm):
    """The last run is done while a task of the array is held in the queue."""
    its = slurm_sweep(2, LONG, *ONE_RUNS_ONE_WAITS)
    wait_for(lambda: sorted(slurm.jobs().values()) == ["PENDING", "RUNNING"], "one job to wait")
    (waiting,) = [job for job, state in slurm.jobs().items() if state == "PENDING"]
    slurm.command("scontrol", "hold", waiting)
    assert "2 runs: 2 done" in its.end(0)
    wait_for(lambda: not slurm.jobs(), "the queue to be empty", 10)


def kill_daemons_of_jobs() -> None:
    daemons = [process for process in psutil.process_iter() if process.name() == "slurmstepd"]
    assert daemons
    for daemon in daemons:
        daemon.kill()


FAULTS = {
    "requeued": lambda slurm, job: slurm.command("scontrol", "requeue", job),
    # The warning before the time limit: a worker that got further puts its job back by itself.
    "warned": lambda slurm, job: slurm.command("scancel", "--signal=USR1", job),
    "preempted": lambda slurm, job: slurm.command(
        "srun", "--partition=high", "--exclusive", "--nodes=2", "true"
    ),
    "cancelled": lambda slurm, job: slurm.command("scancel", job),
    "slurmstepd killed": lambda slurm, job: kill_daemons_of_jobs(),
    "node down": lambda slurm, job: slurm.set_node(slurm.node_of(job), "down"),
}


@needs_slurm
@pytest.mark.parametrize("fault", FAULTS)
def test_what_happens_to_a_job_costs_its_run_an_attempt_and_no_more(slurm_sweep, slurm, fault):
    its = slurm_sweep(1, 3 * LONG)
    its.wait_until_training()
    job = running_job(slurm)
    FAULTS[fault](slurm, job)
    assert ("its job was cancelled in Slurm" in its.end(0)) == (fault == "cancelled")
    (outcomes,) = its.outcomes()
    assert len(outcomes) >= 2
    assert fault == "node down" or outcomes[0] == "interrupted"
    if fault in ("requeued", "warned", "preempted"):
        assert outcomes == ["interrupted", "done"]
        assert its.attempts(its.runs[0])[1].resumed_at_step > 0
        assert set(slurm.jobs()) <= {job}  # it was the same job
    its.assert_nothing_lost_or_duplicated()


@needs_slurm
def test_a_killed_controller_loses_nothing(slurm_sweep, slurm):
    its = slurm_sweep(2, 2 * LONG)
    its.wait_until_training(its.runs[0])
    slurm.kill_daemon("slurmctld")
    its.wait_until_says("Slurm does not answer")
    slurm.restart_controller()
    its.end(0)
    its.assert_nothing_lost_or_duplicated()


@needs_slurm
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


@needs_slurm
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


@needs_slurm
def test_a_partition_that_is_not_there_is_named_with_where_to_look(slurm, tmp_path):
    words = ("--preset", "smoke", "--results", tmp_path, "--executor", "slurm", "--partition", "fast")
    done = repro("run", *words, check=3, environment=slurm.environment)
    assert "sbatch refuses the jobs: " in done.stderr
    assert "`sinfo` lists partitions" in done.stderr


# Ray: a cluster of three nodes with GPUs in name only


@pytest.fixture(scope="module")
def cluster() -> Iterator["ray.cluster_utils.Cluster"]:  # noqa: F821
    pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=2, num_gpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def ray_sweep(cluster, sweep):
    """A sweep with jobs that train on the CPU of Ray's nodes."""

    def begin(count: int, epochs: int, *options: str):
        address = ("--ray-address", cluster.address, "--executor", "ray")
        return sweep(count, epochs, *address, *(options or ("--job-gpus", "0", "--jobs", "2")))

    return begin


@needs_ray
def test_jobs_get_their_share_of_a_gpu_and_one_too_many_waits_and_says_so(ray_sweep):
    """On a machine without GPUs the workers end: --job-gpus asks for CUDA."""
    its = ray_sweep(3, SHORT, "--job-gpus", "1", "--jobs", "3")
    said = its.end(3)
    assert "finds no CUDA device" in said
    assert its.outcomes() == [[], [], []]


@needs_ray
def test_a_killed_actor_leaves_no_orphan_and_its_run_is_resumed(ray_sweep):
    its = ray_sweep(1, 2 * LONG)
    its.wait_until_training()
    (worker,) = its.workers()
    actor = worker.parent()
    assert "ray::" in actor.name() + " ".join(actor.cmdline())
    actor.kill()
    wait_for(lambda: not worker.is_running(), "the worker to follow its actor", 15)
    assert "Ray lost its node" in its.end(0)
    assert its.attempts(its.runs[0])[-1].resumed_at_step > 0
    its.assert_nothing_lost_or_duplicated()


@needs_ray
def test_a_lost_node_costs_its_runs_an_attempt_and_no_more(ray_sweep, cluster):
    its = ray_sweep(3, 2 * LONG, "--job-gpus", "0", "--jobs", "4")
    its.wait_until_training(*its.runs[:2])
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    said = its.end(0)
    cluster.add_node(num_cpus=2, num_gpus=1)
    assert "Ray lost its node" in said
    its.assert_nothing_lost_or_duplicated()


@needs_ray
def test_a_killed_supervisor_takes_its_jobs_along_and_the_next_one_resumes(ray_sweep):
    its = ray_sweep(2, 2 * LONG)
    its.wait_until_training(*its.runs[:1])
    its.process.kill()
    its.process.wait()
    wait_for(lambda: not its.workers(), "the workers to end", 30)
    its.start()
    its.end(0)
    assert its.outcomes()[0] == ["interrupted", "done"]
    assert its.attempts(its.runs[0])[-1].resumed_at_step > 0
    its.assert_nothing_lost_or_duplicated()


@pytest.mark.parametrize(
    ("begin", "count", "options"),
    [
        pytest.param("slurm_sweep", 2, ONE_RUNS_ONE_WAITS, marks=needs_slurm),
        pytest.param("ray_sweep", 1, (), marks=needs_ray),
    ],
)
@pytest.mark.parametrize("by", ["SIGTERM", "repro stop"])
def test_a_stopped_sweep_leaves_checkpoints_and_no_job(request, begin, count, options, by):
    its = request.getfixturevalue(begin)(count, ENDLESS, *options)
    its.wait_until_training(its.runs[0])
    if by == "SIGTERM":
        its.process.send_signal(signal.SIGTERM)
    else:
        its.repro("stop", "--now")
    its.end(75)
    if begin == "slurm_sweep":
        wait_for(lambda: not request.getfixturevalue("slurm").jobs(), "the queue to be empty", 30)
    assert its.outcomes() == [["interrupted"], []][:count]
    assert its.attempts(its.runs[0])[0].saved_step > 0
    assert not its.workers()


@needs_ray
def test_a_cluster_that_does_not_answer_is_an_error_with_what_to_do(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    began = time.monotonic()
    words = ("--preset", "smoke", "--results", tmp_path, "--executor", "ray", "--ray-address", "127.0.0.1:1")
    done = repro("run", *words, check=3)
    assert "no Ray cluster answers at 127.0.0.1:1 ([Errno 111] Connection refused)" in done.stderr
    assert time.monotonic() - began < 60
