"""Commands in messages: complete, so that they work when they are pasted into the same shell."""

import shlex
from typing import TYPE_CHECKING

from repro.paths import Project

if TYPE_CHECKING:
    from repro.cli.context import Context

_ALL = ("--preset", "--results", "--data-dir")


def suggest(context: "Context", *words: str, options: tuple[str, ...] = _ALL) -> str:
    """`repro WORDS…` in backquotes, with those of `options` whose value is not the default."""
    project, default = context.project, Project.find(context.project.root)
    values = {
        "--preset": (context.preset.name, "paper"),
        "--results": (str(project.results), str(default.results)),
        "--data-dir": (str(project.data), str(default.data)),
    }
    given = [
        word for name in options if values[name][0] != values[name][1] for word in (name, values[name][0])
    ]
    return f"`{shlex.join(['repro', *words, *given])}`"
