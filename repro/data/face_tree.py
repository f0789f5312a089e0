"""Which listed faces are in a folder tree that another program downloaded.

Two kinds of files are taken, wherever they lie below the tree's top:

- a whole picture, known by its bytes alone: its sha256 is that of a row, whatever the file is called;
- a face that was cut out already, below a folder `face` or `faces`, known by its name as the usual scripts
  give it: `Name_Surname_<image id>_<face id>.…`, or below a folder `Name_Surname`: `<image id>_<face id>.…`
  or the sha1 of the address, of which such a script keeps the first row's face only.

Where both are there, the whole picture counts: its bytes are the published ones, and the box is the list's.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from repro.cores import usable_cores
from repro.data.download import Progress
from repro.data.face_lists import Box, Face, FaceLists
from repro.data.image_files import PlainFile, plain_files
from repro.errors import DataMissingError, SetupError

LARGEST_FILE = 64 << 20
FACE_FOLDERS = frozenset({"face", "faces"})


@dataclass(frozen=True)
class FaceFile:
    """Where a face is: in `box` of the image in `file`, all of it where there is no box.

    `sha256` is the file's: that of the list for a whole picture.
    """

    face: Face
    file: PlainFile
    box: Box | None
    sha256: str


@dataclass(frozen=True)
class FaceTree:
    """What a tree has of the lists, in their order."""

    found: tuple[FaceFile, ...]
    others: int
    """Files that are no face of the lists: other bytes than published, or an unknown name."""


def tree_files(root: Path) -> list[PlainFile]:
    """Every file below `root` in an order that is the same everywhere, but hidden ones and hidden folders.

    Links to folders are not followed.

    Raises DataMissingError where there is no such folder, SetupError where one cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from error

    if not root.is_dir():
        raise DataMissingError(f"{root} is not a folder: --from names the top of a downloaded tree")
    files = []
    for folder, folders, _ in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.isprintable())
        below = Path(folder).relative_to(root).as_posix()
        files += [
            file
            for file in plain_files(root, "" if below == "." else below)
            if file.name.isprintable() and not PurePosixPath(file.name).name.startswith(".")
        ]
    return files


def match_tree(
    root: Path, files: Sequence[PlainFile], lists: FaceLists, progress: Progress | None = None
) -> FaceTree:
    """Find the faces of `lists` among the `files` below `root`; `progress` counts files.

    Raises DataMissingError where there is none, SetupError where a file cannot be read.
    """
    by_picture: dict[str, list[Face]] = {}
    for face in lists.faces:
        by_picture.setdefault(face.sha256, []).append(face)
    names = _Names(lists)
    whole: dict[tuple[str, int, int], FaceFile] = {}
    cut_out: dict[tuple[str, int, int], FaceFile] = {}
    others = 0
    with ThreadPoolExecutor(usable_cores()) as threads:
        for done, (file, sha256) in enumerate(zip(files, threads.map(_sha256, files), strict=True), start=1):
            if sha256 in by_picture:
                for face in by_picture[sha256]:
                    whole.setdefault(face.key, FaceFile(face, file, face.box, sha256))
            elif sha256 and (named := names.face_of(PurePosixPath(file.name))):
                cut_out.setdefault(named.key, FaceFile(named, file, None, sha256))
            else:
                others += 1
            if progress is not None:
                progress(done, len(files), "files")
    either = {**cut_out, **whole}
    if not either:
        raise DataMissingError(
            f"none of the {len(files):,} files below {root} is a face of the lists: expected pictures as "
            "they were published, or cut-out faces named as in faces/Name_Surname/Name_Surname_1_2.jpeg"
        )
    return FaceTree(tuple(either[face.key] for face in lists.faces if face.key in either), others)


class _Names:
    """The lists' faces by what download scripts call their files."""

    def __init__(self, lists: FaceLists) -> None:
        self.by_ids = {(_folder(face.name), face.image_id, face.face_id): face for face in lists.faces}
        self.by_address: dict[tuple[str, str], Face] = {}
        for face in lists.faces:
            digest = hashlib.sha1(face.url.encode(), usedforsecurity=False).hexdigest()
            self.by_address.setdefault((_folder(face.name), digest), face)

    def face_of(self, path: PurePosixPath) -> Face | None:
        """The face that a cut-out file shows by its path below the tree's top."""
        folders = path.parts[:-1]
        if not FACE_FOLDERS.intersection(folders):
            return None
        ids = re.fullmatch(r"(?:(.+)_)?([0-9]{1,12})_([0-9]{1,12})", path.stem)
        for person in ([ids[1]] if ids and ids[1] else []) + [*reversed(folders)]:
            folder = _folder(person)
            if ids and (face := self.by_ids.get((folder, int(ids[2]), int(ids[3])))):
                return face
            if face := self.by_address.get((folder, path.stem)):
                return face
        return None


def _folder(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace(" ", "_")


def _sha256(file: PlainFile) -> str:
    """The file's sha256; empty for what is no plain file, or larger than any picture here."""
    try:
        content = file.read(LARGEST_FILE)
    except ValueError:
        return ""
    return hashlib.sha256(content).hexdigest() if len(content) <= LARGEST_FILE else ""
