"""`experiments/*.toml` as validated models: tables with their rows and networks, presets, ablations.

Every mistake is a RegistryError that names the file, the key and what is allowed. Without own code of the
user's it needs no torch.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from repro.config import Model, Preset, Recipe, Scalar, TomlModel, explain, known_keys, recipe_changes
from repro.errors import RegistryError, ReproError, SelectionError, did_you_mean, printable
from repro.paths import NAME, PUBLISHED_SETS, read_file
from repro.plugins import NETWORKS, ROW_KEYS, check_builder, is_file, loss_parameters, names

_ModelT = TypeVar("_ModelT", bound=Model)

_NamedT = TypeVar("_NamedT", bound="Row | Table")

AMBIGUITIES = "ambiguities"  # what `--study` calls all ablations together, and the name of their file


def pick(items: Sequence[_NamedT], name: object, error: type[ReproError], otherwise: str) -> _NamedT:
    """The one of `items` that has this name; the error says `otherwise` and lists their names."""
    for item in items:
        if item.name == name:
            return item
    raise error(f"{otherwise}: {', '.join(str(item.name) for item in items)}")


def _name(name: object) -> object:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        allowed = "at most 100 small letters, digits, dots and dashes, as in cross-entropy"
        shown = f"{name!r:.50}…" if isinstance(name, str) and len(name) > 100 else repr(name)
        raise ValueError(f"{shown} cannot be a name; use {allowed}")
    return name


def _dataset_name(name: object) -> object:
    try:
        return _name(name)
    except ValueError as error:
        known = f"data sets: {', '.join(PUBLISHED_SETS)}, and those you prepared"
        raise ValueError(f"{error}; {known}{did_you_mean(str(name), PUBLISHED_SETS)}") from None


def _table_name(name: object) -> object:
    if isinstance(name, str) and name.isdigit():
        raise ValueError(f"write the number {name} without quotes")
    return name if type(name) is int else _name(name)


def _recipe_changes(given: object, info: ValidationInfo) -> object:
    changes = recipe_changes(given)
    if (augmentation := changes.get("augmentation", "none")) != "none":
        check_builder("augmentations", augmentation, info.context)
    return changes


Name = Annotated[str, BeforeValidator(_name)]
TableName = Annotated[int | str, BeforeValidator(_table_name)]  # a number: the paper's; all others have names


class Reported(TomlModel):
    """What the paper prints for a cell, in percent; `std` is None where it prints none."""

    mean: float = Field(ge=0, le=100)
    std: float | None = Field(default=None, ge=0)


class ReportedData(TomlModel):
    """What the paper says of a table's data: how many classes, and images of each."""

    classes: int = Field(ge=2)
    train_per_class: int = Field(ge=1)
    test_per_class: int = Field(ge=1)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Classes, training images and test images."""
        return self.classes, self.classes * self.train_per_class, self.classes * self.test_per_class


class Row(Model):
    """A loss, its parameters, which are further keys of the row in the TOML, and changes of the recipe."""

    name: Name
    label: str
    loss: str
    parameters: tuple[tuple[str, Scalar], ...] = ()
    recipe: Annotated[dict[str, Any], BeforeValidator(_recipe_changes)] = Field(default_factory=dict)
    reported: dict[str, Reported] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _validate_parameters(cls, raw: object, info: ValidationInfo) -> object:
        if not isinstance(raw, dict) or isinstance(raw.get("parameters"), tuple):
            return raw  # no TOML has a tuple: a program made this row
        if not isinstance(raw.get("loss"), str):
            known = ", ".join(names("losses"))
            raise ValueError(f"missing key 'loss'; losses: {known}, or your own file: mylosses.py:FocalLoss")
        schema = loss_parameters(raw["loss"], info.context)
        known_keys(raw, (*ROW_KEYS, *schema.model_fields))
        row = {key: raw[key] for key in raw if key in ROW_KEYS}
        parameters = schema.model_validate({key: raw[key] for key in raw if key not in row})
        return {**row, "parameters": tuple(parameters.model_dump().items())}


class Column(TomlModel):
    """A network of a table: its label, and its `code` (`mynetworks.py:TinyNet`) if it is the user's own."""

    label: str
    code: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_label(cls, raw: object) -> object:
        return raw if isinstance(raw, dict | Column) else {"label": raw}

    @model_validator(mode="after")
    def _is_a_network(self, info: ValidationInfo) -> Self:
        if self.code is not None and not is_file(self.code):
            raise ValueError(f"code: expected your own file, as in mynetworks.py:TinyNet, got {self.code!r}")
        if self.code is not None:
            check_builder("networks", self.code, info.context)
        return self


class Table(Model):
    """A table: rows are losses, columns networks.

    `extends` names the table whose data set and networks these further rows share; they are shown below its
    rows and never counted with them. `like` names the table whose rows (without the reported numbers) and
    networks this one uses on another data set.
    """

    name: TableName = Field(alias="table")
    dataset: Annotated[str, BeforeValidator(_dataset_name)]
    title: str
    columns: dict[Name, Column] = Field(alias="networks", min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    reported_data: ReportedData | None = None
    extends: TableName | None = None
    like: TableName | None = None
    file: str

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        known = ", ".join(names("networks"))
        for name, column in self.columns.items():
            if column.code is None and name not in names("networks"):
                own = f'{name} = {{ label = "…", code = "mynetworks.py:TinyNet" }}'
                raise ValueError(f"networks: unknown network {name!r}; there are: {known}; your own: {own}")
            if column.code is not None and name in NETWORKS:
                raise ValueError(f"networks.{name}: {name} is one of this package's; yours needs a new name")
        for number, row in enumerate(self.rows, 1):
            missing = self.columns.keys() - row.reported.keys() if row.reported and self.of_paper else ()
            if missing or row.reported.keys() - self.columns.keys():
                expected, got = ", ".join(self.columns), ", ".join(row.reported) or "none"
                raise ValueError(f"row {number} ({row.name}): reported: expected {expected}; got {got}")
        return self

    @property
    def networks(self) -> dict[str, str]:
        """The label of each column by its name."""
        return {name: column.label for name, column in self.columns.items()}

    @property
    def of_paper(self) -> bool:
        """Whether the paper has this table."""
        return isinstance(self.name, int)

    @property
    def reports(self) -> bool:
        """Whether a number to compare with is given for any of its cells."""
        return any(row.reported for row in self.rows)

    @property
    def heading(self) -> str:
        """`Table 4: CIFAR-100`; outside the paper the title alone."""
        return f"Table {self.name}: {self.title}" if self.of_paper else self.title

    def row(self, name: str) -> Row:
        """The row called `name`; SelectionError lists the known ones."""
        return pick(self.rows, name, SelectionError, f"{self.file} has no row {name!r}; it has")


class Alternative(TomlModel):
    """Another reading of what the paper leaves open: another network, loss or `set`; or another epoch."""

    label: str
    network: str | None = None
    loss: str | None = None
    set: dict[str, Scalar] = Field(default_factory=dict)
    result: Literal["last-epoch", "best-epoch"] = "last-epoch"

    @property
    def trains(self) -> bool:
        """Whether it needs runs of its own; `best-epoch` reads the same runs again."""
        return self.result == "last-epoch"

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if bool(self.network or self.loss or self.set) != self.trains:
            raise ValueError("expected a network, a loss or a set, or else result = 'best-epoch' alone")
        return self


class Ablation(TomlModel):
    """A point that the paper leaves open: the cells it is studied in, as resolved, and its alternatives."""

    name: Name
    question: str
    table: TableName
    networks: tuple[str, ...] = Field(min_length=1)
    losses: tuple[str, ...] = Field(min_length=1)
    alternatives: tuple[Alternative, ...] = Field(min_length=1)


class _AblationFile(Model):
    points: tuple[Ablation, ...]


class _PresetFile(Model):
    recipe: Annotated[dict[str, Any], BeforeValidator(lambda raw: known_keys(raw, Recipe.model_fields))]
    presets: dict[Name, dict[str, Any]]


def read_tables(folder: Path, broken: dict[str, str] | None = None) -> tuple[Table, ...]:
    """Every `table*.toml` of `folder`, the paper's first; raises RegistryError.

    With `broken`, a table beside the paper's that is not valid is put there, with what is wrong, by its name.
    """
    tables: list[Table] = []
    files = []
    for path in sorted(folder.glob("table*.toml")):
        try:
            files.append((read_toml(path), path))
        except RegistryError as error:
            if broken is None:
                raise
            broken[path.stem.removeprefix("table").removeprefix("-")] = str(error)
    # `like` and `extends` name a table read before; the paper's come first, for they are not to blame.
    files.sort(
        key=lambda file: ("like" in file[0], "extends" in file[0], isinstance(file[0].get("table"), str))
    )
    for raw, path in files:
        try:
            tables.append(_read_table(raw, path, folder, tables))
        except RegistryError as error:
            if broken is None or isinstance(raw.get("table"), int):
                raise
            broken[str(raw.get("table"))] = str(error)
    if not tables:
        none = f"{folder}: no table*.toml; a registry needs at least one table"
        raise RegistryError(next(iter(broken.values()), none) if broken else none)
    return tuple(sorted(tables, key=lambda table: (not table.of_paper, table.name)))


def _read_table(raw: dict[str, Any], path: Path, folder: Path, tables: Sequence[Table]) -> Table:
    """A table from its TOML; `tables` are those read before it."""
    for other in tables:
        if repr(other.name) == repr(raw.get("table")):  # True == 1
            raise RegistryError(f"{path}: table = {other.name!r} is already in {other.file}")
    given: dict[str, Any] = {"file": str(path)}
    unknown = "{}: {}: there is no table {!r} with rows of its own; tables"
    if "extends" in raw:
        extended = [table for table in tables if table.extends is None]
        other = pick(extended, raw["extends"], RegistryError, unknown.format(path, "extends", raw["extends"]))
        given |= {"dataset": other.dataset, "networks": other.columns, "reported_data": None}
    if "like" in raw:
        other = pick(tables, raw["like"], RegistryError, unknown.format(path, "like", raw["like"]))
        rows = tuple(row.model_copy(update={"reported": {}}) for row in other.rows)
        given |= {"rows": rows, "reported_data": None}
        raw = raw if "networks" in given else {"networks": other.columns, **raw}
    table = validate(Table, raw, str(path), folder, **given)
    for other in (table, *tables):
        _check_distinct(table, other)
    return table


def read_presets(path: Path) -> dict[str, Preset]:
    """The presets of `presets.toml` by name, each a change of its [recipe]; raises RegistryError."""
    content = validate(_PresetFile, read_toml(path), str(path))
    presets: dict[str, Preset] = {}
    for name, raw in content.presets.items():
        where = f"{path}: [presets.{name}]"
        changes = raw.get("recipe", {})
        recipe = {**content.recipe, **changes} if isinstance(changes, dict) else changes
        presets[name] = validate(Preset, {**raw, "recipe": recipe}, where, name=name)
        if name != "paper" and not presets[name].title:
            raise RegistryError(f"{where}: title: only the preset paper may have an empty title")
    if "paper" not in presets:
        raise RegistryError(f"{path}: the preset paper is missing")
    return presets


def read_ablations(path: Path, tables: Sequence[Table], networks: Sequence[str]) -> tuple[Ablation, ...]:
    """The ablations of a file, in its order; none where there is no file. `networks` are all there are.

    Raises RegistryError.
    """
    if not path.exists():
        return ()
    ablations = validate(_AblationFile, read_toml(path), str(path)).points
    taken = [AMBIGUITIES]
    for number, ablation in enumerate(ablations, 1):
        where = f"{path}: point {number} ({ablation.name})"
        if ablation.name in taken:
            raise RegistryError(f"{where}: its name must be a new one; taken: {', '.join(taken)}")
        taken.append(ablation.name)
        _check_references(where, ablation, tables, networks)
    return ablations


def validate(
    model: type[_ModelT], raw: dict[str, Any], where: str, folder: Path | None = None, **given: object
) -> _ModelT:
    """A TOML's content as a model; RegistryError names the key. `given` are fields that it may not set."""
    keys = [field.alias or name for name, field in model.model_fields.items()]
    try:
        known_keys(raw, [key for key in keys if key not in given])
        return model.model_validate({**raw, **given}, context=folder)
    except ValidationError as error:
        raise RegistryError(f"{where}: {explain(error, raw)}") from None
    except ValueError as error:
        raise RegistryError(f"{where}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; RegistryError where it is missing or not TOML."""
    try:
        # Not read_text: TOML is UTF-8 whatever the locale.
        content: dict[str, Any] = printable(tomllib.loads(read_file(path).decode()))
        return content
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist") from None
    except OSError as error:
        raise RegistryError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: not valid TOML: {error}") from None


def _check_distinct(table: Table, other: Table) -> None:
    """Two tables may share a data set, never a cell: an id names one run. `other` may be the table itself."""
    shared = table.columns.keys() & other.columns.keys()
    for network in shared:
        here, there = (each.columns[network].code or "installed" for each in (table, other))
        if here != there:
            what = f"{network} is {here} here and {there} in {other.file}; a name means one network"
            raise RegistryError(f"{table.file}: networks: {what}")
    if not shared or other.dataset != table.dataset:
        return
    for index, row in enumerate(table.rows):
        for known in table.rows[:index] if other is table else other.rows:
            where = f"{table.file}: duplicate cell: {row.name!r} on {table.dataset}"
            if row.name == known.name:
                raise RegistryError(f"{where} is already in {other.file}")
            if (row.loss, row.parameters, row.recipe) == (known.loss, known.parameters, known.recipe):
                same = f"is the same loss with the same recipe and the same parameters as {known.name!r}"
                raise RegistryError(f"{where} {same} in {other.file}")


def _check_references(
    where: str, ablation: Ablation, tables: Sequence[Table], networks: Sequence[str]
) -> None:
    """Everything that an ablation names exists."""
    unknown = f"{where}: there is no table {ablation.table!r}; tables"
    table = pick(tables, ablation.table, RegistryError, unknown)
    own = [row.name for row in table.rows]
    further = [row.name for other in tables if other.extends == table.name for row in other.rows]
    for what, given, existing in (
        ("network", ablation.networks, [*table.columns]),
        ("loss", ablation.losses, own),
        ("network", [a.network for a in ablation.alternatives if a.network], networks),
        ("loss", [a.loss for a in ablation.alternatives if a.loss], [*own, *further]),
    ):
        for name in given:
            if name not in existing:
                raise RegistryError(f"{where}: unknown {what} {name!r}; there are: {', '.join(existing)}")
