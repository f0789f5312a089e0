"""`repro status`: what the disk tells of every run, without touching anything."""

import os
import time
from dataclasses import replace
from pathlib import Path

from pretended_environment import attempt_note, first_runs, make_record, with_row_recipe

from repro.attempts import new_attempt, write_attempt
from repro.cli.context import Context
from repro.cli.status import current_status
from repro.registry import Selection
from repro.signature import data_hash
from repro.storage import FileLock
from repro.worker_note import Phase, RunProgress, new_worker_note

PRESET = "smoke"
RESNET18 = Selection(datasets=("cifar100",), networks=("resnet18",))


def attempt(bench: Context, run, outcome: str, checkpoint: bool = False, worker: str = "") -> None:
    """What an attempt that came to `outcome` leaves behind."""
    folder = new_attempt(bench.project.run(PRESET, run.id))
    steps = {"saved_step": 5, "total_steps": 15}
    write_attempt(folder, attempt_note(outcome, int(folder.name), worker=worker, **steps))
    if checkpoint:
        (folder / "checkpoint-00000005.pt").write_bytes(b"")


def worker_on(bench: Context, run, **changes):
    """The note of a worker, this process unless told otherwise, in the middle of the run's second epoch."""
    note = replace(
        new_worker_note("a sweep", "", "cpu"), phase=Phase.TRAINING, device_name="a bench", **changes
    )
    progress = RunProgress(run.id, 1, "training", 1, 3, 2, 4, 160.0, 2.0, 12.3)
    note = replace(note, runs=(progress,))
    note.write(bench.project.workers(PRESET))
    return note, bench.project.workers(PRESET) / f"{note.name}.json"


def put_record(bench: Context, run, **changes) -> Path:
    """A record that counts: the smoke preset's data are known, so their hash has to fit."""
    record = make_record(bench, run, **changes)
    fingerprint = bench.fingerprints([run])[run.cell.dataset]
    signature = record.signature.model_copy(update={"data": data_hash(fingerprint, record.config)})
    path = bench.project.run(PRESET, run.id).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_copy(update={"signature": signature}).to_json())
    return path


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_every_run_is_in_one_kind_and_nothing_on_disk_changes(bench):
    runs = first_runs(bench, 8)
    put_record(bench, runs[0])
    put_record(bench, runs[1], code="0" * 64)
    attempt(bench, runs[2], "interrupted", checkpoint=True)
    attempt(bench, runs[3], "failed: RuntimeError: boom")
    put_record(bench, runs[4], config_signature="0" * 64)
    put_record(bench, runs[5]).write_text("{")
    attempt(bench, runs[6], "running")  # and nobody works on it
    before = everything(bench.project.results)
    status = current_status(bench, RESNET18)
    assert everything(bench.project.results) == before
    kinds = ("done", "older code", "interrupted", "failed", "other recipe", "damaged", "to do", "running")
    assert status.counts == dict(zip(kinds, (1, 1, 2, 1, 1, 1, 1, 0), strict=True))
    text = status.to_text()
    for line in (
        "8 runs: 1 done, 1 older code, 2 interrupted, 1 failed, 1 other recipe, 1 damaged, 1 to do",
        "no worker is running",
        f"interrupted: {runs[2].id}  resumes from a checkpoint",
        f"interrupted: {runs[6].id}  no checkpoint: it restarts",
        f"failed: {runs[3].id}  RuntimeError: boom",
        f"damaged: {runs[5].id}",
    ):
        assert line in text


def test_a_results_folder_that_does_not_exist_stays_so(bench):
    assert current_status(bench, RESNET18).counts["to do"] == 8
    assert not bench.project.results.exists()


def test_a_run_in_training_is_shown_with_speed_and_time_left_and_silence_is_not_death(bench):
    (run,) = first_runs(bench, 1)
    note, path = worker_on(bench, run)
    attempt(bench, run, "running", worker=note.name)
    # 6 of 12 steps of 32 images are left, at 160 images/s.
    line = f"running: {run.id}  epoch 2/3  160 images/s  12.3 %  1.2s left"
    assert (
        f"worker {os.getpid()} on {note.host} (a bench), training: {run.id}\n{line}\n"
        in current_status(bench, RESNET18).to_text()
    )
    assert "12.3 %  2.4s left" in current_status(with_row_recipe(bench, batch_size=64), RESNET18).to_text()
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert f"{line}  no sign of life for 1h 00m" in current_status(bench, RESNET18).to_text()
    replace(note, death="killed by SIGKILL").write(path.parent)
    assert current_status(bench, RESNET18).counts["running"] == 0


def test_a_worker_of_another_machine_is_shown_as_one_of_which_nobody_here_can_tell(bench):
    (run,) = first_runs(bench, 1)
    note, _ = worker_on(bench, run, host="elsewhere", name="elsewhere-1-1")
    attempt(bench, run, "running", worker=note.name)
    status = current_status(bench, RESNET18)
    assert status.counts["running"] == 1
    assert "on another machine, so it is unknown here whether it is alive" in status.to_text()
    replace(note, phase=Phase.ENDED).write(bench.project.workers(PRESET))
    assert "no worker is running" in current_status(bench, RESNET18).to_text()


def test_a_dead_workers_run_is_interrupted(bench):
    (run,) = first_runs(bench, 1)
    note, _ = worker_on(bench, run, started=1)  # this process's pid, but not its start
    attempt(bench, run, "running", worker=note.name)
    status = current_status(bench, RESNET18)
    assert (status.counts["interrupted"], status.workers) == (1, ())


def test_a_run_whose_lock_is_held_is_running_and_its_lock_is_not_touched(bench):
    (run,) = first_runs(bench, 1)
    attempt(bench, run, "running")
    with FileLock(bench.project.run(PRESET, run.id).lock) as lock:
        assert lock.acquire()
        assert current_status(bench, RESNET18).counts["running"] == 1
    assert current_status(bench, RESNET18).counts["interrupted"] == 1
