"""Durations as people read them."""


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
