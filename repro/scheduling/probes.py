"""What short probes have measured: how fast runs of a kind train on a device, alone and together.

Kept beside the attempts, in `.work/probes.json`. It is a cache: one that cannot be read is measured anew.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from repro.commit import make_folder, write_whole
from repro.config import Recipe


@dataclass(frozen=True)
class Work:
    """What decides how fast a run trains on a device, its loss and seed apart."""

    network: str
    image_size: int
    width: float
    stem_pool: str

    @classmethod
    def of(cls, network: str, image_size: int, recipe: Recipe) -> "Work":
        """The work of a network under a recipe, on square images of `image_size` px."""
        return cls(network, image_size, recipe.width, recipe.stem_pool)


@dataclass(frozen=True)
class ProbeResult:
    """`copies` runs of one kind at once on one device of the name `device`.

    `images_per_second` is what all of them reached together, `memory_bytes` what the largest of them took.
    `threads` are the CPU threads of each, `precision` what was asked for (None: the device's choice); `code`
    is the hash of the code that trained.
    """

    device: str
    work: Work
    batch_size: int
    precision: str | None
    threads: int
    code: str
    copies: int
    images_per_second: float
    memory_bytes: int

    def same_question(self, other: "ProbeResult") -> bool:
        """Whether both measured the same thing, so that the later one replaces the earlier."""
        return _question(self) == _question(other)


def read_probes(path: Path) -> tuple[ProbeResult, ...]:
    """Every result in the cache; none where there is no cache that can be read."""
    try:
        content = json.loads(path.read_text())
        return tuple(ProbeResult(**{**entry, "work": Work(**entry["work"])}) for entry in content)
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def add_probes(path: Path, results: Sequence[ProbeResult]) -> None:
    """Puts `results` into the cache in place of older answers to the same questions.

    Of two processes that write at once one is lost: its results are measured again when needed.
    """
    kept = [old for old in read_probes(path) if not any(new.same_question(old) for new in results)]
    make_folder(path.parent)
    write_whole(path, json.dumps([asdict(entry) for entry in (*kept, *results)], indent=1).encode())


def _question(result: ProbeResult) -> tuple[object, ...]:
    return (
        result.device,
        result.work,
        result.batch_size,
        result.precision,
        result.threads,
        result.code,
        result.copies,
    )
