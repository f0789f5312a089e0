"""What `experiments/ambiguities.toml` says: points that the paper leaves open, and what else may be meant.

    point: a cell as this project resolves it   alternative: another network, loss or axis, or another reading

Needs no torch; every mistake is a RegistryError that names the file and the point.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from repro.errors import RegistryError
from repro.experiments import Table, TableName, explain, known_keys, read_toml
from repro.paths import NAME
from repro.recipes import Model, Scalar

AMBIGUITIES = "ambiguities"
"""The name of the study of all points, and of its file."""


class Alternative(Model):
    """One other way to read a point: what it changes of a cell; `best-epoch` changes nothing of the run."""

    label: str
    network: str | None = None
    loss: str | None = None
    set: dict[str, Scalar] = Field(default_factory=dict)
    result: Literal["last-epoch", "best-epoch"] = "last-epoch"

    @property
    def trains(self) -> bool:
        """Whether it needs runs of its own."""
        return self.result == "last-epoch"

    @model_validator(mode="after")
    def _changes_something(self) -> "Alternative":
        trains = bool(self.network or self.loss or self.set)
        if trains != self.trains:
            raise ValueError("expected a network, a loss or a set, or else result = 'best-epoch' alone")
        return self


class Point(Model):
    """An open point: the cells it is looked at in, as resolved, and its alternatives."""

    name: str
    question: str
    table: TableName
    networks: tuple[str, ...] = Field(min_length=1)
    losses: tuple[str, ...] = Field(min_length=1)
    alternatives: tuple[Alternative, ...] = Field(min_length=1)


def read_points(path: Path, tables: Sequence[Table], networks: Sequence[str]) -> tuple[Point, ...]:
    """The points of a file, in its order; none where there is no file. `networks` are all there are.

    Raises RegistryError.
    """
    if not path.exists():
        return ()
    content = known_keys(str(path), read_toml(path), ("points",), ("points",))
    if not isinstance(content["points"], list):
        raise RegistryError(f"{path}: points: expected one [[points]] for each open point")
    points: list[Point] = []
    for number, raw in enumerate(content["points"], 1):
        where = f"{path}: point {number}"
        if isinstance(raw, dict) and isinstance(raw.get("name"), str):
            where += f" ({raw['name']})"
        try:
            point = Point.model_validate(raw)
        except ValidationError as error:
            raise RegistryError(f"{where}: {explain(error)}") from None
        taken = [AMBIGUITIES, *(other.name for other in points)]
        if not NAME.fullmatch(point.name) or point.name in taken:
            raise RegistryError(f"{where}: its name must be a new one of small letters, digits and dashes")
        _check(where, point, tables, networks)
        points.append(point)
    return tuple(points)


def _check(where: str, point: Point, tables: Sequence[Table], networks: Sequence[str]) -> None:
    """Everything that a point names is there."""
    table = next((table for table in tables if table.name == point.table), None)
    if table is None:
        raise RegistryError(f"{where}: there is no table {point.table!r}")
    own = [row.name for row in table.rows]
    beyond = [row.name for other in tables if other.extends == table.name for row in other.rows]
    for what, given, known in (
        ("network", point.networks, tuple(table.networks)),
        ("loss", point.losses, own),
        ("network", [a.network for a in point.alternatives if a.network], networks),
        ("loss", [a.loss for a in point.alternatives if a.loss], [*own, *beyond]),
    ):
        for name in given:
            if name not in known:
                raise RegistryError(f"{where}: unknown {what} {name!r}; there are: {', '.join(known)}")
