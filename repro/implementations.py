"""Where the code of each loss and network is written, found without importing any of it.

A loss or network is named in a TOML in one of three ways:

    scaled-bn                  one of this package's, below
    mylosses.py:FocalLoss      a class (for a network, or a function) in the user's own file beside the TOML
    focal                      an entry point of another package, group `repro.losses` or `repro.networks`

Planning reads source text; only a process that trains calls `load`. Needs no torch.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from repro.errors import OwnCodeError

Kind = Literal["losses", "networks"]

LOSSES: Mapping[str, str] = {
    "cross-entropy": "repro.losses.cross_entropy:CrossEntropy",
    "am-softmax": "repro.losses.am_softmax:AMSoftmax",
    "pedcc": "repro.losses.pedcc:PEDCC",
    "scaled-bn": "repro.losses.scaled_bn:ScaledBN",
    "logit-scale": "repro.losses.logit_scale:LogitScale",
    "cosine-learnt-scale": "repro.losses.cosine_learnt_scale:CosineLearntScale",
    "cosine-scale-by-classes": "repro.losses.cosine_scale_by_classes:CosineScaleByClasses",
    "logit-norm": "repro.losses.logit_norm:LogitNorm",
    "logit-z-score": "repro.losses.logit_z_score:LogitZScore",
    "label-smoothing": "repro.losses.label_smoothing:LabelSmoothing",
}
"""This package's losses: the name that a TOML uses → `module:class`."""

NETWORKS: Mapping[str, str] = {
    "vgg16": "repro.models.vgg:vgg16",
    "vgg13": "repro.models.vgg:vgg13",
    "vgg16-4096": "repro.models.vgg:vgg16_4096",
    "vgg-lsoftmax": "repro.models.vgg:LSoftmaxVGG",
    "resnet18": "repro.models.resnet:resnet18",
    "resnet50": "repro.models.resnet:resnet50",
}
"""This package's networks: name → `module:builder`; a builder takes image_size, width and stem_pool."""

_OWN: Mapping[Kind, Mapping[str, str]] = {"losses": LOSSES, "networks": NETWORKS}
_WORDS: Mapping[Kind, tuple[str, str]] = {
    "losses": ("loss", "mylosses.py:FocalLoss"),
    "networks": ("network", "mynetworks.py:TinyNet"),
}


@dataclass(frozen=True)
class Implementation:
    """The code behind a name: a class or function `attribute` in the file `path`.

    `module` is how an installed one is imported, None for a user's file.
    """

    name: str
    path: Path
    attribute: str
    module: str | None

    @property
    def file(self) -> str:
        """A user's file as its name has it: `mylosses.py`."""
        return self.name.partition(":")[0]

    @property
    def of_package(self) -> bool:
        """Whether it is one of this package's own."""
        return self.module is not None and self.module.startswith("repro.")


def names(kind: Kind) -> tuple[str, ...]:
    """Every name that needs no file: this package's, then the entry points' of other packages."""
    return (*_OWN[kind], *sorted(set(_installed(kind)) - set(_OWN[kind])))


def is_file(name: str) -> bool:
    """Whether a name means a file of the user's own: `mylosses.py:FocalLoss`."""
    return name.partition(":")[0].endswith(".py")


def find(kind: Kind, name: str, folder: Path | None) -> Implementation:
    """Where `name` is written; a user's file is relative to `folder`. Imports nothing.

    Raises OwnCodeError where there is no such name, file or module.
    """
    if is_file(name):
        file, _, attribute = name.partition(":")
        if not attribute.isidentifier():
            raise OwnCodeError(f"{name!r}: expected file.py:Name, as in mylosses.py:FocalLoss")
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise OwnCodeError(f"{name}: expected a file beside the TOML or in a folder below it")
        path = (folder or Path.cwd()) / file
        if not path.is_file():
            raise OwnCodeError(f"{name}: there is no file {path}")
        return Implementation(name, path, attribute, None)
    reference = _OWN[kind].get(name) or _installed(kind).get(name)
    if reference is None:
        one, example = _WORDS[kind]
        known = ", ".join(names(kind))
        raise OwnCodeError(f"unknown {one} {name!r}; there are: {known}, or a file of your own: {example}")
    module, _, attribute = reference.partition(":")
    found = module_file(module)
    if found is None or not attribute:
        raise OwnCodeError(f"{name}: its entry point {reference!r} names no module:Name that can be found")
    return Implementation(name, found, attribute, module)


def file_beside(importer: Path, module: str) -> Path | None:
    """The file of a module that lies beside the user's file `importer`, None where there is none."""
    base = importer.parent.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@cache
def module_file(module: str) -> Path | None:
    """The source file of an installed module, None where there is none; imports neither it nor its parent."""
    top, _, rest = module.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    for location in spec.submodule_search_locations:
        base = Path(location).joinpath(*rest.split(".")) if rest else Path(location)
        for path in (base.parent / f"{base.name}.py", base / "__init__.py"):
            if path.is_file() and (rest or path.name == "__init__.py"):
                return path
    return None


def load(implementation: Implementation) -> Any:
    """The class or function itself; for a user's file, run afresh each time.

    Raises OwnCodeError with the user's own line where importing fails or the name is not there.
    """
    where = implementation.module or implementation.path.name
    try:
        if implementation.module is not None:
            module = importlib.import_module(implementation.module)
        else:
            module = _run_file(implementation.path)
    except Exception as error:
        if implementation.of_package:
            raise
        raise OwnCodeError(f"{implementation.name}: importing {where} failed: {explain(error)}") from error
    try:
        return getattr(module, implementation.attribute)
    except AttributeError:
        raise OwnCodeError(f"{implementation.name}: {where} defines no {implementation.attribute}") from None


def explain(error: BaseException) -> str:
    """`NameError: name 'x' is not defined (mylosses.py, line 7: x = y + 1)`: the innermost line."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # it says file and line itself
        return message
    frames = traceback.extract_tb(error.__traceback__)
    # The user's line: not one of this package's, nor of a library that it called into.
    elsewhere = (str(Path(__file__).parent), "<")
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(elsewhere) and "site-packages" not in frame.filename
    ]
    if not own:
        return message
    return f"{message} ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"


def _run_file(path: Path) -> Any:
    # Under a name of its own, so that losses.py beside the TOML is not taken for another module. What it
    # imports from its own folder is found there, as if it were run as a script.
    name = f"_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@cache
def _installed(kind: Kind) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=f"repro.{kind}")}
