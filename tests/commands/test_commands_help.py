"""What the commands say about themselves: --help on a small terminal, suggested commands, completion."""

import ast
import re
import shlex

import click
import pytest
from click.testing import CliRunner
from smoke_project import ROOT, RUN, start
from test_docs import check

from repro.cli import main

SAMPLES = {
    "NAME": "cifar100",
    "run": RUN,
    "chosen.name": "cifar100",
    "self.name": "cifar100",
    "name": "cifar100",
}
SAMPLES |= {"other": "elsewhere", "preset.name": "smoke", "dataset": "cifar100", "network": "resnet18"}


def text_of(node: ast.AST) -> str:
    """A string of the source, with something typical in place of what an f-string inserts."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        code = ast.unparse(node.value)
        return " --lists DIR" if "--lists" in code else SAMPLES.get(code, SAMPLES["run"])
    return str(node.value) if isinstance(node, ast.Constant) else ""


def suggested() -> dict[str, str]:
    """Every `repro …` in backquotes of the package's strings → where it is; pages are test_docs.py's."""
    found = {}
    for path in sorted((ROOT / "repro").rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {
            id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner:
                words = " ".join(text_of(node).split())
                found |= dict.fromkeys(re.findall(r"`(repro [a-z][^`]*)`", words), str(path))
    return found


def test_every_suggested_command_is_one_that_the_command_line_takes():
    lines = suggested()
    assert len(lines) > 25
    for line, place in lines.items():
        try:
            check(shlex.split(re.sub(r" (?:[|&>] .*|….*)", "", line))[1:], whole=False)
        except (click.UsageError, AssertionError) as error:
            pytest.fail(f"{place}: `{line}`: {error}")


@pytest.mark.parametrize("command", ["run", "plan", "train"])
def test_help_fits_a_screen_and_a_half_and_has_everyday_options_first(command):
    text = CliRunner().invoke(main, [command, "--help"], terminal_width=80).stdout
    assert len(text.splitlines()) <= 36
    assert max(map(len, text.splitlines())) <= 80
    for option in main.get_command(click.Context(main), command).params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[0] in text
    everyday, _, further = text.partition("More options:")
    assert "--preset" in everyday
    assert "--stale" in further
    assert ("Cluster options" in further, "--sbatch" in further) == ((command == "run",) * 2)


def test_commands_that_messages_suggest_keep_the_users_own_folders_and_preset(tmp_path):
    words = ["show", RUN, "--preset", "smoke", "--results", str(tmp_path / "my results")]
    done = CliRunner(env={"REPRO_ROOT": str(ROOT)}).invoke(main, words)
    assert f"`repro train {RUN} --preset smoke --results '{tmp_path / 'my results'}'`" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--loss", "cross"], ["cross-entropy"]),
        (["plan", "--network", "resnet1"], ["resnet18"]),
        (["aggregate", "--table", "1,t"], ["1,tiny-imagenet-extended", "1,tiny-imagenet-subset"]),
        (["status", "--preset", "s"], ["smoke"]),
        (["train", "--preset", "smoke", RUN[:-1]], [RUN]),
        (["show", RUN[:-6]], [RUN.rpartition("/")[0], RUN]),
    ],
)
def test_the_shell_completes_names_without_importing_what_is_slow(words, expected):
    environment = {
        "_REPRO_COMPLETE": "bash_complete",
        "COMP_WORDS": shlex.join(["repro", *words]),
        "COMP_CWORD": str(len(words)),
        "PYTHONPROFILEIMPORTTIME": "1",
    }
    process = start(environment=environment, stdout=-1)
    output, errors = process.communicate()
    offered = [line.partition(",")[2] for line in output.splitlines()]
    assert offered[: len(expected)] == expected
    for module in ("torch", "numpy", "pandas", "pydantic", "rich"):
        assert not re.search(rf"\| +{module}$", errors, re.MULTILINE)


@pytest.mark.parametrize("broken", ["no project", "a table that is no TOML"])
def test_where_there_is_nothing_to_read_completion_offers_nothing_and_says_nothing(tmp_path, broken):
    if broken != "no project":
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "table1.toml").write_text("table = ")
    environment = {"_REPRO_COMPLETE": "bash_complete", "COMP_WORDS": "repro run --loss c", "COMP_CWORD": "3"}
    process = start(environment={**environment, "REPRO_ROOT": str(tmp_path)}, stdout=-1)
    assert process.communicate() == ("\n", "")
