"""experiments/evidence.sh: what it refuses before it does anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from smoke_project import ROOT


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "seed 0 before seed 1"),
        ([], 2, "--budget"),
        *((["--budget", budget], 2, "--budget") for budget in ("soon", "10", "-1h", "9h 30m")),
        (["--budget", "1h", "--nope"], 2, "--nope"),
    ],
)
def test_a_budget_that_is_no_time_or_an_unknown_option_is_a_usage_error(arguments, code, says) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [ROOT / "experiments" / "evidence.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == code
    assert says.lower() in (done.stdout + done.stderr).lower()
