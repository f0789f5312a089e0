"""`repro plan`: what a sweep would train, how long it would take and what a budget buys."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repro.commands.context import Context
from repro.data import described
from repro.errors import DataMissingError
from repro.manifest import read_manifest
from repro.registry import Run, Selection
from repro.scheduling.durations import parse_duration
from repro.scheduling.estimate import DataSize
from repro.scheduling.gpus import parse_gpus
from repro.scheduling.plan import Plan
from repro.scheduling.plan import make_plan as plan_survey
from repro.scheduling.probes import ProbeResult, read_probes
from repro.scheduling.slots import find_slots
from repro.scheduling.survey import Survey
from repro.scheduling.traces import read_traces
from repro.scheduling.train_command import StalePolicy
from repro.signature import code_hash


@dataclass(frozen=True)
class PlanOptions:
    """What `repro run` would be given."""

    gpus: str | None = None
    per_gpu: int = 1
    stale: StalePolicy = "keep"
    budget: str | None = None


def make_plan(context: Context, selected: Selection, options: PlanOptions) -> Plan:
    """The plan for the selected runs on the devices of this machine."""
    budget = None if options.budget is None else parse_duration(options.budget)
    gpus = None if options.gpus is None else parse_gpus(options.gpus)
    slots = find_slots(context.preset.threads, gpus=gpus, per_gpu=options.per_gpu)
    runs = context.registry.select_runs(selected, context.preset)
    survey = make_survey(context, runs)
    to_do = survey.to_do(options.stale)
    return plan_survey(
        survey,
        context.registry,
        context.preset,
        context.project,
        slots,
        stale=options.stale,
        begun=shares_begun(context, to_do),
        budget=budget,
        without_data=[name for name, known in context.fingerprints(to_do).items() if known is None],
    )


def make_survey(context: Context, runs: Sequence[Run]) -> Survey:
    """Reads every record of `runs` once."""
    sizes = data_sizes(context, {run.cell.dataset for run in runs})
    return Survey.of(context.states(runs), sizes, probes_here(context))


def probes_here(context: Context) -> list[ProbeResult]:
    """What probes of today's training code have measured: code changes to be faster."""
    probes = read_probes(context.project.probes(context.preset.name))
    return [probe for probe in probes if probe.code == code_hash()]


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
