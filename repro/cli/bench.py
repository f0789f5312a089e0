"""`repro bench`: how fast training is on this machine, beside its roofline and beside two other loops."""

import itertools
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DEVICE, FILE, PRECISION, accelerations, command, places, say, write

if TYPE_CHECKING:
    from repro.benchmark.case import Case
    from repro.benchmark.result import BenchResult, CaseResult
    from repro.benchmark.roofline import Rates
    from repro.benchmark.timing import Program
    from repro.cli.context import Context
    from repro.training.precision import Accelerations, Precision

_BUSY_SECONDS = 2.0  # how long it is watched, before anything of ours runs, whether others use the machine
_COLOURS = {True: "#0072B2", False: "#8C8C8C"}  # this project's loop, others


@command()
@places
@click.option("--network", "networks", multiple=True, default=("resnet18",), show_default=True,
              help="Repeatable.")  # fmt: skip
@click.option("--size", "sizes", multiple=True, type=click.Choice([32, 64]), default=(32,),
              show_default=True, help="Pixels; repeatable.")  # fmt: skip
@click.option(
    "--loss", "losses", multiple=True, help="A table's row; repeatable.  [default: the proposed one]"
)
@click.option("--against", multiple=True, type=click.Choice(["plain", "tuned"]), default=("plain", "tuned"),
              show_default=True, help="Other loops beside ours; repeatable.")  # fmt: skip
@click.option("--packed", multiple=True, type=click.IntRange(min=2), metavar="N",
              help="Also this many runs at once; repeatable.  [default: 2; on a GPU 2 and 4]")  # fmt: skip
@click.option("--alone", is_flag=True, help="Our loop alone: no other loop, no packing.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", default=5, show_default=True,
              help="Windows of each program.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.01), metavar="SECONDS", default=3.0, show_default=True,
              help="Length of a window.")  # fmt: skip
@DEVICE
@PRECISION
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="CPU threads.  [default: the cores; for plain and tuned torch's own]")  # fmt: skip
@click.option(
    "--deterministic", is_flag=True, help="Train bitwise repeatably, to see what it costs our loop."
)
@accelerations
@click.option("--json", "json_file", type=FILE, help="Write everything to a file as JSON too.")
@click.option("--plot", type=FILE, help="Draw it: a .png or .pdf.")
def bench(
    context: "Context",
    networks: tuple[str, ...],
    sizes: tuple[int, ...],
    losses: tuple[str, ...],
    against: tuple[str, ...],
    packed: tuple[int, ...],
    alone: bool,
    rounds: int,
    seconds: float,
    device: str | None,
    precision: str | None,
    threads: int | None,
    deterministic: bool,
    switch_on: tuple[str, ...],
    switch_off: tuple[str, ...],
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure training speed here, beside the device's roofline and two other loops; takes minutes.

    plain: float32, DataLoader with a worker per core, PIL transforms, `.item()` every step. tuned:
    channels_last, bf16 and torch.compile. Each has a process of its own, and they run in turn, window by
    window. The images are those of the prepared data set, else noise; it says which.

    On a busy machine, or where a program's windows vary more than 2-fold, the result is marked
    "not trustworthy", in the JSON file too.
    """
    import torch

    from repro.benchmark.case import DATA_SETS, open_case
    from repro.benchmark.result import BenchResult, Machine, busy_doubts
    from repro.benchmark.roofline import measure_rates
    from repro.benchmark.timing import HARNESS, Program
    from repro.system import busy_share, usable_cores
    from repro.training.device import COMPILING_PAYS_FROM, choose_accelerations, choose_device
    from repro.training.precision import choose_precision
    from repro.training.provenance import describe_environment

    busy, load, cores = busy_share(_BUSY_SECONDS), os.getloadavg()[0], usable_cores()
    our_threads = threads or cores
    torch.set_num_threads(our_threads)
    on = choose_device(device)
    used_precision = choose_precision(on, precision)
    used = choose_accelerations(on, COMPILING_PAYS_FROM, switch_on, switch_off, deterministic)
    method = context.registry.paper.method
    losses = losses or (method.rows[-1] if method else context.registry.tables[0].rows[0].name,)
    cases = []
    for network, size, loss in itertools.product(networks, sizes, losses):
        run = context.registry.parse(f"{DATA_SETS[size][0]}/{network}/{loss}/seed0")
        config = context.registry.config(run, context.preset)
        cases.append(open_case(config, size, context.project.data))
    made_on = describe_environment(context.project.root, on)
    say(f"measuring {made_on.device}")
    rates = measure_rates(on, used_precision.name)
    if on.type == "cuda":
        torch.cuda.empty_cache()  # the programs' processes need the memory
    names = {"cuda": made_on.cuda, "driver": made_on.driver, "cudnn": made_on.cudnn}
    packages = {name: made_on.packages[name] for name in ("torch", "torchvision", "numpy")}
    machine = Machine(
        device=made_on.device,
        device_kind=on.type,
        precision=used_precision.name,
        threads=our_threads,
        cores=cores,
        memory_bytes=made_on.device_memory_bytes,
        matmul=rates.matmul,
        copy=rates.copy,
        load=load,
        busy=busy,
        commit=made_on.git_commit,
        versions=packages | {"python": made_on.python} | {key: name for key, name in names.items() if name},
    )
    for doubt in busy_doubts(busy):
        say(f"not trustworthy: {doubt}")

    def programs(case: "Case") -> dict[str, Program]:
        """By name: our loop as `repro train` starts it, and the others as a script starts."""
        ours = Program(
            kind=HARNESS,
            config=case.config,
            image_size=case.data.manifest.image_size,
            data_dir=context.project.data,
            device=str(on),
            precision=used_precision.name,
            threads=our_threads,
            accelerations=used.names(),
            deterministic=deterministic,
        )
        found = {HARNESS: ours}
        for copies in () if alone else packed or ((2, 4) if on.type == "cuda" else (2,)):
            share: dict[str, Any] = {"processes": copies, "threads": max(1, our_threads // copies)}
            changes = {"runs": copies} if on.type == "cuda" else share
            found[f"{HARNESS}, {copies} at once"] = replace(ours, **changes)
        for name in [name for name in ("compile", "cuda-graph") if name in used.names()]:
            without = used.switched(off=[name]).names()
            found[f"{HARNESS}, no {name}"] = replace(ours, accelerations=without)
        script = replace(ours, threads=threads, accelerations=(), deterministic=False)
        return found | {kind: replace(script, kind=kind) for kind in (() if alone else against)}

    results = [_measure(case, programs(case), used_precision, used, rates, rounds, seconds) for case in cases]
    result = BenchResult(shlex.join(["repro", *sys.argv[1:]]), machine, rounds, seconds, tuple(results))
    click.echo(result.to_text())
    if json_file:
        write(json_file, result.to_json())
    if plot:
        draw_bench(result, plot)


def _measure(
    case: "Case",
    programs: "dict[str, Program]",
    precision: "Precision",
    accelerations: "Accelerations",
    rates: "Rates",
    rounds: int,
    seconds: float,
) -> "CaseResult":
    """All programs of a case in turn, then what measuring costs."""
    import torch

    from repro.benchmark import timing
    from repro.benchmark.harness import measuring_seconds
    from repro.benchmark.result import CaseResult
    from repro.benchmark.roofline import count_kernels, roofline_seconds

    def tell(line: str) -> None:
        say(f"{case.name}: {line}")

    manifest, config, batch = case.data.manifest, case.config, case.config.recipe.batch_size
    network, _ = case.build()
    precision = accelerations.layout(precision.for_network(network))
    kernels = count_kernels(network, batch, manifest.image_size, precision.name)
    notes: list[str] = []
    with timing.started(programs, notes, tell) as running:
        windows = {name: program.window for name, program in running.items()}
        speeds = timing.measure(windows, rounds, seconds, tell)
    nhwc = precision.memory_format == torch.channels_last
    used = accelerations if nhwc else accelerations.switched(off=["channels-last"])
    packed_how = "one process, a stream and a graph per run"
    if precision.device.type == "cpu":
        packed_how = f"a process per run, {programs[timing.HARNESS].threads} threads shared"
    return CaseResult(
        name=case.name,
        network=config.network,
        image_size=manifest.image_size,
        loss=config.loss,
        batch_size=batch,
        data=manifest.title,
        accelerations=("resident-data", precision.name, *used.names()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflop_an_image=sum(kernel.flop for kernel in kernels) / batch / 1e9,
        megabytes_an_image=sum(kernel.bytes for kernel in kernels) / batch / 1e6,
        roofline=batch / roofline_seconds(kernels, rates),
        speeds=speeds,
        preparing={name: program.preparing for name, program in running.items()},
        packed_how=packed_how,
        measuring=measuring_seconds(case, precision),
        notes=tuple(dict.fromkeys(notes)),
    )


def draw_bench(result: "BenchResult", path: Path) -> None:
    """Draws each program's images per second as a share of the roofline, a panel per network.

    The path's suffix says how (png or pdf).
    """
    import textwrap

    from matplotlib.figure import Figure

    from repro.analysis.style import figure_style, save_as
    from repro.benchmark.timing import HARNESS

    machine = result.machine
    caption = "".join(f"NOT TRUSTWORTHY: {doubt}. " for doubt in result.doubts()) + (
        f"{machine.device}, {machine.precision}, {machine.threads} threads, torch "
        f"{machine.versions['torch']}. Images per second, the median of {result.rounds} windows of "
        f"{result.seconds:g} s each, programs in turn; the line marks the roofline kernel by kernel at the "
        f"rates measured here: {machine.matmul / 1e12:.2f} TFLOP/s, {machine.copy / 1e9:.1f} GB/s."
    )
    heights = [len(case.speeds) for case in result.cases]
    with figure_style():
        figure = Figure(figsize=(6.7, 1.2 + 0.24 * sum(heights) + 0.6 * len(heights)), layout="constrained")
        figure.suptitle("Training speed beside the roofline", weight="bold")
        panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for panel, case in zip(panels, result.cases, strict=True):
            colours = [_COLOURS[name.startswith(HARNESS)] for name in case.speeds]
            shares = [speed.median / case.roofline for speed in case.speeds.values()]
            bars = panel.barh([*case.speeds], shares, height=0.7, color=colours)
            panel.bar_label(bars, [f"{speed.median:,.0f}" for speed in case.speeds.values()], padding=3)
            panel.invert_yaxis()
            panel.set_xlim(0, 1.15 * max(1.0, *shares))
            panel.axvline(1, color="#444444", linewidth=0.8)
            panel.set_title(case.name, loc="left")
        panels[-1].set_xlabel(f"share of the roofline\n\n{textwrap.fill(caption, 100)}")
        save_as(figure, path)
