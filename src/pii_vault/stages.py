"""The stages in which a plaintext column becomes a sealed one while the application works, and which may follow which.

Two columns stand side by side meanwhile, and whoever writes one writes the other. Until `SWITCHED` the plaintext is
what counts: the sealed column holds the same or NULL. From then on the sealed value counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """How far the adoption of a plaintext column is."""

    NONE = "none"
    """Not begun, or taken back to its beginning: there is no guard."""

    ADDED = "added"
    """The sealed column and its guard are there: who writes the plaintext alone empties the sealed column."""

    FILLED = "filled"
    """Each row with a plaintext was given its sealed value."""

    VERIFIED = "verified"
    """Each sealed value was opened and compared with its plaintext."""

    SWITCHED = "switched"
    """The guard refuses who writes the plaintext alone; the sealed column may be read."""

    RETIRED = "retired"
    """Nobody needs to write the plaintext any longer; it is emptied where only the sealed column is written."""

    EMPTIED = "emptied"
    """No row holds a plaintext any longer, and the guard is gone: the plaintext column can be dropped."""

    @property
    def sealed_counts(self) -> bool:
        """Whether the sealed column may be read: each of its values is there, and the newest."""
        return self in (Stage.SWITCHED, Stage.RETIRED, Stage.EMPTIED)


_ORDER: Final = (
    Stage.NONE,
    Stage.ADDED,
    Stage.FILLED,
    Stage.VERIFIED,
    Stage.SWITCHED,
    Stage.RETIRED,
    Stage.EMPTIED,
)


def following(stage: Stage) -> Stage | None:
    """Return the stage after this one; None after the last."""
    place = _ORDER.index(stage) + 1
    return _ORDER[place] if place < len(_ORDER) else None


def preceding(stage: Stage) -> Stage | None:
    """Return the stage before this one; None before the first."""
    place = _ORDER.index(stage)
    return _ORDER[place - 1] if place else None


@dataclass(frozen=True, slots=True)
class AdoptionRecord:
    """A step of an adoption, as the key store keeps it. The last one of a context says where the adoption stands.

    Attributes:
        context: The context id that the column's values are sealed for.
        number: Its number among the steps of that context, from 1.
        stage: Where the adoption stands after it.
        table: The table's name, with its schema if it has one.
        plaintext: The plaintext column's name.
        sealed: The sealed column's name.
        fallback_until: Until when a read may take the plaintext where the sealed column is empty, UTC; None for never.
        rows: How many rows were filled or compared, or None.
        made_at: When it was taken, UTC.
        made_by: Who has taken it.
        reason: Why.
    """

    context: str
    number: int
    stage: Stage
    table: str
    plaintext: str
    sealed: str
    fallback_until: datetime | None
    rows: int | None
    made_at: datetime
    made_by: str
    reason: str = ""

    def falls_back(self, now: datetime) -> bool:
        """Say whether a read may take the plaintext at this time where the sealed column is empty."""
        is_between = self.stage is not Stage.NONE and not self.stage.sealed_counts
        return is_between and self.fallback_until is not None and now < self.fallback_until
