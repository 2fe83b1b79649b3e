"""What a database cannot do just now is tried again; what stays so ends the job with its name, and the next goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, String, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.application import wait_until
from tests.support.clocks import Clocks
from tests.support.postgres import PostgresServer
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString
from pii_vault.errors import ConfigurationError

ROWS: Final = 60
BATCH: Final = 20
TTL: Final = 100


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(String(30), default="")
    email: Mapped[str] = mapped_column(EncryptedString())
    age: Mapped[int] = mapped_column(EncryptedInteger())


def filled(world: World) -> World:
    with world.session() as session:
        session.add_all(Person(id=n, email=f"{n}@x.example", age=n) for n in range(1, ROWS + 1))
    world.vault.rotate("acme")
    return world


@pytest.fixture
def world(postgres_url: str, world_on: Callable[..., World]) -> World:
    return filled(world_on(postgres_url, Base.metadata))


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def crashable(crashable_postgres: PostgresServer, world_on: Callable[..., World], clocks: Clocks) -> Iterator[World]:
    url = crashable_postgres.url(crashable_postgres.create_database())
    world = filled(world_on(url, Base.metadata, ttl=TTL, clock=clocks.as_clock))
    yield world
    world.engine.dispose()


@pytest.fixture
def other(world: World, make_engine: Callable[..., Engine]) -> Iterator[Connection]:
    """Somebody else, beside the job."""
    with make_engine(world.url).connect() as connection:
        yield connection


def run(world: World, engine: Engine | None = None, **options: Any) -> Any:
    options = {"batch": BATCH, **options}
    return world.vault.reencrypt("acme", metadata=Base.metadata, engine=engine or world.engine, **options)


@contextmanager
def started(world: World, engine: Engine | None = None) -> Iterator[Future[Any]]:
    """A job in a thread, whose outcome is asked for in the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run, world, engine)


def versions(world: World) -> dict[int, int]:
    """Say how many values each data-key version has sealed."""
    query = "SELECT substr({0}, 6, 2) FROM people"
    with world.engine.connect() as connection:
        rows = [row[0] for each in ("email", "age") for row in connection.execute(text(query.format(each)))]
    found = [int.from_bytes(bytes(row), "big") for row in rows]
    return {each: found.count(each) for each in set(found)}


def assert_all_there(world: World, moved: Any) -> None:
    assert (moved.left, moved.problems) == (0, ())
    assert versions(world) == {2: 2 * ROWS}
    assert_contents(world)


def assert_contents(world: World) -> None:
    with world.session() as session:
        found = session.execute(select(Person.id, Person.email, Person.age).order_by(Person.id)).all()
    assert [tuple(row) for row in found] == [(n, f"{n}@x.example", n) for n in range(1, ROWS + 1)]


@pytest.fixture
def blocked(world: World, make_engine: Callable[..., Engine]) -> Iterator[Callable[[], int | None]]:
    """Say which connection waits for a row that somebody holds, or None."""
    query = text(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() LIMIT 1"
    )
    with make_engine(world.url, isolation_level="AUTOCOMMIT").connect() as looking:
        yield lambda: looking.scalar(query)


def hold(other: Connection, number: int) -> None:
    other.execute(text("SELECT 1 FROM people WHERE id = :id FOR UPDATE"), {"id": number})


def test_a_database_that_is_restarted_in_good_order_is_waited_for(
    crashable: World, crashable_postgres: PostgresServer
) -> None:
    restarted: list[int] = []

    def restart(_table: str, done: int, _total: int) -> None:
        if done >= BATCH and not restarted:
            restarted.append(done)
            crashable_postgres.stop()
            threading.Timer(0.5, crashable_postgres.start).start()

    moved = run(crashable, progress=restart)
    assert restarted
    assert_all_there(crashable, moved)


def test_keys_that_end_while_a_database_is_restarted_are_fetched_from_it(
    crashable: World, crashable_postgres: PostgresServer, clocks: Clocks
) -> None:
    restarted: list[int] = []

    def restart(_table: str, done: int, _total: int) -> None:
        if done >= BATCH and not restarted:
            restarted.append(done)
            crashable_postgres.stop()
            crashable_postgres.start()
            clocks.pass_(TTL)

    moved = run(crashable, progress=restart)
    assert restarted
    assert_all_there(crashable, moved)


def test_a_batch_whose_connection_is_cut_is_done_again(
    world: World, other: Connection, blocked: Callable[[], int | None]
) -> None:
    hold(other, 30)
    with started(world) as job:
        wait_until(blocked)
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": blocked()})
        other.rollback()
        moved = job.result(60)
    assert_all_there(world, moved)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_batch_that_cannot_be_serialized_is_done_again(
    level: str, world: World, other: Connection, blocked: Callable[[], int | None], make_engine: Callable[..., Engine]
) -> None:
    other.execute(text("UPDATE people SET name = 'meanwhile' WHERE id = 30"))
    with started(world, make_engine(world.url, isolation_level=level)) as job:
        wait_until(blocked)
        other.commit()
        moved = job.result(60)
    assert_all_there(world, moved)
    with world.engine.connect() as connection:
        assert connection.scalar(text("SELECT name FROM people WHERE id = 30")) == "meanwhile"


def deadlocks(connection: Connection) -> int:
    query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(connection.scalar(query) or 0)


def test_a_batch_that_is_the_victim_of_a_deadlock_is_done_again(
    world: World, other: Connection, blocked: Callable[[], int | None], make_engine: Callable[..., Engine]
) -> None:
    """Somebody locks rows in another order. Who looks for deadlocks first is the victim: that is the job here."""
    other.execute(text("SET deadlock_timeout = '60s'"))
    other.commit()
    engine = make_engine(world.url, connect_args={"options": "-c deadlock_timeout=2s"})
    hold(other, 30)
    with started(world, engine) as job:
        wait_until(blocked)
        other.execute(text("SELECT 1 FROM people ORDER BY id DESC FOR UPDATE"))
        other.rollback()
        moved = job.result(60)
    assert_all_there(world, moved)
    engine.dispose()  # a connection that ends says how many there were
    with world.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as looking:
        wait_until(lambda: deadlocks(looking))


TIMEOUTS: Final = {"a lock": "lock_timeout=300", "a statement": "statement_timeout=300"}


@pytest.mark.parametrize("setting", TIMEOUTS.values(), ids=TIMEOUTS)
def test_a_batch_that_took_too_long_is_done_again(
    setting: str, world: World, other: Connection, blocked: Callable[[], int | None], make_engine: Callable[..., Engine]
) -> None:
    hold(other, 30)
    engine = make_engine(world.url, connect_args={"options": f"-c {setting}"})
    with started(world, engine) as job:
        wait_until(blocked)
        wait_until(lambda: not blocked())  # its time was up
        other.rollback()
        moved = job.result(60)
    assert_all_there(world, moved)


def test_what_lasts_too_long_is_named_and_the_next_run_goes_on(
    world: World, other: Connection, make_engine: Callable[..., Engine]
) -> None:
    hold(other, 2 * BATCH + 5)
    engine = make_engine(world.url, connect_args={"options": "-c lock_timeout=50"})
    with pytest.raises(ConfigurationError, match="rows of table 'people' cannot be sealed anew") as caught:
        run(world, engine)
    assert "LockNotAvailable" in str(caught.value)
    assert "what is done stays, and doing it again goes on from there" in str(caught.value)
    assert caught.value.__cause__ is None
    assert versions(world) == {1: 2 * (ROWS - 2 * BATCH), 2: 2 * 2 * BATCH}
    assert_contents(world)
    other.rollback()
    assert_all_there(world, run(world, engine))


def test_a_sqlite_file_that_somebody_writes_to_is_waited_for(
    sqlite_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    keys = f"sqlite:///{tmp_path / 'keys.sqlite3'}"
    world = filled(world_on(sqlite_url, Base.metadata, key_store_url=keys))
    holder = make_engine(sqlite_url, connect_args={"check_same_thread": False}).connect()
    held: list[int] = []

    def hold_it(_table: str, done: int, _total: int) -> None:
        if done >= BATCH and not held:
            held.append(done)
            holder.execute(text("UPDATE people SET name = 'never' WHERE id = 1"))
            threading.Timer(1.0, holder.rollback).start()

    moved = run(
        world, make_engine(sqlite_url, connect_args={"timeout": 0.05, "check_same_thread": False}), progress=hold_it
    )
    assert held
    assert_all_there(world, moved)
    holder.close()
