"""`repro show` and `repro logs`: one run, and what its attempts left behind."""

import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import OTHER, PROJECT, RUN, edit, record_of, smoke_context

from repro.attempts import read_attempts
from repro.cli import main


@pytest.fixture
def results(trained, tmp_path):
    """A folder with one trained run."""
    folder = Path(shutil.copytree(trained.project.results, tmp_path / "results"))
    for path in (trained.project.run("smoke", OTHER).record, trained.project.run("smoke", OTHER).work):
        there = folder / path.relative_to(trained.project.results)
        shutil.rmtree(there) if there.is_dir() else there.unlink()
    return folder


@pytest.fixture
def repro(results, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))

    def run(command, *arguments):
        return CliRunner().invoke(main, [command, *arguments, "--preset", "smoke", "--results", str(results)])

    return run


def test_show_tells_result_configuration_and_curve(repro, results):
    record = record_of(smoke_context(None, results), RUN)
    shown = repro("show", RUN).stdout
    assert shown.startswith(f"{RUN}  (preset smoke; done)\n")
    assert f"{record.result.accuracy:.2f} % top-1 ({record.result.correct} of 80)" in shown
    assert "scaled-bn (scale 1, affine false" in shown
    assert "attempt 1" in shown
    assert f"repeat: repro train {RUN} --preset smoke" in shown
    curve = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit() and "," not in line]
    assert [row[0] for row in curve] == ["1", "2", "3"]
    assert [float(row[3]) for row in curve] == [round(e.train_accuracy, 2) for e in record.curve]


def test_show_json_is_the_record_itself(repro, results):
    path = smoke_context(None, results).project.run("smoke", RUN).record
    assert json.loads(repro("show", RUN, "--json").stdout) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("run", "code", "says"),
    [
        (OTHER, 3, "has no record"),
        ("cifar100/resnet18/nothing/seed0", 2, "has no row 'nothing'"),
        ("cifar100", 2, "is not a run id"),
    ],
)
def test_of_what_is_not_there_show_and_logs_say_so(repro, run, code, says):
    result = repro("show", run)
    assert result.exit_code == code
    assert says in result.stderr
    logs = repro("logs", run)
    assert (logs.exit_code, ("nothing was started" in logs.stderr) == (run == OTHER)) == (2, True)


def test_show_of_an_edited_record_is_an_integrity_error(repro, results):
    path = smoke_context(None, results).project.run("smoke", RUN).record
    edit(path, '"correct": ', '"correct": 1')
    result = repro("show", RUN)
    assert result.exit_code == 4
    assert "edited after it was written" in result.stderr


def test_logs_name_every_attempt_with_its_traceback_and_the_workers_own_words(repro, results):
    project = smoke_context(None, results).project
    failed = project.run("smoke", RUN).attempts / "1" / "error.txt"
    failed.write_text("Traceback: here\nValueError: and why\n")
    logs = project.work("smoke") / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "1.log").write_text("\n".join([*(f"line {n}" for n in range(50)), f"{RUN}: 12.34 %"]))
    (logs / "2.log").write_text(f"{RUN}0: another run whose id begins alike\n")
    shown = repro("logs", RUN, "--lines", "3").stdout
    assert shown.startswith("attempt 1: ")
    assert "    ValueError: and why" in shown
    assert shown.endswith(f"… 48 lines before\n    line 48\n    line 49\n    {RUN}: 12.34 %\n")
    assert "2.log" not in shown


def test_what_stays_on_this_machine_names_host_and_process(trained):
    """So that a lock that is never freed can be traced; a record has the host as a salted hash."""
    (attempt,) = record_of(trained, RUN).provenance.attempts
    salted = trained.project.host_salt("smoke").read_bytes() + socket.gethostname().encode()
    assert (attempt.host, attempt.pid) == (hashlib.sha256(salted).hexdigest()[:12], None)
    (kept,) = read_attempts(trained.project.run("smoke", RUN))
    assert (kept.host, kept.pid) == (socket.gethostname(), os.getpid())
