"""Writing a prepared set whole or not at all, from images that come in pieces.

Images are written, hashed, counted and summed as they come, so that a set of any size passes through a few
megabytes. Everything goes to a temporary folder beside the real one, which is renamed when all is written
and on disk: a folder that looks finished is finished, and an older one stays until then.
"""

import hashlib
import io
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.arrays import check_images, check_labels, verify_prepared
from repro.data.download import Progress
from repro.data.files import explain_write_failure, one_at_a_time
from repro.data.prepared import Images, Labels
from repro.data.statistics import ChannelSums
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split, prepared_folder
from repro.storage import fsync_folder

_log = logging.getLogger(__name__)


def prepare_once(
    data_dir: Path,
    name: str,
    title: str,
    make: Callable[["PreparedWriter"], Manifest],
    *,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of the set `name`: whole arrays of the `wanted` kind stay, else `make` writes them.

    One process prepares a set at a time; whoever waited finds it done.

    Raises what `make` raises, and SetupError where the folder cannot be written.
    """
    # Looked at without the lock first: whole arrays may lie in a folder that cannot be written.
    manifest, problem = _whole(data_dir, name, wanted, progress)
    if manifest:
        return manifest
    if problem:
        _log.info("preparing %s again: %s", title, problem)
    target = prepared_folder(data_dir, name)
    with one_at_a_time(target.with_name(".prepared.lock"), f"preparing {title}"):
        manifest, _ = _whole(data_dir, name, wanted, None)
        if manifest:
            return manifest
        with _open_writer(target, name, title) as writer:
            return make(writer)


class PreparedWriter:
    """Takes first the training, then the test images of one set; `finish` gives the folder its name.

    `folder` is the temporary one: what a preparation puts there besides is removed with it.
    """

    def __init__(self, target: Path, name: str, title: str) -> None:
        self._target, self._name, self._title = target, name, title
        self._splits: dict[str, Split] = {}
        self._labels: list[Labels] = []
        self._sums = ChannelSums()
        self.folder = target.with_name(".prepared.writing")

    def split(self, which: str, labels: Labels, members: str, images: Iterable[Images]) -> None:
        """Write the split `which`, "train" or "test": `images` in pieces (n, 3, S, S) uint8, one a label.

        `labels` is (N,) int64, `members` what `arrays.membership` gives for the images.

        Raises ValueError for other shapes, types or counts, SetupError where it cannot be written.
        """
        check_labels(labels, len(labels))

        def checked() -> Iterator[Images]:
            for piece in images:
                check_images(piece)
                if which == "train":
                    self._sums.add(piece)
                yield piece

        self._labels.append(labels)
        self._splits[which] = Split(
            images=self._write_array(self.folder / f"{which}-images.npy", len(labels), checked()),
            labels=self._write_array(self.folder / f"{which}-labels.npy", len(labels), [labels]),
            membership=members,
        )

    @contextmanager
    def spool(self, path: Path) -> Iterator[Callable[[Images], None]]:
        """Opens a file in `folder` for images that are put in order later; hands over what appends to it."""
        with self._explained():
            stream = path.open("wb", buffering=0)
        with stream:
            yield lambda images: self._append(stream, np.ascontiguousarray(images).data)

    def finish(self, class_names: Sequence[str], sources: Mapping[str, str], **facts: Any) -> Manifest:
        """Write the manifest and put the folder in its place, replacing an older one whole.

        `facts` are further fields of the manifest: partial, notes, tools, settings, left_out, listing.

        Raises ValueError for labels beyond the class names or splits of different sizes, SetupError where it
        cannot be written.
        """
        train, test = self._splits["train"], self._splits["test"]
        if train.images.shape[1:] != test.images.shape[1:]:
            raise ValueError(f"training images are {train.images.shape[1:]}, test {test.images.shape[1:]}")
        for labels in self._labels:
            check_labels(labels, len(labels), len(class_names))
        mean, std = self._sums.mean_and_std()
        manifest = Manifest(
            preparation_version=PREPARATION_VERSION,
            name=self._name,
            title=self._title,
            sources=dict(sources),
            image_size=train.images.shape[-1],
            class_names=tuple(class_names),
            train=train,
            test=test,
            mean=mean,
            std=std,
            **facts,
        )
        self._write(self.folder / "manifest.json", [manifest.to_json().encode()])
        kept = {"manifest.json", *(file.file for s in (train, test) for file in (s.images, s.labels))}
        with self._explained():
            for entry in self.folder.iterdir():
                if entry.name not in kept:
                    entry.unlink()
            fsync_folder(self.folder)
            if self._target.exists():
                self._target.rename(_old(self._target))
            self.folder.rename(self._target)
            fsync_folder(self._target.parent)
        return manifest

    def _write_array(self, path: Path, count: int, pieces: Iterable[Images | Labels]) -> ArrayFile:
        """What np.save would write of the pieces, one after another."""
        remaining = iter(pieces)
        first = next(remaining, None)
        if first is None:
            raise ValueError(f"expected images for {path.name}, got none")
        shape, dtype = (count, *first.shape[1:]), first.dtype
        arrived = 0

        def contents() -> Iterator[bytes | memoryview]:
            nonlocal arrived
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": dtype.str, "fortran_order": False, "shape": shape}
            )
            yield header.getvalue()
            for piece in itertools.chain([first], remaining):
                if piece.shape[1:] != shape[1:] or piece.dtype != dtype:
                    raise ValueError(f"{path.name}: expected {shape[1:]} of {dtype}, got {piece.shape[1:]}")
                arrived += len(piece)
                yield np.ascontiguousarray(piece).data

        sha256 = self._write(path, contents())
        if arrived != count:
            raise ValueError(f"{path.name}: expected {count} in all, got {arrived}")
        return ArrayFile(file=path.name, sha256=sha256, shape=shape, dtype=str(dtype))

    def _write(self, path: Path, contents: Iterable[bytes | memoryview]) -> str:
        """Write a file and return its sha256."""
        digest = hashlib.sha256()
        # Unbuffered, so that closing never has bytes left to write, and nothing to fail at.
        with self._explained():
            stream = path.open("wb", buffering=0)
        with stream:
            for content in contents:
                digest.update(content)
                self._append(stream, content)
            with self._explained():
                os.fsync(stream.fileno())
        return digest.hexdigest()

    def _append(self, stream: io.FileIO, content: bytes | memoryview) -> None:
        rest = memoryview(content).cast("B")
        with self._explained():
            while rest:
                rest = rest[stream.write(rest) :]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(explain_write_failure(self._target, error)) from error


@contextmanager
def _open_writer(target: Path, name: str, title: str) -> Iterator[PreparedWriter]:
    """A writer with its folder, under the lock; what is left of it goes when the block ends."""
    writer = PreparedWriter(target, name, title)
    _tidy(target, writer.folder)  # what a killed process left; its lock is ours now
    try:
        try:
            writer.folder.mkdir(parents=True)
        except OSError as error:
            raise SetupError(explain_write_failure(target, error)) from error
        yield writer
    finally:
        _tidy(target, writer.folder)


def _tidy(target: Path, new: Path) -> None:
    """Remove what is half-written; an older folder goes only once the new one has its place."""
    shutil.rmtree(new, ignore_errors=True)
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(".prepared.old")


def _whole(
    data_dir: Path, name: str, wanted: Callable[[Manifest], bool], progress: Progress | None
) -> tuple[Manifest | None, str]:
    """The manifest of the arrays that are there, whole and of the wanted kind, or what is wrong with them."""
    try:
        found = verify_prepared(data_dir, name, progress)
    except DataMissingError:
        return None, ""  # never prepared, or by another version
    except DataCorruptError as error:
        return None, str(error)
    if wanted(found):
        return found, ""
    return None, "what is there was made of another source or with other options"
