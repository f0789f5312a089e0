"""Which devices may be given a worker now: lost ones are set aside, crowded ones take fewer at once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from repro.errors import DeviceError
from repro.scheduling.causes import Cause, Kind
from repro.scheduling.gpus import GpuReader
from repro.scheduling.slots import Slot


def device_of(slot: Slot) -> str:
    """What the slots of one device have in common: its UUID, or `cpu`."""
    return slot.uuid or slot.device


@dataclass
class Devices:
    """The devices of one sweep.

    `limits` says how many workers a device takes at once: as many as it has slots, and fewer once memory
    ran out on it. `lost` are devices that are given nothing any more, with the reason.
    """

    slots: Sequence[Slot]
    reader: GpuReader
    limits: dict[str, int] = field(init=False)
    lost: dict[str, str] = field(default_factory=dict)
    _busy: list[str] = field(default_factory=list)
    _taken_alone: set[str] = field(default_factory=set)
    _emptying: str | None = None

    def __post_init__(self) -> None:
        self.limits = dict(Counter(device_of(slot) for slot in self.slots))

    def note(self, running: Iterable[tuple[Slot, bool]]) -> None:
        """Notes who runs where: a slot each, and whether its run must have the device to itself."""
        running = list(running)
        self._busy = [device_of(slot) for slot, _ in running]
        self._taken_alone = {device_of(slot) for slot, alone in running if alone}

    def offer(self, slot: Slot, alone_waits: bool) -> Slot | None:
        """The slot as a worker gets it now, with the neighbours that it may have; None: no room.

        Where a run waits that must be alone, one device after the other is emptied for it.
        """
        device = device_of(slot)
        busy = self._busy.count(device)
        if device in self.lost or device in self._taken_alone or busy >= self.limits[device]:
            return None
        if not alone_waits or not busy:
            self._emptying = None
        elif self._emptying in (None, device):
            self._emptying = device
            return None
        return replace(slot, co_tenants=min(slot.co_tenants, self.limits[device] - 1))

    def is_empty(self, slot: Slot) -> bool:
        """Whether nothing runs on the slot's device."""
        return device_of(slot) not in self._busy

    def lower(self, slot: Slot) -> int | None:
        """After memory ran out: one worker less at once than there were; the new limit, None if it was 1."""
        device = device_of(slot)
        together = max(1, self._busy.count(device))
        if self.limits[device] == 1:
            return None
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
        new = device_of(slot) not in self.lost
        self.lost.setdefault(device_of(slot), reason)
        return new

    @property
    def none_left(self) -> bool:
        """Whether every device is set aside."""
        return self.lost.keys() == self.limits.keys()
