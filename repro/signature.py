"""What a record depends on, in two parts: the recipe (config and data) and the code.

A record of another recipe never counts. One of other code, with the same recipe, counts and is marked
"older code": comments, layout and docstrings do not change it, and neither does the harness around the
training, nor a loss or network that the run does not use.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from repro.config import RunConfig, Scalar
from repro.errors import OwnCodeError
from repro.plugins import file_beside, find, module_file

# Raised by a commit that changes what a recipe means (a fixed loss, another augmentation); that commit names
# the records it voids.
RECIPE_VERSION = 1

# Fields of the recipe and of losses that were added after records existed, each with the value at which a run
# is what it was without the field: that value is left out of the hash, so older records keep counting.
LATER_FIELDS: dict[str, Scalar] = {
    "weight_decay_on": "all",
    "statistics": "running",
    "momentum_reset": False,
    "embedding": "linear",
    "augmentation": "none",
}

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ENTRY = "repro.training.loop"
_TRAINING_CODE = ("repro.losses", "repro.models", "repro.data", "repro.training")


def config_hash(config: RunConfig) -> str:
    """sha256 of the fully resolved configuration, seed included, and RECIPE_VERSION.

    Code of the user's own counts too: its name alone does not say what is trained.
    """
    content = config_content(config)
    if own := own_code(config):
        content["own_code"] = {name: _hash(_normalised(path)) for name, path in own.items()}
    return _hash({"recipe_version": RECIPE_VERSION, **content})


def config_content(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as its hash has it: the same before and after a field was added."""
    content = config.model_dump(mode="json")
    for part in (content["recipe"], content["loss_parameters"]):
        for name, value in LATER_FIELDS.items():
            if part.get(name) == value:
                del part[name]
    return content


def data_hash(fingerprint: str, config: RunConfig) -> str:
    """sha256 of a data set's fingerprint and of the subset that the recipe takes of it."""
    recipe = config.recipe
    return _hash([fingerprint, recipe.images_per_class, recipe.test_images_per_class])


def code_hash(config: RunConfig) -> str:
    """sha256 of the syntax trees of every module that training this run imports: loop, loss, network, ….

    A file of the user's own counts with what it imports from its folder. Read once a process.
    """
    return _code_hash(*_named_code(config))


def own_code(config: RunConfig) -> dict[str, Path]:
    """Name → file of the modules behind a run that are not this package's; empty for a loss of the paper."""
    modules = _training_code(*_named_code(config))
    return {name: path for name, path in modules.items() if not name.startswith("repro.")}


def training_modules(config: RunConfig) -> tuple[str, ...]:
    """The modules and files behind `code_hash`, by name."""
    return tuple(_training_code(*_named_code(config)))


def _named_code(config: RunConfig) -> tuple[str, str, str, Path | None]:
    return config.loss, config.network, config.recipe.augmentation, config.folder


@cache
def _code_hash(loss: str, network: str, augmentation: str, folder: Path | None) -> str:
    digest = hashlib.sha256()
    for name, path in _training_code(loss, network, augmentation, folder).items():
        digest.update(name.encode())
        digest.update(_normalised(path).encode())
    return digest.hexdigest()


@cache
def _training_code(loss: str, network: str, augmentation: str, folder: Path | None) -> dict[str, Path]:
    """Name → file, sorted by name, of all that a run imports of the training's packages or the user's own."""
    entry = module_file(_ENTRY)
    assert entry is not None
    queue = [(_ENTRY, entry)]
    used = [find("networks", network, folder), find("losses", loss, folder)]
    if augmentation != "none":
        used.append(find("augmentations", augmentation, folder))
    for implementation in used:
        queue.append((implementation.module or implementation.file, implementation.path))
    found: dict[str, Path] = {}
    while queue:
        name, path = queue.pop()
        if name not in found:
            found[name] = path
            queue += _imported_by(name, path)
    return dict(sorted(found.items()))


def _imported_by(importer: str, path: Path) -> Iterator[tuple[str, Path]]:
    """What a module imports of the training's packages, of its own package, or from a user's own folder."""
    top = importer.partition(".")[0]
    for name in _imports(importer, path):
        # `from repro.losses import base` names a module by its last part; try it as one first.
        for candidate in (name, name.rpartition(".")[0]):
            if importer.endswith(".py"):
                if candidate and (beside := file_beside(path, candidate)):
                    yield (Path(importer).parent / beside.relative_to(path.parent)).as_posix(), beside
                    break
            elif top != "repro" and candidate.partition(".")[0] == top and (of_top := module_file(candidate)):
                yield candidate, of_top
                break
            if candidate.startswith(_TRAINING_CODE) and (of_package := module_file(candidate)):
                yield candidate, of_package
                break


@cache
def _imports(importer: str, path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and not importer.endswith(".py"):
                package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *filter(None, [node.module])])
            names += [f"{base}.{alias.name}" if base else alias.name for alias in node.names]
    return tuple(names)


@cache
def _normalised(path: Path) -> str:
    return _text(_tree(path))


def _text(node: object) -> str:
    """A tree as text without docstrings and what is empty: Python's dump differs between its versions."""
    if isinstance(node, list):
        return f"[{', '.join([_text(each) for each in node])}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, _DOCUMENTED):
            first = value[0] if value else None
            value = value[isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) :]
        if value is not None and value != []:
            fields.append(f"{name}={_text(value)}")
    return f"{type(node).__name__}({', '.join(fields)})"


@cache  # a module is asked for its imports and for its text
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise OwnCodeError(f"{path}: not valid Python: {error.msg} (line {error.lineno})") from None


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
