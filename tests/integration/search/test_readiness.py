"""A column is searched only where each value has its token: what is missing is counted, and never missed silently."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from tests.support.clocks import Clocks
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars, LocalKms, Vault
from pii_vault.errors import BlindIndexError, IndexNotReadyError, UnsupportedOperationError
from pii_vault.keyring.terms import NOTICE_SECONDS
from pii_vault.orm import readiness


def people(kind: EncryptedString, **more: Any) -> Table:
    return Table(
        "people",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String(30), **more),
        Column("email", kind),
    )


OLD = people(EncryptedString())
NEW = people(EncryptedString(index=BlindIndex(create=False)))
MORE = people(
    EncryptedString(index=BlindIndex(create=False), tokens={"last2": BlindIndex(part=LastChars(2), create=False)})
)
CHANGED = people(EncryptedString(index=BlindIndex(normalise=("casefold",), create=False)))
MOVED = people(EncryptedString(index=BlindIndex(normalise=("casefold",), create=False, slot=1)))


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def world(world_on: Callable[..., World], database_url: str, clocks: Clocks) -> World:
    return world_on(database_url, OLD.metadata, clock=clocks.as_clock)


@pytest.fixture
def other(world: World, clocks: Clocks) -> Iterator[tuple[Vault, Engine]]:
    """Another process."""
    vault, engine = Vault(world.url, kms=world.kms, clock=clocks.as_clock), create_engine(world.url)
    vault.attach(engine, tenant_column="tenant_id")
    yield vault, engine
    engine.dispose()
    vault.close()


def write(world: World, table: Table, *emails: str | None, tenant: str = "acme") -> None:
    with world.vault.tenant(tenant), world.engine.begin() as connection:
        for email in emails:
            connection.execute(insert(table), {"tenant_id": tenant, "email": email})


def found(world: World, table: Table, email: str, tenant: str = "acme") -> list[int]:
    with world.vault.tenant(tenant), world.engine.connect() as connection:
        return list(connection.scalars(select(table.c.id).where(table.c.email == email).order_by(table.c.id)))


def seal_anew(world: World, table: Table, tenant: str = "acme") -> None:
    with world.vault.tenant(tenant), world.engine.begin() as connection:
        for number, email in connection.execute(
            select(table.c.id, table.c.email).where(table.c.tenant_id == tenant)
        ).all():
            connection.execute(update(table).where(table.c.id == number).values(email=email))


@contextmanager
def looks(world: World) -> Iterator[list[str]]:
    """Collect the statements that look at headers."""
    seen: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "people.email" in statement and "substr(people.email, 11, 16)" not in statement and "LIMIT" in statement:
            seen.append(statement)

    event.listen(world.engine, "before_cursor_execute", listen)
    yield seen
    event.remove(world.engine, "before_cursor_execute", listen)


def ready(world: World, tenant: str = "acme") -> list[Any]:
    return [each for each in world.vault._store.load(tenant).slots if each.ready_at is not None]


def test_values_without_a_token_are_counted_and_found_once_they_are_sealed_anew(world: World) -> None:
    write(world, OLD, "a@x", "b@x", None)
    write(world, NEW, "c@x")
    for _ in range(2):
        with pytest.raises(
            IndexNotReadyError, match=r"'people\.email'.* 1 of 3 .* other 2 .*pii-vault index build acme"
        ) as e:
            found(world, NEW, "a@x")
        assert (e.value.missing, e.value.total) == (2, 3)
    assert ready(world) == []
    seal_anew(world, NEW)
    assert found(world, NEW, "a@x") == [1]
    assert [(each.context, each.number, each.settled) for each in ready(world)] == [("people.email", 0, False)]


def test_an_empty_table_is_ready_and_so_is_one_with_null_only(world: World) -> None:
    assert found(world, NEW, "a@x") == []
    write(world, OLD, None, None, tenant="glob")
    assert found(world, NEW, "a@x", tenant="glob") == []
    assert len(ready(world)) == len(ready(world, "glob")) == 1


RELY: list[Callable[[Table], Any]] = [
    lambda t: select(t.c.id).where(t.c.email != "x"),
    lambda t: select(t.c.id).where(t.c.email.in_(["x"])),
    lambda t: select(t.c.id).where(t.c.email.not_in([])),
    lambda t: select(t.c.email.blind_index),
    lambda t: select(t.c.id).group_by(t.c.id, t.c.email.blind_index),
    lambda t: select(t.c.id).join(o := t.alias(), o.c.email == t.c.email),
    lambda t: select(select(t.c.id).where(t.c.email == "x").exists()),
    lambda t: select(select(t.c.email).subquery().c.email == "x"),
    lambda t: select(select(t.c.id).where(t.c.email == "x").cte()),
    lambda t: update(t).where(t.c.email == "x").values(tenant_id="acme"),
    lambda t: t.delete().where(t.c.email.in_(select(t.alias().c.email))),
    lambda t: select(t.c.id).where(t.c.email == None, t.c.email == "x"),  # noqa: E711
]


def test_every_statement_that_relies_on_tokens_asks(world: World) -> None:
    write(world, OLD, "a@x")
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        for statement in RELY:
            with pytest.raises(IndexNotReadyError):
                connection.execute(statement(NEW))


def test_statements_that_do_not_search_do_not_ask(world: World) -> None:
    write(world, OLD, "a@x")
    with looks(world) as seen, world.vault.tenant("acme"), world.engine.connect() as connection:
        assert connection.scalars(select(NEW.c.email)).all() == ["a@x"]
        assert connection.scalars(select(NEW.c.id).where(NEW.c.email.is_not(None))).all() == [1]
    assert seen == []


def test_each_tenant_has_its_own_readiness(world: World) -> None:
    write(world, OLD, "a@x")
    write(world, NEW, "a@x", tenant="glob")
    assert found(world, NEW, "a@x", tenant="glob") == [2]
    with pytest.raises(IndexNotReadyError, match="0 of 1"):
        found(world, NEW, "a@x")


def test_each_token_has_its_own_readiness(world: World) -> None:
    write(world, NEW, "a@x")
    assert found(world, MORE, "a@x") == [1]
    ending = select(MORE.c.id).where(MORE.c.email.token("last2") == "@x")
    with (
        world.vault.tenant("acme"),
        world.engine.connect() as connection,
        pytest.raises(IndexNotReadyError, match=r"token 'last2' of 'people\.email'"),
    ):
        connection.scalars(ending)
    seal_anew(world, MORE)
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        assert connection.scalars(ending).all() == [1]


def test_the_look_is_made_once(world: World, clocks: Clocks, other: tuple[Vault, Engine]) -> None:
    write(world, NEW, "a@x")
    with looks(world) as seen:
        for _ in range(3):
            assert found(world, NEW, "a@x") == [1]
            clocks.pass_(NOTICE_SECONDS)
        assert len(seen) == 1
        world.vault.evict("acme")
        assert found(world, NEW, "a@x") == [1]
        assert len(seen) == 1
    vault, engine = other
    with vault.tenant("acme"), engine.connect() as connection:
        searched: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *arguments: searched.append(arguments[2]))
        assert connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all() == [1]
        assert len(searched) == 1


def test_a_writer_with_the_old_model_is_refused_once_it_has_heard(
    world: World, clocks: Clocks, other: tuple[Vault, Engine]
) -> None:
    vault, engine = other

    def write_old() -> None:
        with vault.tenant("acme"), engine.begin() as connection:
            connection.execute(insert(OLD), {"tenant_id": "acme", "email": "old@x"})

    write_old()
    seal_anew(world, NEW)
    assert found(world, NEW, "old@x") == [1]
    clocks.pass_(NOTICE_SECONDS)
    for table in (OLD, CHANGED, MOVED):
        with pytest.raises(BlindIndexError, match=r"people\.email"), vault.tenant("acme"), engine.begin() as connection:
            connection.execute(insert(table), {"tenant_id": "acme", "email": "old@x"})
    with vault.tenant("glob"), engine.begin() as connection:
        connection.execute(insert(OLD), {"tenant_id": "glob", "email": "old@x"})
    write(world, MORE, "more@x")
    assert found(world, NEW, "more@x") == [2 + 1]


def test_a_changed_normaliser_wants_a_slot_of_its_own(world: World) -> None:
    write(world, NEW, "A@x")
    assert found(world, NEW, "A@x") == [1]
    with pytest.raises(BlindIndexError, match=r"slot 0 of 'people\.email'.*casefold"):
        found(world, CHANGED, "a@x")
    with pytest.raises(IndexNotReadyError):
        found(world, MOVED, "a@x")


def test_after_a_day_there_is_a_second_look(world: World, clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    write(world, NEW, "a@x")
    assert found(world, NEW, "a@x") == [1]
    with world.engine.begin() as connection:  # what a transaction that was open then has brought since
        connection.execute(text("UPDATE people SET email = email"))
    later = datetime.now(UTC) + readiness.SETTLED_AFTER + timedelta(minutes=1)
    monkeypatch.setattr(readiness, "datetime", type("Later", (), {"now": staticmethod(lambda _zone: later)}))
    with looks(world) as seen:
        world.vault.evict("acme")
        assert found(world, NEW, "a@x") == [1]
        assert len(seen) == 1
        world.vault.evict("acme")
        assert found(world, NEW, "a@x") == [1]
        assert len(seen) == 1
    assert [each.settled for each in ready(world)] == [True]


def test_what_the_second_look_finds_takes_readiness_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write(world, OLD, "late@x")
    with world.engine.connect() as connection:
        without = connection.execute(text("SELECT email FROM people")).scalar_one()
    seal_anew(world, NEW)
    assert found(world, NEW, "late@x") == [1]
    with world.engine.begin() as connection:  # as from a transaction that was open all the time
        connection.execute(text("UPDATE people SET email = :email"), {"email": without})
    later = datetime.now(UTC) + readiness.SETTLED_AFTER + timedelta(minutes=1)
    monkeypatch.setattr(readiness, "datetime", type("Later", (), {"now": staticmethod(lambda _zone: later)}))
    world.vault.evict("acme")
    with pytest.raises(IndexNotReadyError):
        found(world, NEW, "late@x")
    assert ready(world) == []
    seal_anew(world, NEW)
    assert found(world, NEW, "late@x") == [1]


def test_a_look_inside_a_transaction_that_is_rolled_back_promises_nothing(world: World) -> None:
    write(world, OLD, "a@x")
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        connection.execute(update(NEW).values(email="a@x"))
        assert connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all() == [1]
        connection.rollback()
    with pytest.raises(IndexNotReadyError):
        found(world, NEW, "a@x")
    seal_anew(world, NEW)
    with looks(world) as seen:
        for statement in (update(NEW).values(email="a@x"), text("UPDATE people SET email = email"), None):
            with world.vault.tenant("acme"), world.engine.connect() as connection:
                connection.execute(text("SELECT 1") if statement is None else statement)
                for _ in range(2):
                    connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all()
        assert len(seen) == 2 + 2 + 1


def test_rows_without_a_tenant_are_looked_at(world: World) -> None:
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(OLD), {"email": "a@x"})
    with pytest.raises(IndexNotReadyError):
        found(world, NEW, "a@x")


def test_a_table_in_another_schema_is_looked_at_where_the_statement_looks(world: World) -> None:
    if world.engine.dialect.name == "sqlite":
        pytest.skip("an attached database is one connection's")
    with world.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA elsewhere"))
        connection.execute(text("CREATE TABLE elsewhere.people AS SELECT * FROM people"))
    options = {"schema_translate_map": {None: "elsewhere"}}
    with world.vault.tenant("acme"), world.engine.connect().execution_options(**options) as connection:
        connection.execute(insert(OLD), {"id": 1, "tenant_id": "acme", "email": "a@x"})
        with pytest.raises(IndexNotReadyError):
            connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all()
        connection.commit()
    with world.vault.tenant("acme"), world.engine.connect() as connection, pytest.raises(IndexNotReadyError):
        connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x"), execution_options=options).all()


def test_it_is_found_out_while_the_application_s_own_transaction_writes(world: World) -> None:
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        for email in ("a@x", "b@x"):
            connection.execute(insert(NEW), {"tenant_id": "acme", "email": email})
            assert connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all() == [1]
    assert found(world, NEW, "b@x") == [2]


def test_a_database_in_memory_is_searched(tmp_path: Any) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(engine, kms=kms)
    vault.create_all()
    vault.add_tenant("acme", key=kms.create_key())
    vault.attach(engine, tenant_column="tenant_id")
    OLD.metadata.create_all(engine)
    with vault.tenant("acme"), engine.begin() as connection:
        connection.execute(insert(OLD), {"tenant_id": "acme", "email": "a@x"})
        with pytest.raises(IndexNotReadyError):
            connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x"))
        connection.execute(update(NEW).values(email="a@x"))
        assert connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x")).all() == [1]
    vault.close()
    engine.dispose()


def test_an_unindexed_column_is_not_searched_at_all(world: World) -> None:
    with pytest.raises(UnsupportedOperationError):
        found(world, OLD, "a@x")


def test_a_coroutine_looks_as_well(world: World) -> None:
    write(world, OLD, "a@x")

    async def on(url: str) -> None:
        engine = create_async_engine(url)
        world.vault.attach(engine, tenant_column="tenant_id")
        try:
            async with world.vault.tenant("acme"), engine.connect() as connection:
                with pytest.raises(IndexNotReadyError):
                    await connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x"))
                await connection.execute(update(NEW).values(email="a@x"))
                assert (await connection.scalars(select(NEW.c.id).where(NEW.c.email == "a@x"))).all() == [1]
        finally:
            await engine.dispose()

    for url in async_urls(world.url):
        asyncio.run(on(url))


def test_the_look_finds_its_way_through_an_index_on_the_tenant(world: World) -> None:
    write(world, NEW, "a@x")
    with looks(world) as seen:
        found(world, NEW, "a@x")
    assert "people.tenant_id = " in seen[0]
