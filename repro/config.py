"""What configures a training run: each loss's parameters, the recipe, and both resolved for one run.

Plain validated data without torch; `repro.registry` reads them from TOML.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from repro.errors import UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Scalar = bool | int | float | str


class Model(BaseModel):
    """Strict and frozen: an unknown key, NaN or infinity is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def known_keys(raw: object, known: Iterable[str]) -> dict[str, Any]:
    """`raw`, if it is a table of a TOML with no other keys than the known ones; ValueError lists them."""
    known = tuple(known)
    if not isinstance(raw, dict):
        raise ValueError(f"expected a table of keys, got {raw!r}")
    for key in raw:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; allowed: {', '.join(known)}")
    return raw


class TomlModel(Model):
    """A part of a TOML file: the error for an unknown key lists the known ones."""

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, raw: object) -> object:
        return known_keys(raw, cls.model_fields) if isinstance(raw, dict) else raw


def explain(error: ValidationError, content: object = None) -> str:
    """The first mistake in one line; a table in a list of the TOML's `content` goes by number and name."""
    return _explain(error.errors()[0], content)


def _explain(mistake: "ErrorDetails", content: object = None) -> str:
    place: list[str] = []
    for key in mistake["loc"]:
        if isinstance(content, list) and isinstance(key, int):
            content = content[key]
        else:
            content = content.get(key) if isinstance(content, dict) else None
        if isinstance(key, int) and isinstance(content, dict):  # rows.1 → row 2 (am-softmax):
            name = f" ({content['name']:.50})" if isinstance(content.get("name"), str) else ""
            place[-1] = f"{place[-1].removesuffix('s')} {key + 1}{name}:"
        elif key != "[key]":  # pydantic's mark of a mistake in the key itself
            place.append(str(key))
    where = ".".join(place).replace(":.", ": ").removesuffix(":")
    message = mistake["msg"].removeprefix("Value error, ")
    got = "" if mistake["type"] in ("missing", "value_error") else f", got {mistake['input']!r}"
    return f"{where}: {message}{got}".removeprefix(": ")


class CrossEntropyParameters(Model):
    """Linear → softmax cross-entropy."""

    bias: bool = True


class AMSoftmaxParameters(Model):
    """AM-Softmax: s·(cos θ − m at the target)."""

    scale: float = Field(gt=0)
    margin: float = Field(ge=0)
    projection: int = Field(default=0, ge=0)


class PEDCCParameters(Model):
    """AM-Softmax against fixed, evenly distributed centroids, plus a distance term."""

    scale: float = Field(gt=0)
    margin: float = Field(ge=0)
    distance_weight: float = Field(default=1.0, ge=0)
    distance: Literal["squared-norm", "element-mean", "sum"] = "squared-norm"
    projection: int = Field(default=512, ge=0)
    embedding: Literal["linear", "linear-bias", "linear-bn"] = "linear"

    @model_validator(mode="after")
    def _embedding_has_a_projection(self) -> "PEDCCParameters":
        if self.embedding != "linear" and self.projection == 0:
            raise ValueError(f"embedding = {self.embedding!r} needs a projection above 0; it is 0")
        return self


class ScaledBNParameters(Model):
    """Batch norm with a fixed scale on the logits."""

    scale: float = Field(gt=0)
    affine: bool = False
    eps: float = Field(default=1e-5, gt=0)
    momentum: float = Field(default=0.1, gt=0, le=1)
    statistics: Literal["running", "full-batches", "training-set"] = "running"


class LogitScaleParameters(Model):
    """Linear → × scale → softmax cross-entropy: scaling without batch norm."""

    scale: float = Field(gt=0)
    bias: bool = False


class CosineLearntScaleParameters(Model):
    """Softmax cross-entropy of s·cos θ with a learnt s: NormFace."""

    initial_scale: float = Field(default=10.0, gt=0)
    projection: int = Field(default=0, ge=0)


class CosineScaleByClassesParameters(Model):
    """Softmax cross-entropy of s·cos θ with s = √2·ln(C − 1): AdaCos's fixed scale."""

    projection: int = Field(default=0, ge=0)


class LogitNormParameters(Model):
    """Softmax cross-entropy of logits on a sphere of radius 1/τ: LogitNorm."""

    temperature: float = Field(default=0.04, gt=0)
    bias: bool = True


class LogitZScoreParameters(Model):
    """Softmax cross-entropy of logits z-scored over each sample's classes."""

    temperature: float = Field(default=1.0, gt=0)


class LabelSmoothingParameters(Model):
    """Softmax cross-entropy against smoothed targets."""

    smoothing: float = Field(default=0.1, ge=0, lt=1)
    bias: bool = True


LOSS_PARAMETERS: dict[str, type[Model]] = {
    "cross-entropy": CrossEntropyParameters,
    "am-softmax": AMSoftmaxParameters,
    "pedcc": PEDCCParameters,
    "scaled-bn": ScaledBNParameters,
    "logit-scale": LogitScaleParameters,
    "cosine-learnt-scale": CosineLearntScaleParameters,
    "cosine-scale-by-classes": CosineScaleByClassesParameters,
    "logit-norm": LogitNormParameters,
    "logit-z-score": LogitZScoreParameters,
    "label-smoothing": LabelSmoothingParameters,
}
"""Each loss's parameters, checked here alone; a test compares them with `repro.losses`' constructors."""


_OF_DATA = ("data", "classes", "images_per_class", "test_images_per_class")  # alike in all rows of a table


class Recipe(TomlModel):
    """How a network is trained; see `experiments/presets.toml` for each field's meaning."""

    data: Literal["real", "digits"]
    classes: int | None = Field(default=None, ge=2)
    images_per_class: int | None = Field(default=None, ge=1)
    test_images_per_class: int | None = Field(default=None, ge=1)
    batch_size: int = Field(ge=2)
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_drops: tuple[int, ...]
    lr_factor: float = Field(gt=0, le=1)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    momentum_reset: bool = False
    weight_decay: float = Field(ge=0)
    weight_decay_on: Literal["all", "weights"] = "all"
    flip: bool
    crop_padding: int = Field(ge=0)
    rotation: float = Field(ge=0, le=180)
    augmentation: str = "none"
    normalization: Literal["dataset", "cifar100"]
    width: float = Field(gt=0)
    stem_pool: Literal["auto", "never", "always"]
    evaluate_every: int = Field(ge=1)

    @field_validator("lr_drops")
    @classmethod
    def _increasing(cls, drops: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in itertools.pairwise((0, *drops))):
            raise ValueError("lr_drops must be positive and increasing")
        return drops

    @model_validator(mode="after")
    def _digits_have_sizes(self) -> "Recipe":
        sizes = (self.classes, self.images_per_class, self.test_images_per_class)
        if self.data == "digits" and None in sizes:
            raise ValueError('data = "digits" needs classes, images_per_class and test_images_per_class')
        if self.data == "real" and self.classes is not None:
            raise ValueError("classes is for the handwritten digits; a real data set has its own")
        return self

    def lr_at(self, epoch: int) -> float:
        """The learning rate of the 0-indexed `epoch`."""
        return self.lr * self.lr_factor ** sum(epoch >= drop for drop in self.lr_drops)


def recipe_changes(raw: object) -> dict[str, Any]:
    """A row's `recipe`: some keys of a Recipe, each checked by itself; ValueError names the first mistake."""
    changes = known_keys(raw, (name for name in Recipe.model_fields if name not in _OF_DATA))
    try:
        Recipe.model_validate(changes)
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["type"] != "missing":
                raise ValueError(_explain(mistake)) from None
    return changes


class Preset(Model):
    """A recipe with a name; every result made from another one than `paper` carries `title`."""

    name: str
    title: str
    description: str
    seeds: tuple[int, ...] = Field(min_length=1)
    threads: int = Field(ge=1)
    recipe: Recipe

    @property
    def heading(self) -> str:
        """What precedes a table's or figure's title; empty for the paper's recipe."""
        return f"{self.title}: {self.description}" if self.title else ""


class RunConfig(Model):
    """Everything that decides a run's numbers but the data themselves; recorded whole.

    `network`, `loss` and the recipe's `augmentation` name their code as `repro.plugins` reads it; `folder` is
    what a file of the user's own is relative to, and neither recorded nor part of what the run is.
    """

    dataset: str
    network: str
    loss: str
    folder: Path | None = Field(default=None, exclude=True, repr=False)
    loss_parameters: dict[str, Scalar]
    seed: int = Field(ge=0)
    recipe: Recipe


def format_axis(value: Scalar) -> str:
    """An override's value as a run id spells it: `true`, `15`, `0.5`, `never`."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return re.sub(r"e\+0*", "e", short)  # 1e38: a plus would begin the next override


def parse_axis(text: str) -> tuple[str, Scalar]:
    """`name=value` as (name, value); raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value or "/" in value or "+" in value:
        raise UsageError(f"{text!r} is not an override; expected name=value, as in rotation=15")
    if value in ("true", "false"):
        return name, value == "true"
    for convert in (int, float):
        try:
            number = convert(value)
        except ValueError:
            continue
        return name, number
    return name, value


def parse_grid(texts: Iterable[str]) -> tuple[tuple[str, Scalar], ...]:
    """`name=value,…` each, as a (name, value) per distinct value; UsageError for a name given twice."""
    grid: dict[str, dict[str, Scalar]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        parsed = [parse_axis(f"{name}{equals}{value}") for value in listed.split(",")]
        values = {format_axis(value): value for _, value in parsed}  # 0.1 and 0.10 are one
        if name in grid:
            both = ",".join(dict.fromkeys([*grid[name], *values]))
            raise UsageError(f"--set {name} is given twice; for a grid write --set {name}={both}")
        grid[name] = values
    return tuple((name, value) for name, values in grid.items() for value in values.values())


def grid_points(axes: Sequence[tuple[str, Scalar]]) -> tuple[tuple[tuple[str, Scalar], ...], ...]:
    """Every combination of one value per name, each sorted by name; of no overrides the empty one."""
    names = sorted({name for name, _ in axes})
    return tuple(itertools.product(*([pair for pair in axes if pair[0] == name] for name in names)))
