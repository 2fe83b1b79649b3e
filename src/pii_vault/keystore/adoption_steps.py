"""How plaintext columns became sealed ones: the steps of each adoption, which are added and never changed."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, func, insert, select

from ..stages import AdoptionRecord
from .rows import adoption_record, values
from .schema import adoptions

_SAME_NAMES: Final = (
    *("context", "number", "stage", "plaintext", "sealed", "fallback_until", "rows"),
    *("made_at", "made_by", "reason"),
)

_any_step: Final = adoptions.alias("any_step")


def last_steps(connection: Connection) -> list[AdoptionRecord]:
    """Return the last step of each adoption, by context."""
    newest = select(func.max(_any_step.c.number)).where(_any_step.c.context == adoptions.c.context)
    query = select(adoptions).where(adoptions.c.number == newest.scalar_subquery()).order_by(adoptions.c.context)
    return [adoption_record(row) for row in connection.execute(query)]


def steps(connection: Connection, context: str) -> list[AdoptionRecord]:
    """Return all steps of an adoption, in order."""
    query = select(adoptions).where(adoptions.c.context == context).order_by(adoptions.c.number)
    return [adoption_record(row) for row in connection.execute(query)]


def add_step(connection: Connection, step: AdoptionRecord) -> None:
    """Store a step.

    Raises:
        sqlalchemy.exc.IntegrityError: another process has stored one of this number.
    """
    connection.execute(insert(adoptions).values(table_name=step.table, **values(step, _SAME_NAMES)))
