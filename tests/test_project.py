"""Facts about the project as a whole, which no single module can keep."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repro

PROJECT = Path(__file__).resolve().parent.parent
MODULES = sorted((PROJECT / "repro").rglob("*.py"))
LONGEST = 400
LONG_FOR_A_REASON = {}
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def name(path: Path) -> str:
    """A file's path in the project."""
    return path.relative_to(PROJECT).as_posix()


def settings() -> configparser.ConfigParser:
    """setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg")
    return parser


def texts() -> list[Path]:
    """Every file that people write: code, tests, scripts, experiments, pages."""
    roots = ("repro", "tests", "tools", "experiments", "docs", ".ci")
    inner = [path for root in roots for path in (PROJECT / root).rglob("*") if path.is_file()]
    outer = [path for path in PROJECT.iterdir() if path.is_file()]
    return [
        path
        for path in sorted(inner + outer)
        if "__pycache__" not in path.parts and (path.suffix in (".py", ".toml", ".md", ".sh", ".cfg", ""))
    ]


def test_a_module_stays_under_400_lines() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert [name(path) for path in MODULES if {*path.parts, path.stem} & empty] == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_the_version_is_the_same_everywhere_and_in_the_changelog() -> None:
    assert repro.__version__ == settings()["metadata"]["version"]
    assert repro.__version__ in (PROJECT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_lower_bound() -> None:
    config = settings()
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    requirements = [line for group in groups for line in group.split("\n") if line]
    assert len(requirements) > 10
    assert [line for line in requirements if not re.fullmatch(r"[A-Za-z0-9-]+>=\d[\d.]*", line)] == []


def test_run_all_asks_for_the_torch_that_the_project_needs() -> None:
    """The wheels for older cards are installed first, by name, so their bounds are written twice."""
    required = settings()["options"]["install_requires"].split()
    script = (PROJECT / "run_all.sh").read_text()
    for package in ("torch", "torchvision"):
        (bound,) = (line for line in required if line.startswith(f"{package}>="))
        assert f'"{bound}"' in script


def test_the_pages_of_the_project_are_there() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        assert (PROJECT / page).read_text().strip(), page


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package with its contracts."""
    shutil.copytree(PROJECT / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "setup.cfg", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("repro/errors.py", "import repro.registry", "repro.errors is not allowed to import repro.registry"),
        (
            "repro/analysis/results.py",
            "import repro.losses",
            "repro.analysis is not allowed to import torch",
        ),
        ("repro/training/optim.py", "import repro.scheduling", "repro.training is not allowed to import"),
        ("repro/new_idea.py", "", "not listed as layers"),
    ],
)
def test_an_import_that_points_up_breaks_the_contracts(
    tree: Path, module: str, line: str, complaint: str
) -> None:
    with (tree / module).open("a") as stream:
        stream.write(f"\n{line}\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert complaint in " ".join(done.stdout.split())
