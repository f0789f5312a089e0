"""Records for other people: bundle packs valid ones without what names this machine, merge adds them.

    records/<preset>/<run id>.json …   in a gzipped tar; the same records give the same bytes

Only valid records of today's recipes get in, under a name that is free; nothing that is here already is ever
replaced, moved or changed. A bundle is read member by member and never unpacked to disk.
"""

import getpass
import gzip
import hashlib
import io
import os
import re
import socket
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DATA_DIR, EXISTING, FILE, RESULTS, command, places, say, selection
from repro.errors import IntegrityError, RecordCorruptError, ReproError, SelectionError, UsageError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.records import RunRecord
    from repro.registry import Run, Selection

TOP = "records"
MAX_RATIO = 30  # unpacked bytes per byte of a bundle; records come to about 5
LARGEST_RECORD = 10 * 2**20  # bytes of a file that can be a record; the paper's have about 35,000
_BLOCK = 1 << 20  # bytes unpacked at once
# A path or user@host, with what follows up to a quote or the line's end: one with blanks has no other.
_PLACE = re.compile(
    r"""(?:(?<![\w.~/-])/(?=[^/\s])[^/\n"']*/(?=\S)|(?<!\w)~(?:[A-Za-z][\w.-]*)?/|file:/|\b[A-Za-z]:\\|\\\\\w"""
    r"""|[\w.+-]+@[A-Za-z])[^"'\n]*"""
)
_HOST = re.compile(
    r"(?<![\w./-])(?:[A-Za-z][\w-]*(?:\.[A-Za-z][\w-]*){2,}|[0-9]{1,3}(?:\.[0-9]{1,3}){3})(?![\w.-])"
)
_SHORTEST_NAME = 3  # characters; a shorter one is found in ordinary words too
_NOBODY = frozenset({"root", "user", "admin", "ubuntu", "debian", "localhost"})  # names that name nobody


@command()
@places
@selection
@click.option("-o", "--output", type=FILE, help="[default: <preset>-records.tar.gz]")
def bundle(context: "Context", selected: "Selection", output: Path | None) -> None:
    """Pack the records that count into one file for others, without paths or names of this machine."""
    from repro.errors import counted

    file = output or Path(f"{context.preset.name}-records.tar.gz")
    packed, left_out = write_bundle(context, selected, file)
    for reason in left_out:
        say(f"left out: {reason}")
    say(f"{counted(packed, 'record')} packed")
    click.echo(file)
    if context.damaged:
        sys.exit(IntegrityError.exit_code)


def write_bundle(context: "Context", selected: "Selection", file: Path) -> tuple[int, list[str]]:
    """Packs every record of the selection that counts into the new `file`.

    Returns how many were packed, and a sentence for each that was left out.
    Raises SelectionError where there is none, UsageError where the file is there or cannot be written.
    """
    from repro.record_state import RecordState

    if os.path.lexists(file):
        raise UsageError(f"{file} is there already: remove it, or name another file with --output")
    packed, left_out = 0, []
    runs = sorted(context.registry.select_runs(selected, context.preset), key=lambda run: run.id)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    names = machine_names(context)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            temporary.open("xb") as raw,
            # No time, owner or file name of this machine gets into the archive.
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for state in context.states(runs):
                record, reason = None, state.reason
                if state.counts and state.record is not None:
                    record, reason = anonymise(state.record, names | attempt_hosts(context, state.run))
                if record is not None:
                    content = record.to_json().encode()
                    info = tarfile.TarInfo(f"{TOP}/{context.preset.name}/{state.run.id}.json")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    packed += 1
                elif state.record_state is not RecordState.MISSING:
                    left_out.append(f"{state.run.id}: {reason}")
        if not packed:
            raise SelectionError(
                f"no record of the preset {context.preset.name} counts in this selection, so nothing is "
                "packed; `repro status` shows what there is"
            )
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return packed, left_out


def machine_names(context: "Context") -> set[str]:
    """What this machine, its user and all machines of the preset's workers are called."""
    from repro.worker_note import read_worker_notes

    names = {socket.gethostname(), Path.home().name}
    with suppress(KeyError, OSError):  # a container's user may have no name
        names.add(getpass.getuser())
    notes = read_worker_notes(context.project.workers(context.preset.name))
    return names | {note.host for note in notes}


def attempt_hosts(context: "Context", run: "Run") -> set[str]:
    """The machines on which the run was attempted, as far as its attempts are still here."""
    from repro.attempts import read_attempts

    return {note.host or "" for note in read_attempts(context.project.run(context.preset.name, run.id))}


def anonymise(record: "RunRecord", names: Collection[str]) -> "tuple[RunRecord | None, str]":
    """The record without what names a machine or a person, and no reason; or None, and why it stays here.

    How an attempt failed keeps the kind of error and loses its message. In the other texts of the provenance
    a path or `user@host` becomes `<path>` with all that follows, one of `names`, a host's full name and its
    address become `<name>`; attempts have the host as a salted hash already. Anywhere else they decide what
    the record means, so such a record is not changed but kept back.
    """
    content = record.model_dump(mode="json")
    provenance = content.pop("provenance")
    # The first label of a full name is a name, too.
    words = {word for name in names for word in (name, name.partition(".")[0]) if len(word) >= _SHORTEST_NAME}
    listed = "|".join(map(re.escape, sorted(words - _NOBODY, key=len, reverse=True)))
    named = re.compile(rf"(?<![\w-])(?:{listed})(?![\w-])" if listed else "(?!)", re.IGNORECASE)
    found: list[str] = []

    def find(text: str) -> str:
        found.extend(_PLACE.findall(text))
        return text

    _with_texts(content, find)
    found += named.findall(f"{record.data.title}\n{record.data.partial}")
    if found:
        return None, f"holds {found[0]!r}, which may name this machine or a person"
    for attempt in provenance["attempts"]:
        outcome, colon, message = attempt["outcome"].partition(": ")
        kind = re.match(r"[\w.]*", message)
        attempt["outcome"] = f"{outcome}{colon}{kind[0] if kind else ''}"
    packages = provenance.pop("packages")  # ruamel.yaml.clib is no host, nor is the version 12.4.5.8
    provenance = _with_texts(provenance, lambda text: _HOST.sub("<name>", _PLACE.sub("<path>", text)))
    provenance = {**provenance, "packages": _with_texts(packages, lambda text: _PLACE.sub("<path>", text))}
    provenance = _with_texts(provenance, lambda text: named.sub("<name>", text))
    return type(record).model_validate({**content, "provenance": provenance}), ""


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """`value` as JSON has it, with every text in it changed, keys too."""
    if isinstance(value, dict):
        return {change(key): _with_texts(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_texts(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


@command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=EXISTING)
@RESULTS
@DATA_DIR
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
def merge(files: tuple[Path, ...], results: Path | None, data_dir: Path | None, dry_run: bool) -> None:
    """Add records that `repro bundle` packed elsewhere, if they are valid and of the present recipes.

    A record that is already here is never replaced. Exit codes: 0 all were added or already here, 1 a record
    of another recipe, or a second one of the same run, was left out, 4 a record or bundle is not valid.
    """
    from repro.cli.context import Context

    offers = merge_bundles(Context.open("paper", results, data_dir), files, dry_run)
    for offer in offers:
        if offer.reason:
            say(f"{offer.fate}: {offer.name}: {offer.reason}")
    counts = Counter(offer.fate for offer in offers)
    total = ", ".join(f"{counts[fate]} {fate}" for fate in Fate if counts[fate]) or "nothing in it"
    say(f"would be: {total}" if dry_run else total)
    sys.exit(max((offer.fate.exit_code for offer in offers), default=0))


class Fate(StrEnum):
    """What became of a record that was offered."""

    ADDED = "added"
    ALREADY_HERE = "already here"
    CONFLICT = "conflict"
    OTHER_RECIPE = "other recipe"
    REFUSED = "refused"

    @property
    def exit_code(self) -> int:
        """4 for what is not valid, 1 for what was left out otherwise."""
        if self is Fate.REFUSED:
            return IntegrityError.exit_code
        return ReproError.exit_code if self in (Fate.CONFLICT, Fate.OTHER_RECIPE) else 0


@dataclass(frozen=True)
class Offer:
    """One member of a bundle, by its name there, or a whole bundle that is refused; `reason` may be empty."""

    name: str
    fate: Fate
    reason: str = ""


def merge_bundles(context: "Context", files: Iterable[Path], dry_run: bool = False) -> list[Offer]:
    """What became of every record of `files`, or in a dry run what would; a torn bundle is refused whole.

    The records' presets are their own, whatever the context's. Raises SetupError where the results cannot be
    written.
    """
    offers: list[Offer] = []
    planned: dict[str, str] = {}  # what a dry run would have added: name → sha256
    for file in files:
        try:
            for name, content in _members(file):
                offers.append(Offer(name, *_add(context, name, content, planned if dry_run else None)))
        except RecordCorruptError as error:
            offers.append(Offer(str(file), Fate.REFUSED, str(error)))
    return offers


def _members(file: Path) -> Iterator[tuple[str, bytes | None]]:
    """Each file of a bundle: its name, and its content if it can be a record's.

    Raises RecordCorruptError before the first one if the bundle is torn or unpacks to far more bytes.
    """
    limit, unpacked = max(_BLOCK, MAX_RATIO * file.stat().st_size), 0
    try:
        # tarfile reads a long name or extended header whole, whatever its size: so all is counted first.
        with gzip.open(file) as stream:
            while block := stream.read(_BLOCK):
                unpacked += len(block)
                if unpacked > limit:
                    raise ValueError(f"it unpacks to over {MAX_RATIO} times as many bytes")
        with tarfile.open(file, "r:gz") as tar:
            members = tar.getmembers()
            # tarfile takes a damaged header for the end; an archive ends in two blocks of zeros or more.
            with gzip.open(file) as stream:
                stream.seek(tar.offset)
                if len(rest := stream.read()) < 2 * tarfile.BLOCKSIZE or any(rest):
                    raise ValueError("its end is missing")
            for member in members:
                if not member.isdir():
                    fits = member.isreg() and member.size <= LARGEST_RECORD
                    stored = tar.extractfile(member) if fits else None
                    yield member.name, stored.read() if stored else None
    # What gzip and tarfile raise on torn or hostile input.
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, RecursionError) as error:
        again = "ask for another copy"  # no command in it: it would get this user's --results
        raise RecordCorruptError(f"not a bundle ({error or type(error).__name__}): {again}") from None


def _add(
    context: "Context", name: str, content: bytes | None, planned: dict[str, str] | None
) -> tuple[Fate, str]:
    """Adds a record where its name is free; `planned` makes it a dry run. The fate, and why."""
    from repro.record_state import RecordState, assess_record, assess_run
    from repro.records import decode_record
    from repro.storage import create_whole

    try:
        run, here = _named(context, name)
        if content is None:
            raise RecordCorruptError(f"not a file of at most {LARGEST_RECORD:,} bytes")
        record = decode_record(content, name, run.id, here.preset.name)
    except (UsageError, IntegrityError) as error:
        return Fate.REFUSED, str(error).removeprefix(f"{name}: ")
    config = here.registry.config(run, here.preset)
    fingerprint = here.fingerprints([run])[run.cell.dataset]
    offered = assess_record(record, run, config, fingerprint)
    if offered.record_state is RecordState.CORRUPT:
        return Fate.REFUSED, offered.reason
    if offered.record_state is RecordState.OTHER_RECIPE:
        return Fate.OTHER_RECIPE, offered.reason.removeprefix("other recipe: ")
    present = assess_run(run, config, here.preset, here.project, fingerprint)
    if present.record_state is RecordState.MISSING:
        if planned is None:
            if not create_whole(here.project.run(here.preset.name, run.id).record, content):
                return Fate.CONFLICT, "another process has just put a record there; merge again"
        elif planned.setdefault(name, digest := hashlib.sha256(content).hexdigest()) != digest:
            return Fate.CONFLICT, "an earlier bundle has another record of this run"
        return Fate.ADDED, ""
    if present.record is None:
        again = f"`repro train {run.id} --preset {here.preset.name}`"
        return Fate.CONFLICT, f"the record here is damaged, {again} replaces it: {present.reason}"
    names = machine_names(here) | attempt_hosts(here, run)
    if record in (present.record, anonymise(present.record, names)[0]):
        return Fate.ALREADY_HERE, ""
    ours, theirs = _describe(present.record), _describe(record)
    return Fate.CONFLICT, f"another record of this run is here ({ours}; offered: {theirs})"


def _named(context: "Context", name: str) -> "tuple[Run, Context]":
    """The run that a member's name stands for, and the context of its preset; raises UsageError."""
    top, _, path = name.partition("/")
    preset, _, rest = path.partition("/")
    if top != TOP or not rest.endswith(".json"):
        raise UsageError(f"not a record's name; expected {TOP}/<preset>/<run id>.json")
    here = replace(context, preset=context.registry.preset(preset))
    run = here.registry.parse(rest.removesuffix(".json"))
    here.registry.config(run, here.preset)
    return run, here


def _describe(record: "RunRecord") -> str:
    accuracy = record.result.accuracy
    reached = "diverged" if accuracy is None else f"{accuracy:.2f} %"
    return f"{reached} on {record.provenance.device}, {record.provenance.ended:%Y-%m-%d}"
