"""A data key seals no more values than are counted, and no more than 2^32, whoever seals and whoever dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine, event, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.urls import async_url
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault, metering
from pii_vault.allowance import FIRST
from pii_vault.errors import KeyLimitError
from pii_vault.keyring import Clock
from pii_vault.keys import USE_LIMIT, USE_ROTATE, USE_WARN
from pii_vault.keystore.schema import key_use, tenants
from pii_vault.lifecycle.schedule import Step


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())
    age: Mapped[int | None] = mapped_column(EncryptedInteger())


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def build(build_world: Callable[..., World]) -> Callable[..., World]:
    return partial(build_world, Base.metadata)


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    return build()


def uid(world: World, tenant: str = "acme") -> bytes:
    with world.engine.connect() as connection:
        return bytes(connection.scalars(select(tenants.c.uid).where(tenants.c.name == tenant)).one())


def counted(world: World, version: int = 1) -> int:
    """How many uses the key store counts."""
    mine = (key_use.c.tenant_uid == uid(world)) & (key_use.c.purpose == "data") & (key_use.c.version == version)
    with world.engine.connect() as connection:
        return connection.scalars(select(key_use.c.reserved).where(mine)).one()


def set_counted(world: World, count: int) -> None:
    with world.engine.begin() as connection:
        connection.execute(update(key_use).where(key_use.c.tenant_uid == uid(world)).values(reserved=count))


def people(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"tenant_id": "acme", "email": f"{number}@example.com", **values} for number in range(count)]


def write(world: World, count: int, **values: Any) -> None:
    with world.session() as session:
        session.execute(insert(Person), people(count, **values))


def stored(world: World) -> int:
    with world.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Person)) or 0


# Counting.


def test_a_scope_counts_a_first_piece_and_no_more_while_that_lasts(world: World) -> None:
    assert counted(world) == 0
    for _ in range(3):
        write(world, 10)
    assert counted(world) == FIRST


def test_pieces_grow_while_a_process_goes_on(world: World) -> None:
    for _ in range(30):
        write(world, 100)
    assert 3000 <= counted(world) <= 3 * 3000


def test_a_large_statement_is_counted_at_once_with_all_its_columns(world: World) -> None:
    write(world, 5000, age=7)
    assert counted(world) >= 10_000


def test_each_version_is_counted_for_itself(world: World) -> None:
    write(world, 1)
    world.vault.rotate("acme")
    write(world, 1)
    assert (counted(world, 1), counted(world, 2)) == (FIRST, FIRST)


def test_reading_counts_nothing_more(world: World) -> None:
    write(world, 20)
    before = counted(world)
    for _ in range(50):
        with world.session() as session:
            assert len(session.scalars(select(Person.email)).all()) == 20
    assert counted(world) == before


def test_values_inside_a_statement_are_counted_too(world: World) -> None:
    with world.session() as session:
        session.execute(insert(Person).values(people(1500)))
    assert counted(world) >= 1500
    assert stored(world) == 1500


def test_an_update_is_counted(world: World) -> None:
    write(world, 1)
    for number in range(FIRST):
        with world.session() as session:
            session.execute(update(Person).where(Person.id == 1).values(email=f"{number}"))
    assert counted(world) > FIRST


def test_keys_that_are_fetched_again_go_on_with_what_is_left(build: Callable[..., World]) -> None:
    now = [1000.0]
    world = build(ttl=10, clock=Clock(lambda: now[0], lambda: now[0]))
    for _ in range(20):
        write(world, 1)
        now[0] += 11
    assert counted(world) == FIRST


def test_a_scope_without_a_time_to_live_goes_on_with_what_is_left(build: Callable[..., World]) -> None:
    world = build(ttl=0)
    for _ in range(20):
        write(world, 1)
    assert counted(world) == FIRST


def test_an_application_with_one_tenant_counts_without_a_scope(build: Callable[..., World]) -> None:
    world = build(default_tenant="acme")
    with world.sessions.begin() as session:
        session.execute(insert(Person), people(3))
    assert counted(world) == FIRST


def test_asynchronous_code_counts_off_the_event_loop(world: World, make_async_engine: Any) -> None:
    driver = "aiosqlite" if world.url.startswith("sqlite") else "asyncpg"
    engine = make_async_engine(async_url(world.url, driver))
    world.vault.attach(engine, tenant_column="tenant_id")
    asked: list[bool] = []

    @event.listens_for(world.vault._engine, "before_cursor_execute")
    def where(_c: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "pii_vault_key_use" in statement:
            asked.append(threading.current_thread() is threading.main_thread())

    async def run() -> None:
        async with world.vault.tenant("acme"), engine.begin() as connection:
            await connection.execute(insert(Person), people(3 * FIRST))

    asyncio.run(run())
    assert len(asked) >= 3  # the keys were read, then a first piece was counted, then the statement
    assert not any(asked)
    assert counted(world) >= 3 * FIRST


# Many processes.

_WORKER = """
import sys
from sqlalchemy import create_engine, insert
from pii_vault import LocalKms, Vault
from pii_vault.errors import KeyLimitError
sys.path.insert(0, {folder!r})
from test_use_limits import Base, Person, Plain, people
url, kms, batch, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
vault = Vault(url, kms=LocalKms(kms))
engine = create_engine(url, connect_args={{"timeout": 60}} if url.startswith("sqlite") else {{}})
vault.attach(engine, tenant_column="tenant_id")
done = 0
try:
    for _ in range(batches):
        with vault.tenant("acme"), engine.begin() as connection:
            connection.execute(insert(Person), people(batch))
        done += batch
        print(done, flush=True)
except KeyLimitError as error:
    print("refused", flush=True)
"""


def start(world: World, tmp_path: Path, batch: int, batches: int, script: str = _WORKER) -> subprocess.Popen[str]:
    script = script.format(folder=str(Path(__file__).parent))
    arguments = [sys.executable, "-c", script, world.url, str(tmp_path / "kms.json"), str(batch), str(batches)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_together_cannot_pass_the_limit(world: World, tmp_path: Path) -> None:
    room = 6 * FIRST
    set_counted(world, USE_LIMIT - room)
    processes = [start(world, tmp_path, batch=100, batches=100) for _ in range(3)]
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert not any("Traceback" in err for _, err in outcomes), outcomes
    assert all(out.endswith("refused\n") for out, _ in outcomes)
    assert 0 < stored(world) <= room
    assert counted(world) <= USE_LIMIT
    with pytest.raises(KeyLimitError, match=r"data key version 1 has sealed as many values as it may: 4294967296"):
        write(world, 100)


def test_a_process_that_is_killed_was_counted_for_all_that_it_sealed(world: World, tmp_path: Path) -> None:
    process = start(world, tmp_path, batch=50, batches=10_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 3000:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3000 <= stored(world) <= counted(world)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_spends_nothing_of_its_parents(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url, Base.metadata)
    write(world, 1)
    with world.vault.tenant("acme") as scope:
        keyset = scope.keyset
        assert keyset is not None
        left = keyset.allowance.left
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, f"{keyset.allowance.left} {len(keyset.sealings)}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"0 0"
        assert keyset.allowance.left == left > 0


# Near the limit.


def test_a_used_up_key_refuses_to_seal_before_the_statement_and_goes_on_opening(world: World) -> None:
    write(world, 3)
    world.vault.evict("acme")
    set_counted(world, USE_LIMIT)
    fresh = Vault(world.url, kms=world.kms)
    engine = create_engine(world.url)
    fresh.attach(engine, tenant_column="tenant_id")
    with fresh.tenant("acme"), engine.connect() as connection:
        assert len(connection.execute(select(Person.email)).all()) == 3
        with pytest.raises(KeyLimitError, match="key rotate") as caught:
            connection.execute(insert(Person), people(1))
        assert "example.com" not in str(caught.value)
    assert stored(world) == 3
    world.vault.rotate("acme")
    fresh.evict("acme")
    with fresh.tenant("acme"), engine.begin() as connection:
        connection.execute(insert(Person), people(1))
    assert stored(world) == 4
    engine.dispose()
    fresh.close()


def test_somebody_is_told_once_when_a_key_was_used_often(world: World, caplog: pytest.LogCaptureFixture) -> None:
    set_counted(world, USE_WARN - 1)
    with caplog.at_level(logging.WARNING, "pii_vault"):
        for _ in range(40):
            write(world, 100)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pii_vault.metering", "WARNING")
    assert "data key version 1 of tenant 'acme' was used" in record.getMessage()


def test_nobody_is_told_before(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pii_vault"):
        write(world, 10)
    assert caplog.records == []


def test_a_key_that_was_used_half_as_often_as_it_may_is_due(world: World) -> None:
    assert world.vault.rotate_due() == []
    set_counted(world, USE_ROTATE)
    (due,) = world.vault.rotate_due()
    assert (due.tenant, due.step, due.reason, due.version) == ("acme", Step.ROTATED, "limit", 2)


def test_the_count_never_falls(world: World) -> None:
    set_counted(world, 10)
    with pytest.raises(Exception, match="use counts only grow"):
        set_counted(world, 9)


# A key store that cannot be written.


def forbid(world: World) -> None:
    """Let every count be refused, as a database that may only be read does."""
    if world.engine.dialect.name == "sqlite":
        refuse = "SELECT RAISE(ABORT, 'read only')"
        statement = f"CREATE TRIGGER refused BEFORE UPDATE ON pii_vault_key_use BEGIN {refuse}; END"
    else:
        statement = "ALTER TABLE pii_vault_key_use RENAME TO pii_vault_key_use_gone"
    with world.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def allow(world: World) -> None:
    statement = "ALTER TABLE pii_vault_key_use_gone RENAME TO pii_vault_key_use"
    if world.engine.dialect.name == "sqlite":
        statement = "DROP TRIGGER refused"
    with world.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_warm_keys_seal_on_while_nothing_can_be_counted_and_make_up_for_it(
    build: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    world = build(ttl=3600, clock=Clock(lambda: now[0], lambda: now[0]))
    monkeypatch.setattr(metering, "OVERRUN", 20 * FIRST)
    write(world, 1)
    forbid(world)
    for _ in range(40):
        write(world, 100)
    allow(world)
    assert counted(world) < 4000
    now[0] += 2 * metering.AGAIN_SECONDS
    write(world, 1)
    assert counted(world) >= 4002


def test_no_more_than_a_piece_is_sealed_uncounted(build: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = build()
    monkeypatch.setattr(metering, "OVERRUN", 2 * FIRST)
    write(world, 1)
    forbid(world)

    def seal_on() -> None:
        for _ in range(100):
            write(world, 100)

    with pytest.raises(KeyLimitError, match=r"use of data key version 1 of tenant 'acme' cannot be counted"):
        seal_on()
    assert stored(world) <= FIRST + 2 * FIRST
    with world.session() as session:
        assert len(session.scalars(select(Person.email)).all()) == stored(world)


def test_closing_the_vault_reports_what_is_owed(build: Callable[..., World]) -> None:
    world = build()
    write(world, 1)
    forbid(world)
    for _ in range(15):
        write(world, 100)
    allow(world)
    world.vault.close()
    assert counted(world) >= 1501


def test_one_transaction_on_one_sqlite_file_may_seal_much(sqlite_url: str, world_on: Callable[..., World]) -> None:
    """The application's own transaction is the one writer then, so nothing can be counted until it ends."""
    world = world_on(sqlite_url, Base.metadata)
    started = time.monotonic()
    with world.session() as session:
        session.add(Plain(id=1))
        session.flush()
        for _ in range(10):
            session.execute(insert(Person), people(1000))
    # SQLite's patience is 5 seconds: the transaction did not wait for itself.
    assert time.monotonic() - started < 4
    assert stored(world) == 10_000
    world.vault.close()
    assert counted(world) >= 10_000


def test_a_process_that_ends_reports_what_it_owes(
    sqlite_url: str, tmp_path: Path, world_on: Callable[..., World]
) -> None:
    world = world_on(sqlite_url, Base.metadata)
    script = _WORKER.replace("as connection:\n", "as connection:\n            connection.execute(insert(Plain))\n")
    process = start(world, tmp_path, batch=5000, batches=1, script=script)
    assert process.communicate(timeout=60) == ("5000\n", "")
    assert counted(world) >= 5000


def test_a_reserve_never_commits_somebody_elses_transaction(tmp_path: Path) -> None:
    """In memory, SQLite has one connection for all: what counts uses must not commit what the application writes."""
    from sqlalchemy import StaticPool

    kms = LocalKms(tmp_path / "kms.json")
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    vault = Vault(engine, kms=kms)
    vault.create_all()
    vault.add_tenant("acme", key=kms.create_key())
    vault.attach(engine, tenant_column="tenant_id")
    Base.metadata.create_all(engine)
    with vault.tenant("acme"), Session(engine) as session:
        session.add(Plain(id=1))
        session.flush()
        session.execute(insert(Person), people(5 * FIRST))
        session.rollback()
        assert session.execute(text("SELECT count(*) FROM plain")).scalar_one() == 0
    vault.close()
    engine.dispose()
