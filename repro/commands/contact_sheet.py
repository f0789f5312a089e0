"""`repro data show`: a contact sheet of a prepared set, its images by class before and after augmentation."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro.analysis.style import Margins, figure_style, make_page, save_as
from repro.cli.context import Context
from repro.data.augment import crop_and_flip, rotate
from repro.data.loader import draw_epoch, subset
from repro.data.prepared import Arrays, PreparedData
from repro.data.training_set import open_for_training
from repro.errors import UsageError
from repro.manifest import Manifest
from repro.recipes import Recipe
from repro.training.randomness import generator

_GAP = 2  # pixels between images
_INCHES = 0.36  # of an image


def write_contact_sheet(
    context: Context, dataset: str, classes: int, images: int, seed: int, output: Path | None
) -> Path:
    """Draws `images` of each of `classes` classes, spread evenly over the set, and returns the PNG's path.

    On the left they are as prepared, on the right as a run with this seed sees them in its first epoch under
    the preset's recipe.

    Raises UsageError for a data set without a table, DataMissingError or DataCorruptError.
    """
    config = context.config_for(dataset, seed)
    data = open_for_training(config, context.project.data)
    figure = draw_contact_sheet(data, config.recipe, classes, images, seed)
    path = output or context.project.data / dataset / f"contact-sheet-{context.preset.name}.png"
    save_as(figure, path)
    return path


def draw_contact_sheet(data: PreparedData, recipe: Recipe, classes: int, images: int, seed: int) -> Figure:
    """The sheet as a figure; see `write_contact_sheet`."""
    train, _ = subset(data, recipe)
    manifest = data.manifest
    shown = np.unique(np.linspace(0, manifest.classes - 1, min(classes, manifest.classes)).astype(int))
    # A class that the reduced preset leaves with fewer images has blanks at its end.
    chosen = [np.flatnonzero(train.labels == label)[:images] for label in shown]
    if not all(len(places) for places in chosen):
        raise UsageError(f"{manifest.title}: a class without a training image; prepare the set again")
    names = [_short(manifest.class_names[label]) for label in shown]
    size = manifest.image_size
    panel = (images * _INCHES, len(shown) * _INCHES)
    longest = max(map(len, names))
    with figure_style():
        figure, axes = make_page(
            f"{manifest.title}{' in part' if manifest.partial else ''}: {manifest.classes} classes, "
            f"{manifest.train.count:,} training and {manifest.test.count:,} test images of {size} × {size}",
            _caption(manifest, recipe, len(shown), seed),
            panels=(panel, panel),
            margins=Margins(
                left=0.15 + 0.065 * longest, between=0.25, axis_label=0.1, panel_title=0.25, right=0.1
            ),
            side_by_side=True,
        )
        before = [train.images[places] for places in chosen]
        after = _augmented(train, recipe, chosen, seed)
        for axis, rows, title in zip(axes, (before, after), ("as prepared", "as trained on"), strict=True):
            _draw(axis, rows, images, size, title)
        axes[0].set_yticks([(row + 0.5) * (size + _GAP) for row in range(len(shown))], names)
        for label in axes[0].get_yticklabels():
            label.set_parse_math(False)
    return figure


def _augmented(train: Arrays, recipe: Recipe, chosen: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """The chosen images as the first epoch of the run shows them, uint8."""
    draws = draw_epoch(len(train.labels), recipe, partial(_first_epoch, seed))
    # What is drawn belongs to a place in the epoch's order, not to an image.
    place_of = torch.argsort(draws.order)
    rows = []
    for places in chosen:
        drawn = place_of[torch.from_numpy(places)]
        images = crop_and_flip(
            torch.from_numpy(np.array(train.images[places])),
            torch.arange(len(places)),
            draws.offsets[drawn],
            draws.flips[drawn],
            recipe.crop_padding,
        )
        if draws.degrees is not None:
            images = (rotate(images.float() / 255, draws.degrees[drawn]) * 255).round().to(torch.uint8)
        rows.append(images.numpy())
    return rows


def _first_epoch(seed: int, purpose: str) -> torch.Generator:
    return generator(seed, purpose, 0)


def _draw(axis: Axes, rows: list[np.ndarray], columns: int, size: int, title: str) -> None:
    """Rows of images (k, 3, S, S) uint8 as one picture, white between them."""
    step = size + _GAP
    sheet = np.full((len(rows) * step, columns * step, 3), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * step, column * step
            sheet[top : top + size, left : left + size] = image.transpose(1, 2, 0)
    axis.imshow(sheet, interpolation="nearest", aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(title, loc="left", fontsize=8)


def _caption(manifest: Manifest, recipe: Recipe, shown: int, seed: int) -> str:
    steps = (
        [f"random crop after padding with {recipe.crop_padding} black pixels"] if recipe.crop_padding else []
    )
    steps += ["random horizontal flip"] if recipe.flip else []
    steps += [f"rotation by up to {recipe.rotation:g}°"] if recipe.rotation else []
    which = "all classes" if shown == manifest.classes else f"{shown} of {manifest.classes} classes"
    said = [
        f"Training images, the first of each of {which}.",
        f"Right: {', '.join(steps) or 'no augmentation'}, "
        f"as a run with seed {seed} sees them in its first epoch.",
        f"Partial: {manifest.partial}." if manifest.partial else "",
        "Generated data." if manifest.generated else "",
    ]
    return " ".join(filter(None, said))


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
