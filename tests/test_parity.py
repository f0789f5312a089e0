"""Two ways to train the same runs, compared in pairs."""

import subprocess
import sys

import pytest
from smoke_project import OTHER, ROOT, RUN, smoke_context, train_here

from repro.errors import UsageError


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from parity import compare

    return compare


@pytest.fixture
def two_ways(monkeypatch, tmp_path):
    """Two runs each, in float32 as they come and with foreach."""
    for name, options in (("one", {}), ("two", {"switch_off": ("fused-sgd", "channels-last")})):
        context = smoke_context(monkeypatch, tmp_path / name)
        assert train_here(context, RUN, OTHER, precision="fp32", **options) == 0
    return tmp_path / "one", tmp_path / "two"


def test_pairs_give_a_mean_difference_and_its_interval_and_say_how_each_was_made(compare, two_ways):
    parity = compare(*two_ways)
    assert [one.run for one, _ in parity.pairs] == sorted([RUN, OTHER])
    text = "\n".join(parity.lines())
    assert "first: fp32, resident-data+fused-sgd" in text
    assert "second: fp32, resident-data\n" in text
    assert "n = 2 pairs" in text
    same = compare(two_ways[0], two_ways[0])
    assert same.differences == [0.0, 0.0]
    assert same.lines()[-1].startswith("second − first: +0.00 points, 95 % interval +0.00 to +0.00")


def test_runs_of_other_recipes_are_no_pairs(compare, two_ways, tmp_path):
    first, second = two_ways
    files = [folder / "smoke" / f"{RUN}.json" for folder in (first, second)]
    other = first / "smoke" / f"{OTHER}.json"
    files[1].write_text(other.read_text())
    with pytest.raises(UsageError, match="different recipes or data"):
        compare(first, second)
    with pytest.raises(UsageError, match="have no run in common"):
        compare(first, tmp_path / "nothing")


def test_the_command_prints_it_and_tells_of_a_wrong_use(two_ways):
    command = [sys.executable, "tools/parity.py", *map(str, two_ways)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "second − first" in done.stdout
    assert subprocess.run(command[:-1], cwd=ROOT, capture_output=True).returncode == 2
