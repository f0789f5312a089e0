"""What planning, status and a sweep all begin with: every record read once, and what is known beside it."""

from collections.abc import Iterable, Sequence

from repro.commands.context import Context
from repro.data import described
from repro.errors import DataMissingError, UsageError
from repro.manifest import read_manifest
from repro.registry import Run
from repro.scheduling.estimate import DataSize
from repro.scheduling.probes import ProbeResult, read_probes
from repro.scheduling.survey import Survey
from repro.scheduling.traces import read_traces
from repro.signature import speed_hash


def make_survey(context: Context, runs: Sequence[Run]) -> Survey:
    """Reads every record of `runs` once."""
    sizes = data_sizes(context, {run.cell.dataset for run in runs})
    return Survey.of(context.states(runs, whole=False), sizes, probes_here(context))


def probes_here(context: Context) -> list[ProbeResult]:
    """What probes of today's loop and networks have measured: code changes to be faster."""
    probes = read_probes(context.project.probes(context.preset.name))
    return [probe for probe in probes if probe.code == _speed_hash(context, probe.work.network)]


def _speed_hash(context: Context, network: str) -> str | None:
    try:
        return speed_hash(network, context.project.experiments)
    except UsageError:
        return None  # a network that is no longer here


def shares_begun(context: Context, runs: Iterable[Run]) -> dict[str, float]:
    """The share, 0 to 1, that a checkpoint holds of each run that has one."""
    traces = read_traces(runs, context.project, context.preset.name)
    return {run: trace.begun for run, trace in traces.items() if trace.begun}


def data_sizes(context: Context, names: Iterable[str]) -> dict[str, DataSize]:
    """How large each data set is: as prepared here, else as registered, else as the paper counts it."""
    sizes = {}
    for name in names:
        try:
            manifest = read_manifest(context.project.data, name)
        except DataMissingError:
            known = described(name)
            if known.train_count and known.test_count and known.classes:
                sizes[name] = DataSize(known.train_count, known.test_count, known.classes, known.image_size)
            elif known.paper_counts:
                sizes[name] = DataSize(*known.paper_counts, known.image_size)
        else:
            sizes[name] = DataSize(
                manifest.train.count, manifest.test.count, manifest.classes, manifest.image_size
            )
    return sizes
