"""`repro bench`: how fast training is on this machine, beside its roofline and beside two other loops."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch

from repro.benchmark.ours import OwnLoop, measuring_seconds
from repro.benchmark.rates import Rates, measure_rates
from repro.benchmark.result import OURS, PLAIN, TUNED, BenchResult, Found, Machine
from repro.benchmark.rivals import RivalLoop
from repro.benchmark.roofline import count_kernels, roofline_seconds
from repro.benchmark.subject import SETS, Subject, make_subject
from repro.benchmark.windows import Speed, Step, measure
from repro.commands.context import Context
from repro.commands.provenance import device_name, git_state
from repro.commands.techniques import COMPILING_PAYS_FROM, choose_techniques, unmeasured
from repro.commands.train import choose_device
from repro.cores import memory_bytes, usable_cores
from repro.errors import UsageError
from repro.scheduling.probing import ProbeCommand, ProbeFailedError
from repro.scheduling.probing import measure as measure_probes
from repro.scheduling.slots import find_slots
from repro.training.loop import build
from repro.training.precision import Precision, choose_precision
from repro.training.techniques import Techniques


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
    """Measures every combination of networks, sizes and losses; `say` hears how far it is."""
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
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
        commit=git_state(context.project.root)[0],
        versions=_versions(),
    )
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
    """One subject's measurements, in order: alone beside the rivals, packed, what measuring costs."""

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
        precision = self.techniques.layout(self.precision.for_network(network))
        batch = config.recipe.batch_size
        kernels = count_kernels(network, batch, manifest.image_size, precision.name)
        notes: list[str] = []
        preparing: dict[str, float] = {}
        speeds = self._speeds(precision, notes, preparing)
        packed = self._packed(precision, notes)
        measuring = measuring_seconds(self.subject, precision)
        return Found(
            name=self.subject.name,
            network=config.network,
            image_size=manifest.image_size,
            loss=config.loss,
            batch_size=batch,
            data="generated" if self.subject.generated else manifest.title,
            techniques=self._used(precision, notes),
            unmeasured=unmeasured(precision.device, self.techniques),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            gflop_an_image=sum(kernel.flop for kernel in kernels) / batch / 1e9,
            megabytes_an_image=sum(kernel.bytes for kernel in kernels) / batch / 1e6,
            roofline=batch / roofline_seconds(kernels, self.rates),
            speeds=speeds,
            preparing=preparing,
            packed=packed,
            packed_how=self._packed_how(),
            measuring=measuring,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _speeds(
        self, precision: Precision, notes: list[str], preparing: dict[str, float]
    ) -> dict[str, Speed]:
        loops: dict[str, OwnLoop | RivalLoop] = {
            OURS: OwnLoop(self.subject, precision, self.techniques, say=notes.append)
        }
        for name in ("compile", "cuda-graph"):
            if name in self.techniques.names():
                without = self.techniques.switched(off=[name])
                loops[f"ours, no {name}"] = OwnLoop(self.subject, precision, without, say=notes.append)
        if PLAIN in self.options.against:
            contiguous = torch.contiguous_format
            in_float32 = replace(precision, name="fp32", memory_format=contiguous)
            loops[PLAIN] = RivalLoop(self.subject, in_float32, tuned=False)
        if TUNED in self.options.against:
            loops[TUNED] = RivalLoop(self.subject, precision, tuned=True)
        programs: dict[str, Step] = {}
        for name, loop in loops.items():
            self.say(f"{self.subject.name}: preparing {name}")
            programs[name] = loop.start()
            preparing[name] = loop.preparing
            programs[name]()  # the second step still fills caches
        return measure(programs, precision.device, self.options.rounds, self.options.seconds, self.say)

    def _packed(self, precision: Precision, notes: list[str]) -> dict[int, float]:
        """Several runs at once: on a GPU in this process, on a CPU a process each with its share of cores."""
        speeds: dict[int, float] = {}
        by_device = (2, 4) if precision.device.type == "cuda" else (2,)
        for copies in by_device if self.options.packed is None else self.options.packed:
            self.say(f"{self.subject.name}: {copies} runs at once")
            if precision.device.type == "cuda":
                loop = OwnLoop(self.subject, precision, self.techniques, copies, notes.append)
                step = loop.start()
                step()
                measured = measure({OURS: step}, precision.device, self.options.rounds, self.options.seconds)
                speeds[copies] = measured[OURS].median
                continue
            try:
                speeds[copies] = self._processes(copies)
            except ProbeFailedError as failure:
                notes.append(f"{copies} runs at once could not be measured: {failure}")
        return speeds

    def _processes(self, copies: int) -> float:
        command = ProbeCommand(
            preset=self.context.preset.name,
            root=self.context.project.root,
            data=self.context.project.data,
            threads=max(1, self.threads // copies),
            precision=self.options.precision,
            seconds=self.options.seconds * self.options.rounds,
        )
        (slot,) = find_slots(max(1, self.threads // copies), "cpu", cpu_slots=1)
        answers = measure_probes(command, self.subject.run_id, slot, copies)
        return sum(answer.images_per_second for answer in answers)

    def _packed_how(self) -> str:
        if self.precision.device.type == "cuda":
            return "one process, a stream and a graph each"
        return f"a process each, uncompiled, {self.threads} threads shared"

    def _used(self, precision: Precision, notes: Sequence[str]) -> tuple[str, ...]:
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
