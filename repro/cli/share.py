"""Records for other people: bundle packs valid ones without what names this machine, merge takes them in.

    records/<preset>/<run id>.json …   in a gzipped tar; the same records give the same bytes

Only valid records of today's recipes get in, under a name that is free; nothing that is here already is ever
replaced, moved or changed.
"""

import gzip
import hashlib
import io
import re
import socket
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro.cli.options import DATA_DIR, EXISTING, FILE, RESULTS, places, selection
from repro.errors import DataCorruptError, IntegrityError, ReproError, SelectionError, UsageError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.record_state import RunState
    from repro.records import RunRecord
    from repro.registry import Run, Selection

TOP = "records"
LIMITS = {"max_members": 1_000_000, "max_bytes": 100 * 10**9, "max_ratio": 30}
LARGEST_RECORD = 10 * 2**20  # bytes of a file that can be a record; the paper's have about 35,000
_PATH = re.compile(r"(?<![\w.~/-])~?(?:/[\w.+@=~-]+){2,}/?")
_SHORTEST_HOST = 3  # characters; a shorter host name is found in ordinary words too


@click.command()
@places
@selection
@click.option("-o", "--output", type=FILE, help="[default: <preset>-records.tar.gz]")
def bundle(context: "Context", selected: "Selection", output: Path | None) -> None:
    """Pack the records that count into one file for others, without paths or names of this machine."""
    file = output or Path(f"{context.preset.name}-records.tar.gz")
    packed, left_out, damaged = write_bundle(context, selected, file)
    for reason in left_out:
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"{packed} records packed", err=True)
    click.echo(file)
    if damaged:
        sys.exit(IntegrityError.exit_code)


def write_bundle(context: "Context", selected: "Selection", file: Path) -> tuple[int, list[str], bool]:
    """Packs every record of the selection that counts into `file`, replacing it.

    Returns how many were packed, a sentence for each that was left out, and whether one of these is damaged.
    Raises SelectionError where there is none, UsageError where the file cannot be written.
    """
    from repro.record_state import RecordState

    left_out: list[str] = []
    damaged = False
    packed = 0

    def members() -> Iterator[tuple[str, bytes]]:
        nonlocal damaged, packed
        runs = context.registry.select_runs(selected, context.preset)
        for state in context.states(sorted(runs, key=lambda run: run.id)):
            if state.record_state is RecordState.MISSING:
                continue
            record, reason = None, state.reason
            if state.counts and state.record is not None:
                record, reason = anonymise(state.record)
            if record is None:
                damaged |= state.record_state in (RecordState.CORRUPT, RecordState.MISPLACED)
                left_out.extend([f"{state.run.id}: {reason}"] if reason else [])
                continue
            packed += 1
            yield f"{TOP}/{context.preset.name}/{state.run.id}.json", record.to_json().encode()

    temporary = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_tar(temporary, members())
        if not packed:
            raise SelectionError(
                f"no record of the preset {context.preset.name} counts in this selection, so nothing "
                f"is packed; `repro status --preset {context.preset.name}` shows what there is"
            )
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return packed, left_out, damaged


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """No time, owner or file name of this machine gets into the archive."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def anonymise(record: "RunRecord") -> "tuple[RunRecord | None, str]":
    """The record without what names a machine or a person, and no reason; or None, and why it stays here.

    How an attempt failed keeps the kind of error and loses its message. In the other texts of the provenance
    a path becomes `<path>` and the host's name `<host>`; attempts have it as a salted hash already. A path
    anywhere else decides what the record means, so such a record is not changed but kept back.
    """
    content = record.model_dump(mode="json")
    provenance = content["provenance"]
    for attempt in provenance["attempts"]:
        outcome, colon, message = attempt["outcome"].partition(": ")
        attempt["outcome"] = f"{outcome}{colon}{message.partition(':')[0]}"
    content["provenance"] = _without_names(provenance, socket.gethostname())
    for text in _texts({key: value for key, value in content.items() if key != "provenance"}):
        if _PATH.search(text) and text not in (record.run, record.preset):
            return None, f"holds the path {text!r}, which is not for others' eyes"
    return type(record).model_validate(content), ""


def _without_names(value: object, host: str) -> object:
    if isinstance(value, dict):
        return {key: _without_names(each, host) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_names(each, host) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    if len(host) >= _SHORTEST_HOST:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "<host>", text)
    return text


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=EXISTING)
@RESULTS
@DATA_DIR
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
def merge(files: tuple[Path, ...], results: Path | None, data_dir: Path | None, dry_run: bool) -> None:
    """Take records in that `repro bundle` packed elsewhere: valid ones of today's recipes, under free names.

    Nothing that is here is replaced. Exit codes: 0 all taken or here already, 1 another recipe's or another
    record of the same run was left out, 4 something could not be believed.
    """
    from repro.cli.context import Context

    merged = merge_bundles(Context.open("paper", results, data_dir), files, dry_run)
    for line in merged.lines():
        click.echo(line, err=True)
    sys.exit(merged.exit_code)


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
        """4 if something is not valid, 1 if something else was left out, 0 if nothing was."""
        fates = {offer.fate for offer in self.offers}
        if Fate.REFUSED in fates:
            return IntegrityError.exit_code
        return ReproError.exit_code if fates & {Fate.CONFLICT, Fate.OTHER_RECIPE} else 0

    def lines(self) -> list[str]:
        """Every record that was not simply taken or here, then the counts."""
        counts = Counter(offer.fate for offer in self.offers)
        total = ", ".join(f"{counts[fate]} {fate}" for fate in Fate if counts[fate]) or "nothing in it"
        spoken = [f"{offer.fate}: {offer.name}: {offer.reason}" for offer in self.offers if offer.reason]
        return [*spoken, f"would be: {total}" if self.dry_run else total]


def merge_bundles(context: "Context", files: Iterable[Path], dry_run: bool = False) -> Merged:
    """Looks at every record of `files` and takes in what can be; a bundle that cannot be unpacked is refused.

    The records' presets are their own, whatever the context's. Raises SetupError where the results cannot be
    written.
    """
    from repro.data.files import unpack_tar

    wanted = "a file made by `repro bundle`: ask for another copy"
    offers: list[Offer] = []
    planned: dict[str, str] = {}
    for file in files:
        with tempfile.TemporaryDirectory(prefix="repro-merge-") as folder:
            target = Path(folder) / TOP
            try:
                unpack_tar(file, target, **LIMITS, expected=wanted)
            except DataCorruptError as error:
                offers.append(Offer(str(file), Fate.REFUSED, str(error).removeprefix(f"{file} ")))
                continue
            offers += _offers(context, target, planned if dry_run else None)
    return Merged(tuple(offers), dry_run)


def _offers(context: "Context", records: Path, planned: dict[str, str] | None) -> Iterator[Offer]:
    """What becomes of each file below `records`, which is laid out as results are.

    `planned` makes it a dry run: by name, the hash of what earlier bundles would have put there.
    """
    from repro.record_state import RecordState, assess_run

    fingerprints: dict[tuple[str, str], str | None] = {}

    def assess(context: "Context", run: "Run") -> "RunState":
        key = context.preset.name, run.cell.dataset
        if key not in fingerprints:
            fingerprints[key] = context.fingerprints([run])[run.cell.dataset]
        config = context.registry.config(run, context.preset)
        return assess_run(run, config, context.preset, context.project, fingerprints[key])

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
        offered = assess(replace(here, project=replace(here.project, results=records)), run)
        if offered.record_state is RecordState.OTHER_RECIPE:
            yield Offer(name, Fate.OTHER_RECIPE, offered.reason.removeprefix("other recipe: "))
        elif offered.record is None:
            reason = offered.reason.replace(f"{records}/", "").removeprefix(f"{name}: ")
            yield Offer(name, Fate.REFUSED, reason)
        else:
            present = assess(here, run)
            yield _decide(name, offered.record, present, here, file.read_bytes(), planned)


def _decide(
    name: str,
    offered: "RunRecord",
    present: "RunState",
    here: "Context",
    content: bytes,
    planned: dict[str, str] | None,
) -> Offer:
    """Takes the record in where its name is free."""
    from repro.record_state import RecordState
    from repro.storage import add_record

    if present.record_state is RecordState.MISSING and planned is not None:
        digest = hashlib.sha256(content).hexdigest()
        if planned.setdefault(name, digest) != digest:
            return Offer(name, Fate.CONFLICT, "an earlier bundle has another record of this run")
        return Offer(name, Fate.TAKEN)
    if present.record_state is RecordState.MISSING:
        if add_record(content, here.project.run(here.preset.name, offered.run)):
            return Offer(name, Fate.TAKEN)
        return Offer(name, Fate.CONFLICT, "somebody else has just put a record there; merge again")
    if present.record is None:
        reason = f"what is here is damaged, `repro run` sets it aside: {present.reason}"
        return Offer(name, Fate.CONFLICT, reason)
    if offered in (present.record, anonymise(present.record)[0]):
        return Offer(name, Fate.ALREADY_HERE)
    ours, theirs = _describe(present.record), _describe(offered)
    return Offer(name, Fate.CONFLICT, f"another record of this run is here ({ours}; offered: {theirs})")


def _named(context: "Context", name: str) -> "tuple[Run, Context]":
    """The run that a file's name stands for, and the context of its preset; raises UsageError."""
    preset, _, rest = name.partition("/")
    if not rest.endswith(".json"):
        raise UsageError("not a record's name; expected <preset>/<run id>.json")
    here = replace(context, preset=context.registry.preset(preset))
    run = here.registry.parse(rest.removesuffix(".json"))
    here.registry.config(run, here.preset)
    return run, here


def _describe(record: "RunRecord") -> str:
    accuracy = record.result.accuracy
    reached = "diverged" if accuracy is None else f"{accuracy:.2f} %"
    return f"{reached} on {record.provenance.device}, {record.provenance.ended:%Y-%m-%d}"
