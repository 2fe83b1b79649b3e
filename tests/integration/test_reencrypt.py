"""Every value of a tenant moves to its newest data key while the application writes, and nothing else changes."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    select,
    text,
    update,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.calendar import Calendar
from tests.support.clocks import Clocks
from tests.support.postgres import PostgresServer
from tests.support.processes import forking
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault
from pii_vault.envelope import parse
from pii_vault.errors import ConfigurationError, KeyNotFoundError, KeyStateError, TenantSuspendedError
from pii_vault.reencryption import resealing
from pii_vault.reencryption.rows import Rows
from pii_vault.reencryption.rows_psycopg import PsycopgRows
from pii_vault.reencryption.targets import Wanted, encrypted_tables

STAMP = datetime(2020, 1, 2, 3, 4, 5)


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column(EncryptedString(index=True))
    note: Mapped[str | None] = mapped_column(EncryptedString())
    age: Mapped[int | None] = mapped_column(EncryptedInteger())
    changed: Mapped[datetime] = mapped_column(DateTime, default=STAMP, onupdate=func.now())
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": revision}


class Ticket(Base):
    """With a primary key of two columns, text and UUID."""

    __tablename__ = "tickets"
    shop: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    holder: Mapped[str] = mapped_column(EncryptedString())


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    world = build_world(Base.metadata, now=calendar, ttl=300)
    for tenant in ("acme", "glob"):
        with world.session(tenant) as session:
            session.add_all(
                Person(email=f"{tenant}{n}@example.com", note=None if n % 3 else f"note {n}", age=n) for n in range(60)
            )
            session.add_all(Ticket(shop=f"s{n % 4}", number=uuid.uuid4(), holder=f"{tenant} {n}") for n in range(30))
    world.vault.rotate("acme")
    return world


def run(world: World, tenant: str = "acme", **options: Any) -> Any:
    return world.vault.reencrypt(tenant, metadata=Base.metadata, engine=world.engine, **options)


def versions(world: World, tenant: str = "acme") -> set[int]:
    found: set[int] = set()
    with world.engine.connect() as connection:
        for name, columns in (("people", ("email", "note", "age")), ("tickets", ("holder",))):
            for column in columns:
                query = text(f"SELECT substr({column}, 6, 2) FROM {name} WHERE tenant_id = :t AND {column} IS NOT NULL")
                found |= {int.from_bytes(bytes(row[0]), "big") for row in connection.execute(query, {"t": tenant})}
    return found


def contents(world: World, tenant: str) -> list[Any]:
    with world.session(tenant) as session:
        people = session.scalars(select(Person).where(Person.tenant_id == tenant).order_by(Person.id))
        tickets = session.scalars(select(Ticket).where(Ticket.tenant_id == tenant).order_by(Ticket.shop, Ticket.number))
        return [
            *((each.id, each.email, each.note, each.age, each.changed, each.revision) for each in people),
            *((each.shop, each.number, each.holder) for each in tickets),
        ]


def stored(world: World, tenant: str) -> list[Any]:
    with world.engine.connect() as connection:
        query = text("SELECT id, email, note, age FROM people WHERE tenant_id = :t ORDER BY id")
        return [tuple(map(bytes_or_same, row)) for row in connection.execute(query, {"t": tenant})]


def bytes_or_same(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def test_every_value_moves_and_nothing_else_changes(world: World, calendar: Calendar) -> None:
    before, others = contents(world, "acme"), stored(world, "glob")
    steps: list[tuple[str, int, int]] = []
    done = run(world, batch=7, progress=lambda *each: steps.append(each))
    assert (done.version, done.left, done.problems, done.foreign) == (2, 0, (), {})
    assert steps[:2] == [("people", 0, 60), ("tickets", 0, 30)]
    assert {("people", 60, 60), ("tickets", 30, 30)} < set(steps)
    assert versions(world) == {2}
    assert contents(world, "acme") == before  # values, `onupdate` columns and row versions
    assert stored(world, "glob") == others
    with world.session() as session:
        assert session.scalars(select(Person.age).where(Person.email == "acme7@example.com")).all() == [7]


def test_it_is_complete_only_when_nobody_can_be_sealing_with_the_old_key(world: World, calendar: Calendar) -> None:
    done = run(world)
    assert (done.left, done.complete) == (0, False)
    assert done.drained_at == calendar.now + timedelta(days=1)
    calendar.now += timedelta(days=1)
    assert run(world).complete
    assert world.vault.destroy_key("acme", 1, metadata=Base.metadata, engine=world.engine).key.state == "destroyed"


def test_all_columns_of_a_row_are_written_by_one_statement(world: World) -> None:
    updates: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: updates.append(sql))
    run(world)
    updates = [sql for sql in updates if sql.startswith("UPDATE")]
    assert all("email" in sql and "age" in sql for sql in updates if "people" in sql)
    assert len(updates) <= 4


def test_it_runs_no_hook_of_the_orm(world: World) -> None:
    heard: list[str] = []
    for name in ("before_update", "after_update", "load", "refresh"):
        event.listen(Person, name, lambda *_: heard.append("a hook"))
    run(world)
    assert heard == []


def test_a_row_that_cannot_be_opened_is_named_and_the_others_move(world: World, calendar: Calendar) -> None:
    with world.engine.begin() as connection:
        sealed = bytes(connection.scalar(text("SELECT note FROM people WHERE id = 1")))
        people = Table("people", MetaData(), Column("id"), Column("note", LargeBinary))
        broken = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        connection.execute(update(people).where(people.c.id == 1).values(note=broken))
    calendar.now += timedelta(days=2)
    done = run(world)
    assert [(each.column, each.key) for each in done.problems] == [("people.note", "1")]
    assert (done.left, done.complete) == (1, False)
    with pytest.raises(KeyStateError, match=r"still holds 1 value: 1 in people\.note"):
        world.vault.destroy_key("acme", 1, metadata=Base.metadata, engine=world.engine)


def test_what_was_sealed_for_another_tenant_is_reported_and_not_laundered(world: World) -> None:
    people = Table("people", MetaData(), Column("id"), Column("tenant_id"), Column("note", LargeBinary))
    with world.engine.begin() as connection:
        theirs = select(people.c.note).where(people.c.tenant_id == "glob", people.c.note.is_not(None)).limit(1)
        foreign = bytes(connection.scalar(theirs))
        connection.execute(update(people).where(people.c.id == 1).values(note=foreign))
    done = run(world)
    assert (done.left, done.problems, dict(done.foreign)) == (0, (), {"people.note": 1})
    with world.engine.connect() as connection:
        assert bytes(connection.scalar(select(people.c.note).where(people.c.id == 1))) == foreign
    world.vault.rotate("glob")
    theirs = run(world, "glob")  # nor is it given a new key where it does not belong
    assert (theirs.left, theirs.problems, dict(theirs.astray)) == (1, (), {"people.note": 1})
    with world.engine.connect() as connection:
        assert bytes(connection.scalar(select(people.c.note).where(people.c.id == 1))) == foreign


def test_what_somebody_wrote_past_everything_stays_beside_what_moves(world: World) -> None:
    """SQLite keeps text where text was written, also in a column of bytes."""
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE people SET note = 'plain text' WHERE id = 2"))
    done = run(world, batch=5)
    assert (done.left, done.problems, dict(done.foreign)) == (0, (), {"people.note": 1})
    assert stored(world, "acme")[1][2] in ("plain text", b"plain text")


def test_a_broken_value_of_the_newest_key_is_not_this_job_s_however_rows_are_read(world: World) -> None:
    """Its header says that it is not left, so it is not named: neither between rows that are left, nor alone."""
    with world.session() as session:
        session.execute(update(Person).where(Person.id == 4).values(note="newest"))
    people = Table("people", MetaData(), Column("id"), Column("note", LargeBinary))
    with world.engine.begin() as connection:
        sealed = bytes(connection.scalar(select(people.c.note).where(people.c.id == 4)))
        connection.execute(update(people).where(people.c.id == 4).values(note=sealed[:30]))
    for _ in range(2):
        done = run(world, batch=5)
        assert (done.left, done.problems) == (0, ())
    assert stored(world, "acme")[3][2] == sealed[:30]


def test_what_somebody_writes_meanwhile_stays(world: World) -> None:
    original, done = resealing.Resealing._write, list[bool]()

    def late(self: Any, change: Any) -> int:
        if not done:
            done.append(True)
            with world.vault.tenant("acme"), world.engine.begin() as connection:
                connection.execute(update(Person).where(Person.id == 4).values(note="written meanwhile"))
        return original(self, change)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resealing.Resealing, "_write", late)
        assert run(world).left == 0
    assert versions(world) == {2}
    with world.session() as session:
        assert session.scalar(select(Person.note).where(Person.id == 4)) == "written meanwhile"


def test_tables_without_a_primary_key_and_metadata_without_columns_are_refused(world: World) -> None:
    bare = MetaData()
    Table("people", bare, Column("email", EncryptedString()))
    for metadata, said in ((bare, "'people' has no primary key"), (MetaData(), "holds no encrypted column")):
        with pytest.raises(ConfigurationError, match=said):
            world.vault.reencrypt("acme", metadata=metadata, engine=world.engine)
    world.vault.deactivate("acme")
    with pytest.raises(KeyStateError, match="no active data key, so there is nothing to seal with"):
        run(world)


def work(url: str, kms: Path, seed: int) -> None:
    vault = Vault(url, kms=LocalKms(kms), ttl=300)
    engine = create_engine(url)
    vault.attach(engine, tenant_column="tenant_id")
    vault.reencrypt("acme", metadata=Base.metadata, engine=engine, batch=3 + seed % 5)
    os._exit(0)


def write(url: str, kms: Path, stop: Any, last: Any, seed: int) -> None:
    """Update rows at random, and say what was written last to each."""
    vault = Vault(url, kms=LocalKms(kms), ttl=1)
    engine = create_engine(url)
    vault.attach(engine, Session, tenant_column="tenant_id")
    chance, mine, turn = random.Random(seed), dict[int, str](), 0
    while not stop.is_set():
        turn += 1
        number = chance.randrange(seed, 400, 4) + 1
        with vault.tenant("acme"), engine.begin() as connection:
            connection.execute(update(Person).where(Person.id == number).values(note=f"{seed}-{turn}"))
        mine[number] = f"{seed}-{turn}"
    last.put(mine)
    vault.close()


def test_with_writers_and_kills_every_row_is_the_last_write_and_none_is_old(
    postgres_url: str, world_on: Callable[..., World], tmp_path: Path
) -> None:
    world = world_on(postgres_url, Base.metadata, ttl=1)
    with world.session() as session:
        session.add_all(Person(email=f"{n}@x", note="first", age=n) for n in range(400))
    context: Any = forking()
    stop, last = context.Event(), context.Queue()
    place = (world.url, tmp_path / "kms.json")
    writers = [context.Process(target=write, args=(*place, stop, last, seed)) for seed in range(4)]
    for each in writers:
        each.start()
    world.vault.rotate("acme")
    chance, killed = random.Random(3), 0
    for seed in range(12):
        job = context.Process(target=work, args=(*place, seed))
        job.start()
        job.join(0.2 + chance.random() * 0.2)
        if job.is_alive():
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        job.join()
    stop.set()
    written: dict[int, str] = {}
    for each in writers:
        written |= last.get(timeout=30)
        each.join()
    assert killed >= 1
    done = run(world)
    assert (done.left, done.problems) == (0, ())
    with world.session() as session:
        found = {each.id: each.note for each in session.scalars(select(Person))}
    assert len(found) == 400
    assert {number: found[number] for number in written} == written
    assert {note for number, note in found.items() if number not in written} <= {"first"}
    assert versions(world) == {2}


def test_what_a_compromised_key_sealed_is_moved_and_opened_by_nobody_else(world: World, calendar: Calendar) -> None:
    before = contents(world, "acme")
    world.vault.compromise("acme", 1, "leaked")
    with pytest.raises(KeyNotFoundError, match="is compromised"), world.session() as session:
        session.scalars(select(Person.note).where(Person.tenant_id == "acme")).all()
    done = run(world, batch=7)
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2}
    assert contents(world, "acme") == before
    with world.vault.tenant("acme") as scope:
        assert scope.keyset is not None
        assert scope.keyset.versions == {2}  # and nobody else came to hold it by that
    calendar.now += timedelta(days=1)
    assert world.vault.destroy_key("acme", 1, metadata=Base.metadata, engine=world.engine).key.state == "destroyed"


def test_an_eviction_reaches_a_job_that_runs(world: World) -> None:
    """The customer's word ends a job that holds more keys than anybody else, too."""
    held: list[Any] = []

    def look(_table: str, done: int, _total: int) -> None:
        if not done:
            return
        (job,) = [each for each in world.vault._keyring._memory._live if each.versions == {1, 2}][:1]
        held.append(job)
        if len(held) == 2:
            world.vault.suspend("acme", "stop")

    with pytest.raises(TenantSuspendedError):
        run(world, batch=7, progress=look)
    assert versions(world) == {1, 2}
    world.vault.resume("acme")
    assert run(world).left == 0


def test_a_job_outlives_its_keys(
    world_on: Callable[..., World], database_url: str, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PsycopgRows, "side_by_side", False)  # the clock is to move between two batches, not in one
    clocks = Clocks()
    world = world_on(database_url, Base.metadata, now=calendar, ttl=10, clock=clocks.as_clock)
    with world.session() as session:
        session.add_all(Person(email=f"{n}@x", age=n) for n in range(50))
    world.vault.rotate("acme")
    world.vault.compromise("acme", 1)
    done = run(world, batch=5, progress=lambda *_: clocks.pass_(11))
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2}


def test_a_database_that_is_killed_and_starts_again_is_waited_for(
    crashable_postgres: PostgresServer, world_on: Callable[..., World]
) -> None:
    world = world_on(crashable_postgres.url(crashable_postgres.create_database()), Base.metadata)
    with world.session() as session:
        session.add_all(Person(email=f"{n}@x", age=n) for n in range(60))
    world.vault.rotate("acme")
    killed: list[bool] = []

    def kill(_table: str, done: int, _total: int) -> None:
        if done >= 20 and not killed:
            killed.append(True)
            crashable_postgres.kill()
            threading.Timer(1.0, crashable_postgres.start).start()

    done = run(world, batch=10, progress=kill)
    assert killed
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2}
    world.engine.dispose()


def test_a_row_that_somebody_holds_locked_is_waited_for(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url, Base.metadata)
    with world.session() as session:
        session.add_all(Person(email=f"{n}@x", age=n) for n in range(20))
    world.vault.rotate("acme")
    engine = create_engine(postgres_url, connect_args={"options": "-c lock_timeout=100"})
    other = create_engine(postgres_url)
    holder = other.connect()
    holder.execute(text("SELECT id FROM people WHERE id = 5 FOR UPDATE"))
    threading.Timer(0.8, holder.close).start()
    done = world.vault.reencrypt("acme", metadata=Base.metadata, engine=engine)
    assert (done.left, done.problems) == (0, ())
    engine.dispose()
    other.dispose()


def test_what_will_not_pass_is_not_waited_for(world: World) -> None:
    asked: list[int] = []

    def refused(*_: Any) -> Any:
        asked.append(1)
        raise ProgrammingError("SELECT", {"value": "hunter2"}, ValueError("hunter2"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rows, "read", refused)
        with pytest.raises(
            ConfigurationError, match="rows of table 'people' cannot be sealed anew: ValueError"
        ) as caught:
            run(world)
    assert len(asked) == 1
    assert "hunter2" not in str(caught.value)


def test_what_a_newer_key_has_sealed_meanwhile_is_never_sealed_back(world: World) -> None:
    """Another process has rotated while the job runs, whose keyset held the next version before it was active."""
    run(world)
    world.vault.rotate("acme")
    with world.session() as session:
        session.execute(update(Person).where(Person.id == 4).values(note="newest"))
    people = Table("people", MetaData(), Column("id"), Column("note", LargeBinary))
    stored_note = select(people.c.note).where(people.c.id == 4)
    with world.engine.connect() as connection:
        before = bytes(connection.scalar(stored_note))
    target = next(each for each in encrypted_tables(Base.metadata) if each.name == "people")
    with world.vault.tenant("acme") as scope:
        job = resealing.Resealing(world.engine, scope, target, Wanted(frozenset((1,)), version=2))
        assert job.count() == 0
        assert (sum(job.run()), job.problems) == (0, [])
        assert not Wanted(frozenset((1,)), version=2).is_lacking(parse(before), target.kinds["note"])
    with world.engine.connect() as connection:
        assert bytes(connection.scalar(stored_note)) == before
