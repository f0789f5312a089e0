"""Ray: a real cluster of three nodes on this machine with GPUs in name only, and what may be lost of it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from cluster_sweep import LONG, ClusterSweep, assert_nothing_lost_or_duplicated, report, some_runs, workers
from sweep_bench import PRESET, ROOT, Bench, wait_for

from repro.errors import SetupError
from repro.scheduling.executors import ray as ray_executor
from repro.scheduling.executors.ray import RayExecutor, RayRequest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator["ray.cluster_utils.Cluster"]:  # noqa: F821
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=2, num_gpus=1)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def sweep_on(cluster, bench: Bench, runs, jobs: int, gpus: float) -> ClusterSweep:
    return ClusterSweep(bench, runs, RayExecutor(RayRequest(gpus=gpus), cluster.address), "ray", jobs)


def start_command(cluster, bench: Bench, runs) -> subprocess.Popen:
    losses = [word for run in runs for word in ("--loss", run.id.split("/")[2].split("+")[0])]
    argv = ["run", "--preset", PRESET, "--table", "1", "--network", "resnet18", *losses, "--set", "epochs=40"]
    argv += ["--results", str(bench.project.results), "--executor", "ray", "--job-gpus", "0"]
    program = "import sys; sys.modules['torch'] = None; from repro.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *argv, "--ray-address", cluster.address],
        env={**os.environ, "REPRO_ROOT": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def actor_of(worker: psutil.Process) -> psutil.Process:
    """The process of Ray's that started the worker."""
    parent = worker.parent()
    assert parent is not None
    assert "ray::" in parent.name() or "ray::" in " ".join(parent.cmdline()), parent
    return parent


def test_jobs_get_their_gpu_and_the_third_waits_for_room_and_says_so(cluster, bench, monkeypatch):
    monkeypatch.setattr(ray_executor, "WAITING_LONG", 0.5)
    runs = some_runs(bench, 3, epochs=10)
    sweep = sweep_on(cluster, bench, runs, jobs=3, gpus=1.0)
    wait_for(lambda: len(workers(bench.project.results)) == 2, "two workers")
    devices = [worker.environ()["CUDA_VISIBLE_DEVICES"] for worker in workers(bench.project.results)]
    assert devices == ["0", "0"]
    outcome = sweep.end()
    assert outcome.exit_code == 0, sweep.said()
    assert "a job waits for a node with 1 CPU and 1 GPU free" in sweep.said()
    assert [bench.attempts(run) for run in runs] == [["done"]] * 3
    assert_nothing_lost_or_duplicated(bench, runs)
    logs = (bench.project.work(PRESET) / "logs").glob("*.log")
    assert sorted(log.read_text().split(":")[0] for log in logs) == sorted(run.id for run in runs)


def test_a_killed_ray_worker_leaves_no_orphan_and_its_run_goes_on(cluster, bench):
    runs = some_runs(bench, 1, epochs=5 * LONG)
    sweep = sweep_on(cluster, bench, runs, jobs=1, gpus=0.5)
    sweep.wait_until_training()
    (worker,) = workers(bench.project.results)
    actor_of(worker).kill()
    wait_for(lambda: not worker.is_running(), "the worker to follow its actor")
    assert sweep.end().exit_code == 0, sweep.said()
    # The worker writes a checkpoint as it ends: the scheduler may hear of the loss before that, and then waits for it.
    lost = "Ray lost its job: its node or its process died"
    assert sweep.causes()[:1] == [lost] or "is being trained by another process" in sweep.said(), sweep.said()
    assert bench.attempts(runs[0])[0] != "done"
    assert bench.attempts(runs[0])[-1] == "done"
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_killed_scheduler_takes_its_jobs_along_and_the_next_one_resumes(cluster, bench):
    runs = some_runs(bench, 2)
    first = start_command(cluster, bench, runs)
    wait_for(lambda: all(report(bench, run) for run in runs), "both runs to train")
    first.kill()
    first.communicate(timeout=60)
    wait_for(lambda: not workers(bench.project.results), "the workers to end")
    second = start_command(cluster, bench, runs)
    _, lines = second.communicate(timeout=120)
    assert second.returncode == 0, lines
    assert [len(bench.attempts(run)) for run in runs] == [2, 2]
    assert_nothing_lost_or_duplicated(bench, runs)


def test_sigterm_stops_the_jobs_at_a_checkpoint(cluster, bench):
    runs = some_runs(bench, 1)
    command = start_command(cluster, bench, runs)
    wait_for(lambda: report(bench, runs[0]), "the run to train")
    command.terminate()
    _, lines = command.communicate(timeout=120)
    assert command.returncode == 75, lines
    assert bench.attempts(runs[0]) == ["interrupted"]
    assert not workers(bench.project.results)


def test_a_lost_node_costs_its_runs_an_attempt_and_no_more(cluster, bench):
    import ray

    runs = some_runs(bench, 3)
    sweep = sweep_on(cluster, bench, runs, jobs=3, gpus=0.5)
    sweep.wait_until_training()
    # All three share this machine, and older Rays may have joined any of them: its own must stay.
    own = ray.get_runtime_context().get_node_id()
    lost = next(node for node in cluster.worker_nodes if node.node_id != own)
    cluster.remove_node(lost, allow_graceful=False)
    assert sweep.end().exit_code == 0, sweep.said()
    assert any(cause.startswith("Ray lost its job") for cause in sweep.causes())
    assert "on node " in sweep.said()
    assert_nothing_lost_or_duplicated(bench, runs)


def test_a_cluster_that_does_not_answer_is_an_error_with_what_to_do(bench):
    pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    program = "from repro.scheduling.executors.ray import *; RayExecutor(RayRequest(), '127.0.0.1:1')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert SetupError.__name__ in done.stderr
    assert "no Ray cluster answers at 127.0.0.1:1 ([Errno 111] Connection refused)" in done.stderr
