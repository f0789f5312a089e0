"""Executors that know more than an exit code: ends that are nobody's fault, jobs of an earlier scheduler."""

import sys
from contextlib import ExitStack

import pytest
from another_machine import another_machine
from sweep_bench import PRESET, Bench, cpu_slots, wait_for

from repro import commit
from repro.cli.context import Context
from repro.commands.cluster import ClusterOptions, open_cluster
from repro.commands.run import RunOptions, run_sweep
from repro.errors import SetupError, UsageError
from repro.registry import Selection
from repro.scheduling.causes import FURTHER_LAUNCHES, Kind
from repro.scheduling.events import Elsewhere, Notice, Requeued, Started, Tick
from repro.scheduling.executors.base import Ending, Executor, Job
from repro.scheduling.executors.local import LocalExecutor
from repro.scheduling.executors.slurm_queue import QueueEntry, read_end, waiting
from repro.scheduling.executors.slurm_submission import SlurmRequest
from repro.scheduling.slots import remote_slots


class LosesNodes(LocalExecutor):
    """Blames a node for every worker that was killed."""

    def ending(self, job):
        return Ending("its node was lost", blameless=True) if self.poll(job) == -9 else None


class FindsJobs(LocalExecutor):
    """A local executor whose jobs a second scheduler can take over."""

    def __init__(self):
        super().__init__()
        self.jobs = []

    def adopt(self, first, runs):
        return [job for job in self.jobs if not runs.isdisjoint(job.runs)]

    def submit(self, job):
        self.jobs.append(job)
        super().submit(job)


def sweep(bench: Bench, runs, executor: Executor, actions):
    bench.script(actions)
    heard = []
    outcome = bench.scheduler(runs, executor, 1, heard.append).run()
    return outcome, heard


def test_an_end_that_is_nobodys_fault_costs_no_try(bench):
    (run,) = bench.runs(1)
    outcome, heard = sweep(bench, [run], LosesNodes(), {run.id: ["kill"] * 5 + ["done"]})
    assert outcome.done == (run.id,)
    assert [event.cause for event in heard if isinstance(event, Requeued)] == ["its node was lost"] * 5


def test_a_group_that_lost_its_node_goes_on_as_a_group(bench):
    runs = bench.runs(3)
    outcome, heard = sweep(bench, runs, LosesNodes(), {runs[0].id: ["kill", "done"]})
    assert outcome.exit_code == 0
    assert [len(event.job.runs) for event in heard if isinstance(event, Started)] == [3, 3]


def test_a_run_that_never_gets_further_is_given_up_in_the_end(bench):
    (run,) = bench.runs(1)
    outcome, _ = sweep(bench, [run], LosesNodes(), {run.id: ["kill"]})
    (failure,) = outcome.failed
    assert failure.cause == "its node was lost (11 times)"
    assert failure.launches == FURTHER_LAUNCHES[Kind.BLAMELESS] + 1


def test_jobs_of_an_earlier_scheduler_are_waited_for_and_not_started_twice(bench):
    runs = bench.runs(2)
    bench.script({runs[0].id: ["wait"]})
    executor = FindsJobs()
    (slot,) = cpu_slots(1)
    ids = (runs[0].id,)
    log = bench.project.work(PRESET) / "logs" / "earlier.log"
    executor.submit(Job(1, ids, bench.command().argv(ids, slot), {}, log, slot, 0))
    wait_for(bench.project.run(PRESET, runs[0].id).progress.exists, "the worker to train")
    heard = []

    def listener(event):
        heard.append(event)
        if isinstance(event, Notice):
            bench.release()

    outcome = bench.scheduler(runs, executor, 1, listener).run()
    assert sorted(outcome.done) == sorted(run.id for run in runs)
    assert [event.text for event in heard if isinstance(event, Notice)] == [
        "going on with 1 job of an earlier scheduler"
    ]
    assert [bench.attempts(run) for run in runs] == [["done"], ["done"]]


def test_adopted_jobs_take_the_first_places_of_the_new_scheduler_and_its_own_go_beside_them(bench):
    runs = bench.runs(3)
    bench.script({run.id: ["wait"] for run in runs})
    executor = FindsJobs()
    for number, run in enumerate(runs[:2], 1):
        # The earlier scheduler had more slots, and these jobs on the last of them.
        slot = remote_slots("slurm", 8, "Slurm", "cpu", 1)[5 + number]
        log = bench.project.work(PRESET) / "logs" / f"earlier{number}.log"
        executor.submit(
            Job(number, (run.id,), bench.command().argv([run.id], slot), {}, log, slot, 5 + number)
        )
        wait_for(bench.project.run(PRESET, run.id).progress.exists, "the worker to train")
    started = []

    def listener(event):
        if isinstance(event, Started):
            started.append((event.job.number, event.job.place))
            if len(started) == 3:
                bench.release()
        if isinstance(event, Tick):
            places = [running.job.place for running in event.running]
            assert len(set(places)) == len(places)

    assert bench.scheduler(runs, executor, 3, listener).run().exit_code == 0
    assert started == [(1, 0), (2, 1), (3, 2)]
    assert [job.slot.label for job in executor.jobs] == ["slurm/6", "slurm/7", "cpu/2"]


def test_a_run_that_another_machine_reports_on_is_left_to_it_until_it_falls_silent(bench, monkeypatch):
    """Where locks do not cross machines."""
    monkeypatch.setattr(commit, "FRESH", 1.0)
    run, free = bench.runs(2)
    heard = []

    with ExitStack() as others:
        others.enter_context(another_machine(bench.project.run(PRESET, run.id)))

        def listener(event):
            heard.append(event)
            if isinstance(event, Notice) and event.text.startswith("waiting for 1 run that other processes"):
                others.close()

        outcome = bench.scheduler([run, free], bench.inline(), 1, listener).run()
    assert sorted(outcome.done) == sorted([run.id, free.id])
    assert [event.run for event in heard if isinstance(event, Elsewhere)] == [run.id]
    assert bench.attempts(run) == ["running", "done"]
    assert not [event for event in heard if isinstance(event, Requeued)]


@pytest.mark.parametrize(
    ("state", "blameless", "words"),
    [
        ("TIMEOUT", True, "time limit"),
        ("PREEMPTED", True, "preempted"),
        ("NODE_FAIL", True, "the node of its job failed"),
        ("CANCELLED", False, "cancelled"),
        ("OUT_OF_MEMORY", False, "--mem"),
        ("FAILED", False, "could not start on the node"),
    ],
)
def test_slurms_last_word_becomes_a_cause(state, blameless, words):
    _, ending = read_end(QueueEntry(state, "n7", "None"), began=False)
    assert (ending.blameless, words in ending.cause) == (blameless, True)
    assert "n7" not in ending.cause


def test_a_job_that_slurm_has_forgotten_is_tried_again():
    _, ending = read_end(None, began=True)
    assert ending == Ending("its job is gone from Slurm's queue and left no word", blameless=True)


def test_jobs_that_wait_are_grouped_by_reason():
    entries = {str(job): QueueEntry("PENDING", "", "Priority") for job in range(5)}
    entries |= {"9": QueueEntry("PENDING", "", "JobHeldAdmin"), "10": QueueEntry("RUNNING", "n1", "None")}
    assert waiting(entries) == {
        "Priority": "5 jobs wait in Slurm's queue (0, 1, 2, …): Priority",
        "JobHeldAdmin": "1 job waits in Slurm's queue (9): JobHeldAdmin; "
        "an administrator or you must let it go: scontrol release ID",
    }


def test_what_the_user_says_last_goes_to_sbatch():
    request = SlurmRequest(
        cores=2, gres="gpu:1", time="4:00:00", extra={"signal": "USR1@300", "exclusive": True}
    )
    assert request.options() == {
        "cpus-per-task": "2",
        "gres": "gpu:1",
        "time": "4:00:00",
        "requeue": True,
        "signal": "USR1@300",
        "exclusive": True,
    }


def context_of(bench: Bench) -> Context:
    return Context(bench.project, bench.registry, bench.preset)


@pytest.mark.parametrize(
    ("kind", "module", "words"),
    [
        ("slurm", "submitit.slurm.slurm", "needs submitit: pip install '.[slurm]'"),
        ("ray", "ray", "needs Ray: pip install '.[ray]'"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(bench, monkeypatch, kind, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SetupError) as caught:
        open_cluster(kind, context_of(bench), ClusterOptions())
    assert words in str(caught.value)


def test_a_machine_without_slurm_is_told_to_use_a_login_node(bench, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed (the extra slurm)")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match="no sbatch on PATH: run this on a login node"):
        open_cluster("slurm", context_of(bench), ClusterOptions())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("ray", {"partition": "gpu"}, "--partition belongs to --executor slurm"),
        ("ray", {"memory": "16G"}, "--mem belongs to --executor slurm"),
        ("slurm", {"ray_address": "a:1"}, "--ray-address belongs to --executor ray"),
        ("slurm", {"job_gpus": 0.5}, "--gres shard:2"),
        ("slurm", {"sbatch": ("=x",)}, "constraint=a100"),
        ("ray", {"job_gpus": 1.5}, "a fraction of one GPU, or whole ones"),
    ],
)
def test_an_option_that_the_executor_does_not_have_is_refused(bench, kind, options, words):
    with pytest.raises(UsageError) as caught:
        open_cluster(kind, context_of(bench), ClusterOptions(**options))
    assert words in str(caught.value)


def test_options_of_a_cluster_without_one_are_refused(bench):
    with pytest.raises(UsageError, match="need --executor slurm or --executor ray"):
        run_sweep(context_of(bench), Selection(), RunOptions(cluster=ClusterOptions(jobs=4)))
