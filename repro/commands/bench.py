"""`repro bench`: how fast training is on this machine, beside its roofline and beside two other loops."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch

from repro.benchmark.ours import measuring_seconds
from repro.benchmark.processes import OURS, PLAIN, TUNED, Program, started
from repro.benchmark.programs import used_precision
from repro.benchmark.rates import Rates, measure_rates
from repro.benchmark.result import BenchResult, Found, Machine, at_once
from repro.benchmark.roofline import count_kernels, roofline_seconds
from repro.benchmark.subject import SETS, Subject, make_subject
from repro.benchmark.windows import measure
from repro.commands.context import Context
from repro.commands.provenance import device_name, git_state
from repro.commands.techniques import COMPILING_PAYS_FROM, choose_techniques, unmeasured
from repro.commands.train import choose_device
from repro.errors import UsageError
from repro.system import busy_share, memory_bytes, usable_cores
from repro.training.loop import build
from repro.training.precision import Precision, choose_precision
from repro.training.techniques import Techniques

_BUSY_SECONDS = 2.0
"""How long it is watched, before anything of ours runs, whether other programs use the machine."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how long: `rounds` windows of `seconds` each, of every program in turn.

    `against` names the rivals, `packed` how many runs at once are measured beside one (None: 2, and on a
    GPU 4).
    """

    networks: tuple[str, ...] = ("resnet18",)
    sizes: tuple[int, ...] = (32,)
    losses: tuple[str, ...] = ("scaled-bn-m1",)
    against: tuple[str, ...] = (PLAIN, TUNED)
    packed: tuple[int, ...] | None = None
    rounds: int = 5
    seconds: float = 3.0
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()


def bench(context: Context, options: BenchOptions, say: Callable[[str], None]) -> BenchResult:
    """Measures every combination of networks, sizes and losses; `say` hears how far it is.

    On a busy machine too, and however the windows vary: the result then says that it is not trustworthy.
    """
    busy = busy_share(_BUSY_SECONDS)
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    techniques = choose_techniques(
        device, COMPILING_PAYS_FROM, options.switch_on, options.switch_off, options.deterministic
    )
    subjects = [
        _subject(context, network, size, loss)
        for network in options.networks
        for size in options.sizes
        for loss in options.losses
    ]
    load = os.getloadavg()[0]
    say(f"measuring {device_name(device)}")
    rates = measure_rates(device, precision.name)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the programs' processes need the memory
    machine = Machine(
        device=device_name(device),
        device_kind=device.type,
        precision=precision.name,
        threads=threads,
        cores=usable_cores(),
        memory_bytes=_memory(device),
        matmul=rates.matmul,
        copy=rates.copy,
        load=load,
        busy=busy,
        commit=git_state(context.project.root)[0],
        versions=_versions(),
    )
    for doubt in machine.doubts():
        say(f"not trustworthy: {doubt}")
    found = [
        _Bench(context, subject, options, precision, techniques, threads, rates, say).run()
        for subject in subjects
    ]
    return BenchResult(_command(), machine, options.rounds, options.seconds, tuple(found))


def _subject(context: Context, network: str, size: int, loss: str) -> Subject:
    if size not in SETS:
        raise UsageError(f"--size: expected one of {', '.join(map(str, SETS))}, got {size}")
    name, _ = SETS[size]
    run = context.registry.parse(f"{name}/{network}/{loss}/seed0")
    return make_subject(run.id, context.registry.config(run, context.preset), size, context.project.data)


@dataclass(frozen=True)
class _Bench:
    """One subject's measurements: all programs in turn, then what measuring costs."""

    context: Context
    subject: Subject
    options: BenchOptions
    precision: Precision
    techniques: Techniques
    threads: int
    rates: Rates
    say: Callable[[str], None]

    def run(self) -> Found:
        manifest, config = self.subject.data.manifest, self.subject.config
        network, _ = build(config, manifest.image_size, manifest.classes)
        precision = used_precision(self.subject, self.precision, self.techniques)
        batch = config.recipe.batch_size
        kernels = count_kernels(network, batch, manifest.image_size, precision.name)
        notes: list[str] = []
        with started(self.programs(), notes, self._say) as running:
            preparing = {name: program.prepared.seconds for name, program in running.items()}
            windows = {name: program.window for name, program in running.items()}
            speeds = measure(windows, self.options.rounds, self.options.seconds, self._say)
        measuring = measuring_seconds(self.subject, precision)
        return Found(
            name=self.subject.name,
            network=config.network,
            image_size=manifest.image_size,
            loss=config.loss,
            batch_size=batch,
            data="generated" if self.subject.generated else manifest.title,
            techniques=self._used(precision),
            unmeasured=unmeasured(precision.device, self.techniques),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            gflop_an_image=sum(kernel.flop for kernel in kernels) / batch / 1e9,
            megabytes_an_image=sum(kernel.bytes for kernel in kernels) / batch / 1e6,
            roofline=batch / roofline_seconds(kernels, self.rates),
            speeds=speeds,
            preparing=preparing,
            packed_how=self._packed_how(),
            measuring=measuring,
            notes=tuple(dict.fromkeys(notes)),
        )

    def programs(self) -> dict[str, Program]:
        """What is measured, by name: ours as `repro train` starts it, and the others as a script starts."""
        ours = Program(
            kind=OURS,
            run_id=self.subject.run_id,
            config=self.subject.config,
            image_size=self.subject.data.manifest.image_size,
            data_dir=self.context.project.data,
            device=str(self.precision.device),
            precision=self.precision.name,
            threads=self.threads,
            techniques=self.techniques.names(),
            deterministic=self.options.deterministic,
            keeps_freed_memory=True,
        )
        programs = {OURS: ours}
        for copies in self._copies():
            programs[at_once(copies)] = (
                replace(ours, runs=copies)
                if self._on_gpu
                else replace(ours, processes=copies, threads=max(1, self.threads // copies))
            )
        for name in ("compile", "cuda-graph"):
            if name in self.techniques.names():
                without = self.techniques.switched(off=[name]).names()
                programs[f"ours, no {name}"] = replace(ours, techniques=without)
        for kind in self.options.against:
            programs[kind] = replace(
                ours,
                kind=kind,
                threads=self.options.threads,
                techniques=(),
                deterministic=False,
                keeps_freed_memory=False,
            )
        return programs

    @property
    def _on_gpu(self) -> bool:
        return self.precision.device.type == "cuda"

    def _copies(self) -> tuple[int, ...]:
        if self.options.packed is not None:
            return self.options.packed
        return (2, 4) if self._on_gpu else (2,)

    def _packed_how(self) -> str:
        if self._on_gpu:
            return "one process, a stream and a graph per run"
        return f"a process per run, {self.threads} threads shared"

    def _say(self, line: str) -> None:
        self.say(f"{self.subject.name}: {line}")

    def _used(self, precision: Precision) -> tuple[str, ...]:
        used = self.techniques
        if precision.memory_format != torch.channels_last:
            used = used.switched(off=["channels-last"])
        return ("resident-data", precision.name, *used.names())


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes()


def _versions() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    versions["python"] = sys.version.split()[0]
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        versions["driver"] = _driver()
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _command() -> str:
    return shlex.join(["repro", *sys.argv[1:]])
