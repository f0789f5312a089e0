"""`repro status`: how a sweep stands, from another terminal, beside a scheduler or without one."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from repro.commands.context import Context
from repro.commands.survey import data_sizes, probes_here
from repro.errors import DeviceError
from repro.record_state import RunState
from repro.registry import Run, Selection
from repro.scheduling.heartbeat import Heartbeat, read_heartbeats
from repro.scheduling.plan import make_plan
from repro.scheduling.slots import Slot, find_slots
from repro.scheduling.status import Status, make_status
from repro.scheduling.survey import Survey
from repro.scheduling.traces import read_traces

INTERVAL = 2.0
"""Seconds between two looks; stretched where looking itself takes long."""

_CLEAR = "\x1b[H\x1b[J"


class Observer:
    """Looks again and again; records that have not changed since are not read twice."""

    def __init__(self, context: Context, selected: Selection) -> None:
        self._context = context
        self._runs = context.registry.select_runs(selected, context.preset)
        self._survey: Survey | None = None
        self._known: dict[str, tuple[tuple[int, ...], RunState]] = {}

    def look(self) -> Status:
        """How things stand now."""
        context, preset = self._context, self._context.preset
        # Before the records: a run that ends in between is then seen as done, not as interrupted.
        traces = read_traces(
            (run for run in self._runs if not self._stamp(run)), context.project, preset.name
        )
        sizes = data_sizes(context, {run.cell.dataset for run in self._runs})
        self._survey = Survey.of(self._states(), sizes, probes_here(context), before=self._survey)
        to_do = self._survey.to_do("keep")
        again = (run for run in to_do if run.id not in traces and self._stamp(run))
        traces |= read_traces(again, context.project, preset.name)
        schedulers = read_heartbeats(context.project.schedulers(preset.name))
        plan = None
        if slots := _slots(context, schedulers):
            plan = make_plan(
                self._survey,
                context.registry,
                preset,
                context.project,
                slots,
                begun={run.id: traces[run.id].begun for run in to_do if run.id in traces},
            )
        return make_status(
            self._survey,
            traces,
            schedulers,
            preset.recipe,
            plan,
            preset.heading or preset.description,
            context.project.preset_results(preset.name),
        )

    def _states(self) -> Iterator[RunState]:
        """Those of unchanged records from memory, the others anew."""
        known, changed = [], []
        stamps = {}
        for run in self._runs:
            stamp = self._stamp(run)
            before = self._known.get(run.id)
            if stamp is not None and before is not None and before[0] == stamp:
                known.append(before[1])
            else:
                changed.append(run)
                stamps[run.id] = stamp
        yield from known
        for state in self._context.states(changed, whole=False):
            if (stamp := stamps[state.run.id]) is not None:
                self._known[state.run.id] = (stamp, replace(state, record=None))
            yield state

    def _stamp(self, run: Run) -> tuple[int, ...] | None:
        try:
            found = self._context.project.run(self._context.preset.name, run.id).record.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def watch(observer: Observer, as_json: bool) -> None:
    """Shows the status again and again, in place on a terminal, until Ctrl-C."""
    in_place = sys.stdout.isatty() and not as_json
    while True:
        started = time.monotonic()
        status = observer.look()
        text = status.to_json() if as_json else status.to_text()
        print(f"{_CLEAR}{text}" if in_place else f"{text}\n", flush=True)
        time.sleep(max(INTERVAL, 10 * (time.monotonic() - started)))


def _slots(context: Context, schedulers: Sequence[Heartbeat]) -> tuple[Slot, ...]:
    """Those of the schedulers at work, else this machine's; none where its driver does not answer."""
    at_work = [
        Slot(
            device="cuda" if slot.kind == "cuda" else "cpu",
            index=slot.index,
            name=slot.device,
            uuid=None,
            memory_bytes=0,
            co_tenants=slot.co_tenants,
            environment={},
        )
        for scheduler in schedulers
        for slot in scheduler.slots
    ]
    if at_work:
        return tuple(at_work)
    try:
        return find_slots(context.preset.threads)
    except DeviceError:
        return ()
