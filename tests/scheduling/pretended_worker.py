"""A worker that only pretends to train, without torch: `pretended_worker.py train --sweep FILE --job NAME …`.

It speaks the real one's protocol and does to each run what `behaviour.json` in the results folder says, one
action per attempt, the last one repeated; a run not named is done.

    done        commits a record
    fail:TEXT   notes TEXT as the run's error
    kill        dies of SIGKILL in the middle of the attempt
    further     the same, after a later checkpoint than before
    early       dies of SIGKILL before its first step
    hang        shows no further sign of life and ignores SIGTERM
    wait        trains until asked to stop
    start:CODE  ends with this exit code before it takes a run
    broken      finds the device broken if it is cpu:0, at the run's first step
    left:TEXT   leaves the run to other devices
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from pretended_environment import attempt_note

from repro.attempts import new_attempt, read_attempts, write_attempt
from repro.paths import Project
from repro.records import RunRecord, Signature
from repro.registry import Registry
from repro.scheduling.place import MAX_DEVICE_ERRORS
from repro.signals import Stop
from repro.storage import FileLock, commit_record
from repro.sweep import RunQueue, RunStatus, Sweep, stop_request
from repro.worker_note import Phase, RunProgress, new_worker_note


def breakdowns(work: Path) -> int:
    return sum("CUDA error" in note.read_text() for note in work.rglob("attempt.json"))


def main() -> int:
    words = sys.argv[2:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    results, file = Path(options["--results"]), Path(options["--sweep"])
    behaviour = json.loads((results / "behaviour.json").read_text())
    for action in behaviour.get("worker", []):
        if action.startswith("start:"):
            print("repro: pretended trouble", flush=True)
            return int(action.removeprefix("start:"))
    sweep = Sweep.read(file)
    project = Project.find(results=results)
    registry = Registry.load(project.experiments)
    queue, stop = RunQueue(sweep, registry, project), Stop()
    stop.listen()
    note = new_worker_note(sweep.id, options["--job"], "cpu")
    folder = project.workers(sweep.preset)
    note.write(folder)
    while not (stop.requested or stop_request(file)):
        for entry in queue.takeable():
            paths = project.run(sweep.preset, entry.run)
            actions = behaviour.get(entry.run, ["done"])
            if actions[0].startswith("left:"):
                queue.exclude(entry.run, actions[0].removeprefix("left:"))
                continue
            lock = FileLock(paths.lock)
            if lock.acquire():
                break
        else:
            break
        number = len(read_attempts(paths))
        action = actions[min(number, len(actions) - 1)]
        queue.close_dead_attempt(entry)
        if queue.status(entry) not in (RunStatus.FREE, RunStatus.SUSPECT):
            lock.release()
            continue
        attempt = new_attempt(paths)
        begun = attempt_note("running", int(attempt.name), worker=note.name)
        write_attempt(attempt, begun)
        if action == "early":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "further":
            (attempt / f"checkpoint-{number + 1:08d}.pt").touch()
        if action == "broken" and ".cpu-0." in options["--job"]:
            ended = {"ended": datetime.now(UTC), "outcome": "device error: CUDA error: pretended"}
            write_attempt(attempt, begun.model_copy(update=ended))
            replace(note, phase=Phase.ENDED, device_error="CUDA error: pretended").write(folder)
            return 1
        while action == "broken" and breakdowns(project.work(sweep.preset)) < MAX_DEVICE_ERRORS:
            time.sleep(0.02)  # meanwhile the other device breaks again and again
        progress = RunProgress(entry.run, begun.number, "training", 0, 1, 1, 2, 10.0)
        note = replace(note, phase=Phase.TRAINING, runs=(progress,), stepped=True, beat=note.beat + 1)
        note.write(folder)

        def end(outcome: str, attempt=attempt, begun=begun) -> None:
            write_attempt(attempt, begun.model_copy(update={"ended": datetime.now(UTC), "outcome": outcome}))

        if action in ("kill", "further"):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        while action == "wait" and not (stop.now or stop_request(file) == "now"):
            time.sleep(0.02)
            note = replace(note, beat=note.beat + 1)
            note.write(folder)
        if stop.now or stop_request(file) == "now":
            end("interrupted")
        elif action.startswith("fail:"):
            end(f"failed: {action.removeprefix('fail:')}")
            time.sleep(0.3)
        else:
            template = RunRecord.model_validate_json((results / "template.json").read_text())
            config = registry.config(registry.parse(entry.run), registry.preset(sweep.preset))
            signature = Signature(config=entry.config, data=entry.data or "d" * 64, code=entry.code)
            made = {"run": entry.run, "config": config, "signature": signature}
            commit_record(template.model_copy(update=made), paths, attempt, entry.record)
            end("done")
        lock.release()
        note = replace(note, runs=(), beat=note.beat + 1)
        note.write(folder)
    replace(note, phase=Phase.ENDED, left=dict(queue.impossible), beat=note.beat + 1).write(folder)
    return 75 if stop.requested or stop_request(file) else 0


if __name__ == "__main__":
    sys.exit(main())
