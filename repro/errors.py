"""Every error a user can meet, with the exit code it ends the command with.

ReproError                     1  something failed
├── RunFailedError             1  one training run failed, the others went on
├── UsageError                 2  the command or a TOML file asks for something that is not there
│   ├── RegistryError             an experiments/*.toml file is not valid
│   ├── SelectionError            a selection matches nothing
│   └── OwnCodeError              a loss or network of the user's own cannot be found, read or used
├── SetupError                 3  the environment or the data are not in place
│   ├── ProjectNotFoundError      REPRO_ROOT is a folder without experiments
│   ├── DataMissingError          a data set has not been fetched or prepared
│   ├── DataCorruptError          a file or array is not what its checksum says
│   ├── FetchError                a download failed
│   ├── NoSpaceError              a disk is full or a quota used up
│   ├── ReadOnlyError             a file system takes no writes
│   └── DeviceError               a device asked for is missing or cannot run what was asked
├── IntegrityError             4  a result on disk is not valid
│   ├── RecordCorruptError        a record is torn, edited or breaks the schema
│   │   └── RecordUnreadableError what has a record's name is no file that can be read
│   └── RecordMisplacedError      a record is stored under another run's name
└── RunInterruptedError       75  stopped on request; the same command resumes

A message says what was expected, what came instead, and what to do.
"""

import re
from collections.abc import Iterable
from typing import Any

# Control characters but tabs and line feeds, what else breaks or reorders lines, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(value: Any) -> Any:
    r"""A text, or all texts in lists and dictionaries, with what a terminal may act on spelled out: `\u001b`.

    For what comes from records, servers and files of the user's own.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    return [printable(each) for each in value] if isinstance(value, list) else value


def counted(number: int, noun: str) -> str:
    """`1 column`, `2 columns`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`. Did you mean NAME?` with the known name that is closest to `word`; nothing where none is close."""
    from difflib import get_close_matches  # slow to import, and only a mistake needs it

    close = get_close_matches(word.lower(), known, 1)
    return f". Did you mean {close[0]}?" if close else ""


class ReproError(Exception):
    """What every error of this package derives from; `exit_code` is what the command returns."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, fit for a terminal whatever it quotes."""
        return str(printable(super().__str__()))


class RunFailedError(ReproError):
    """A training run ended in an error; its attempt's folder holds the traceback."""


class UsageError(ReproError):
    """The command line or an experiments file asks for something that does not exist."""

    exit_code = 2


class RegistryError(UsageError):
    """An experiments/*.toml file is not valid; the message names file, key and what is allowed."""


class SelectionError(UsageError):
    """A selection (`--table`, `--network`, …) or a run id matches nothing."""


class OwnCodeError(UsageError, ValueError):
    """Code of the user's own: no such file or name, an error at import, or a wrong answer.

    A ValueError so that pydantic adds the key of the TOML that names the code.
    """


class SetupError(ReproError):
    """Something outside the project is missing: data, a device, a folder that can be written."""

    exit_code = 3


class ProjectNotFoundError(SetupError):
    """REPRO_ROOT names a folder without `experiments/presets.toml`; see `repro.paths.Project.find`."""


class DataMissingError(SetupError):
    """A data set has not been fetched or prepared yet."""


class DataCorruptError(SetupError):
    """A downloaded file or a prepared array differs from its checksum."""


class FetchError(SetupError):
    """A download failed: no network, a refused or broken answer, a full disk."""


class NoSpaceError(SetupError):
    """The disk is full or a quota used up: it may be written later."""


class ReadOnlyError(SetupError):
    """The file system takes no writes."""


class DeviceError(SetupError):
    """The device asked for is missing, or cannot run what was asked of it."""


class IntegrityError(ReproError):
    """A result on disk is not valid; nothing is averaged in silence."""

    exit_code = 4


class RecordCorruptError(IntegrityError):
    """A record is torn, was edited after it was written, or breaks the schema."""


class RecordUnreadableError(RecordCorruptError):
    """A record's name belongs to a folder, a pipe, a dangling link, or a file that may not be read."""


class RecordMisplacedError(IntegrityError):
    """A valid record is stored under a name that belongs to another run or preset."""


class RunInterruptedError(ReproError):
    """Training was asked to stop; a checkpoint was written where one was due, and the run can resume."""

    exit_code = 75
