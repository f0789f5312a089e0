"""What there is of a sweep and of each run: status, show, logs. Changes nothing."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import (
    JSON,
    command,
    completed,
    end_if_damaged,
    places,
    selection,
    with_own_options,
)
from repro.errors import (
    DataMissingError,
    DeviceError,
    IntegrityError,
    RecordCorruptError,
    RecordMisplacedError,
    SelectionError,
    UsageError,
    printable,
)
from repro.paths import read_file

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.records import RunRecord
    from repro.registry import Run, Selection
    from repro.scheduling.sweep_status import Status

INTERVAL = 2.0  # seconds between two reads of the state; longer where reading takes long
_CLEAR = "\x1b[H\x1b[J"
_EPOCHS_SHOWN = 12


@command()
@places
@selection
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@JSON
def status(context: "Context", selected: "Selection", watch: bool, as_json: bool) -> None:
    """Show a sweep: runs by state, speed, time left, failures. Changes nothing.

    Works while a sweep runs, from another terminal or machine, and after it.
    """
    context.point_out_misnamed()
    in_place = sys.stdout.isatty() and not as_json
    while True:
        started = time.monotonic()
        now = current_status(context, selected)
        text = now.to_json() if as_json else now.to_text()
        if not watch:
            click.echo(text)
            sys.exit(IntegrityError.exit_code if now.of("damaged") else 0)
        print(f"{_CLEAR}{text}" if in_place else f"{text}\n", flush=True)
        # Reading takes at most a tenth of the time, however many records there are.
        time.sleep(max(INTERVAL, 10 * (time.monotonic() - started)))


def current_status(context: "Context", selected: "Selection") -> "Status":
    """How the selected runs stand now; reads only."""
    from repro.scheduling.devices import find_devices
    from repro.scheduling.plan import make_plan
    from repro.scheduling.sweep_status import make_status, read_traces
    from repro.worker_note import read_worker_notes

    project, preset = context.project, context.preset
    runs = context.registry.select_runs(selected, preset)
    # Before the records: a run that ends in between is then seen as done, not as interrupted.
    traces = read_traces(runs, context.registry, preset, project)
    survey = context.survey(runs)
    plan = None
    with contextlib.suppress(DeviceError):  # a driver that does not answer is no reason to show nothing
        begun = {run: trace.begun for run, trace in traces.items()}
        plan = make_plan(survey, context.registry, preset, project, find_devices(preset.threads), begun=begun)
    workers = read_worker_notes(project.workers(preset.name))
    return make_status(survey, traces, workers, plan, project.preset_results(preset.name))


@command("show")
@places
@selection
@click.argument("name", metavar="[RUN_ID|CELL]", required=False, shell_complete=completed("cells"))
@click.option("--json", "as_json", is_flag=True, help="A run's record as it is on disk; a cell's numbers.")
def show(context: "Context", selected: "Selection", name: str | None, as_json: bool) -> None:
    """Show one run: result, data, configuration, device, attempts and curve; or cells: runs and verdict.

    A cell is an id without its seed, as in cifar100/resnet18/cross-entropy. Options may select cells instead,
    and with --seed runs.
    """
    if (name is None) != any(vars(selected).values()):
        raise UsageError(
            "repro show needs either an id or options that select, as in: "
            "`repro show cifar100/resnet18/cross-entropy`"
        )
    if name is not None and name.count("/") != 2:
        _show_run(context, context.registry.parse(name), as_json)
    elif selected.seeds:
        runs = context.registry.select_runs(selected, context.preset)
        if as_json and len(runs) > 1:
            raise UsageError("--json shows one record; several: `repro aggregate --by run --format json`")
        for run in runs:
            _show_run(context, run, as_json)
    else:
        _show_cells(context, selected if name is None else _selection_of(context, name), as_json)


def _selection_of(context: "Context", cell_id: str) -> "Selection":
    from repro.registry import Selection

    cell = context.registry.parse(f"{cell_id}/seed0").cell
    return Selection((cell.table,), (cell.dataset,), (cell.network,), (cell.row,), axes=cell.axes)


def _show_cells(context: "Context", selected: "Selection", as_json: bool) -> None:
    from repro.analysis.export import cells_frame, render_frame
    from repro.analysis.frames import Results
    from repro.cli.reporting import cell_text

    found = Results(context.project, context.registry, context.preset, selected)
    if as_json:
        frame = cells_frame(found.cell_results, context.registry, context.preset)
        click.echo(render_frame(frame, "json"), nl=False)
    else:
        click.echo("\n\n".join(map(cell_text, found.cell_results)))
    end_if_damaged(found.damaged)


def _show_run(context: "Context", run: "Run", as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from repro.record_state import RecordState

    (state,) = context.states([run])
    if state.record_state is RecordState.CORRUPT:
        raise RecordCorruptError(state.reason)
    if state.record_state is RecordState.MISPLACED:
        raise RecordMisplacedError(state.reason)
    path, record = context.project.run(context.preset.name, run.id).record, state.record
    if record is None:
        raise DataMissingError(
            f"{run.id} has no record at {path}: {state.reason}. `repro train {run.id}` makes it"
        )
    if as_json:
        click.echo(printable(path.read_text(encoding="utf-8").rstrip("\n")))
        return
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(record):
        facts.add_row(name, text)
    curve = Table(box=None, padding=(0, 2), header_style="bold")
    for heading in ("epoch", "lr", "train loss", "train %", "test %", "‖p − y‖", "‖∂L/∂f‖", "seconds"):
        curve.add_column(heading, justify="right")
    # At most a dozen epochs, evenly spread, the last among them.
    count, shown = len(record.curve), min(_EPOCHS_SHOWN, len(record.curve))
    for index in sorted({round((place + 1) * count / shown) - 1 for place in range(shown)}):
        epoch = record.curve[index]
        curve.add_row(
            str(epoch.epoch + 1),
            f"{epoch.lr:g}",
            _number(epoch.train_loss, 3),
            _number(epoch.train_accuracy, 2),
            _number(epoch.test_accuracy, 2),
            _number(epoch.gradient_at_logits, 3),
            _number(epoch.gradient_at_features, 3),
            f"{epoch.seconds:.1f}",
        )
    console = Console(width=100, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        title = f"{record.run}  (preset {record.preset}; {state.reason or state.record_state})"
        console.print(title, style="bold")
        console.print(facts, "", curve, sep="\n")
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
    click.echo(with_own_options(f"\nrepeat: `repro train {run.id}`").replace("`", ""))


def _facts(record: "RunRecord") -> Iterator[tuple[str, str]]:
    from repro.config import format_axis

    result, made, data, config = record.result, record.provenance, record.data, record.config
    if result.accuracy is None:
        yield "result", result.divergence
    else:
        yield "result", f"{result.accuracy:.2f} % top-1 ({result.correct:,} of {result.total:,})"
        best_epoch = 0 if result.best_epoch is None else result.best_epoch + 1
        yield "best", f"{result.best_accuracy:.2f} % after epoch {best_epoch}, never the result"
    images = f"{data.train_images:,} training and {data.test_images:,} test images"
    partial = f"; partial: {data.partial}" if data.partial else ""
    yield "data", f"{data.title}, {data.classes} classes, {images}{partial}"
    parameters = ", ".join(f"{key} {format_axis(value)}" for key, value in config.loss_parameters.items())
    yield "loss", f"{config.loss} ({parameters})" if parameters else config.loss
    recipe = config.recipe.model_dump(exclude_none=True)
    yield "recipe", ", ".join(f"{key} {_plain(value)}" for key, value in recipe.items())
    shared = f", shared with {made.runs_on_device - 1} more" if made.runs_on_device > 1 else ""
    yield "device", f"{made.device}, {made.precision}{shared}; {', '.join(made.accelerations)}"
    memory = made.peak_memory_bytes / 2**30
    yield "speed", f"{made.images_per_second:,.0f} images/s, {memory:.1f} GiB at most"
    if made.energy_joules is not None:
        yield "energy", f"{made.energy_joules / 1000:,.1f} kJ"
    yield "code", f"commit {made.git_commit or 'unknown'}{' with local changes' if made.git_dirty else ''}"
    tools = {"Python": made.python, **{name: made.packages.get(name) for name in ("torch", "numpy")}}
    tools |= {"CUDA": made.cuda, "cuDNN": made.cudnn, "driver": made.driver}
    yield "tools", ", ".join(f"{name} {version}" for name, version in tools.items() if version)
    yield "system", f"{made.system}, {made.kernel}, {made.processor}"
    for each in made.attempts:
        resumed = f", from step {each.resumed_at_step:,}" if each.resumed_at_step else ""
        yield f"attempt {each.number}", f"{each.started:%Y-%m-%d %H:%M} UTC, {each.outcome}{resumed}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> str:
    from repro.config import format_axis

    return "/".join(map(format_axis, value)) if isinstance(value, list | tuple) else format_axis(value)


@command()
@places
@click.argument("run_id", metavar="RUN_ID", shell_complete=completed("runs"))
@click.option("--lines", type=click.IntRange(min=1), metavar="N", default=40, show_default=True,
              help="Lines of each log, from its end.")  # fmt: skip
@click.option("--follow", is_flag=True, help="Show new lines too, until the run ends or Ctrl-C.")
def logs(context: "Context", run_id: str, lines: int, follow: bool) -> None:
    """Show what a run's attempts left: how each ended, tracebacks, and its workers' logs."""
    from repro.attempts import read_attempts, without_record
    from repro.storage import lock_holder, lock_holders

    run = context.registry.parse(run_id)
    paths = context.project.run(context.preset.name, run.id)
    attempts = read_attempts(paths)
    folder, shown = context.project.logs(context.preset.name), dict[Path, int]()
    found = _logs(folder, run.id)
    if not attempts and not found:
        raise SelectionError(f"{run.id}: nothing was started under {paths.work} yet")
    for attempt in attempts:
        until = f"{attempt.ended:%Y-%m-%d %H:%M:%S}" if attempt.ended else "…"
        began = f"attempt {attempt.number}: {attempt.started:%Y-%m-%d %H:%M:%S} to {until} UTC"
        start = f", from step {attempt.resumed_at_step:,}" if attempt.resumed_at_step else ""
        click.echo(f"{began}, {attempt.outcome}{start}")
        _echo_indented(_read_text(paths.attempts / str(attempt.number) / "error.txt").splitlines())
    for log in found:
        click.echo(f"\n{log}:")
        content = _read_text(log).splitlines()
        if len(content) > lines:
            click.echo(f"    … {len(content) - lines} lines before")
        _echo_indented(content[-lines:])
        shown[log] = len(content)
    running = follow
    while running:
        locked = lock_holder(paths.lock, lock_holders()) is not None
        running = without_record(read_attempts(paths), locked)[0] == "running"
        for log in _logs(folder, run_id):  # once more after the run's end: its last lines
            text = _read_text(log)
            # A line that is being written waits for its end.
            content = (text.rpartition("\n")[0] if running else text).splitlines()
            _echo_indented(content[shown.get(log, 0) :])
            shown[log] = len(content)
        sys.stdout.flush()
        time.sleep(INTERVAL / 4 if running else 0)


def _logs(folder: Path, run_id: str) -> list[Path]:
    """The workers' logs that name the run, oldest first."""
    named = re.compile(rf"(?<![\w/+.=-]){re.escape(run_id)}(?![\w/+=-])")
    return [path for path in sorted(folder.glob("*.log")) if named.search(_read_text(path))]


def _read_text(path: Path) -> str:
    """The text of a file for people; empty where there is none that can be read."""
    try:
        return read_file(path).decode(errors="replace")
    except OSError:
        return ""


def _echo_indented(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"    {printable(line)}")
