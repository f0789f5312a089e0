"""The paper that a project reproduces: `experiments/paper.toml`, of which every part is optional.

Tables, figures, verdicts and the report take from here whatever they say of the paper beside its numbers,
which are in `experiments/table*.toml`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from repro.config import TomlModel
from repro.errors import RegistryError
from repro.experiments import Name, Table, read_toml, validate

PAPER_FILE = "paper.toml"


class Metric(TomlModel):
    """What the tables' numbers are, in percent of the test images: the share that is right, or wrong."""

    measure: Literal["accuracy", "error"] = "accuracy"
    name: str = ""

    @property
    def title(self) -> str:
        """`top-1 accuracy`."""
        return self.name or f"top-1 {self.measure}"

    def of(self, accuracy: float) -> float:
        """The metric of an accuracy, both in percent; and the accuracy of a metric."""
        return accuracy if self.measure == "accuracy" else 100.0 - accuracy

    def best(self, values: Iterable[float]) -> float:
        """The highest accuracy, or the lowest error."""
        return max(values) if self.measure == "accuracy" else min(values)

    def is_worse(self, value: float, other: float) -> bool:
        """Whether `value` is worse than `other`."""
        return value < other if self.measure == "accuracy" else value > other


class ReportedNumbers(TomlModel):
    """What a printed `mean ± std` is: over how many runs (None: the paper does not say), and which std."""

    runs: int | None = Field(default=None, ge=1)
    std: Literal["sample", "population", "unknown"] = "unknown"

    @property
    def readings(self) -> tuple[int, ...]:
        """Every ddof that the printed stds may have; the last makes the widest interval."""
        return {"sample": (1,), "population": (0,), "unknown": (1, 0)}[self.std]


class Method(TomlModel):
    """What the paper proposes: its name, its rows, and the rows that it is held against (all others)."""

    name: str
    rows: tuple[Name, ...] = Field(min_length=1)
    rivals: tuple[Name, ...] = ()


class PaperFigure(TomlModel):
    """A figure of the paper that records can redraw: what the paper `shows` in it, and the two cells."""

    name: str = Field(pattern=r"^\S")
    shows: str = ""
    cells: tuple[str, str]

    @property
    def file(self) -> str:
        """`figure2`."""
        return re.sub(r"[^a-z0-9]+", "", self.name.lower())

    @model_validator(mode="after")
    def _compares_two_losses(self) -> Self:
        places = [cell.split("/") for cell in self.cells]
        if any(len(place) != 3 for place in places) or places[0][:2] != places[1][:2]:
            raise ValueError("cells: expected two of one column, as in cifar100/resnet18/cross-entropy")
        return self


class PaperFigures(TomlModel):
    """The figures by what they draw: the logits' distribution, and the norms of the class weights."""

    logits: PaperFigure | None = None
    weight_norms: PaperFigure | None = None

    @property
    def all(self) -> tuple[PaperFigure, ...]:
        """Those that the paper has."""
        return tuple(filter(None, (self.logits, self.weight_norms)))


class Paper(TomlModel):
    """Who says what where; `idea` is the paper's in one phrase, `authors` are full names in order."""

    title: str = ""
    authors: tuple[str, ...] = ()
    venue: str = ""
    year: int | None = None
    doi: str = ""
    url: str = ""
    idea: str = ""
    metric: Metric = Metric()
    reported: ReportedNumbers = ReportedNumbers()
    method: Method | None = None
    figures: PaperFigures = PaperFigures()

    @property
    def names(self) -> str:
        """The authors' last names: `Ho, Jain and Abbeel`."""
        last = [name.split()[-1] for name in self.authors]
        return " and ".join([", ".join(last[:-1]), last[-1]] if len(last) > 1 else last)

    @property
    def short(self) -> str:
        """`Ho et al. 2019`; without authors the title."""
        names = self.names if len(self.authors) < 3 else f"{self.authors[0].split()[-1]} et al."
        return " ".join(filter(None, (names, str(self.year or "")))) if self.authors else self.title

    @property
    def link(self) -> str:
        """Where the paper can be read; empty where the TOML says neither `doi` nor `url`."""
        return f"https://doi.org/{self.doi}" if self.doi else self.url


def read_paper(path: Path, tables: Iterable[Table]) -> Paper:
    """The paper of `paper.toml`, one that says nothing without that file; raises RegistryError."""
    if not path.exists():
        return Paper()
    paper = validate(Paper, read_toml(path), str(path))
    known = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    for row in (*paper.method.rows, *paper.method.rivals) if paper.method else ():
        if row not in known:
            raise RegistryError(f"{path}: method: no table has a row {row!r}; there are: {', '.join(known)}")
    return paper
