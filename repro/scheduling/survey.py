"""What planning needs of all records, taken in one pass that keeps none of them in memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from repro.record_state import RecordState, RunState
from repro.registry import Run
from repro.scheduling.estimate import DataSize
from repro.scheduling.probes import ProbeResult
from repro.scheduling.speeds import Measured
from repro.scheduling.train_command import StalePolicy


@dataclass(frozen=True)
class Survey:
    """How every run stands, without its record; the speeds that records and probes measured.

    `sizes` has every data set's size before a preset's subset, `recorded` the training and test images that
    records found.
    """

    states: tuple[RunState, ...]
    sizes: Mapping[str, DataSize]
    measured: Measured
    recorded: Mapping[str, tuple[int, int]]

    @classmethod
    def of(
        cls,
        states: Iterable[RunState],
        sizes: Mapping[str, DataSize],
        probes: Sequence[ProbeResult] = (),
        before: "Survey | None" = None,
    ) -> "Survey":
        """Reads `states` to the end; what records taught `before`, that is known still."""
        measured = before.measured if before else Measured(_image_sizes(sizes), probes)
        recorded = dict(before.recorded) if before else {}
        light: list[RunState] = []
        for state in states:
            if record := state.record:
                measured.add(record)
                if state.counts and not state.run.cell.axes:
                    recorded[state.run.cell.dataset] = (record.data.train_images, record.data.test_images)
                state = replace(state, record=None)
            light.append(state)
        return cls(tuple(light), sizes, measured, recorded)

    def to_do(self, stale: StalePolicy) -> list[Run]:
        """The runs that would be trained: all without a record that counts."""
        return [state.run for state in self.states if is_to_do(state, stale)]


def _image_sizes(sizes: Mapping[str, DataSize]) -> dict[str, int]:
    return {name: size.image_size for name, size in sizes.items()}


def is_to_do(state: RunState, stale: StalePolicy) -> bool:
    """Whether the run is trained: its record does not count, or older code made it and such are redone."""
    return not state.counts or (stale == "rerun" and state.record_state is RecordState.OLDER_CODE)
