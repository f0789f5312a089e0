"""FaceScrub: from two lists of addresses of 2014 to what is still there of its faces.

    <data>/facescrub/raw/lists/         the two lists, as their publishers send them
                         images/        the pictures that were found, each under its sha256
                         fetched.jsonl  what became of each address
                         missing.tsv    every listed face that is not there, and why

A face is cut out by its listed box and resized; which identities count and how they are split is
`repro.data.identity_split`. The paper's 361 classes are not asserted: what was found is what the set has.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from repro.data import DATA_SETS, FetchOptions, PrepareOptions
from repro.data.crawl import crawl
from repro.data.crawl_queue import Manners
from repro.data.crawl_store import Outcome, journal_of, picture, read_journal
from repro.data.decode import DecodeRules, Wanted
from repro.data.download import Notify, Progress, explain_write_failure
from repro.data.face_lists import LISTS, FaceLists, read_face_lists
from repro.data.face_tree import FaceFile, match_tree, tree_files
from repro.data.identities import Candidate, write_identities
from repro.data.identity_split import SplitRule
from repro.data.image_digest import listing_digest
from repro.data.image_files import PlainFile
from repro.data.public_web import RequestLimits
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataMissingError, FetchError, UsageError
from repro.manifest import Manifest

NAME = "facescrub"
TITLE = DATA_SETS[NAME].title
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
"""What the web of 2014 has under any name; of an animation the first picture counts."""


def fetch(
    data_dir: Path,
    options: FetchOptions,
    progress: Progress | None = None,
    notify: Notify | None = None,
    manners: Manners | None = None,
) -> Path:
    """The folder of the pictures, after each address of the lists was asked for once.

    The lists in `options.lists` are copied; without, those that are there count. `progress` counts files.

    Raises DataMissingError without lists, FetchError without a network, SetupError.
    """
    listed = _listed(data_dir, options.lists)
    say = notify or _silent
    folder = _raw(data_dir)
    wanted: dict[str, set[str]] = {}
    for sha256, addresses in listed.addresses.items():
        for address in addresses:
            wanted.setdefault(address, set()).add(sha256)
    say(f"{_rows_note(listed)} at {len(wanted):,} addresses")
    crawled = crawl(
        {address: frozenset(pictures) for address, pictures in wanted.items()},
        folder,
        manners=manners,
        limits=RequestLimits(allow_private_addresses=options.allow_private_addresses),
        retry_failed=options.retry_dead,
        progress=progress,
        notify=notify,
    )
    missing = list(_missing(listed, crawled.on_disk, crawled.outcomes))
    found = sum(face.sha256 in crawled.on_disk for face in listed.faces)
    report = folder / "missing.tsv"
    _write_report(report, listed, missing)
    causes = Counter(cause for cause, *_ in missing)
    say(f"{found:,} faces found{_missing_note(listed, found, causes)}; {report} lists what is missing")
    return folder


def prepare(
    data_dir: Path, options: PrepareOptions, progress: Progress | None = None, notify: Notify | None = None
) -> Manifest:
    """Write the prepared set from the pictures that `fetch` got or, where it is named, from another's tree.

    Raises UsageError for another rule than the paper's under the paper's name, DataMissingError without
    lists or pictures, SetupError where a folder cannot be read or written.
    """
    name = options.name or NAME
    if options.min_images is not None and name == NAME:
        raise UsageError(
            f"--min-images {options.min_images}: {TITLE} itself leaves out people with fewer than "
            f"{SplitRule().min_images} images; a set by another rule needs a name of its own, --as NAME"
        )
    if name != NAME and TITLE.casefold() in (options.title or "").casefold():
        raise UsageError(f"--title {options.title!r}: only {NAME} itself may be called {TITLE}")
    title = TITLE if name == NAME else options.title or name
    rule = SplitRule() if options.min_images is None else SplitRule(min_images=options.min_images)
    rules = DecodeRules(DATA_SETS[NAME].image_size, formats=FORMATS)
    listed = _listed(data_dir, options.lists)
    if options.source is None:
        found = _fetched(data_dir, listed)
        files = [each.file for each in found]
    else:
        files = tree_files(options.source)
    listing = listing_digest(files)

    def make(writer: PreparedWriter) -> Manifest:
        if options.source is None:
            faces, note = found, _fetched_note(data_dir, listed, found)
        else:
            tree = match_tree(options.source, files, listed, progress)
            faces, note = tree.found, _tree_note(listed, tree.found, tree.others)
        return write_identities(
            writer,
            [_candidate(each) for each in faces],
            rule,
            rules,
            settings={"crop": "the listed box"},
            left_out={},
            sources=listed.sources,
            listing=listing,
            notes=[_rows_note(listed), note],
            progress=progress,
        )

    def same(there: Manifest) -> bool:
        settings = {"crop": "the listed box", **rule.settings}
        lists_same = listed.sources.items() <= there.sources.items()
        return lists_same and (there.title, there.settings, there.listing) == (title, settings, listing)

    return prepare_once(data_dir, name, title, make, wanted=same, progress=progress, notify=notify)


def located(data_dir: Path) -> Path | None:
    """The folder of the pictures where something was fetched, by name alone; None where not."""
    images = _raw(data_dir) / "images"
    return images if images.is_dir() else None


def _raw(data_dir: Path) -> Path:
    return data_dir / NAME / "raw"


def _listed(data_dir: Path, given: Path | None) -> FaceLists:
    """The lists in the data folder, after those that are `given` were copied there."""
    kept = _raw(data_dir) / "lists"
    if given is None:
        return read_face_lists(kept)
    listed = read_face_lists(given)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for name in LISTS:
            if given.resolve() != kept.resolve():
                shutil.copyfile(given / name, kept / f".{name}")
                (kept / f".{name}").replace(kept / name)
    except OSError as error:
        raise FetchError(explain_write_failure(kept, error)) from error
    return listed


def _fetched(data_dir: Path, listed: FaceLists) -> tuple[FaceFile, ...]:
    """The faces whose picture is in the data folder."""
    images = _raw(data_dir) / "images"
    found = []
    for face in listed.faces:
        path = picture(_raw(data_dir), face.sha256)
        if path.is_file():
            file = PlainFile(str(images), path.relative_to(images).as_posix(), path.stat().st_size)
            found.append(FaceFile(face, file, face.box, face.sha256))
    if not found:
        raise DataMissingError(
            f"no picture of {TITLE} is on disk: run `repro data fetch {NAME} --lists DIR`, or name the top "
            f"of a tree that another program downloaded with `repro data prepare {NAME} --from DIR`"
        )
    return tuple(found)


def _candidate(each: FaceFile) -> Candidate:
    face = each.face
    wanted = Wanted(each.file, each.box, each.sha256)
    return Candidate(face.name, f"{face.name}/{face.image_id}/{face.face_id}", wanted)


def _missing(
    listed: FaceLists, on_disk: frozenset[str], outcomes: Mapping[str, Outcome]
) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Cause, name, ids, address and detail of each address of each face that is not there."""
    for face in listed.faces:
        if face.sha256 in on_disk:
            continue
        for address in listed.addresses[face.sha256]:
            outcome = outcomes.get(address, Outcome("not-asked", "not asked for yet"))
            if outcome.found:
                # The address had another of the pictures that the lists expect there.
                outcome = Outcome("mismatch", f"{outcome.size:,} bytes with sha256 {outcome.sha256}")
            ids = str(face.image_id), str(face.face_id)
            yield outcome.cause, face.name, *ids, address, outcome.detail


def _write_report(path: Path, listed: FaceLists, missing: Sequence[tuple[str, ...]]) -> None:
    """Write every face that is not there, address by address, and every row that cannot be used."""
    header = ("cause", "name", "image_id", "face_id", "url", "detail")
    refused = [
        (f"row-{row.cause}", "", "", "", "", f"{row.list} line {row.line}: {row.reason}")
        for row in listed.refused
    ]
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines("\t".join(fields) + "\n" for fields in (header, *missing, *refused))
        temporary.replace(path)
    except OSError as error:
        raise FetchError(explain_write_failure(path, error)) from error


def _rows_note(listed: FaceLists) -> str:
    causes = Counter(row.cause for row in listed.refused)
    unusable = f", {len(listed.refused):,} of them unusable ({_counted(causes)})" if causes else ""
    return f"the lists have {listed.rows:,} rows{unusable}: {len(listed.faces):,} faces"


def _fetched_note(data_dir: Path, listed: FaceLists, found: Sequence[FaceFile]) -> str:
    on_disk = frozenset(each.sha256 for each in found)
    outcomes = read_journal(journal_of(_raw(data_dir)))
    causes = Counter(cause for cause, *_ in _missing(listed, on_disk, outcomes))
    return f"{len(found):,} faces found{_missing_note(listed, len(found), causes)}"


def _tree_note(listed: FaceLists, found: Sequence[FaceFile], others: int) -> str:
    whole = sum(each.box is not None for each in found)
    return (
        f"{len(found):,} faces found in a downloaded tree, {whole:,} in whole pictures and "
        f"{len(found) - whole:,} cut out by others, whose bytes cannot be checked; "
        f"{len(listed.faces) - len(found):,} missing; {others:,} files are no face of the lists"
    )


def _missing_note(listed: FaceLists, found: int, causes: Counter[str]) -> str:
    """`, 12 missing (by address: gone 8, mismatch 5)`, or nothing."""
    missing = len(listed.faces) - found
    return f", {missing:,} missing (by address: {_counted(causes)})" if missing else ""


def _counted(causes: Counter[str]) -> str:
    """`gone 12, mismatch 3`; the most frequent first."""
    return ", ".join(f"{cause} {count:,}" for cause, count in causes.most_common())


def _silent(message: str) -> None:
    """What `notify` is where nobody listens."""
