"""run_all.sh on a machine of stand-ins; nothing is installed or trained but in the last test, marked slow."""

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


# --- options ----------------------------------------------------------------------------------------------


def test_help_names_every_option_and_installs_nothing(machine: Machine) -> None:
    done = machine.run("--help")
    assert done.returncode == 0
    for option in ("--preset", "--results", "--data-dir", "--table", "--plan", "--dry-run", "--install-only"):
        assert option in done.stdout
    assert machine.log() == []


@pytest.mark.parametrize("arguments", [["--nope"], ["--preset"], ["--table", ""], ["paper"]])
def test_an_unknown_option_or_a_missing_value_is_a_usage_error(
    machine: Machine, arguments: list[str]
) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "--help" in done.stderr
    assert machine.log() == []


def test_a_usage_error_of_the_plan_ends_the_script_before_any_training(machine: Machine) -> None:
    machine.answers("2 plan*")
    assert machine.run("--table", "9").returncode == 2
    assert machine.log("repro run") == []


def test_plan_installs_prints_the_plan_to_stdout_and_stops(machine: Machine) -> None:
    for option in ("--plan", "--dry-run"):
        done = machine.run(option, "--preset=quick", "--table", "1")
        assert (done.returncode, done.stdout) == (0, "the plan\n")
    assert machine.log("repro") == ["repro plan --preset quick --table 1"] * 2


# --- the environment --------------------------------------------------------------------------------------


def test_a_second_start_installs_nothing(machine: Machine) -> None:
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("pip")) == 1
    asked = machine.log()
    assert machine.run("--install-only").returncode == 0
    assert machine.log() == asked


@pytest.mark.parametrize("file", ["setup.cfg", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(machine: Machine, file: str) -> None:
    machine.run("--install-only")
    with (machine.clone / file).open("a") as stream:
        stream.write("\n# changed\n")
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("venv")) == 1
    assert len(machine.log("pip")) == 2


def test_the_test_tools_are_added_once_and_stay(machine: Machine) -> None:
    machine.run("--install-only")
    machine.run("--install-only", "--extra", "test")
    assert machine.log("pip")[-1].endswith("[test]")
    asked = machine.log()
    machine.run("--install-only")
    machine.run("--install-only", "--extra", "test")
    assert machine.log() == asked


def test_an_interrupted_installation_is_made_anew(machine: Machine) -> None:
    machine.flag("pip-hangs")
    started = machine.start("--install-only")
    machine.await_file("pip-started")
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    (machine.fake / "pip-hangs").unlink()
    (machine.venv / "half-installed").touch()

    done = machine.run("--install-only")

    assert done.returncode == 0
    assert "anew" in done.stderr
    assert not (machine.venv / "half-installed").exists()
    assert len(machine.log("venv")) == 2


def test_without_a_package_index_one_line_says_so(machine: Machine) -> None:
    machine.flag("pip-fails")
    done = machine.run()
    assert done.returncode == 3
    (complaint,) = (line for line in done.stderr.splitlines() if "could not install" in line)
    assert "no matching distribution found for torch" in complaint
    assert "is the package index reachable?" in complaint


def test_a_failed_update_leaves_the_environment_that_worked(machine: Machine) -> None:
    machine.run("--install-only")
    (machine.venv / "precious").touch()
    original = (machine.clone / "setup.cfg").read_text()
    (machine.clone / "setup.cfg").write_text(original + "\n# changed\n")
    machine.flag("pip-fails")
    assert machine.run("--install-only").returncode == 3

    (machine.clone / "setup.cfg").write_text(original)
    assert machine.run("--install-only").returncode == 0
    assert (machine.venv / "precious").exists()


def test_a_folder_that_the_script_did_not_make_is_left_alone(machine: Machine) -> None:
    mine = machine.folder / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    done = machine.run("--install-only", REPRO_VENV="mine")
    assert done.returncode == 3
    assert "was not made by this script" in done.stderr
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_an_unsuitable_python_is_refused(machine: Machine) -> None:
    executable(machine.fake / "old-python", "#!/bin/sh\nexit 1\n")
    done = machine.run("--install-only", REPRO_PYTHON=str(machine.fake / "old-python"))
    assert done.returncode == 3
    assert "is not a Python 3.11 to 3.14" in done.stderr


def test_without_any_suitable_python_the_script_says_what_to_install(machine: Machine) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        executable(machine.fake / "bin" / name, "#!/bin/sh\nexit 1\n")
    done = machine.run("--install-only", REPRO_PYTHON="")
    assert done.returncode == 3
    assert "no Python 3.11 to 3.14" in done.stderr
    assert "REPRO_PYTHON" in done.stderr


def test_the_first_python_that_works_is_taken(machine: Machine) -> None:
    executable(machine.fake / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    shutil.copy(machine.fake / "python", machine.fake / "bin" / "python3.13")
    assert machine.run("--install-only", REPRO_PYTHON="").returncode == 0


# --- which torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", [("6.1",), ("7.0",), ("9.0", "6.1"), ("5.2", "8.6")])
def test_any_card_below_7_5_gets_torch_from_pytorchs_own_index(
    machine: Machine, capabilities: tuple[str, ...]
) -> None:
    machine.gpus(*capabilities)
    assert machine.run("--install-only").returncode == 0
    first, second = machine.log("pip")
    assert f"torch>=2.6 torchvision>=0.21 --index-url {CU126}" in first
    assert CU126 not in second
    assert machine.log("kernel") == ["kernel"]


@pytest.mark.parametrize("capabilities", [("7.5",), ("9.0",), ("8.9", "12.0"), ("10.3",)])
def test_newer_cards_get_the_default_torch(machine: Machine, capabilities: tuple[str, ...]) -> None:
    machine.gpus(*capabilities)
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("pip")) == 1
    assert not any(CU126 in line for line in machine.log())
    assert machine.log("kernel") == ["kernel"]


def test_another_torch_for_another_card_is_a_new_environment(machine: Machine) -> None:
    machine.run("--install-only")
    machine.gpus("6.1")
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("venv")) == 2


def test_an_index_of_ones_own_overrides_the_choice(machine: Machine) -> None:
    machine.gpus("9.0")
    machine.run("--install-only", REPRO_TORCH_INDEX="https://mirror.example.org/torch")
    assert "--index-url https://mirror.example.org/torch" in machine.log("pip")[0]


def test_without_a_gpu_the_script_says_that_it_uses_the_cpu(machine: Machine) -> None:
    done = machine.run("--install-only")
    assert done.returncode == 0
    assert "no NVIDIA GPU found: training on the CPU" in done.stderr
    assert machine.log("kernel") == []


def test_a_gpu_that_cannot_run_a_kernel_stops_the_script(machine: Machine) -> None:
    machine.gpus("9.0")
    machine.flag("kernel-fails")
    done = machine.run()
    assert done.returncode == 3
    assert "torch 9.9 finds no CUDA device. Update the NVIDIA driver" in done.stderr
    assert machine.log("repro") == []

    (machine.fake / "kernel-fails").unlink()
    assert machine.run("--install-only").returncode == 0
    assert len(machine.log("pip")) == 1


def test_a_driver_that_does_not_answer_stops_the_script(machine: Machine) -> None:
    machine.gpus(fails=True)
    done = machine.run()
    assert done.returncode == 3
    assert "could not reach the driver" in done.stderr
    assert machine.log() == []


def test_hidden_gpus_are_not_asked_for_a_kernel(machine: Machine) -> None:
    machine.gpus("9.0")
    machine.flag("kernel-fails")
    done = machine.run("--install-only", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    assert "CUDA_VISIBLE_DEVICES hides every GPU: training on the CPU" in done.stderr


# --- training, tables and figures -------------------------------------------------------------------------


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


def test_a_preset_on_generated_data_is_trained_in_one_go_without_data(machine: Machine) -> None:
    machine.data()
    assert machine.run("--preset", "smoke").returncode == 0
    assert machine.log("repro data") == []
    assert machine.log("repro run") == ["repro run --preset smoke"]
    assert len(machine.log("repro figures")) == 1


def test_selected_tables_alone_are_trained_and_shown(machine: Machine) -> None:
    machine.run("--table", "3", "--table", "1")
    trained = [line.split("--table ")[1][0] for line in machine.log("repro run")]
    assert trained == ["1"] * 3 + ["3"] * 3
    assert machine.log("repro aggregate")[-1].endswith("--table 3 --table 1 --format markdown")


def test_data_that_are_missing_are_fetched_and_prepared(machine: Machine) -> None:
    machine.data("tiny-imagenet", "facescrub")
    machine.run("--table", "1", "--data-dir", "/mnt/data")
    assert machine.log("repro data")[1:3] == [
        "repro data fetch cifar100 --data-dir /mnt/data",
        "repro data prepare cifar100 --data-dir /mnt/data",
    ]


def test_data_that_cannot_be_had_leave_their_table_blank_while_the_others_go_on(machine: Machine) -> None:
    machine.data("cifar100", "facescrub")
    machine.answers("3 data fetch tiny-imagenet*")
    done = machine.run()
    assert done.returncode == 3
    assert "Table 2 gets no new runs: tiny-imagenet cannot be had: nobody has tiny-imagenet" in done.stderr
    trained = [line.split("--table ")[1][0] for line in machine.log("repro run")]
    assert trained == ["1"] * 3 + ["3"] * 3
    assert done.stdout == "| a table |\n"


def test_failed_runs_do_not_stop_the_rest(machine: Machine) -> None:
    machine.answers("1 run*--table 1 --network vgg16*")
    done = machine.run()
    assert done.returncode == 1
    assert "Table 1 (cifar100), vgg16: some runs failed" in done.stderr
    assert len(machine.log("repro run")) == 9


def test_the_exit_code_is_the_highest_met_and_every_sentence_is_said_once(machine: Machine) -> None:
    machine.answers("1 run*--network vgg16*", "4 figures*", "3 run*--network resnet50*")
    done = machine.run("--table", "1")
    assert done.returncode == 4
    assert done.stderr.count("drawing the figures: exit code 4") == 1
    assert done.stderr.count("some runs failed") == 1


@pytest.mark.parametrize("code", [75, 130])
def test_an_interrupted_run_ends_the_script_with_its_code_and_how_to_go_on(
    machine: Machine, code: int
) -> None:
    machine.answers(f"{code} run*--network resnet18*")
    done = machine.run("--results", "my results")
    assert done.returncode == code
    assert "run_all.sh --results my\\ results" in done.stderr
    assert len(machine.log("repro run")) == 2
    assert len(machine.log("repro figures")) == 1


def test_a_fault_of_the_command_itself_ends_the_script_with_its_code(machine: Machine) -> None:
    machine.answers("2 run*")
    assert machine.run().returncode == 2
    assert len(machine.log("repro run")) == 1


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
    _, stderr = started.communicate(timeout=20)
    assert started.returncode == 75
    assert machine.log("signalled") == ["signalled"]
    assert "the same command goes on from here" in stderr
    assert len(machine.log("repro run")) == 1


# --- whose records ----------------------------------------------------------------------------------------


def test_records_that_came_with_the_clone_are_counted_and_called_supplied(machine: Machine) -> None:
    machine.supply("quick/cifar100/resnet18/pedcc/seed0.json", "quick/cifar100/resnet18/pedcc/seed1.json")
    (machine.clone / "results/quick/cifar100/resnet18/pedcc/seed2.json").write_text("{}")
    (machine.clone / "results/quick/cifar100/resnet18/pedcc/seed1.json").unlink()
    done = machine.run("--plan", "--preset", "quick")
    assert "results/quick, with 1 records supplied with this clone" in done.stderr
    assert "--results DIR" in done.stderr
    assert "no records were supplied with this clone" in machine.run("--plan").stderr


def test_results_of_ones_own_are_called_ones_own(machine: Machine) -> None:
    machine.supply("paper/cifar100/resnet18/pedcc/seed0.json")
    done = machine.run("--plan", "--results", "mine")
    assert f"results: {machine.folder}/mine/paper, a set of your own" in done.stderr
    same = machine.run("--plan", "--results", "clone/results")
    assert "1 records supplied" in same.stderr


# --- the script itself ------------------------------------------------------------------------------------


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
    """All 72 cells on generated data, with the real `repro`; only the installation is a stand-in."""
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
    assert len(list((results / "smoke").rglob("seed0.json"))) == 72
    assert done.stdout.count("SMOKE") >= 3
    assert (results / "smoke" / "tables.md").read_text() == done.stdout
    for name in ("tables.csv", "tables.tex"):
        assert (results / "smoke" / name).stat().st_size > 0
    assert list((results / "figures" / "smoke").glob("*.png"))
