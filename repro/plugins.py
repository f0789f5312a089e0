"""Losses, networks, augmentations and loggers by name: this package's, another package's, or the user's own.

One is named in a TOML in one of three ways:

    cross-entropy              one of this package's
    mylosses.py:FocalLoss      a class (or a function, but for a loss) in the user's own file beside the TOML
    focal                      an entry point of another package: group `repro.losses`, `.networks`, …

This package's are not imported to plan, and torch isn't either. Anybody else's is: its constructor says which
parameters it takes. From

    class FocalLoss(CrossEntropy):
        def __init__(self, feature_dim, classes, *, gamma: float = 2.0, bias: bool = True):

come `gamma` and `bias`, each a key of the loss's row in a TOML and an axis of `--set`. What is built of it is
tried before it trains: `repro.trial`.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from repro.config import LOSS_PARAMETERS, Model
from repro.errors import OwnCodeError
from repro.network_facts import NETWORK_FACTS

Kind = Literal["losses", "networks", "augmentations", "loggers"]

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

NETWORKS: Mapping[str, str] = {name: facts.builder for name, facts in NETWORK_FACTS.items()}
"""This package's networks: name → `module:builder`."""

ROW_KEYS = ("name", "label", "loss", "reported", "recipe")  # keys of a row that are not the loss's parameters
NETWORK_OPTIONS = ("width", "stem_pool")  # what a network's builder may take beside the image size

_FINITE = ConfigDict(allow_inf_nan=False)  # as in the schema itself, which does not check its defaults

_OF_PACKAGE: Mapping[Kind, Mapping[str, str]] = {
    "losses": LOSSES,
    "networks": NETWORKS,
    "augmentations": {},  # crop, flip and rotation are fields of the recipe
    "loggers": {
        "tensorboard": "repro.training.tensorboard:TensorBoardLogger",
        "csv": "repro.training.live_curves:CsvLogger",
    },
}
_EXAMPLES: Mapping[Kind, str] = {
    "losses": "mylosses.py:FocalLoss",
    "networks": "mynetworks.py:TinyNet",
    "augmentations": "cutout.py:Cutout",
    "loggers": "mylog.py:MyLogger",
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
    return (*_OF_PACKAGE[kind], *sorted(set(_installed(kind)) - set(_OF_PACKAGE[kind])))


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
    reference = _OF_PACKAGE[kind].get(name) or _installed(kind).get(name)
    if reference is None:
        one, known = kind.removesuffix("es" if kind == "losses" else "s"), ", ".join(names(kind)) or "none"
        raise OwnCodeError(f"unknown {one} {name!r}; there are: {known}, or your own file: {_EXAMPLES[kind]}")
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


@cache
def load(implementation: Implementation) -> Any:
    """The class or function itself, imported once per process.

    Raises OwnCodeError with the user's own line where importing fails or the name is not there.
    """
    where = implementation.module or implementation.path.name
    try:
        if implementation.module is not None:
            module = importlib.import_module(implementation.module)
        else:
            module = _run_file(implementation.path)
    except (Exception, SystemExit) as error:  # sys.exit() at import would end every command, silently
        if implementation.of_package:
            raise
        raise OwnCodeError(f"{implementation.name}: importing {where} failed: {explain(error)}") from error
    try:
        return getattr(module, implementation.attribute)
    except AttributeError:
        raise OwnCodeError(f"{implementation.name}: {where} defines no {implementation.attribute}") from None


def loss_parameters(loss: str, folder: Path | None) -> type[Model]:
    """The schema of a loss's parameters; a file of the user's own is relative to `folder`, and imported.

    Raises OwnCodeError where there is no such loss, or its constructor does not say what it takes.
    """
    return LOSS_PARAMETERS[loss] if loss in LOSS_PARAMETERS else _schema(find("losses", loss, folder))


@cache  # every run that is planned asks
def check_builder(kind: Literal["networks", "augmentations"], name: str, folder: Path | None) -> None:
    """Raises OwnCodeError unless `name` can be called with an image size, and a network with its options."""
    found = find(kind, name, folder)
    if found.of_package:
        return
    taken, options = _arguments(found), NETWORK_OPTIONS if kind == "networks" else ()
    needed = [
        name
        for name, argument in list(taken.items())[1:]
        if argument.default is argument.empty and name not in options
    ]
    if not taken or next(iter(taken.values())).kind is inspect.Parameter.KEYWORD_ONLY or needed:
        where = f", with {' and '.join(options)} where it has them" if options else ""
        more = f"; nothing gives it {', '.join(needed)}" if needed else ""
        raise OwnCodeError(f"{found.name}: expected to call it as {found.attribute}(image_size){where}{more}")


@cache
def _schema(loss: Implementation) -> type[Model]:
    taken = _arguments(loss)
    if len(taken) < 2 or list(taken.values())[1].kind is inspect.Parameter.KEYWORD_ONLY:
        raise OwnCodeError(
            f"{loss.name}: expected __init__(self, feature_dim, classes, …), got (self, {', '.join(taken)})"
        )
    fields: dict[str, Any] = {}
    for name, argument in list(taken.items())[2:]:
        if name in ROW_KEYS or name.startswith("_") or hasattr(Model, name):
            raise OwnCodeError(f"{loss.name}: a TOML row cannot set its parameter {name}; rename it")
        default = ... if argument.default is argument.empty else argument.default
        note = type(default) if argument.annotation is argument.empty else argument.annotation
        kind = get_args(note)[0] if get_origin(note) is Annotated else note
        if kind not in (bool, int, float, str) and get_origin(kind) is not Literal:
            raise OwnCodeError(
                f"{loss.name}: its parameter {name} must say what it is, as in `{name}: float = 1.0`: "
                "bool, int, float, str, or a Literal of them"
            )
        fields[name] = (note, default)
        try:
            if default is not ...:
                TypeAdapter(note, config=_FINITE).validate_python(default)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise OwnCodeError(f"{loss.name}: its parameter {name} = {default!r}: {message}") from None
    try:
        return create_model(f"{loss.attribute}Parameters", __base__=Model, **fields)
    except (PydanticUserError, TypeError) as error:
        raise OwnCodeError(f"{loss.name}: its parameters: {error}") from None


def _arguments(implementation: Implementation) -> Mapping[str, inspect.Parameter]:
    """What a loss or network takes, without self."""
    made = load(implementation)
    if not callable(made):
        raise OwnCodeError(f"{implementation.name}: expected a class or function, got {made!r}")
    try:
        taken = inspect.signature(made, eval_str=True).parameters
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise OwnCodeError(f"{implementation.name}: its parameters cannot be read: {error}") from None
    for argument in taken.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise OwnCodeError(
                f"{implementation.name}: {argument} does not say what {implementation.attribute} takes; "
                "name each parameter"
            )
    return taken


def explain(error: BaseException) -> str:
    """`NameError: name 'x' is not defined (mylosses.py, line 7: x = y + 1)`: the innermost line."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # it says file and line itself
        return message
    # The user's line: not one of this package's, nor of a library that it called into.
    elsewhere = (str(Path(__file__).parent), "<")
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
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
