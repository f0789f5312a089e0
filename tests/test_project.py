"""Facts about the project as a whole, which no single module can keep."""

import configparser
import contextlib
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version
from smoke_project import ROOT

import repro
from repro.paths import Project

LONGEST = 400  # lines of a module
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
CODE = [path for folder in ("repro", "tests", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture
def settings() -> configparser.ConfigParser:
    """setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_a_module_stays_under_400_lines_and_nothing_is_left_unfinished() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().splitlines() for path in CODE}
    assert [name for name in lines if name.startswith("repro") and len(lines[name]) > LONGEST] == []
    assert [name for name in lines if any(map(UNFINISHED.search, lines[name]))] == []


def test_only_records_in_the_results_of_this_checkout_are_called_supplied(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("REPRO_ROOT", raising=False)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    assert Project.find(ROOT).supplied_results
    assert not Project.find(ROOT, results=tmp_path).supplied_results
    assert not Project.find(tmp_path).supplied_results


def test_the_version_is_the_same_everywhere_and_in_the_changelog(settings) -> None:
    assert repro.__version__ == settings["metadata"]["version"]
    assert repro.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {repro.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_dependency_has_a_lower_bound_and_run_all_asks_for_the_same_torch(settings) -> None:
    """The wheels for older cards are installed first, by name, so their bounds are written twice."""
    groups = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    requirements = " ".join(groups).split()
    assert [line for line in requirements if not re.fullmatch(r"[A-Za-z0-9-]+>=\d[\d.]*", line)] == []
    script = (ROOT / "run_all.sh").read_text()
    bounds = [line for line in requirements if line.startswith(("torch>=", "torchvision>="))]
    assert len(bounds) == 2
    assert all(f'"{bound}"' in script for bound in bounds)


def test_the_constraints_have_every_dependency_from_its_lower_bound_to_what_was_tested(settings) -> None:
    extras = settings["options.extras_require"]
    groups = [settings["options"]["install_requires"], *(extras[name] for name in extras if name != "test")]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    bounds = {line.partition(",<=")[0]: line.partition(",<=")[2] for line in lines}
    assert sorted(bounds) == sorted(" ".join(groups).split())
    newer = []
    for least, most in bounds.items():
        name, lower = least.split(">=")
        with contextlib.suppress(metadata.PackageNotFoundError):  # an extra that is not installed
            installed = Version(metadata.version(name))
            assert Version(lower) <= installed, name
            newer += [f"{name} {installed}"] if Version(installed.public) > Version(most) else []
    if newer:
        pytest.skip(f"newer than constraints.txt, which may be raised if all tests pass: {', '.join(newer)}")


@pytest.mark.parametrize(
    ("added", "complaints"),
    [
        (
            {
                "repro/errors.py": "import repro.registry",
                "repro/analysis/results.py": "import repro.losses",
                "repro/training/optim.py": "import repro.scheduling",
            },
            [
                "repro.errors is not allowed to import repro.registry",
                "repro.analysis is not allowed to import torch",
                "repro.training is not allowed to import repro.scheduling",
            ],
        ),
        ({"repro/new_idea.py": ""}, ["not listed as layers"]),
    ],
)
def test_an_import_that_points_up_breaks_the_contracts(tmp_path, added, complaints) -> None:
    shutil.copytree(ROOT / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for module, line in added.items():
        with (tmp_path / module).open("a") as stream:
            stream.write(f"\n{line}\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    for complaint in complaints:
        assert complaint in " ".join(done.stdout.split())
