"""tools/parity.py: two ways to train the same runs, compared in pairs."""

import subprocess
import sys

import pytest
from smoke_project import OTHER, ROOT, RUN, smoke_context, train_here


def parity(*folders: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/parity.py", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_pairs_give_a_mean_difference_and_its_interval_and_other_recipes_are_no_pairs(monkeypatch, tmp_path):
    """Two runs each, in float32 as they come and with foreach."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, options in ((one, {}), (two, {"switch_off": ("fused-sgd", "channels-last")})):
        context = smoke_context(monkeypatch, folder)
        assert train_here(context, RUN, OTHER, precision="fp32", **options) == 0
    compared = parity(one, two)
    assert compared.returncode == 0, compared.stderr
    for said in ("first: fp32, resident-data+fused-sgd", "second: fp32, resident-data\n", "n = 2 pairs"):
        assert said in compared.stdout
    same = parity(one, one)
    assert "second − first: +0.00 points, 95 % interval +0.00 to +0.00" in same.stdout.splitlines()[-1]
    (two / "smoke" / f"{RUN}.json").write_text((one / "smoke" / f"{OTHER}.json").read_text())
    assert "different recipes or data" in parity(one, two).stderr
    assert "have no run in common" in parity(one, tmp_path / "nothing").stderr
    assert parity(one).returncode == 2
