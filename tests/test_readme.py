"""The README shows what the committed records say, and names only what is there."""

import re
import subprocess
import sys

import pytest
from smoke_project import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"<!-- begin: (repro [^\n]*) -->\n(.*?)<!-- end -->\n", README, re.DOTALL)


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_table_in_the_readme_is_what_its_command_prints(command, shown, tmp_path, monkeypatch):
    """With no data prepared, as in a fresh clone."""
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    argv = [sys.executable, "-m", *command.split()]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown == done.stdout, f"the README drifted: put the output of `{command}` into it"


def test_the_readme_shows_a_table():
    assert BLOCKS


def test_every_picture_and_file_of_the_readme_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 3
    assert [link for link in links if ":" not in link and not (ROOT / link).is_file()] == []


def test_every_command_of_the_readme_is_known():
    from click.testing import CliRunner

    from repro.cli import main

    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    commands = [part.split() for line in lines for part in line.split("#")[0].split("&&")]
    checked = 0
    for words in commands:
        if words[:1] == ["repro"]:
            group = 2 if words[1] == "data" else 1
            result = CliRunner().invoke(main, [*words[1 : 1 + group], "--help"])
            assert result.exit_code == 0, words
            options = [word for word in words if word.startswith("--")]
            assert [option for option in options if option not in result.output] == []
            checked += 1
        elif words:
            assert (ROOT / words[0]).is_file(), words
    assert checked >= 5
