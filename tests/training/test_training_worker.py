"""A worker, in this process: what it takes, several runs at once, and what it does when things go wrong."""

from dataclasses import replace

import pytest
import torch
from pretended_environment import attempt_note
from smoke_project import (
    OTHER,
    PROJECT,
    RUN,
    interrupt,
    record_of,
    smoke_context,
    sweep_of,
    train_here,
    worker_of,
)

import repro.training.run_attempt as run_attempt
from repro.attempts import Outcome, new_attempt, read_attempts, write_attempt
from repro.cli.context import Context
from repro.errors import SetupError
from repro.signals import Stop
from repro.storage import FileLock, record_digest
from repro.sweep import RunQueue, RunStatus, request_stop
from repro.training.loop import Trainer
from repro.worker_note import Phase, RunProgress, WorkerNote, new_worker_note, read_worker_notes

THIRD = "cifar100/resnet18/scaled-bn-m0.8/seed0"
FOURTH = "cifar100/resnet18/am-softmax-s10-m0.5/seed0"
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")
OTHER_NETWORK = "cifar100/vgg16/cross-entropy/seed0"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Four runs of one network, each trained in a process of its own kind: one after another."""
    context = smoke_context(None, tmp_path_factory.mktemp("alone"))
    assert train_here(context, RUN, OTHER, THIRD, FOURTH) == 0
    return {run: record_of(context, run).comparable() for run in (RUN, OTHER, THIRD, FOURTH)}


def paths_of(context, run):
    return context.project.run("smoke", run)


def outcomes(context, run):
    return [note.outcome for note in read_attempts(paths_of(context, run))]


def disturb(monkeypatch, context, run, at, error, times=10**9):
    """Has `run` raise `error` instead of its step number `at`, the first `times` that it gets there."""
    target = context.registry.config(context.registry.parse(run), context.preset)
    left = [times]

    def steps(trainer):
        real, step = Trainer.steps(trainer), 0
        while True:
            if trainer.config == target and step == at and left[0] > 0:
                left[0] -= 1
                raise error
            try:
                next(real)
            except StopIteration as end:
                return end.value
            step += 1
            yield

    replace_steps(monkeypatch, steps)


def replace_steps(monkeypatch, steps):
    """Has runs train by `steps(trainer)`, which calls `Trainer.steps`."""
    monkeypatch.setattr(run_attempt, "Trainer", type("Disturbed", (Trainer,), {"steps": steps}))


def test_runs_that_take_turns_in_one_process_equal_those_trained_alone(context, alone):
    assert train_here(context, RUN, OTHER, THIRD, FOURTH, per_gpu=4) == 0
    for run, expected in alone.items():
        record = record_of(context, run)
        assert record.comparable() == expected
        assert record.provenance.runs_on_device == 4 if run == RUN else record.provenance.runs_on_device > 1


def test_a_run_of_another_network_waits_until_the_process_is_empty(context):
    assert train_here(context, RUN, OTHER_NETWORK, OTHER, per_gpu=3) == 0
    assert record_of(context, RUN).provenance.runs_on_device == 2
    assert record_of(context, OTHER_NETWORK).provenance.runs_on_device == 1


def test_a_run_whose_checkpoint_needs_other_threads_waits_until_the_process_is_empty(context, monkeypatch):
    """On a CPU whose workers share the device, too: what counts is who is in the process."""
    threads = [1]  # as torch is told; two that wait for each other on a busy machine would take a minute
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    interrupt(context, RUN, threads=2)
    begun, real = [], new_attempt
    monkeypatch.setattr(run_attempt, "new_attempt", lambda paths: begun.append(paths) or real(paths))
    monkeypatch.setattr(
        Stop, "drain", property(lambda stop: len(begun) > 4, lambda stop, asked: None), raising=False
    )
    sweep = replace(sweep_of(context, OTHER, RUN), workers_per_device=2)
    assert worker_of(context, sweep, per_gpu=2).run() == 0
    assert outcomes(context, OTHER) == ["done"]
    stopped, beside, alone = outcomes(context, RUN)
    assert (stopped, beside.partition(":")[0], alone) == ("interrupted", "withdrawn", "done")
    assert read_attempts(paths_of(context, RUN))[-1].resumed_at_step > 0


def test_an_error_of_one_run_leaves_its_neighbours_alone(context, alone, monkeypatch):
    disturb(monkeypatch, context, OTHER, at=4, error=ValueError("a bug"))
    assert train_here(context, RUN, OTHER, THIRD, per_gpu=3) == 1
    assert outcomes(context, OTHER) == ["failed: ValueError: a bug"]
    trace = paths_of(context, OTHER).attempts / "1" / "error.txt"
    assert "ValueError: a bug" in trace.read_text()
    assert record_of(context, RUN).comparable() == alone[RUN]
    assert record_of(context, THIRD).comparable() == alone[THIRD]


def test_a_newcomer_without_memory_leaves_and_is_not_blamed(context, alone, monkeypatch):
    disturb(monkeypatch, context, OTHER, at=0, error=NO_MEMORY, times=1)
    assert train_here(context, RUN, OTHER, per_gpu=2) == 0
    first, second = outcomes(context, OTHER)
    assert first.startswith("withdrawn: OutOfMemoryError: CUDA out of memory beside 1 other")
    assert second == "done"
    assert record_of(context, RUN).provenance.runs_on_device == 2
    assert record_of(context, OTHER).comparable() == alone[OTHER]


def test_an_older_run_without_memory_restarts_from_its_checkpoint_and_the_newest_leaves(
    context, alone, monkeypatch
):
    disturb(monkeypatch, context, RUN, at=7, error=NO_MEMORY, times=1)
    assert train_here(context, RUN, OTHER, per_gpu=2, checkpoint_interval=0.0) == 0
    first, second = read_attempts(paths_of(context, RUN))
    assert first.kind is Outcome.WITHDRAWN
    assert second.kind is Outcome.DONE
    assert second.resumed_at_step == first.saved_step
    assert outcomes(context, OTHER)[0].startswith("withdrawn")
    for run in (RUN, OTHER):
        assert record_of(context, run).comparable() == alone[run]


def test_a_run_that_is_too_large_alone_in_a_fresh_process_is_impossible_on_such_a_device(
    context, monkeypatch
):
    disturb(monkeypatch, context, RUN, at=0, error=NO_MEMORY)
    worker = worker_of(context, sweep_of(context, RUN))
    assert worker.run() == 1
    assert outcomes(context, RUN) == ["out of memory: OutOfMemoryError: CUDA out of memory"]
    assert worker.heartbeat.note.left == {RUN: "out of memory: OutOfMemoryError: CUDA out of memory"}
    (note,) = read_attempts(paths_of(context, RUN))
    queue = RunQueue(worker.sweep, context.registry, context.project, note.device_memory_bytes + 1)
    assert queue.status(worker.sweep.runs[0]) is RunStatus.FREE  # a larger device may try


def test_a_run_without_memory_behind_another_gets_a_fresh_process_first(context, monkeypatch):
    disturb(monkeypatch, context, OTHER, at=0, error=NO_MEMORY)
    worker = worker_of(context, sweep_of(context, RUN, OTHER, THIRD))
    worker.run()
    assert outcomes(context, OTHER)[0].startswith("withdrawn: ")
    assert OTHER not in worker.heartbeat.note.left
    assert outcomes(context, THIRD) == []  # this process ends at once


def test_a_broken_device_ends_the_process_and_notes_every_run(context, monkeypatch):
    disturb(monkeypatch, context, OTHER, at=2, error=RuntimeError("CUDA error: an illegal memory access"))
    assert train_here(context, RUN, OTHER, per_gpu=2) == 1
    for run in (RUN, OTHER):
        (note,) = read_attempts(paths_of(context, run))
        assert (note.kind, note.alone) == (Outcome.DEVICE, False)


def test_a_suspect_is_trained_alone_until_it_has_saved_a_later_step(context, alone):
    sweep = sweep_of(context, RUN, OTHER, THIRD)
    folder = new_attempt(paths_of(context, OTHER))
    write_attempt(folder, attempt_note("running", int(folder.name), worker="of-a-dead-process"))
    assert worker_of(context, sweep, per_gpu=3).run() == 0
    assert outcomes(context, OTHER) == ["crashed", "done"]
    assert record_of(context, RUN).provenance.runs_on_device == 2  # with the third
    assert record_of(context, OTHER).provenance.runs_on_device == 1
    assert record_of(context, OTHER).comparable() == alone[OTHER]


@pytest.mark.parametrize(
    ("phase", "runs", "expected", "was_alone"),
    [
        (Phase.TRAINING, 1, "crashed", True),
        (Phase.TRAINING, 3, "crashed", False),
        (Phase.STOPPING, 3, "interrupted", False),
        (None, 0, "crashed", True),
    ],
)
def test_a_note_that_says_running_is_closed_by_whoever_has_the_lock(
    context, phase, runs, expected, was_alone
):
    worker = worker_of(context, sweep_of(context, RUN))
    folder = new_attempt(paths_of(context, RUN))
    write_attempt(folder, attempt_note("running", int(folder.name), worker="gone-1-1"))
    if phase is not None:
        life = replace(
            new_worker_note("a sweep", "", "cpu"),
            name="gone-1-1",
            phase=phase,
            runs=tuple(RunProgress(f"run{number}", 1) for number in range(runs)),
        )
        life.write(context.project.workers("smoke"))
    worker.queue.close_dead_attempt(worker.sweep.runs[0])
    (closed,) = read_attempts(paths_of(context, RUN))
    assert (closed.kind, closed.alone) == (Outcome(expected), was_alone)


def test_a_locked_run_is_left_alone_and_others_are_trained(context):
    lock = FileLock(paths_of(context, RUN).lock)
    assert lock.acquire()
    with lock:
        assert train_here(context, RUN, OTHER) == 0
    assert outcomes(context, RUN) == []
    record_of(context, OTHER)


def test_only_the_baseline_s_record_is_replaced_once_and_kept_beside(context):
    planned_before = sweep_of(context, RUN)
    assert train_here(context, RUN) == 0
    before = record_digest(paths_of(context, RUN).record)
    assert worker_of(context, planned_before).run() == 0
    assert record_digest(paths_of(context, RUN).record) == before
    sweep = sweep_of(context, RUN)  # as `--stale rerun` plans it
    assert worker_of(context, sweep).run() == 0
    assert record_digest(paths_of(context, RUN).record) != before
    assert record_digest(paths_of(context, RUN).superseded / "1.json") == before
    assert worker_of(context, sweep).run() == 0
    assert len(outcomes(context, RUN)) == 2


def test_an_attempt_whose_lock_was_lost_ends_before_it_writes(context, monkeypatch):
    def steps(trainer):
        for number, _ in enumerate(Trainer.steps(trainer)):
            if number == 3:
                new_attempt(paths_of(context, RUN))  # as a process that has the lock as well would
            yield

    replace_steps(monkeypatch, steps)
    worker = worker_of(context, sweep_of(context, RUN), checkpoint_interval=0.0)
    worker.run()
    assert outcomes(context, RUN)[0] == "superseded"
    assert record_digest(paths_of(context, RUN).record) is None


def test_a_stop_writes_phase_and_checkpoints_and_the_next_worker_resumes(context, alone, monkeypatch):
    stop = Stop()
    phases = []
    real = run_attempt.RunAttempt.end

    def end(attempt, outcome, *rest, **more):
        phases.append(WorkerNote.read(next(context.project.workers("smoke").glob("*.json"))).phase)
        real(attempt, outcome, *rest, **more)

    taken = 0

    def steps(trainer):
        nonlocal taken
        for _ in Trainer.steps(trainer):
            taken += 1
            if taken == 9:
                stop.now, stop.reason = True, "SIGTERM"
            yield

    monkeypatch.setattr(run_attempt.RunAttempt, "end", end)
    replace_steps(monkeypatch, steps)
    assert worker_of(context, sweep_of(context, RUN, OTHER), stop, per_gpu=2).run() == 75
    assert phases == [Phase.STOPPING] * 2  # said before anything else, so that a death is no crash
    for run in (RUN, OTHER):
        assert outcomes(context, run) == ["interrupted"]
    monkeypatch.undo()
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    assert train_here(context, RUN, OTHER, per_gpu=2) == 0
    for run in (RUN, OTHER):
        assert read_attempts(paths_of(context, run))[1].resumed_at_step > 0
        assert record_of(context, run).comparable() == alone[run]


@pytest.mark.parametrize(("how", "outcome"), [("drain", "done"), ("now", "interrupted")])
def test_a_stop_file_reaches_the_worker(context, monkeypatch, how, outcome):
    sweep = sweep_of(context, RUN, OTHER)
    file = context.project.sweeps("smoke") / "a.json"
    sweep.write(file)
    worker = worker_of(context, sweep, sweep_file=file)

    def steps(trainer):
        request_stop(file, how)
        worker.heartbeat.beat()
        return (yield from Trainer.steps(trainer))

    replace_steps(monkeypatch, steps)
    assert worker.run() == 75
    assert [outcomes(context, run) for run in (RUN, OTHER)] == [[outcome], []]


def test_missing_data_leave_the_run_to_others_without_an_attempt(context, monkeypatch):
    quick = Context.open("quick", results=context.project.results, data=context.project.results / "no data")
    worker = worker_of(quick, sweep_of(quick, RUN))
    assert worker.run() == 0
    assert "data prepare" in worker.heartbeat.note.left[RUN]
    assert not paths_of(quick, RUN).attempts.exists()


def test_three_equal_errors_in_a_row_end_a_supervised_worker(context, monkeypatch):
    def steps(trainer):
        raise ValueError("always")
        yield

    replace_steps(monkeypatch, steps)
    sweep = sweep_of(context, RUN, OTHER, THIRD, FOURTH)
    assert worker_of(context, sweep, sweep_file=context.project.sweeps("smoke") / "a.json").run() == 75
    assert [len(outcomes(context, run)) for run in (RUN, OTHER, THIRD, FOURTH)] == [1, 1, 1, 0]


def test_no_two_workers_share_a_device(context):
    worker = worker_of(context, sweep_of(context, RUN))
    lock = context.project.device_lock("smoke", "here-cpu-0")
    worker.device_lock, held = FileLock(lock), FileLock(lock)
    assert held.acquire()
    with held, pytest.raises(SetupError, match="another worker has this device"):
        worker.run()
    assert outcomes(context, RUN) == []


def test_a_supervised_worker_leaves_a_note_of_how_it_ended(context):
    worker = worker_of(context, sweep_of(context, RUN))
    worker.heartbeat.note = replace(worker.heartbeat.note, job="a job")
    assert worker.run() == 0
    (note,) = read_worker_notes(context.project.workers("smoke"))
    assert (note.phase, note.runs, note.stepped, note.is_alive) == (Phase.ENDED, (), True, True)
