"""What a benchmark measured, as JSON and as text."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from repro.benchmark.timing import HARNESS, PLAIN, TUNED, Speed, ratio

MAX_BUSY = (
    0.2  # share of the CPU time used by other programs before the start, above which no speed is trusted
)
MAX_SPREAD = 2.0  # fastest window of a program over its slowest, above which none of them is trusted


def busy_doubts(busy: float | None) -> list[str]:
    """Why nothing measured on a machine is trusted that other programs keep busy to this share."""
    if busy is None:
        return ["the kernel does not say whether other programs use the machine (/proc/stat)"]
    if busy > MAX_BUSY:
        return [f"other programs used {busy:.0%} of the CPU time before the start; stop them first"]
    return []


def window_doubts(speeds: Mapping[str, Speed]) -> list[str]:
    """The programs whose windows vary too much to be trusted."""
    return [
        f"the windows of {name} vary {speed.spread:.1f}-fold"
        for name, speed in speeds.items()
        if speed.spread > MAX_SPREAD
    ]


@dataclass(frozen=True)
class Machine:
    """Where it was measured; rates in FLOP and bytes per second.

    `load` is the kernel's load average before the start, `busy` the share of the CPU time, 0 to 1, that
    other programs used just then (None where the kernel does not count it).
    """

    device: str
    device_kind: str
    precision: str
    threads: int
    cores: int
    memory_bytes: int
    matmul: float
    copy: float
    load: float
    busy: float | None
    commit: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class CaseResult:
    """One network at one image size with one loss.

    `speeds` and `preparing` (seconds to the first step done) by program, `ours, 2 at once` among them.
    `roofline` is in images per second; `measuring` is in seconds. `notes` are what the loop said, as of a
    acceleration that it left out, and which program could not be measured.
    """

    name: str
    network: str
    image_size: int
    loss: str
    batch_size: int
    data: str
    accelerations: tuple[str, ...]
    parameters: int
    gflop_an_image: float
    megabytes_an_image: float
    roofline: float
    speeds: dict[str, Speed]
    preparing: dict[str, float]
    packed_how: str
    measuring: float
    notes: tuple[str, ...]

    @property
    def best(self) -> float:
        """The most that this project's loop reached on the device, alone or packed, images per second."""
        return max(self.speeds[name].median for name in self._alone_and_packed())

    @property
    def measuring_share(self) -> float:
        """What measuring takes of a step."""
        return self.measuring / (self.speeds[HARNESS].milliseconds_per_step / 1000)

    def against(self, baseline: str) -> dict[str, float]:
        """This project's loop, alone and packed, as a multiple of a baseline; empty without it."""
        if baseline not in self.speeds:
            return {}
        theirs = self.speeds[baseline].windows
        return {name: ratio(self.speeds[name].windows, theirs) for name in self._alone_and_packed()}

    def _alone_and_packed(self) -> list[str]:
        return [name for name in self.speeds if name == HARNESS or name.endswith("at once")]

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            "",
            f"{self.name}, batch {self.batch_size}, {self.data} images: {self.parameters / 1e6:.1f} M "
            f"parameters, {self.gflop_an_image:.2f} GFLOP and {self.megabytes_an_image:.1f} MB per image",
        ]
        for name, speed in self.speeds.items():
            spread = f"{min(speed.windows):,.0f} – {max(speed.windows):,.0f}"
            how = f"; {self.packed_how}" if name.endswith("at once") else ""
            lines.append(
                f"  {name:<18} {speed.median:>10,.0f} images/s  (windows {spread}; "
                f"{speed.milliseconds_per_step:.2f} ms per step; first step after "
                f"{self.preparing[name]:.1f} s{how})"
            )
        lines.append(f"  {'roofline':<18} {self.roofline:>10,.0f} images/s, kernel by kernel")
        lines.append(f"  of the roofline: {self.best / self.roofline:.2f}")
        for baseline in (PLAIN, TUNED):
            for name, times in self.against(baseline).items():
                lines.append(f"  {name} beside {baseline}: {times:.2f} ×")
        lines.append(
            f"  measuring gradient norms, loss and accuracy: {1e6 * self.measuring:,.0f} µs per step, "
            f"{100 * self.measuring_share:.2f} %"
        )
        lines.append(f"  accelerations: {', '.join(self.accelerations)}")
        return lines + [f"  {note}" for note in self.notes]

    def content(self) -> dict[str, Any]:
        """For JSON, with the ratios."""
        content = asdict(self)
        for name, speed in self.speeds.items():
            content["speeds"][name]["median"] = speed.median
        return {
            **content,
            "images_per_second": self.best,
            "fraction_of_roofline": self.best / self.roofline,
            "against": {baseline: self.against(baseline) for baseline in (PLAIN, TUNED)},
            "measuring_share": self.measuring_share,
        }


@dataclass(frozen=True)
class BenchResult:
    """Everything that one `repro bench` measured."""

    command: str
    machine: Machine
    rounds: int
    seconds: float
    cases: tuple[CaseResult, ...]

    def doubts(self) -> list[str]:
        """Why this measurement should not be quoted; empty where nothing speaks against it."""
        varying = [f"{case.name}: {doubt}" for case in self.cases for doubt in window_doubts(case.speeds)]
        return [*busy_doubts(self.machine.busy), *varying]

    def to_text(self) -> str:
        """For a person."""
        machine = self.machine
        busy = "" if machine.busy is None else f", {machine.busy:.0%} busy"
        lines = [
            self.command,
            f"{machine.device} ({machine.cores} cores, {machine.threads} threads, {machine.precision})",
            ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
            f"measured: {machine.matmul / 1e12:.2f} TFLOP/s in a matrix product, {machine.copy / 1e9:.1f} "
            f"GB/s in a copy; before: load {machine.load:.1f}{busy}",
            f"{self.rounds} rounds of windows of {self.seconds:g} s, in turn, one process each; medians",
        ]
        lines += [line for case in self.cases for line in case.lines()]
        doubts = [f"not trustworthy: {doubt}" for doubt in self.doubts()]
        return "\n".join([*lines, *([""] if doubts else []), *doubts])

    def to_json(self) -> str:
        """Everything, with the ratios worked out."""
        content = {
            "not_trustworthy": self.doubts(),
            "command": self.command,
            "machine": asdict(self.machine),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "found": [case.content() for case in self.cases],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
