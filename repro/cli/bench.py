"""`repro bench`: how fast training is on this machine, beside its roofline and beside two other loops."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DEVICE, FILE, PRECISION, places, techniques, write
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.benchmark.processes import Program
    from repro.benchmark.rates import Rates
    from repro.benchmark.result import BenchResult, Found
    from repro.benchmark.subject import Subject
    from repro.cli.context import Context
    from repro.training.accelerations import Accelerations
    from repro.training.precision import Precision

_BUSY_SECONDS = 2.0  # how long it is watched, before anything of ours runs, whether others use the machine
_OURS_COLOUR, _RIVAL_COLOUR = "#0072B2", "#8C8C8C"
_BAR = 0.24  # inches of a bar of the picture, and of its panel
_PANEL_WIDTH = 4.4


@click.command()
@places
@click.option(
    "--network", "networks", multiple=True, default=("resnet18",), show_default=True, help="Repeatable."
)
@click.option("--size", "sizes", multiple=True, type=int, default=(32,), show_default=True,
              help="Pixels, 32 or 64; repeatable.")  # fmt: skip
@click.option("--loss", "losses", multiple=True, default=("scaled-bn-m1",), show_default=True,
              help="A table's row; repeatable.")  # fmt: skip
@click.option("--against", multiple=True, type=click.Choice(["plain", "tuned"]), default=("plain", "tuned"),
              show_default=True, help="Other loops beside ours; repeatable.")  # fmt: skip
@click.option("--packed", multiple=True, type=click.IntRange(min=2),
              help="Also so many runs at once; repeatable.  [default: 2; on a GPU 2 and 4]")  # fmt: skip
@click.option("--alone", is_flag=True, help="Our loop alone: no other loop, no packing.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=3.0, show_default=True,
              help="Of each program's window in a round.")  # fmt: skip
@DEVICE
@PRECISION
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads.  [default: the cores; for plain and tuned torch's own]",
)
@click.option("--deterministic", is_flag=True, help="What it costs our loop to be bitwise repeatable.")
@techniques
@click.option("--json", "json_file", type=FILE, help="Write everything to a file as JSON too.")
@click.option("--plot", type=FILE, help="Draw it: a .png or .pdf.")
def bench(context: "Context", alone: bool, json_file: Path | None, plot: Path | None, **options: Any) -> None:
    """Measure training here: images per second beside the device's roofline and two other loops. Minutes.

    plain: float32, DataLoader with a worker per core, PIL transforms, `.item()` every step. tuned:
    channels_last, bf16 and torch.compile. Each has a process of its own, and they run in turn, window by
    window. Uses prepared data where there are some, else generated ones, and says which.

    On a busy machine, or where a program's windows vary more than 2-fold, the result is marked
    "not trustworthy", in the JSON file too.
    """
    options["packed"] = options["packed"] or None
    if alone:
        options |= {"against": (), "packed": ()}
    result = measure_all(context, BenchOptions(**options), lambda line: click.echo(line, err=True))
    click.echo(result.to_text())
    if json_file:
        write(json_file, result.to_json())
    if plot:
        draw_bench(result, plot)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how long: `rounds` windows of `seconds` each, of every program in turn.

    `against` names the rivals, `packed` how many runs at once are measured beside one (None: 2, and on a
    GPU 4).
    """

    networks: tuple[str, ...] = ("resnet18",)
    sizes: tuple[int, ...] = (32,)
    losses: tuple[str, ...] = ("scaled-bn-m1",)
    against: tuple[str, ...] = ("plain", "tuned")
    packed: tuple[int, ...] | None = None
    rounds: int = 5
    seconds: float = 3.0
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()


def measure_all(context: "Context", options: BenchOptions, say: Callable[[str], None]) -> "BenchResult":
    """Measures every combination of networks, sizes and losses; `say` hears how far it is.

    On a busy machine too, and however the windows vary: the result then says that it is not trustworthy.
    """
    import torch

    from repro.benchmark.rates import measure_rates
    from repro.benchmark.result import BenchResult, Machine
    from repro.system import busy_share, memory_bytes, usable_cores
    from repro.training.device import COMPILING_PAYS_FROM, choose_accelerations, choose_device
    from repro.training.precision import choose_precision
    from repro.training.provenance import device_name, git_state

    busy = busy_share(_BUSY_SECONDS)
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    used = choose_accelerations(
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
        memory_bytes=(
            torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
        ),
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
        _Bench(context, subject, options, precision, used, threads, rates, say).run() for subject in subjects
    ]
    return BenchResult(
        shlex.join(["repro", *sys.argv[1:]]), machine, options.rounds, options.seconds, tuple(found)
    )


def _subject(context: "Context", network: str, size: int, loss: str) -> "Subject":
    from repro.benchmark.subject import SETS, make_subject

    if size not in SETS:
        raise UsageError(f"--size: expected one of {', '.join(map(str, SETS))}, got {size}")
    name, _ = SETS[size]
    run = context.registry.parse(f"{name}/{network}/{loss}/seed0")
    return make_subject(run.id, context.registry.config(run, context.preset), size, context.project.data)


@dataclass(frozen=True)
class _Bench:
    """One subject's measurements: all programs in turn, then what measuring costs."""

    context: "Context"
    subject: "Subject"
    options: BenchOptions
    precision: "Precision"
    techniques: "Accelerations"
    threads: int
    rates: "Rates"
    say: Callable[[str], None]

    def run(self) -> "Found":
        from repro.benchmark.ours import measuring_seconds
        from repro.benchmark.processes import started
        from repro.benchmark.programs import used_precision
        from repro.benchmark.result import Found
        from repro.benchmark.roofline import count_kernels, roofline_seconds
        from repro.benchmark.windows import measure
        from repro.training.device import unmeasured
        from repro.training.loop import build

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

    def programs(self) -> "dict[str, Program]":
        """What is measured, by name: ours as `repro train` starts it, and the others as a script starts."""
        from repro.benchmark.processes import OURS, Program
        from repro.benchmark.result import at_once

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

    def _used(self, precision: "Precision") -> tuple[str, ...]:
        import torch

        used = self.techniques
        if precision.memory_format != torch.channels_last:
            used = used.switched(off=["channels-last"])
        return ("resident-data", precision.name, *used.names())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

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


def draw_bench(result: "BenchResult", path: Path) -> None:
    """Draws each program's images per second as a share of the roofline, a panel per network.

    The path's suffix says how (png or pdf).
    """
    from repro.analysis.style import LABEL_SIZE, QUIET, Margins, figure_style, make_page, save_as
    from repro.benchmark.processes import OURS

    bars = [[(name, speed.median) for name, speed in found.speeds.items()] for found in result.found]
    machine = result.machine
    caption = "".join(f"NOT TRUSTWORTHY: {doubt}. " for doubt in result.doubts()) + (
        f"{machine.device}, {machine.precision}, {machine.threads} threads, torch "
        f"{machine.versions['torch']}. Images per second, the median of {result.rounds} windows of "
        f"{result.seconds:g} s each, programs in turn; the line marks the roofline kernel by kernel at the "
        f"rates measured here: {machine.matmul / 1e12:.2f} TFLOP/s, {machine.copy / 1e9:.1f} GB/s."
    )
    with figure_style():
        panels = [(_PANEL_WIDTH, _BAR * len(rows)) for rows in bars]
        margins = Margins(left=1.35, right=0.9, between=0.62, panel_title=0.22)
        figure, axes = make_page("Training speed beside the roofline", caption, panels, margins)
        for panel, found, rows in zip(axes, result.found, bars, strict=True):
            places = range(len(rows) - 1, -1, -1)
            colours = [_OURS_COLOUR if name.startswith(OURS) else _RIVAL_COLOUR for name, _ in rows]
            shares = [speed / found.roofline for _, speed in rows]
            panel.barh(places, shares, height=0.7, color=colours)
            panel.set_yticks(places, [name for name, _ in rows])
            panel.set_xlim(0, max(1.05, *shares))
            panel.axvline(1, color=QUIET, linewidth=0.8)
            panel.tick_params(axis="y", length=0)
            panel.set_title(found.name, loc="left", size=LABEL_SIZE + 1)
            for place, (_, speed), share in zip(places, rows, shares, strict=True):
                panel.text(share + 0.01, place, f"{speed:,.0f}", va="center", size=LABEL_SIZE)
        axes[-1].set_xlabel("share of the roofline")
        save_as(figure, path)
