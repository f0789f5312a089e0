"""Which parameters a loss has, and of which kind: from `repro.config`, or from the text of the user's own.

A loss of the user's own is read, never run: planning imports neither it nor torch. From

    class FocalLoss(CrossEntropy):
        def __init__(self, feature_dim, classes, *, gamma: float = 2.0, bias: bool = True):

come `gamma` and `bias`, each a key of the loss's row in a TOML and an axis of `--set`. A class without an
`__init__` has its base's.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from repro.config import LOSS_PARAMETERS, Model, Scalar
from repro.errors import OwnCodeError
from repro.implementations import Implementation, file_beside, find, module_file

ROW_KEYS = ("name", "label", "loss", "reported")
"""Keys of a row that are not the loss's parameters."""

NETWORK_OPTIONS = ("width", "stem_pool")
"""What a network's builder may take beside the image size."""

DEEPEST = 8
"""How many imports, or bases, are followed to where a name is defined."""

_SCALARS: dict[str, type[Scalar]] = {"bool": bool, "int": int, "float": float, "str": str}
_REQUIRED = object()


def loss_parameters(loss: str, folder: Path | None) -> type[Model]:
    """The schema of a loss's parameters; a file of the user's own is relative to `folder`.

    Raises OwnCodeError where there is no such loss, or its text does not say what it takes.
    """
    return LOSS_PARAMETERS[loss] if loss in LOSS_PARAMETERS else _read_schema(loss, folder)


def check_network(network: str, folder: Path | None) -> None:
    """Raises OwnCodeError unless `network` is defined where its name says and takes an image size."""
    found = find("networks", network, folder)
    if found.of_package:
        return
    definition = _defined_in(found.path, found.attribute)
    if definition is None:
        if found.attribute not in _bound_names(found.path):
            raise OwnCodeError(f"{network}: {found.path.name} defines no {found.attribute}")
        return  # assigned or imported: what it takes is seen when it is built
    arguments = _arguments(definition)
    if arguments is None:
        return
    needed = [
        argument.name
        for argument in arguments[1:]
        if argument.default is _REQUIRED and argument.name not in NETWORK_OPTIONS
    ]
    if not arguments or arguments[0].by_keyword_alone or needed:
        more = f"; nothing gives it {', '.join(needed)}" if needed else ""
        raise OwnCodeError(
            f"{network}: expected to call it as {found.attribute}(image_size), "
            f"with width and stem_pool where it has them{more}"
        )


@dataclass(frozen=True)
class _Argument:
    name: str
    annotation: ast.expr | None
    default: Any
    by_keyword_alone: bool


@dataclass(frozen=True)
class _Definition:
    """A class or function, and the file that it stands in."""

    node: ast.ClassDef | ast.FunctionDef
    path: Path


@cache
def _read_schema(loss: str, folder: Path | None) -> type[Model]:
    found = find("losses", loss, folder)
    definition = _definition(found.path, found.attribute)
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        raise OwnCodeError(f"{loss}: {found.path.name} defines no class {found.attribute}")
    arguments = _arguments(definition)
    if arguments is None:
        raise OwnCodeError(
            f"{loss}: what it takes cannot be read from {found.path.name}; "
            "give the class an __init__(self, feature_dim, classes, …) of its own"
        )
    if len(arguments) < 2 or arguments[1].by_keyword_alone:
        raise OwnCodeError(
            f"{loss}: expected __init__(self, feature_dim, classes, …), "
            f"got ({', '.join(['self', *(argument.name for argument in arguments)])})"
        )
    fields = {argument.name: _field(found, argument) for argument in arguments[2:]}
    return create_model(f"{found.attribute}Parameters", __base__=Model, **fields)  # type: ignore[call-overload]


def _field(loss: Implementation, argument: _Argument) -> tuple[Any, Any]:
    """(type, default) of one parameter, as pydantic takes them."""
    name = argument.name
    if name in ROW_KEYS or name.startswith("_") or hasattr(Model, name):
        raise OwnCodeError(f"{loss.name}: its parameter {name} needs another name: a TOML row cannot set it")
    kind = _kind(argument)
    if kind is None:
        raise OwnCodeError(
            f"{loss.name}: its parameter {name} must say what it is, as in `{name}: float = 1.0`: "
            "bool, int, float, str, or a Literal of them, with a default written out"
        )
    return kind, ... if argument.default is _REQUIRED else argument.default


def _kind(argument: _Argument) -> Any:
    """The type of a parameter: as annotated, else as its default is; None where neither says."""
    note, default = argument.annotation, argument.default
    if default is not _REQUIRED and not isinstance(default, bool | int | float | str):
        return None
    if note is None:
        return None if default is _REQUIRED else type(default)
    if isinstance(note, ast.Constant) and isinstance(note.value, str):
        note = ast.parse(note.value, mode="eval").body
    if isinstance(note, ast.Name):
        return _SCALARS.get(note.id)
    if isinstance(note, ast.Subscript) and _dotted(note.value).rpartition(".")[2] == "Literal":
        choices = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
        if all(isinstance(choice, ast.Constant) for choice in choices):
            return Literal[tuple(choice.value for choice in choices if isinstance(choice, ast.Constant))]
    return None


def _arguments(definition: _Definition) -> list[_Argument] | None:
    """What a function takes, or a class's `__init__` after self; None where that is out of reach."""
    function = definition.node
    skip = 0 if isinstance(function, ast.FunctionDef) else 1
    if isinstance(function, ast.ClassDef):
        constructor = _constructor(definition)
        if constructor is None:
            return None
        function = constructor
    given = function.args
    if given.vararg or given.kwarg:
        raise OwnCodeError(
            f"{definition.path.name}, line {function.lineno}: *args and **kwargs do not say "
            "what they take; name each parameter"
        )
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    arguments = [
        _Argument(argument.arg, argument.annotation, _value(default), argument in given.kwonlyargs)
        for argument, default in (
            *zip(positional, defaults, strict=True),
            *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        )
    ]
    return arguments[skip:]


def _value(default: ast.expr | None) -> Any:
    """A default as written; an expression stays one, which `_kind` refuses."""
    if default is None:
        return _REQUIRED
    try:
        return ast.literal_eval(default)
    except ValueError:
        return default


def _constructor(definition: _Definition, depth: int = DEEPEST) -> ast.FunctionDef | None:
    """The `__init__` of a class or of the first base that has one; None where a base is out of reach."""
    assert isinstance(definition.node, ast.ClassDef)
    for statement in definition.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return statement
    for base in definition.node.bases:
        found = _definition(definition.path, _dotted(base))
        if not depth or found is None or not isinstance(found.node, ast.ClassDef):
            continue
        if constructor := _constructor(found, depth - 1):
            return constructor
    return None


def _defined_in(path: Path, name: str) -> _Definition | None:
    for statement in _statements(path):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return _Definition(statement, path)
    return None


def _definition(path: Path, name: str, depth: int = DEEPEST) -> _Definition | None:
    """The class or function that `name` (`Focal`, `losses.Focal`) means in a file, through its imports."""
    if there := _defined_in(path, name):
        return there
    first, _, rest = name.partition(".")
    for statement in _statements(path):
        if not isinstance(statement, ast.Import | ast.ImportFrom) or depth == 0:
            continue
        for alias in statement.names:
            if (alias.asname or alias.name.partition(".")[0]) != first:
                continue
            for module, attribute in _targets(statement, alias, name, rest):
                file = _file_of(path, statement, module)
                if file and attribute and (found := _definition(file, attribute, depth - 1)):
                    return found
    return None


def _targets(
    statement: ast.Import | ast.ImportFrom, alias: ast.alias, name: str, rest: str
) -> Iterator[tuple[str, str]]:
    """(module, name in it) that a name made by an import may mean."""
    if isinstance(statement, ast.ImportFrom):
        base = statement.module or ""
        yield base, f"{alias.name}.{rest}".rstrip(".")
        yield f"{base}.{alias.name}".lstrip("."), rest
    elif alias.asname:
        yield alias.name, rest
    else:
        module, _, attribute = name.rpartition(".")
        yield module, attribute


def _file_of(importer: Path, statement: ast.Import | ast.ImportFrom, module: str) -> Path | None:
    """The file of a module as `importer` sees it: beside it, else installed."""
    if not module:
        return None
    level = statement.level if isinstance(statement, ast.ImportFrom) else 0
    # `from ..base import` is seen from the folder above.
    beside = file_beside(importer.parents[level - 1] / "x" if level else importer, module)
    return beside if beside or level else module_file(module)


def _bound_names(path: Path) -> set[str]:
    """Every name that a file's own statements bind by assignment or import."""
    names: set[str] = set()
    for statement in _statements(path):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@cache
def _statements(path: Path) -> tuple[ast.stmt, ...]:
    try:
        return tuple(ast.parse(path.read_bytes(), filename=str(path)).body)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else error
        raise OwnCodeError(f"{path}: not valid Python: {what}{line}") from None


def _dotted(node: ast.expr) -> str:
    """`losses.ClassificationLoss`; empty for anything but names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""
