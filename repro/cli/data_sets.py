"""`repro data`: fetch, prepare, verify, show and list the data sets."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import FOLDER, places

if TYPE_CHECKING:
    from repro.cli.context import Context


@click.group()
def data() -> None:
    """Fetch, prepare, verify and list the data sets."""


def data_places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the data set and --data-dir, and hands the command the data folder."""

    @click.argument("name", metavar="SET")
    @click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
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
    from repro.commands.data import fetch_set
    from repro.data import FetchOptions

    fetch_set(name, folder, FetchOptions(**options))


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
    from repro.commands.data import prepare_set
    from repro.data import PrepareOptions

    prepare_set(name, folder, PrepareOptions(name=save_as, **options))


@data.command()
@data_places
def verify(name: str, folder: Path) -> None:
    """Hash SET's arrays against the manifest: finds one flipped bit."""
    from repro.commands.data import verify_set

    verify_set(name, folder)


@data.command()
@places
@click.argument("name", metavar="SET")
@click.option("--classes", type=click.IntRange(min=1), default=16, show_default=True, help="Rows.")
@click.option("--images", type=click.IntRange(min=1, max=40), default=8, show_default=True,
              help="Images of each class.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Whose augmentation.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path),
              help="A .png or .pdf.  [default: beside the set's arrays]")  # fmt: skip
def show(context: "Context", name: str, output: Path | None, **options: int) -> None:
    """Write a contact sheet of SET: images by class, before and after the preset's augmentation."""
    from repro.commands.contact_sheet import write_contact_sheet

    click.echo(write_contact_sheet(context, name, seed=options["seed"], output=output,
                                   classes=options["classes"], images=options["images"]))  # fmt: skip


@data.command("list")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set: prepared, fetched, missing or corrupt."""
    from repro.commands.data import list_data
    from repro.paths import Project

    click.echo(list_data(Project.find(data=data_dir).data, as_json))
