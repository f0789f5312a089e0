"""A model of how workers share runs: random interleavings, kills, stop requests, devices that are broken or small.

A worker is a generator, and between any two of its yields other workers get their turn or it is killed. Attempts
are real notes, and what they say of a run is asked of `repro.attempts`; locks, records and devices are pretended.
"""

import random
from collections import Counter
from collections.abc import Collection, Generator

from pretended_environment import attempt_note
from protocol_scenarios import (
    CHECKPOINT,
    MOST_ATTEMPTS,
    MOST_STARTS_IN_VAIN,
    MOST_TURNS,
    STEPS,
    TURNS,
    Attempt,
    Device,
    DiedError,
    Life,
    Rule,
    Run,
    Scenario,
)

from repro.attempts import (
    MAX_CRASHES,
    MAX_INTERRUPTIONS,
    AttemptNote,
    Outcome,
    given_up,
    is_suspect,
    memory_that_was_too_small,
)
from repro.scheduling.place import MAX_DEATHS_AT_START


class World:
    """One sweep, or two at once, of a scenario; `violations` counts what must not be."""

    def __init__(self, scenario: Scenario, seed: int, rules: Collection[Rule] = tuple(Rule)) -> None:
        self.scenario, self.rules, self.random = scenario, rules, random.Random(seed)
        self.runs = [
            Run(number % 2, behaviour, memory=3 if behaviour == "big" else 1)
            for number in range(scenario.runs)
            for behaviour in [scenario.behaviours.get(number, "healthy")]
        ]
        count = scenario.workers
        self.devices = [
            Device(
                memory=2 if number < scenario.small else 4,
                data=(0,) if count - 1 - number < scenario.without_data else (0, 1),
                broken=number < scenario.broken,
                code=scenario.codes[number % len(scenario.codes)],
                arithmetic=scenario.arithmetics[number % len(scenario.arithmetics)],
                sweep=number % scenario.sweeps,
            )
            for number in range(count)
        ]
        if scenario.sweeps > 1 and len(scenario.codes) > 1:
            for run in self.runs:
                run.record = "old"
        self.baseline = {run: run.record for run in self.runs}
        self.violations: Counter[str] = Counter()

    # What the disk says of a run.

    def notes(self, run: Run) -> list[AttemptNote]:
        """What an asker reads, changed to what it would be without a rule."""
        notes = []
        for number, attempt in enumerate(run.attempts, 1):
            note = attempt.note
            if note is None:
                if Rule.FOLDER not in self.rules:
                    continue
                note = attempt_note("crashed", number)
            if Rule.ALONE not in self.rules:
                note = note.model_copy(update={"alone": True})
            if Rule.PROGRESS not in self.rules:
                note = note.model_copy(update={"saved_step": 0})
            notes.append(note)
        return notes

    def status(self, run: Run, device: Device) -> str:
        """done, given up, impossible, suspect or free; the order is that of repro.sweep.RunQueue."""
        if self.has_result(run, device):
            return "done"
        notes = self.notes(run)
        if (verdict := given_up(notes)) and (verdict.failed or Rule.BOUND in self.rules):
            return "given up"
        too_small = memory_that_was_too_small(notes)
        if too_small is not None and (too_small >= device.memory or Rule.MEMORY not in self.rules):
            return "impossible"
        return "suspect" if is_suspect(notes) and Rule.ALONE in self.rules else "free"

    def has_result(self, run: Run, device: Device) -> bool:
        """Whether a record counts."""
        if Rule.BASELINE in self.rules:
            return run.record != self.baseline[run]
        return run.record == device.code

    # A worker.

    def worker(self, device: Device, life: Life) -> TURNS:
        """From its start to its end, a turn at a time."""
        yield
        if device.broken and Rule.SELF_TEST in self.rules:
            raise DiedError
        life.phase = "training"
        limit, trained, drain = self.scenario.runs_at_once, 0, False
        while True:
            while not (life.asked or drain) and self._has_room(life, limit):
                run = yield from self._take(device, life)
                if run is None:
                    break
                outcome = yield from self._begin(run, device, life, bool(trained))
                if outcome is Outcome.WITHDRAWN:
                    limit, drain = max(1, len(life.active)), not life.active
            if not life.active:
                return
            if life.asked:
                life.checkpointing = True
                if Rule.STOPPING in self.rules:
                    life.phase = "stopping"
                yield from self._checkpoint_all(device, life)
                return
            for run in list(life.active):
                if run in life.active:
                    trained += yield from self._step(run, device, life)

    def _has_room(self, life: Life, limit: int) -> bool:
        if not life.active:
            return True
        if any(self._is_alone(run, attempt) for run, attempt in life.active.items()):
            return False
        share = -(-sum(run.record == self.baseline[run] for run in self.runs) // len(self.devices))
        return len(life.active) < min(limit, share)

    def _is_alone(self, run: Run, attempt: Attempt) -> bool:
        """Whether it is a suspect that has not yet got past where it was."""
        number = run.attempts.index(attempt)
        suspect = Rule.ALONE in self.rules and is_suspect(self.notes(run)[:number])
        return suspect and attempt.saved <= (attempt.note.resumed_at_step if attempt.note else 0)

    def _take(self, device: Device, life: Life) -> Generator[None, None, Run | None]:
        for run in self.runs:
            if run in life.active or run in life.left:
                continue
            status = self.status(run, device)
            if status == "impossible":
                life.left.add(run)
            if status not in ("free", "suspect") or (status == "suspect" and life.active):
                continue
            if run.dataset not in device.data and Rule.DATA in self.rules:
                life.left.add(run)
                continue
            if Rule.UNDER_LOCK not in self.rules and run.holder is None:
                yield  # what was free a moment ago
                yield from self._note_dead(run)
            yield
            if run.holder is not None:
                continue
            run.holder = life
            yield
            if Rule.UNDER_LOCK in self.rules:
                yield from self._note_dead(run)
            status = self.status(run, device)
            if status not in ("free", "suspect") or (status == "suspect" and life.active):
                self._release(run, life)
                continue
            return run
        return None

    def _note_dead(self, run: Run) -> TURNS:
        last = run.attempts[-1] if run.attempts else None
        if last is None or last.note is None or last.note.kind is not Outcome.RUNNING:
            return
        life = last.life
        if any(device.life is life for device in self.devices) and run.holder is life:
            self.violations["a living attempt was called dead"] += 1
        outcome = Outcome.INTERRUPTED if life.phase == "stopping" else Outcome.CRASHED
        self._end(run, last, outcome, alone=life.company <= 1)
        yield

    def _begin(
        self, run: Run, device: Device, life: Life, has_trained: bool
    ) -> Generator[None, None, Outcome | None]:
        """Folder, note, network; the outcome if it has already ended."""
        attempt = Attempt(life)
        run.attempts.append(attempt)
        yield
        if run.behaviour == "dies in the folder":
            raise DiedError
        alone = not life.active
        memory = {"alone": alone, "device_memory_bytes": device.memory}
        attempt.note = attempt_note("running", len(run.attempts), **memory)
        life.active[run] = attempt
        life.company = len(life.active)
        yield
        if run.dataset not in device.data:
            return self._leave(run, life, Outcome.FAILED)
        if sum(each.memory for each in life.active) > device.memory:
            fresh = alone and not has_trained
            return self._leave(run, life, Outcome.OUT_OF_MEMORY if fresh else Outcome.WITHDRAWN)
        if run.checkpoint and run.checkpoint[1] == device.arithmetic:
            attempt.step = attempt.saved = run.checkpoint[0]
        attempt.note = attempt.note.model_copy(
            update={"resumed_at_step": attempt.step, "saved_step": attempt.step}
        )
        return None

    def _step(self, run: Run, device: Device, life: Life) -> Generator[None, None, bool]:
        """One step; whether the run is done."""
        yield
        attempt = life.active[run]
        if device.broken:
            raise DiedError
        newer = run.attempts[-1] is not attempt
        attempt.late_steps += newer
        if newer and not self.scenario.lose_lock:
            self.violations["two workers trained one run"] += 1
        if attempt.late_steps > CHECKPOINT:
            self.violations["trained on long after another had begun"] += 1
        attempt.step += 1
        life.stepped = True
        if (run.behaviour, attempt.step) in (("segfault", 2), ("segfault late", 6)):
            raise DiedError
        if run.behaviour == "sticky" and attempt.step == 3:
            alone = len(life.active) == 1
            for each in list(life.active):
                self._end(each, life.active[each], Outcome.DEVICE, alone)
                yield
            raise DiedError
        if run.behaviour == "error" and attempt.step == 3:
            self._leave(run, life, Outcome.FAILED)
            return False
        if run.behaviour == "slow":
            attempt.step = min(attempt.step, 1)  # never comes to a checkpoint of its own
        if attempt.step % CHECKPOINT and attempt.step < STEPS:
            return False
        if newer and Rule.FENCE in self.rules:
            self._leave(run, life, Outcome.SUPERSEDED)
            return False
        yield
        self._save(run, attempt, device)
        if attempt.step < STEPS:
            return False
        yield
        if not self.has_result(run, device):
            run.record = device.code
            run.commits.append(device.code)
        yield
        self._leave(run, life, Outcome.DONE)
        run.checkpoint = None
        return True

    def _checkpoint_all(self, device: Device, life: Life) -> TURNS:
        for run, attempt in list(life.active.items()):
            yield
            if attempt.step > attempt.saved:
                self._save(run, attempt, device)
            yield
            run.stops += 1
            self._leave(run, life, Outcome.INTERRUPTED)

    def _save(self, run: Run, attempt: Attempt, device: Device) -> None:
        if run.checkpoint is None or attempt.step > run.checkpoint[0]:
            run.kills = run.stops = 0
        run.checkpoint = (attempt.step, device.arithmetic)
        attempt.saved = attempt.step

    def _leave(self, run: Run, life: Life, outcome: Outcome) -> Outcome:
        attempt = life.active.pop(run)
        self._end(run, attempt, outcome)
        life.company = len(life.active)
        self._release(run, life)
        return outcome

    def _end(self, run: Run, attempt: Attempt, outcome: Outcome, alone: bool | None = None) -> None:
        assert attempt.note is not None
        update: dict[str, object] = {"outcome": str(outcome), "saved_step": attempt.saved}
        if alone is not None:
            update["alone"] = alone
        attempt.note = attempt.note.model_copy(update=update)

    def _release(self, run: Run, life: Life) -> None:
        if run.holder is life:
            run.holder = None

    # The supervisors, and what comes from outside.

    def play(self) -> Counter[str]:
        """Until no worker has anything to do; the violations."""
        for _ in range(MOST_TURNS):
            for device in self.devices:
                if device.life is None and not device.out and self._wants_worker(device):
                    device.life = Life()
                    device.turns = self.worker(device, device.life)
            living = [device for device in self.devices if device.life]
            if not living:
                self._audit()
                break
            self._turn(self.random.choice(living))
            if any(len(run.attempts) > MOST_ATTEMPTS for run in self.runs):
                self.violations["attempts without bound"] += 1
            if self.violations:
                break
        else:
            self.violations["never ends"] += 1
        return self.violations

    def _wants_worker(self, device: Device) -> bool:
        # The supervisor asks for all devices at once: a run that is too large for one may fit another.
        largest = max(self.devices, key=lambda each: each.memory)
        return any(
            run.holder is None
            and not (run in device.left and Rule.LEFT in self.rules)
            and self.status(run, largest) in ("free", "suspect", "impossible")
            for run in self.runs
        )

    def _turn(self, device: Device) -> None:
        life, scenario, luck = device.life, self.scenario, self.random.random()
        assert life is not None
        assert device.turns is not None
        stopping = life.checkpointing and self.random.random() < scenario.kill_stopping
        if luck < scenario.kill or stopping:
            for run in self.runs:
                if run in life.active or run.holder is life:
                    run.kills += not stopping and len(life.active) <= 1
                    run.stops += stopping
            device.kills += 1
            self._ended(device, died=True)
            return
        life.asked = life.asked or luck < scenario.kill + scenario.stop
        if self.random.random() < scenario.lose_lock:
            self.random.choice(self.runs).holder = None
        try:
            next(device.turns)
        except StopIteration:
            self._ended(device, died=False)
        except DiedError:
            self._ended(device, died=True)

    def _ended(self, device: Device, died: bool) -> None:
        life = device.life
        assert life is not None
        assert device.turns is not None
        device.turns.close()
        device.life = None
        for run in self.runs:
            self._release(run, life)
        if life.stepped:
            device.deaths_at_start = device.starts_in_vain = device.kills = 0
        device.left = frozenset() if died else frozenset(life.left)
        device.starts_in_vain += not (died or life.asked or life.stepped)
        if device.starts_in_vain > MOST_STARTS_IN_VAIN:
            self.violations["workers start though their device can train nothing"] += 1
        if died and not life.asked:
            device.deaths_at_start += life.phase == "starting"
        if Rule.STARTS in self.rules:
            device.out = device.deaths_at_start >= MAX_DEATHS_AT_START

    def _audit(self) -> None:
        able = [device for device in self.devices if not device.out]
        works = [
            device for device in self.devices if not device.broken and device.kills < MAX_DEATHS_AT_START
        ]
        if any(device.out for device in works):
            self.violations["a device that works was left out"] += 1
        for run in self.runs:
            if len(set(run.commits)) < len(run.commits) or len(run.commits) > 1:
                self.violations["a result was replaced"] += 1
            if run.record != self.baseline[run]:
                continue
            if run.kills >= MAX_CRASHES or run.stops >= MAX_INTERRUPTIONS:
                continue  # it was killed or stopped often enough to be given up
            fits = any(device.memory >= run.memory and run.dataset in device.data for device in able)
            if fits and run.behaviour in ("healthy", "big"):
                self.violations[f"a {run.behaviour} run was lost"] += 1
