"""`repro init`: a project for another paper."""

import logging
import shlex
from importlib.resources import files
from pathlib import Path

import click

from repro.cli.options import FOLDER, write
from repro.errors import UsageError

_log = logging.getLogger(__name__)


@click.command()
@click.argument("folder", type=FOLDER)
def init(folder: Path) -> None:
    """Make a project for another paper in FOLDER, to edit: experiments/*.toml and a README.

    It runs at once with the preset smoke. Nothing that is there is overwritten.
    """
    template = [file for file in files("repro").joinpath("template").iterdir() if file.is_file()]
    targets = {
        folder / ("" if file.name == "README.md" else "experiments") / file.name: file for file in template
    }
    if there := [str(path) for path in targets if path.exists()]:
        raise UsageError(f"{there[0]} exists already; name another folder, as in `repro init my-paper`")
    for path, file in sorted(targets.items()):
        write(path, file.read_text(encoding="utf-8"))
        click.echo(path)
    _log.info("Describe the paper in %s. It runs now: cd %s && repro run --preset smoke",
              folder / "experiments", shlex.quote(str(folder)))  # fmt: skip
