"""`repro data`: fetch, prepare, verify, show and list the data sets."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DATA_DIR, FILE, FOLDER, JSON, places
from repro.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from repro.cli.context import Context
    from repro.config import Recipe
    from repro.data.download import Progress
    from repro.data.prepared import Arrays, PreparedData
    from repro.manifest import Manifest

_GAP = 2  # pixels between images of a contact sheet
_INCHES = 0.36  # of an image there


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
@click.option("--url", help="A mirror of the set's archive.")
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
@click.option("--retry-dead", is_flag=True, help="FaceScrub: ask once more where no picture came before.")
@click.option("--allow-private-addresses", is_flag=True,
              help="FaceScrub: fetch from your own network too, as from a mirror there.")  # fmt: skip
def fetch(name: str, folder: Path, **options: Any) -> None:
    """Download SET (cifar100, …) and check it; resumes, and does nothing where it is there."""
    from repro.data import FetchOptions
    from repro.data import fetch as fetch_set

    with _messages_shown():
        place = fetch_set(name, folder, FetchOptions(**options), _progress("fetched"))
    _say(f"{name}: source files in {place}")


@data.command()
@data_places
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="Folder or archive of the source files, where not in the data folder.")  # fmt: skip
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
@click.option("--as", "save_as", metavar="NAME", help="Keep it under a name of its own.")
@click.option("--title", help="What tables call a set of your own.")
@click.option("--allow-partial", is_flag=True, help="Take a set that lacks images; tables will say so.")
@click.option("--min-images", type=click.IntRange(min=2), help="Leave out people with fewer.  [default: 70]")
@click.option("--crop", type=click.FloatRange(min=0, max=1, min_open=True),
              help="Keep a central square, its side this fraction of the shorter side.")  # fmt: skip
def prepare(name: str, folder: Path, save_as: str | None, **options: Any) -> None:
    """Turn SET's files into memory-mapped arrays with a manifest.

    Any other name than a known set's is one of your own: --from a folder with a folder of images a class.
    """
    from repro.data import PrepareOptions
    from repro.data import prepare as prepare_set
    from repro.manifest import prepared_folder

    started = time.monotonic()
    with _messages_shown():
        manifest = prepare_set(name, folder, PrepareOptions(name=save_as, **options), _progress("prepared"))
    seconds = time.monotonic() - started
    place = prepared_folder(folder, manifest.name)
    _say(f"{manifest.name}: {_describe(manifest)}, in {place} ({seconds:.1f} s)")
    for note in (f"partial: {manifest.partial}" if manifest.partial else "", *manifest.notes):
        if note:
            _say(f"{manifest.name}: {note}")


@data.command()
@data_places
def verify(name: str, folder: Path) -> None:
    """Hash SET's arrays against the manifest: finds one flipped bit."""
    from repro.data import verify as verify_set

    _say(f"{name}: {_describe(verify_set(name, folder))}: every array is as its manifest says")


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


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


@contextmanager
def _messages_shown() -> Iterator[None]:
    """What `repro.data` logs goes to stderr, as it is."""
    logger, handler = logging.getLogger("repro.data"), _ToStderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _progress(doing: str) -> "Progress":
    """Rewrites one line on a terminal; on anything else a line every ten seconds."""
    from repro.scheduling.durations import format_seconds

    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0
    started = time.monotonic()
    next_line = started + pause

    def show(done: int, total: int | None, unit: str = "bytes", /) -> None:
        nonlocal next_line
        now = time.monotonic()
        finished = total is not None and done >= total
        if now < next_line and not (finished and terminal):
            return
        next_line = now + pause
        if unit == "bytes":
            whole = f" of {total / 1e6:,.1f}" if total else ""
            line = f"{doing} {done / 1e6:,.1f}{whole} MB"
        else:
            whole = f" of {total:,}" if total else ""
            line = f"{doing} {done:,}{whole} {unit}"
        rate = done / max(now - started, 1e-9)
        if unit != "bytes":
            line += f", {rate:,.0f} a second"
        if total and done and not finished:
            line += f", {format_seconds((total - done) / rate)} left"
        end = "\n" if finished or not terminal else "\r"
        # \x1b[K clears what a longer line before left behind.
        print(f"\r{line}\x1b[K" if terminal else line, end=end, file=sys.stderr, flush=True)

    return show


@data.command()
@places
@click.argument("name", metavar="SET")
@click.option("--classes", type=click.IntRange(min=1), default=16, show_default=True, help="Rows.")
@click.option("--images", type=click.IntRange(min=1, max=40), default=8, show_default=True,
              help="Images of each class.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Whose augmentation.")
@click.option("--output", type=FILE, help="A .png or .pdf.  [default: beside the set's arrays]")
def show(context: "Context", name: str, classes: int, images: int, seed: int, output: Path | None) -> None:
    """Write a contact sheet of SET: images by class, before and after the preset's augmentation."""
    from repro.analysis.style import save_as
    from repro.data.training_set import open_for_training

    config = context.config_for(name, seed)
    prepared = open_for_training(config, context.project.data)
    figure = draw_contact_sheet(prepared, config.recipe, classes, images, seed)
    path = output or context.project.data / name / f"contact-sheet-{context.preset.name}.png"
    save_as(figure, path)
    click.echo(path)


def draw_contact_sheet(
    data: "PreparedData", recipe: "Recipe", classes: int, images: int, seed: int
) -> "Figure":
    """`images` of each of `classes` classes, spread evenly over the set.

    On the left they are as prepared, on the right as a run with this seed sees them in its first epoch.
    Raises UsageError where a class has no training image.
    """
    import numpy as np

    from repro.analysis.style import Margins, figure_style, make_page
    from repro.data.loader import subset

    train, _ = subset(data, recipe)
    manifest = data.manifest
    shown = np.unique(np.linspace(0, manifest.classes - 1, min(classes, manifest.classes)).astype(int))
    # A class that the reduced preset leaves with fewer images has blanks at its end.
    chosen = [np.flatnonzero(train.labels == label)[:images] for label in shown]
    if not all(len(indices) for indices in chosen):
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
        before = [train.images[indices] for indices in chosen]
        after = _augmented(train, recipe, chosen, seed)
        for axis, rows, title in zip(axes, (before, after), ("as prepared", "as trained on"), strict=True):
            _draw(axis, rows, images, size, title)
        axes[0].set_yticks([(row + 0.5) * (size + _GAP) for row in range(len(shown))], names)
        for label in axes[0].get_yticklabels():
            label.set_parse_math(False)
    return figure


def _augmented(
    train: "Arrays", recipe: "Recipe", chosen: "list[np.ndarray]", seed: int
) -> "list[np.ndarray]":
    """The chosen images as the first epoch of the run shows them, uint8."""
    import numpy as np
    import torch

    from repro.data.augment import crop_and_flip, rotate
    from repro.data.loader import draw_epoch
    from repro.training.randomness import generator

    draws = draw_epoch(len(train.labels), recipe, lambda purpose: generator(seed, purpose, 0))
    # What is drawn belongs to a place in the epoch's order, not to an image.
    place_of = torch.argsort(draws.order)
    rows = []
    for indices in chosen:
        drawn = place_of[torch.from_numpy(indices)]
        images = crop_and_flip(
            torch.from_numpy(np.array(train.images[indices])),
            torch.arange(len(indices)),
            draws.offsets[drawn],
            draws.flips[drawn],
            recipe.crop_padding,
        )
        if draws.degrees is not None:
            images = (rotate(images.float() / 255, draws.degrees[drawn]) * 255).round().to(torch.uint8)
        rows.append(images.numpy())
    return rows


def _draw(axis: "Axes", rows: "list[np.ndarray]", columns: int, size: int, title: str) -> None:
    """Rows of images (k, 3, S, S) uint8 as one picture, white between them."""
    import numpy as np

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


def _caption(manifest: "Manifest", recipe: "Recipe", shown: int, seed: int) -> str:
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
