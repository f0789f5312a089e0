"""`repro merge`: takes records that others have made into this project's results.

Only valid records of today's recipes get in, under a name that is free; nothing that is here already is
ever replaced, moved or changed.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from repro.commands.bundle import TOP
from repro.commands.context import Context
from repro.commands.nameless import nameless
from repro.commit import add_record
from repro.data.files import unpack_tar
from repro.errors import DataCorruptError, IntegrityError, ReproError, UsageError
from repro.record_state import RecordState, RunState, assess_run
from repro.records import RunRecord
from repro.registry import Run

LIMITS = {"max_members": 1_000_000, "max_bytes": 100 * 10**9, "max_ratio": 30}
LARGEST_RECORD = 10 * 2**20
"""Bytes of the largest file that can be a record; the paper's have about 35,000."""


class Fate(StrEnum):
    """What became of a record that was offered."""

    TAKEN = "taken"
    ALREADY_HERE = "already here"
    CONFLICT = "conflict"
    OTHER_RECIPE = "other recipe"
    REFUSED = "refused"


@dataclass(frozen=True)
class Offer:
    """One file of a bundle, by its name there; `reason` is empty where there is nothing to say."""

    name: str
    fate: Fate
    reason: str = ""


@dataclass(frozen=True)
class Merged:
    """Everything that was offered; `dry_run`: what would have become of it."""

    offers: tuple[Offer, ...]
    dry_run: bool

    @property
    def exit_code(self) -> int:
        """4 if something could not be believed, 1 if something else was left out, 0 if nothing was."""
        fates = {offer.fate for offer in self.offers}
        if Fate.REFUSED in fates:
            return IntegrityError.exit_code
        return ReproError.exit_code if fates & {Fate.CONFLICT, Fate.OTHER_RECIPE} else 0

    def lines(self) -> list[str]:
        """Every record that was not simply taken or here, then the counts."""
        spoken = [offer for offer in self.offers if offer.reason]
        counts = Counter(str(offer.fate) for offer in self.offers)
        total = ", ".join(f"{count} {fate}" for fate in Fate if (count := counts[fate])) or "nothing in it"
        would = "would be: " if self.dry_run else ""
        return [*(f"{offer.fate}: {offer.name}: {offer.reason}" for offer in spoken), f"{would}{total}"]


def merge_bundles(context: Context, files: list[Path], dry_run: bool = False) -> Merged:
    """Looks at every record of `files` and takes in what can be; a bundle that cannot be unpacked is refused.

    The records' presets are their own, whatever the context's. Raises SetupError where the results cannot be
    written.
    """
    offers: list[Offer] = []
    planned: dict[str, str] = {}
    for file in files:
        with tempfile.TemporaryDirectory(prefix="repro-merge-") as folder:
            target = Path(folder) / TOP
            try:
                unpack_tar(
                    file, target, **LIMITS, expected="a file made by `repro bundle`: ask for another copy"
                )
            except DataCorruptError as error:
                offers.append(Offer(str(file), Fate.REFUSED, str(error).removeprefix(f"{file} ")))
                continue
            offers += _offers(context, target, planned if dry_run else None)
    return Merged(tuple(offers), dry_run)


def _offers(context: Context, records: Path, planned: dict[str, str] | None) -> Iterator[Offer]:
    """What becomes of each file below `records`, which is laid out as results are.

    `planned` makes it a dry run: by name, the hash of what earlier bundles would have put there.
    """
    fingerprints: dict[tuple[str, str], str | None] = {}
    for file in sorted(path for path in records.rglob("*") if not path.is_dir()):
        name = str(file.relative_to(records))
        try:
            run, here = _named(context, name)
        except UsageError as error:
            yield Offer(name, Fate.REFUSED, str(error))
            continue
        if file.stat().st_size > LARGEST_RECORD:
            yield Offer(name, Fate.REFUSED, f"too large for a record: {file.stat().st_size:,} bytes")
            continue
        key = (here.preset.name, run.cell.dataset)
        if key not in fingerprints:
            fingerprints |= {key: here.fingerprints([run])[run.cell.dataset]}
        there = replace(here, project=replace(here.project, results=records))
        offered = _assess(there, run, fingerprints[key])
        if offered.record_state is RecordState.OTHER_RECIPE:
            yield Offer(name, Fate.OTHER_RECIPE, offered.reason.removeprefix("other recipe: "))
        elif offered.record is None:
            yield Offer(
                name, Fate.REFUSED, offered.reason.replace(f"{records}/", "").removeprefix(f"{name}: ")
            )
        else:
            present = _assess(here, run, fingerprints[key])
            yield _decide(name, offered.record, present, here, file.read_bytes(), planned)


def _decide(
    name: str,
    offered: RunRecord,
    present: RunState,
    here: Context,
    content: bytes,
    planned: dict[str, str] | None,
) -> Offer:
    """Takes the record in where its name is free."""
    paths = here.project.run(here.preset.name, offered.run)
    if present.record_state is RecordState.MISSING and planned is not None:
        digest = hashlib.sha256(content).hexdigest()
        if planned.setdefault(name, digest) != digest:
            return Offer(name, Fate.CONFLICT, "an earlier bundle has another record of this run")
        return Offer(name, Fate.TAKEN)
    if present.record_state is RecordState.MISSING:
        if add_record(content, paths):
            return Offer(name, Fate.TAKEN)
        return Offer(name, Fate.CONFLICT, "somebody else has just put a record there; merge again")
    if present.record is None:
        return Offer(
            name, Fate.CONFLICT, f"what is here is damaged, `repro run` sets it aside: {present.reason}"
        )
    if offered in (present.record, nameless(present.record)[0]):
        return Offer(name, Fate.ALREADY_HERE)
    ours, theirs = _describe(present.record), _describe(offered)
    return Offer(name, Fate.CONFLICT, f"another record of this run is here ({ours}; offered: {theirs})")


def _named(context: Context, name: str) -> tuple[Run, Context]:
    """The run that a file's name stands for, and the context of its preset; raises UsageError."""
    preset, _, rest = name.partition("/")
    if not rest.endswith(".json"):
        raise UsageError("not a record's name; expected <preset>/<run id>.json")
    here = replace(context, preset=context.registry.preset(preset))
    run = here.registry.parse(rest.removesuffix(".json"))
    here.registry.config(run, here.preset)
    return run, here


def _assess(context: Context, run: Run, fingerprint: str | None) -> RunState:
    config = context.registry.config(run, context.preset)
    return assess_run(run, config, context.preset, context.project, fingerprint)


def _describe(record: RunRecord) -> str:
    accuracy = record.result.accuracy
    reached = "diverged" if accuracy is None else f"{accuracy:.2f} %"
    return f"{reached} on {record.provenance.device}, {record.provenance.ended:%Y-%m-%d}"
