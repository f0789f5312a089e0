"""Checks of a loss's constructor arguments: a wrong one is the user's TOML, so the error is a UsageError."""

import math
from typing import Any

from repro.errors import UsageError


def whole(name: str, value: Any, *, at_least: int) -> int:
    """`value`, if it is an integer from `at_least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UsageError(f"{name}: expected a whole number of at least {at_least}, got {value!r}")
    return value


def positive(name: str, value: Any, *, at_most: float = math.inf) -> float:
    """`value` as a float, if it is a finite number above 0 and not above `at_most`."""
    if not _is_finite(value) or not 0 < value <= at_most:
        limit = f" and at most {at_most:g}" if math.isfinite(at_most) else ""
        raise UsageError(f"{name}: expected a finite number above 0{limit}, got {value!r}")
    return float(value)


def non_negative(name: str, value: Any) -> float:
    """`value` as a float, if it is a finite number from 0 on."""
    if not _is_finite(value) or value < 0:
        raise UsageError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """`value`, if it is a bool: the string 'false' would otherwise count as true."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: expected true or false, got {value!r}")
    return value


def _is_finite(value: Any) -> bool:
    # A bool is an int to Python, and never meant as a number here.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
