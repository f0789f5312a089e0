"""The registry: which cells, losses and recipes there are, read from `experiments/*.toml`.

    table1.toml …  → Table → Cell → Run          presets.toml → Preset → Recipe
    Run + Preset → RunConfig: everything that decides a run's numbers but the data

A table of the paper has a number; any other has a name (`table = "lfw"`) and is left out of a selection that
names neither it nor its data set. One that extends another (`extends = 1`: further losses) is selected by its
name alone.

Ids are paths: `cifar100/resnet18/cross-entropy/seed0`; an override of the preset is `+name=value` behind the
loss, sorted by name. Needs no torch, so that planning stays quick.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repro.config import Preset, Recipe, RunConfig, Scalar, explain, format_axis, grid_points, parse_axis
from repro.errors import RegistryError, SelectionError, UsageError, did_you_mean
from repro.experiments import (
    AMBIGUITIES,
    Ablation,
    Alternative,
    Reported,
    Table,
    TableName,
    pick,
    read_ablations,
    read_presets,
    read_tables,
)
from repro.paper import PAPER_FILE, Paper, read_paper
from repro.plugins import check_builder, loss_parameters, names

_Axes = tuple[tuple[str, Scalar], ...]  # overrides: name and value


@dataclass(frozen=True)
class Cell:
    """A number of a table: one data set, network and loss; `reported` is None for one the paper lacks."""

    table: TableName
    dataset: str
    network: str
    row: str
    axes: _Axes = ()
    reported: Reported | None = None

    @property
    def id(self) -> str:
        """`dataset/network/loss[+name=value…]`."""
        return "/".join(self.place) + "".join(f"+{name}={format_axis(value)}" for name, value in self.axes)

    @property
    def place(self) -> tuple[str, str, str]:
        """Data set, network and loss, which the cell shares with every override of it."""
        return self.dataset, self.network, self.row


LONGEST_FOLDER = 200  # bytes of a folder's name; file systems take 255, and temporary files have longer names


def _check_length(cell: Cell) -> None:
    folder = cell.id.rpartition("/")[2]
    if (length := len(folder.encode())) > LONGEST_FOLDER:
        raise SelectionError(
            f"{folder[:50]}…: name and overrides make a folder's name of {length} bytes, at most "
            f"{LONGEST_FOLDER} are possible; override less, or give the loss a row of its own"
        )


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
    """Which cells are meant; names may be globs.

    An empty field means all, but where neither tables nor data sets are named only the paper's tables are, if
    there are any; tables that extend another must be named. `studies` takes the cells of ablations instead,
    baseline and alternatives, of which the names may leave some out. `axes` are overrides, put on every
    cell; a name with several values is a grid.
    """

    tables: tuple[TableName, ...] = ()
    datasets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    axes: _Axes = ()
    studies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variation:
    """A cell of an ablation as resolved, and as an alternative has it; the same cell where none trains."""

    ablation: Ablation
    alternative: Alternative
    baseline: Cell
    cell: Cell


@dataclass(frozen=True, eq=False)
class Registry:
    """All tables and presets of one `experiments/` folder, which files of the user's own are relative to."""

    tables: Sequence[Table]
    presets: dict[str, Preset]
    folder: Path | None = None
    ablations: tuple[Ablation, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    paper: Paper = field(default_factory=Paper)

    @classmethod
    def load(cls, folder: Path, strict: bool = True) -> "Registry":
        """Reads tables, presets, the paper and ambiguities from their files; raises RegistryError.

        Not `strict`, a table beside the paper's that is not valid is in `broken`, with the reason, instead.
        """
        broken: dict[str, str] = {}
        tables = read_tables(folder, None if strict else broken)
        paper = read_paper(folder / PAPER_FILE, tables)
        registry = cls(tables, read_presets(folder / "presets.toml"), folder, broken=broken, paper=paper)
        path = folder / f"{AMBIGUITIES}.toml"
        return replace(registry, ablations=read_ablations(path, registry.tables, tuple(registry.networks)))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The paper's cells: table by table, column by column, row by row."""
        return tuple(_cells(table for table in self.tables if table.of_paper))

    @cached_property
    def networks(self) -> Mapping[str, str]:
        """Every network by the name that ids have → its code's, which differs for one of the user's own."""
        columns = [column for table in self.tables for column in table.columns.items()]
        own = {name: column.code for name, column in columns if column.code is not None}
        return {**{name: name for name in names("networks")}, **own}

    def preset(self, name: str) -> Preset:
        """The preset called `name`; UsageError lists the known ones."""
        if name not in self.presets:
            raise UsageError(f"there is no preset {name!r}; presets: {', '.join(self.presets)}")
        return self.presets[name]

    def table(self, name: TableName) -> Table:
        """The table with this number or name; SelectionError lists the known ones."""
        if str(name) in self.broken and all(table.name != name for table in self.tables):
            raise RegistryError(self.broken[str(name)])
        return pick(self.tables, name, SelectionError, f"there is no table {name}; tables")

    def variations(self, *studies: str) -> tuple[Variation, ...]:
        """Every alternative of the ablations named, in each of its cells; `ambiguities` is all of them.

        Raises SelectionError, which lists the known ones.
        """
        known = [AMBIGUITIES, *(ablation.name for ablation in self.ablations)] if self.ablations else []
        for study in studies:
            if study not in known:
                raise SelectionError(f"there is no study {study!r}; studies: {', '.join(known) or 'none'}")
        chosen = [each for each in self.ablations if {each.name, AMBIGUITIES} & set(studies)]
        return tuple(
            Variation(ablation, alternative, baseline, self._varied(baseline, alternative))
            for ablation in chosen
            for alternative in ablation.alternatives
            for baseline in _cells([self.table(ablation.table)])
            if baseline.network in ablation.networks and baseline.row in ablation.losses
        )

    def _varied(self, cell: Cell, alternative: Alternative) -> Cell:
        if not alternative.trains:
            return cell
        network, row = alternative.network or cell.network, alternative.loss or cell.row
        table = self._table_of(cell.id, cell.dataset, network, row)
        return Cell(table.name, cell.dataset, network, row, tuple(sorted(alternative.set.items())))

    def _study_cells(self, selection: Selection) -> tuple[Cell, ...]:
        if selection.axes:
            raise UsageError("--set and --study exclude one another: a study has overrides of its own")
        varied = self.variations(*selection.studies)
        cells = dict.fromkeys(cell for each in varied for cell in (each.baseline, each.cell))
        chosen = [c for c in _matching(cells, selection) if c.table in (selection.tables or (c.table,))]
        if not chosen:
            raise SelectionError(f"no cell of {', '.join(selection.studies)} matches the other options")
        return tuple(chosen)

    def select_cells(self, selection: Selection, preset: Preset | None = None) -> tuple[Cell, ...]:
        """The cells that match; a pattern that matches nothing is a SelectionError that lists what exists.

        A network named exactly that is known but not in the tables (`vgg13`) gives cells without a
        reported value. In a grid the value that `preset` has anyway gives the cell itself.
        """
        selection = self._by_name(selection)
        if selection.studies:
            return self._study_cells(selection)
        tables = [self.table(name) for name in selection.tables]
        if not tables:
            # In a project that has none of the paper's, its own are meant.
            every = selection.datasets or not any(table.of_paper for table in self.tables)
            tables = [table for table in self.tables if table.of_paper or (every and table.extends is None)]
        candidates = _cells(tables)
        for network in selection.networks:
            if network in self.networks and all(network not in table.networks for table in self.tables):
                candidates += (Cell(t.name, t.dataset, network, row.name) for t in tables for row in t.rows)
        for what, patterns, attribute in _patterns(selection):
            known = list(dict.fromkeys(getattr(cell, attribute) for cell in candidates))
            if attribute == "network":
                known = list(dict.fromkeys([*known, *self.networks]))
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    there = f"no {what} matches {pattern!r}; there are: {', '.join(known)}"
                    there += self._elsewhere(tables, selection, attribute, pattern)
                    raise SelectionError(there + did_you_mean(pattern, known))
        cells = _matching(candidates, selection)
        if not cells:
            raise SelectionError("the options together select no cell; each alone matches some")
        cells = [each for cell in cells for each in self._on_grid(cell, selection.axes, preset)]
        _check_length(max(cells, key=lambda cell: len(cell.id)))
        return tuple(cells)

    def _on_grid(self, cell: Cell, axes: _Axes, preset: Preset | None) -> Iterable[Cell]:
        several = {name for name, times in Counter(name for name, _ in axes).items() if times > 1}
        recipe, parameters = self.defaults(cell, preset) if preset and several else ({}, {})
        usual = {name: {**parameters, **recipe}.get(name) for name in several}
        for point in grid_points(axes):
            changed = tuple((name, value) for name, value in point if usual.get(name) != value)
            yield replace(cell, axes=changed, reported=None) if changed else cell

    def _by_name(self, selection: Selection) -> Selection:
        """The selection with every label of a table, as `ResNet-18`, replaced by the name that ids have."""
        names: dict[str, dict[str, str]] = {"datasets": {}, "networks": {}, "losses": {}}
        for table in self.tables:
            names["datasets"][_plain(table.dataset)] = table.dataset
            for network, label in [*table.networks.items(), *((name, name) for name in self.networks)]:
                names["networks"] |= {_plain(label): network, _plain(network): network}
            for row in table.rows:
                names["losses"] |= {_plain(row.label): row.name, _plain(row.name): row.name}
        meant = {
            kind: tuple(
                name if "*" in name else of.get(_plain(name), name) for name in getattr(selection, kind)
            )
            for kind, of in names.items()
        }
        return replace(selection, **meant)

    def _elsewhere(self, tables: Sequence[Table], selection: Selection, attribute: str, pattern: str) -> str:
        """Which tables outside the selection, but of its data sets, have what was not found in it."""
        having = [
            str(table.name)
            for table in self.tables
            if table not in tables
            and _matches(table.dataset, selection.datasets)
            and any(fnmatchcase(getattr(cell, attribute), pattern) for cell in _cells([table]))
        ]
        return f"; --table {' or '.join(having)} has it" if having else ""

    def select_runs(self, selection: Selection, preset: Preset) -> tuple[Run, ...]:
        """The selected cells' runs: a column's losses for the first seed, then the second, then on.

        A sweep that is stopped anywhere leaves comparable runs: no loss has two seeds beside one with none.
        """
        seeds = tuple(dict.fromkeys(selection.seeds)) or preset.seeds
        columns: dict[tuple[TableName, str, str], list[Cell]] = {}
        for cell in self.select_cells(selection, preset):
            columns.setdefault((cell.table, cell.dataset, cell.network), []).append(cell)
        return tuple(Run(cell, seed) for cells in columns.values() for seed in seeds for cell in cells)

    def parse(self, run_id: str) -> Run:
        """The run that an id names; SelectionError says which part is wrong."""
        found = re.fullmatch(r"(.*)/(.*)/(.*)/seed(0|[1-9]\d*)", run_id)
        if found is None or run_id.count("/") != 3:
            raise SelectionError(
                f"{run_id!r} is not a run id; expected dataset/network/loss[+name=value]/seedK, "
                "as in cifar100/resnet18/cross-entropy/seed0"
            )
        dataset, network, loss, seed = found.groups()
        row_name, *assignments = loss.split("+")
        table = self._table_of(run_id, dataset, network, row_name)
        row = table.row(row_name)
        if network not in self.networks:
            raise SelectionError(
                f"{run_id}: unknown network {network!r}; there are: {', '.join(self.networks)}"
            )
        axes = tuple(parse_axis(text) for text in assignments)
        cell = Cell(table.name, dataset, network, row.name, axes, None if axes else row.reported.get(network))
        _check_length(cell)
        run = Run(cell, int(seed))
        canonical = Run(replace(cell, axes=tuple(sorted(dict(axes).items()))), run.seed).id
        if run_id != canonical:
            raise SelectionError(f"{run_id!r} is not in canonical form; write {canonical!r}")
        return run

    def extensions(self, name: TableName) -> tuple[Table, ...]:
        """The tables of further rows below those of the table `name`."""
        return tuple(table for table in self.tables if table.extends == name)

    def _table_of(self, run_id: str, dataset: str, network: str, row: str) -> Table:
        """Of the tables of a data set, the one that has the row and, if any does, the network."""
        tables = [table for table in self.tables if table.dataset == dataset]
        if not tables:
            known = ", ".join(dict.fromkeys(table.dataset for table in self.tables))
            raise SelectionError(f"{run_id}: no table has the data set {dataset!r}; there are: {known}")
        with_row = [table for table in tables if any(row == known.name for known in table.rows)]
        if not with_row:
            files = ", ".join(table.file for table in tables)
            rows = ", ".join(known.name for table in tables for known in table.rows)
            raise SelectionError(f"{files} has no row {row!r}; it has: {rows}")
        return min(with_row, key=lambda table: network not in table.networks)

    def defaults(self, cell: Cell, preset: Preset) -> tuple[dict[str, Any], dict[str, Any]]:
        """What an override of `cell` may change: the recipe of its row, and its loss's parameters."""
        row = self.table(cell.table).row(cell.row)
        parameters = loss_parameters(row.loss, self.folder).model_validate(dict(row.parameters))
        return {**preset.recipe.model_dump(), **row.recipe}, parameters.model_dump()

    def config(self, run: Run, preset: Preset) -> RunConfig:
        """The fully resolved configuration of `run`: the preset's recipe, its row's changes, then its axes.

        Raises UsageError for an override that is unknown, has a bad value, or departs from nothing.
        """
        row = self.table(run.cell.table).row(run.cell.row)
        schema = loss_parameters(row.loss, self.folder)
        recipe, parameters = self.defaults(run.cell, preset)
        for axis, value in run.cell.axes:
            target = recipe if axis in recipe else parameters
            if axis not in target:
                raise UsageError(
                    f"{run.id}: unknown override {axis!r}; the recipe has: {', '.join(recipe)}; "
                    f"{row.loss} has: {', '.join(parameters)}"
                )
            if target[axis] == value:
                raise UsageError(
                    f"{run.id}: {axis}={format_axis(value)} is already the default in preset {preset.name}; "
                    "remove it"
                )
            target[axis] = value
        if recipe["augmentation"] != "none":
            check_builder("augmentations", str(recipe["augmentation"]), self.folder)
        try:
            return RunConfig(
                dataset=run.cell.dataset,
                network=self.networks[run.cell.network],
                loss=row.loss,
                folder=self.folder,
                loss_parameters=schema.model_validate(parameters).model_dump(),
                seed=run.seed,
                recipe=Recipe.model_validate(recipe),
            )
        except ValidationError as error:
            raise UsageError(f"{run.id}: {explain(error)}") from None


def _cells(tables: Iterable[Table]) -> list[Cell]:
    return [
        Cell(table.name, table.dataset, network, row.name, (), row.reported.get(network))
        for table in tables
        for network in table.networks
        for row in table.rows
    ]


def _patterns(selection: Selection) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """What each of a selection's patterns is of: for messages, and as an attribute of a cell."""
    return (
        ("data set", selection.datasets, "dataset"),
        ("network", selection.networks, "network"),
        ("loss", selection.losses, "row"),
    )


def _plain(name: str) -> str:
    """A name or label by its letters and digits: `ResNet-18` and `resnet18` are one."""
    return "".join(filter(str.isalnum, name)).casefold()


def _matching(cells: Iterable[Cell], selection: Selection) -> list[Cell]:
    patterns = _patterns(selection)
    return [c for c in cells if all(_matches(getattr(c, name), given) for _, given, name in patterns)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
