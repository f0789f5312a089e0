"""The command line as a user meets it: real processes, exit codes, what is on stdout and what on stderr."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repro.scheduling.slots import find_slots
from smoke_project import OTHER, ROOT, RUN, record_of, smoke_context, train_here

from repro.storage import attempts_of

RESNET18 = ("--table", "1", "--network", "resnet18")


def repro(*arguments, cwd=ROOT, environment=None, check: int | None = None) -> subprocess.CompletedProcess:
    """`repro …` in a process of its own; with `check`, fails unless it exits so."""
    done = subprocess.run(
        [sys.executable, "-m", "repro", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


def wait_for(condition, process: subprocess.Popen, seconds=120.0):
    """Polls until `condition()` is true; fails when the process ends or time is up before."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process.poll() is None, "the process ended before what was waited for"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A results folder in which `repro run` trained the ResNet-18 column of the smoke Table 1."""
    results = tmp_path_factory.mktemp("swept")
    done = repro("run", "--preset", "smoke", "--results", results, *RESNET18, check=0)
    assert "8 runs: 8 done" in done.stderr
    assert done.stdout == ""
    return results


def test_help_and_plan_import_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from click.testing import CliRunner\n"
        "from repro.cli import main\n"
        "for words in (['--help'], ['plan', '--json'], ['status'], ['aggregate'], ['data', 'list']):\n"
        "    result = CliRunner().invoke(main, words)\n"
        "    assert result.exit_code == 0, (words, result.output, result.exception)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_starting_imports_nothing_that_takes_long():
    slow = ("torch", "numpy", "pandas", "scipy", "pydantic", "rich", "jinja2", "repro.registry")
    code = f"import sys, repro.cli; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "words",
    [[], ["plan"], ["run"], ["train"], ["status"], ["probe"], ["bundle"], ["merge"], ["aggregate"], ["figures"], ["data"], ["data", "fetch"], ["data", "list"],
     ["data", "prepare"], ["data", "verify"]],
)  # fmt: skip
def test_every_command_has_help(words):
    assert "Usage:" in repro(*words, "--help", check=0).stdout


def test_the_plan_counts_72_cells_and_216_runs():
    plan = json.loads(repro("plan", "--json", check=0).stdout)
    assert (plan["cells"], plan["runs"]) == (72, 216)
    assert plan["done"] + plan["older_code"] + plan["to_do"] == 216


def test_a_finished_sweep_is_skipped_before_anything_is_loaded(swept):
    again = repro(
        "run",
        "--preset",
        "smoke",
        "--results",
        swept,
        *RESNET18,
        check=0,
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert "8 done before" in again.stderr
    assert "torch" not in again.stderr
    plan = json.loads(repro("plan", "--json", "--preset", "smoke", "--results", swept, check=0).stdout)
    assert (plan["cells"], plan["done"], plan["to_do"]) == (72, 8, 64)


def test_a_column_is_trained_by_one_process_a_slot(swept):
    """Eight runs, each with a record, from as many logs as there were slots."""
    logs = list((swept / "smoke" / ".work" / "logs").glob("*.log"))
    records = list((swept / "smoke" / "cifar100" / "resnet18").glob("*/seed0.json"))
    assert len(records) == 8
    assert 1 <= len(logs) <= len(os.sched_getaffinity(0))


def test_a_run_that_shared_its_device_has_the_result_that_it_has_alone(swept, tmp_path, monkeypatch):
    """Bitwise on a CPU, and the record says with how many it shared."""
    packed = record_of(smoke_context(monkeypatch, swept), RUN)
    context = smoke_context(monkeypatch, tmp_path)
    assert train_here(context, RUN) == 0
    alone = record_of(context, RUN)
    assert packed.comparable() == alone.comparable()
    assert packed.provenance.runs_on_device == len(find_slots(1, "cpu"))
    assert alone.provenance.runs_on_device == 1


def test_tables_and_figures_come_from_records_alone(swept, tmp_path):
    table = repro("aggregate", "--preset", "smoke", "--results", swept, "--table", "1", check=0)
    assert table.stdout.startswith("### SMOKE Table 1")
    assert "not run yet" in table.stdout
    drawn = repro("figures", "--preset", "smoke", "--results", swept, "--output", tmp_path, check=0)
    files = [Path(line).name for line in drawn.stdout.splitlines()]
    assert {"figure2.png", "figure2.pdf", "figure3.png", "figure3.pdf"} <= set(files)
    assert all((tmp_path / name).stat().st_size > 5_000 for name in files)


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json"])
def test_a_table_can_be_written_to_a_file(swept, tmp_path, form):
    target = tmp_path / "deep" / f"table.{form}"
    words = ("aggregate", "--preset", "smoke", "--results", swept, "--format", form)
    printed = repro(*words, check=0).stdout
    written = repro(*words, "--output", target, check=0)
    assert written.stdout == ""
    assert target.read_text() == printed


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_text(path.read_text()[:-200]), "torn or cut short"),
        (lambda path: path.write_text(path.read_text().replace('"correct": ', '"correct": 1', 1)), "edited after"),
        (lambda path: path.write_text((path.parents[1] / "cross-entropy" / "seed0.json").read_text()), "moved or copied"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_never_averaged_and_redone(swept, tmp_path, damage, says):
    results = tmp_path / "results"
    subprocess.run(["cp", "-r", swept, results], check=True)
    record = results / "smoke" / f"{RUN}.json"
    damage(record)
    table = repro("aggregate", "--preset", "smoke", "--results", results, "--table", "1")
    assert table.returncode == 4
    assert says in table.stderr
    assert says in table.stdout or "corrupt" in table.stdout or "misplaced" in table.stdout
    rerun = repro("run", "--preset", "smoke", "--results", results, *RESNET18, check=0)
    assert "7 done before" in rerun.stderr
    assert record.read_text() != ""
    assert (results / "smoke" / ".work" / RUN / "quarantine" / "1.json").exists()
    repro("aggregate", "--preset", "smoke", "--results", results, "--table", "1", check=0)


def test_a_deleted_record_is_a_blank_with_its_reason(swept, tmp_path):
    results = tmp_path / "results"
    subprocess.run(["cp", "-r", swept, results], check=True)
    (results / "smoke" / f"{OTHER}.json").unlink()
    table = repro("aggregate", "--preset", "smoke", "--results", results, "--table", "1", check=0)
    line = next(line for line in table.stdout.splitlines() if line.startswith("| Cross-entropy"))
    assert line.count("not run yet") == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "--network", "resnet19"], 2, "no network matches 'resnet19'; there are: vgg16"),
        (["plan", "--preset", "fast"], 2, "there is no preset 'fast'; presets: paper, quick, smoke"),
        (["plan", "--set", "rotate=15"], 2, "unknown axis 'rotate'"),
        (["train", "cifar100/resnet18"], 2, "is not a run id"),
        (["run", "--gpus", "a"], 2, "such as 0,2; got 'a'"),
        (["data", "fetch", "mnist"], 2, "unknown data set 'mnist'; known: cifar100"),
        (["aggregate", "--table", "9"], 2, "there is no table 9; tables: 1, 2, 3"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_wrong_word_gets_one_line_and_exit_code_2(words, code, says, tmp_path):
    if words[0] in ("run", "train"):
        words = [*words, "--results", str(tmp_path)]
    done = repro(*words)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_are_not_there_are_exit_code_3_with_what_to_do(tmp_path):
    done = repro("run", "--preset", "quick", "--results", tmp_path, "--data-dir", tmp_path, *RESNET18)
    assert done.returncode == 3
    assert "run `repro data prepare cifar100`" in done.stderr
    trained = repro("train", RUN, "--preset", "quick", "--results", tmp_path, "--data-dir", tmp_path)
    assert trained.returncode == 3
    assert "run `repro data prepare cifar100`" in trained.stderr


def test_outside_a_project_the_command_says_so(tmp_path):
    done = repro("plan", cwd=tmp_path)
    assert done.returncode == 3
    assert "run the command inside a checkout of the project, or set REPRO_ROOT" in done.stderr


def test_a_wrong_toml_key_is_one_line_and_exit_code_2(tmp_path):
    subprocess.run(["cp", "-r", ROOT / "experiments", tmp_path], check=True)
    path = tmp_path / "experiments" / "table2.toml"
    path.write_text(path.read_text().replace("margin = 0.35", "margn = 0.35", 1))
    done = repro("plan", cwd=tmp_path)
    assert done.returncode == 2
    assert "table2.toml: row 2 (am-softmax-s7.5-m0.35): unknown key 'margn'; allowed:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_results_folder_that_cannot_be_written_is_exit_code_3(tmp_path):
    (tmp_path / "file").write_text("")
    done = repro("train", RUN, "--preset", "smoke", "--results", tmp_path / "file" / "results")
    assert done.returncode == 3
    assert "cannot write below" in done.stderr


def test_a_cuda_device_that_is_not_there_is_exit_code_3(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = repro("train", RUN, "--preset", "smoke", "--results", tmp_path, "--device", "cuda")
    assert done.returncode == 3
    assert "finds no CUDA device" in done.stderr


def test_runs_can_be_trained_in_the_schedulers_own_process(tmp_path, swept):
    words = ("run", "--preset", "smoke", "--results", tmp_path, *RESNET18, "--loss", "scaled-bn-m1")
    repro(*words, "--executor", "inline", check=0)
    inline = record_of(smoke_context(None, tmp_path), RUN)
    assert inline.comparable() == record_of(smoke_context(None, swept), RUN).comparable()
    assert inline.provenance.runs_on_device == 1


@pytest.fixture
def slow_project(tmp_path) -> Path:
    """The project's experiments, with a smoke preset long enough to be killed in the middle."""
    root = tmp_path / "project"
    root.mkdir()
    subprocess.run(["cp", "-r", ROOT / "experiments", root], check=True)
    path = root / "experiments" / "presets.toml"
    text = path.read_text()
    assert "epochs = 3\nlr_drops = [1, 2]" in text
    path.write_text(text.replace("epochs = 3\nlr_drops = [1, 2]", "epochs = 40\nlr_drops = [20, 30]"))
    return root


def test_a_run_killed_again_and_again_ends_with_the_uninterrupted_record(slow_project, monkeypatch):
    """SIGKILL at a random step after a checkpoint, three times; then all but timings and attempts is equal."""
    monkeypatch.setenv("REPRO_ROOT", str(slow_project))
    straight = smoke_context(None, slow_project / "straight")
    assert train_here(straight, RUN) == 0
    killed = smoke_context(None, slow_project / "killed")
    paths = killed.project.run("smoke", RUN)
    argv = [sys.executable, "-m", "repro", "train", RUN, "--preset", "smoke", "--device", "cpu"]
    argv += ["--results", killed.project.results, "--checkpoint-interval", "0.3"]
    for attempt in (1, 2, 3):
        process = subprocess.Popen(argv, cwd=slow_project, env={**os.environ, "PYTHONPATH": str(ROOT)})
        folder = paths.attempts / str(attempt)
        wait_for(lambda folder=folder: list(folder.glob("checkpoint-*.pt")), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not paths.record.exists()
    assert train_here(killed, RUN) == 0
    record = record_of(killed, RUN)
    assert record.comparable() == record_of(straight, RUN).comparable()
    assert [attempt.outcome for attempt in record.provenance.attempts] == ["killed"] * 3 + ["done"]
    assert attempts_of(paths)[-1].resumed_at_step > 0
    assert not list(paths.attempts.glob("*/checkpoint-*.pt"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_worker_told_to_stop_checkpoints_and_says_so(slow_project, number, code):
    results = slow_project / "results"
    argv = [sys.executable, "-m", "repro", "train", RUN, OTHER, "--preset", "smoke", "--results", results]
    process = subprocess.Popen(
        argv, cwd=slow_project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    work = results / "smoke" / ".work" / RUN
    wait_for(lambda: (work / "progress.json").exists(), process)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == code
    assert "when started again, it resumes from there" in stderr
    assert list(work.glob("attempts/1/checkpoint-*.pt"))
    assert not (results / "smoke" / ".work" / OTHER).exists()


def test_a_worker_killed_in_the_middle_of_a_group_loses_only_its_unfinished_runs(slow_project):
    """The scheduler keeps the records that the group committed and trains the rest singly."""
    results = slow_project / "results"
    argv = [sys.executable, "-m", "repro", "run", "--preset", "smoke", "--results", results, *RESNET18]
    argv += ["--loss", "scaled-bn-*"]
    log = slow_project / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            argv, cwd=slow_project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=stderr
        )
        first = results / "smoke" / "cifar100" / "resnet18"
        record = wait_for(lambda: next(first.glob("*/seed0.json"), None), process)
        before = record.read_bytes()
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        assert children
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        assert process.wait() == 0, log.read_text()
    assert record.read_bytes() == before
    assert len(list(first.glob("*/seed0.json"))) == 3
    assert "3 runs: 3 done" in log.read_text()
    assert "again:" in log.read_text()


def test_no_worker_outlives_a_killed_scheduler(slow_project):
    results = slow_project / "results"
    argv = [sys.executable, "-m", "repro", "run", "--preset", "smoke", "--results", results, *RESNET18]
    process = subprocess.Popen(
        argv, cwd=slow_project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: next(results.glob("smoke/.work/cifar100/resnet18/*/seed0/progress.json"), None), process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker is still there 10 s after its scheduler was killed"
        time.sleep(0.1)


def test_ctrl_c_lets_the_run_in_progress_finish(slow_project):
    results = slow_project / "results"
    argv = [sys.executable, "-m", "repro", "run", "--preset", "smoke", "--results", results, *RESNET18]
    log = slow_project / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            argv, cwd=slow_project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=stderr
        )
        progress = "smoke/.work/cifar100/resnet18/*/seed0/progress.json"
        wait_for(lambda: next(results.glob(progress), None), process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    text = log.read_text()
    assert "nothing new starts" in text
    done = len(list(results.glob("smoke/cifar100/resnet18/*/seed0.json")))
    assert 1 <= done < 8
    assert "the same command goes on where this one stopped" in text
