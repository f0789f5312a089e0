"""`repro doctor`: what it finds wrong, and what it tells a person to do."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import ROOT, smoke_context

from repro.cli import main
from repro.cli.context import Context
from repro.cli.doctor import (
    OLD_CARDS_INDEX,
    check_data,
    check_executor,
    check_places,
    check_torch,
    judge_device,
    read_torch_facts,
)
from repro.errors import DeviceError
from repro.gpus import Gpu

PASCAL = Gpu(0, "NVIDIA GeForce GTX 1080 Ti", "GPU-0", 11 * 2**30)
NEW_WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
OLD_WHEEL = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def facts(**changes):
    return {
        "torch": "2.6.0",
        "torchvision": "0.21.0",
        "cuda": "12.6",
        "architectures": OLD_WHEEL,
        "available": True,
        "devices": [],
        "cpu": "AVX2",
    } | changes


def device(name="NVIDIA GeForce GTX 1080 Ti", capability=(6, 1), fault=None):
    return {"name": name, "capability": list(capability), "fault": fault}


@pytest.mark.parametrize(
    ("capability", "architectures", "level"),
    [
        ((6, 1), NEW_WHEEL, "error"),
        ((6, 1), OLD_WHEEL, "ok"),
        ((6, 1), [*NEW_WHEEL, "compute_60"], "ok"),
        ((6, 0), ["sm_61"], "error"),
        ((8, 9), NEW_WHEEL, "ok"),
        ((9, 0), ["sm_90a"], "ok"),
        ((12, 0), ["sm_90", "compute_90"], "ok"),
        ((12, 0), ["sm_90"], "error"),
        ((7, 5), [], "error"),
    ],
)
def test_a_card_that_torchs_build_does_not_carry_is_an_error(capability, architectures, level):
    finding = judge_device(device(capability=capability), architectures)
    assert finding.level == level
    if level == "error":
        assert f"compute capability {capability[0]}.{capability[1]}" in finding.said
        assert (
            f"pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}" in finding.remedy
        )


def test_a_kernel_that_fails_is_quoted():
    finding = judge_device(device(fault="CUDA error: out of memory"), OLD_WHEEL)
    assert (finding.level, finding.said.rpartition(": ")[2]) == ("error", "out of memory")


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 1), "float32"), ((7, 0), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_a_card_that_works_says_in_what_precision_it_trains(capability, precision):
    finding = judge_device(device(capability=capability), [*OLD_WHEEL])
    assert finding.level == "ok"
    assert precision in finding.said


@pytest.mark.parametrize(
    ("torch", "present", "environment", "level", "says"),
    [
        (facts(available=False), [], None, "warning", "no NVIDIA GPU found"),
        (facts(available=False), [PASCAL], None, "error", "torch sees no CUDA device"),
        (facts(available=False, cuda=None), [PASCAL], None, "error", "torch sees no CUDA device"),
        (facts(available=False), [PASCAL], "", "warning", "every GPU is hidden"),
        (facts(devices=[device()]), [PASCAL], None, "ok", "a kernel ran; trains in float32"),
        (
            facts(devices=[device()], architectures=NEW_WHEEL),
            [PASCAL],
            None,
            "error",
            "carries no code for it",
        ),
    ],
)
def test_torch_is_held_against_the_gpus_that_the_driver_shows(
    torch, present, environment, level, says, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    about_torch, about_gpu = check_torch(lambda: torch, lambda: present)
    assert (about_torch.level, about_gpu.level) == ("ok", level)
    assert says in about_gpu.said
    assert about_gpu.remedy or level == "ok"


def test_a_driver_that_does_not_answer_is_an_error():
    def silent():
        raise DeviceError("the NVIDIA driver does not answer")

    findings = list(check_torch(lambda: facts(), silent))
    assert [finding.level for finding in findings] == ["ok", "error"]


def test_a_torch_that_cannot_be_imported_is_an_error_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    said = read_torch_facts()
    assert said == "importing torch failed: OSError: libcudart.so.12: cannot open shared object file"
    (finding,) = check_torch(lambda: said, lambda: [])
    assert (finding.matter, finding.level) == ("torch", "error")


def test_a_torch_that_dies_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    assert read_torch_facts() == "importing torch ended by signal 11: without a word"


def test_the_torch_that_is_here_tells_its_facts():
    assert set(read_torch_facts()) == set(facts())


def test_a_folder_on_a_read_only_file_system_is_an_error(tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        context = smoke_context(monkeypatch, mount / "results")
        finding = next(check_places(context))
    finally:
        subprocess.run(["umount", mount], check=True)
    assert (finding.matter, finding.level) == ("results", "error")
    assert "cannot be written" in finding.said
    assert "--results DIR" in finding.remedy


def test_a_disk_without_room_for_the_runs_is_an_error(tmp_path, monkeypatch):
    context = smoke_context(monkeypatch, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    finding = next(check_places(context))
    assert finding.level == "error"
    assert "72 runs need about 0.4 GB" in finding.said


def test_places_and_locks_are_fine_in_a_fresh_folder_and_nothing_is_left_there(tmp_path, monkeypatch):
    findings = list(check_places(smoke_context(monkeypatch, tmp_path)))
    assert {finding.level for finding in findings} == {"ok"}
    assert "locks" in [finding.matter for finding in findings]
    assert list(tmp_path.iterdir()) == []


def context_with_data(tmp_path: Path, monkeypatch) -> Context:
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("paper", results=tmp_path / "results", data=tmp_path / "data")


def test_a_missing_data_set_is_a_warning_with_the_commands_that_bring_it(tmp_path, monkeypatch):
    first = next(check_data(context_with_data(tmp_path, monkeypatch), hash_them=True))
    assert (first.matter, first.level) == ("data: cifar100", "warning")
    assert first.remedy == "`repro data fetch cifar100 && repro data prepare cifar100`"


def test_the_smoke_preset_needs_no_data(tmp_path, monkeypatch):
    (finding,) = check_data(smoke_context(monkeypatch, tmp_path), hash_them=True)
    assert (finding.level, finding.said) == ("ok", "the preset smoke generates its own")


def test_an_extra_that_is_not_installed_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finding = next(check_executor("ray"))
    assert finding.level == "error"
    assert "'.[ray]'" in finding.remedy
    assert list(check_executor("local")) == []


def test_the_command_prints_a_line_a_matter_and_exits_3_on_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    argv = ["doctor", "--preset", "smoke", "--results", str(tmp_path)]
    fine = CliRunner().invoke(main, argv)
    assert fine.exit_code == 0, fine.output
    assert fine.output.splitlines()[0].startswith("ok      Python")
    monkeypatch.setenv("PATH", str(tmp_path))
    wrong = CliRunner().invoke(main, [*argv, "--executor", "slurm", "--json"])
    assert wrong.exit_code == 3
    found = json.loads(wrong.stdout)
    assert [entry["matter"] for entry in found if entry["level"] == "error"][-1] == "slurm"


def test_a_damaged_data_set_is_an_error_with_the_command_that_mends_it(tmp_path, monkeypatch):
    context = context_with_data(tmp_path, monkeypatch)
    folder = tmp_path / "data" / "cifar100" / "prepared"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema_version": 1, "na')
    finding = next(check_data(context, hash_them=True))
    assert (finding.level, finding.remedy) == ("error", "`repro data prepare cifar100`")
    assert "manifest.json" in finding.said
