"""A table in which plaintext columns are being adopted: as it is mapped before the switch, after it, and as it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Column, Date, ForeignKey, Integer, MetaData, String, Table, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from tests.support.world import World

from pii_vault import EncryptedDate, EncryptedString
from pii_vault.stages import AdoptionRecord, Stage

EMAIL = EncryptedString(index=True).adopting("email")
NICK = EncryptedString().adopting("nick_name")
BORN = EncryptedDate().adopting("born")
PLAN = EncryptedString().adopting("plan")


class Before(DeclarativeBase):
    pass


class Person(Before):
    """The model until the switch: its attributes are the plaintext columns."""

    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(20))
    email: Mapped[str | None] = mapped_column(String(100))
    email_sealed: Mapped[str | None] = mapped_column(EMAIL, deferred=True)
    nick: Mapped[str | None] = mapped_column("nick_name", String(100), key="nick")
    nick_sealed: Mapped[str | None] = mapped_column(NICK, deferred=True)
    born: Mapped[dt.date | None] = mapped_column(Date)
    born_sealed: Mapped[dt.date | None] = mapped_column(BORN, deferred=True)
    plan: Mapped[str | None] = mapped_column(String(100), default="free")
    plan_sealed: Mapped[str | None] = mapped_column(PLAN, deferred=True)


class After(DeclarativeBase):
    pass


class Switched(After):
    """The model from the switch on: its attributes are the sealed columns."""

    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(20))
    email: Mapped[str | None] = mapped_column("email_sealed", EMAIL)
    email_plain: Mapped[str | None] = mapped_column("email", String(100), deferred=True)
    nick: Mapped[str | None] = mapped_column("nick_sealed", NICK)
    nick_plain: Mapped[str | None] = mapped_column("nick_name", String(100), key="nick", deferred=True)
    born: Mapped[dt.date | None] = mapped_column("born_sealed", BORN)
    born_plain: Mapped[dt.date | None] = mapped_column("born", Date, deferred=True)
    plan: Mapped[str | None] = mapped_column("plan_sealed", PLAN, default="free")
    plan_plain: Mapped[str | None] = mapped_column("plan", String(100), deferred=True)


class Falling(DeclarativeBase):
    pass


class Fallen(Falling):
    """The model of who switches early: what was not sealed yet is read from the plaintext column, for a time."""

    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(20))
    email: Mapped[str | None] = mapped_column(
        "email_sealed", EncryptedString(index=True).adopting("email", falls_back=True)
    )
    email_plain: Mapped[str | None] = mapped_column("email", String(100), deferred=True)
    notes: Mapped[list[Note]] = relationship()


class Note(Falling):
    """What somebody has to say: something to join."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey(Fallen.id))
    text: Mapped[str] = mapped_column(String(100))


people = Person.__table__

AS_IT_IS = Table(
    "persons",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("email", String(100)),
    Column("email_sealed", EncryptedString(context="persons.email", index=True)),
    Column("nick_name", String(100)),
    Column("nick_sealed", EncryptedString(context="persons.nick_name")),
    Column("born", Date),
    Column("born_sealed", EncryptedDate(context="persons.born")),
    Column("plan", String(100)),
    Column("plan_sealed", EncryptedString(context="persons.plan")),
)
PAIRS = (("email", "email_sealed"), ("nick_name", "nick_sealed"), ("born", "born_sealed"), ("plan", "plan_sealed"))
CONTEXTS = tuple(f"persons.{plaintext}" for plaintext, _ in PAIRS)


def stored(session: Session) -> dict[int, dict[str, Any]]:
    """Return the plaintext columns of all rows, after each sealed one was opened and found to hold the same."""
    found = {row.id: row._mapping for row in session.execute(select(AS_IT_IS))}
    for row in found.values():
        for plaintext, sealed in PAIRS:
            assert row[sealed] == row[plaintext], sealed
    return {number: {plaintext: row[plaintext] for plaintext, _ in PAIRS} for number, row in found.items()}


def emails(world: World) -> dict[int, str | None]:
    """Return the addresses of all rows, found equal in both columns."""
    with world.session() as session:
        return {number: row["email"] for number, row in stored(session).items()}


def at(world: World, stage: Stage, *contexts: str, fallback_until: datetime | None = None) -> None:
    """Take a step of adoptions; all of them if none is named."""
    store: Any = world.vault._store
    for context in contexts or CONTEXTS:
        number = len(store.adoption_steps(context)) + 1
        table, plaintext = context.split(".")
        step = AdoptionRecord(
            context, number, stage, table, plaintext, "sealed", fallback_until, None, datetime.now(UTC), "test"
        )
        store.add_adoption_step(step)
    forget(world)


def forget(world: World) -> None:
    """Have the next read look how far adoptions are, as after a few seconds."""
    adoptions: Any = world.vault._keyring.adoptions
    adoptions._due_at = adoptions._again_at = float("-inf")


@pytest.fixture
def people_world(_shared_world: World) -> Iterator[World]:
    """A world with an empty table of people, whose adoption is at the stage *added*."""
    Before.metadata.create_all(_shared_world.engine)
    Falling.metadata.create_all(_shared_world.engine)
    if _shared_world.engine.dialect.name == "postgresql":
        with _shared_world.engine.begin() as connection:  # rows bring their own ids
            connection.exec_driver_sql("ALTER SEQUENCE persons_id_seq RESTART WITH 1000")
    at(_shared_world, Stage.ADDED)
    yield _shared_world
    with _shared_world.engine.begin() as connection:
        connection.execute(Note.__table__.delete())
        connection.execute(people.delete())
