"""How jobs reach Slurm: what each asks for, and sbatch through submitit."""

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repro.commit import make_folder
from repro.errors import SetupError
from repro.scheduling.executors.slurm_node import NodeSide
from repro.scheduling.executors.slurm_queue import last_words

WARNING_SECONDS = 90
"""How long before the time limit a job is warned, to write its checkpoint."""

LARGEST_ARRAY = 1000
"""Slurm's own limit on an array (MaxArraySize) is 1001 unless its administrator changed it."""


@dataclass(frozen=True)
class SlurmRequest:
    """What every job asks of Slurm; None leaves it to the cluster. `extra` are further options of sbatch.

    `gres` as in `gpu:1` or `shard:2`; `time` and `memory` as sbatch writes them (`4:00:00`, `16G`).
    """

    cores: int = 1
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    memory: str | None = None
    extra: Mapping[str, str | bool] = field(default_factory=dict)

    def options(self) -> dict[str, str | bool]:
        """The options of sbatch, by name."""
        options: dict[str, str | bool | None] = {
            "cpus-per-task": str(self.cores),
            "gres": self.gres,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.time,
            "mem": self.memory,
            # A job that Slurm puts back is the same command again: it skips what is done and resumes.
            "requeue": True,
            "signal": f"USR1@{WARNING_SECONDS}",
            **self.extra,
        }
        return {name: value for name, value in options.items() if value is not None}


class SlurmSubmission:
    """Submits what is to run on nodes; its scripts and submitit's own files lie in `folder`.

    Raises SetupError where submitit or Slurm is missing.
    """

    def __init__(self, folder: Path, request: SlurmRequest) -> None:
        try:
            from submitit.slurm.slurm import SlurmExecutor as Submitit
        except ImportError:
            raise SetupError("--executor slurm needs submitit: pip install '.[slurm]'") from None
        missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            raise SetupError(f"no {missing[0]} on PATH: run this on a login node of the Slurm cluster")
        make_folder(folder)
        executor = Submitit(folder)
        executor.update_parameters(
            job_name="repro",
            # The partition's own limit, unless `options` say another: submitit would ask for five minutes.
            time=None,
            wckey=None,
            additional_parameters=request.options(),
            # submitit's handler would put jobs back by itself; it is left to a signal that nobody sends.
            setup=["export SUBMITIT_PREEMPT_SIGNAL=URG"],
        )
        self._submitit = executor

    def send(self, sides: Sequence[NodeSide]) -> list[str]:
        """The id of each in Slurm, several as one array; SetupError with sbatch's words if it refuses."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        complaints = io.StringIO()
        try:
            # submitit prints what sbatch says; here it becomes the error.
            with contextlib.redirect_stderr(complaints):
                if len(sides) == 1:
                    return [self._submitit.submit(sides[0]).job_id]
                with self._submitit.batch():
                    sent = [self._submitit.submit(side) for side in sides]
                return [job.job_id for job in sent]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            words = last_words(complaints.getvalue()) or last_words(str(error))
            raise SetupError(f"sbatch does not take the jobs: {words}{_advice(words)}") from None


def _advice(words: str) -> str:
    lower = words.lower()
    if "partition" in lower:
        return "; `sinfo` lists the partitions"
    if "account" in lower or "qos" in lower:
        return "; `sacctmgr show associations user=$USER` lists yours, --account and --qos choose"
    return ""
