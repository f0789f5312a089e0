"""`repro run` as a process that trains for real, here or on a cluster, and what the tests ask of it."""

import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
from smoke_project import Context, repro, smoke_context, start, wait_for

from repro.attempts import AttemptNote, read_attempts
from repro.records import read_record
from repro.worker_note import WorkerNote, read_worker_notes

LOSSES = ("cross-entropy", "am-softmax-s7.5-m0.35", "am-softmax-s10-m0.5", "pedcc-s7.5-m0.35")  # as trained
SHORT, LONG, ENDLESS = 4, 20, 20_000  # epochs: a second, some seconds, until it is stopped


class RealSweep:
    """A sweep over the first `count` runs of the smoke preset's ResNet-18 column, each `epochs` long."""

    def __init__(self, folder: Path, count: int, epochs: int, *options: str, environment=None) -> None:
        losses = LOSSES[:count]
        self.context: Context = smoke_context(None, folder / "results")
        self.runs = [f"cifar100/resnet18/{loss}+epochs={epochs}/seed0" for loss in losses]
        self.words = ["run", "--preset", "smoke", "--table", "1", "--network", "resnet18"]
        self.words += [word for loss in losses for word in ("--loss", loss)]
        self.words += ["--set", f"epochs={epochs}", "--results", str(folder / "results"), *options]
        self.environment = environment
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Starts the same command, after its end once more."""
        self.log = self._folder / f"stderr.{len(list(self._folder.glob('stderr.*')))}"
        with self.log.open("w") as log:
            self.process: subprocess.Popen = start(
                *self.words, stderr=log, stdout=subprocess.DEVNULL, environment=self.environment
            )

    @property
    def said(self) -> str:
        """What the user saw."""
        return self.log.read_text()

    def end(self, code: int) -> str:
        """Waits for this exit code; what the user saw."""
        try:
            ended = self.process.wait(180)
        except subprocess.TimeoutExpired:
            ended = None
        assert ended == code, self.said
        return self.said

    def wait_until_says(self, text: str) -> None:
        wait_for(lambda: text in self.said, lambda: f"{text!r} to be said; so far: {self.said}")

    def notes(self) -> list[WorkerNote]:
        """Of all workers that have not ended."""
        return [note for note in read_worker_notes(self.context.project.workers("smoke")) if note.is_alive]

    def wait_until_training(self, *runs: str) -> list[WorkerNote]:
        """Until each run (all of them, if none is named) has got past its first epoch; their workers."""

        def training() -> list[WorkerNote] | None:
            at_work = {each.run: note for note in self.notes() for each in note.runs if each.epoch}
            wanted = set(runs or self.runs)
            return [at_work[run] for run in wanted] if wanted <= at_work.keys() else None

        return wait_for(training, lambda: f"{runs or self.runs} to train; so far: {self.said}")

    def attempts(self, run: str) -> list[AttemptNote]:
        return list(read_attempts(self.context.project.run("smoke", run)))

    def outcomes(self) -> list[list[str]]:
        """How each attempt at each run ended, without the reasons."""
        return [[str(note.kind) for note in self.attempts(run)] for run in self.runs]

    def repro(self, command: str, *words: str) -> str:
        """Standard output of another command on the same results."""
        results = str(self.context.project.results)
        return repro(command, *words, "--preset", "smoke", "--results", results, check=0).stdout

    def workers(self) -> list[psutil.Process]:
        """The processes that train into the results."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if {"train", str(self.context.project.results)} <= set(words) and "python" in words[0]:
                    found.append(process)
        return found

    def assert_nothing_lost_or_duplicated(self) -> None:
        """Each run has one valid record, none was set aside, and no process trains on."""
        project = self.context.project
        for run in self.runs:
            paths = project.run("smoke", run)
            assert read_record(paths.record, run, "smoke") is not None, f"{run} is lost"
            assert not paths.superseded.exists()
            assert not paths.quarantine.exists()
            assert [note.kind for note in self.attempts(run)].count("done") == 1
        found = {
            each for each in project.preset_results("smoke").rglob("seed*.json") if ".work" not in each.parts
        }
        assert found == {project.run("smoke", run).record for run in self.runs}
        wait_for(lambda: not self.workers(), "the workers to end", 10)


def clean_up(sweep: RealSweep) -> None:
    """After a test, passed or not: nothing of it goes on."""
    if sweep.process.poll() is None:
        sweep.process.send_signal(signal.SIGKILL)
        sweep.process.wait()
    for worker in sweep.workers():
        with suppress(psutil.NoSuchProcess):
            worker.kill()
