"""A machine of stand-ins for the tests of run_all.sh: Python, pip, nvidia-smi and repro.

The stand-in for Python (REPRO_PYTHON) logs what it is asked, "makes" an environment by copying itself and
the stand-in for repro, and hands everything else to the real Python.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from smoke_project import wait_for

SETS = ("cifar100", "tiny-imagenet", "facescrub")
PROJECT = Path(__file__).resolve().parent.parent

PYTHON = """#!/bin/sh
case "$1 $2 $3" in
  "-m venv "*)
    echo "venv" >> "$FAKE/log"
    mkdir -p "$3/bin" && cp "$FAKE/python" "$3/bin/python" && cp "$FAKE/repro" "$3/bin/repro" ;;
  "-m pip "*)
    echo "pip $*" >> "$FAKE/log"
    [ ! -e "$FAKE/pip-hangs" ] || { touch "$FAKE/pip-started"; exec sleep 60; }
    [ ! -e "$FAKE/pip-fails" ] || { echo "ERROR: no matching distribution found for torch"; exit 1; } ;;
  "-P - ")  # the one program without arguments: the kernel on every GPU
    echo "kernel" >> "$FAKE/log"
    [ ! -e "$FAKE/kernel-fails" ] || { echo "torch 9.9 finds no CUDA device" >&2; exit 1; } ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""

REPRO = """#!/bin/sh
echo "repro $*" >> "$FAKE/log"
case "$*" in
  "data list"*) cat "$FAKE/states"; exit 0 ;;
  aggregate*--output*) exit 0 ;;
  aggregate*) echo "| a table |"; exit 0 ;;
  plan*) echo "the plan" ;;
esac
while read -r code pattern; do
  case "$*" in
    $pattern)
      if [ "$code" = wait ]; then
        trap 'echo signalled >> "$FAKE/log"; sleep 0.3; exit 75' INT TERM
        touch "$FAKE/waiting"
        while :; do sleep 0.05; done
      fi
      exit "$code" ;;
  esac
done < "$FAKE/answers"
"""


@dataclass
class Machine:
    """A clone of the project on a machine of stand-ins."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.fake = self.folder / "fake"
        self.clone = self.folder / "clone"
        self.venv = self.clone / ".venv"
        binaries = self.fake / "bin"
        binaries.mkdir(parents=True)
        self.clone.mkdir()
        for name in ("run_all.sh", "setup.cfg", "pyproject.toml"):
            shutil.copy(PROJECT / name, self.clone / name)
        shutil.copytree(PROJECT / "experiments", self.clone / "experiments")
        executable(self.fake / "python", PYTHON)
        executable(self.fake / "repro", REPRO)
        self.answers()
        self.data(*SETS)
        self.gpus()
        ours = ("REPRO_", "CUDA_", "GIT_", "PIP_")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        path = {"PATH": f"{binaries}:{os.environ['PATH']}", "FAKE": str(self.fake)}
        python = {"REAL_PYTHON": sys.executable, "REPRO_PYTHON": str(self.fake / "python")}
        self.environment = {**inherited, **path, **python}

    def gpus(self, *capabilities: str, fails: bool = False) -> None:
        """Makes nvidia-smi print `capabilities`; without any, say that there is no device."""
        lines = [f"echo {capability}" for capability in capabilities]
        if fails:
            lines = ["echo 'NVIDIA-SMI has failed because it could not reach the driver.'", "exit 9"]
        elif not capabilities:
            lines = ["echo 'No devices were found'", "exit 6"]
        executable(self.fake / "bin" / "nvidia-smi", "\n".join(["#!/bin/sh", *lines, ""]))

    def answers(self, *lines: str) -> None:
        """`CODE PATTERN` for each repro command that is to end otherwise than with 0."""
        (self.fake / "answers").write_text("".join(f"{line}\n" for line in lines))

    def data(self, *prepared: str) -> None:
        """Makes these data sets the ones that are prepared."""
        states = [
            {"name": name, "state": "prepared", "detail": ""}
            if name in prepared
            else {"name": name, "state": "missing", "detail": f"nobody has {name}"}
            for name in SETS
        ]
        (self.fake / "states").write_text(json.dumps(states))

    def flag(self, name: str) -> None:
        """Switches on one of the stand-ins' faults."""
        (self.fake / name).touch()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """./run_all.sh with the arguments, to its end."""
        command = [self.clone / "run_all.sh", *arguments]
        options = {"cwd": self.folder, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(command, env={**self.environment, **environment}, **options)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """./run_all.sh in a process group of its own, as a terminal starts it.

        A suite that runs in the background inherits an ignored SIGINT, which no shell can trap again.
        """
        command = ["env", "--default-signal=INT", self.clone / "run_all.sh", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.folder}
        return subprocess.Popen(command, env=self.environment, start_new_session=True, **options)

    def await_file(self, name: str) -> None:
        """Waits for a stand-in to say how far it is."""
        wait_for((self.fake / name).exists, lambda: f"{name}: {self.log()}", 20)

    def log(self, start: str = "") -> list[str]:
        """What the stand-ins were asked, lines that begin with `start`."""
        path = self.fake / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(start)]

    def supply(self, *records: str) -> Path:
        """Commits records of one cell, as if they had come with the clone; their folder."""
        for record in records:
            path = self.clone / "results" / record
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        git = ["git", "-C", str(self.clone), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        for words in (["init", "-q"], ["add", "results"], ["commit", "-qm", "records"]):
            subprocess.run([*git, *words], check=True)
        return path.parent


def executable(path: Path, text: str) -> None:
    """Writes a program."""
    path.write_text(text)
    path.chmod(0o755)
