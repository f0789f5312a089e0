"""A source tree that was never installed, as it lies on a machine without a network; and an installed wheel."""

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
def packages(tmp_path) -> Path:
    """A folder with every installed package, but for this project's own installation."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("repro-", "__editable__", "distutils-precedence")):
            (site / entry.name).symlink_to(entry)
    return site


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the source, without what an installation leaves in the checkout."""
    made = tmp_path / "tree"
    for folder in ("repro", "experiments"):
        shutil.copytree(ROOT / folder, made / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, made)
    return made


@pytest.fixture
def uninstalled(packages, tree) -> dict[str, str]:
    """The environment of the tree."""
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{packages}", "REPRO_ROOT": str(tree)}


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


def test_an_installed_wheel_trains_the_paper_in_an_empty_folder(packages, tree, tmp_path, monkeypatch):
    """It has every module and the experiments; records go to the folder it is called in."""
    pytest.importorskip("setuptools", minversion="70.1", reason="builds wheels by itself from 70.1 on")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    build = ["-c", "from setuptools.build_meta import build_wheel; build_wheel('wheels')"]
    subprocess.run([sys.executable, *build], cwd=tree, check=True, capture_output=True)
    (wheel,) = (tree / "wheels").glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    subprocess.run(["git", "init", "--quiet", empty], check=True)  # somebody's repository: not the code's
    commit = ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "--allow-empty", "--message", "x"]
    subprocess.run(["git", "-C", empty, *commit], check=True, capture_output=True)
    modules = {path.relative_to(tree) for path in (tree / "repro").rglob("*.py")}
    assert {path.relative_to(installed) for path in (installed / "repro").rglob("*.py")} == modules
    monkeypatch.delenv("REPRO_ROOT", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{packages}")

    def repro(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-S", "-m", "repro", *words, "--preset", "smoke"]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True)

    plan = repro("plan")
    assert (plan.returncode, "72 cells, 72 runs: 0 done" in plan.stdout) == (0, True), plan.stderr
    assert (
        f"using the paper's in {installed}/repro/paper_experiments; results go to {empty}/results"
        in plan.stderr
    )
    done = repro("train", RUN, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    record = read_record(empty / "results" / "smoke" / f"{RUN}.json", RUN, "smoke")
    assert record is not None
    assert record.provenance.git_commit is None
