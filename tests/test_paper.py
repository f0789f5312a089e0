"""The package names no paper: what it says of one comes from `experiments/paper.toml`."""

import re
from pathlib import Path

from click.testing import CliRunner

from repro.cli import main

ROOT = Path(__file__).parents[1]
OF_THE_PAPER = re.compile(
    r"Zhu|2020\b|scaled[ -]?bn\b|scalable|our loss|three runs|\b3 runs|tables? [123]\b|figures? [123]\b|\bEq\. \d",
    re.IGNORECASE,
)
# The loss modules by name, and the class of their parameters.
LISTED = re.compile(r'"scaled-bn": (ScaledBNParameters|"repro\.losses\.scaled_bn:ScaledBN"),')


def test_nothing_outside_losses_and_networks_names_the_paper():
    found = []
    for path in sorted((ROOT / "repro").rglob("*")):
        part = path.relative_to(ROOT / "repro").parts[0]
        if path.suffix in (".py", ".html", ".js", ".css") and part not in ("losses", "models"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if OF_THE_PAPER.search(LISTED.sub("", line)):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_init_makes_a_project_that_plans_at_once_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("REPRO_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    made = runner.invoke(main, ["init", "my paper"])
    assert (made.exit_code, "cd 'my paper' && repro run --preset smoke" in made.stderr) == (0, True)
    monkeypatch.chdir(tmp_path / "my paper")
    planned = runner.invoke(main, ["plan", "--preset", "smoke"])
    assert (planned.exit_code, "2 cells, 2 runs" in planned.stdout) == (0, True), planned.output
    assert "scaled" not in "".join(path.read_text() for path in Path().rglob("*.toml"))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    again = runner.invoke(main, ["init", "."])
    assert (again.exit_code, "exists already; name another folder" in again.stderr) == (2, True)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
