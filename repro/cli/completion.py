"""What the shell completes: names in experiments/*.toml and runs, by the standard library alone.

Outside a project, or where a file is broken, nothing is offered: a message would be typed in.
"""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from repro.errors import ProjectNotFoundError
from repro.paths import Project

_KINDS = {"datasets": "dataset", "tables": "table"}


def complete(kind: str, given: Mapping[str, Any], incomplete: str) -> list[str]:
    """The names of a kind that begin as typed; `given` are the options before it.

    `kind`: tables, datasets, networks, losses, presets, studies, runs, or cells, which runs follow; any other
    has none.
    """
    # `1,2` completes its last name.
    before, comma, word = incomplete.rpartition(",") if kind == "tables" else ("", "", incomplete)
    try:
        names = _names(kind, given)
    except (ProjectNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [f"{before}{comma}{name}" for name in dict.fromkeys(map(str, names)) if name.startswith(word)]


def _names(kind: str, given: Mapping[str, Any]) -> Iterable[object]:
    folder = Project.find().experiments
    if kind in ("presets", "studies"):
        file = "presets" if kind == "presets" else "ambiguities"
        content = tomllib.loads((folder / f"{file}.toml").read_text(encoding="utf-8"))
        return (
            content["presets"]
            if kind == "presets"
            else [file, *(point["name"] for point in content["points"])]
        )
    read = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("table*.toml"))]
    of_name = {table["table"]: table for table in read}
    # One that extends another, or is like it, has what it lacks from there.
    tables = [{**of_name.get(table.get("extends", table.get("like")), {}), **table} for table in read]
    if kind == "networks":
        return [name for table in tables for name in table["networks"]]
    if kind == "losses":
        return [row["name"] for table in tables for row in table["rows"]]
    if kind in ("cells", "runs"):
        presets = tomllib.loads((folder / "presets.toml").read_text(encoding="utf-8"))["presets"]
        seeds = presets[given.get("preset") or "paper"]["seeds"]
        cells = [
            f"{table['dataset']}/{network}/{row['name']}"
            for table in tables
            for row in table["rows"]
            for network in table["networks"]
        ]
        runs = [f"{cell}/seed{seed}" for cell in cells for seed in seeds]
        return runs if kind == "runs" else [*cells, *runs]
    return [table[_KINDS[kind]] for table in tables] if kind in _KINDS else []
