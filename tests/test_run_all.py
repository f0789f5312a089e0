"""run_all.sh on a machine of stand-ins; nothing is installed or trained but in the last test, marked slow."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_all_stand_ins import PROJECT, Machine, executable

CU126 = "https://download.pytorch.org/whl/cu126"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("arguments", [["--nope"], ["--table", ""]])
def test_an_unknown_option_or_a_missing_value_is_a_usage_error(
    machine: Machine, arguments: list[str]
) -> None:
    done = machine.run(*arguments)
    assert (done.returncode, machine.log()) == (2, [])
    assert arguments[0] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "seed 0 before seed 1"),
        ([], 2, "--budget"),
        *((["--budget", budget], 2, "--budget") for budget in ("soon", "10", "-1h", "9h 30m")),
        (["--budget", "1h", "--nope"], 2, "--nope"),
    ],
)
def test_evidence_sh_refuses_a_wrong_budget_or_option_before_anything_else(arguments, code, says) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [PROJECT / "experiments" / "evidence.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == code
    assert says.lower() in (done.stdout + done.stderr).lower()


def test_an_installation_is_made_once_kept_up_to_date_and_survives_a_failed_update(machine: Machine) -> None:
    assert machine.run("--install-only").returncode == 0
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("pip")) == 1
    machine.run("--install-only", "--extra", "test")
    machine.run("--install-only")
    assert len(machine.log("pip")) == 2
    assert machine.log("pip")[-1].endswith("[test]")
    before = (machine.clone / "setup.cfg").read_text()
    (machine.clone / "setup.cfg").write_text(before + "\n# changed\n")
    machine.flag("pip-fails")
    failed = machine.run("--install-only")
    assert failed.returncode == 3
    assert "no matching distribution found for torch" in failed.stderr
    (machine.clone / "setup.cfg").write_text(before)
    assert machine.run("--install-only").returncode == 0
    assert (len(machine.log("venv")), len(machine.log("pip"))) == (1, 3)


def test_an_interrupted_installation_starts_over(machine: Machine) -> None:
    machine.flag("pip-hangs")
    started = machine.start("--install-only")
    machine.await_file("pip-started")
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    (machine.fake / "pip-hangs").unlink()
    (machine.venv / "half-installed").touch()
    assert machine.run("--install-only").returncode == 0
    assert not (machine.venv / "half-installed").exists()
    assert len(machine.log("venv")) == 2


def test_a_folder_that_the_script_did_not_make_is_left_alone(machine: Machine) -> None:
    (machine.folder / "mine").mkdir()
    (machine.folder / "mine" / "thesis.tex").touch()
    done = machine.run("--install-only", REPRO_VENV="mine")
    assert done.returncode == 3
    assert [path.name for path in (machine.folder / "mine").iterdir()] == ["thesis.tex"]


def test_without_a_suitable_python_the_script_says_what_to_install(machine: Machine) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        executable(machine.fake / "bin" / name, "#!/bin/sh\nexit 1\n")
    done = machine.run("--install-only", REPRO_PYTHON="")
    assert done.returncode == 3
    assert "apt-get install python3 python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("capabilities", "old"), [(("6.1",), True), (("9.0", "7.0"), True), (("7.5", "12.0"), False)]
)
def test_any_card_below_7_5_gets_torch_from_pytorchs_own_index(
    machine: Machine, capabilities: tuple[str, ...], old: bool
) -> None:
    machine.gpus(*capabilities)
    assert machine.run("--install-only").returncode == 0
    assert [f"torch>=2.6 torchvision>=0.21 --index-url {CU126}" in line for line in machine.log("pip")] == (
        [True, False] if old else [False]
    )
    assert machine.log("kernel") == ["kernel"]


def test_a_gpu_that_runs_no_kernel_stops_the_script_unless_it_is_hidden(machine: Machine) -> None:
    machine.gpus("9.0")
    machine.flag("kernel-fails")
    done = machine.run()
    assert done.returncode == 3
    assert "torch 9.9 finds no CUDA device. Update the NVIDIA driver" in done.stderr
    assert machine.log("repro") == []
    assert machine.run("--install-only", CUDA_VISIBLE_DEVICES="").returncode == 0
    machine.gpus(fails=True)
    assert machine.run("--install-only").returncode == 3


def test_every_column_is_trained_in_order_with_tables_and_figures_after_each(machine: Machine) -> None:
    done = machine.run("--data-dir", "elsewhere")
    assert done.returncode == 0
    assert done.stdout == "| a table |\n"
    options = f"--preset paper --data-dir {machine.folder / 'elsewhere'}"
    output = f"--output {machine.clone}/results/paper/tables"
    expected = [f"repro plan {options}"]
    for table in (1, 2, 3):
        expected.append(f"repro data list --json --data-dir {machine.folder / 'elsewhere'}")
        for network in ("vgg16", "resnet18", "resnet50"):
            expected += [
                f"repro run {options} --table {table} --network {network}",
                f"repro aggregate {options} --format markdown {output}.md",
                f"repro figures {options}",
            ]
    expected += [
        f"repro aggregate {options} --format markdown {output}.md",
        f"repro figures {options}",
        f"repro aggregate {options} --format csv {output}.csv",
        f"repro aggregate {options} --format latex {output}.tex",
        f"repro aggregate {options} --format markdown",
    ]
    assert machine.log("repro") == expected


def test_what_fails_leaves_the_rest_to_be_trained_and_the_highest_exit_code_counts(machine: Machine) -> None:
    machine.data("facescrub")
    machine.answers("3 data fetch tiny-imagenet*", "1 run*--network vgg16*", "4 figures*")
    done = machine.run()
    assert done.returncode == 4
    assert machine.log("repro data")[1:3] == ["repro data fetch cifar100", "repro data prepare cifar100"]
    trained = [line.split("--table ")[1][0] for line in machine.log("repro run")]
    assert trained == ["1"] * 3 + ["3"] * 3
    for said in ("nobody has tiny-imagenet", "Table 1 (cifar100), vgg16: some runs failed", "exit code 4"):
        assert said in done.stderr
    assert done.stdout == "| a table |\n"


def test_a_damaged_record_that_the_plan_names_is_trained_again(machine: Machine) -> None:
    machine.answers("4 plan*")
    assert machine.run().returncode == 0
    assert len(machine.log("repro run")) == 9
    machine.answers("3 plan*")
    assert machine.run().returncode == 3  # any other refusal ends the script


def test_an_interrupted_run_ends_the_script_with_its_code_and_how_to_resume(machine: Machine) -> None:
    machine.answers("75 run*--network resnet18*")
    done = machine.run("--results", "my results")
    assert done.returncode == 75
    assert "run_all.sh --results my\\ results" in done.stderr
    assert (len(machine.log("repro run")), len(machine.log("repro figures"))) == (2, 1)


@pytest.mark.parametrize("to_the_group", [True, False])
def test_ctrl_c_reaches_repro_run_once_and_then_the_script_stops(
    machine: Machine, to_the_group: bool
) -> None:
    machine.answers("wait run*")
    started = machine.start()
    machine.await_file("waiting")
    if to_the_group:
        os.killpg(started.pid, signal.SIGINT)  # what a terminal does
    else:
        started.send_signal(signal.SIGINT)
    started.communicate(timeout=20)
    assert started.returncode == 75
    assert machine.log("signalled") == ["signalled"]
    assert len(machine.log("repro run")) == 1


def test_the_plan_says_whose_records_count(machine: Machine) -> None:
    folder = machine.supply(*(f"quick/cifar100/resnet18/pedcc/seed{number}.json" for number in (0, 1)))
    (folder / "seed2.json").write_text("{}")
    (folder / "seed1.json").unlink()
    done = machine.run("--plan", "--preset=quick", "--table", "1")
    assert (done.returncode, done.stdout) == (0, "the plan\n")
    assert machine.log("repro") == ["repro plan --preset quick --table 1"]
    assert "results/quick, with 1 records supplied with this clone" in done.stderr
    own = machine.run("--plan", "--results", "mine")
    assert f"results: {machine.folder}/mine/paper, a set of your own" in own.stderr


@pytest.mark.parametrize("script", ["run_all.sh", "check.sh", ".ci/run"])
def test_the_script_is_executable_and_has_no_known_faults(script: str) -> None:
    assert os.access(PROJECT / script, os.X_OK)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, PROJECT / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_smoke_preset_runs_for_real_and_everything_is_titled_smoke(machine: Machine) -> None:
    """All 72 cells learn handwritten digits, with the real `repro`; only the installation is a stand-in."""
    executable(machine.fake / "repro", f'#!/bin/sh\nexec "{sys.executable}" -m repro "$@"\n')
    results = machine.folder / "results"
    done = subprocess.run(
        [PROJECT / "run_all.sh", "--preset", "smoke", "--results", results],
        env={**machine.environment, "REPRO_VENV": str(machine.venv)},
        cwd=machine.folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    paths = [path for path in (results / "smoke").rglob("seed0.json") if ".work" not in path.parts]
    accuracies = {str(path): json.loads(path.read_text())["result"]["accuracy"] for path in paths}
    assert len(accuracies) == 72
    assert min(accuracies.values()) >= 60, accuracies  # chance is 10
    assert done.stdout.count("SMOKE") >= 3
    assert (results / "smoke" / "tables.md").read_text() == done.stdout
    assert all((results / "smoke" / name).stat().st_size > 0 for name in ("tables.csv", "tables.tex"))
    assert list((results / "figures" / "smoke").glob("*.png"))
