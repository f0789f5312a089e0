"""Which devices may be given a worker now: lost ones are set aside, crowded ones take fewer at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from repro.errors import DeviceError
from repro.registry import Run
from repro.scheduling.causes import Cause, Kind
from repro.scheduling.gpus import GpuReader
from repro.scheduling.slots import Slot

Tenants = Callable[[Run, Slot], int]
"""How many runs of a run's kind may share a slot's device, as measured."""


def device_of(slot: Slot) -> str:
    """What the slots of one device have in common: its UUID, or `cpu`; a cluster's share nothing."""
    return slot.label if slot.host else slot.uuid or slot.device


@dataclass
class Devices:
    """The devices of one sweep.

    `limits` says how many workers a device takes at once: as many as it has slots, and fewer once memory
    ran out on it; `tenants`, where it is given, how many of a run's kind. `lost` are devices that are given
    nothing any more, with the reason. A cluster chooses the device of each job anew: of its slots none is
    ever lost or crowded.
    """

    slots: Sequence[Slot]
    reader: GpuReader
    tenants: Tenants | None = None
    limits: dict[str, int] = field(init=False)
    lost: dict[str, str] = field(default_factory=dict)
    _running: list[Slot] = field(default_factory=list)
    _taken_alone: set[str] = field(default_factory=set)
    _emptying: str | None = None

    def __post_init__(self) -> None:
        self.limits = dict(Counter(device_of(slot) for slot in self.slots))

    def note(self, running: Iterable[tuple[Slot, bool]]) -> None:
        """Notes who runs where: a slot each, and whether its run must have the device to itself."""
        running = list(running)
        self._running = [slot for slot, _ in running]
        self._taken_alone = {device_of(slot) for slot, alone in running if alone}

    def has_room(self, slot: Slot, run: Run, alone_waits: bool) -> bool:
        """Whether a worker that begins with `run` may start on the slot now.

        Where a run waits that must be alone, one device after the other is emptied for it.
        """
        if slot.host:
            return True
        device = device_of(slot)
        there = self._there(slot)
        if device in self.lost or device in self._taken_alone:
            return False
        # A run that shares with fewer than those there would have it waits for them, and they for it.
        limits = [other.co_tenants + 1 for other in there] if self.tenants else []
        if len(there) >= min(self._limit(slot, run), *limits, self.limits[device]):
            return False
        if not alone_waits or not there:
            self._emptying = None
        elif self._emptying in (None, device):
            self._emptying = device
            return False
        return True

    def shared(self, slot: Slot, run: Run) -> Slot:
        """The slot as a worker that begins with `run` gets it, with the neighbours that it may have."""
        if slot.host:
            return slot
        return replace(slot, co_tenants=min(slot.co_tenants, self._limit(slot, run) - 1))

    def is_empty(self, slot: Slot) -> bool:
        """Whether nothing runs on the slot's device."""
        return not self._there(slot)

    def lower(self, slot: Slot) -> int | None:
        """After memory ran out: one worker less at once than there were; the new limit, None if it was 1."""
        device = device_of(slot)
        if slot.host or self.limits[device] == 1:
            return None
        together = max(1, len(self._there(slot)))
        self.limits[device] = max(1, min(self.limits[device], together) - 1)
        return self.limits[device]

    def judge(self, slot: Slot, cause: Cause) -> Cause:
        """`cause` as it is, or a lost device if the driver does not list the slot's GPU any more."""
        if slot.uuid is None or cause.kind in (Kind.DEVICE_LOST, Kind.INTERRUPTED, Kind.DEVICE_MEMORY):
            return cause
        try:
            listed = {gpu.uuid for gpu in self.reader()}
        except DeviceError:
            # Of a driver that does not answer nothing can be told about one device.
            return cause
        if slot.uuid in listed:
            return cause
        return Cause(Kind.DEVICE_LOST, f"the driver does not list {slot.uuid} any more: {cause.text}")

    def set_aside(self, slot: Slot, reason: str) -> bool:
        """From now on the slot's device gets nothing; False if that was so before."""
        if slot.host:
            return False
        new = device_of(slot) not in self.lost
        self.lost.setdefault(device_of(slot), reason)
        return new

    @property
    def none_left(self) -> bool:
        """Whether every device is set aside."""
        return self.lost.keys() == self.limits.keys()

    def _there(self, slot: Slot) -> list[Slot]:
        return [other for other in self._running if device_of(other) == device_of(slot)]

    def _limit(self, slot: Slot, run: Run) -> int:
        limit = self.limits[device_of(slot)]
        return limit if self.tenants is None else min(limit, self.tenants(run, slot))
