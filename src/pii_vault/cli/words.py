"""How instants, numbers and what is not there read in tables."""

from __future__ import annotations

from datetime import datetime

from ..keys import USE_LIMIT

NONE = "none"


def day(when: datetime | None) -> str:
    """Return a date, or "none"."""
    return f"{when:%Y-%m-%d}" if when is not None else NONE


def instant(when: datetime | None) -> str:
    """Return a date with its time of day, or "none"."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when is not None else NONE


def or_none(value: object) -> str:
    """Return a text, or "none"."""
    return str(value) if value is not None else NONE


def uses(count: int | None) -> str:
    """Return how often a key was used, and how much of what it may that is."""
    if count is None:
        return NONE
    share = f"{100 * count / USE_LIMIT:.1f}"
    return f"{count:,} ({share} %)" if share != "0.0" else f"{count:,}"


def duration(seconds: float) -> str:
    """Return a time of a second or more in the two largest units that it has, such as "2 h 5 min"."""
    left, parts = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count:,} {unit}")
    return " ".join(parts[:2])
