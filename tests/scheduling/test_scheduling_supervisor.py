"""The supervisor with workers as real processes that only pretend to train."""

import io
import json
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pretended_environment import attempt_note, first_runs, make_record
from smoke_project import ROOT, smoke_context, sweep_of

import repro.scheduling.place as place_module
import repro.scheduling.supervisor as supervisor_module
from repro.attempts import new_attempt, write_attempt
from repro.cli.context import Context
from repro.cli.status import current_status
from repro.registry import Selection
from repro.scheduling.devices import Device
from repro.scheduling.executor import JobEnd, LocalExecutor, WorkerJob
from repro.scheduling.place import MAX_DEATHS_AT_START, Place
from repro.scheduling.supervisor import Intervals, Supervisor, TrainCommand
from repro.scheduling.view import View
from repro.storage import FileLock
from repro.sweep import RunQueue
from repro.worker_note import new_worker_note, read_worker_notes

HERE = Path(__file__).resolve().parent
FAST = Intervals(poll=0.02, runs=0.02, grace=5.0, backoff=0.05)


class PretendedCommand(TrainCommand):
    """Starts the pretended worker instead of `repro train`."""

    def worker(self, sweep_file, name, device):
        words = super().worker(sweep_file, name, device)
        place = words.index("train")
        return (sys.executable, str(HERE / "pretended_worker.py"), *words[place:])


@dataclass
class Bench:
    """A results folder to sweep into, and what was said meanwhile."""

    context: Context
    runs: tuple[str, ...]
    said: io.StringIO = field(default_factory=io.StringIO)

    def behave(self, **actions):
        """Says what attempts at each run come to; `worker` what workers do before they take one."""
        content = {run: actions.get(f"run{number}", ["done"]) for number, run in enumerate(self.runs)}
        content["worker"] = actions.get("worker", [])
        self.context.project.results.mkdir(parents=True, exist_ok=True)
        (self.context.project.results / "behaviour.json").write_text(json.dumps(content))

    def supervisor(self, workers=2, deadline=None, intervals=FAST, count=8):
        context = self.context
        if not (context.project.results / "behaviour.json").exists():
            self.behave()
        sweep = sweep_of(context, *self.runs[:count], workers=workers)
        devices = tuple(Device("cpu", n, "a processor", None, 2**30, workers, {}) for n in range(workers))
        return Supervisor(
            RunQueue(sweep, context.registry, context.project),
            devices,
            LocalExecutor(),
            PretendedCommand(context.project, context.preset),
            View(self.said),
            deadline=deadline,
            intervals=intervals,
        )

    @property
    def text(self):
        return self.said.getvalue()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    context = smoke_context(monkeypatch, tmp_path / "results")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context.project.results.mkdir()
    runs = first_runs(context, 8)
    template = make_record(context, runs[0])  # after which pretended ones are made
    attempts = {"attempts": (attempt_note("done").for_record(),)}
    template = template.model_copy(update={"provenance": template.provenance.model_copy(update=attempts)})
    (context.project.results / "template.json").write_text(template.model_dump_json())
    return Bench(context, tuple(run.id for run in runs))


def committed(bench):
    return {run for run in bench.runs if bench.context.project.run("smoke", run).record.exists()}


def test_workers_share_the_list_and_every_run_is_trained_once(bench):
    summary = bench.supervisor().run()
    assert (sorted(summary.done), summary.exit_code) == (sorted(bench.runs), 0)
    for run in bench.runs:
        assert len(list(bench.context.project.run("smoke", run).attempts.iterdir())) == 1
    assert f"[8/8] done {summary.done[-1]}" in bench.text
    project = bench.context.project
    assert not list(project.sweeps("smoke").iterdir())
    assert not read_worker_notes(project.workers("smoke"))


@pytest.mark.parametrize(
    ("actions", "options", "code", "done", "says"),
    [
        ({2: ["kill"]}, {}, 1, 7, ["killed by SIGKILL", "after 3 attempts", "repro train {2} --preset smoke"]),
        ({0: ["further"] * 4 + ["done"]}, {"workers": 1, "count": 1}, 0, 1, []),
        ({1: ["fail:ValueError: no such layer"]}, {}, 1, 7, ["failed {1}  ValueError: no such layer"]),
        ({n: ["left:no data"] for n in (3, 4)}, {}, 3, 6, ["2 runs not trained: no data"]),
        ({0: ["hang", "done"]}, {"workers": 1, "count": 2}, 0, 2, ["hung: no sign of life"]),
    ],
    ids=["three crashes", "crashes that get further", "an error is final", "not on this device", "hung"],
)  # fmt: skip
def test_what_becomes_of_a_run_follows_from_its_attempts(
    bench, monkeypatch, actions, options, code, done, says
):
    if "hang" in actions.get(0, ()):
        monkeypatch.setattr(place_module, "HUNG", 1.0)
    bench.behave(**{f"run{number}": each for number, each in actions.items()})
    summary = bench.supervisor(**options).run()
    assert (len(summary.done), summary.exit_code) == (done, code)
    for words in says:
        assert words.format(*bench.runs) in bench.text + summary.to_text()


def test_the_view_counts_runs_as_status_does(bench):
    """Before anything is trained: one run was interrupted before, one failed, one is trained elsewhere."""
    bench.behave(worker=["start:2"])
    paths = [bench.context.project.run("smoke", run) for run in bench.runs]
    for place, outcome in zip(paths, ("interrupted", "failed: ValueError: boom"), strict=False):
        write_attempt(new_attempt(place), attempt_note(outcome))
    ticks = []
    supervisor = bench.supervisor(workers=1)
    supervisor.view.update = ticks.append
    with FileLock(paths[2].lock) as lock:
        assert lock.acquire()
        summary = supervisor.run()
        status = current_status(bench.context, Selection(tables=(1,), networks=("resnet18",)))
    expected = {"interrupted": 1, "failed": 1, "running": 1, "to do": 5}
    for counts in (status.counts, ticks[-1].counts):
        assert {kind: count for kind, count in counts.items() if count} == expected
    assert summary.exit_code == 3


def test_an_attempt_that_says_running_is_running_only_if_it_began_in_this_sweep(bench):
    """Older ones are of dead workers; one of this sweep has just ended where no worker tells of it any more."""
    context, run = bench.context, bench.runs[0]
    paths = context.project.run("smoke", run)
    write_attempt(new_attempt(paths), attempt_note("running"))
    queue = RunQueue(sweep_of(context, run, workers=1), context.registry, context.project)
    kinds = []
    for number in (1, 2):
        if number == 2:
            write_attempt(new_attempt(paths), attempt_note("running", number))
        queue.status(queue.open[0])
        kinds.append(queue.kinds[run])
    assert kinds == ["interrupted", "running"]


def test_equal_errors_of_three_runs_in_a_row_stop_the_sweep(bench):
    bench.behave(**{f"run{number}": ["fail:ValueError: all alike"] for number in range(8)})
    summary = bench.supervisor(workers=1).run()
    assert 3 <= len(summary.failed) < 8
    assert "failed alike: ValueError: all alike" in summary.stopped_early
    assert summary.exit_code == 1


@pytest.mark.parametrize(("code", "starts"), [(3, 3), (1, 3), (2, 1)])
def test_a_device_whose_workers_die_before_their_first_run_is_left_out(bench, code, starts):
    bench.behave(worker=[f"start:{code}"])
    summary = bench.supervisor(workers=1).run()
    assert "cpu:0 is no longer used: " in bench.text
    assert "pretended trouble" in bench.text
    assert summary.exit_code == 3
    assert not committed(bench)
    assert len(list(bench.context.project.logs("smoke").iterdir())) == starts


def test_workers_that_find_nothing_to_take_say_nothing_against_their_device(tmp_path):
    place = Place(Device("cpu", 0, "a processor", None, 2**30, 1, {}))
    for _ in range(MAX_DEATHS_AT_START):
        place.begin(WorkerJob("a job", ("true",), {}, tmp_path / "log", place.device))
        assert place.end(JobEnd(0), tmp_path, 0.01, has_others=False) == []
    assert place.out is None
    assert place.not_before > time.monotonic()  # the next one is started later


def test_starts_that_led_to_training_do_not_lengthen_the_wait_after_one_that_did_not(tmp_path):
    place = Place(Device("cpu", 0, "a processor", None, 2**30, 1, {}))
    for stepped in (True,) * 6 + (False,):
        place.begin(WorkerJob("a job", ("true",), {}, tmp_path / "log", place.device))
        place.update([replace(new_worker_note("sweep", "a job", "cpu"), stepped=stepped)], 0.0)
        place.end(JobEnd(-9, "killed by SIGKILL"), tmp_path, 10.0, has_others=False)
        assert (place.not_before > time.monotonic()) is not stepped
    assert place.not_before < time.monotonic() + 2 * 10.0


def test_a_device_that_breaks_at_every_first_step_is_left_out_where_there_are_others(bench):
    bench.behave(**{f"run{number}": ["broken"] for number in range(8)})
    summary = bench.supervisor().run()
    assert "cpu:0 is no longer used: CUDA error: pretended" in bench.text
    assert len(summary.failed) <= 2
    assert len(summary.done) >= 6


def test_a_run_locked_by_another_process_is_waited_for(bench):
    lock = FileLock(bench.context.project.run("smoke", bench.runs[0]).lock)
    assert lock.acquire()

    def release_once_waited_for():
        while "being trained by another process; waiting" not in bench.text:
            time.sleep(0.02)
        lock.release()

    threading.Thread(target=release_once_waited_for).start()
    summary = bench.supervisor().run()
    assert (len(summary.done), summary.exit_code) == (8, 0)


def test_a_silent_lock_ends_the_sweep_and_is_named(bench, monkeypatch):
    monkeypatch.setattr(supervisor_module, "SILENT_LOCKS", 1.0)
    lock = FileLock(bench.context.project.run("smoke", bench.runs[0]).lock)
    assert lock.acquire()
    with lock:
        summary = bench.supervisor().run()
    assert summary.elsewhere == (bench.runs[0],)
    assert str(lock.path) in summary.stopped_early
    assert summary.exit_code == 75


def test_the_end_of_a_budget_writes_checkpoints_and_exits_75(bench):
    bench.behave(run0=["wait"])
    intervals = Intervals(poll=0.02, runs=0.02, lead=0.1, grace=5.0)
    summary = bench.supervisor(workers=1, deadline=time.monotonic() + 1.5, intervals=intervals).run()
    assert (summary.interrupted, summary.exit_code) == ("budget", 75)
    assert "budget spent: the same command resumes it" in summary.to_text()


def test_a_stop_request_from_another_process_drains_the_sweep(bench):
    bench.behave(run0=["wait"])
    sweep = bench.supervisor(workers=1)

    def ask():
        time.sleep(1.0)
        sweep.sweep_file.with_suffix(".stop").write_text("now")

    threading.Thread(target=ask).start()
    summary = sweep.run()
    assert summary.exit_code == 75
    assert "stopped by request: the same command resumes it" in summary.to_text()
    assert not committed(bench)
