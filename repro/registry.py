"""The registry: which cells, losses and recipes there are, read from `experiments/*.toml`.

    table1.toml …  → Table → Cell → Run          presets.toml → Preset → Recipe
    Run + Preset → RunConfig: everything that decides a run's numbers but the data

Ids are paths: `cifar100/resnet18/scaled-bn-m1/seed0`; a departure from the preset is `+axis=value`
behind the loss, sorted by axis. Needs no torch, so that planning stays quick.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from repro.errors import RegistryError, SelectionError, UsageError
from repro.recipes import (
    LOSS_PARAMETERS,
    Model,
    Preset,
    Recipe,
    RunConfig,
    Scalar,
    format_axis,
    parse_axis,
)

NETWORKS = ("vgg16", "vgg13", "vgg16-4096", "vgg-lsoftmax", "resnet18", "resnet50")
"""The networks of `repro.models`; a test compares the two."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


class Reported(Model):
    """What the paper prints for a cell: percent top-1."""

    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0)


class Row(Model):
    """A loss with its parameters, as a row of the paper's table."""

    name: str
    label: str
    loss: str
    parameters: tuple[tuple[str, Scalar], ...] = ()
    reported: dict[str, Reported]


class Table(Model):
    """One of the paper's tables: rows are losses, columns networks."""

    number: int
    dataset: str
    title: str
    networks: dict[str, str]
    rows: tuple[Row, ...]
    file: str

    def row(self, name: str) -> Row:
        """The row called `name`; SelectionError lists the known ones."""
        for row in self.rows:
            if row.name == name:
                return row
        raise SelectionError(
            f"{self.file} has no row {name!r}; it has: {', '.join(r.name for r in self.rows)}"
        )


@dataclass(frozen=True)
class Cell:
    """A number of a table: one data set, network and loss; `reported` is None for one the paper lacks."""

    table: int
    dataset: str
    network: str
    row: str
    axes: tuple[tuple[str, Scalar], ...] = ()
    reported: Reported | None = None

    @property
    def id(self) -> str:
        """`dataset/network/loss[+axis=value…]`."""
        suffix = "".join(f"+{axis}={format_axis(value)}" for axis, value in self.axes)
        return f"{self.dataset}/{self.network}/{self.row}{suffix}"


@dataclass(frozen=True)
class Run:
    """One training run of a cell."""

    cell: Cell
    seed: int

    @property
    def id(self) -> str:
        """`dataset/network/loss/seedK`, which is also the path of its record."""
        return f"{self.cell.id}/seed{self.seed}"


@dataclass(frozen=True)
class Selection:
    """Which cells are meant: empty means all; names may be globs, tables and seeds are numbers."""

    tables: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    axes: tuple[tuple[str, Scalar], ...] = ()


class Registry:
    """All tables and presets of one `experiments/` folder."""

    def __init__(self, tables: Sequence[Table], presets: Mapping[str, Preset]) -> None:
        self.tables = tuple(sorted(tables, key=lambda table: table.number))
        self.presets = dict(presets)

    @classmethod
    def load(cls, folder: Path) -> "Registry":
        """Reads every `table*.toml` and `presets.toml` of `folder`; raises RegistryError."""
        tables: list[Table] = []
        for path in sorted(folder.glob("table*.toml")):
            table = _table(path)
            for other in tables:
                if other.number == table.number:
                    raise RegistryError(f"{path}: table = {table.number} is already in {other.file}")
                if other.dataset == table.dataset:
                    raise RegistryError(
                        f"{path}: the cells of {table.dataset} are already in {other.file}: duplicate cells"
                    )
            tables.append(table)
        if not tables:
            raise RegistryError(f"{folder}: no table*.toml; a registry needs at least one table")
        return cls(tables, _presets(folder / "presets.toml"))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The paper's cells: table by table, column by column, row by row."""
        return tuple(
            Cell(table.number, table.dataset, network, row.name, (), row.reported[network])
            for table in self.tables
            for network in table.networks
            for row in table.rows
        )

    def preset(self, name: str) -> Preset:
        """The preset called `name`; UsageError lists the known ones."""
        if name not in self.presets:
            raise UsageError(f"there is no preset {name!r}; presets: {', '.join(self.presets)}")
        return self.presets[name]

    def table(self, number: int) -> Table:
        """Table `number`; SelectionError lists the known ones."""
        for table in self.tables:
            if table.number == number:
                return table
        known = ", ".join(str(table.number) for table in self.tables)
        raise SelectionError(f"there is no table {number}; tables: {known}")

    def select_cells(self, selection: Selection) -> tuple[Cell, ...]:
        """The cells that match; a pattern that matches nothing is a SelectionError that lists what exists.

        A network named exactly that is known but not in the tables (`vgg13`) gives cells without a
        reported value; `selection.axes` are put on every cell.
        """
        for number in selection.tables:
            self.table(number)
        candidates = list(self.cells)
        for network in selection.networks:
            if network in NETWORKS and all(network not in table.networks for table in self.tables):
                candidates += [
                    Cell(table.number, table.dataset, network, row.name)
                    for table in self.tables
                    for row in table.rows
                ]
        for what, patterns, attribute in (
            ("data set", selection.datasets, "dataset"),
            ("network", selection.networks, "network"),
            ("loss", selection.losses, "row"),
        ):
            known = list(dict.fromkeys(getattr(cell, attribute) for cell in candidates))
            if attribute == "network":
                known = list(dict.fromkeys([*known, *NETWORKS]))
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    raise SelectionError(f"no {what} matches {pattern!r}; there are: {', '.join(known)}")
        cells = [
            cell
            for cell in candidates
            if (not selection.tables or cell.table in selection.tables)
            and _matches(cell.dataset, selection.datasets)
            and _matches(cell.network, selection.networks)
            and _matches(cell.row, selection.losses)
        ]
        if not cells:
            raise SelectionError("the options together select no cell; each alone matches some")
        if selection.axes:
            axes = tuple(sorted(selection.axes))
            cells = [replace(cell, axes=axes, reported=None) for cell in cells]
        return tuple(cells)

    def select_runs(self, selection: Selection, preset: Preset) -> tuple[Run, ...]:
        """The selected cells' runs: a column's losses for the first seed, then the second, then on.

        So a sweep that is stopped anywhere leaves whole rows of comparable runs, never a loss with
        two seeds beside one with none.
        """
        seeds = tuple(dict.fromkeys(selection.seeds)) or preset.seeds
        columns: dict[tuple[int, str, str], list[Cell]] = {}
        for cell in self.select_cells(selection):
            columns.setdefault((cell.table, cell.dataset, cell.network), []).append(cell)
        return tuple(Run(cell, seed) for cells in columns.values() for seed in seeds for cell in cells)

    def parse(self, run_id: str) -> Run:
        """The run that an id names; SelectionError says which part is wrong."""
        parts = run_id.split("/")
        if len(parts) != 4 or not re.fullmatch(r"seed(0|[1-9]\d*)", parts[3]):
            raise SelectionError(
                f"{run_id!r} is not a run id; expected dataset/network/loss[+axis=value]/seedK, "
                "as in cifar100/resnet18/scaled-bn-m1/seed0"
            )
        dataset, network, loss, seed = parts
        row_name, *assignments = loss.split("+")
        for table in self.tables:
            if table.dataset == dataset:
                break
        else:
            known = ", ".join(table.dataset for table in self.tables)
            raise SelectionError(f"{run_id}: no table has the data set {dataset!r}; there are: {known}")
        row = table.row(row_name)
        if network not in NETWORKS:
            raise SelectionError(f"{run_id}: unknown network {network!r}; there are: {', '.join(NETWORKS)}")
        axes = tuple(parse_axis(text) for text in assignments)
        cell = Cell(
            table.number, dataset, network, row.name, axes, None if axes else row.reported.get(network)
        )
        run = Run(cell, int(seed[4:]))
        canonical = Run(replace(cell, axes=tuple(sorted(axes))), run.seed).id
        if run_id != canonical:
            raise SelectionError(f"{run_id!r} is not in canonical form; write {canonical!r}")
        return run

    def config(self, run: Run, preset: Preset) -> RunConfig:
        """The fully resolved configuration of `run` under `preset`.

        Raises UsageError for an axis that is unknown, has a bad value, or departs from nothing.
        """
        row = self.table(run.cell.table).row(run.cell.row)
        recipe = preset.recipe.model_dump()
        parameters: dict[str, Any] = (
            LOSS_PARAMETERS[row.loss].model_validate(dict(row.parameters)).model_dump()
        )
        for axis, value in run.cell.axes:
            target = recipe if axis in recipe else parameters
            if axis not in target:
                raise UsageError(
                    f"{run.id}: unknown axis {axis!r}; the recipe has: {', '.join(recipe)}; "
                    f"{row.loss} has: {', '.join(parameters)}"
                )
            if target[axis] == value:
                raise UsageError(
                    f"{run.id}: {axis}={format_axis(value)} is what the preset {preset.name} has anyway; "
                    "leave it out"
                )
            target[axis] = value
        try:
            return RunConfig(
                dataset=run.cell.dataset,
                network=run.cell.network,
                loss=row.loss,
                loss_parameters=LOSS_PARAMETERS[row.loss].model_validate(parameters).model_dump(),
                seed=run.seed,
                recipe=Recipe.model_validate(recipe),
            )
        except ValidationError as error:
            raise UsageError(f"{run.id}: {_explain(error)}") from None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    patterns = tuple(patterns)
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: not valid TOML: {error}") from None


def _known_keys(
    where: str, given: object, allowed: Iterable[str], required: Iterable[str] = ()
) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise RegistryError(f"{where}: expected a table of keys, got {given!r}")
    allowed = tuple(allowed)
    for key in given:
        if key not in allowed:
            raise RegistryError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in given:
            raise RegistryError(f"{where}: missing key {key!r}")
    return given


def _explain(error: ValidationError) -> str:
    """The first thing pydantic found, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{where}: {message}{got}" if where else message


def _name(where: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RegistryError(
            f"{where}: {name!r} cannot be a name; use small letters, digits, dots and dashes, "
            "as in scaled-bn-m1"
        )
    return name


def _table(path: Path) -> Table:
    content = _known_keys(
        str(path),
        _read(path),
        ("table", "dataset", "title", "networks", "rows"),
        ("table", "dataset", "title", "networks", "rows"),
    )
    networks = content["networks"]
    if not isinstance(networks, dict) or not networks:
        raise RegistryError(f'{path}: networks: expected name = "label" for each column')
    for network in networks:
        if network not in NETWORKS:
            raise RegistryError(
                f"{path}: networks: unknown network {network!r}; there are: {', '.join(NETWORKS)}"
            )
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise RegistryError(f"{path}: rows: expected one [[rows]] for each loss")
    rows = [_row(path, index, raw, tuple(networks)) for index, raw in enumerate(content["rows"], 1)]
    for index, row in enumerate(rows):
        for other in rows[:index]:
            if other.name == row.name:
                raise RegistryError(f"{path}: duplicate cell: two rows are called {row.name!r}")
            if (other.loss, other.parameters) == (row.loss, row.parameters):
                raise RegistryError(
                    f"{path}: duplicate cell: {other.name!r} and {row.name!r} are the same loss "
                    "with the same parameters"
                )
    try:
        return Table(
            number=content["table"],
            dataset=_name(f"{path}: dataset", content["dataset"]),
            title=content["title"],
            networks=networks,
            rows=tuple(rows),
            file=str(path),
        )
    except ValidationError as error:
        raise RegistryError(f"{path}: {_explain(error)}") from None


def _row(path: Path, index: int, raw: object, networks: tuple[str, ...]) -> Row:
    where = f"{path}: row {index}"
    if isinstance(raw, dict) and isinstance(raw.get("name"), str):
        where += f" ({raw['name']})"
    fixed = ("name", "label", "loss", "reported")
    if not isinstance(raw, dict) or "loss" not in raw:
        raise RegistryError(f"{where}: missing key 'loss'; losses: {', '.join(LOSS_PARAMETERS)}")
    if raw["loss"] not in LOSS_PARAMETERS:
        raise RegistryError(f"{where}: unknown loss {raw['loss']!r}; losses: {', '.join(LOSS_PARAMETERS)}")
    schema = LOSS_PARAMETERS[raw["loss"]]
    _known_keys(where, raw, (*fixed, *schema.model_fields), fixed)
    _known_keys(f"{where}: reported", raw["reported"], networks, networks)
    try:
        given = schema.model_validate({key: value for key, value in raw.items() if key not in fixed})
        return Row(
            name=_name(f"{where}: name", raw["name"]),
            label=raw["label"],
            loss=raw["loss"],
            parameters=tuple(given.model_dump().items()),
            reported=raw["reported"],
        )
    except ValidationError as error:
        raise RegistryError(f"{where}: {_explain(error)}") from None


def _presets(path: Path) -> dict[str, Preset]:
    content = _known_keys(str(path), _read(path), ("recipe", "presets"), ("recipe", "presets"))
    fields = tuple(Recipe.model_fields)
    base = _known_keys(f"{path}: [recipe]", content["recipe"], fields)
    presets: dict[str, Preset] = {}
    for name, raw in content["presets"].items():
        where = f"{path}: [presets.{name}]"
        known = ("title", "description", "seeds", "threads", "recipe")
        _known_keys(where, raw, known, known[:-1])
        changes = _known_keys(f"{where}: recipe", raw.get("recipe", {}), fields)
        try:
            recipe = Recipe.model_validate({**base, **changes})
            presets[name] = Preset.model_validate({**raw, "name": _name(where, name), "recipe": recipe})
        except ValidationError as error:
            raise RegistryError(f"{where}: {_explain(error)}") from None
        if name != "paper" and not presets[name].title:
            raise RegistryError(f"{where}: title: only the preset paper may have an empty title")
    if "paper" not in presets:
        raise RegistryError(f"{path}: the preset paper is missing")
    return presets
