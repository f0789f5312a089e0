"""repro.data.files: how far a step is, and what cannot be locked or written."""

import io
import logging
import sys

from repro.cli.options import configure_logging
from repro.data import files
from repro.data.files import progress


def test_how_far_a_step_is_shows_as_lines_of_the_log_and_as_a_bar_on_a_terminal(said, monkeypatch, capsys):
    monkeypatch.setattr(files, "PAUSE", 0)
    with progress("decoded", 3000, "images") as advance:
        advance(1000)
    assert said == ["decoded 1,000 of 3,000 images"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("decoded", 3, "images") as advance:
        advance(3)
    assert "3/3" in capsys.readouterr().err


def test_a_message_is_a_plain_line_and_one_that_cannot_be_written_is_dropped(monkeypatch, capsys):
    configure_logging()
    logging.getLogger("repro.data").info("%d faces", 3)
    assert capsys.readouterr().err == "3 faces\n"

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    logging.getLogger("repro.data").info("dropped")
