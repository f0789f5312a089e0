"""What a record depends on, in two parts: the recipe (config and data) and the code.

A record of another recipe never counts. One of other code, with the same recipe, counts and is marked
"older code": comments, layout and docstrings do not change it, and neither does the harness around the
training.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from repro.recipes import RunConfig

RECIPE_VERSION = 1
"""Raised by a commit that changes what a recipe means (a fixed loss, another augmentation); that commit
names the records it voids."""

_PACKAGE = Path(__file__).parent
_ENTRY = "repro.training.loop"
_TRAINING_CODE = ("repro.losses", "repro.models", "repro.data", "repro.training")


def config_hash(config: RunConfig) -> str:
    """sha256 of the fully resolved configuration, seed included, and RECIPE_VERSION."""
    return _hash({"recipe_version": RECIPE_VERSION, **config.model_dump(mode="json")})


def data_hash(fingerprint: str, config: RunConfig) -> str:
    """sha256 of a data set's fingerprint and of the subset that the recipe takes of it."""
    recipe = config.recipe
    return _hash([fingerprint, recipe.images_per_class, recipe.test_images_per_class])


@cache
def code_hash() -> str:
    """sha256 of the syntax trees of every module of the package that training one run imports."""
    digest = hashlib.sha256()
    for module in training_modules():
        digest.update(module.encode())
        digest.update(_normalised(_tree(module)).encode())
    return digest.hexdigest()


def training_modules() -> tuple[str, ...]:
    """The modules that `repro.training.loop` imports, directly or not, below the training's packages."""
    found: set[str] = set()
    queue = [_ENTRY]
    while queue:
        module = queue.pop()
        if module in found:
            continue
        found.add(module)
        for name in _imported(_tree(module)):
            # `from repro.losses import base` names a module by its last part; try it as one first.
            for candidate in (name, name.rpartition(".")[0]):
                if candidate.startswith(_TRAINING_CODE) and _file(candidate):
                    queue.append(candidate)
                    break
    return tuple(sorted(found))


def _imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _normalised(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def _tree(module: str) -> ast.Module:
    path = _file(module)
    assert path is not None, module
    return ast.parse(path.read_bytes())


def _file(module: str) -> Path | None:
    base = _PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.parent / f"{base.name}.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
