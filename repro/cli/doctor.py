"""`repro doctor`: checks whether this machine is ready to train; changes nothing."""

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.options import JSON, places, with_own_options
from repro.errors import DataCorruptError, DataMissingError, DeviceError, ReproError, SetupError, counted

if TYPE_CHECKING:
    from repro.cli.context import Context

_SOURCE = Path(__file__).parents[2]  # with run_all.sh, where the package was not installed as a wheel
_INSTALL = f"`{shlex.quote(str(_SOURCE / 'run_all.sh'))} --install-only`"
OLD_CARDS_INDEX = "https://download.pytorch.org/whl/cu126"
_OLD_CARDS_TORCH = f"`pip install --force-reinstall torch torchvision --index-url {OLD_CARDS_INDEX}`"
_ENOUGH_MEMORY = 6 * 2**30  # bytes; one run holds torch and its data set, about 3 GB, TinyImageNet 4
_TORCH_TIMEOUT = 180.0  # seconds that torch may take to be imported and to run a kernel on each GPU
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the output; `remedy` says what to do and is empty where nothing is wrong."""

    matter: str
    level: Literal["ok", "warning", "error"]
    said: str
    remedy: str = ""


@click.command()
@places
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True,
              help="Check what this executor needs, too.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Do not hash the data sets.")
@JSON
def doctor(context: "Context", executor: str, quick: bool, as_json: bool) -> None:
    """Check this machine: Python, torch against the GPU, memory, disk, folders, data sets.

    Each line is ok, a warning or an error with what to do about it. The exit code is 3 if one is an error,
    for example if no run can be trained.
    """
    findings = []
    for finding in examine(context, executor, hash_data=not quick):
        finding = replace(finding, remedy=with_own_options(finding.remedy))
        findings.append(finding)
        if not as_json:
            mark = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
            click.echo(f"{mark}{click.style(f'{finding.matter:<21} ', bold=True)}{finding.said}")
            if finding.remedy:
                click.echo(f"{'':29} → {finding.remedy}")
    errors, warnings = (sum(each.level == level for each in findings) for level in ("error", "warning"))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        click.echo(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}")
    sys.exit(SetupError.exit_code if errors else 0)


def examine(context: "Context", executor: str, hash_data: bool) -> Iterator[Finding]:
    """Every finding, what others depend on first."""
    yield from check_python()
    yield from check_torch()
    yield from check_places(context)
    yield from check_data(context, hash_data)
    yield from check_executor(executor)


def check_python() -> Iterator[Finding]:
    """This Python, every required package against its lower bound, and main memory."""
    from configparser import ConfigParser

    from repro.system import memory_bytes

    yield Finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")
    configuration = ConfigParser()
    configuration.read(_SOURCE / "setup.cfg")
    # Without a source tree, what the installed package says; its extras are behind a semicolon.
    required = configuration.get("options", "install_requires", fallback="") or "\n".join(
        metadata.requires("repro") or []
    )
    unmet = []
    for name, least in re.findall(r"^([\w-]+)\s*>=\s*([\d.]+)$", required, re.MULTILINE):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{name} is missing")
            continue
        number, bound = ([int(part) for part in re.findall(r"\d+", text)[:3]] for text in (found, least))
        if number < bound:
            unmet.append(f"{name} {found} is older than {least}")
    if unmet:
        remedy = f"{_INSTALL}, or `pip install --editable {shlex.quote(str(_SOURCE))}`"
        yield Finding("packages", "error", "; ".join(unmet), remedy)
    else:
        yield Finding("packages", "ok", "all installed, none older than its lower bound")
    memory = memory_bytes()
    level: Literal["ok", "warning"] = "ok" if memory >= _ENOUGH_MEMORY else "warning"
    remedy = "" if level == "ok" else "fewer runs at once may fit than there are cores or GPUs"
    yield Finding("memory", level, f"{memory / 2**30:.1f} GiB of main memory", remedy)


def check_torch() -> Iterator[Finding]:
    """torch's build against the GPUs that the driver shows."""
    from repro import gpus
    from repro.system import usable_cores

    try:
        facts = read_torch_facts()
    except SetupError as error:
        yield Finding("torch", "error", str(error), f"{_INSTALL} installs a torch that fits")
        return
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    yield Finding("torch", "ok", f"{facts['torch']}, {build}; torchvision {facts['torchvision']}")
    if driver := gpus.driver_version():
        yield Finding("driver", "ok", f"NVIDIA {driver}")
    try:
        present = gpus.read_gpus()
    except DeviceError as error:
        yield Finding("GPU", "error", str(error))
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present:
        said = f"no NVIDIA GPU found: runs train on the CPU ({usable_cores()} cores, {facts['cpu']})"
        remedy = "enough for the presets smoke and quick; the paper's recipe wants a GPU"
        yield Finding("GPU", "warning", said, remedy)
    elif facts["available"]:
        for device in facts["devices"]:
            yield judge_device(device, facts["architectures"])
    elif hidden is not None and hidden.strip() in ("", "-1"):
        said = f"CUDA_VISIBLE_DEVICES is {hidden!r}: every GPU is hidden"
        yield Finding("GPU", "warning", said, "`unset CUDA_VISIBLE_DEVICES` to train on a GPU")
    else:
        remedy = f"install a torch with CUDA: {_INSTALL}"
        if facts["cuda"]:
            remedy = f"update the NVIDIA driver, or install a torch for an older CUDA: {_OLD_CARDS_TORCH}"
        names = ", ".join(gpu.name for gpu in present)
        yield Finding("GPU", "error", f"the driver shows {names}, torch sees no CUDA device", remedy)


def judge_device(device: Mapping[str, Any], architectures: Sequence[str]) -> Finding:
    """One GPU against the architectures that torch's build carries: `sm_61` runs what `sm_60` or 61 hold.

    `device` is {"name", "capability": [major, minor], "fault"} as `torch_facts` gives it.
    """
    major, minor = device["capability"]
    name = f"{device['name']}, compute capability {major}.{minor}"
    carried = re.findall(r"\b(sm|compute)_(\d+)(\d)[a-z]?\b", " ".join(architectures))
    # Machine code of the same generation and not newer runs; PTX of any older one is compiled by the driver.
    fits = any(
        (kind == "sm" and int(generation) == major and int(step) <= minor)
        or (kind == "compute" and (int(generation), int(step)) <= (major, minor))
        for kind, generation, step in carried
    )
    if not fits:
        said = f"{name}: this torch carries no code for it (only {', '.join(architectures) or 'none'})"
        remedy = f"{_OLD_CARDS_TORCH}, or let {_INSTALL} choose"
        return Finding("GPU", "error", said, remedy)
    if device["fault"]:
        return Finding("GPU", "error", f"{name}: a kernel fails: {device['fault']}", "see `nvidia-smi`")
    precision = "bf16" if major >= 8 else "fp16 with a scaler" if major == 7 else "float32"
    return Finding("GPU", "ok", f"{name}: a kernel ran; trains in {precision}")


def read_torch_facts() -> dict[str, Any]:
    """What `torch_facts` returns in a process of its own; SetupError says why it returned nothing.

    A torch that crashes while it is imported, or a device that hangs, is then one finding of the doctor and
    not its end.
    """
    if util.find_spec("torch") is None:
        raise SetupError("torch is not installed")
    code = "import json; from repro.cli.doctor import torch_facts; print(json.dumps(torch_facts()))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=_TORCH_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        hangs = f"torch did not answer within {_TORCH_TIMEOUT:g} s: a device that hangs? See `nvidia-smi`"
        raise SetupError(hangs) from None
    if done.returncode:
        ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"importing torch {ended}: {last}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def torch_facts() -> dict[str, Any]:
    """torch's versions, its architectures, and each device: its name, capability and why no kernel runs."""
    import torch
    import torchvision

    def fault(index: int) -> str | None:
        try:
            total = torch.ones(4, device=f"cuda:{index}").add(1).sum().item()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the doctor was asked to find
            return (str(error).strip() or repr(error)).splitlines()[0]
        return None if total == 8.0 else f"it added four ones and four ones to {total}"

    available = torch.cuda.is_available()
    devices = []
    for index in range(torch.cuda.device_count() if available else 0):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        devices.append({"name": name, "capability": capability, "fault": fault(index)})
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "available": available,
        "devices": devices,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def check_places(context: "Context") -> Iterator[Finding]:
    """The folders of results, figures and data: writable, with room for the preset's runs, and lockable."""
    from repro.scheduling.estimate import footprint, format_bytes

    project, runs = context.project, context.runs()
    needed = footprint([context.registry.config(run, context.preset) for run in runs], at_once=1).total
    for matter, folder, elsewhere in (
        ("results", project.results, "use --results DIR"),
        ("figures", project.figures, "use `repro figures --output DIR`"),
        ("data", project.data, "use --data-dir DIR"),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        room = f"{free / 1e9:,.1f} GB free"
        if not os.access(existing, os.W_OK | os.X_OK):
            said = f"{existing} cannot be written"
            yield Finding(matter, "error", said, f"make it writable, or {elsewhere}")
        elif matter == "results" and free < needed:
            said = (
                f"{folder}: {room}, {len(runs)} runs need about {format_bytes(needed)} with their checkpoints"
            )
            yield Finding(matter, "error", said, f"free some space, or {elsewhere} on another disk")
        else:
            yield Finding(matter, "ok", f"{folder}: can be written, {room}")
        if matter == "results" and os.access(existing, os.W_OK | os.X_OK):
            try:
                with tempfile.TemporaryFile(dir=existing) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield Finding("locks", "ok", f"{existing}: kernel locks work")
            except OSError as error:
                said = f"{existing}: no file locks ({error.strerror or error})"
                yield Finding("locks", "error", said, f"{elsewhere} on another file system")


def check_data(context: "Context", hash_them: bool) -> Iterator[Finding]:
    """Each data set that the preset's runs need, and each other one that is here: whether it is intact.

    The runs of a set that is missing are left out: a warning, and an error where all of them are.
    """
    from repro.cli.context import data_commands
    from repro.data import digits, listing, verify

    if context.preset.recipe.data == "digits":
        try:
            digits.read()
            yield Finding("data sets", "ok", f"the preset {context.preset.name} trains on {digits.TITLE}")
        except (DataMissingError, DataCorruptError) as error:
            yield Finding("data sets", "error", str(error), digits.INSTALL)
        return
    states = {state.name: state for state in listing(context.project.data)}
    needed = dict.fromkeys(run.cell.dataset for run in context.runs())
    nothing = not any(name in states and states[name].state == "prepared" for name in needed)
    for name in dict.fromkeys([*states, *needed]):
        state = states.get(name)
        matter, found = f"data: {name}", state.state if state else "missing"
        remedy = data_commands(name, fetch=found == "missing")
        try:
            if state is None or found in ("missing", "fetched"):
                left_out = f"{found}, {'so nothing can be trained' if nothing else 'its runs are left out'}"
                if name in needed:
                    yield Finding(matter, "error" if nothing else "warning", left_out, remedy)
                continue
            if found == "corrupt":
                raise DataCorruptError(state.detail)
            said = f"{state.images:,} images of {state.classes} classes"
            if hash_them:
                verify(name, context.project.data)
                said += ", every array as its manifest says"
            yield Finding(matter, "ok", said)
        except ReproError as error:
            yield Finding(matter, "error", str(error), remedy)


def check_executor(executor: str) -> Iterator[Finding]:
    """What `--executor slurm` or `ray` needs: Slurm's commands, Ray's package."""
    if executor == "ray":
        if util.find_spec("ray") is None:
            remedy = f"`pip install --editable {shlex.quote(f'{_SOURCE}[ray]')}`"
            yield Finding("ray", "error", "ray is not installed", remedy)
        else:
            yield Finding("ray", "ok", f"ray {metadata.version('ray')}")
    if executor == "slurm":
        missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            remedy = "run this on a login node, or load the module that has them"
            yield Finding("slurm", "error", f"not found: {', '.join(missing)}", remedy)
            return
        asked = subprocess.run(["sinfo", "--noheader", "--format=%P %a %D"], capture_output=True, text=True)
        if asked.returncode:
            said = (asked.stderr.strip().splitlines() or ["sinfo fails"])[0]
            yield Finding("slurm", "error", said, "is slurmctld running?")
        else:
            partitions = "; ".join(line.strip() for line in asked.stdout.splitlines())
            yield Finding("slurm", "ok", f"partitions (name, state, nodes): {partitions}")
