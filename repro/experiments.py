"""What `experiments/*.toml` say, read and checked: the tables with their rows and networks, and the presets.

Every mistake is a RegistryError that names the file, the key, and what is allowed.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from repro.errors import OwnCodeError, RegistryError, SelectionError
from repro.implementations import NETWORKS, is_file, names
from repro.parameters import ROW_KEYS, check_network, loss_parameters
from repro.paths import NAME
from repro.recipes import Model, Preset, Recipe, Scalar


class Reported(Model):
    """What the paper prints for a cell: percent top-1."""

    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0)


class ReportedData(Model):
    """What the paper says of a table's data: how many classes, and images of each."""

    classes: int = Field(ge=2)
    train_per_class: int = Field(ge=1)
    test_per_class: int = Field(ge=1)


class Row(Model):
    """A loss with its parameters, as a row of a table; a table of the paper reports on every network."""

    name: str
    label: str
    loss: str
    parameters: tuple[tuple[str, Scalar], ...] = ()
    reported: dict[str, Reported] = Field(default_factory=dict)


TableName = int | str
"""1, 2 and 3 are the paper's tables; any other table has a name."""


class Table(Model):
    """A table: rows are losses, columns networks.

    `extends` names the table below whose rows these belong without being its own; such a table has that one's
    data set and networks. `networks` maps each column's name to its label, `own_networks` those that are the
    user's own to their code, `mynetworks.py:TinyNet`.
    """

    name: TableName
    extends: TableName | None = None
    dataset: str
    title: str
    networks: dict[str, str]
    own_networks: dict[str, str] = Field(default_factory=dict)
    rows: tuple[Row, ...]
    reported_data: ReportedData | None = None
    file: str

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
        """`Table 1: CIFAR-100`; outside the paper the title alone."""
        return f"Table {self.name}: {self.title}" if self.of_paper else self.title

    def row(self, name: str) -> Row:
        """The row called `name`; SelectionError lists the known ones."""
        for row in self.rows:
            if row.name == name:
                return row
        raise SelectionError(
            f"{self.file} has no row {name!r}; it has: {', '.join(r.name for r in self.rows)}"
        )


def read_tables(folder: Path) -> tuple[Table, ...]:
    """Every `table*.toml` of `folder`, the paper's first; raises RegistryError."""
    tables: list[Table] = []
    # The paper's first, for they are not to blame; what is like another table, or extends one, comes last.
    contents = [(path, read_toml(path)) for path in sorted(folder.glob("table*.toml"))]
    for path, content in sorted(contents, key=lambda item: _place(item[1])):
        table = _table(path, content, tables)
        for other in tables:
            _check_apart(path, table, other)
        tables.append(table)
    if not tables:
        raise RegistryError(f"{folder}: no table*.toml; a registry needs at least one table")
    return tuple(sorted(tables, key=lambda table: (not table.of_paper, table.name)))


def read_presets(path: Path) -> dict[str, Preset]:
    """The presets of `presets.toml` by name, each a change of its [recipe]; raises RegistryError."""
    content = known_keys(str(path), read_toml(path), ("recipe", "presets"), ("recipe", "presets"))
    fields = tuple(Recipe.model_fields)
    base = known_keys(f"{path}: [recipe]", content["recipe"], fields)
    presets: dict[str, Preset] = {}
    for name, raw in content["presets"].items():
        where = f"{path}: [presets.{name}]"
        known = ("title", "description", "seeds", "threads", "recipe")
        known_keys(where, raw, known, known[:-1])
        changes = known_keys(f"{where}: recipe", raw.get("recipe", {}), fields)
        try:
            recipe = Recipe.model_validate({**base, **changes})
            presets[name] = Preset.model_validate({**raw, "name": _name(where, name), "recipe": recipe})
        except ValidationError as error:
            raise RegistryError(f"{where}: {explain(error)}") from None
        if name != "paper" and not presets[name].title:
            raise RegistryError(f"{where}: title: only the preset paper may have an empty title")
    if "paper" not in presets:
        raise RegistryError(f"{path}: the preset paper is missing")
    return presets


def explain(error: ValidationError) -> str:
    """The first thing pydantic found, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{where}: {message}{got}" if where else message


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; RegistryError where it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: not valid TOML: {error}") from None


def known_keys(
    where: str, given: object, allowed: Iterable[str], required: Iterable[str] = ()
) -> dict[str, Any]:
    """`given`, if it is a table of allowed keys that has the required ones; RegistryError names the key."""
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


def _name(where: str, name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RegistryError(
            f"{where}: {name!r} cannot be a name; use small letters, digits, dots and dashes, "
            "as in scaled-bn-m1"
        )
    return name


def _place(content: dict[str, Any]) -> tuple[bool, ...]:
    return "like" in content, "extends" in content, not isinstance(content.get("table"), int)


def _check_apart(path: Path, table: Table, other: Table) -> None:
    """Two tables may share a data set, never a cell: an id names one run."""
    if other.name == table.name:
        raise RegistryError(f"{path}: table = {table.name!r} is already in {other.file}")
    for network, code in table.own_networks.items():
        if (there := other.own_networks.get(network, code)) != code:
            raise RegistryError(
                f"{path}: networks: {network} is {code} here and {there} in {other.file}; "
                "a name means one network"
            )
    if other.dataset != table.dataset or not table.networks.keys() & other.networks.keys():
        return
    for row in table.rows:
        for known in other.rows:
            if row.name == known.name:
                raise RegistryError(
                    f"{path}: the cells of {table.dataset} are already in {other.file}: "
                    f"duplicate cells {row.name!r}"
                )
            if (row.loss, row.parameters) == (known.loss, known.parameters):
                raise RegistryError(
                    f"{path}: duplicate cell: {row.name!r} is the same loss with the same parameters as "
                    f"{known.name!r} in {other.file}"
                )


def _table(path: Path, content: dict[str, Any], earlier: Sequence[Table]) -> Table:
    own: tuple[str, ...] = ("table", "dataset", "title")
    if "extends" in content:
        own = ("table", "title")
        known_keys(str(path), content, (*own, "extends", "like", "rows"), own)
        extended = _another(path, "extends", content, earlier)
        content = {**content, "dataset": extended.dataset, "networks": _columns(extended)}
    if "like" in content:
        known_keys(str(path), content, (*own, "like", "extends", "dataset", "networks"), own)
        like = _another(path, "like", content, earlier)
        rows: list[Row] = [row.model_copy(update={"reported": {}}) for row in like.rows]
        return _checked_table(path, content, _networks(path, content.get("networks", _columns(like))), rows)
    required = ("table", "dataset", "title", "networks", "rows")
    known_keys(str(path), content, (*required, "reported_data", "like", "extends"), required)
    networks = _networks(path, content["networks"])
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise RegistryError(f"{path}: rows: expected one [[rows]] for each loss")
    paper = isinstance(content["table"], int)
    rows = [_row(path, index, raw, tuple(networks), paper) for index, raw in enumerate(content["rows"], 1)]
    for index, row in enumerate(rows):
        for other in rows[:index]:
            if other.name == row.name:
                raise RegistryError(f"{path}: duplicate cell: two rows are called {row.name!r}")
            if (other.loss, other.parameters) == (row.loss, row.parameters):
                raise RegistryError(
                    f"{path}: duplicate cell: {other.name!r} and {row.name!r} are the same loss "
                    "with the same parameters"
                )
    return _checked_table(path, content, networks, rows)


def _another(path: Path, key: str, content: dict[str, Any], earlier: Sequence[Table]) -> Table:
    """The table that `like` or `extends` names."""
    for table in earlier:
        if table.name == content[key] and (key == "like" or table.extends is None):
            return table
    known = ", ".join(str(table.name) for table in earlier if key == "like" or table.extends is None)
    raise RegistryError(
        f"{path}: {key}: there is no table {content[key]!r} with rows of its own; tables: {known}"
    )


def _columns(table: Table) -> dict[str, Any]:
    """A table's networks as its TOML has them."""
    return {
        name: {"label": label, "code": table.own_networks[name]} if name in table.own_networks else label
        for name, label in table.networks.items()
    }


def _networks(path: Path, columns: object) -> dict[str, tuple[str, str | None]]:
    """Each column's label and, where it is the user's own, its code, by name."""
    if not isinstance(columns, dict) or not columns:
        raise RegistryError(f'{path}: networks: expected name = "label" for each column')
    return {_name(f"{path}: networks", key): _network(path, key, value) for key, value in columns.items()}


def _network(path: Path, name: str, column: object) -> tuple[str, str | None]:
    """A column's label, and its code where it is the user's own."""
    where = f"{path}: networks: {name}"
    if not isinstance(column, dict):
        if name not in names("networks"):
            raise RegistryError(
                f"{path}: networks: unknown network {name!r}; there are: {', '.join(names('networks'))}; "
                f'one of your own is {name} = {{ label = "…", code = "mynetworks.py:TinyNet" }}'
            )
        return str(column), None
    keys = ("label", "code")
    label, code = (known_keys(where, column, keys, keys)[key] for key in keys)
    if name in NETWORKS or not isinstance(code, str) or not is_file(code):
        hint = f"{name} is one of this package's" if name in NETWORKS else f"got code = {code!r}"
        raise RegistryError(
            f'{where}: expected a new name with a file of your own, as in tiny = {{ label = "Tiny", '
            f'code = "mynetworks.py:TinyNet" }}; {hint}'
        )
    try:
        check_network(code, path.parent)
    except OwnCodeError as error:
        raise RegistryError(f"{where}: {error}") from None
    return str(label), code


def _checked_table(
    path: Path,
    content: dict[str, Any],
    networks: Mapping[str, tuple[str, str | None]],
    rows: Sequence[Row],
) -> Table:
    name = content["table"]
    if not isinstance(name, int) or isinstance(name, bool):
        _name(f"{path}: table", name)
        if str(name).isdigit():
            raise RegistryError(f"{path}: table: write the number {name} without quotes")
    try:
        return Table(
            name=name,
            extends=content.get("extends"),
            dataset=_name(f"{path}: dataset", content["dataset"]),
            title=content["title"],
            networks={key: label for key, (label, _) in networks.items()},
            own_networks={key: code for key, (_, code) in networks.items() if code},
            rows=tuple(rows),
            reported_data=content.get("reported_data"),
            file=str(path),
        )
    except ValidationError as error:
        raise RegistryError(f"{path}: {explain(error)}") from None


def _row(path: Path, index: int, raw: object, networks: tuple[str, ...], paper: bool) -> Row:
    where = f"{path}: row {index}"
    if isinstance(raw, dict) and isinstance(raw.get("name"), str):
        where += f" ({raw['name']})"
    if not isinstance(raw, dict) or not isinstance(raw.get("loss"), str):
        raise RegistryError(
            f"{where}: missing key 'loss'; losses: {', '.join(names('losses'))}, "
            "or a file of your own: mylosses.py:FocalLoss"
        )
    try:
        schema = loss_parameters(raw["loss"], path.parent)
    except OwnCodeError as error:
        raise RegistryError(f"{where}: {error}") from None
    required = ROW_KEYS if paper else ("name", "label", "loss")
    known_keys(where, raw, (*ROW_KEYS, *schema.model_fields), required)
    reported = raw.get("reported", {})
    known_keys(f"{where}: reported", reported, networks, networks if paper else ())
    try:
        given = schema.model_validate({key: value for key, value in raw.items() if key not in ROW_KEYS})
        return Row(
            name=_name(f"{where}: name", raw["name"]),
            label=raw["label"],
            loss=raw["loss"],
            parameters=tuple(given.model_dump().items()),
            reported=reported,
        )
    except ValidationError as error:
        raise RegistryError(f"{where}: {explain(error)}") from None
