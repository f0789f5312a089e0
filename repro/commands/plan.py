"""`repro plan`: what a sweep would train, and how long it would take."""

from collections.abc import Iterable

from repro.commands.context import Context
from repro.data import described
from repro.errors import DataMissingError
from repro.manifest import read_manifest
from repro.registry import Selection
from repro.scheduling.plan import DataSize, Plan
from repro.scheduling.plan import make_plan as plan_states
from repro.scheduling.slots import find_slots


def make_plan(context: Context, selected: Selection) -> Plan:
    """The plan for the selected runs on the devices of this machine."""
    runs = context.registry.select_runs(selected, context.preset)
    return plan_states(
        context.states(runs),
        context.registry,
        context.preset,
        context.project,
        find_slots(context.preset.threads),
        _sizes(context, {run.cell.dataset for run in runs}),
    )


def _sizes(context: Context, names: Iterable[str]) -> dict[str, DataSize]:
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
