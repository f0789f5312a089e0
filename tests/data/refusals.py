"""What `repro data` says when something is wrong: every error that the data tests provoke, as a table.

    python tests/data/refusals.py > docs/data-refusals.md

runs the data tests and writes each test's name with the exit code and the words of the error that a user
would read. Temporary paths, ports and checksums are shortened, so that two runs give the same table.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.errors import ReproError

HERE = Path(__file__).resolve().parent
HEADING = """# What is refused, and in which words

Every error that the tests of `repro data` provoke, as a user reads it: hostile archives, images and lists, failing
servers and disks, wrong requests. Made by `python tests/data/refusals.py`; paths, ports and checksums are shortened."""
COLUMNS = """
| tried (the test's name) | exit code | what is said |
|---|---|---|"""
SHORTER = (
    (re.compile(r"/\S*?/pytest-of-[^/\s]+/pytest-\d+/[^/\s:,;)]+"), "…"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:PORT"),
    (re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,56}\b"), r"\1…"),
    (re.compile(r"\b\d+ \(process"), "N (process"),
)


class Listener:
    """Notes the error that each test expects, as `pytest.raises` catches it."""

    def __init__(self) -> None:
        self.heard: dict[str, dict[tuple[str, int, str], None]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        expecting = type(pytest.raises(ReproError))
        leave = expecting.__exit__

        def noting(self_, kind, error, trace):
            if isinstance(error, ReproError):
                self.note(item, error)
            return leave(self_, kind, error, trace)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expecting, "__exit__", noting)
            return (yield)

    def note(self, item: pytest.Item, error: ReproError) -> None:
        """Keeps the error under the test's file and name, said as a sentence; equal ones once."""
        words = str(error)
        for pattern, short in SHORTER:
            words = pattern.sub(short, words)
        subject = item.path.stem.removeprefix("test_data_").replace("_", " ")
        name = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
        self.heard.setdefault(subject, {})[name, error.exit_code, words] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A table is no place for failures."""
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n", file=sys.stderr)


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ").replace("<", "&lt;")


def main() -> int:
    listener = Listener()
    arguments = ["-p", "no:cacheprovider", "-p", "no:terminal", "-o", "addopts=", str(HERE)]
    failed = pytest.main([*arguments, *sys.argv[1:]], plugins=[listener])
    print(HEADING)
    for subject, said in sorted(listener.heard.items()):
        print(f"\n## {subject.capitalize()}\n{COLUMNS}")
        for name, code, words in said:
            print("| " + " | ".join(cell(text) for text in (name, str(code), words)) + " |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
