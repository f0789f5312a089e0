"""experiments/evidence.sh: what it refuses before it does anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SCRIPT = PROJECT / "experiments" / "evidence.sh"


def evidence(*arguments: object, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
    )


def test_help_says_what_is_done_in_which_order() -> None:
    done = evidence("--help")
    assert done.returncode == 0
    for word in ("--budget", "repro doctor", "repro bench", "which VGG", "seed 0 before seed 1"):
        assert word.lower() in done.stdout.lower()


@pytest.mark.parametrize("budget", ["", "soon", "10", "-1h", "9h 30m"])
def test_a_budget_that_is_no_time_is_a_usage_error(budget: str) -> None:
    done = evidence("--budget", budget) if budget else evidence()
    assert done.returncode == 2
    assert "--budget" in done.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    assert evidence("--budget", "1h", "--nope").returncode == 2
