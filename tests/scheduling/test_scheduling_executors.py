"""Executors: how a worker is started, asked to stop, and ended."""

import os
import sys
from pathlib import Path

import pytest
from sweep_bench import cpu_slots, wait_for

from repro.errors import DataMissingError, SetupError
from repro.scheduling.executors.base import Job
from repro.scheduling.executors.inline import InlineExecutor, StopRequest
from repro.scheduling.executors.local import LocalExecutor


def job_of(tmp_path: Path, code: str = "", program: str = sys.executable, **environment: str) -> Job:
    argv = (program, "-c", code)
    return Job(1, ("a/b/c/seed0",), argv, environment, tmp_path / "logs" / "1.log", cpu_slots(1)[0], 0)


def end_of(executor, job) -> int:
    wait_for(lambda: executor.poll(job) is not None, "the job's end")
    code = executor.poll(job)
    assert code is not None
    return code


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_process_gets_its_environment_and_writes_to_its_log(tmp_path):
    code = (
        "import os, sys; print(os.environ['COLOUR'], os.environ['REPRO_DIE_WITH_PARENT'], os.getsid(0) =="
        " os.getpid()); print('to stderr', file=sys.stderr); sys.exit(7)"
    )
    job, executor = job_of(tmp_path, code, COLOUR="blue"), LocalExecutor()
    executor.submit(job)
    assert end_of(executor, job) == 7
    assert job.log.read_text() == f"blue {os.getpid()} True\nto stderr\n"


@pytest.mark.parametrize(("word", "signal_name"), [("drain", "SIGUSR2"), ("terminate", "SIGTERM")])
def test_a_request_reaches_the_process_as_a_signal(tmp_path, word, signal_name):
    code = (
        "import pathlib, signal, sys\n"
        f"signal.signal(signal.{signal_name}, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "signal.pause()"
    )
    job, executor = job_of(tmp_path, code), LocalExecutor()
    executor.submit(job)
    wait_for((tmp_path / "ready").exists, "the process to be ready")
    assert executor.poll(job) is None
    getattr(executor, word)(job)
    assert end_of(executor, job) == 75
    getattr(executor, word)(job)


CHILD = "import subprocess, sys, pathlib; p = subprocess.Popen(['sleep', '600']); "


def test_killing_a_job_kills_what_it_started(tmp_path):
    child = tmp_path / "child"
    code = CHILD + f"pathlib.Path({str(child)!r}).write_text(f'{{p.pid}} '); p.wait()"
    job, executor = job_of(tmp_path, code), LocalExecutor()
    executor.submit(job)
    wait_for(lambda: child.exists() and child.read_text().endswith(" "), "the child")
    executor.kill(job)
    assert end_of(executor, job) == -9
    wait_for(lambda: not alive(int(child.read_text())), "the child's end")
    executor.kill(job)


def test_a_job_that_ends_leaves_no_child_behind(tmp_path):
    child = tmp_path / "child"
    code = CHILD + f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); p.returncode = 0"
    job, executor = job_of(tmp_path, code), LocalExecutor()
    executor.submit(job)
    assert end_of(executor, job) == 0
    wait_for(lambda: not alive(int(child.read_text())), "the child's end")


def test_a_program_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SetupError, match="cannot start /no/such/python"):
        LocalExecutor().submit(job_of(tmp_path, program="/no/such/python"))


def test_an_inline_job_runs_and_returns_its_code(tmp_path):
    job = job_of(tmp_path)
    executor = InlineExecutor(lambda job, asked: len(job.runs))
    executor.submit(job)
    assert end_of(executor, job) == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(DataMissingError("no pictures"), 3, "no pictures\n"), (ValueError("odd"), 1, "ValueError: odd\n")],
)
def test_an_error_in_an_inline_job_ends_in_its_log_and_an_exit_code(tmp_path, error, code, words):
    def work(job, asked):
        raise error

    job, executor = job_of(tmp_path), InlineExecutor(work)
    executor.submit(job)
    assert end_of(executor, job) == code
    assert job.log.read_text().endswith(words)


def test_an_inline_job_is_asked_to_stop(tmp_path):
    seen = []

    def work(job, asked):
        for request in (StopRequest.DRAIN, StopRequest.TERMINATE):
            wait_for(lambda wanted=request: asked() is wanted, "a request")
            seen.append(request)
        return 75

    job, executor = job_of(tmp_path), InlineExecutor(work)
    executor.submit(job)
    executor.drain(job)
    wait_for(lambda: seen == [StopRequest.DRAIN], "the request to drain")
    assert executor.poll(job) is None
    executor.terminate(job)
    assert end_of(executor, job) == 75
