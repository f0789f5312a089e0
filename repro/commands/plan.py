"""`repro plan`: what a sweep would train, how long it would take and what a budget buys."""

import sys
from dataclasses import dataclass

from repro.cli.context import Context
from repro.commands.packing import PerGpu, pack, probe_unknown
from repro.registry import Selection
from repro.scheduling.durations import parse_duration
from repro.scheduling.plan import Plan
from repro.scheduling.plan import make_plan as plan_survey
from repro.scheduling.train_command import StalePolicy


@dataclass(frozen=True)
class PlanOptions:
    """What `repro run` would be given."""

    gpus: str | None = None
    per_gpu: PerGpu = 1
    stale: StalePolicy = "keep"
    budget: str | None = None
    probe: bool = False


def make_plan(context: Context, selected: Selection, options: PlanOptions) -> Plan:
    """The plan for the selected runs on the devices of this machine."""
    budget = None if options.budget is None else parse_duration(options.budget)
    runs = context.registry.select_runs(selected, context.preset)
    survey = context.survey(runs)
    to_do = survey.to_do(options.stale)
    say = _say if options.probe else None
    packing = pack(context, to_do, options.gpus, options.per_gpu, probing=say)
    if options.probe and options.per_gpu != "auto":
        probe_unknown(context, to_do, packing.slots, survey.measured, _say)
    survey.measured.take_probes(context.probes())
    return plan_survey(
        survey,
        context.registry,
        context.preset,
        context.project,
        packing.slots,
        stale=options.stale,
        begun=context.begun(to_do),
        budget=budget,
        without_data=[name for name, known in context.fingerprints(to_do).items() if known is None],
        packing=packing.lines(),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
