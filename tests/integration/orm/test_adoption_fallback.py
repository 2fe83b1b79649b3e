"""Where no value was sealed yet the plaintext is read instead: if it is declared, and for as long as it is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    column,
    func,
    insert,
    select,
    text,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, aliased, joinedload
from tests.integration.orm import adopting
from tests.integration.orm.adopting import AS_IT_IS, Fallen, Note, Person, at, emails, forget, people
from tests.support.canary import Secrets, leaks
from tests.support.urls import ASYNC_DRIVERS, async_url
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import (
    AdoptionError,
    ConfigurationError,
    KmsDeniedError,
    NoTenantError,
    NotEncryptedError,
    UnsupportedOperationError,
)
from pii_vault.scope import Scope
from pii_vault.stages import Stage
from pii_vault.telemetry import Telemetry

people_world = adopting.people_world
fallen = Fallen.__table__
CANARY = "canary-7Qw9ZkPpYv2-ä~"
WHOLE = ["sealed@new", CANARY, None]


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def half_world(people_world: World) -> World:
    """A sealed value, one that was not sealed yet, and none; reading the plaintext is allowed."""
    with people_world.session() as session:
        session.execute(
            insert(Person),
            [{"id": each + 1, "tenant_id": "acme", "email": email, "name": "n"} for each, email in enumerate(WHOLE)],
        )
        session.execute(text("update persons set email_sealed = null where id > 1"))
        session.execute(insert(Note), [{"id": 1, "person_id": 2, "text": "hello"}])
    at(people_world, Stage.ADDED, "persons.email", fallback_until=soon())
    return people_world


sub = select(Fallen.id, Fallen.email).subquery()
deep = select(select(sub).subquery()).cte("deep")
other = aliased(Fallen)
of_sub = aliased(Fallen, select(Fallen).subquery())
of_table = fallen.alias("of_table")

READS: dict[str, Callable[[Session], Any]] = {
    "the column": lambda s: s.scalars(select(Fallen.email).order_by(Fallen.id)),
    "a label": lambda s: s.scalars(select(Fallen.email.label("address")).order_by(Fallen.id)),
    "objects": lambda s: [each.email for each in s.scalars(select(Fallen).order_by(Fallen.id))],
    "one by one": lambda s: [s.get_one(Fallen, each).email for each in (1, 2, 3)],
    "rows with others": lambda s: [row.email for row in s.execute(select(Fallen.id, Fallen.email).order_by(Fallen.id))],
    "by name": lambda s: [row._mapping["email_sealed"] for row in s.execute(select(fallen).order_by(fallen.c.id))],
    "twice": lambda s: [row[1] for row in s.execute(select(Fallen.email, Fallen.email).order_by(Fallen.id))],
    "core": lambda s: s.connection().execute(select(fallen.c.email_sealed).order_by(fallen.c.id)).scalars(),
    "an aliased class": lambda s: [each.email for each in s.scalars(select(other).order_by(other.id))],
    "an aliased table": lambda s: s.scalars(select(of_table.c.email_sealed).order_by(of_table.c.id)),
    "a join": lambda s: s.scalars(select(other.email).join(Fallen, Fallen.id == other.id).order_by(other.id)),
    "a subquery": lambda s: s.scalars(select(sub.c.email).order_by(sub.c.id)),
    "a class of a subquery": lambda s: [each.email for each in s.scalars(select(of_sub).order_by(of_sub.id))],
    "a CTE of subqueries": lambda s: s.scalars(select(deep.c.email).order_by(deep.c.id)),
    "a scalar subquery": lambda s: s.scalars(
        select(select(other.email).where(other.id == Fallen.id).correlate(Fallen).scalar_subquery())
        .select_from(Fallen)
        .order_by(Fallen.id)
    ),
    "a loader that limits": lambda s: [
        each.email
        for each in s.scalars(select(Fallen).options(joinedload(Fallen.notes)).order_by(Fallen.id).limit(3)).unique()
    ],
    "a union": lambda s: [
        row[1]
        for row in s.execute(
            union_all(
                select(Fallen.id, Fallen.email).where(Fallen.id < 2),
                select(Fallen.id, Fallen.email).where(Fallen.id > 1),
            ).order_by("id")
        )
    ],
    "distinct with the key": lambda s: [
        row[1] for row in s.execute(select(Fallen.id, Fallen.email).distinct().order_by(Fallen.id))
    ],
    "a from_statement": lambda s: [
        each.email for each in s.scalars(select(Fallen).from_statement(select(fallen).order_by(fallen.c.id)))
    ],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_plaintext_is_read_where_nothing_was_sealed(half_world: World, read: Any) -> None:
    for _ in range(2):  # the second time it is compiled already
        with half_world.vault.tenant("acme"), half_world.sessions() as session:
            assert list(read(session)) == WHOLE


def test_what_was_returned_falls_back_too(half_world: World) -> None:
    dialect = half_world.engine.dialect
    with half_world.session() as session:
        if dialect.insert_returning:
            made = insert(Fallen).values(id=4, tenant_id="acme", email="4@new").returning(Fallen.email)
            assert session.scalars(made).one() == "4@new"
        if dialect.update_returning:
            changed = update(Fallen).where(Fallen.id == 2).values(name="x").returning(Fallen)
            assert session.scalars(changed).one().email == CANARY
            core = update(fallen).where(fallen.c.id == 2).values(name="y").returning(fallen.c.email_sealed)
            assert session.execute(core).scalar_one() == CANARY


def test_writing_seals(half_world: World) -> None:
    with half_world.session() as session:
        session.get_one(Fallen, 2).email = "2@new"
        session.add(Fallen(id=4, tenant_id="acme", email="4@new"))
    assert emails(half_world) == {1: "sealed@new", 2: "2@new", 3: None, 4: "4@new"}


CONDITIONS: dict[str, Callable[[], Any]] = {
    "is null": lambda: select(Fallen.id).where(Fallen.email.is_(None)),
    "count": lambda: select(func.count(Fallen.email)),
    "a search": lambda: select(Fallen.id).where(Fallen.email == "x"),
    "a search beside it": lambda: select(Fallen).where(Fallen.email == "x"),
    "a search in a subquery": lambda: select(sub.c.email).where(sub.c.email == "x"),
    "a null of a subquery": lambda: select(sub.c.email).where(sub.c.email.is_(None)),
    "text": lambda: text("select id, email_sealed from persons").columns(fallen.c.id, fallen.c.email_sealed),
    "a column without a table": lambda: select(column("name", fallen.c.email_sealed.type)).select_from(fallen),
    "a coerced column": lambda: select(type_coerce(fallen.c.name, fallen.c.email_sealed.type)),
    "a subquery of text": lambda: select(
        text("select email_sealed from persons").columns(fallen.c.email_sealed).subquery()
    ),
}


@pytest.mark.parametrize("statement", CONDITIONS.values(), ids=CONDITIONS)
def test_conditions_do_not_fall_back(half_world: World, statement: Any) -> None:
    refused = pytest.raises(AdoptionError, match=r"persons\.email_sealed is read")
    with half_world.vault.tenant("acme"), half_world.sessions() as session, refused:
        session.execute(statement()).all()


NOT_ALLOWED: dict[str, tuple[Stage, timedelta | None]] = {
    "never": (Stage.ADDED, None),
    "no longer": (Stage.VERIFIED, timedelta(seconds=-1)),
    "after the switch": (Stage.SWITCHED, timedelta(hours=1)),
    "after that": (Stage.RETIRED, timedelta(hours=1)),
    "without a guard": (Stage.NONE, timedelta(hours=1)),
}


@pytest.mark.parametrize(("stage", "left"), NOT_ALLOWED.values(), ids=NOT_ALLOWED)
def test_nothing_falls_back_unless_it_is_allowed(half_world: World, stage: Stage, left: timedelta | None) -> None:
    at(half_world, stage, "persons.email", fallback_until=None if left is None else datetime.now(UTC) + left)
    with half_world.vault.tenant("acme"), half_world.sessions() as session:
        with pytest.raises(AdoptionError, match=r"persons\.email_sealed.*pii-vault adopt") as caught:
            session.scalars(select(Fallen.email)).all()
        assert leaks(caught.value, Secrets(CANARY)) == []
        others = select(Fallen.email).where(Fallen.id != 2).order_by(Fallen.id)
        if stage is Stage.NONE:
            with pytest.raises(AdoptionError, match="'none'"):
                session.scalars(others)
        else:
            assert session.scalars(others).all() == ["sealed@new", None]


@pytest.mark.parametrize("stage", [Stage.ADDED, Stage.FILLED, Stage.VERIFIED])
def test_it_is_allowed_at_every_stage_before_the_switch(half_world: World, stage: Stage) -> None:
    at(half_world, stage, "persons.email", fallback_until=soon())
    with half_world.vault.tenant("acme"), half_world.sessions() as session:
        assert session.scalars(select(Fallen.email).order_by(Fallen.id)).all() == WHOLE


def test_what_is_allowed_now_is_known_at_once(half_world: World) -> None:
    at(half_world, Stage.ADDED, "persons.email")
    with half_world.vault.tenant("acme"), half_world.sessions() as session:
        session.scalars(select(Fallen.email).where(Fallen.id == 1)).all()
        at(half_world, Stage.ADDED, "persons.email", fallback_until=soon())
        adoptions: Any = half_world.vault._keyring.adoptions
        adoptions._due_at = float("inf")
        assert session.scalars(select(Fallen.email).order_by(Fallen.id)).all() == WHOLE


def test_after_the_switch_it_is_searched_and_read(half_world: World) -> None:
    with half_world.session() as session:
        session.get_one(Fallen, 2).email = "2@new"
    at(half_world, Stage.SWITCHED, "persons.email")
    with half_world.vault.tenant("acme"), half_world.sessions() as session:
        assert session.scalars(select(Fallen.id).where(Fallen.email == "2@new")).all() == [2]
        assert session.scalars(select(Fallen.email).order_by(Fallen.id)).all() == ["sealed@new", "2@new", None]
        assert session.scalars(select(sub.c.id).where(sub.c.email == "2@new")).all() == [2]


def test_a_scope_is_needed(half_world: World) -> None:
    with half_world.sessions() as session, pytest.raises(NoTenantError):
        session.scalars(select(Fallen.email).where(Fallen.id == 2)).all()
    with half_world.sessions() as session:
        with half_world.vault.tenant("acme"):
            result = session.connection().execute(select(fallen.c.email_sealed).where(fallen.c.id == 2))
        with pytest.raises(NoTenantError) as caught:
            result.all()
        assert leaks(caught.value, Secrets(CANARY)) == []


def test_who_may_not_open_values_reads_no_plaintext(half_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Any) -> Any:
        raise KmsDeniedError("no longer")

    with half_world.vault.tenant("acme"), half_world.sessions() as session:
        result = session.connection().execute(select(fallen.c.email_sealed).where(fallen.c.id == 2))
        monkeypatch.setattr(Scope, "renew", refuse)
        with pytest.raises(KmsDeniedError):
            result.all()
        monkeypatch.undo()


def test_a_column_that_does_not_fall_back_takes_no_marked_value(half_world: World) -> None:
    with half_world.session() as session:
        session.execute(text("update persons set email_sealed = :b where id = 2"), {"b": b"~" + CANARY.encode()})
    for strict in (AS_IT_IS.c.email_sealed, people.c.email_sealed):
        at(half_world, Stage.SWITCHED, "persons.email")
        with half_world.vault.tenant("acme"), half_world.sessions() as session:
            with pytest.raises(NotEncryptedError) as caught:
                session.scalars(select(strict)).all()
            assert leaks(caught.value, Secrets(CANARY)) == []


def test_each_value_is_told(half_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    keyring: Any = half_world.vault._keyring
    telemetry = Telemetry()
    monkeypatch.setattr(telemetry, "fell_back", told.append)
    monkeypatch.setattr(keyring, "_telemetry", telemetry)
    with half_world.session() as session:
        session.scalars(select(Fallen.email)).all()
        session.scalars(select(Fallen.email).where(Fallen.id == 2)).all()
    assert told == ["persons.email", "persons.email"]


def test_what_sql_makes_of_it_is_refused_as_ever(half_world: World) -> None:
    with half_world.session() as session:
        for expression in (func.lower(Fallen.email), func.coalesce(Fallen.email, "x")):
            with pytest.raises(UnsupportedOperationError):
                session.execute(select(expression))


def test_only_text_falls_back_to_text(people_world: World) -> None:
    def declared(*columns: Column[Any]) -> Table:
        kind = EncryptedString(context="more").adopting("email", falls_back=True)
        return Table("declared", MetaData(), Column("id", Integer, primary_key=True), *columns, Column("sealed", kind))

    for table in (declared(), declared(Column("email", Integer))):
        with people_world.session() as session, pytest.raises(ConfigurationError, match="'email'"):
            session.execute(select(table.c.sealed))


@pytest.mark.parametrize(
    ("_shared_world", "driver"),
    [(backend, driver) for backend, drivers in ASYNC_DRIVERS.items() for driver in drivers],
    indirect=["_shared_world"],
    scope="session",
)
def test_asynchronous_drivers_do_it_too(half_world: World, driver: str) -> None:
    async def work() -> list[str | None]:
        engine = create_async_engine(async_url(half_world.url, driver))
        sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
        half_world.vault.attach(engine, sessions, tenant_column="tenant_id")
        try:
            forget(half_world)
            async with half_world.vault.tenant("acme"), sessions() as session:
                return [each.email for each in await session.scalars(select(Fallen).order_by(Fallen.id))]
        finally:
            await engine.dispose()

    assert asyncio.run(work()) == WHOLE
