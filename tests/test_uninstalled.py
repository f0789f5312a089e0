"""A source tree that was never installed, as it lies on a machine without a network."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from smoke_project import ROOT, RUN

from repro.records import read_record


@pytest.fixture
def uninstalled(tmp_path) -> dict[str, str]:
    """An environment with every package of this one, but for this project's own installation."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("repro-", "__editable__", "distutils-precedence")):
            (site / entry.name).symlink_to(entry)
    tree = tmp_path / "tree"  # without the egg-info that an editable installation leaves in the checkout
    for folder in ("repro", "experiments"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tree)
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{site}", "REPRO_ROOT": str(tree)}


def test_a_run_trains_and_leaves_a_record_and_doctor_knows_what_is_required(uninstalled, tmp_path):
    """What a record needs is asked for before the first step, and the project's version is in its source."""

    def repro(*words: object) -> subprocess.CompletedProcess:
        """Runs the command without site-packages."""
        command = [sys.executable, "-S", "-m", "repro", *map(str, words), "--preset", "smoke"]
        where = uninstalled["REPRO_ROOT"]
        return subprocess.run(command, env=uninstalled, cwd=where, capture_output=True, text=True)

    done = repro("train", RUN, "--device", "cpu", "--results", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("seed0.json")
    record = read_record(path, RUN, "smoke")
    assert record is not None
    assert record.provenance.packages.keys() >= {"repro", "torch"}
    checked = repro("doctor", "--quick", "--json")
    findings = {finding["matter"]: finding for finding in json.loads(checked.stdout)}
    assert findings["packages"]["level"] == "ok", checked.stdout + checked.stderr
