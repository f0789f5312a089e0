"""Writing a prepared set whole or not at all, from images that come in pieces.

Images go to memory-mapped files, so that a set of any size passes through a few megabytes. Everything lies in
a temporary folder beside the real one, which is renamed when all is written and on disk: a folder that looks
finished is finished, and an older one stays until then.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.files import explain_write_failure, file_hash, one_at_a_time
from repro.data.prepared import Images, Labels, check_labels, statistics, verify_prepared
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split, prepared_folder
from repro.storage import fsync_folder, write_whole

OLD = ".prepared.old"  # the earlier folder, while the new one takes its place

_log = logging.getLogger(__name__)


def prepare_once(
    data_dir: Path,
    name: str,
    title: str,
    make: Callable[["PreparedWriter"], Manifest],
    *,
    wanted: Callable[[Manifest], bool] = lambda manifest: True,
) -> Manifest:
    """The manifest of the set `name`: whole arrays of the `wanted` kind stay, else `make` writes them.

    One process prepares a set at a time; whoever waited finds it done.

    Raises what `make` raises, and SetupError where the folder cannot be written.
    """
    # Looked at without the lock first: whole arrays may lie in a folder that cannot be written.
    manifest, problem = _whole(data_dir, name, wanted)
    if manifest:
        return manifest
    if problem:
        _log.info("preparing %s again: %s", title, problem)
    target = prepared_folder(data_dir, name)
    with one_at_a_time(target.with_name(".prepared.lock"), f"preparing {title}"):
        manifest, _ = _whole(data_dir, name, wanted)
        if manifest:
            return manifest
        writer = PreparedWriter(target, name, title)
        _tidy(target, writer.folder)  # what a killed process left; its lock is ours now
        try:
            writer.folder.mkdir(parents=True)
            return make(writer)
        except OSError as error:  # of writing: whatever is read has its own errors
            raise SetupError(explain_write_failure(target, error)) from error
        finally:
            _tidy(target, writer.folder)


class PreparedWriter:
    """Takes the training and the test images of one set; `finish` gives the folder its name.

    `folder` is the temporary one: what a preparation puts there besides is removed with it.
    """

    def __init__(self, target: Path, name: str, title: str) -> None:
        self._target, self._name, self._title = target, name, title
        self._splits: dict[str, Split] = {}
        self.folder = target.with_name(".prepared.writing")

    def split(
        self, which: str, labels: Labels, members: str, images: Iterable[Images], image_size: int
    ) -> None:
        """Write the split `which`, "train" or "test", from `images` in pieces (n, 3, S, S) uint8.

        `labels` is (N,) int64, `members` what `prepared.membership` gives for the images, `image_size` S.

        Raises ValueError for other shapes, types or counts, OSError where it cannot be written.
        """
        check_labels(labels, len(labels))
        array, done = self.new_array(f"{which}-images.npy", len(labels), image_size), 0
        for piece in images:
            if piece.dtype != np.uint8:
                raise ValueError(f"{which}: expected images of uint8, got {piece.dtype}")
            array[done : done + len(piece)] = piece  # which refuses other shapes
            done += len(piece)
        if done != len(array):
            raise ValueError(f"{which}: expected {len(array)} images in all, got {done}")
        array.flush()
        np.save(self.folder / f"{which}-labels.npy", labels)
        parts = {kind: self._written(f"{which}-{kind}.npy") for kind in ("images", "labels")}
        self._splits[which] = Split(**parts, membership=members)

    def new_array(self, file: str, count: int, size: int) -> np.memmap:
        """A memory-mapped `.npy` (count, 3, size, size) uint8 in `folder`, all of it allocated on disk."""
        path = self.folder / file
        array = np.lib.format.open_memmap(path, "w+", np.dtype(np.uint8), (count, 3, size, size))
        # A full disk is an OSError here; met later, through the map, it would be a SIGBUS.
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        return array

    def finish(self, class_names: Sequence[str], sources: Mapping[str, str], **facts: Any) -> Manifest:
        """Write the manifest and put the folder in its place, replacing an older one whole.

        `facts` are further fields of the manifest: partial, notes, tools, settings, left_out, listing.

        Raises ValueError for labels beyond the class names, OSError or SetupError where it cannot be written.
        """
        train, test = self._splits["train"], self._splits["test"]
        for split in (train, test):
            check_labels(np.load(self.folder / split.labels.file), split.count, len(class_names))
        mean, std = statistics(np.load(self.folder / train.images.file, mmap_mode="r"))
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
        kept = {"manifest.json", *(file.file for s in (train, test) for file in (s.images, s.labels))}
        write_whole(self.folder / "manifest.json", manifest.to_json().encode())
        for entry in self.folder.iterdir():
            if entry.name not in kept:
                entry.unlink()
        fsync_folder(self.folder)
        if self._target.exists():
            self._target.rename(self._target.with_name(OLD))
        self.folder.rename(self._target)
        fsync_folder(self._target.parent)
        return manifest

    def _written(self, file: str) -> ArrayFile:
        """What the manifest says of a file, which is on disk then."""
        with (self.folder / file).open("rb") as stream:
            os.fsync(stream.fileno())
        array = np.load(self.folder / file, mmap_mode="r")
        sha256 = file_hash(self.folder / file, "sha256")
        return ArrayFile(file=file, sha256=sha256, shape=array.shape, dtype=str(array.dtype))


def _tidy(target: Path, new: Path) -> None:
    """Remove what is half-written; an older folder goes only once the new one has its place."""
    shutil.rmtree(new, ignore_errors=True)
    old = target.with_name(OLD)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _whole(data_dir: Path, name: str, wanted: Callable[[Manifest], bool]) -> tuple[Manifest | None, str]:
    """The manifest of the arrays that are there, whole and of the wanted kind, or what is wrong with them."""
    try:
        found = verify_prepared(data_dir, name)
    except DataMissingError:
        return None, ""  # never prepared, or by another version
    except DataCorruptError as error:
        return None, str(error)
    if wanted(found):
        return found, ""
    return None, "what is there was made of another source or with other options"
