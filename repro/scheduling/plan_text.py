"""The plan as a person reads it: plain text with a table, so that it can be piped."""

from repro.scheduling.estimate import Duration
from repro.scheduling.plan import ColumnPlan, Plan


def render_plan(plan: Plan) -> str:
    """The plan as plain text with a table."""
    from tabulate import tabulate

    supplied = ""
    if plan.supplied:
        with_clone = "its records may have been supplied with the clone"
        supplied = f", the project's own: {with_clone}; --results DIR starts a set of one's own"
    lines = [f"preset {plan.preset}: {plan.heading}", f"results: {plan.results}{supplied}"]
    slots = (f"{count} on {name}" for name, count in plan.devices.items())
    lines += [f"slots: {', '.join(slots)}", *(f"  {line}" for line in plan.packing), ""]
    headers = ("table", "data set", "network", "cells", "runs", "done", "older code", "to do", "time")
    rows = [
        (
            column.table,
            column.dataset,
            column.network,
            column.cells,
            column.runs,
            column.done,
            column.older_code,
            column.to_do,
            _time(column),
        )
        for column in plan.columns
    ]
    lines += [tabulate(rows, headers=headers, tablefmt="simple"), ""]
    total = plan.total
    lines.append(
        f"{total('cells')} cells, {total('runs')} runs: {total('done')} done, {total('older_code')} done by "
        f"older code, {total('to_do')} to do (of them {total('stale')} with a record of another recipe, "
        f"{total('damaged')} with a damaged one)"
    )
    if plan.data_unchecked:
        lines.append(f"data unchecked: {plan.data_unchecked} records, their data set is not prepared here")
    lines += [f"{count} × {reason}" for reason, count in plan.reasons.items()]
    if total("to_do"):
        lines += _time_lines(plan)
        lines.append(f"disk: about {plan.disk}")
    if plan.budget:
        lines += plan.budget.lines()
        lines += [f"  left out, no data here: {name}" for name in plan.without_data]
    return "\n".join(lines)


def _time(column: ColumnPlan) -> str:
    if not column.to_do:
        return ""
    return str(column.duration) if column.duration else "?"


def _time_lines(plan: Plan) -> list[str]:
    waiting = [column for column in plan.columns if column.to_do]
    lines = []
    if plan.duration:
        part = "" if all(column.duration for column in waiting) else ", columns marked ? not counted"
        busy = f" ({_hours(plan.busy)} {plan.busy_unit}-hours)" if plan.busy else ""
        lines.append(f"time to do: {plan.duration} on these slots{busy}{part}")
    sources = dict.fromkeys(column.source for column in waiting)
    return [*lines, *(f"  {source}" for source in sources)]


def _hours(busy: Duration) -> str:
    low, high = (
        f"{seconds / 3600:.2g}" if seconds < 36000 else f"{seconds / 3600:,.0f}"
        for seconds in (busy.low, busy.high)
    )
    return low if low == high else f"{low} – {high}"
