"""README and pages: links lead somewhere, commands are the program's and print what is shown, your-own.md works."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from smoke_project import ROOT, repro

from repro import errors
from repro.cli import main
from repro.cli.context import Context
from repro.registry import Registry, Selection
from repro.scheduling.devices import Device
from repro.scheduling.plan import make_plan

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "AGENTS")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"(?<!`)`(repro [^`\n]+)`(?!`)")
ENDS = re.compile(r"&&|[|>]")
# What a German word order or an archaism leaves in English: house style has a better phrase for each.
STOCK = re.compile(
    r"percent points|\banew\b|\bstands? (?:below|above|beside)\b|\b(?:do|does|did) not pay\b|there (?:is|are) so far|"
    r"\b(?:images|records?|runs|seconds|rows?|files?|figures?|lines?|macros?) an? (?:run|second|class|row|number|network)\b|"
    r"\bto be had\b|\bis had\b|\bone's own\b|\bof (?:yours|mine)\b|\bgo(?:es)? on where|whether this machine can|"
    r"what fits, then",
    re.IGNORECASE,
)
SHOWN = re.compile(r"<!-- begin: (repro [^\n]*) -->\n(.*?)<!-- end -->\n", re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize(("command", "shown"), SHOWN.findall((ROOT / "README.md").read_text()))
def test_an_excerpt_in_the_readme_has_lines_that_its_command_prints_in_this_order(command, shown, tmp_path):
    """With no data prepared, as in a fresh clone."""
    done = repro(*command.split()[1:], cwd=ROOT, check=0, environment={"REPRO_DATA": str(tmp_path)})
    printed = iter(done.stdout.splitlines())
    for line in shown.splitlines():
        assert line in printed, f"the README drifted from `{command}`: {line}"


def test_the_readme_is_short_and_has_one_small_table():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    rows = [number for number, line in enumerate(lines) if line.startswith("|")]
    assert 0 < len(rows) <= 10
    assert rows[-1] - rows[0] == len(rows) - 1


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_a_page_has_no_stock_phrase_that_a_native_reader_stumbles_over(page):
    assert STOCK.findall(page.read_text()) == []


def test_no_text_of_the_program_has_a_stock_phrase():
    """Help, messages and docstrings: every text of more than one word."""
    found = []
    for path in sorted((ROOT / "repro").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                phrases = STOCK.findall(" ".join(node.value.split()))
                found += [f"{path.relative_to(ROOT)}:{node.lineno}: {phrase}" for phrase in phrases]
    assert found == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_the_question_that_it_answers(page):
    assert re.match(r"# .*\?\n", page.read_text())


def test_the_pages_can_be_read_in_an_hour():
    """12,000 words at the usual 200 a minute."""
    assert sum(len(page.read_text().split()) for page in (ROOT / "docs").glob("*.md")) <= 12_000


@each_page
def test_a_test_that_a_page_names_exists(page):
    tests = "\n".join(path.name + path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in re.findall(r"\btest_\w+", page.read_text()) if name not in tests] == []


@pytest.mark.parametrize("script", ["run_all.sh", "experiments/evidence.sh"])
def test_an_option_that_a_script_passes_is_one_of_its_command(script):
    text = (ROOT / script).read_text().replace("\\\n", " ")
    calls = re.findall(r"(?:^|[\s\"/])repro\"? ((?:data )?[a-z]+)\b([^\n|]*)", text, re.MULTILINE)
    known_commands = main.list_commands(click.Context(main))
    calls = [(name.split(), words) for name, words in calls if name.split()[0] in known_commands]
    assert len(calls) > 5
    for names, words in calls:
        command: click.Command = main
        for name in names:
            command = command.get_command(click.Context(main), name)
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", words)) - known
        assert unknown == set(), f"{script}: repro {' '.join(names)}"


@each_page
def test_every_link_of_a_page_leads_to_a_file_or_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert ":" in link or target.exists(), link
        if anchor and ":" not in link:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", target.read_text()), re.MULTILINE)
            # GitHub's rule.
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in anchors, link


def commands(text: str) -> list[tuple[list[str], bool]]:
    """Every `repro …` of a page as words, and whether it stands whole in a block."""
    found = []
    for language, body in BLOCK.findall(text):
        # In `console`, what begins with $ is a command and the rest is what it prints.
        prompt = "$ " if language == "console" else ""
        lines = body.replace("\\\n", " ").splitlines() if language in ("sh", "console", "bash") else []
        typed = [line.removeprefix(prompt) for line in lines if line.startswith(prompt)]
        found += [(part, True) for line in typed for part in ENDS.split(line)]
    found += [(part, False) for span in INLINE.findall(BLOCK.sub("", text)) for part in ENDS.split(span)]
    split = [(shlex.split(part, comments=True), whole) for part, whole in found]
    return [(words[1:], whole) for words, whole in split if words[:1] == ["repro"]]


def check(words: list[str], whole: bool) -> None:
    """Parses a command as the program would, without running it or asking for the files it names."""
    command: click.Command = main
    context = click.Context(main, info_name="repro")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    words = [word for word in words if word != "…"]
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert rest == []
    for parameter in command.params:
        value = values.get(parameter.name)
        # What was not given is None, or a mark of click's own in its newer versions.
        if not isinstance(value, str | bool | int | float | list | tuple) or value == ():
            assert not (whole and parameter.required), f"{parameter.name} is missing"
        elif not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)


@each_page
def test_every_command_of_a_page_is_one_that_the_program_takes(page):
    for words, whole in commands(page.read_text()):
        try:
            check(words, whole)
        except click.ClickException as error:
            pytest.fail(f"repro {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize(
    "line", ["repro plam", "repro plan --tabel 1", "repro run --stale keeep", "repro logs"]
)
def test_a_command_that_the_program_does_not_take_would_be_found(line):
    ((words, whole),) = commands(f"```sh\n{line}\n```\n")
    with pytest.raises((click.ClickException, AssertionError)):
        check(words, whole)


def test_the_times_for_a_1080_ti_are_the_plans(monkeypatch, tmp_path):
    """From the plan's table on, with nothing trained and no data prepared."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    shown = re.search(r"<!-- begin: the plan [^>]*-->\n```text\n(.*?)\n```\n<!-- end -->", page, re.DOTALL)
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    card = Device("cuda", 0, "NVIDIA GeForce GTX 1080 Ti", "GPU-0", 11 * 2**30, 1, {})
    context = Context.open("paper", tmp_path / "results", tmp_path / "data")
    survey = context.survey(context.registry.select_runs(Selection(), context.preset))
    text = make_plan(survey, context.registry, context.preset, context.project, (card,)).to_text()
    assert shown
    assert shown[1] == text[text.index("  table") :]
    readme = (ROOT / "README.md").read_text()
    quoted = [line for line in text.splitlines() if line.startswith(("72 cells", "time to do", "  0.3 to"))]
    assert len(quoted) == 3
    assert "\n".join(quoted) in readme
    low, high = re.search(r"time to do: (\d+d \d+h) – (\d+d \d+h)", text).groups()
    days = [
        round(int(each[0]) + int(each[1]) / 24)
        for each in (re.findall(r"\d+", low), re.findall(r"\d+", high))
    ]
    assert f"{days[0]} to {days[1]} days" in readme


def test_the_exit_codes_that_are_explained_are_those_of_the_program():
    page = (ROOT / "docs" / "command-line.md").read_text()
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    known = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert explained == known | {0, 130}


def test_the_table_that_is_written_out_can_be_planned(tmp_path):
    folder = Path(shutil.copytree(ROOT / "experiments", tmp_path / "experiments"))
    page = (ROOT / "docs" / "your-own.md").read_text()
    ((name, body),) = re.findall(r"`experiments/(table-cutout.toml)`:\n\n```toml\n(.*?)```", page, re.DOTALL)
    (folder / name).write_text(body)
    shutil.copy(ROOT / "examples" / "cutout" / "experiments" / "cutout.py", folder)
    registry = Registry.load(folder)
    cells = registry.select_cells(Selection(tables=("cutout",)))
    assert [cell.id for cell in cells] == [
        f"cifar100/{name}/cutout" for name in ("vgg16", "resnet18", "resnet50")
    ]
    for cell in cells:
        registry.config(registry.parse(f"{cell.id}/seed0"), registry.preset("quick"))
    for other in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        tomllib.loads(other)


def make_photos(folder: Path) -> None:
    """Twenty noisy pictures of each of three flowers, which differ in colour."""
    rng = np.random.default_rng(0)
    for channel, flower in enumerate(("daisy", "rose", "tulip")):
        (folder / flower).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 120, (70, 90, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / flower / f"{number}.jpg")


@pytest.mark.slow
def test_your_own_works_line_by_line_in_a_fresh_folder(tmp_path):
    (tmp_path / "repro").symlink_to(ROOT)
    make_photos(tmp_path / "photos")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "repro"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m repro "$@"\n')
    program.chmod(0o755)
    text = (ROOT / "docs" / "your-own.md").read_text()
    # A file is a block below its name; everything else to do is a block of commands.
    steps = re.findall(r"(?:`(experiments/[\w.-]+)`:\n\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
    script = "set -e\n"
    for name, language, body in steps:
        script += f"cat > {name} <<'END_OF_FILE'\n{body}END_OF_FILE\n" if name else body * (language == "sh")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REPRO_")}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "4 runs: 4 done" in done.stderr
    assert "### SMOKE CIFAR-100, my losses" in done.stdout
    assert "Data: 3 classes, 54 training and 6 test images." in done.stdout
    report = (tmp_path / "mine" / "results" / "quick" / "report.html").read_text()
    assert "flowers/tiny/focal-g0.5/seed0" in report
    assert "### SMOKE Table 1: CIFAR-100, test error in percent" in done.stdout
    second = (tmp_path / "cutout" / "results" / "smoke" / "report.html").read_text()
    assert "DeVries and Taylor 2017, reproduced" in second
    assert not re.search("zhu|scaled|scalable", second, re.IGNORECASE)
