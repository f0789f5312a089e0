"""A sweep: plan shows it, run trains it."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from repro.cli.cluster import ClusterOptions, cluster_options, local, ray, slurm
from repro.cli.options import (
    JSON,
    as_words,
    command,
    devices,
    places,
    say,
    selection,
    training,
    with_own_options,
)
from repro.errors import DataMissingError, IntegrityError, SetupError, UsageError

if TYPE_CHECKING:
    from repro.cli.cluster import PerGpu
    from repro.cli.context import Context
    from repro.experiments import TableName
    from repro.registry import Run, Selection
    from repro.scheduling.estimate import StalePolicy


@command()
@places
@selection
@devices
@JSON
def plan(
    context: "Context",
    selected: "Selection",
    gpus: str | None,
    per_gpu: "PerGpu",
    stale: "StalePolicy",
    budget: str | None,
    as_json: bool,
) -> None:
    """Show cells and runs: done, to do, missing data, and about how long the rest takes.

    Speeds are those of records made on this device, else a share of its roofline.
    """
    from repro.scheduling.devices import find_devices
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.plan import make_plan

    context.point_out_misnamed()
    seconds = None if budget is None else parse_duration(budget)
    here = find_devices(context.preset.threads, gpus, per_gpu)
    survey = context.survey(context.registry.select_runs(selected, context.preset))
    to_do = survey.to_do(stale)
    fingerprints = context.fingerprints(to_do)
    missing = _missing_data(context, to_do, fingerprints)
    made = make_plan(
        survey,
        context.registry,
        context.preset,
        context.project,
        here,
        stale=stale,
        begun=context.begun(to_do),
        budget=seconds,
        missing_data=missing,
        seeds=_seeds_advice(context, {s.run.cell.table for s in survey.states}) if to_do or as_json else {},
        grid=bool(selected.axes),
    )
    click.echo(made.to_json() if as_json else with_own_options(made.to_text()))
    # A published set has a size before it is here; any other name may be mistyped.
    unknown = [name for name in missing if name not in survey.sizes]
    if context.damaged:
        sys.exit(IntegrityError.exit_code)
    sys.exit(SetupError.exit_code if to_do and all(run.cell.dataset in unknown for run in to_do) else 0)


def _seeds_advice(context: "Context", tables: "Collection[TableName]") -> dict[str, dict[str, Any]]:
    """What the planned seeds can decide of these tables and of the claims; only of the paper's recipe."""
    rules = context.rules if context.preset.name == "paper" else None
    if rules is None:
        return {}
    from repro.analysis.seeds import planned_seeds

    advice = planned_seeds(context.registry, context.preset, rules, tables)
    return {name: asdict(seeds) for name, seeds in advice.items()}


@command()
@places
@selection
@devices
@training
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True,
              help="Where workers run.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be trained; train nothing.")
@cluster_options
def run(
    context: "Context",
    selected: "Selection",
    gpus: str | None,
    per_gpu: "PerGpu",
    stale: "StalePolicy",
    budget: str | None,
    executor: str,
    dry_run: bool,
    cluster: ClusterOptions,
    **options: Any,
) -> None:
    """Train what is missing, on every device found. Ctrl-C lets the runs in progress finish, a second one
    makes them write a checkpoint and stop; the same command resumes.
    """
    # Runs whose data set is missing, or that fit no device's memory, are left out with the reason; the others
    # are trained, and the code is 3 if nothing worse happened.
    from repro.errors import counted
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.estimate import Estimator
    from repro.scheduling.executor import TrainCommand
    from repro.scheduling.plan import make_plan, spend
    from repro.scheduling.supervisor import Supervisor
    from repro.scheduling.view import open_view
    from repro.sweep import RunQueue, plan_sweep

    began = time.monotonic()
    registry, preset, project = context.registry, context.preset, context.project
    seconds = None if budget is None else parse_duration(budget)
    if options["log"]:
        from repro.training.live_curves import find_logger

        find_logger(options["log"], project.experiments)
    # A wrong --gpus or a cluster out of reach is reported before any record is read.
    if executor == "local":
        backend, devices = local(context, cluster, gpus, per_gpu)
    elif gpus is not None:
        raise UsageError("--gpus picks GPUs of this machine; a job's share is --job-gpus or --gres")
    elif budget is not None:
        raise UsageError("--budget counts this machine's time; a cluster's job has --time")
    else:
        backend, devices = (slurm if executor == "slurm" else ray)(context, cluster)
    runs = registry.select_runs(selected, preset)
    context.point_out_misnamed()
    survey = context.survey(runs)
    to_do = survey.to_do(stale)
    before = len(runs) - len(to_do)
    fingerprints = context.fingerprints(to_do)
    missing = _missing_data(context, to_do, fingerprints)
    for dataset, how in missing.items():
        say(f"repro: skipping {counted(sum(run.cell.dataset == dataset for run in to_do), 'run')}: {how}")
    to_do = [run for run in to_do if run.cell.dataset not in missing]
    if missing and not to_do:
        sys.exit(SetupError.exit_code)
    estimator = Estimator(registry, preset, devices, survey, precision=options["precision"])
    unfit = {run: reason for run in to_do if (reason := estimator.why_unfit(run))}
    for reason, count in Counter(unfit.values()).items():
        say(f"repro: skipping {counted(count, 'run')}: {reason}")
    to_do = [run for run in to_do if run not in unfit]
    if seconds is not None:
        bought = spend(seconds, to_do, replace(estimator, begun=context.begun(to_do)).estimate)
        say("\n".join(bought.lines()))
        to_do = list(bought.runs)
    if dry_run:
        plan = make_plan(
            survey, registry, preset, project, devices, stale, context.begun(to_do), grid=bool(selected.axes)
        )
        click.echo(with_own_options(plan.to_text()))
        click.echo(
            f"would train {counted(len(to_do), 'run')}, in this order:" if to_do else "would train nothing"
        )
        for run in to_do:
            click.echo(f"  {run.id}")
        sys.exit(SetupError.exit_code if missing or unfit else 0)
    # One CPU has them all; each GPU or job has its own.
    sharing = len(devices) if devices[0].kind == "cpu" and devices[0].host is None else 1
    sweep = plan_sweep(to_do, registry, preset, project, fingerprints, len(devices), sharing)
    queue, deadline = RunQueue(sweep, registry, project), None if seconds is None else began + seconds
    words = tuple(as_words({"per_gpu": per_gpu, **options}))
    train = TrainCommand(project, preset, words)
    with contextlib.closing(open_view(sys.stderr)) as view:
        summary = Supervisor(queue, devices, backend, train, view, before, deadline).run()
    say(summary.to_text())
    sys.exit(summary.exit_code or (SetupError.exit_code if missing or unfit else 0))


def _missing_data(
    context: "Context", runs: "Sequence[Run]", fingerprints: Mapping[str, str | None]
) -> dict[str, str]:
    """Each data set that is missing, with the reason or the commands that get it."""
    from repro.cli.context import data_commands
    from repro.data import fingerprint
    from repro.manifest import prepared_folder
    from repro.paths import PUBLISHED_SETS

    reasons = {}
    for run in runs:
        dataset = run.cell.dataset
        if dataset in reasons or fingerprints[dataset] is not None:
            continue
        try:
            config = context.registry.config(run, context.preset)
            fingerprint(config, context.project.data)
        except DataMissingError as error:
            known = dataset in PUBLISHED_SETS and config.recipe.data == "real"
            known = known and not prepared_folder(context.project.data, dataset).exists()
            how = f"the data set {dataset} is not prepared: run {data_commands(dataset)}"
            reasons[dataset] = with_own_options(how if known else str(error))
    return reasons
