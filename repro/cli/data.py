"""`repro data`: fetch, prepare, verify, show and list the data sets."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DATA_DIR, FILE, FOLDER, JSON, places
from repro.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from repro.cli.context import Context
    from repro.config import Recipe
    from repro.data.prepared import PreparedData
    from repro.manifest import Manifest

_log = logging.getLogger(__name__)


@click.group()
def data() -> None:
    """Fetch, prepare, verify and list the data sets."""


def data_places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the data set and --data-dir, and hands the command the data folder."""

    @click.argument("name", metavar="SET")
    @DATA_DIR
    @wraps(command)
    def wrapped(name: str, data_dir: Path | None, **options: Any) -> Any:
        from repro.paths import Project

        return command(name, Project.find(data=data_dir).data, **options)

    return wrapped


@data.command()
@data_places
@click.option("--url", help="Another address of the set's archive, the only one to try.")
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
@click.option("--retry-dead", is_flag=True, help="FaceScrub: ask once more where no picture came before.")
@click.option("--allow-private-addresses", is_flag=True,
              help="FaceScrub: fetch from your own network too, as from a mirror there.")  # fmt: skip
def fetch(name: str, folder: Path, **options: Any) -> None:
    """Download SET (cifar100, …) and check it; resumes where it was."""
    from repro.data import fetch as fetch_set

    _log.info("%s: source files in %s", name, fetch_set(name, folder, **options))


@data.command()
@data_places
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="Folder or archive of the source files, where not in the data folder.")  # fmt: skip
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
@click.option("--as", "save_as", metavar="NAME", help="Keep it under a name of its own.")
@click.option("--title", help="What tables call a set of your own.")
@click.option("--allow-partial", is_flag=True, help="Take a set that lacks images; tables will say so.")
@click.option(
    "--min-images",
    type=click.IntRange(min=2),
    metavar="N",
    help="Leave out people with fewer.  [default: 70]",
)
@click.option("--crop", type=click.FloatRange(min=0, max=1, min_open=True),
              help="Keep a central square, its side this fraction of the shorter side.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(min=8, max=1024), metavar="PIXELS",
              help="Side of the images of a set of your own; VGG needs a multiple of 32, ResNets one of 8.  "
              "[default: 64]")  # fmt: skip
def prepare(name: str, folder: Path, **options: Any) -> None:
    """Turn SET's files into memory-mapped arrays with a manifest.

    Any other name than a known set's is one of your own: --from a folder with a folder of images per class,
    or with train/ and test/ (or val/), each with a folder of images per class. Of test/ and val/, test/ is
    used if it has classes.
    """
    from repro.data import prepare as prepare_set
    from repro.manifest import prepared_folder

    started = time.monotonic()
    manifest = prepare_set(name, folder, **options)
    seconds = time.monotonic() - started
    place = prepared_folder(folder, manifest.name)
    _log.info("%s: %s, in %s (%.1f s)", manifest.name, _describe(manifest), place, seconds)
    for note in ([f"partial: {manifest.partial}"] if manifest.partial else []) + [*manifest.notes]:
        _log.info("%s: %s", manifest.name, note)


@data.command()
@data_places
def verify(name: str, folder: Path) -> None:
    """Hash SET's arrays against the manifest: finds one flipped bit."""
    from repro.data import verify as verify_set

    described = _describe(verify_set(name, folder))
    _log.info("%s: %s: every array is as its manifest says", name, described)


@data.command("list")
@DATA_DIR
@JSON
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set: prepared, fetched, missing or corrupt."""
    from tabulate import tabulate

    from repro.data import listing
    from repro.paths import Project

    states = listing(Project.find(data=data_dir).data)
    if as_json:
        click.echo(json.dumps([asdict(state) for state in states], indent=1))
        return
    rows = [
        (
            state.name,
            state.state,
            "" if state.images is None else f"{state.images:,}",
            "" if state.classes is None else state.classes,
            f"{state.bytes / 1e6:,.0f} MB" if state.bytes else "",
            state.detail,
        )
        for state in states
    ]
    headers = ("set", "state", "images", "classes", "size", "detail")
    click.echo(tabulate(rows, headers, maxcolwidths=[None] * 5 + [70], disable_numparse=True))


def _describe(manifest: "Manifest") -> str:
    return (
        f"{manifest.train.count:,} training and {manifest.test.count:,} test images "
        f"of {manifest.classes} classes, {manifest.image_size} × {manifest.image_size}"
    )


@data.command()
@places
@click.argument("name", metavar="SET")
@click.option(
    "--classes", type=click.IntRange(min=1), metavar="N", default=16, show_default=True, help="Rows."
)
@click.option("--images", type=click.IntRange(min=1, max=40), metavar="N", default=8, show_default=True,
              help="Images of each class.")  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Whose augmentation.",
)
@click.option("--output", type=FILE, help="A .png or .pdf.  [default: beside the set's arrays]")
def show(context: "Context", name: str, classes: int, images: int, seed: int, output: Path | None) -> None:
    """Write a contact sheet of SET, before and after augmentation.

    One row per class, the preset's recipe.
    """
    from torchvision.utils import save_image

    from repro.data import open_for_training

    run = context.runs(datasets=(name,), seeds=(seed,))[0]
    config = context.registry.config(run, context.preset)
    prepared = open_for_training(config, context.project.data)
    sheet, shown = make_contact_sheet(prepared, config.recipe, classes, images, seed, config.folder)
    path = output or context.project.data / name / f"contact-sheet-{context.preset.name}.png"
    if path.suffix not in (".png", ".pdf"):
        raise UsageError(f"--output {path}: expected a name that ends in .png or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(sheet, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    manifest = prepared.manifest
    part = f" in part ({manifest.partial})" if manifest.partial else ""
    _log.info("%s%s: %s", manifest.title, part, _describe(manifest))
    _log.info("Left: training images as prepared; right: as the first epoch of seed %d shows them.", seed)
    _log.info("Rows: %s", "; ".join(shown))
    click.echo(path)


def make_contact_sheet(
    data: "PreparedData", recipe: "Recipe", classes: int, images: int, seed: int, folder: Path | None = None
) -> "tuple[Tensor, list[str]]":
    """A picture (3, H, W) in 0..1 with a row for each of `classes` classes, and the names of these.

    The classes are spread evenly over the set. On the left are `images` of each as prepared, on the right as
    a run with this seed sees them in its first epoch; an augmentation in a file is relative to `folder`.
    Raises UsageError where a class has no training image.
    """
    import numpy as np
    import torch
    from torchvision.utils import make_grid

    from repro.data.loader import subset

    train, _ = subset(data, recipe)
    manifest = data.manifest
    labels = np.unique(np.linspace(0, manifest.classes - 1, min(classes, manifest.classes)).astype(int))
    cells: list[Tensor] = []
    for label in labels:
        chosen = np.flatnonzero(train.labels == label)[:images]
        if not len(chosen):
            raise UsageError(f"{manifest.title}: a class without a training image; prepare the set again")
        augmented = _augmented(data, recipe, chosen, seed, folder)
        for shown in (torch.from_numpy(train.images[chosen]), augmented):
            # A class that the reduced preset leaves with fewer images has blanks at its end.
            blanks = torch.full((images + 1 - len(chosen), *shown.shape[1:]), 255, dtype=torch.uint8)
            cells += [shown, blanks]
    sheet = make_grid(torch.cat(cells).float() / 255, nrow=2 * (images + 1), pad_value=1.0)
    return sheet, [manifest.class_names[label] for label in labels]


def _augmented(
    data: "PreparedData", recipe: "Recipe", chosen: "np.ndarray", seed: int, folder: Path | None
) -> "Tensor":
    """The chosen images (k, 3, S, S) as the first epoch of the run shows them, uint8."""
    import torch

    from repro.data import loader
    from repro.data.prepared import Arrays
    from repro.training.seeding import generator

    device = torch.device("cpu")
    train, _ = loader.subset(data, recipe)
    own = loader.build_augmentation(recipe.augmentation, data.manifest.image_size, device, folder)
    draws = loader.draw_epoch(len(train.labels), recipe, lambda purpose: generator(seed, purpose, 0), own)
    # What is drawn belongs to a place in the epoch's order, not to an image.
    at = torch.argsort(draws.order)[torch.from_numpy(chosen)]
    drawn: dict[str, Any] = {name: each if each is None else each[at] for name, each in vars(draws).items()}
    split = loader.to_device(Arrays(train.images[chosen], train.labels[chosen]), device)
    normalised = loader.normalisation(data, recipe, device, torch.contiguous_format)
    stream = loader.BatchStream(split, recipe.crop_padding, normalised, own)
    stream.begin(loader.EpochRandomness(**{**drawn, "order": torch.arange(len(chosen))}))
    images, _ = stream.next_batch(len(chosen))
    images = images * normalised.std.view(3, 1, 1) + normalised.mean.view(3, 1, 1)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
