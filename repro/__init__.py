"""Re-runs a paper's tables and figures and says which of its numbers and claims hold.

import repro

results = repro.load(preset="quick")
results.cells[["table", "network", "loss", "mean", "std", "n"]]
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.analysis.frames import Results

__version__ = "0.1.0"


def load(preset: str = "paper", results: Path | str | None = None) -> "Results":
    """The results of a preset as pandas DataFrames: `.runs`, `.epochs`, `.cells`, `.verdicts`, `.claims`.

    `results` is the folder of the records, the project's own if not given. The project is that of the working
    directory, or REPRO_ROOT. Raises ProjectNotFoundError, RegistryError, or UsageError for an unknown preset.
    """
    from repro.analysis.frames import Results  # pandas takes half a second: only where it is asked for
    from repro.paths import Project
    from repro.registry import Registry

    project = Project.find(results=None if results is None else Path(results).expanduser())
    registry = Registry.load(project.experiments, strict=False)
    return Results(project, registry, registry.preset(preset))
