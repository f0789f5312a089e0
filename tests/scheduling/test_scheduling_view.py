"""What a person sees: plain lines, the live picture, the summary."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sweep_bench import PRESET, cpu_slots

from repro.scheduling.durations import format_seconds
from repro.scheduling.events import Elsewhere, Failed, Finished, Notice, Quarantined, Requeued, Running, Tick
from repro.scheduling.executors.base import Job
from repro.scheduling.outcome import Failure, Outcome
from repro.scheduling.progress import read_progress
from repro.scheduling.sentences import describe, summarise
from repro.scheduling.view import LiveView, PlainView, open_view

RUN = "cifar100/resnet18/scaled-bn-m1/seed0"
FAILURE = Failure(RUN, "RuntimeError: boom", 1, Path("/logs/7.log"), f"repro train {RUN} --preset smoke")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Finished(RUN, 40.3, 492, 12, 72), f"[12/72] done {RUN}  40.3 %  8m 12s"),
        (Finished(RUN, None, 59.6, 2, 72), f"[ 2/72] done {RUN}  diverged  1m 00s"),
        (Failed(FAILURE, 3, 3), f"[3/3] failed {RUN}  RuntimeError: boom  (log: /logs/7.log)"),
        (Requeued((RUN,), "killed by SIGKILL"), f"again: {RUN}: killed by SIGKILL"),
        (Requeued((RUN, "b"), "killed"), f"again: 2 runs, each alone, from {RUN} on: killed"),
        (
            Quarantined(RUN, Path("/q/1.json"), "torn"),
            f"quarantined the record of {RUN}, which is trained again: torn (now /q/1.json)",
        ),
        (Elsewhere(RUN), f"{RUN} is being trained by another process"),
        (Notice("stopping"), "stopping"),
        (Tick((), 0, 0, 0, 1, 1), None),
    ],
)
def test_every_event_is_one_line(event, line):
    assert describe(event) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (492, "8m 12s"),
        (3599.7, "1h 00m"),
        (11_100, "3h 05m"),
        (16.2 * 86_400, "16d 5h"),
    ],
)
def test_durations_read_naturally(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_output_is_a_line_for_every_run_that_ended(bench):
    runs = bench.runs(3)
    bench.put_record(runs[0])
    bench.script({runs[2].id: ["fail:boom"]})
    stream = io.StringIO()
    with open_view(stream, bench.project, PRESET, cpu_slots(1)) as view:
        assert isinstance(view, PlainView)
        bench.scheduler(runs, bench.inline(), 1, view).run()
    trace = bench.project.run(PRESET, runs[2].id).attempts / "1" / "error.txt"
    assert stream.getvalue() == (
        f"[2/3] done {runs[1].id}  40.0 %  8m 12s\n"
        f"[3/3] failed {runs[2].id}  RuntimeError: boom  (log: {trace})\n"
    )


def test_the_summary_says_what_failed_why_and_how_to_repeat_it():
    outcome = Outcome(
        done=("a", "b"),
        skipped=("c",),
        failed=(FAILURE, Failure("e", "killed (3 times)", 3, Path("/logs/8.log"), "repro train e")),
        left=("f",),
        unfinished=("g",),
        stopped_early="the same error 3 times in a row: boom",
        interrupted="SIGINT",
        seconds=7380,
    )
    assert summarise(outcome) == (
        "7 runs: 2 done, 1 done before, 2 failed, 1 left to another process, 1 to do; 2h 03m\n"
        f"failed {RUN}: RuntimeError: boom\n"
        "  log: /logs/7.log\n"
        f"  repeat it: repro train {RUN} --preset smoke\n"
        "failed e: killed (3 times) (launched 3 times)\n"
        "  log: /logs/8.log\n"
        "  repeat it: repro train e\n"
        "left to another process: f\n"
        "stopped early: the same error 3 times in a row: boom\n"
        "interrupted by SIGINT: the same command goes on where this one stopped"
    )


def outcome_of(**changes):
    nothing = {"done": (), "skipped": (), "failed": (), "left": (), "unfinished": ()}
    return Outcome(**{**nothing, "stopped_early": None, "interrupted": None, "seconds": 0.0, **changes})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"done": ("a",), "left": ("b",)}, 0),
        ({"failed": (FAILURE,)}, 1),
        ({"failed": (Failure("a", "no data", 1, Path("l"), "c", setup=True),)}, 3),
        ({"failed": (Failure("a", "no data", 1, Path("l"), "c", setup=True), FAILURE)}, 1),
        ({"interrupted": "SIGINT", "failed": (FAILURE,)}, 130),
        ({"interrupted": "SIGTERM"}, 75),
    ],
)
def test_the_exit_code_says_how_it_ended(changes, code):
    assert outcome_of(**changes).exit_code == code


def live(bench, slots=2, width=160):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, no_color=True, highlight=False)
    return LiveView(console, bench.project, PRESET, cpu_slots(slots)), console


def tick_of(bench, run, slots=2):
    slot = cpu_slots(slots)[0]
    job = Job(1, (run.id,), (), {}, bench.project.results / "l", slot, 0)
    return Tick((Running(job, run.id, 1, began=True),), done=3, failed=1, ended=9, todo=62, total=72)


def drawn(console, picture) -> str:
    with console.capture() as capture:
        console.print(picture)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


def test_the_live_view_shows_every_slot_and_the_whole(bench):
    (run,) = bench.runs(1)
    bench.script({})
    bench.scheduler([run], bench.inline()).run()
    view, console = live(bench)
    first, second, total = drawn(console, view.picture(tick_of(bench, run))).splitlines()
    for part in ("cpu/0", run.id, "epoch 2/3", "1,234 images/s", "12.3 %"):
        assert part in first
    assert second.startswith("cpu/1")
    assert second.rstrip().endswith("idle")
    assert "3 done, 1 failed, 62 to do" in total
    assert "9/72" in total


def test_the_live_view_tells_the_time_left_once_a_run_has_moved(bench):
    (run,) = bench.runs(1)
    bench.script({})
    bench.scheduler([run], bench.inline()).run()
    progress = bench.project.run(PRESET, run.id).progress
    view, console = live(bench, slots=1)
    tick = tick_of(bench, run, slots=1)
    assert "left" not in drawn(console, view.picture(tick))
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "epoch": 2}))
    assert "left" in drawn(console, view.picture(tick))


def test_an_earlier_attempts_report_is_not_shown(bench):
    (run,) = bench.runs(1)
    bench.script({})
    bench.scheduler([run], bench.inline()).run()
    progress = bench.project.run(PRESET, run.id).progress
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "attempt": 7}))
    view, console = live(bench)
    assert "starting" in drawn(console, view.picture(tick_of(bench, run))).splitlines()[0]


def test_a_worker_that_has_done_its_last_run_is_ending(bench):
    (run,) = bench.runs(1)
    view, console = live(bench)
    tick = tick_of(bench, run)
    for began, word in ((False, "starting"), (True, "ending")):
        running = replace(tick.running[0], run=None, attempt=0, began=began)
        assert word in drawn(console, view.picture(replace(tick, running=(running,)))).splitlines()[0]


def test_a_whole_sweep_can_be_watched_live(bench):
    runs = bench.runs(3)
    bench.script({runs[1].id: ["fail:[boom]"]})
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160, no_color=True, highlight=False)
    with LiveView(console, bench.project, PRESET, cpu_slots(1)) as view:
        bench.scheduler(runs, bench.inline(), 1, view).run()
    text = stream.getvalue()
    assert f"[1/3] done {runs[0].id}  40.0 %  8m 12s" in text
    assert "RuntimeError: [boom]" in text
    assert "3/3" in text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "a"}', '{"epoch": null}', "\0"])
def test_a_progress_report_that_cannot_be_read_is_no_report(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    assert read_progress(tmp_path / "progress.json") is None
    assert read_progress(tmp_path / "nowhere.json") is None
