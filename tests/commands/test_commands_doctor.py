"""`repro doctor`: what it finds wrong, and what it tells a person to do."""

import json
import os
import shlex
import shutil
import sys

import pytest
from click.testing import CliRunner
from smoke_project import ROOT, smoke_context

from repro.cli import main
from repro.cli.context import Context
from repro.cli.doctor import OLD_CARDS_INDEX, check_data, check_executor, check_places, check_torch
from repro.data import DataSetState
from repro.errors import DataCorruptError, DeviceError
from repro.gpus import Gpu

pytestmark = pytest.mark.integration  # torch is asked in a process of its own
MODULE = sys.modules["repro.cli.doctor"]  # as an attribute, the command of that name hides it
PASCAL = Gpu(0, "NVIDIA GeForce GTX 1080 Ti", "GPU-0", 11 * 2**30)
NEW_WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
OLD_WHEEL = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def facts(capability=(6, 1), architectures=OLD_WHEEL, fault=None, available=True):
    """What torch says of itself and of one card."""
    device = {"name": PASCAL.name, "capability": list(capability), "fault": fault}
    versions = {"torch": "2.6.0", "torchvision": "0.21.0", "cuda": "12.6", "cpu": "AVX2"}
    return versions | {"architectures": architectures, "available": available, "devices": [device]}


HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("torch", "gpus", "environment", "level", "says"),
    [
        (facts((6, 1), NEW_WHEEL), [PASCAL], {}, "error", "capability 6.1: this torch carries no code"),
        (facts((6, 1), [*NEW_WHEEL, "compute_60"]), [PASCAL], {}, "ok", "a kernel ran; trains in float32"),
        (facts((6, 1)), [PASCAL], {}, "ok", "trains in float32"),
        (facts((7, 5), []), [PASCAL], {}, "error", "carries no code for it (only none)"),
        (facts((9, 0), ["sm_90a"]), [PASCAL], {}, "ok", "trains in bf16"),
        (facts((12, 0), ["sm_90", "compute_90"]), [PASCAL], {}, "ok", "trains in bf16"),
        (facts((12, 0), ["sm_90"]), [PASCAL], {}, "error", "carries no code"),
        (facts(fault="CUDA error: out of memory"), [PASCAL], {}, "error", "fails: CUDA error: out of memory"),
        (facts(available=False), [], {}, "warning", "no NVIDIA GPU found"),
        (facts(available=False), [PASCAL], {}, "error", "torch sees no CUDA device"),
        (facts(available=False), [PASCAL], HIDDEN, "warning", "every GPU is hidden"),
        (facts(), DeviceError("the driver does not answer"), {}, "error", "does not answer"),
    ],
)  # fmt: skip
def test_torch_is_held_against_the_gpus_that_the_driver_shows(
    monkeypatch, torch, gpus, environment, level, says
):
    def read_gpus():
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(MODULE, "read_torch_facts", lambda: torch)
    monkeypatch.setattr("repro.gpus.read_gpus", read_gpus)
    monkeypatch.setattr("repro.gpus.driver_version", lambda: None)
    first, finding = check_torch()
    assert (first.matter, first.level, finding.level) == ("torch", "ok", level)
    assert says in finding.said
    if "carries no code" in says:
        command = f"pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}"
        assert command in finding.remedy


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError('libcudart.so.12: cannot open')", "failed: OSError: libcudart.so.12: cannot open"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11: no message"),
        ("import time\ntime.sleep(60)", "did not answer within 2 s"),
    ],
)
def test_a_torch_that_fails_dies_or_hangs_is_an_error(tmp_path, monkeypatch, code, says):
    (tmp_path / "torch.py").write_text(f"{code}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(MODULE, "_TORCH_TIMEOUT", 2.0 if "sleep" in code else 60.0)
    (finding,) = check_torch()
    assert (finding.matter, finding.level) == ("torch", "error")
    assert says in finding.said


def test_places_that_cannot_be_written_lack_room_or_locks_are_errors(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    context = smoke_context(monkeypatch, tmp_path)
    fine = list(check_places(context))
    assert [(each.matter, each.level) for each in fine] == [
        (matter, "ok") for matter in ("results", "locks", "figures", "data")
    ]
    assert list(tmp_path.iterdir()) == []
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("fcntl.flock", no_locks)
    room, locks = list(check_places(context))[:2]
    assert (room.level, locks.level) == ("error", "error")
    assert "72 runs need about " in room.said
    assert "Operation not supported" in locks.said
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    results = next(check_places(context))
    assert (results.level, results.said) == ("error", f"{tmp_path} cannot be written")
    assert "--results DIR" in results.remedy


@pytest.fixture
def paper(tmp_path, monkeypatch) -> Context:
    """The preset paper with a data folder that is empty."""
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("paper", results=tmp_path / "results", data=tmp_path / "my data")


def commands(remedy: str) -> list[list[str]]:
    return [shlex.split(command)[1:] for command in remedy.split("`")[1::2]]


def test_without_any_data_set_nothing_can_be_trained(paper):
    findings = list(check_data(paper, hash_them=True))
    assert [(each.level, each.said) for each in findings] == [
        ("error", "missing, so nothing can be trained")
    ] * 3
    assert commands(findings[0].remedy) == [["data", "fetch", "cifar100"], ["data", "prepare", "cifar100"]]
    assert "--lists" in findings[2].remedy


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
    assert [words[:3] for words in commands(findings[1].remedy)] == [["data", "prepare", "tiny-imagenet"]]
    assert [words[2:5] for words in commands(findings[3].remedy)] == [["mine", "--from", "FOLDER"]]


def test_the_command_prints_a_line_a_matter_and_exits_3_on_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    argv = ["doctor", "--preset", "smoke", "--results", str(tmp_path)]
    fine = CliRunner().invoke(main, argv)
    assert fine.exit_code == 0, fine.output
    assert fine.output.splitlines()[0].startswith("ok      Python")
    assert "the preset smoke trains on handwritten digits (scikit-learn)" in fine.output
    monkeypatch.setattr(MODULE, "read_torch_facts", lambda: facts(available=False))
    monkeypatch.setenv("PATH", str(tmp_path))
    wrong = CliRunner().invoke(main, [*argv, "--executor", "slurm", "--json"])
    errors = [each["matter"] for each in json.loads(wrong.stdout) if each["level"] == "error"]
    assert (wrong.exit_code, errors[-1]) == (3, "slurm")
    folder = str(tmp_path / "my data")
    nothing = CliRunner().invoke(
        main, ["doctor", "--quick", "--results", str(tmp_path), "--data-dir", folder]
    )
    assert nothing.exit_code == 3, nothing.output
    assert f"`repro data prepare cifar100 --data-dir '{folder}'`" in nothing.output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (finding,) = check_executor("ray")
    assert finding.remedy == f"`pip install --editable '{ROOT}[ray]'`"
