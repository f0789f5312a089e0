"""The rules by which numbers and claims are judged: `experiments/claims.toml`, read and checked.

Fixed before the runs: whatever is judged carries the file's sha256.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from repro.errors import RegistryError
from repro.experiments import TableName, explain
from repro.recipes import Model

RULES_FILE = "claims.toml"

Measure = Literal[
    "accuracy", "logit-bulk", "weight-norm", "late-gradient-at-features", "late-gradient-at-logits"
]
Combination = Literal["mean", "best"]


class CellRules(Model):
    """When a number of ours counts as the paper's: `tolerance` in points."""

    tolerance: float = Field(gt=0)
    level: float = Field(gt=0.5, lt=1)
    false_discovery_rate: float = Field(gt=0, lt=0.5)


class TestRules(Model):
    """How the claims are tested together, and the bootstrap behind their intervals."""

    __test__ = False  # not a test class, whatever its name

    level: float = Field(gt=0.5, lt=1)
    alpha: float = Field(gt=0, lt=0.5)
    min_columns: int = Field(ge=1)
    resamples: int = Field(ge=100)
    seed: int = Field(ge=0)
    late: Literal["last-lr-drop", "last-epoch"]


class Shown(Model):
    """A variation of a claim that is shown and not tested; what it leaves out is the claim's."""

    label: str
    of: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    measure: Measure | None = None


class Claim(Model):
    """A claim as a comparison of two sides, each a list of rows (`cross-entropy+bias=false`) of a column."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    statement: str
    measure: Measure
    of: tuple[str, ...] = Field(min_length=1)
    of_combined: Combination
    over: tuple[str, ...] = Field(min_length=1)
    over_combined: Combination
    direction: Literal["greater", "less"]
    margin: float
    caution: str = ""
    shown: tuple[Shown, ...] = ()

    @model_validator(mode="after")
    def _factors_are_positive(self) -> Self:
        if self.measure != "accuracy" and self.margin <= 0:
            raise ValueError("margin: a factor is compared with a positive margin, 1 where nothing changes")
        return self


class WorkedExample(Model):
    """The paper's example of Section 3: logits, and what it prints as softmax's last probability."""

    logits: tuple[tuple[float, ...], ...] = Field(min_length=2, max_length=2)
    probabilities: tuple[float, float]
    gain_percent: float


class PrintedSplit(Model):
    """What the paper says of how a data set was split, beside the counts in the table's file."""

    table: TableName
    fewest_images: int = Field(ge=1)
    test_share: float = Field(gt=0, lt=1)


class Printed(Model):
    """What the paper prints outside its tables."""

    worked_example: WorkedExample
    split: PrintedSplit


class Rules(Model):
    """All of `claims.toml`; `sha256` is of the file's bytes."""

    cells: CellRules
    tests: TestRules
    claims: tuple[Claim, ...] = Field(min_length=1)
    printed: Printed
    file: str
    sha256: str

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"claims: two have one name; there are: {', '.join(names)}")
        return self

    @property
    def place(self) -> str:
        """`experiments/claims.toml`: the file without the folders above the project."""
        return "/".join(Path(self.file).parts[-2:])

    @property
    def stamp(self) -> str:
        """The sentence that says which rules judged."""
        return f"Rules: {self.place}, sha256 {self.sha256}."


def read_rules(path: Path) -> Rules:
    """The rules in `path`; RegistryError names the key that is missing, unknown or wrong."""
    try:
        content = path.read_bytes()
        raw = tomllib.loads(content.decode())
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist: it holds the rules that results are judged by") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: not valid TOML: {error}") from None
    for key in ("file", "sha256"):
        if key in raw:
            raise RegistryError(f"{path}: unknown key {key!r}")
    try:
        return Rules.model_validate({**raw, "file": str(path), "sha256": hashlib.sha256(content).hexdigest()})
    except ValidationError as error:
        raise RegistryError(f"{path}: {explain(error)}") from None
