"""What lies in the way: files that are none, file systems without links, any stdout, a user's broken code."""

import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import OTHER, PROJECT, ROOT, RUN, forget_code, record_of, repro, smoke_context, train_here

from repro.analysis.text import signed
from repro.attempts import new_attempt, read_attempts, write_attempt
from repro.cli import main
from repro.signals import Stop
from repro.storage import create_whole

COLUMN = ("--table", "1", "--network", "resnet18")


@pytest.fixture
def context(trained, tmp_path, monkeypatch):
    """A copy of the records of RUN and OTHER, and the project."""
    shutil.copytree(trained.project.results, tmp_path / "results")
    return smoke_context(monkeypatch, tmp_path / "results")


def cli(context, *words: object):
    words = (*words, "--preset", "smoke", "--results", context.project.results)
    return CliRunner().invoke(main, list(map(str, words)))


# What has a file's name


PRETENDERS = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a file without end": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


def pretend(context, kind: str) -> Path:
    """Puts one of PRETENDERS in the place of RUN's record."""
    path = context.project.run("smoke", RUN).record
    path.unlink()
    PRETENDERS[kind](path)
    return path


@pytest.mark.parametrize("kind", PRETENDERS)
def test_what_is_no_readable_record_is_named_and_the_others_are_shown(context, kind):
    path = pretend(context, kind)
    table = cli(context, "aggregate", *COLUMN[:2])
    assert (table.exit_code, table.exception.__class__) == (4, SystemExit)
    assert f"{path}: cannot be read: " in table.stderr
    other = f"{record_of(context, OTHER).result.accuracy:.2f} (n = 1)"
    assert other in table.stdout


@pytest.mark.parametrize(
    "words",
    [["plan"], ["status"], ["claims"], ["figures"], ["report"], ["show", RUN], ["bundle"], ["run", *COLUMN]],
    ids=lambda words: words[0],
)
def test_every_command_names_it_and_ends_with_4(context, words, tmp_path, monkeypatch):
    path = pretend(context, "a pipe")
    monkeypatch.chdir(tmp_path)
    done = cli(context, *words)
    assert (done.exit_code, done.exception.__class__) == (4, SystemExit)
    assert f"{path}: cannot be read: it is not a regular file" in done.output
    attempts = list(context.project.work("smoke").glob("**/attempts/*"))
    assert len(attempts) == 2  # nothing was trained


def test_a_record_of_somebody_else_that_may_not_be_read_is_named(context):
    """As root, who may read everything, the command runs as another user."""
    path = context.project.run("smoke", RUN).record
    subprocess.run(["chmod", "-R", "a+rwX", context.project.results], check=True)
    path.chmod(0)
    for folder in context.project.results.parents:  # pytest's own folders are private
        if folder.owner() == path.owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    other = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    words = ["-m", "repro", "aggregate", "--preset", "smoke", "--results", context.project.results]
    done = subprocess.run([*other, sys.executable, *words], capture_output=True, text=True, cwd=PROJECT)
    if other and "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user cannot reach this Python")
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    assert f"{path}: cannot be read: Permission denied" in done.stderr


@pytest.mark.parametrize("place", ["attempts", "lock", "record"])
def test_what_is_in_the_way_is_named_before_training(context, place):
    """Files where folders belong (attempts, the record's folder), and a folder where the lock belongs."""
    paths = context.project.run("smoke", RUN)
    paths.record.unlink()
    where = {"attempts": paths.attempts, "lock": paths.lock, "record": paths.record.parent}[place]
    shutil.rmtree(where) if where.is_dir() else where.unlink()
    where.mkdir() if place == "lock" else where.touch()
    done = cli(context, "run", *COLUMN)
    assert done.exit_code == 3
    assert str(where) in done.stderr
    assert "move it away, then run again" in done.stderr
    assert not any(context.project.work("smoke").glob("logs/*"))  # no worker was started
    shown = cli(context, "status", *COLUMN)
    assert shown.exit_code == (4 if place == "attempts" else 0)


@pytest.mark.parametrize("place", ["workers/x.json", f"{RUN}/attempts/1/attempt.json", "sweeps/x.stop"])
def test_notes_that_are_no_files_stop_nobody(context, place):
    path = context.project.work("smoke") / place
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    context.project.run("smoke", RUN).record.unlink()
    assert cli(context, "status").exit_code == 0
    assert train_here(context, RUN) == 0


def test_names_that_are_nearly_a_runs_are_pointed_out(context):
    record = context.project.run("smoke", RUN).record
    wrong = record.rename(record.with_name("Seed0.json"))
    for command in ("status", "plan", "aggregate"):
        done = cli(context, command)
        assert done.exit_code == 0
        assert f"{wrong} counts nowhere" in done.stderr
        assert done.stderr.count("counts nowhere") == 1


@pytest.mark.parametrize(
    ("outcome", "says"),
    [("failed: ValueError: boom", "failed: ValueError: boom"), ("running", "interrupted")],
)
def test_a_run_that_failed_or_was_interrupted_is_called_so_everywhere(context, outcome, says):
    paths = context.project.run("smoke", RUN)
    (note,) = read_attempts(paths)
    write_attempt(paths.attempts / "1", note.model_copy(update={"outcome": outcome}))
    paths.record.unlink()
    (paths.attempts / "1" / "record.json").unlink()
    table = cli(context, "aggregate", *COLUMN[:2]).stdout
    assert f"—: {says.partition(':')[0]}" in table
    assert f"- {says} — Scaled BN (m = 1) on ResNet-18" in table
    assert f"{says.partition(':')[0]}: {RUN}" in cli(context, "status").stdout
    assert says in cli(context, "show", RUN).stderr


def test_what_was_trained_beside_the_tables_is_told_and_averaged_nowhere(context):
    """A further seed marks its cell; an override has a table of its own, named with its command."""
    further, override = RUN.replace("seed0", "seed5"), OTHER.replace("/seed0", "+epochs=4/seed0")
    assert train_here(context, further, override) == 0
    reached = [record_of(context, run).result.accuracy for run in (further, RUN, override, OTHER)]
    table, _, beside = cli(context, "aggregate", *COLUMN[:2]).stdout.partition("\nTrained with overrides")
    assert f" {reached[1]:.2f} (n = 1) ¹" in table
    assert f"- ¹ trained beside the planned seeds, not averaged: {reached[0]:.2f} (seed 5)" in table
    options = f"--preset smoke --results {context.project.results}"
    assert beside == f", in no table above:\n\n- 1 run: `repro aggregate --set epochs=4 {options}`\n"
    overridden = cli(context, "aggregate", "--set", "epochs=4").stdout.splitlines()
    (line,) = [line for line in overridden if "=4" in line]
    assert f"| {signed(reached[2] - reached[3])}, 1 pair " in line
    assert not re.search("Trained with|¹", cli(context, "aggregate", "--table", "2").stdout)


# File systems


def test_without_kernel_locks_nothing_is_trained(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = cli(smoke_context(monkeypatch, tmp_path / "results"), "run", *COLUMN)
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert "this file system has no kernel locks (No locks available); use a folder on" in done.stderr
    assert not list(tmp_path.rglob("logs"))  # no worker was started


def test_a_clone_called_repro_works_from_its_parent(tmp_path):
    """The folder must not be taken for the package, by the command or by what it starts."""
    shutil.copytree(PROJECT / "experiments", tmp_path / "repro" / "experiments")
    place = {"REPRO_ROOT": str(tmp_path / "repro"), "PYTHONPATH": str(ROOT)}
    words = ["run", "--preset", "smoke", *COLUMN, "--loss", "cross-entropy"]
    command = [sys.executable, "-P", "-m", "repro", *words]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True)
    assert (done.returncode, "1 run: 1 done" in done.stderr) == (0, True)


def test_without_hard_links_a_record_is_committed_all_the_same(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    context = smoke_context(monkeypatch, tmp_path / "results")
    assert train_here(context, RUN) == 0
    paths = context.project.run("smoke", RUN)
    before = paths.record.read_bytes()
    assert record_of(context, RUN).run == RUN
    assert not create_whole(paths.record, b"another")
    assert paths.record.read_bytes() == before


@pytest.mark.parametrize("later", [(), ("interrupted",)])
def test_a_finished_result_that_was_not_committed_is_committed_not_trained_again(context, later):
    """As after a kill between the record's writing and its commit, whatever was begun since."""
    paths = context.project.run("smoke", RUN)
    content = paths.record.read_bytes()
    paths.record.unlink()
    (note,) = read_attempts(paths)
    write_attempt(paths.attempts / "1", note.model_copy(update={"outcome": "running", "ended": None}))
    for outcome in later:
        write_attempt(new_attempt(paths), note.model_copy(update={"number": 2, "outcome": outcome}))
    assert train_here(context, RUN) == 0
    assert paths.record.read_bytes() == content
    assert [str(note.kind) for note in read_attempts(paths)] == ["done", *later]


@pytest.mark.parametrize("later", [(), ("interrupted",)])
def test_a_record_that_was_removed_is_trained_again(context, later):
    """What its attempt left beside its note does not count: that attempt was done."""
    paths = context.project.run("smoke", RUN)
    paths.record.unlink()
    (note,) = read_attempts(paths)
    for outcome in later:
        write_attempt(new_attempt(paths), note.model_copy(update={"number": 2, "outcome": outcome}))
    assert train_here(context, RUN) == 0
    assert [str(note.kind) for note in read_attempts(paths)] == ["done", *later, "done"]


def test_results_that_are_renamed_during_a_run_are_committed_where_they_were_asked_for(tmp_path, monkeypatch):
    results = tmp_path / "results"
    context = smoke_context(monkeypatch, results)

    class Rename(Stop):
        looks = 0

        @property
        def now(self) -> bool:
            self.looks += 1
            if self.looks == 30:
                results.rename(tmp_path / "renamed")
            return False

        @now.setter
        def now(self, value: bool) -> None:
            assert not value

    assert train_here(context, RUN, stop=Rename()) == 0
    assert (tmp_path / "renamed").exists()
    assert record_of(context, RUN).run == RUN


# Output


@pytest.mark.parametrize("command", ["aggregate", "status"])
def test_a_full_or_closed_stdout_is_said_in_one_line(trained, command):
    words = f"{sys.executable} -m repro {command} --preset smoke --results {trained.project.results}"
    full = subprocess.run(f"{words} >/dev/full", shell=True, cwd=PROJECT, capture_output=True, text=True)
    assert (full.returncode, full.stderr) == (3, "repro: cannot write to stdout: No space left on device\n")
    assert subprocess.run(f"{words} >/dev/full 2>/dev/full", shell=True, cwd=PROJECT).returncode == 3
    assert subprocess.run(f"{words} >&- 2>&-", shell=True, cwd=PROJECT).returncode == 0


def test_tables_are_utf_8_whatever_the_locale(trained):
    latin = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("aggregate", "--preset", "smoke", "--results", trained.project.results)
    done = repro(*words, environment=latin, encoding="utf-8")
    assert done.returncode == 0
    assert done.stdout == repro(*words).stdout


def test_a_file_for_people_is_written_whole_or_not_at_all(trained, tmp_path):
    table, link = tmp_path / "table.md", tmp_path / "link.md"
    table.write_text("old")
    link.symlink_to(table)
    words = ["aggregate", "--preset", "smoke", "--results", trained.project.results]
    command = [sys.executable, "-m", "repro", *words]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    options = {"cwd": PROJECT, "capture_output": True, "text": True}
    full = subprocess.run([*command, "--output", table], preexec_fn=limit, **options)
    assert (full.returncode, table.read_text()) == (2, "old")
    assert f"cannot write {table}: File too large" in full.stderr
    through = subprocess.run([*command, "--output", link], **options)
    assert (through.returncode, table.read_text()) == (2, "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.md", "table.md"]
    assert subprocess.run([*command, "--output", table], **options).returncode == 0
    assert table.read_text().startswith("### SMOKE Table 1")


def test_a_tilde_is_the_home_folder_and_a_notebooks_backend_is_not_used(trained, tmp_path):
    results = trained.project.results
    environment = {"HOME": str(results.parent), "MPLBACKEND": "module://of_a_notebook"}
    words = ("figures", "--preset", "smoke", f"--results=~/{results.name}", "--output", tmp_path)
    done = repro(*words, environment=environment, check=0)
    assert f"{tmp_path}/figure2.png" in done.stdout


# A user's own code


LOSS = """
from helper import SCALE
from repro.losses.cross_entropy import CrossEntropy


class Own(CrossEntropy):
    def __init__(self, feature_dim: int, classes: int, *, gamma: float = 2.0) -> None:
        super().__init__(feature_dim, classes)
        self.gamma = gamma

    def criterion(self, inputs, labels):
        return SCALE * self.gamma * super().criterion(inputs, labels)
"""
TABLE = """
table = "mine"
dataset = "cifar100"
title = "Mine"
[networks]
resnet18 = "ResNet-18"
[[rows]]
name = "own"
label = "Own"
loss = "own.py:Own"
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A project with a loss of the user's own, which imports a file beside it."""
    shutil.copytree(PROJECT / "experiments", tmp_path / "experiments")
    for name, text in {"own.py": LOSS, "helper.py": "SCALE = 1.0\n", "table-mine.toml": TABLE}.items():
        (tmp_path / "experiments" / name).write_text(text)
    return tmp_path


def test_a_run_of_code_that_was_edited_is_trained_again_and_the_plan_says_why(own, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(own))
    words = ("--preset", "smoke", "--table", "mine")

    def shown(command: str) -> str:
        forget_code()
        return CliRunner().invoke(main, [command, *words]).stdout

    assert "1 run: 1 done;" in repro("run", *words, check=0).stderr
    helper = own / "experiments" / "helper.py"
    helper.write_text("SCALE = 1.0  # a remark is no change\n")
    assert "1 run: 1 done, 0 to do" in shown("plan")
    helper.write_text("SCALE = 2.0\n")
    assert "other recipe: your own code has changed since (helper.py, own.py)" in shown("plan")
    assert "—: other recipe" in shown("aggregate")
    assert "1 run: 1 done;" in repro("run", *words, check=0).stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("own.py", "= 2.0", '= "x"', "its parameter gamma = 'x': Input should be a valid number"),
        ("own.py", "= 2.0", '= float("nan")', "its parameter gamma = nan: Input should be a finite number"),
        ("own.py", "from helper", "raise SystemExit(0)\nfrom helper", "importing own.py failed: SystemExit"),
        ("own.py", "gamma: float", 'gamma: "Nowhere"', "its parameters cannot be read: name 'Nowhere'"),
        ("own.py", "class Own(CrossEntropy)", "class Own(CrossEntropy", "SyntaxError"),
        ("own.py", LOSS, "\0", "importing own.py failed"),
        ("table-mine.toml", '"own"', f'"{"o" * 300}"', "cannot be a name; use at most 100 small letters"),
        ("table-mine.toml", '"own"', '"o\\u001b[31mwn"', "cannot be a name"),
        ("table-mine.toml", TABLE, "\0", "not valid TOML"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_line_that_names_the_file(own, file, old, new, says, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(own))
    path = own / "experiments" / file
    path.write_text(path.read_text().replace(old, new))
    done = CliRunner().invoke(main, ["plan", "--preset", "smoke", "--table", "mine"])
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit)
    assert says in done.stderr
    assert f"{own}/experiments/table-mine.toml: " in done.stderr
    assert "\x1b" not in done.stderr
    other = CliRunner().invoke(main, ["plan", "--preset", "smoke", "--table", "1"])
    assert (other.exit_code, other.stderr.count("repro: a table is left out: ")) == (0, 1)
    assert says in other.stderr


def test_an_override_that_no_file_system_could_name_is_refused(own, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(own))
    path = own / "experiments" / "own.py"
    path.write_text(LOSS.replace("gamma: float = 2.0", 'tag: str = "", gamma: float = 2.0'))
    words = ["plan", "--preset", "smoke", "--table", "mine", "--set"]
    assert CliRunner().invoke(main, [*words, f"tag={'a' * 100}"]).exit_code == 0
    done = CliRunner().invoke(main, [*words, f"tag={'a' * 300}"])
    assert (done.exit_code, "a folder's name of 308 bytes" in done.stderr) == (2, True)
