r"""The numbers that a LaTeX file quotes of the records, found and compared with them.

Three ways to quote, in one file or several (\input and \include are followed):

    \newcommand{\reproCifar…Mean}{73.25}     a macro of `repro aggregate --format macros`; its uses too
    \repronum{cifar100/vgg16/scaled-bn-m1}{mean}{73.25}
    ours & 73.25 $\pm$ 0.25 & 71.9 \\        % repro: cifar100/vgg16/scaled-bn-m1 mean std _

The comment names what each number of its line is, in order; `_` stands for one that is not of the records,
`;` begins another cell. A cell of another preset than the paper's is `quick:cifar100/…`. A number may be
rounded further than to two decimals: it must be the records' value at its own number of decimals.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from repro.analysis.macros import FIELDS
from repro.errors import UsageError

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.\\])(?<![A-Za-z]-)(?:(?<![0-9])[-+])?\d+(?:\.\d+)?")
_COMMENT = re.compile(r"(?<!\\)%")
_INPUT = re.compile(r"\\(?:input|include)\s*\{([^}]+)\}")
_DEFINITION = re.compile(
    r"\\(?:re)?(?:new|provide)?command\*?\s*\{?\s*\\(repro[A-Z][A-Za-z]*)\s*\}?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
    r"|\\def\s*\\(repro[A-Z][A-Za-z]*)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_USE = re.compile(r"\\(repro[A-Z][A-Za-z]*)")
_INLINE = re.compile(r"\\repronum\s*\{([^{}]*)\}\s*\{([^{}]*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANNOTATION = re.compile(r"(?<!\\)%\s*repro:\s*(.*)$")
_MINUS = re.compile(r"\$-\$|\\ensuremath\{-\}|−|\{-\}")


@dataclass(frozen=True)
class Quote:
    """A number in a file: `key` is (preset, cell id, field), or the macro's name where it is one's.

    `number` is the text as quoted, None where a macro is used and not defined. `problem` is set where the
    quote itself is wrong.
    """

    file: Path
    line: int
    key: tuple[str, str, str] | str
    number: str | None
    problem: str = ""


@dataclass(frozen=True)
class Check:
    """What came of a file's quotes: how many were compared, what is wrong, and what is worth knowing."""

    compared: int
    problems: tuple[str, ...]
    notices: tuple[str, ...]


Known = Callable[[tuple[str, str, str]], "float | str"]
"""A quoted key's value, or a sentence that says why there is none."""


def find_quotes(file: Path) -> tuple[Quote, ...]:
    """Every quote of `file` and of what it inputs, in reading order; UsageError if it cannot be read."""
    return tuple(_in_file(file, file.parent, set()))


def check_quotes(
    quotes: tuple[Quote, ...], macros: Mapping[str, tuple[str, str, str]], known: Known
) -> Check:
    """Compares quotes with the records; `macros` are the names there can be, `known` gives their values.

    Raises UsageError where there is nothing to compare: a check of nothing must not look like a pass.
    """
    if not quotes:
        raise UsageError(
            "the file quotes no number of the records: \\input the output of `repro aggregate --format "
            "macros`, write \\repronum{cell}{field}{number}, or end a line with `% repro: cell field …`"
        )
    problems: list[str] = []
    defined = {quote.key for quote in quotes if isinstance(quote.key, str) and quote.number is not None}
    compared = 0
    for quote in quotes:
        where = f"{quote.file}:{quote.line}"
        if quote.problem:
            problems.append(f"{where}: {quote.problem}")
            continue
        if isinstance(quote.key, str):
            # A use is compared where the macro is defined.
            if quote.number is None and quote.key in defined:
                continue
            if quote.key not in macros:
                problems.append(f"{where}: \\{quote.key}: no cell and field have this name")
                continue
            key = macros[quote.key]
        else:
            key = quote.key
        value = known(key)
        name = f"{'' if key[0] == 'paper' else key[0] + ':'}{key[1]} {key[2]}"
        compared += 1
        if isinstance(value, str):
            problems.append(f"{where}: {name}: {value}")
        elif quote.number is not None and not agrees(quote.number, value):
            digits = max(2, decimals(quote.number))
            shown = f"{value:.0f}" if key[2] == "n" else f"{value:.{digits}f}"
            problems.append(f"{where}: {name}: quoted {quote.number}, the records say {shown}")
    return Check(compared, tuple(problems), ())


def agrees(quoted: str, value: float) -> bool:
    """Whether `value`, rounded to the decimals of `quoted`, is it; an exact half may go either way."""
    number = Decimal(_MINUS.sub("-", quoted))
    half = Decimal(5).scaleb(-decimals(quoted) - 1)
    return abs(number - Decimal(value)) <= half + Decimal("1e-9")


def decimals(quoted: str) -> int:
    """How many decimals a quoted number has."""
    return len(quoted.partition(".")[2])


def _in_file(file: Path, root: Path, seen: set[Path]) -> Iterator[Quote]:
    path = file.resolve()
    if path in seen:
        return
    seen.add(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        code = _COMMENT.split(line, maxsplit=1)[0]
        yield from _in_line(file, number, line, code)
        for name in _INPUT.findall(code):
            inner = root / name if name.endswith(".tex") else root / f"{name}.tex"
            # What is not beside the file is the TeX installation's, and quotes nothing.
            if inner.is_file():
                yield from _in_file(inner, root, seen)


def _in_line(file: Path, number: int, line: str, code: str) -> Iterator[Quote]:
    rest = code
    for match in _DEFINITION.finditer(code):
        name, text = (match[1], match[2]) if match[1] else (match[3], match[4])
        yield _numbered(file, number, name, text)
        rest = rest.replace(match[0], " ", 1)
    for match in _INLINE.finditer(rest):
        cell, field, text = (part.strip() for part in match.groups())
        yield _numbered(file, number, _key(cell, field), text)
    for name in _USE.findall(rest):
        yield Quote(file, number, name, None)
    if annotation := _ANNOTATION.search(line):
        yield from _annotated(file, number, code, annotation[1])


def _annotated(file: Path, line: int, code: str, annotation: str) -> Iterator[Quote]:
    wanted: list[tuple[str, str, str] | None] = []
    for part in annotation.split(";"):
        cell, *fields = part.split()[:1] + part.split()[1:]
        wanted += [None if field == "_" else _key(cell, field) for field in fields]
    found = _NUMBER.findall(_MINUS.sub("-", code))
    if len(found) != len(wanted):
        yield Quote(
            file,
            line,
            "",
            None,
            f"the line has {len(found)} numbers ({', '.join(found) or 'none'}), "
            f"its annotation names {len(wanted)}; `_` stands for one that is not of the records",
        )
        return
    for key, text in zip(wanted, found, strict=True):
        if key is not None:
            yield _numbered(file, line, key, text)


def _numbered(file: Path, line: int, key: tuple[str, str, str] | str, text: str) -> Quote:
    name = key if isinstance(key, str) else " ".join(key[1:])
    if not isinstance(key, str) and key[2] not in FIELDS:
        return Quote(file, line, key, None, f"unknown field {key[2]!r}; fields: {', '.join(FIELDS)}")
    plain = _MINUS.sub("-", text).replace("$", "").strip()
    if not re.fullmatch(r"[-+]?\d+(\.\d+)?", plain):
        return Quote(file, line, key, None, f"{name}: expected a number, got {text!r}")
    return Quote(file, line, key, plain)


def _key(cell: str, field: str) -> tuple[str, str, str]:
    preset, colon, inner = cell.partition(":")
    return (preset, inner, field) if colon else ("paper", cell, field)
