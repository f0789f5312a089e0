"""`repro run --executor slurm` and `--executor ray`: what was asked for, as an executor and its slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from repro.cli.context import Context
from repro.errors import UsageError
from repro.scheduling.executors.base import Executor
from repro.scheduling.slots import Slot, remote_slots

SLURM_JOBS = 16
"""Jobs in Slurm's queue at once, unless --jobs says how many."""


@dataclass(frozen=True)
class ClusterOptions:
    """What a job asks of the cluster; None leaves it to the cluster.

    `jobs` are in flight at once. `job_gpus` is 0, a whole number, or for Ray a fraction of one GPU.
    """

    jobs: int | None = None
    job_gpus: float = 1.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    memory: str | None = None
    gres: str | None = None
    sbatch: tuple[str, ...] = ()
    ray_address: str = "auto"


def open_cluster(
    kind: Literal["slurm", "ray"], context: Context, options: ClusterOptions
) -> tuple[Executor, tuple[Slot, ...]]:
    """The executor and one slot for each job in flight.

    Raises UsageError for an option that the executor does not have, SetupError where the cluster is out of
    reach or its software is not installed.
    """
    return _slurm(context, options) if kind == "slurm" else _ray(context, options)


def _slurm(context: Context, options: ClusterOptions) -> tuple[Executor, tuple[Slot, ...]]:
    from repro.scheduling.executors.slurm import SlurmExecutor, SlurmRequest

    if options.ray_address != "auto":
        raise UsageError("--ray-address belongs to --executor ray")
    gres = options.gres
    if gres is None and options.job_gpus:
        if options.job_gpus != int(options.job_gpus):
            raise UsageError(
                f"--job-gpus {options.job_gpus:g}: Slurm shares a GPU by shards; ask for them as the cluster "
                "counts them, as in --gres shard:2"
            )
        gres = f"gpu:{options.job_gpus:.0f}"
    request = SlurmRequest(
        cores=context.preset.threads,
        gres=gres,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        time=options.time,
        memory=options.memory,
        extra=_sbatch_options(options.sbatch),
    )
    executor = SlurmExecutor(context.project.work(context.preset.name) / "slurm", request)
    name = f"Slurm, {options.partition}" if options.partition else "Slurm"
    device: Literal["cuda", "cpu"] = "cuda" if gres else "cpu"
    jobs = options.jobs or SLURM_JOBS
    return executor, remote_slots("slurm", jobs, name, device, context.preset.threads)


def _ray(context: Context, options: ClusterOptions) -> tuple[Executor, tuple[Slot, ...]]:
    from repro.scheduling.executors.ray import RayExecutor, RayRequest

    given = {
        name: getattr(options, name) for name in ("partition", "account", "qos", "time", "gres", "sbatch")
    }
    if foreign := [name for name, value in given.items() if value] + ["mem"] * bool(options.memory):
        raise UsageError(f"--{foreign[0]} belongs to --executor slurm")
    gpus = options.job_gpus
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--job-gpus {gpus:g}: Ray gives a fraction of one GPU, or whole ones")
    executor = RayExecutor(RayRequest(context.preset.threads, gpus), options.ray_address)
    jobs = options.jobs or max(1, executor.room())
    co_tenants = round(1 / gpus) - 1 if 0 < gpus < 1 else 0
    device: Literal["cuda", "cpu"] = "cuda" if gpus else "cpu"
    return executor, remote_slots("ray", jobs, "Ray", device, context.preset.threads, co_tenants)


def _sbatch_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """`constraint=a100`, `exclusive` as options of sbatch by name."""
    options: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        if not name:
            raise UsageError(f"--sbatch: expected an option of sbatch such as constraint=a100, got {text!r}")
        options[name] = value if equals else True
    return options
