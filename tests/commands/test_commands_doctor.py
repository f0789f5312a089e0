"""`repro doctor`: what it finds wrong, and what it tells a person to do."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from smoke_project import ROOT, smoke_context

from repro.cli import main
from repro.cli.context import Context
from repro.cli.doctor import OLD_CARDS_INDEX, check_data, check_executor, check_places, check_torch
from repro.data import DataSetState
from repro.errors import DataCorruptError, DeviceError
from repro.scheduling.gpus import Gpu

MODULE = sys.modules["repro.cli.doctor"]  # as an attribute, the command of that name hides it
PASCAL = Gpu(0, "NVIDIA GeForce GTX 1080 Ti", "GPU-0", 11 * 2**30)
NEW_WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
OLD_WHEEL = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def facts(capability=(6, 1), architectures=OLD_WHEEL, fault=None, **changes):
    device = {"name": PASCAL.name, "capability": list(capability), "fault": fault}
    return {
        "torch": "2.6.0",
        "torchvision": "0.21.0",
        "cuda": "12.6",
        "architectures": architectures,
        "available": True,
        "devices": [device],
        "cpu": "AVX2",
    } | changes


def about_gpu(monkeypatch, torch, present=(PASCAL,)):
    """The finding on the GPU, given what torch says of itself and the GPUs that the driver shows."""

    def read_gpus():
        if isinstance(present, Exception):
            raise present
        return present

    monkeypatch.setattr(MODULE, "read_torch_facts", lambda: torch)
    monkeypatch.setattr("repro.scheduling.gpus.read_gpus", read_gpus)
    monkeypatch.setattr("repro.scheduling.gpus.driver_version", lambda: None)
    first, finding = check_torch()
    assert (first.matter, first.level) == ("torch", "ok")
    return finding


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
def test_a_card_that_torchs_build_does_not_carry_is_an_error(monkeypatch, capability, architectures, level):
    finding = about_gpu(monkeypatch, facts(capability, architectures))
    assert finding.level == level
    assert f"compute capability {capability[0]}.{capability[1]}" in finding.said
    if level == "error":
        install = f"pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}"
        assert install in finding.remedy


@pytest.mark.parametrize(
    ("torch", "present", "environment", "level", "says"),
    [
        (facts(available=False), [], None, "warning", "no NVIDIA GPU found"),
        (facts(available=False), [PASCAL], None, "error", "torch sees no CUDA device"),
        (facts(available=False, cuda=None), [PASCAL], None, "error", "torch sees no CUDA device"),
        (facts(available=False), [PASCAL], "", "warning", "every GPU is hidden"),
        (facts(fault="CUDA error: out of memory"), [PASCAL], None, "error", "fails: CUDA error: out of memory"),
        (facts(), [PASCAL], None, "ok", "a kernel ran; trains in float32"),
        (facts((7, 0)), [PASCAL], None, "ok", "trains in fp16"),
        (facts((8, 0)), [PASCAL], None, "ok", "trains in bf16"),
        (facts(), DeviceError("the driver does not answer"), None, "error", "does not answer"),
    ],
)  # fmt: skip
def test_torch_is_held_against_the_gpus_that_the_driver_shows(
    monkeypatch, torch, present, environment, level, says
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    finding = about_gpu(monkeypatch, torch, present)
    assert finding.level == level
    assert says in finding.said


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError('libcudart.so.12: cannot open')", "failed: OSError: libcudart.so.12: cannot open"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11: no message"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_an_error_with_its_last_words(tmp_path, monkeypatch, code, says):
    (tmp_path / "torch.py").write_text(f"{code}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    (finding,) = check_torch()
    assert (finding.matter, finding.level, finding.said) == ("torch", "error", f"importing torch {says}")


def test_a_torch_that_hangs_is_an_error(monkeypatch):
    monkeypatch.setattr(MODULE, "_TORCH_TIMEOUT", 0.01)
    (finding,) = check_torch()
    assert (finding.level, "did not answer within 0.01 s" in finding.said) == ("error", True)


def test_a_folder_on_a_read_only_file_system_is_an_error(tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        finding = next(check_places(smoke_context(monkeypatch, mount / "results")))
    finally:
        subprocess.run(["umount", mount], check=True)
    assert (finding.matter, finding.level) == ("results", "error")
    assert "--results DIR" in finding.remedy


def test_a_disk_without_room_for_the_runs_and_one_without_locks_are_errors(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("fcntl.flock", no_locks)
    room, locks = list(check_places(smoke_context(monkeypatch, tmp_path)))[:2]
    assert (room.level, locks.level) == ("error", "error")
    assert "72 runs need about 0.4 GB" in room.said
    assert "Operation not supported" in locks.said


def test_places_and_locks_are_fine_in_a_fresh_folder_and_nothing_is_left_there(tmp_path, monkeypatch):
    findings = list(check_places(smoke_context(monkeypatch, tmp_path)))
    assert [(each.matter, each.level) for each in findings] == [
        (matter, "ok") for matter in ("results", "locks", "figures", "data")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def paper(tmp_path, monkeypatch) -> Context:
    """The preset paper with a data folder that is empty."""
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("paper", results=tmp_path / "results", data=tmp_path / "my data")


def commands(remedy: str) -> list[list[str]]:
    return [shlex.split(command) for command in remedy.split("`")[1::2]]


def test_without_any_data_set_nothing_can_be_trained_and_the_remedies_take_the_folder(paper):
    findings = {each.matter: each for each in check_data(paper, hash_them=True)}
    assert [(each.level, "nothing can be trained" in each.said) for each in findings.values()] == [
        ("error", True)
    ] * 3
    folder = ["--data-dir", str(paper.project.data)]
    assert commands(findings["data: cifar100"].remedy) == [
        ["repro", "data", "fetch", "cifar100", *folder],
        ["repro", "data", "prepare", "cifar100", *folder],
    ]
    assert "--lists" in findings["data: facescrub"].remedy


def test_a_set_is_an_error_where_it_is_damaged_and_a_warning_where_it_is_missing(paper, monkeypatch):
    def verify(name, folder):
        if name == "facescrub":
            raise DataCorruptError("train.npy differs")

    states = [
        DataSetState("cifar100", "CIFAR-100", "prepared", 60_000, 100, 1, ""),
        DataSetState("tiny-imagenet", "TinyImageNet", "fetched", None, None, 1, ""),
        DataSetState("facescrub", "FaceScrub", "prepared", 9, 3, 1, ""),
        DataSetState("mine", "Mine", "corrupt", None, None, 1, "manifest.json is torn"),
    ]
    monkeypatch.setattr("repro.data.listing", lambda folder: states)
    monkeypatch.setattr("repro.data.verify", verify)
    findings = list(check_data(paper, hash_them=True))
    assert [(each.level, each.said) for each in findings] == [
        ("ok", "60,000 images of 100 classes, every array as its manifest says"),
        ("warning", "fetched, its runs are left out"),
        ("error", "train.npy differs"),
        ("error", "manifest.json is torn"),
    ]
    assert [command[1:4] for command in commands(findings[1].remedy)] == [
        ["data", "prepare", "tiny-imagenet"]
    ]
    assert [command[3:6] for command in commands(findings[3].remedy)] == [["mine", "--from", "FOLDER"]]


def test_the_smoke_preset_needs_no_data(tmp_path, monkeypatch):
    (finding,) = check_data(smoke_context(monkeypatch, tmp_path), hash_them=True)
    assert (finding.level, finding.said) == ("ok", "the preset smoke generates its own")


def test_an_extra_that_is_not_installed_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (finding,) = check_executor("ray")
    assert (finding.level, finding.remedy) == ("error", f"`pip install --editable '{ROOT}[ray]'`")
    assert list(check_executor("local")) == []


def test_the_command_prints_a_line_a_matter_and_exits_3_on_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    argv = ["doctor", "--preset", "smoke", "--results", str(tmp_path)]
    fine = CliRunner().invoke(main, argv)
    assert fine.exit_code == 0, fine.output
    assert fine.output.splitlines()[0].startswith("ok      Python")
    monkeypatch.setattr(MODULE, "read_torch_facts", lambda: facts(available=False))
    monkeypatch.setenv("PATH", str(tmp_path))
    wrong = CliRunner().invoke(main, [*argv, "--executor", "slurm", "--json"])
    assert wrong.exit_code == 3
    found = json.loads(wrong.stdout)
    assert [entry["matter"] for entry in found if entry["level"] == "error"][-1] == "slurm"
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    nothing = CliRunner().invoke(main, ["doctor", "--quick", "--results", str(tmp_path)])
    assert nothing.exit_code == 3, nothing.output
