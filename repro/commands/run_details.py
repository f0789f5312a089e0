"""`repro show RUN` and `repro logs RUN`: one run's record, and what its attempts left behind."""

import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from repro.commands.context import Context
from repro.commit import attempts_of
from repro.errors import DataMissingError, RecordCorruptError, RecordMisplacedError, SelectionError
from repro.recipes import format_axis
from repro.record_state import RecordState, RunState
from repro.records import RunRecord

_DAMAGED = {RecordState.CORRUPT: RecordCorruptError, RecordState.MISPLACED: RecordMisplacedError}
_EPOCHS_SHOWN = 12


def show_run(context: Context, run_id: str, as_json: bool) -> str:
    """The record of `run_id` for a person, or its JSON as it stands on disk.

    Raises SelectionError for an id that is not one, RecordCorruptError or RecordMisplacedError for a record
    that cannot be believed, DataMissingError where there is none.
    """
    run = context.registry.parse(run_id)
    (state,) = context.states([run])
    if state.record_state in _DAMAGED:
        raise _DAMAGED[state.record_state](state.reason)
    path = context.project.run(context.preset.name, run.id).record
    if state.record is None:
        raise DataMissingError(
            f"{run.id} has no record at {path}: {state.reason}. "
            f"`repro train {run.id} --preset {context.preset.name}` makes it"
        )
    return path.read_text(encoding="utf-8").rstrip("\n") if as_json else _rendered(state, state.record)


def log_lines(context: Context, run_id: str, lines: int) -> Iterator[str]:
    """What is known of the run's attempts, their tracebacks, and the last `lines` of each worker's log.

    Raises SelectionError where nothing was ever started under this id.
    """
    run = context.registry.parse(run_id)
    paths = context.project.run(context.preset.name, run.id)
    attempts = attempts_of(paths)
    logs = _logs(context.project.work(context.preset.name) / "logs", run.id)
    if not attempts and not logs:
        raise SelectionError(f"{run.id}: nothing was started under {paths.work} yet")
    for attempt in attempts:
        until = f"{attempt.ended:%Y-%m-%d %H:%M:%S}" if attempt.ended else "…"
        began = f"attempt {attempt.number}: {attempt.started:%Y-%m-%d %H:%M:%S} to {until} UTC"
        start = f", from step {attempt.resumed_at_step:,}" if attempt.resumed_at_step else ""
        yield f"{began}, {attempt.outcome}{start}"
        trace = paths.attempts / str(attempt.number) / "error.txt"
        if trace.is_file():
            yield from (f"    {line}" for line in trace.read_text(errors="replace").splitlines())
    for log in logs:
        yield ""
        yield f"{log}:"
        content = log.read_text(errors="replace").splitlines()
        if len(content) > lines:
            yield f"    … {len(content) - lines} lines before"
        yield from (f"    {line}" for line in content[-lines:])


def _logs(folder: Path, run_id: str) -> list[Path]:
    """The workers' logs that name the run, oldest first."""
    named = re.compile(rf"(?<![\w/+.=-]){re.escape(run_id)}(?![\w/+=-])")
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.glob("*.log")) if named.search(path.read_text(errors="replace"))]


def _rendered(state: RunState, record: RunRecord) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(Group(*_parts(state, record)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _parts(state: RunState, record: RunRecord) -> Iterator[Text | RichTable]:
    result, made, data = record.result, record.provenance, record.data
    standing = state.reason or str(state.record_state)
    yield Text(f"{record.run}  (preset {record.preset}; {standing})", style="bold")
    facts = RichTable.grid(padding=(0, 2))
    if result.accuracy is None:
        facts.add_row("result", result.divergence)
    else:
        facts.add_row("result", f"{result.accuracy:.2f} % top-1 ({result.correct:,} of {result.total:,})")
        best_epoch = 0 if result.best_epoch is None else result.best_epoch + 1
        facts.add_row("best", f"{result.best_accuracy:.2f} % after epoch {best_epoch}, never the result")
    partial = f"; partial: {data.partial}" if data.partial else ""
    facts.add_row(
        "data",
        f"{data.title}, {data.classes} classes, {data.train_images:,} training and "
        f"{data.test_images:,} test images{partial}",
    )
    parameters = ", ".join(
        f"{key} {format_axis(value)}" for key, value in record.config.loss_parameters.items()
    )
    facts.add_row("loss", f"{record.config.loss}{f' ({parameters})' if parameters else ''}")
    recipe = record.config.recipe.model_dump(exclude_none=True)
    facts.add_row("recipe", ", ".join(f"{key} {_plain(value)}" for key, value in recipe.items()))
    shared = f", shared with {made.runs_on_device - 1} more" if made.runs_on_device > 1 else ""
    facts.add_row("device", f"{made.device}, {made.precision}{shared}; {', '.join(made.accelerations)}")
    facts.add_row(
        "speed", f"{made.images_per_second:,.0f} images/s, {made.peak_memory_bytes / 2**30:.1f} GiB at most"
    )
    if made.energy_joules is not None:
        facts.add_row("energy", f"{made.energy_joules / 1000:,.1f} kJ")
    facts.add_row(
        "code", f"commit {made.git_commit or 'unknown'}{' with local changes' if made.git_dirty else ''}"
    )
    tools = {"Python": made.python, **{name: made.packages.get(name) for name in ("torch", "numpy")}}
    tools |= {"CUDA": made.cuda, "cuDNN": made.cudnn, "driver": made.driver}
    facts.add_row("tools", ", ".join(f"{name} {version}" for name, version in tools.items() if version))
    facts.add_row("system", f"{made.system}, {made.kernel}, {made.processor}")
    for attempt in made.attempts:
        resumed = f", from step {attempt.resumed_at_step:,}" if attempt.resumed_at_step else ""
        facts.add_row(
            f"attempt {attempt.number}", f"{attempt.started:%Y-%m-%d %H:%M} UTC, {attempt.outcome}{resumed}"
        )
    yield facts
    yield Text("")
    yield _curve(record)
    yield Text("")
    yield Text(f"repeat: repro train {record.run} --preset {record.preset}")


def _curve(record: RunRecord) -> RichTable:
    """At most a dozen epochs, evenly spread, the last among them."""
    table = RichTable(box=None, padding=(0, 2), header_style="bold")
    for heading in ("epoch", "lr", "train loss", "train %", "test %", "‖p − y‖", "‖∂L/∂f‖", "seconds"):
        table.add_column(heading, justify="right")
    count = len(record.curve)
    shown = sorted(
        {
            round((place + 1) * count / min(_EPOCHS_SHOWN, count)) - 1
            for place in range(min(_EPOCHS_SHOWN, count))
        }
    )
    for index in shown:
        epoch = record.curve[index]
        table.add_row(
            str(epoch.epoch + 1),
            f"{epoch.lr:g}",
            _number(epoch.train_loss, 3),
            _number(epoch.train_accuracy, 2),
            _number(epoch.test_accuracy, 2),
            _number(epoch.gradient_at_logits, 3),
            _number(epoch.gradient_at_features, 3),
            f"{epoch.seconds:.1f}",
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "/".join(_plain(item) for item in value)
    return format_axis(value) if isinstance(value, bool | int | float | str) else str(value)
