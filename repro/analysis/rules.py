"""The rules by which numbers and claims are judged: `experiments/claims.toml`, read and checked.

Fixed before the runs: whatever is judged carries the file's sha256.
"""

import hashlib
import itertools
import re
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from repro.config import TomlModel
from repro.errors import RegistryError
from repro.experiments import TableName, read_toml, validate

RULES_FILE = "claims.toml"

Measure = Literal[
    "accuracy",
    "error",
    "logit-bulk",
    "weight-norm",
    "late-gradient-times-feature",
    "late-gradient-at-features",
    "late-feature-norm",
    "late-gradient-at-logits",
]
Combination = Literal["mean", "best", "best-reported"]
Family = Literal["primary", "secondary"]
Unit = Literal["points", "factor"]
Divergence = Literal["chance-accuracy", "largest-effect-against", "undecided-column"]


class CellRules(TomlModel):
    """When a number of ours counts as the paper's. Rules of which there is one form are named all the same.

    `tolerance`: points, the margin that both words are tested against. `level`: of the interval of ours −
    paper's. `reproduced` and `off`: the whole interval within ± tolerance, or beyond it on one side.
    `false_discovery_rate`: of Benjamini and Hochberg over all the paper's cells, for each of the two.
    `partly_diverged`, `wholly_diverged`: the word for a cell of which some or all runs diverged.
    """

    tolerance: float = Field(gt=0)
    level: float = Field(gt=0.5, lt=1)
    reproduced: Literal["interval-within"]
    off: Literal["interval-beyond"]
    false_discovery_rate: float = Field(gt=0, lt=0.5)
    partly_diverged: Literal["undecided"]
    wholly_diverged: Literal["off"]


class TestRules(TomlModel):
    """How the claims are tested together, and the bootstrap behind their intervals.

    `alpha`: familywise, by Holm, for each family of claims and each of "supported" and "contradicted".
    `level`, `resamples`, `seed`: of the bootstrap intervals. `late`: which epochs are late in training.
    `columns`: sets of columns (`cifar100/vgg16`) by name, and `verdict_at` the set whose completion gives the
    one verdict; without sets it is given when every column of the paper's tables is complete.
    """

    __test__ = False  # not a test class, whatever its name

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    level: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=10_000, ge=100)
    seed: int = Field(default=0, ge=0)
    late: Literal["last-lr-drop", "last-epoch"] = "last-lr-drop"
    verdict_at: str = ""
    columns: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _columns_are_named(self) -> Self:
        for name, columns in self.columns.items():
            if not columns or len(set(columns)) < len(columns):
                raise ValueError(f"columns.{name}: expected one or more columns, each once")
            for column in columns:
                if not re.fullmatch(r"[^/\s]+/[^/\s]+", column):
                    raise ValueError(f"columns.{name}: expected dataset/network, got {column!r}")
        if (self.columns or self.verdict_at) and self.verdict_at not in self.columns:
            known = ", ".join(self.columns)
            raise ValueError(f"verdict_at: there are no columns {self.verdict_at!r}; there are: {known}")
        return self

    @property
    def verdict_columns(self) -> tuple[str, ...]:
        """The columns at which the verdict is given, as `dataset/network`; none means every one."""
        return self.columns.get(self.verdict_at, ())


class Mirror(TomlModel):
    """What a claim's mirrored test compares instead; what it leaves out is the claim's."""

    of: tuple[str, ...] = ()
    of_combined: Combination | None = None
    over: tuple[str, ...] = ()
    over_combined: Combination | None = None


class Shown(Mirror):
    """A variation of a claim that is shown and not tested; what it leaves out is the claim's."""

    label: str
    measure: Measure | None = None


class Claim(TomlModel):
    """A claim as a comparison of two sides, each a list of rows (`cross-entropy+bias=false`) of a column.

    `family`: the claims that Holm's correction takes together. `of`, `over`: the rows of the two sides;
    `…_combined`: how several rows become one value, `best` by our own means of the column, `best-reported` by
    the paper's. `direction`, `margin`: which side of which effect (points, or a factor) the claim is on.
    `diverged`: how a diverged run counts. `mirror`: what the test for "contradicted" compares, where it is
    not the same with the direction turned. `caution`: a sentence for the reader. `shown`: not tested.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    family: Family
    statement: str
    measure: Measure
    of: tuple[str, ...] = Field(min_length=1)
    of_combined: Combination
    over: tuple[str, ...] = Field(min_length=1)
    over_combined: Combination
    direction: Literal["greater", "less"]
    margin: float
    diverged: Divergence
    mirror: Mirror | None = None
    caution: str = ""
    shown: tuple[Shown, ...] = ()

    @property
    def unit(self) -> Unit:
        """How the effect is expressed."""
        return "points" if self.measure in ("accuracy", "error") else "factor"

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row that either side needs."""
        return tuple(dict.fromkeys((*self.of, *self.over)))

    @property
    def sides(self) -> tuple[tuple[tuple[str, ...], Combination], ...]:
        """The rows of both sides, each with how they become one value."""
        return (self.of, self.of_combined), (self.over, self.over_combined)

    def beyond(self, effects: ArrayLike) -> np.ndarray:
        """How far effects are on the claim's side of its margin; of factors in logarithms."""
        scale = np.log if self.unit == "factor" else np.asarray
        distances: np.ndarray = scale(effects) - scale(self.margin)
        return distances if self.direction == "greater" else -distances

    def instead(self, change: Mirror) -> "Claim":
        """What the claim's mirror, or something shown, compares: what it gives replaces the claim's own."""
        given = {key: value for key, value in change if value and key in Claim.model_fields}
        return self.model_copy(update=given)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.unit == "factor" and self.margin <= 0:
            raise ValueError("margin: a factor is compared with a positive margin, 1 where nothing changes")
        if self.unit == "factor" and self.diverged == "chance-accuracy":
            raise ValueError(f"diverged: chance-accuracy is for the measure accuracy, not for {self.measure}")
        mirror = self.mirror or Mirror()
        if self.mirror == Mirror():
            raise ValueError("mirror: it changes nothing; leave it out")
        for side in ("of_combined", "over_combined"):
            if (getattr(mirror, side) or getattr(self, side)) == "best":
                best = f"mirror: {side} is best, by our own results"
                raise ValueError(f"{best}; expected mean or best-reported")
        return self


class WorkedExample(TomlModel):
    """A worked example of the paper's: logits, and what it prints as softmax's last probability."""

    logits: tuple[tuple[float, ...], ...] = Field(min_length=2, max_length=2)
    probabilities: tuple[float, float]
    gain_percent: float


class PrintedSplit(TomlModel):
    """What the paper says of how a data set was split, beside the counts in the table's file."""

    table: TableName
    fewest_images: int = Field(ge=1)
    test_share: float = Field(gt=0, lt=1)


class Printed(TomlModel):
    """What the paper prints outside its tables."""

    worked_example: WorkedExample | None = None
    split: PrintedSplit | None = None


class Rules(TomlModel):
    """All of `claims.toml`; `sha256` is of the file's bytes."""

    cells: CellRules
    tests: TestRules = TestRules()
    claims: tuple[Claim, ...] = ()
    printed: Printed = Printed()
    file: str
    sha256: str

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"claims: two have one name; there are: {', '.join(names)}")
        return self

    def family_size(self, claim: Claim) -> int:
        """How many claims Holm's correction takes together with this one, itself included."""
        return sum(other.family == claim.family for other in self.claims)

    def minimum_columns(self, claim: Claim) -> int:
        """The fewest columns that can decide a claim: the smallest n with family size · 2⁻ⁿ ≤ α."""
        size, alpha = self.family_size(claim), self.tests.alpha
        return next(n for n in itertools.count(1) if size * 2.0**-n <= alpha)

    @property
    def place(self) -> str:
        """`experiments/claims.toml`: the file without the folders above the project."""
        return "/".join(Path(self.file).parts[-2:])

    @property
    def fields(self) -> dict[str, str]:
        """Which rules judged, for a program."""
        return {"file": self.place, "sha256": self.sha256}

    @property
    def stamp(self) -> str:
        """The sentence that says which rules judged."""
        return f"Rules: {self.place}, sha256 {self.sha256}."


def read_rules(path: Path) -> Rules:
    """The rules in `path`; RegistryError names the key that is missing, unknown or wrong."""
    if not path.exists():
        raise RegistryError(f"{path} does not exist: it holds the rules that results are judged by")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return validate(Rules, read_toml(path), str(path), file=str(path), sha256=sha256)
