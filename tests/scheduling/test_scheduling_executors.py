"""Executors: how a worker is started, asked to stop, and ended; which options a cluster takes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from smoke_project import ROOT, repro, wait_for

from repro.errors import SetupError
from repro.scheduling.devices import Device
from repro.scheduling.executor import JobEnd, LocalExecutor, WorkerJob
from repro.scheduling.slurm import sbatch_options

CHILD = "import os, pathlib, subprocess, sys; p = subprocess.Popen(['sleep', '600']); "
CHILD += "pathlib.Path('new').write_text(str(p.pid)); os.rename('new', 'child'); "


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Starts Python code as a worker in a folder of its own; the executor and the job."""
    monkeypatch.chdir(tmp_path)

    def start(code: str, program: str = sys.executable, **environment: str):
        device = Device("cpu", 0, "a processor", None, 2**30, 1, {})
        job = WorkerJob("1", (program, "-c", code), environment, tmp_path / "logs" / "1.log", device)
        executor = LocalExecutor()
        executor.start([job])
        return executor, job

    return start


def end_of(executor, job) -> JobEnd:
    return wait_for(lambda: executor.poll(job), "the job's end", 30)


def test_a_process_gets_its_environment_and_writes_to_its_log(run):
    executor, job = run(
        "import os, sys; print(os.environ['COLOUR'], os.environ['REPRO_DIE_WITH_PARENT'], os.getsid(0) =="
        " os.getpid()); print('to stderr', file=sys.stderr); sys.exit(7)",
        COLOUR="blue",
    )
    assert end_of(executor, job) == JobEnd(7)
    assert job.log.read_text() == f"blue {os.getpid()} True\nto stderr\n"


@pytest.mark.parametrize(("urgency", "number"), [("drain", signal.SIGUSR2), ("now", signal.SIGTERM)])
def test_a_request_reaches_the_process_as_a_signal(run, urgency, number):
    executor, job = run(
        f"import pathlib, signal, sys; signal.signal({number}, lambda *_: sys.exit(75))\n"
        "pathlib.Path('ready').touch(); signal.pause()"
    )
    wait_for(Path("ready").exists, "the process to be ready")
    assert executor.poll(job) is None
    executor.stop(job, urgency)
    assert end_of(executor, job) == JobEnd(75)
    executor.stop(job, urgency)  # of one that has ended: nothing


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_leaves_no_child_behind_killed_or_ended(run, killed):
    executor, job = run(CHILD + ("p.wait()" if killed else "p.returncode = 0"))
    child = psutil.Process(int(wait_for(Path("child").exists, "the child") and Path("child").read_text()))
    if killed:
        executor.kill(job)
    assert end_of(executor, job) == (JobEnd(-9, "killed by SIGKILL") if killed else JobEnd(0))
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end", 10)
    executor.kill(job)


def test_a_kill_by_the_kernels_oom_killer_is_told_from_any_other(run):
    """A real one, in a memory cgroup of 64 MiB."""
    roots = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
    root = next(
        (each for each in roots if (each / "cgroup.procs").exists() and os.access(each, os.W_OK)), None
    )
    if root is None:
        pytest.skip("no memory cgroup can be made here")
    group = root / f"repro-test-oom-{os.getpid()}"
    try:
        group.mkdir()
        limits = (group / name for name in ("memory.limit_in_bytes", "memory.max"))
        next(limit for limit in limits if limit.exists()).write_text(str(64 << 20))
        subprocess.run(["sh", "-c", f"echo $$ > {group}/cgroup.procs"], check=True, stderr=subprocess.DEVNULL)
    except (OSError, StopIteration, subprocess.CalledProcessError):
        pytest.skip("no process can be put into a memory cgroup here")
    executor, job = run(
        f"open('{group}/cgroup.procs', 'w').write('0'); import time; time.sleep(0.1); x = bytearray(500 << 20)"
    )
    assert "the kernel's OOM killer" in end_of(executor, job).death
    group.rmdir()


def test_a_program_that_is_not_there_is_an_error_that_names_it(run):
    with pytest.raises(SetupError, match="cannot start /no/such/python"):
        run("", program="/no/such/python")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("ray --partition gpu", 2, "--partition belongs to --executor slurm"),
        ("ray --mem 16G", 2, "--mem belongs to --executor slurm"),
        ("ray --job-gpus 1.5", 2, "a fraction of one GPU, or whole ones"),
        ("slurm --ray-address a:1", 2, "--ray-address belongs to --executor ray"),
        ("slurm --job-gpus 0.5", 2, "--gres shard:2"),
        ("slurm --sbatch =x", 2, "constraint=a100"),
        ("slurm --gpus 0", 2, "--job-gpus or --gres"),
        ("slurm --budget 1h", 2, "a cluster's job has --time"),
        ("local --jobs 4", 2, "need --executor slurm or --executor ray"),
        ("slurm", 3, "no sbatch on PATH: run this on a login node"),
        ("ray", 3, "needs Ray: pip install '.[ray]'"),
    ],
)
def test_what_an_executor_does_not_take_is_refused_in_one_line(tmp_path, options, code, words):
    (tmp_path / "ray.py").write_text("raise ImportError('no Ray')")
    environment = {"PATH": "", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = repro("run", "--preset", "smoke", "--results", tmp_path, "--executor", *options.split(),
                 check=code, environment=environment)  # fmt: skip
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_the_user_says_last_goes_to_sbatch():
    asked = {"gres": "gpu:1", "qos": None, "time": "4:00:00", "signal": "USR1@300", "exclusive": True}
    expected = "--cpus-per-task=2 --requeue --signal=USR1@300 --gres=gpu:1 --time=4:00:00 --exclusive"
    assert sbatch_options(2, asked) == expected.split()
