"""A Slurm of two nodes on this machine for as long as a test needs it: daemons, keys and state in one folder.

Nothing of the system's own Slurm or munge is used or changed; the daemons run as root, as Slurm wants it.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
_PATIENCE = 60.0


class CannotStartError(Exception):
    """Why there is no Slurm here."""


@dataclass
class SlurmCluster:
    """The daemons; `environment` is what Slurm's commands need to find them."""

    folder: Path
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    ports: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def start(self) -> None:
        """Starts munged, slurmctld and a slurmd a node, and waits until both nodes are idle."""
        missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
        if missing:
            raise CannotStartError(f"Slurm is not installed here: no {', '.join(missing)}")
        if os.geteuid() != 0:
            raise CannotStartError("Slurm's daemons start processes of any user, so they need root")
        self.ports = _free_ports(1 + len(NODES))
        self._write_configuration()
        self.start_daemon("munged")
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged to answer")
        self.start_daemon("slurmctld")
        self._wait(self.answers, "slurmctld to answer")
        for node in NODES:
            self.start_daemon(node)
        self._wait(lambda: self.node_states() == dict.fromkeys(NODES, "idle"), "both nodes to be idle")

    def start_daemon(self, name: str) -> None:
        """Starts `munged`, `slurmctld` or the slurmd of a node."""
        ends = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={self.folder / f'munge.{end}'}" for option, end in ends.items()]
        commands = {
            "munged": ["munged", "--foreground", "--force", *options],
            "slurmctld": ["slurmctld", "-D"],
        }
        command = commands.get(name, ["slurmd", "-D", "-N", name])
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            environment = {**os.environ, **self.environment}
            self.processes[name] = subprocess.Popen(
                command, env=environment, start_new_session=True, **streams
            )

    def restart_controller(self) -> None:
        """Starts slurmctld again, and waits until it knows both nodes."""
        self.start_daemon("slurmctld")
        self._wait(self.answers, "slurmctld to answer")
        # An asterisk marks a node that does not answer yet.
        silent = re.compile(r"down|unk|.*\*$")
        self._wait(lambda: not any(map(silent.match, self.node_states().values())), "both nodes to answer")

    def kill_daemon(self, name: str) -> None:
        """SIGKILL, as when its machine dies."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Cancels every job and ends the daemons."""
        if self.processes.get("slurmctld"):
            self.command("scancel", "--quiet", "--user=root", check=False)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and self.command("squeue", "--noheader", check=False).strip():
                time.sleep(0.2)
        for name in reversed(list(self.processes)):
            process = self.processes[name]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill_daemon(name)
        self.processes.clear()

    def command(self, *words: str, check: bool = True) -> str:
        """The standard output of one of Slurm's commands."""
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 60}
        done = subprocess.run(words, env={**os.environ, **self.environment}, **options)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def answers(self) -> bool:
        return "UP" in self.command("scontrol", "ping", check=False)

    def node_states(self) -> dict[str, str]:
        lines = self.command("sinfo", "--Node", "--noheader", "--format=%N %t").split("\n")
        return dict(line.split() for line in lines if line)

    def node_of(self, job: str) -> str:
        return self.command("squeue", "--noheader", "--format=%N", "--job", job).strip()

    def set_node(self, node: str, state: str) -> None:
        """Takes a node `down`, or makes it `resume`."""
        words = (f"nodename={node}", f"state={state}", *(["reason=test"] if state == "down" else []))
        self.command("scontrol", "update", *words, check=state == "down")

    def jobs(self) -> dict[str, str]:
        """Every job or array task in the queue with its state."""
        lines = self.command("squeue", "--array", "--noheader", "--format=%i %T").split("\n")
        return dict(line.split() for line in lines if line)

    def _write_configuration(self) -> None:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        devices = zip(NODES, ("/dev/null", "/dev/zero"), strict=True)
        gres = "NodeName={0} Name=gpu File={1}\nNodeName={0} Name=shard Count=4\n"
        (self.folder / "gres.conf").write_text("".join(gres.format(*each) for each in devices))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        nodes = "".join(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            "RealMemory=1000 Gres=gpu:1,shard:4 State=UNKNOWN\n"
            for node, port in zip(NODES, self.ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(folder=self.folder, host=socket.gethostname(), port=self.ports[0]) + nodes
        )

    def _wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                files = sorted((self.folder / "log").iterdir())
                logs = "\n".join(path.read_text(errors="replace")[-500:] for path in files)
                why = f"{', '.join(dead)} ended" if dead else f"waited {_PATIENCE:g} s in vain for {what}"
                raise CannotStartError(f"Slurm does not start here: {why}\n{logs}")
            time.sleep(0.1)


_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=30
MessageTimeout=5
GresTypes=gpu,shard
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def _free_ports(count: int) -> tuple[int, ...]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
