"""What a person sees: plain lines, the live picture, the summary."""

import io
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from repro.scheduling import view as views
from repro.scheduling.devices import Device
from repro.scheduling.view import FailedRun, LiveView, SweepSummary, Tick, View, open_view
from repro.worker_note import RunProgress, WorkerNote

RUN = "cifar100/resnet18/scaled-bn-m1/seed0"
FAILURE = FailedRun(RUN, "RuntimeError: boom", 1, Path("/attempts"), f"repro train {RUN} --preset smoke")
NOTHING = SweepSummary((), 0, (), (), (), {}, None, None, 0.0)


def test_the_summary_says_what_failed_why_and_how_to_repeat_it():
    summary = SweepSummary(
        done=("a", "b"),
        before=1,
        failed=(FAILURE, FailedRun("e", "killed (3 times)", 3, Path("/e"), "repro train e")),
        elsewhere=("f",),
        unfinished=("g", "k"),
        impossible={"h": "no data", "i": "no data"},
        stopped_early="the last 3 runs failed alike: boom",
        interrupted="SIGINT",
        seconds=7380,
        begun=("k",),
    )
    assert summary.to_text() == (
        "10 runs: 2 done, 1 done before, 2 failed, 1 in training elsewhere, 2 not possible here, "
        "1 interrupted, 1 to do; 2h 03m\n"
        f"failed {RUN}: RuntimeError: boom\n"
        "  attempts: /attempts\n"
        f"  repeat it: repro train {RUN} --preset smoke\n"
        "failed e: killed (3 times) (after 3 attempts)\n"
        "  attempts: /e\n"
        "  repeat it: repro train e\n"
        "in training elsewhere: f\n"
        "2 runs not trained: no data\n"
        "stopped early: the last 3 runs failed alike: boom\n"
        "interrupted by SIGINT: the same command resumes it"
    )
    assert NOTHING.to_text() == "0 runs: nothing to do; 0.0s"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"done": ("a",), "elsewhere": ("b",)}, 0),
        ({"failed": (FAILURE,)}, 1),
        ({"unfinished": ("a",)}, 1),
        ({"impossible": {"a": "no data"}}, 3),
        ({"impossible": {"a": "no data"}, "failed": (FAILURE,)}, 1),
        ({"interrupted": "SIGINT", "failed": (FAILURE,)}, 130),
        ({"interrupted": "SIGTERM"}, 75),
        ({"interrupted": "budget"}, 0),
        ({"interrupted": "budget", "unfinished": ("a",)}, 75),
        ({"interrupted": "stop request", "elsewhere": ("a",)}, 75),
    ],
)
def test_the_exit_code_says_how_it_ended(changes, code):
    assert replace(NOTHING, **changes).exit_code == code


def tick(progress: RunProgress | None = None, device: Device | None = None) -> Tick:
    """Two devices, the first of them at work."""
    first = Device("cpu", 0, "a bench", None, 0, 1, {})
    note = WorkerNote("n", "h", 1, 1, "s", runs=(progress,) if progress else ())
    workers = ((first, note, True, None), (replace(first, index=1), None, False, None))
    return Tick(workers, {"done": 3, "failed": 1, "running": 1, "interrupted": 2, "to do": 60}, 9, 72)


TOTALS = "3 done, 1 failed, 1 running, 2 interrupted, 60 to do"
PROGRESS = RunProgress(RUN, 1, "training", 1, 3, 2, 4, 1234.5, 2.0, 12.3)


def drawn(console, picture) -> str:
    with console.capture() as capture:
        console.print(picture)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=160, no_color=True, highlight=False)


def test_plain_output_is_a_line_for_each_event_and_one_per_minute(monkeypatch):
    stream = io.StringIO()
    with closing(open_view(stream)) as view:
        assert type(view) is View
        view.line("[1/2] done [a]")
        view.update(tick())
        now = time.monotonic()
        monkeypatch.setattr(views.time, "monotonic", lambda: now + 61)
        view.update(tick())
        view.update(tick())
    assert stream.getvalue() == f"[1/2] done [a]\n{TOTALS}\n"


def test_the_live_view_shows_every_device_and_the_whole(console):
    view = LiveView(console)
    first, second, total = drawn(console, view.picture(tick(PROGRESS))).splitlines()
    for part in ("cpu:0", RUN, "epoch 2/3", "1,234 images/s", "12.3 %"):
        assert part in first
    assert re.match(r"cpu:1 +idle", second)
    assert re.match(rf"all +{TOTALS}", total)
    assert re.match(r"cpu:0 +starting", drawn(console, view.picture(tick())))


def test_the_live_view_tells_the_time_left_once_a_run_has_moved(console):
    view = LiveView(console)
    assert "left" not in drawn(console, view.picture(tick(PROGRESS)))
    assert "left" in drawn(console, view.picture(tick(replace(PROGRESS, epoch=2)))).splitlines()[0]


def test_80_columns_keep_bar_run_and_time_left_and_room_for_the_terminals_echo_of_ctrl_c():
    """An echo that wraps moves the cursor down a row, and the redraw leaves one behind on the screen."""
    narrow = Console(file=io.StringIO(), force_terminal=True, width=80, no_color=True, highlight=False)
    view = LiveView(narrow)
    view.picture(tick(PROGRESS))
    lines = drawn(narrow, view.picture(tick(replace(PROGRESS, epoch=2)))).splitlines()
    assert max(map(len, lines)) <= 80 - len("^C^C")
    assert re.match(r"cpu:0  cifar100/resnet18/scaled-bn-m1/.*━.* left$", lines[0])
    assert re.match(r"all    3 done, 1 failed, 1 running, 2 interr.*━.* left$", lines[2])


def test_lines_scroll_by_above_the_live_picture_and_brackets_are_no_markup(console):
    with closing(LiveView(console)) as view:
        view.update(tick(PROGRESS))
        view.line("[1/3] failed: RuntimeError: [boom]")
    assert "[1/3] failed: RuntimeError: [boom]" in console.file.getvalue()
