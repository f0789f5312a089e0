"""FaceScrub: from two lists of addresses of 2014 to what is still there of its faces.

<data>/facescrub/raw/lists/         the two lists, as their publishers send them
                     images/        the pictures that were found, each under its sha256
                     fetched.jsonl  what became of each address
                     missing.tsv    every listed face that is not there, and why
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from repro.data.crawl import Crawled, crawl
from repro.data.crawl_queue import Manners
from repro.data.download import Notify, Progress, explain_write_failure
from repro.data.face_lists import LISTS, FaceLists, read_face_lists
from repro.data.public_web import RequestLimits
from repro.errors import FetchError

NAME = "facescrub"
TITLE = "FaceScrub"


def fetch(
    data_dir: Path,
    progress: Progress | None = None,
    notify: Notify | None = None,
    *,
    lists: Path | None = None,
    retry_dead: bool = False,
    allow_private_addresses: bool = False,
    manners: Manners | None = None,
) -> Path:
    """The folder of the pictures, after each address of the lists was asked for once.

    `lists` is a folder of the lists, which are copied; without it those that are there count. Addresses that
    brought nothing are asked for again where `retry_dead`. `progress` counts addresses.

    Raises DataMissingError without lists, FetchError without a network, SetupError.
    """
    listed = _listed(data_dir, lists)
    say = notify or _silent
    folder = _raw(data_dir)
    wanted: dict[str, set[str]] = {}
    for sha256, addresses in listed.addresses.items():
        for address in addresses:
            wanted.setdefault(address, set()).add(sha256)
    say(
        f"{TITLE}'s lists have {listed.rows:,} rows, {len(listed.refused):,} of which cannot be used: "
        f"{len(listed.faces):,} faces at {len(wanted):,} addresses"
    )
    crawled = crawl(
        {address: frozenset(pictures) for address, pictures in wanted.items()},
        folder,
        manners=manners,
        limits=RequestLimits(allow_private_addresses=allow_private_addresses),
        retry_failed=retry_dead,
        progress=progress,
        notify=notify,
    )
    found = sum(face.sha256 in crawled.on_disk for face in listed.faces)
    causes = Counter(crawled.outcomes[address].cause for address in wanted if address in crawled.outcomes)
    del causes["found"]
    report = folder / "missing.tsv"
    _write_report(report, listed, crawled)
    say(
        f"{found:,} of {len(listed.faces):,} faces are there, the rest is listed in {report}; addresses "
        f"without their picture: {_counted(causes)}"
    )
    return folder


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


def _write_report(path: Path, listed: FaceLists, crawled: Crawled) -> None:
    """Write every face that is not there, address by address, with the reason."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            for fields in _missing(listed, crawled):
                stream.write("\t".join(fields) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise FetchError(explain_write_failure(path, error)) from error


def _missing(listed: FaceLists, crawled: Crawled) -> Iterator[tuple[str, ...]]:
    yield "cause", "name", "image_id", "face_id", "url", "detail"
    for face in listed.faces:
        if face.sha256 in crawled.on_disk:
            continue
        for address in listed.addresses[face.sha256]:
            outcome = crawled.outcomes[address]
            # The address had another of the pictures that the lists expect there.
            cause, detail = ("mismatch", outcome.sha256) if outcome.found else (outcome.cause, outcome.detail)
            yield cause, face.name, str(face.image_id), str(face.face_id), address, detail
    for row in listed.refused:
        yield f"row-{row.cause}", "", "", "", "", f"{row.list} line {row.line}: {row.reason}"


def _counted(causes: Counter[str]) -> str:
    """`gone 12, mismatch 3`; the most frequent first."""
    return ", ".join(f"{cause} {count:,}" for cause, count in causes.most_common()) or "none"


def _silent(message: str) -> None:
    """What `notify` is where nobody listens."""
