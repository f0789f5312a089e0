"""The scheduler: what is trained, what is tried again, what stops it, and what it believes."""

import json

import pytest
from repro.scheduling.events import Elsewhere, Finished, Notice, Quarantined, Requeued, Started
from repro.scheduling.scheduler import Scheduler
from sweep_bench import FAST, PRESET, Bench, cpu_slots, make_record, wait_for

from repro.record_state import RecordState, RunState
from repro.scheduling.executors.local import LocalExecutor
from repro.storage import run_lock


class Heard(list):
    """A listener that keeps what it hears."""

    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


def sweep(bench: Bench, runs, actions=None, slots=1, stale="keep", executor=None):
    """Runs a sweep with workers in this process unless told otherwise."""
    bench.script(actions or {})
    heard = Heard()
    outcome = bench.scheduler(runs, executor or bench.inline(), slots, heard, stale).run()
    every = [*outcome.done, *outcome.skipped, *(f.run for f in outcome.failed), *outcome.left]
    assert sorted([*every, *outcome.unfinished]) == sorted(run.id for run in runs)
    return outcome, heard


def ids(runs):
    return tuple(run.id for run in runs)


def launched(heard):
    return [event.job.runs for event in heard.of(Started)]


# What is trained


def test_every_run_is_trained_once_in_the_order_given(bench):
    runs = bench.runs(4)
    outcome, heard = sweep(bench, runs, slots=2)
    assert sorted(outcome.done) == sorted(ids(runs))
    assert (outcome.exit_code, outcome.failed, outcome.unfinished) == (0, (), ())
    assert launched(heard) == [ids(runs[:2]), ids(runs[2:])]
    assert all(bench.attempts(run) == ["done"] for run in runs)


def test_a_done_run_is_skipped_and_nothing_is_launched(bench):
    runs = bench.runs(2)
    for run in runs:
        bench.put_record(run)
    outcome, heard = sweep(bench, runs)
    assert outcome.skipped == ids(runs)
    assert (outcome.exit_code, launched(heard)) == (0, [])


def test_a_record_of_older_code_counts_unless_stale_runs_are_redone(bench):
    (run,) = bench.runs(1)
    path = bench.put_record(run)
    path.write_text(make_record(bench, run, "0" * 64).to_json())
    assert bench.examine(run).record_state is RecordState.OLDER_CODE
    assert sweep(bench, [run])[0].skipped == (run.id,)


def test_stale_rerun_trains_a_run_of_older_code_again(bench):
    (run,) = bench.runs(1)
    path = bench.put_record(run)
    path.write_text(make_record(bench, run, "0" * 64).to_json())
    bench.script({})
    content = json.loads((bench.project.results / "behaviour.json").read_text())
    (bench.project.results / "behaviour.json").write_text(json.dumps({**content, "redo": True}))
    heard = Heard()
    outcome = bench.scheduler([run], bench.inline(), 1, heard, "rerun").run()
    assert outcome.done == (run.id,)
    assert heard.of(Started)[0].job.argv[-4:] == ("--stale", "rerun", "--co-tenants", "0")
    assert bench.examine(run).record_state is RecordState.DONE


def test_a_record_of_another_recipe_is_trained_again(bench):
    (run,) = bench.runs(1)
    bench.put_record(run, config_signature="0" * 64)
    outcome, _ = sweep(bench, [run])
    assert outcome.done == (run.id,)
    assert bench.examine(run).record_state is RecordState.DONE


@pytest.mark.parametrize("damage", ["torn", "misplaced"])
def test_a_damaged_record_is_quarantined_said_so_and_trained_again(bench, damage):
    run, other = bench.runs(2)
    path = bench.put_record(run)
    text = path.read_text()[:100] if damage == "torn" else bench.put_record(other).read_text()
    path.write_text(text)
    outcome, heard = sweep(bench, [run])
    assert outcome.done == (run.id,)
    (event,) = heard.of(Quarantined)
    assert event.path.read_text() == text
    assert "torn" in event.reason if damage == "torn" else other.id in event.reason
    assert bench.examine(run).record_state is RecordState.DONE


def test_a_run_that_another_scheduler_finished_meanwhile_is_not_launched(bench):
    runs = bench.runs(2)
    bench.script({})
    heard = Heard()
    scheduler = bench.scheduler(runs, bench.inline(), 1, heard)
    bench.put_record(runs[0])
    outcome = scheduler.run()
    assert outcome.done == ids(runs)
    assert launched(heard) == [(runs[1].id,)]


# What goes wrong


def test_one_failure_never_stops_the_others(bench):
    runs = bench.runs(4)
    outcome, _ = sweep(bench, runs, {runs[1].id: ["fail:boom"]})
    assert outcome.done == (runs[0].id, runs[2].id, runs[3].id)
    (failure,) = outcome.failed
    assert (failure.run, failure.cause, failure.launches) == (runs[1].id, "RuntimeError: boom", 1)
    assert failure.log.read_text() == "Traceback: pretended\n"
    assert outcome.exit_code == 1


def test_the_command_of_a_failure_repeats_that_run_alone(bench):
    (run,) = bench.runs(1)
    outcome, _ = sweep(bench, [run], {run.id: ["fail:boom"]})
    results, data = bench.project.results, bench.project.data
    assert outcome.failed[0].command == (
        f"repro train {run.id} --preset smoke --results {results} --data-dir {data} --device cpu --threads 1"
    )


def test_a_killed_worker_loses_only_its_unfinished_runs_which_are_tried_singly(bench):
    runs = bench.runs(4)
    outcome, heard = sweep(bench, runs, {runs[1].id: ["kill", "done"]}, executor=LocalExecutor())
    assert outcome.exit_code == 0
    assert sorted(outcome.done) == sorted(ids(runs))
    assert launched(heard) == [ids(runs), *((run.id,) for run in runs[1:])]
    assert bench.attempts(runs[0]) == ["done"]
    assert bench.attempts(runs[1]) == ["killed: its worker was killed by SIGKILL", "done"]
    (requeued,) = heard.of(Requeued)
    assert requeued.cause.startswith("its worker was killed by SIGKILL")


def test_a_run_that_kills_its_worker_is_given_up_after_two_further_attempts(bench):
    runs = bench.runs(3)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["kill"]})
    assert sorted(outcome.done) == sorted(ids(runs[1:]))
    (failure,) = outcome.failed
    assert (failure.run, failure.launches) == (runs[0].id, 3)
    assert "SIGKILL" in failure.cause
    assert failure.cause.endswith("(3 times)")
    assert bench.attempts(runs[0]) == ["killed: its worker was killed by SIGKILL"] * 3
    assert len(launched(heard)) == 5


def test_different_ends_of_a_worker_are_all_in_the_cause(bench):
    (run,) = bench.runs(1)
    outcome, _ = sweep(bench, [run], {run.id: ["exit:134", "kill", "quit:0"]})
    cause = outcome.failed[0].cause
    assert cause.startswith("its worker ended with exit code 134; then its worker was killed by SIGKILL")
    assert cause.endswith("; then its worker ended without training it")


@pytest.mark.parametrize("end", ["exit:75", "exit:130", "exit:-15", "exit:-10", "exit:-12"])
def test_an_interrupted_worker_is_started_again_unless_it_never_gets_any_further(bench, end):
    """Also one that was killed by the request, before it had come to listen to requests."""
    runs = bench.runs(2)
    outcome, _ = sweep(bench, runs, {runs[0].id: [end] * 5 + ["done"], runs[1].id: [end]})
    assert outcome.done == (runs[0].id,)
    (failure,) = outcome.failed
    assert failure.cause == "its worker was interrupted from outside (6 times)"
    assert bench.attempts(runs[0]) == ["interrupted"] * 5 + ["done"]


def test_missing_data_fail_a_group_without_another_try(bench):
    runs = bench.runs(3)
    outcome, heard = sweep(bench, runs, {"*": ["data:no pictures here"]})
    assert [failure.cause for failure in outcome.failed] == ["no pictures here"] * 3
    assert len(launched(heard)) == 1
    assert outcome.exit_code == 3
    assert outcome.stopped_early is None


def test_an_error_before_any_run_is_not_tried_again(bench):
    runs = bench.runs(2)
    outcome, heard = sweep(bench, runs, {"*": ["raise:no such symbol"]})
    assert {failure.cause for failure in outcome.failed} == {"RuntimeError: no such symbol"}
    assert (len(launched(heard)), outcome.exit_code) == (1, 1)


def test_three_equal_errors_in_a_row_stop_early_and_say_why(bench):
    runs = bench.runs(6)
    actions = {run.id: [f"fail:out of memory, {place} MiB at 0x{place}f"] for place, run in enumerate(runs)}
    outcome, heard = sweep(bench, runs, actions)
    assert outcome.stopped_early == (
        "the same error 3 times in a row: RuntimeError: out of memory, 2 MiB at 0x2f"
    )
    assert any("stopping early" in notice.text for notice in heard.of(Notice))
    assert outcome.exit_code == 1


def test_after_stopping_early_nothing_new_is_started(bench):
    runs = bench.runs(8, network="*", seeds=(0, 1))
    others = bench.runs(8, dataset="tiny-imagenet")
    actions = {run.id: ["fail:boom"] for run in runs}
    outcome, heard = sweep(bench, [*runs, *others], actions)
    assert outcome.stopped_early
    assert set(outcome.unfinished) >= set(ids(others))
    assert launched(heard) == [ids(runs)]


def test_different_errors_do_not_stop_early(bench):
    runs = bench.runs(6)
    names = "abcdef"
    outcome, _ = sweep(bench, runs, {run.id: [f"fail:{names[i]}"] for i, run in enumerate(runs)})
    assert outcome.stopped_early is None
    assert len(outcome.failed) == 6


def test_a_run_done_in_between_starts_the_count_of_errors_again(bench):
    runs = bench.runs(6)
    actions = {run.id: ["fail:boom"] for run in runs if run is not runs[2]}
    outcome, _ = sweep(bench, runs[:5], actions)
    assert outcome.stopped_early is None
    assert outcome.done == (runs[2].id,)


def test_a_data_set_that_is_missing_leaves_the_others_alone(bench):
    missing = bench.runs(24, dataset="tiny-imagenet", network="*", seeds=(0, 1))
    present = bench.runs(2, dataset="facescrub")
    actions = {run.id: ["data:tiny-imagenet is not prepared"] for run in missing}
    outcome, heard = sweep(bench, [*missing, *present], actions, slots=2)
    assert sorted(outcome.done) == sorted(ids(present))
    assert (outcome.stopped_early, outcome.exit_code) == (None, 3)
    assert len(launched(heard)) < 8
    assert any("tiny-imagenet is left out" in notice.text for notice in heard.of(Notice))
    assert outcome.unfinished


# Others at the same results


def test_a_run_held_by_another_process_is_waited_for(bench):
    runs = bench.runs(2)
    bench.script({})
    heard = Heard()
    lock = run_lock(bench.project.run(PRESET, runs[0].id))
    lock.__enter__()

    def listener(event):
        heard(event)
        if isinstance(event, Notice) and event.text.startswith("waiting for 1 run that other processes"):
            bench.put_record(runs[0])
            lock.__exit__(None, None, None)

    outcome = bench.scheduler(runs, bench.inline(), 1, listener).run()
    assert outcome.done == (runs[1].id, runs[0].id)
    assert heard.of(Elsewhere) == [Elsewhere(runs[0].id)]
    assert bench.attempts(runs[0]) == []
    assert outcome.exit_code == 0


def test_a_run_whose_holder_gives_up_is_trained_after_all(bench):
    runs = bench.runs(2)
    bench.script({})
    lock = run_lock(bench.project.run(PRESET, runs[0].id))
    lock.__enter__()

    def listener(event):
        if isinstance(event, Finished) and event.run == runs[1].id:
            lock.__exit__(None, None, None)

    outcome = bench.scheduler(runs, bench.inline(), 1, listener).run()
    assert (outcome.left, outcome.done) == ((), (runs[1].id, runs[0].id))


# While it goes on


def test_a_run_of_a_group_is_reported_before_the_group_ends(bench):
    runs = bench.runs(2)
    heard = Heard()
    bench.script({runs[1].id: ["wait"]})

    def listener(event):
        heard(event)
        if isinstance(event, Finished) and event.run == runs[0].id:
            bench.release()

    outcome = bench.scheduler(runs, bench.inline(), 1, listener).run()
    assert outcome.done == ids(runs)
    assert [(event.ended, event.total) for event in heard.of(Finished)] == [(1, 2), (2, 2)]


def test_a_listener_that_fails_leaves_no_worker_behind(bench):
    runs = bench.runs(1)
    bench.script({"*": ["wait"]})
    executor = LocalExecutor()
    progress = bench.project.run(PRESET, runs[0].id).progress
    jobs = []

    def listener(event):
        if isinstance(event, Started):
            jobs.append(event.job)
            wait_for(progress.exists, "the worker to train")
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        bench.scheduler(runs, executor, 1, listener).run()
    assert executor.poll(jobs[0]) == 75
    assert bench.attempts(runs[0]) == ["interrupted"]


def test_thousands_of_done_runs_are_passed_over(bench):
    runs = bench.runs(10_000, dataset="*", network="*", seeds=tuple(range(140)))
    states = [RunState(run, RecordState.DONE) for run in runs]
    scheduler = Scheduler(
        states, cpu_slots(2), bench.inline(), bench.command(), bench.project, bench.examine, pace=FAST
    )
    assert len(scheduler.run().skipped) == 10_000
