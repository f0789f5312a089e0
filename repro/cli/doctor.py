"""`repro doctor`: checks whether this machine is ready, one function per matter; changes nothing."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.options import JSON, places
from repro.errors import DeviceError, ReproError, SetupError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.gpus import Gpu

Level = Literal["ok", "warning", "error"]
OLD_CARDS_INDEX = "https://download.pytorch.org/whl/cu126"
_RECORD_BYTES = 60_000
_CHECKPOINT_BYTES = 400_000_000  # two of ResNet-50's: weights, momentum and accumulators in float32
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the check-up; `remedy` says what to do and is empty where all is well."""

    matter: str
    level: Level
    said: str
    remedy: str = ""


@click.command()
@places
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True,
              help="Whose needs to check.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Do not hash the data sets.")
@JSON
def doctor(context: "Context", executor: str, quick: bool, as_json: bool) -> None:
    """Check this machine: Python, torch against the GPU, memory, disk, folders, data sets.

    Each line is ok, a warning or an error with what to do about it; the exit code is 3 if one is an error.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    seen = []
    for finding in examine(context, executor, hash_data=not quick):
        seen.append(finding)
        if as_json:
            continue
        mark = (f"{finding.level:<8}", _COLOURS[finding.level])
        console.print(Text.assemble(mark, (f"{finding.matter:<21} ", "bold"), finding.said))
        if finding.remedy:
            console.print(Text(f"{'':8}{'':21} → {finding.remedy}"))
    errors = sum(finding.level == "error" for finding in seen)
    if as_json:
        print(json.dumps([asdict(finding) for finding in seen], indent=1, ensure_ascii=False))
    else:
        warnings = sum(finding.level == "warning" for finding in seen)
        console.print(
            f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
        )
    sys.exit(SetupError.exit_code if errors else 0)


def examine(context: "Context", executor: str, hash_data: bool) -> Iterator[Finding]:
    """Every finding, in the order in which a person would want to know."""
    yield from check_python()
    yield from check_torch(read_torch_facts)
    yield from check_driver()
    yield from check_memory()
    yield from check_places(context)
    yield from check_data(context, hash_data)
    yield from check_executor(executor)


def check_python() -> Iterator[Finding]:
    """This Python, and every package that the project asks for, against its lower bound."""
    from importlib.metadata import PackageNotFoundError, version

    yield Finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")
    unmet = []
    for requirement in _requirements():
        name, least = re.match(r"([\w-]+)\s*(?:>=\s*([\w.]+))?", requirement).groups()  # type: ignore[union-attr]
        if "extra ==" in requirement:
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            unmet.append(f"{name} is missing")
            continue
        if least and _numbers(found) < _numbers(least):
            unmet.append(f"{name} {found} is older than {least}")
    if unmet:
        remedy = "`./run_all.sh --install-only`, or `pip install --editable .`"
        yield Finding("packages", "error", "; ".join(unmet), remedy)
    else:
        yield Finding("packages", "ok", "all there, none older than its lower bound")


def check_torch(
    read_facts: Callable[[], Mapping[str, Any] | str], read: "Callable[[], Sequence[Gpu]] | None" = None
) -> Iterator[Finding]:
    """torch and its build against the GPUs that the driver shows; `read_facts` gives facts or a complaint.

    `read` stands in for `repro.gpus.read_gpus`.
    """
    from repro.gpus import read_gpus
    from repro.system import usable_cores

    facts = read_facts()
    if isinstance(facts, str):
        yield Finding("torch", "error", facts, "`./run_all.sh --install-only` installs a torch that fits")
        return
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    yield Finding("torch", "ok", f"{facts['torch']}, {build}; torchvision {facts['torchvision']}")
    try:
        present = (read or read_gpus)()
    except DeviceError as error:
        yield Finding("GPU", "error", str(error), "")
        return
    if not present:
        yield Finding(
            "GPU",
            "warning",
            f"no NVIDIA GPU found: runs train on the CPU ({usable_cores()} cores, {facts['cpu']})",
            "enough for the presets smoke and quick; the paper's recipe wants a GPU",
        )
        return
    yield from _judge_gpus(facts, present)


def _judge_gpus(facts: Mapping[str, Any], present: "Sequence[Gpu]") -> Iterator[Finding]:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not facts["available"]:
        if hidden is not None and hidden.strip() in ("", "-1"):
            yield Finding("GPU", "warning", f"CUDA_VISIBLE_DEVICES is {hidden!r}: every GPU is hidden",
                          "unset it to train on a GPU")  # fmt: skip
            return
        remedy = (
            "install a torch with CUDA: `./run_all.sh --install-only`"
            if not facts["cuda"]
            else "update the NVIDIA driver, or install a torch for an older CUDA: "
            f"`pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}`"
        )
        names = ", ".join(gpu.name for gpu in present)
        yield Finding("GPU", "error", f"the driver shows {names}, torch sees no CUDA device", remedy)
        return
    for device in facts["devices"]:
        yield judge_device(device, facts["architectures"])


def judge_device(device: Mapping[str, Any], architectures: Sequence[str]) -> Finding:
    """One GPU against the architectures that torch's build carries: `sm_61` runs what `sm_60` or 61 hold.

    `device` is {"name", "capability": [major, minor], "fault"} as `torch_facts` gives it.
    """
    major, minor = device["capability"]
    name = f"{device['name']}, compute capability {major}.{minor}"
    carried = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", text) for text in architectures]
    # Machine code of the same generation and not newer runs; PTX of any older one is compiled by the driver.
    fits = any(
        (kind == "sm" and int(generation) == major and int(step) <= minor)
        or (kind == "compute" and (int(generation), int(step)) <= (major, minor))
        for kind, generation, step in (match.groups() for match in carried if match)
    )
    if not fits:
        return Finding(
            "GPU",
            "error",
            f"{name}: this torch carries no code for it (only {', '.join(architectures) or 'none'})",
            f"`pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}`, "
            "or let `./run_all.sh --install-only` choose",
        )
    if device["fault"]:
        return Finding("GPU", "error", f"{name}: a kernel fails: {device['fault']}", "see `nvidia-smi`")
    precision = "bf16" if major >= 8 else "fp16 with a scaler" if major == 7 else "float32"
    return Finding("GPU", "ok", f"{name}: a kernel ran; trains in {precision}")


def read_torch_facts(timeout: float = 180.0) -> Mapping[str, Any] | str:
    """What `torch_facts` returns in a process of its own, or why there is nothing.

    A torch that crashes while it is imported, or a device that hangs, is then something to report and not the
    end of the doctor.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    code = "import json; from repro.cli.doctor import torch_facts; print(json.dumps(torch_facts()))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"torch did not answer within {timeout:g} s: a device that hangs? See `nvidia-smi`"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        return f"importing torch {ended}: {lines[-1] if lines else 'without a word'}"
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def torch_facts() -> dict[str, Any]:
    """torch's versions, its architectures, and the name, capability and fault of each device."""
    import torch
    import torchvision

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
            devices.append({"name": name, "capability": list(capability), "fault": _fault(index)})
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "available": torch.cuda.is_available(),
        "devices": devices,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _fault(index: int) -> str | None:
    """Why a kernel cannot be run on the device; None where one was."""
    import torch

    try:
        ones = torch.ones(4, device=f"cuda:{index}")
        total = (ones + ones).sum().item()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the doctor was asked to find
        return (str(error).strip() or repr(error)).splitlines()[0]
    return None if total == 8.0 else f"it added four ones and four ones to {total}"


def check_driver() -> Iterator[Finding]:
    """The NVIDIA driver's version, where there is a driver."""
    path = Path("/sys/module/nvidia/version")
    if path.is_file():
        yield Finding("driver", "ok", f"NVIDIA {path.read_text().strip()}")


def check_memory() -> Iterator[Finding]:
    """Main memory: a run holds its data set and torch, about 3 GB, TinyImageNet 4."""
    from repro.system import memory_bytes

    whole = memory_bytes()
    said = f"{whole / 2**30:.1f} GiB of main memory"
    if whole < 6 * 2**30:
        yield Finding("memory", "warning", said, "fewer runs at once may fit than there are cores or GPUs")
    else:
        yield Finding("memory", "ok", said)


def check_places(context: "Context") -> Iterator[Finding]:
    """The folders of results, figures and data: writable, with room for the preset's runs, and lockable."""
    project = context.project
    runs = len(context.runs())
    needed = runs * _RECORD_BYTES + _CHECKPOINT_BYTES
    for matter, folder, option in (
        ("results", project.results, "--results"),
        ("figures", project.figures, "--output"),
        ("data", project.data, "--data-dir"),
    ):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        room = f"{free / 1e9:,.1f} GB free"
        if not os.access(there, os.W_OK | os.X_OK):
            remedy = f"make it writable, or use {option} DIR"
            yield Finding(matter, "error", f"{there} cannot be written", remedy)
        elif matter == "results" and free < needed:
            said = f"{folder}: {room}, {runs} runs need about {needed / 1e9:.1f} GB with their checkpoints"
            yield Finding(matter, "error", said, "free some space, or use --results DIR on another disk")
        else:
            yield Finding(matter, "ok", f"{folder}: can be written, {room}")
    yield from _check_locks(project.results)


def _check_locks(folder: Path) -> Iterator[Finding]:
    """Whether the file system of `folder` has kernel locks; a lock file is made and removed to see."""
    from filelock import FileLock, Timeout

    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return
    path = folder / f".doctor-{os.getpid()}"
    lock = FileLock(path)
    elsewhere = "use a folder on another file system"
    try:
        lock.acquire(timeout=5)
        kind = type(lock).__name__
        lock.release()
    except (OSError, NotImplementedError, Timeout) as error:
        yield Finding("locks", "error", f"{folder}: no file locks ({error})", elsewhere)
        return
    finally:
        path.unlink(missing_ok=True)
    if "Soft" in kind:
        yield Finding("locks", "error", f"{folder}: no kernel locks", elsewhere)
    else:
        yield Finding("locks", "ok", f"{folder}: kernel locks work")


def check_data(context: "Context", hash_them: bool) -> Iterator[Finding]:
    """Each data set of the preset's tables: prepared and, where `hash_them`, as its manifest says."""
    from repro.data import listing, verify

    if context.preset.recipe.data == "generated":
        yield Finding("data sets", "ok", f"the preset {context.preset.name} generates its own")
        return
    needed = {table.dataset for table in context.registry.tables if table.of_paper}
    for state in listing(context.project.data):
        matter = f"data: {state.name}"
        if state.state == "prepared":
            said = f"{state.images:,} images of {state.classes} classes"
            try:
                if hash_them:
                    verify(state.name, context.project.data)
                    said += ", every array as its manifest says"
            except ReproError as error:
                yield Finding(matter, "error", str(error), f"`repro data prepare {state.name}`")
                continue
            yield Finding(matter, "ok", said)
        elif state.state == "corrupt":
            yield Finding(matter, "error", state.detail, f"`repro data prepare {state.name}`")
        elif state.name in needed:
            remedy = f"`repro data prepare {state.name}`"
            if state.state == "missing":
                remedy = f"`repro data fetch {state.name} && repro data prepare {state.name}`"
            yield Finding(matter, "warning", f"{state.state}, its runs are left out", remedy)


def check_executor(executor: str) -> Iterator[Finding]:
    """What `--executor slurm` or `ray` needs: Slurm's commands, Ray's package."""
    import importlib.util
    from importlib.metadata import version

    if executor == "ray":
        if importlib.util.find_spec("ray") is None:
            yield Finding("ray", "error", "ray is not installed", "`pip install --editable '.[ray]'`")
        else:
            yield Finding("ray", "ok", f"ray {version('ray')}")
    if executor == "slurm":
        missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            yield Finding("slurm", "error", f"not found: {', '.join(missing)}",
                          "run this on a login node, or load the module that has them")  # fmt: skip
            return
        asked = subprocess.run(["sinfo", "--noheader", "--format=%P %a %D"], capture_output=True, text=True)
        if asked.returncode:
            said = (asked.stderr.strip().splitlines() or ["sinfo fails"])[0]
            yield Finding("slurm", "error", said, "is slurmctld running?")
        else:
            partitions = "; ".join(line.strip() for line in asked.stdout.splitlines())
            yield Finding("slurm", "ok", f"partitions (name, state, nodes): {partitions}")


def _requirements() -> list[str]:
    """What the package needs: by its source tree's `setup.cfg`, else by its installed metadata."""
    from configparser import ConfigParser
    from importlib.metadata import requires

    import repro

    configuration = ConfigParser()
    configuration.read(Path(repro.__file__).parent.parent / "setup.cfg")
    if configuration.get("metadata", "name", fallback="") == "scaled-bn-repro":
        return configuration["options"]["install_requires"].split()
    return requires("scaled-bn-repro") or []


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])
