"""Durations as people read and write them."""

import re

from repro.errors import UsageError


def format_seconds(seconds: float) -> str:
    """`0.4s`, `42s`, `8m 12s`, `3h 05m`, `16d 4h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(round(whole / 60), 60)
    if hours < 48:
        return f"{hours}h {minutes:02d}m"
    days, hours = divmod(round(whole / 3600), 24)
    return f"{days}d {hours}h"


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> int:
    """Seconds of `30m`, `20h`, `1d2h`, `45s`; UsageError for anything else, and for nothing at all."""
    match = _PARTS.fullmatch(text.strip())
    counts = [int(part or 0) for part in match.groups()] if match else [0]
    seconds = sum(count * unit for count, unit in zip(counts, _UNITS.values(), strict=False))
    if not seconds:
        raise UsageError(f"{text!r} is not a time; expected one such as 30m, 20h or 1d2h")
    return seconds
