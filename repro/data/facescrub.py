"""FaceScrub: from two lists of addresses of 2014 to what is still there of its faces.

    <data>/facescrub/raw/lists/         the two lists, as their publishers send them
                         images/        the pictures that were found, each under its sha256
                         fetched.jsonl  what became of each address
                         missing.tsv    every listed face that is not there, and why

A face is cut out by its listed box and resized; which identities count and how they are split is
`repro.data.identities`. The paper's 361 classes are not asserted: what was found is what the set has.

A folder tree that another program downloaded is taken as well. Two kinds of files count, wherever they lie:

- a whole picture, known by its bytes alone: its sha256 is that of a row, whatever the file is called;
- a face that was cut out already, below a folder `face` or `faces`, known by its name as the usual scripts
  give it: `Name_Surname_<image id>_<face id>.…`, or below a folder `Name_Surname`: `<image id>_<face id>.…`
  or the sha1 of the address, of which such a script keeps the first row's face only.

Where both are there, the whole picture counts: its bytes are the published ones, and the box is the list's.
"""

import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from repro.data import DATA_SETS
from repro.data.crawl import crawl, picture, read_journal
from repro.data.decode import DecodeRules, ImageFile, ImageRequest, listing_digest, tree_files
from repro.data.face_lists import LISTS, Face, FaceLists, read_face_lists
from repro.data.files import progress
from repro.data.http_get import CrawlPolicy, FetchResult
from repro.data.identities import MIN_IMAGES, Candidate, SplitRule, prepare_identities
from repro.errors import DataMissingError, UsageError
from repro.manifest import Manifest
from repro.storage import make_folder, write_whole
from repro.system import usable_cores

NAME = "facescrub"
TITLE = DATA_SETS[NAME].title
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")  # of 2014's web; the first picture of an animation counts
LARGEST_FILE = 64 << 20  # bytes of a file in a downloaded tree
FACE_FOLDERS = frozenset({"face", "faces"})

_log = logging.getLogger(__name__)


Found = dict[Face, ImageRequest]
"""Where faces are, in the lists' order: in the request's box of its file, all of it where there is no box."""


def fetch(
    data_dir: Path,
    *,
    lists: Path | None = None,
    retry_dead: bool = False,
    allow_private_addresses: bool = False,
    policy: CrawlPolicy | None = None,
) -> Path:
    """The folder of the pictures, after each address of the lists was asked for once.

    The files in the folder `lists` are copied; without, those that are there count. `retry_dead` requests
    addresses again that brought nothing, `allow_private_addresses` those of this machine and its network too.

    Raises DataMissingError without lists, FetchError without a network, SetupError.
    """
    listed, folder = _listed(data_dir, lists), _raw(data_dir)
    wanted: dict[str, frozenset[str]] = {}
    for sha256, addresses in listed.addresses.items():
        for address in addresses:
            wanted[address] = wanted.get(address, frozenset()) | {sha256}
    _log.info("%s at %s addresses", _rows_note(listed), f"{len(wanted):,}")
    policy = replace(policy or CrawlPolicy(), allow_private_addresses=allow_private_addresses)
    on_disk, results = crawl(wanted, folder, policy, retry_failed=retry_dead)
    missing, report = _missing(listed, on_disk, results), folder / "missing.tsv"
    header = ("cause", "name", "image_id", "face_id", "url", "detail")
    refused = [
        (f"row-{row.cause}", "", "", "", "", f"{row.list} line {row.line}: {row.reason}")
        for row in listed.refused
    ]
    write_whole(report, "".join("\t".join(row) + "\n" for row in (header, *missing, *refused)).encode())
    _log.info("%s; %s lists what is missing", _found_note(listed, on_disk, missing), report)
    return folder


def prepare(
    data_dir: Path,
    *,
    source: Path | None = None,
    lists: Path | None = None,
    save_as: str = NAME,
    title: str | None = None,
    min_images: int | None = None,
) -> Manifest:
    """Write the prepared set from the pictures that `fetch` got or, where it is named, from another's tree.

    Raises UsageError for another rule than the paper's under the paper's name, DataMissingError without
    lists or pictures, SetupError where a folder cannot be read or written.
    """
    if min_images is not None and save_as == NAME:
        raise UsageError(
            f"--min-images {min_images}: {TITLE} itself leaves out people with fewer than {MIN_IMAGES} "
            "images; a set by another rule needs a name of its own, --as NAME"
        )
    if save_as != NAME and TITLE.casefold() in (title or "").casefold():
        raise UsageError(f"--title {title!r}: only {NAME} itself may be called {TITLE}")
    title = TITLE if save_as == NAME else title or save_as
    listed = _listed(data_dir, lists)
    fetched = _fetched(data_dir, listed) if source is None else {}
    files = [each.file for each in fetched.values()] if source is None else tree_files(source)[0]

    def find() -> tuple[list[Candidate], dict[str, str], list[str]]:
        if source is None:
            on_disk = frozenset(face.sha256 for face in fetched)
            missing = _missing(listed, on_disk, read_journal(_raw(data_dir)))
            faces, note = fetched, _found_note(listed, on_disk, missing)
        else:
            faces, others = match_tree(source, files, listed)
            whole = sum(each.box is not None for each in faces.values())
            note = (
                f"{len(faces):,} faces found in a downloaded tree, {whole:,} in whole pictures and "
                f"{len(faces) - whole:,} cut out by others, whose bytes cannot be checked; "
                f"{len(listed.faces) - len(faces):,} missing; {others:,} files are no face of the lists"
            )
        found = [
            Candidate(face.name, f"{face.name}/{face.image_id}/{face.face_id}", request)
            for face, request in faces.items()
        ]
        return found, {}, [_rows_note(listed), note]

    return prepare_identities(
        data_dir,
        save_as,
        title,
        SplitRule(min_images or MIN_IMAGES),
        DecodeRules(DATA_SETS[NAME].image_size, formats=FORMATS),
        crop="the listed box",
        listing=listing_digest(files),
        sources=listed.sources,
        find=find,
    )


def match_tree(root: Path, files: Sequence[ImageFile], lists: FaceLists) -> tuple[Found, int]:
    """The faces of `lists` among the `files` below `root`, and how many files are none.

    Raises DataMissingError where there is no face, SetupError where a file cannot be read.
    """
    by_picture: dict[str, list[Face]] = {}
    for face in lists.faces:
        by_picture.setdefault(face.sha256, []).append(face)
    by_name: dict[tuple[str, str], Face] = {}  # by folder, and by ids or the address: its first row counts
    for face in reversed(lists.faces):
        address = hashlib.sha1(face.url.encode(), usedforsecurity=False).hexdigest()
        for stem in (f"{face.image_id}_{face.face_id}", address):
            by_name[_folder(face.name), stem] = face
    others = 0
    whole: Found = {}
    cut_out: Found = {}
    with ThreadPoolExecutor(usable_cores()) as threads, progress("hashed", len(files), "files") as advance:
        for file, sha256 in zip(files, threads.map(_sha256, files), strict=True):
            if sha256 in by_picture:
                for face in by_picture[sha256]:
                    whole.setdefault(face, ImageRequest(file, face.box, sha256))
            elif sha256 and (named := _cut_out(PurePosixPath(file.name), by_name)):
                cut_out.setdefault(named, ImageRequest(file, None, sha256))
            else:
                others += 1
            advance(1)
    either = {**cut_out, **whole}
    if not either:
        raise DataMissingError(
            f"none of the {len(files):,} files below {root} is a face of the lists: expected pictures as "
            "they were published, or cut-out faces named as in faces/Name_Surname/Name_Surname_1_2.jpeg"
        )
    return {face: either[face] for face in lists.faces if face in either}, others


def find_source(data_dir: Path) -> Path | None:
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
    make_folder(kept)
    for name in LISTS:
        write_whole(kept / name, (given / name).read_bytes())
    return listed


def _fetched(data_dir: Path, listed: FaceLists) -> Found:
    """The faces whose picture is in the data folder."""
    images = _raw(data_dir) / "images"
    found: Found = {}
    for face in listed.faces:
        path = picture(_raw(data_dir), face.sha256)
        if path.is_file():
            file = ImageFile(str(images), path.relative_to(images).as_posix(), path.stat().st_size)
            found[face] = ImageRequest(file, face.box, face.sha256)
    if not found:
        raise DataMissingError(
            f"no picture of {TITLE} is on disk: run `repro data fetch {NAME} --lists DIR`, or name the top "
            f"of a tree that another program downloaded with `repro data prepare {NAME} --from DIR`"
        )
    return found


def _missing(
    listed: FaceLists, on_disk: frozenset[str], results: Mapping[str, FetchResult]
) -> list[tuple[str, ...]]:
    """Cause, name, ids, address and detail of each address of each face that is not there."""
    rows: list[tuple[str, ...]] = []
    for face in listed.faces:
        for address in listed.addresses[face.sha256] if face.sha256 not in on_disk else ():
            result = results.get(address, FetchResult("not-asked", "not asked for yet"))
            if result.found:  # another of the pictures that the lists expect there
                result = FetchResult("mismatch", f"{result.size:,} bytes with sha256 {result.sha256}")
            ids = (str(face.image_id), str(face.face_id))
            rows.append((result.cause, face.name, *ids, address, result.detail))
    return rows


def _rows_note(listed: FaceLists) -> str:
    causes = Counter(row.cause for row in listed.refused)
    unusable = f", {len(listed.refused):,} of them unusable ({_counted(causes)})" if causes else ""
    return f"the lists have {listed.rows:,} rows{unusable}: {len(listed.faces):,} faces"


def _found_note(listed: FaceLists, on_disk: frozenset[str], missing: Sequence[tuple[str, ...]]) -> str:
    """`8 faces found, 12 missing (by address: gone 8, mismatch 5)`."""
    found = sum(face.sha256 in on_disk for face in listed.faces)
    causes = _counted(Counter(cause for cause, *_ in missing))
    lost = f", {len(listed.faces) - found:,} missing (by address: {causes})" if missing else ""
    return f"{found:,} faces found{lost}"


def _counted(causes: Counter[str]) -> str:
    """`gone 12, mismatch 3`; the most frequent first."""
    return ", ".join(f"{cause} {count:,}" for cause, count in causes.most_common())


def _cut_out(path: PurePosixPath, by_name: Mapping[tuple[str, str], Face]) -> Face | None:
    """The face that a cut-out file shows by its path below the tree's top, as download scripts name it."""
    folders = path.parts[:-1]
    if not FACE_FOLDERS.intersection(folders):
        return None
    ids = re.fullmatch(r"(?:(.+)_)?0*([0-9]{1,12})_0*([0-9]{1,12})", path.stem)
    stem = f"{ids[2]}_{ids[3]}" if ids else path.stem
    people = [ids[1]] if ids and ids[1] else []
    found = (by_name.get((_folder(person), stem)) for person in [*people, *reversed(folders)])
    return next(filter(None, found), None)


def _folder(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace(" ", "_")


def _sha256(file: ImageFile) -> str:
    """The file's sha256; empty for what is no plain file, or larger than any picture here."""
    try:
        content = file.read(LARGEST_FILE)
    except ValueError:
        return ""
    return hashlib.sha256(content).hexdigest() if len(content) <= LARGEST_FILE else ""
