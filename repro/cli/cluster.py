"""What a job asks of Slurm or Ray: the options of `repro run`, and the executor that they make."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.options import ClusterOption
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.scheduling.devices import Device
    from repro.scheduling.executor import Executor

PerGpu = int | Literal["auto"]
SLURM_JOBS = 16  # in Slurm's queue at once, unless --jobs says how many


@dataclass(frozen=True)
class ClusterOptions:
    """What each job asks of the cluster; None leaves it to the cluster.

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


option = partial(click.option, cls=ClusterOption)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a job asks of Slurm or Ray, and hands over ClusterOptions."""

    @option("--jobs", type=click.IntRange(min=1), metavar="N", help="at once")
    @option("--job-gpus", type=click.FloatRange(min=0), default=1.0, metavar="N", help="per job; 0: CPU")
    @option("--ray-address", default="auto", metavar="HOST:PORT")
    @option("--partition", metavar="NAME")
    @option("--account", metavar="NAME")
    @option("--qos", metavar="NAME")
    @option("--time", metavar="LIMIT", help="per job: 4:00:00")
    @option("--mem", "memory", metavar="SIZE", help="16G")
    @option("--gres", metavar="LIST", help="gpu:a100:1")
    @option("--sbatch", multiple=True, metavar="OPTION[=VALUE]", help="any other")
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        asked = {each.name: options.pop(each.name) for each in fields(ClusterOptions)}
        return command(*args, cluster=ClusterOptions(**asked), **options)

    return wrapped


def local(
    context: "Context", asked: ClusterOptions, gpus: str | None, per_gpu: PerGpu
) -> "tuple[Executor, tuple[Device, ...]]":
    """This machine's executor and devices; UsageError for options of a cluster."""
    from repro.gpus import parse_gpus
    from repro.scheduling.devices import find_devices
    from repro.scheduling.executor import LocalExecutor

    if asked != ClusterOptions():
        raise UsageError("--jobs and the cluster options of --help need --executor slurm or --executor ray")
    return LocalExecutor(), find_devices(context.preset.threads, gpus=parse_gpus(gpus), per_gpu=per_gpu)


def slurm(context: "Context", asked: ClusterOptions) -> "tuple[Executor, tuple[Device, ...]]":
    """Slurm's executor, and room for each job in flight; UsageError for options of Ray."""
    from repro.scheduling.devices import remote_devices
    from repro.scheduling.slurm import SlurmExecutor, SlurmRequest

    if asked.ray_address != "auto":
        raise UsageError("--ray-address belongs to --executor ray")
    gres = asked.gres
    if gres is None and asked.job_gpus:
        if asked.job_gpus != int(asked.job_gpus):
            raise UsageError(
                f"--job-gpus {asked.job_gpus:g}: Slurm shares a GPU by shards; ask for them as the cluster "
                "counts them, as in --gres shard:2"
            )
        gres = f"gpu:{asked.job_gpus:.0f}"
    request = SlurmRequest(
        cores=context.preset.threads,
        gres=gres,
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        time=asked.time,
        memory=asked.memory,
        extra=_sbatch_options(asked.sbatch),
    )
    folder = context.project.work(context.preset.name)
    jobs = asked.jobs or SLURM_JOBS
    # Of one results folder: its jobs are found again by a later supervisor, and nobody else's.
    name = f"repro-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    executor = SlurmExecutor(folder / "slurm", request, name, jobs)
    kind: Literal["cuda", "cpu"] = "cuda" if gres else "cpu"
    shown = f"Slurm, {asked.partition}" if asked.partition else "Slurm"
    return executor, remote_devices("slurm", jobs, shown, kind, context.preset.threads)


def ray(context: "Context", asked: ClusterOptions) -> "tuple[Executor, tuple[Device, ...]]":
    """Ray's executor, and room for each job in flight; UsageError for options of Slurm."""
    from repro.scheduling.devices import remote_devices
    from repro.scheduling.ray import RayExecutor

    given = {name: getattr(asked, name) for name in ("partition", "account", "qos", "time", "gres", "sbatch")}
    if foreign := [name for name, value in given.items() if value] + ["mem"] * bool(asked.memory):
        raise UsageError(f"--{foreign[0]} belongs to --executor slurm")
    gpus = asked.job_gpus
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--job-gpus {gpus:g}: Ray gives a fraction of one GPU, or whole ones")
    executor = RayExecutor(context.preset.threads, gpus, asked.ray_address)
    jobs = asked.jobs or max(1, executor.capacity())
    kind: Literal["cuda", "cpu"] = "cuda" if gpus else "cpu"
    at_once = round(1 / gpus) if 0 < gpus < 1 else 1
    return executor, remote_devices("ray", jobs, "Ray", kind, context.preset.threads, at_once)


def _sbatch_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """`constraint=a100`, `exclusive` as options of sbatch by name."""
    options: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        if not name:
            raise UsageError(f"--sbatch: expected an option of sbatch such as constraint=a100, got {text!r}")
        options[name] = value if equals else True
    return options
