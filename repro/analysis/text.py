"""Numbers, labels and titles as every table, figure and page writes them."""

import json
from collections.abc import Sequence
from itertools import groupby

from repro.config import Preset, Scalar, format_axis
from repro.experiments import Table


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus, and never −0.00."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int = 2) -> str:
    """A number with a true minus where it has one."""
    return f"{value:.{digits}f}".replace("-", "−")


def csv_cell(value: object) -> object:
    """A cell of a CSV; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def mean_text(mean: float | None, std: float | None = None) -> str:
    """`73.25 ± 0.25`; empty without a mean."""
    if mean is None:
        return ""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def n_text(n: int, expected: int) -> str:
    """`n = 3`, `n = 2 of 3`."""
    return f"n = {n}" if n == expected else f"n = {n} of {expected}"


def points(value: float) -> str:
    """`1 point`, `1.5 points`."""
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def seeds_text(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 0, 2` or, from four in a row on, `seeds 0–9, 12`."""
    # Numbers in a row differ from their places by one and the same.
    rows = groupby(enumerate(sorted(seeds)), lambda place: place[1] - place[0])
    texts: list[str] = []
    for _, places in rows:
        row = [seed for _, seed in places]
        texts += [f"{row[0]}–{row[-1]}"] if len(row) > 3 else map(str, row)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(texts)}"


def qualified_title(title: str, preset: Preset) -> str:
    """`title` behind the preset's own, if it has one."""
    return f"{preset.title} {title}" if preset.title else title


def preset_sentence(preset: Preset) -> str:
    """What the preset is, where it is not the paper's recipe; else empty."""
    return f"{preset.heading.rstrip('.')}." if preset.heading else ""


def loss_label(table: Table, row: str, overrides: Sequence[tuple[str, Scalar]] = ()) -> str:
    """A row's label, as the TOML has it, and behind it any override of the preset."""
    changed = (f"{name} = {format_axis(value)}" for name, value in overrides)
    return ", ".join([table.row(row).label, *changed])


def network_label(table: Table, network: str) -> str:
    """A column's label; a network that the paper's table lacks is called by its name."""
    return table.networks.get(network, network)


def json_text(content: object) -> str:
    """`content` as indented JSON; ValueError for NaN and infinity, which JSON lacks."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
