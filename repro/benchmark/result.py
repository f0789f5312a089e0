"""What a benchmark found, as JSON and as text."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repro.benchmark.windows import Speed, ratio

OURS, PLAIN, TUNED = "ours", "plain", "tuned"


@dataclass(frozen=True)
class Machine:
    """Where it was measured; rates in FLOP and bytes a second, `load` as the kernel counts it, before."""

    device: str
    device_kind: str
    precision: str
    threads: int
    cores: int
    memory_bytes: int
    matmul: float
    copy: float
    load: float
    commit: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Found:
    """One network at one image size with one loss.

    `speeds` and `preparing` (seconds to the first step done) by program; `packed` maps a number of runs at
    once to their images a second together. `roofline` is in images a second; `measuring` and `step` are
    seconds. `notes` are what the loop said, as of a technique that it left out.
    """

    name: str
    network: str
    image_size: int
    loss: str
    batch_size: int
    data: str
    techniques: tuple[str, ...]
    unmeasured: tuple[str, ...]
    parameters: int
    gflop_an_image: float
    megabytes_an_image: float
    roofline: float
    speeds: dict[str, Speed]
    preparing: dict[str, float]
    packed: dict[int, float]
    packed_how: str
    measuring: float
    notes: tuple[str, ...]

    @property
    def ours(self) -> float:
        """The best that this project's loop reached on the device, alone or packed, images a second."""
        return max(self.speeds[OURS].median, *self.packed.values(), 0.0)

    def against(self, rival: str) -> float | None:
        """The median over the rounds of ours beside a rival in the same round; None where it did not run."""
        if rival not in self.speeds:
            return None
        return ratio(self.speeds[OURS].windows, self.speeds[rival].windows)

    @property
    def measuring_share(self) -> float:
        """What measuring takes of a step."""
        return self.measuring / (self.speeds[OURS].milliseconds_a_step / 1000)

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"{self.name}, batch {self.batch_size}, {self.data} images: {self.parameters / 1e6:.1f} M "
            f"parameters, {self.gflop_an_image:.2f} GFLOP and {self.megabytes_an_image:.1f} MB an image"
        ]
        for name, speed in self.speeds.items():
            spread = f"{min(speed.windows):,.0f} – {max(speed.windows):,.0f}"
            lines.append(
                f"  {name:<18} {speed.median:>10,.0f} images/s  (windows {spread}; "
                f"{speed.milliseconds_a_step:.2f} ms a step; first step after {self.preparing[name]:.1f} s)"
            )
        for copies, speed_of_all in self.packed.items():
            lines.append(
                f"  {f'ours, {copies} at once':<18} {speed_of_all:>10,.0f} images/s  ({self.packed_how})"
            )
        lines.append(f"  {'roofline':<18} {self.roofline:>10,.0f} images/s, kernel by kernel")
        lines.append(f"  of the roofline: {self.ours / self.roofline:.2f}")
        for rival in (PLAIN, TUNED):
            if (times := self.against(rival)) is not None:
                lines.append(f"  ours beside {rival}: {times:.2f} ×")
        lines.append(
            f"  measuring gradient norms, loss and accuracy: {1e6 * self.measuring:,.0f} µs a step, "
            f"{100 * self.measuring_share:.2f} %"
        )
        lines.append(f"  techniques: {', '.join(self.techniques)}")
        if self.unmeasured:
            lines.append(f"  never measured by this project before: {', '.join(self.unmeasured)}")
        return lines + [f"  {note}" for note in self.notes]


@dataclass(frozen=True)
class BenchResult:
    """Everything that one `repro bench` measured."""

    command: str
    machine: Machine
    rounds: int
    seconds: float
    found: tuple[Found, ...]

    def to_text(self) -> str:
        """For a person."""
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        head = [
            self.command,
            f"{machine.device} ({machine.cores} cores, {machine.threads} threads, {machine.precision})",
            versions,
            f"measured: {machine.matmul / 1e12:.2f} TFLOP/s in a matrix product, {machine.copy / 1e9:.1f} "
            f"GB/s in a copy; load before: {machine.load:.1f}",
            f"{self.rounds} rounds of windows of {self.seconds:g} s, interleaved; medians",
        ]
        return "\n".join([*head, *_joined(found.lines() for found in self.found)])

    def to_json(self) -> str:
        """Everything, with the ratios worked out."""
        content: dict[str, Any] = {**asdict(self), "found": [_with_ratios(found) for found in self.found]}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _with_ratios(found: Found) -> dict[str, Any]:
    content = asdict(found)
    for name, speed in found.speeds.items():
        content["speeds"][name]["median"] = speed.median
    return {
        **content,
        "images_per_second": found.ours,
        "fraction_of_roofline": found.ours / found.roofline,
        "against_plain": found.against(PLAIN),
        "against_tuned": found.against(TUNED),
        "measuring_share": found.measuring_share,
    }


def _joined(parts: Any) -> Sequence[str]:
    return [line for part in parts for line in ("", *part)]
