"""`repro doctor`: whether this machine can do what will be asked of it, line by line, with what to do."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from repro.cli.context import Context
from repro.commands.checkup import (
    Finding,
    check_data,
    check_driver,
    check_executor,
    check_memory,
    check_places,
    check_python,
    check_torch,
    read_torch_facts,
)
from repro.errors import SetupError

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "red")}


def examine(context: Context, executor: str, hash_data: bool) -> Iterator[Finding]:
    """Every finding, in the order in which a person would want to know."""
    yield from check_python()
    yield from check_torch(read_torch_facts)
    yield from check_driver()
    yield from check_memory()
    yield from check_places(context)
    yield from check_data(context, hash_data)
    yield from check_executor(executor)


def show_findings(findings: Iterator[Finding], as_json: bool) -> int:
    """Prints each finding as it comes, or all as JSON; the exit code: 3 where one is an error."""
    seen = []
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        seen.append(finding)
        if as_json:
            continue
        mark, colour = _MARKS[finding.level]
        line = Text.assemble((f"{mark:<8}", colour), (f"{finding.matter:<21} ", "bold"), finding.said)
        console.print(line)
        if finding.remedy:
            console.print(Text(f"{'':8}{'':21} → {finding.remedy}"))
    errors = sum(finding.level == "error" for finding in seen)
    if as_json:
        print(json.dumps([asdict(finding) for finding in seen], indent=1, ensure_ascii=False))
    else:
        warnings = sum(finding.level == "warning" for finding in seen)
        console.print(
            f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
        )
    return SetupError.exit_code if errors else 0
