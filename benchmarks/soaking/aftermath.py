"""What is left in the database after a run: every stored value is looked at, and every one is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.soaking.application import MARK, Application, Note, value_of
from sqlalchemy import Engine, select, text

from pii_vault.errors import PiiVaultError

SEALED: Final = 0xFA
"""What the first byte of a sealed value is, in format 1."""


@dataclass
class Aftermath:
    """What was found.

    Attributes:
        rows: Rows in the table.
        plaintext_writes: Stored values that are not sealed, or contain plaintext.
        wrong_values: Values that open and are not what was written there.
        unreadable: Values that do not open, with all KMS keys as they were at first.
    """

    rows: int = 0
    plaintext_writes: int = 0
    wrong_values: int = 0
    unreadable: int = 0


def look_at(application: Application, tenants: Iterable[str]) -> Aftermath:
    """Look at all rows: at their bytes past the vault, and through it."""
    found = Aftermath()
    for stored in _stored(application.engine):
        found.rows += 1
        found.plaintext_writes += not is_sealed(stored)
    for tenant in tenants:
        _read(application, tenant, found)
    return found


def is_sealed(stored: object) -> bool:
    """Say whether these are the bytes of a sealed value, as far as anybody can tell without its key."""
    return isinstance(stored, bytes) and stored[:1] == bytes([SEALED]) and MARK.encode() not in stored


def _stored(engine: Engine) -> Iterator[object]:
    with engine.connect() as connection:
        yield from connection.execution_options(yield_per=1000).scalars(text("SELECT body FROM notes"))


def _read(application: Application, tenant: str, found: Aftermath) -> None:
    query = select(Note.id, Note.number, Note.revision).where(Note.tenant_id == tenant)
    with application.sessions() as session:
        rows = session.execute(query).all()
    try:
        with application.vault.tenant(tenant), application.sessions() as session:
            bodies = session.execute(select(Note.id, Note.body).where(Note.tenant_id == tenant)).all()
    except PiiVaultError:
        found.unreadable += len(rows)
        return
    opened = {identifier: body for identifier, body in bodies}  # noqa: C416 - a Row is no tuple for the type checker
    for identifier, number, revision in rows:
        found.wrong_values += opened[identifier] != value_of(tenant, number, revision)
