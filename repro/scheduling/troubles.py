"""What has gone wrong with each run so far, and whether another launch may help."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from repro.scheduling.causes import FURTHER_LAUNCHES, Cause


@dataclass
class Troubles:
    """The causes for which runs were launched again.

    A run is given up once a kind of cause has come too often while it got no further. A launch that started
    from a later step than the one before is progress, and what came before it is forgiven: as long as
    checkpoints advance, a run may be killed as often as it likes.
    """

    _causes: dict[str, list[Cause]] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)

    def add(self, run: str, cause: Cause, started_at: int | None) -> bool:
        """Counts one more end of `run`; whether it may be launched again.

        `started_at` is the step from which the attempt that ended had started; None if it came to none.
        """
        before = self._steps.get(run, 0)
        if started_at is not None:
            self._steps[run] = started_at
            if started_at > before:
                self._causes.pop(run, None)
        causes = self._causes.setdefault(run, [])
        causes.append(cause)
        return sum(other.kind is cause.kind for other in causes) <= FURTHER_LAUNCHES[cause.kind]

    def describe(self, run: str) -> str:
        """All causes since it last got further, equal ones in a row as one."""
        return "; then ".join(_merge_equal([cause.text for cause in self._causes[run]]))


def _merge_equal(troubles: Sequence[str]) -> list[str]:
    """Equal causes in a row as one: `… (3 times)`."""
    merged: list[tuple[str, int]] = []
    for trouble in troubles:
        if merged and merged[-1][0] == trouble:
            merged[-1] = (trouble, merged[-1][1] + 1)
        else:
            merged.append((trouble, 1))
    return [f"{text} ({count} times)" if count > 1 else text for text, count in merged]
