"""Ray: a real cluster of three nodes on this machine with GPUs in name only, and what may be lost of it."""

import signal
import time
from collections.abc import Iterator

import pytest
from real_sweep import ENDLESS, LONG, SHORT
from smoke_project import repro, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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


def test_jobs_get_their_share_of_a_gpu_and_one_too_many_waits_and_says_so(ray_sweep):
    """On a machine without GPUs the workers end: --job-gpus asks for CUDA."""
    its = ray_sweep(3, SHORT, "--job-gpus", "1", "--jobs", "3")
    said = its.end(3)
    assert "finds no CUDA device" in said
    assert its.outcomes() == [[], [], []]


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


def test_a_lost_node_costs_its_runs_an_attempt_and_no_more(ray_sweep, cluster):
    its = ray_sweep(3, 2 * LONG, "--job-gpus", "0", "--jobs", "4")
    its.wait_until_training(*its.runs[:2])
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    said = its.end(0)
    cluster.add_node(num_cpus=2, num_gpus=1)
    assert "Ray lost its node" in said
    its.assert_nothing_lost_or_duplicated()


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


@pytest.mark.parametrize("by", ["SIGTERM", "repro stop"])
def test_a_stopped_sweep_leaves_checkpoints(ray_sweep, by):
    its = ray_sweep(1, ENDLESS)
    its.wait_until_training()
    if by == "SIGTERM":
        its.process.send_signal(signal.SIGTERM)
    else:
        its.repro("stop", "--now")
    its.end(75)
    assert its.outcomes() == [["interrupted"]]
    assert its.attempts(its.runs[0])[0].saved_step > 0
    assert not its.workers()


def test_a_cluster_that_does_not_answer_is_an_error_with_what_to_do(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    began = time.monotonic()
    words = ("--preset", "smoke", "--results", tmp_path, "--executor", "ray", "--ray-address", "127.0.0.1:1")
    done = repro("run", *words, check=3)
    assert "no Ray cluster answers at 127.0.0.1:1 ([Errno 111] Connection refused)" in done.stderr
    assert time.monotonic() - began < 60
