"""What the commands say about themselves: --help on a small terminal, suggested commands, completion."""

import ast
import re
import shlex
import shutil

import click
import pytest
from click.testing import CliRunner
from smoke_project import ROOT, RUN, start
from test_docs import PAGES, check, commands

from repro.cli import main
from repro.cli.options import as_words

SAMPLES = {
    "NAME": "cifar100",
    "run": RUN,
    "chosen.name": "cifar100",
    "self.name": "cifar100",
    "name": "cifar100",
}
SAMPLES |= {"other": "elsewhere", "preset.name": "smoke", "dataset": "cifar100", "network": "resnet18"}
SAMPLES |= {"here.preset.name": "smoke", "shlex.join(words)": "--set lr=0.05", "lists": " --lists DIR"}
QUICK_TO_RUN = [
    "plan",
    "status",
    "show",
    "aggregate",
    "claims",
    "audit",
    "clean",
    "stop",
    "bundle",
    "report",
    "init",
    "run",
]


def text_of(node: ast.AST) -> str:
    """A string of the source, with something typical in place of what an f-string inserts."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        code = ast.unparse(node.value)
        return SAMPLES.get(code, SAMPLES["run"])
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


def words_of(line: str) -> list[str]:
    return shlex.split(re.sub(r" (?:[|&>] .*|….*)", "", line))[1:]


def test_every_suggested_command_is_one_that_the_command_line_takes():
    lines = suggested()
    assert len(lines) > 25
    for line, place in lines.items():
        try:
            check(words_of(line), whole=False)
        except (click.UsageError, AssertionError) as error:
            pytest.fail(f"{place}: `{line}`: {error}")


def runnable() -> list[str]:
    """What messages, help and pages suggest, where it is done at once and names nothing that only a user has.

    A test of test_docs.py runs your-own.md, which makes tables of its own. A sweep is planned alone.
    """
    pages = [page.read_text() for page in PAGES if page.name != "your-own.md"]
    lines = {shlex.join(words) for page in pages for words, _ in commands(page)}
    lines |= {shlex.join(words_of(line)) for line in suggested()}
    lines = {line for line in lines if line.split()[0] in QUICK_TO_RUN}
    return sorted(
        line for line in lines if not re.search(r"\b[A-Z_]{4,}\b|--executor|lfw|^(init|show|report)$", line)
    )


@pytest.mark.integration
def test_every_suggested_command_that_is_done_at_once_works_when_pasted(tmp_path, monkeypatch):
    """In a project with the records of this one, of the preset quick unless the line says another."""
    for folder in ("experiments", "results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for name in ("REPRO_ROOT", "REPRO_DATA"):
        monkeypatch.delenv(name, raising=False)
    lines = runnable()
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line)
        words += ["--dry-run"] if words[0] == "run" and "--dry-run" not in words else []
        if "--preset" not in words and words[0] not in ("audit", "init"):
            words += ["--preset", "smoke" if words[0] == "run" else "quick"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, f"repro {shlex.join(words)}: {done.stderr}"


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


def test_a_sweep_hands_what_it_was_given_on_to_its_workers():
    given = {"per_gpu": 2, "precision": None, "deterministic": True, "checkpoint_interval": 0.0}
    with click.Context(main.get_command(click.Context(main), "run")):
        words = list(as_words({**given, "switch_off": ("compile", "fused-sgd"), "switch_on": ()}))
    line = "--per-gpu 2 --deterministic --checkpoint-interval 0.0 --without compile --without fused-sgd"
    assert shlex.join(words) == line
