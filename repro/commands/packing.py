"""Which slots a sweep gets, and how many runs of each kind share a device: as told, or as measured.

With `--per-gpu auto` each kind of run (network, image size, width) is probed alone and with others of its
kind until one more does not pay; what was measured once is kept in `.work/probes.json`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from repro.cli.context import Context
from repro.registry import Run
from repro.scheduling.gpus import parse_gpus
from repro.scheduling.packing import choose_copies, next_copies
from repro.scheduling.probes import ProbeResult, Work, add_probes
from repro.scheduling.probing import Answer, ProbeCommand, ProbeFailedError, measure
from repro.scheduling.slots import Slot, find_slots
from repro.scheduling.speeds import Measured
from repro.signature import speed_hash
from repro.system import usable_cores

PerGpu = int | Literal["auto"]

_Kind = tuple[str, Work]
"""A device's name, and what a run asks of it."""


@dataclass(frozen=True)
class Packing:
    """The slots, and by device name and work how many runs may share a device; `unknown` was not measured."""

    slots: tuple[Slot, ...]
    copies: Mapping[_Kind, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was chosen, in sentences."""
        lines = [
            f"{count} {'run' if count == 1 else 'runs'} of {work.network} (width {work.width:g}, "
            f"{work.image_size} px) at once on {device}"
            for (device, work), count in self.copies.items()
        ]
        return lines + [f"not measured yet, one at a time: {name}" for name in self.unknown]


def pack(
    context: Context,
    runs: Sequence[Run],
    gpus: str | None,
    per_gpu: PerGpu,
    precision: str | None = None,
    probing: Callable[[str], None] | None = None,
    seconds: float = 5.0,
) -> Packing:
    """The slots for `runs`; under "auto" as many on a device as pay.

    `probing` lets unknown kinds be measured, each for some `seconds`, and is told a sentence before; without
    it what is not known is said to be.
    """
    chosen = None if gpus is None else parse_gpus(gpus)
    threads = context.preset.threads
    if per_gpu != "auto":
        return Packing(find_slots(threads, gpus=chosen, per_gpu=per_gpu))
    alone = find_slots(threads, gpus=chosen)
    most = len(alone) if alone[0].device == "cpu" else max(1, usable_cores())
    prober = Prober(context, precision, seconds)
    copies: dict[_Kind, int] = {}
    unknown: list[str] = []
    for run, work in kinds(context, runs):
        for slot in _one_of_each(alone):
            results = prober.known(run, slot, work)
            if probing is not None:
                results = prober.climb(run, slot, work, most, probing)
            if results:
                copies[slot.name, work] = choose_copies(results, slot.memory_bytes)
            else:
                unknown.append(f"{run.cell.dataset}/{run.cell.network} on {slot.name}")
    at_once = max(copies.values(), default=1)
    cpu_slots = at_once if alone[0].device == "cpu" else None
    slots = find_slots(threads, gpus=chosen, per_gpu=at_once, cpu_slots=cpu_slots)
    return Packing(slots, copies, tuple(unknown))


def tenants(context: Context, packing: Packing, runs: Sequence[Run]) -> Callable[[Run, Slot], int] | None:
    """How many runs of a run's kind may share a slot's device; None where every slot may be filled."""
    if not packing.copies:
        return None
    works = {_column(run): work for run, work in kinds(context, runs)}

    def allowed(run: Run, slot: Slot) -> int:
        work = works.get(_column(run))
        return packing.copies.get((slot.name, work), 1) if work else 1

    return allowed


def probe_unknown(
    context: Context,
    runs: Sequence[Run],
    slots: Sequence[Slot],
    measured: Measured,
    say: Callable[[str], None],
    seconds: float = 5.0,
) -> None:
    """Measures, alone, each kind of run of which neither records nor probes know the speed on the slots."""
    prober = Prober(context, None, seconds)
    for run, work in kinds(context, runs):
        for slot in _one_of_each(slots):
            if measured.speed(slot, work) is None:
                prober.climb(run, slot, work, 1, say)


def kinds(context: Context, runs: Iterable[Run]) -> list[tuple[Run, Work]]:
    """A run of each column, with its work: losses and seeds hardly differ in speed."""
    first: dict[tuple[object, ...], Run] = {}
    for run in runs:
        first.setdefault(_column(run), run)
    sizes = context.data_sizes({run.cell.dataset for run in first.values()})
    found = []
    for run in first.values():
        if run.cell.dataset in sizes:
            config = context.registry.config(run, context.preset)
            found.append((run, Work.of(config.network, sizes[config.dataset].image_size, config.recipe)))
    return found


class Prober:
    """Knows what was measured, and measures more."""

    def __init__(self, context: Context, precision: str | None, seconds: float) -> None:
        self._context = context
        self._precision = precision
        self._threads = context.preset.threads
        self._results = context.probes()
        self._command = ProbeCommand(
            preset=context.preset.name,
            root=context.project.root,
            data=context.project.data,
            threads=self._threads,
            precision=precision,
            seconds=seconds,
        )

    def known(self, run: Run, slot: Slot, work: Work) -> list[ProbeResult]:
        """What was measured of this work on such a device, as this sweep would train it."""
        question = self._result(run, slot, work, 1, ())
        return [each for each in self._results if each.same_question(replace(question, copies=each.copies))]

    def climb(
        self, run: Run, slot: Slot, work: Work, most: int, say: Callable[[str], None]
    ) -> list[ProbeResult]:
        """Measures one, two, … at once until one more does not pay; a probe that fails ends it."""
        what = f"{run.cell.dataset}/{run.cell.network}"
        while copies := next_copies(self.known(run, slot, work), slot.memory_bytes, most):
            many = "1 run" if copies == 1 else f"{copies} runs at once"
            say(f"measuring {many} of {what} on {slot.name}")
            try:
                answers = measure(self._command, run.id, slot, copies)
            except ProbeFailedError as failure:
                say(f"{many} of {what} could not be measured: {failure}")
                break
            result = self._result(run, slot, work, copies, answers)
            self._results.append(result)
            add_probes(self._context.project.probes(self._context.preset.name), [result])
        return self.known(run, slot, work)

    def _result(
        self, run: Run, slot: Slot, work: Work, copies: int, answers: Sequence[Answer]
    ) -> ProbeResult:
        return ProbeResult(
            device=slot.name,
            work=work,
            batch_size=self._context.registry.config(run, self._context.preset).recipe.batch_size,
            precision=self._precision,
            threads=self._threads,
            code=speed_hash(work.network, self._context.project.experiments),
            copies=copies,
            images_per_second=sum(answer.images_per_second for answer in answers),
            memory_bytes=max((answer.memory_bytes for answer in answers), default=0),
        )


def _column(run: Run) -> tuple[object, ...]:
    return run.cell.dataset, run.cell.network, run.cell.axes


def _one_of_each(slots: Sequence[Slot]) -> list[Slot]:
    """A slot of each kind of device, by name."""
    return list({slot.name: slot for slot in reversed(slots)}.values())
