"""What `adopt` prints as JSON. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..adoption.adopt import Status
    from ..stages import AdoptionRecord


@dataclass(frozen=True)
class AdoptionStep:
    """A step of an adoption.

    Attributes:
        number: Its number, from 1.
        stage: The stage that it led to.
        rows: How many rows were filled, compared or emptied; null where none was to be.
        fallback_until: Until when reads may take the plaintext where no value was sealed yet, UTC; null for never.
        at: When it was taken, UTC.
        by: Who has taken it.
        reason: Why.
    """

    number: int
    stage: str
    rows: int | None
    fallback_until: datetime | None
    at: datetime
    by: str
    reason: str

    @classmethod
    def of(cls, step: AdoptionRecord) -> AdoptionStep:
        """Return the document about a step."""
        return cls(
            step.number, str(step.stage), step.rows, step.fallback_until, step.made_at, step.made_by, step.reason
        )


@dataclass(frozen=True)
class AdoptionFound:
    """Where the adoption of a plaintext column stands.

    Attributes:
        context: The context id that values are sealed for: the adoption's name.
        table: The table, with its schema if it has one.
        plaintext: The plaintext column.
        sealed: The sealed column.
        stage: `none`, `added`, `filled`, `verified`, `switched`, `retired` or `emptied`.
        fallback_until: Until when reads may take the plaintext where no value was sealed yet, UTC; null for never.
        has_plaintext: Whether the plaintext column is there.
        has_sealed: Whether the sealed column is there.
        guard: What the guard does, in words; null where there is none.
        rows_with_plaintext: In how many rows there is a plaintext; null where one of the columns is gone.
        rows_with_sealed: In how many rows there is a sealed value; null likewise.
        rows_with_plaintext_only: In how many rows there is only the plaintext; null likewise.
        rows_with_sealed_only: In how many rows there is only the sealed value; null likewise.
        drift: What is not as the stage says, one sentence each; empty when all is.
        next_step: What to do next, one sentence.
        steps: The steps that were taken, in order.
    """

    context: str
    table: str
    plaintext: str
    sealed: str
    stage: str
    fallback_until: datetime | None
    has_plaintext: bool
    has_sealed: bool
    guard: str | None
    rows_with_plaintext: int | None
    rows_with_sealed: int | None
    rows_with_plaintext_only: int | None
    rows_with_sealed_only: int | None
    drift: list[str]
    next_step: str
    steps: list[AdoptionStep]

    @classmethod
    def of(cls, found: Status) -> AdoptionFound:
        """Return the document about an adoption."""
        pair, observed, counts = found.pair, found.observed, found.observed.counts
        return cls(
            context=pair.context,
            table=pair.table_name,
            plaintext=pair.plaintext,
            sealed=pair.sealed,
            stage=str(found.stage),
            fallback_until=found.fallback_until,
            has_plaintext=observed.has_plaintext,
            has_sealed=observed.has_sealed,
            guard=str(observed.guard) if observed.guard is not None else None,
            rows_with_plaintext=counts.plaintext if counts is not None else None,
            rows_with_sealed=counts.sealed if counts is not None else None,
            rows_with_plaintext_only=counts.plaintext_only if counts is not None else None,
            rows_with_sealed_only=counts.sealed_only if counts is not None else None,
            drift=list(found.drift),
            next_step=_next_step(found),
            steps=[AdoptionStep.of(step) for step in found.steps],
        )


def _next_step(found: Status) -> str:
    """Return what to do, in words: what to deploy first, and what `adopt next` does then."""
    pair = found.pair
    if found.stage == "emptied":
        if not found.observed.has_plaintext:
            return "nothing is left to do: the models need not say adopting any longer, and name the context instead"
        return f"drop {pair.name} in a migration; what the database keeps of it, docs/adoption.md says"
    add = "" if found.observed.has_sealed else f"add {pair.sealed} in a migration; "
    return {
        "none": f"{add}`adopt next` puts the guard there",
        "added": "deploy the release that writes both columns; `adopt next` then seals what is there",
        "filled": "`adopt next` opens every sealed value and compares it with its plaintext",
        "verified": f"when every process writes both columns, `adopt next` refuses whoever writes {pair.plaintext} "
        f"alone, and {pair.sealed} may be read",
        "switched": f"deploy the release that reads {pair.sealed}, and let {pair.plaintext} be NULL; `adopt next` "
        f"compares once more, and then {pair.plaintext} need not be written",
        "retired": f"deploy the release that does not know {pair.plaintext}; `adopt next` then empties it",
    }[found.stage]
