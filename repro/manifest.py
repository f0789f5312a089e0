"""What a prepared data set is: where it came from, what is in it, how it was split.

The manifest lies beside the arrays as `manifest.json`; it is all that planning and aggregation need to
know of the data, so neither opens an array.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from repro.errors import DataCorruptError, DataMissingError, SetupError, did_you_mean, printable
from repro.paths import PUBLISHED_SETS, known_sets

PREPARATION_VERSION = 1
"""Raised when preparing the same source would give other pixels, labels or order."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayFile(_Part):
    """One `.npy` file of a prepared set."""

    file: str
    sha256: str
    shape: tuple[int, ...]
    dtype: str


class Split(_Part):
    """Images (N, 3, H, W) uint8 and labels (N,) int64 of one half of a data set.

    `membership` is the sha256 that says which source images are in the split, in which order.
    """

    images: ArrayFile
    labels: ArrayFile
    membership: str

    @property
    def count(self) -> int:
        """How many images."""
        return self.labels.shape[0]


class Manifest(_Part):
    """Everything about a prepared (or generated) data set but its pixels."""

    schema_version: Literal[1] = 1
    preparation_version: int
    name: str
    title: str
    generated: bool = False
    partial: str | None = Field(default=None, description="what is missing, when a partial set was allowed")
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = Field(description="source file or archive member → sha256")
    image_size: int
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, float, float] = Field(
        description="of the training images, channel by channel, in 0..1"
    )
    std: tuple[float, float, float]
    tools: dict[str, str] = Field(default_factory=dict, description="versions of what decoded the images")
    settings: dict[str, str] = Field(
        default_factory=dict, description="choices of preparation that decide pixels or membership"
    )
    left_out: dict[str, str] = Field(default_factory=dict, description="source image → why it is in no split")
    listing: str | None = Field(default=None, description="sha256 of the source files' names and sizes")

    @property
    def classes(self) -> int:
        """How many classes."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Hash of what decides a run's data: sources, split membership, settings, preparation version.

        Tool versions and decoded bytes are provenance and stay out of it.
        """
        return fingerprint_of(
            self.preparation_version,
            self.sources,
            self.train.membership,
            self.test.membership,
            self.settings,
        )

    def to_json(self) -> str:
        """The file's text: indented JSON, its last key a sha256 over all the others."""
        content = self.model_dump(mode="json")
        content["sha256"] = _checksum(content)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def fingerprint_of(
    preparation_version: int,
    sources: dict[str, str],
    train_membership: str,
    test_membership: str,
    settings: dict[str, str] | None = None,
) -> str:
    """`Manifest.fingerprint` from its parts, for data that are planned before they are made."""
    identity: dict[str, object] = {
        "preparation_version": preparation_version,
        "sources": sources,
        "train": train_membership,
        "test": test_membership,
    }
    # A set without settings keeps the fingerprint that it had before there were any.
    if settings:
        identity["settings"] = settings
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def prepared_folder(data: Path, name: str) -> Path:
    """Where the arrays and the manifest of the data set `name` lie below the data folder."""
    return data / name / "prepared"


def read_manifest(data: Path, name: str) -> Manifest:
    """The manifest of a prepared set.

    Raises DataMissingError (with the command that prepares it) or DataCorruptError.
    """
    path = prepared_folder(data, name) / "manifest.json"
    again = f"delete {path.parent} and run `repro data prepare {name}`"
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if name not in PUBLISHED_SETS:
            known = known_sets(data)
            raise DataMissingError(
                f"the data set {name} is neither published nor prepared in {data}; there are: "
                f"{', '.join(known)}; for a set of your own run `repro data prepare {name} --from FOLDER`"
                f"{did_you_mean(name, known)}"
            ) from None
        raise DataMissingError(
            f"the data set {name} is not prepared ({path} does not exist): run `repro data fetch {name}"
            f"{' --lists DIR' * (name == 'facescrub')}`, then `repro data prepare {name}`, "
            "or point --data-dir or REPRO_DATA at a folder where it is"
        ) from None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataCorruptError(f"{path}: not whole JSON ({error}); {again}") from None
    checksum = content.pop("sha256", None) if isinstance(content, dict) else None
    try:
        manifest = Manifest.model_validate_json(json.dumps(printable(content)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataCorruptError(f"{path}: {where}: {first['msg']}; {again}") from None
    if manifest.preparation_version != PREPARATION_VERSION or checksum is None:
        raise DataMissingError(
            f"{path} was written by an earlier version of this program: run `repro data prepare {name}` again"
        )
    if checksum != _checksum(content):
        raise DataCorruptError(f"{path} does not match its own sha256: it was damaged or edited; {again}")
    return manifest


def _checksum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
