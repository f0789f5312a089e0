"""What `repro.system.keep_freed_memory` brings to training on this CPU, and the memory it costs.

For each kind of run two programs, with and without it, in turn, window by window; each is two processes at
the same time with one thread each, as `repro run` trains on two cores.

    python tools/measure_malloc.py                       # all kinds of run, about 5 minutes on two cores
    python tools/measure_malloc.py paper/resnet18 --rounds 6
"""

import argparse
from dataclasses import replace

from repro.benchmark.result import busy_doubts, window_doubts
from repro.benchmark.timing import HARNESS, Program, measure, ratio, started
from repro.cli.context import Context
from repro.system import busy_share, processor_name

KINDS = ("paper/vgg16", "paper/resnet18", "paper/resnet50", "quick/resnet18")


def program(kind: str, processes: int) -> Program:
    """Our loop on a kind of run, PRESET/NETWORK, at 32 px, as `repro train` starts it."""
    preset, _, network = kind.partition("/")
    context = Context.open(preset)
    run = context.registry.parse(f"cifar100/{network}/scaled-bn-m1/seed0")
    return Program(
        kind=HARNESS,
        config=context.registry.config(run, context.preset),
        image_size=32,
        data_dir=context.project.data,
        device="cpu",
        precision=None,
        threads=1,
        techniques=("channels-last", "fused-sgd"),
        processes=processes,
        keeps_freed_memory=True,
    )


def main() -> None:
    """Prints a table; one row per kind of run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="PRESET/NETWORK")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="per window; at least two steps")
    parser.add_argument("--processes", type=int, default=2, help="at the same time, one thread each")
    asked = parser.parse_args()
    print(f"{processor_name()}, processes at the same time: {asked.processes}, one thread each; batch 128")
    print(f"{asked.rounds} rounds of windows of {asked.seconds:g} s, with and without in turn; medians")
    for doubt in busy_doubts(busy_share(2.0)):
        print(f"not trustworthy: {doubt}")
    print(f"{'':<16}{'without':>10}{'with':>10} images/s{'ratio':>8}   peak memory per process, MiB")
    for kind in asked.kinds:
        kept = program(kind, asked.processes)
        programs = {"without": replace(kept, keeps_freed_memory=False), "with": kept}
        with started(programs, notes := [], required=tuple(programs)) as running:
            windows = {name: each.window for name, each in running.items()}
            speeds = measure(windows, asked.rounds, asked.seconds)
        before, after = speeds["without"], speeds["with"]
        memory = [speed.peak_memory / asked.processes / 2**20 for speed in (before, after)]
        print(
            f"{kind:<16}{before.median:>10.1f}{after.median:>10.1f}         "
            f"{ratio(after.windows, before.windows):>8.2f}   {memory[0]:,.0f} → {memory[1]:,.0f} "
            f"({memory[1] / memory[0] - 1:+.0%})",
            flush=True,
        )
        for doubt in window_doubts(speeds):
            print(f"not trustworthy: {kind}: {doubt}")
        for note in notes:
            print(f"  {note}")


if __name__ == "__main__":
    main()
