"""Show a report as one page that stands alone: it opens from a disk without a network, and loads and runs nothing.

Whatever comes from elsewhere (names, reasons, ARNs) is escaped by the template engine. The page's own policy allows one
style sheet, by its hash, and nothing else: should anything slip through, a browser would not run it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Final

from .facts import BoundFacts, ColumnFacts, Report, Share

LEAST: Final = 0.8
"""How wide the smallest part of a bar is, in percent: one value of a million is still seen."""

NOTHING: Final = "none"

_STATES: Final = {
    "pre_active": "not active yet",
    "unknown_version": "of an unknown data key",
    "foreign": "under keys that are not this tenant's",
    "plaintext": "plaintext: never sealed",
    "malformed": "malformed: no sealed values",
    "unsupported": "of an unknown format",
}


_REASONS: Final = {
    "initial": "the first key",
    "scheduled": "on schedule",
    "forced": "by hand",
    "compromised": "the earlier one was compromised",
    "kms-rotation": "the KMS key was rotated",
    "limit": "the earlier one was used up",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar.

    Attributes:
        x: Where it begins, in percent.
        width: How wide it is, in percent.
        look: Its class in the style sheet.
        words: What it says.
    """

    x: float
    width: float
    look: str
    words: str


def page(report: Report) -> str:
    """Return the report as HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("pii_vault.report")
    style = (here / "report.css").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "day": day,
        "date": date,
        "why": why,
        "instant": instant,
        "number": number,
        "duration": duration,
        "words": words,
        "bar": bar,
        "timeline": timeline,
    }
    template = environment.from_string((here / "report.html.j2").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # The style sheet is the package's own file, and the only text that is not escaped.
    return template.render(report=report, style=Markup(style), style_hash=digest)  # noqa: S704


def day(when: datetime | None) -> str:
    """Return a date that nobody takes for another one, such as 7 November 2026."""
    return f"{when.day} {when:%B %Y}" if when is not None else NOTHING


def date(when: datetime | None) -> str:
    """Return a date as tables have it."""
    return f"{when:%Y-%m-%d}" if when is not None else NOTHING


def why(reason: str) -> str:
    """Return in words why a key was made."""
    return _REASONS.get(reason, reason)


def instant(when: datetime | None) -> str:
    """Return a date with its time of day."""
    return f"{when:%Y-%m-%d %H:%M} UTC" if when is not None else NOTHING


def number(count: int | None) -> str:
    """Return a number with its thousands apart."""
    return f"{count:,}" if count is not None else "not counted"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that it has."""
    left, parts = round(seconds), []
    for unit, size in (("hour", 3_600), ("minute", 60), ("second", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}{'s' if count > 1 else ''}")
    return " ".join(parts[:2]) or "0 seconds"


def words(state: str) -> str:
    """Return a state in words."""
    return _STATES.get(state, state.replace("_", " "))


def bar(each: ColumnFacts) -> list[Segment]:
    """Return the parts of a column's bar; NULL is no value and none of them."""
    shares = [share for share in each.shares if share.state != "null"]
    newest = max((share.version or 0 for share in shares), default=0)
    return _laid_out([(share.count, _look(share, newest), _said(share)) for share in shares])


def timeline(bound: BoundFacts) -> list[Segment]:
    """Return what passes, one after the other, from a revocation until nothing can be read any more."""
    held = "Keys in memory are used up" if bound.ttl_seconds else "The longest scope ends"
    parts = [
        (
            bound.kms_seconds,
            "kms",
            f"The revocation is known everywhere in the KMS: up to {duration(bound.kms_seconds)}",
        ),
        (bound.held_seconds, "held", f"{held}: up to {duration(bound.held_seconds)}"),
        (bound.grace_seconds, "grace", f"Only if the KMS cannot be reached: {duration(bound.grace_seconds)} of grace"),
    ]
    return _laid_out([part for part in parts if part[0]])


def _laid_out(parts: list[tuple[float, str, str]]) -> list[Segment]:
    """Give each part its share of the width, and none less than can be seen."""
    total = sum(size for size, _, _ in parts) or 1
    widths = [max(LEAST, 100 * size / total) for size, _, _ in parts]
    scale = 100 / (sum(widths) or 1)
    found, x = [], 0.0
    for width, (_, look, said) in zip(widths, parts, strict=True):
        found.append(Segment(round(x, 3), round(width * scale, 3), look, said))
        x += width * scale
    return found


def _look(share: Share, newest: int) -> str:
    if share.problem:
        return "problem"
    if share.state == "active":
        return "active"
    # Two tints in turn, so that neighbours are told apart.
    return "older" if share.version is not None and (newest - share.version) % 2 else "oldest"


def _said(share: Share) -> str:
    of = f"version {share.version}, {words(share.state)}" if share.version is not None else words(share.state)
    return f"{share.count:,} {of}"
