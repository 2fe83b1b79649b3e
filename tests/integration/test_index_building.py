"""A column that gains an index later: nothing is missed, the rows are sealed anew, and the key can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    column,
    delete,
    func,
    insert,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column
from tests.support.audited import owning
from tests.support.calendar import Calendar
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedInteger, EncryptedString, LastChars
from pii_vault.errors import (
    BlindIndexError,
    ConfigurationError,
    DuplicateValueError,
    IndexNotReadyError,
    KeyStateError,
)
from pii_vault.keys import KeyState, Purpose
from pii_vault.keystore.schema import keys
from pii_vault.reencryption.indexing import State, Step


class Old(DeclarativeBase):
    """The application before its columns had an index."""

    type_annotation_map = {str: String(60)}  # MariaDB wants to know


class OldPerson(Old):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str | None] = mapped_column(EncryptedString())
    ssn: Mapped[str | None] = mapped_column(EncryptedString())
    age: Mapped[int | None] = mapped_column(EncryptedInteger())


class New(DeclarativeBase):
    """The application afterwards."""

    type_annotation_map = {str: String(60)}


class Person(New):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(unique=True, normalise=("casefold",))))
    ssn: Mapped[str | None] = mapped_column(EncryptedString(index=True, tokens={"last4": LastChars(4)}))
    age: Mapped[int | None] = mapped_column(EncryptedInteger())


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], calendar: Calendar, tmp_path: Path) -> World:
    urls = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # The key store is never on MariaDB.
    key_store_url = f"sqlite:///{tmp_path / 'keys.sqlite3'}" if request.param == "mariadb" else None
    url = request.getfixturevalue(urls[request.param])
    world = world_on(url, Old.metadata, key_store_url=key_store_url, now=calendar, ttl=300)
    with world.session() as session:
        session.add_all(OldPerson(email=f"p{n}@example.com", ssn=f"{n:09}", age=n) for n in range(20))
    with world.session("glob") as session:
        session.add_all(OldPerson(email=f"p{n}@example.com") for n in range(3))
    for index in Person.__table__.indexes:  # as a migration does before the rows are sealed anew
        index.create(world.engine)
    return world


def build(world: World, tenant: str = "acme") -> Any:
    return world.vault.build_index(tenant, metadata=New.metadata, engine=world.engine)


def rotate(world: World, tenant: str = "acme") -> Any:
    return world.vault.rotate_index(tenant, metadata=New.metadata, engine=world.engine)


def found(world: World, condition: Any, tenant: str = "acme") -> list[int | None]:
    with world.session(tenant) as session:
        return list(
            session.scalars(select(Person.age).where(condition, Person.tenant_id == tenant).order_by(Person.id))
        )


def generations(world: World, tenant: str = "acme") -> set[int]:
    stored = column("email", LargeBinary)
    query = select(func.substr(stored, 9, 1)).select_from(table("people", stored, column("tenant_id", String)))
    with world.engine.connect() as connection:
        return {bytes(each)[0] for (each,) in connection.execute(query.where(column("tenant_id") == tenant))}


def test_a_search_says_how_many_rows_it_would_miss(world: World) -> None:
    with pytest.raises(
        IndexNotReadyError, match=r"0 of 20 values have their token.*other 20.*index build acme"
    ) as caught:
        found(world, Person.email == "p7@example.com")
    assert (caught.value.missing, caught.value.total) == (20, 20)
    with world.session() as session:
        session.add(Person(email="new@example.com", age=99))
    with pytest.raises(IndexNotReadyError, match="1 of 21 values"):
        found(world, Person.email == "p7@example.com")


def test_rows_are_sealed_anew_and_then_found(world: World) -> None:
    with world.engine.connect() as connection:
        before = connection.execute(text("SELECT id, age FROM people ORDER BY id")).all()
    steps: list[tuple[int, int]] = []
    built = world.vault.build_index(
        "acme", metadata=New.metadata, engine=world.engine, progress=lambda *each: steps.append(each)
    )
    assert built.complete
    assert built.problems == ()
    assert (steps[0], steps[-1]) == (("people", 0, 20), ("people", 20, 20))
    assert [(each.column, each.token, each.missing, each.total) for each in built.statuses] == [
        ("people.email", "", 0, 20),
        ("people.ssn", "", 0, 20),
        ("people.ssn", "last4", 0, 20),
    ]
    assert found(world, Person.email == "P7@EXAMPLE.com") == [7]
    assert found(world, Person.ssn.token("last4") == "0011") == [11]
    with world.engine.connect() as connection:  # what has no index was not touched
        assert connection.execute(text("SELECT id, age FROM people ORDER BY id")).all() == before
    with world.session() as session:
        assert [each.email for each in session.scalars(select(Person).where(Person.age.is_not(None)))][:2] == [
            "p0@example.com",
            "p1@example.com",
        ]
    assert build(world).complete  # again: nothing to do


def test_each_tenant_has_its_own(world: World) -> None:
    build(world)
    with pytest.raises(IndexNotReadyError, match="0 of 3"):
        found(world, Person.email == "p1@example.com", "glob")
    states = [each.state for each in world.vault.index_status("glob", metadata=New.metadata, engine=world.engine)]
    assert states == [State.BUILDING] * 3


def test_a_row_that_cannot_be_opened_is_named_and_the_others_are_done(world: World) -> None:
    people = table("people", column("id"), column("email", LargeBinary))
    with world.engine.begin() as connection:
        sealed = bytes(connection.scalar(select(people.c.email).where(people.c.id == 5)))
        broken = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        connection.execute(update(people).where(people.c.id == 5).values(email=broken))
    built = build(world)
    assert not built.complete
    assert [(each.column, each.key) for each in built.problems] == [("people.email", "5")]
    assert "does not authenticate" in built.problems[0].why
    with pytest.raises(IndexNotReadyError, match="19 of 20"):
        found(world, Person.email == "p7@example.com")
    assert found(world, Person.ssn == "000000007") == [7]


def test_what_another_tenant_has_sealed_is_never_touched(world: World) -> None:
    """Not even where it stands in a row that is sealed anew."""
    people = table("people", column("id"), column("email", LargeBinary))
    with world.engine.begin() as connection:
        foreign = bytes(connection.scalar(select(people.c.email).where(people.c.id == 21)))
        connection.execute(text("DELETE FROM people WHERE id = 21"))
        connection.execute(update(people).where(people.c.id == 5).values(email=foreign))
    built = build(world)
    assert built.problems == ()
    assert built.complete
    with world.engine.connect() as connection:
        assert bytes(connection.scalar(select(people.c.email).where(people.c.id == 5))) == foreign
    assert found(world, Person.ssn == "000000004") == [4]


def test_two_rows_of_one_value_are_named_where_the_index_is_unique(world: World) -> None:
    with world.session() as session:
        session.add(OldPerson(email="P7@example.com", age=100))
    built = build(world)
    assert [(each.column, each.why[:15]) for each in built.problems] == [("people.email", "another row has")]
    assert not built.complete


def test_a_row_that_the_database_refuses_is_named(world: World) -> None:
    """A CHECK on the length, say, that was made before the column had tokens."""
    from pii_vault.reencryption.rows import Rows

    def refused(*_: Any) -> int:
        raise IntegrityError("UPDATE", None, ValueError("hunter2"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rows, "write", refused)
        patched.setattr("pii_vault.reencryption.resealing._PASSES", 1)
        found_there = {(each.column, each.why) for each in build(world).problems}
    assert ("people.email", "another row has the same value, and the index is unique") in found_there
    only = MetaData()
    same = EncryptedString(index=BlindIndex(normalise=("casefold",)))
    Table("people", only, Column("id", Integer, primary_key=True), Column("email", same))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rows, "write", refused)
        patched.setattr("pii_vault.reencryption.resealing._PASSES", 1)
        built = world.vault.build_index("acme", metadata=only, engine=world.engine)
    assert {each.why for each in built.problems} == {"the database said ValueError"}
    assert (len(built.problems), built.complete) == (20, False)


def test_a_table_that_cannot_be_read_or_written_is_one_sentence_without_parameters(world: World) -> None:
    elsewhere = MetaData()
    Table("nowhere", elsewhere, Column("id", Integer, primary_key=True), Column("name", EncryptedString(index=True)))
    for ask in (world.vault.index_status, world.vault.build_index, world.vault.rotate_index):
        with pytest.raises(ConfigurationError, match="table 'nowhere' cannot be read: ") as caught:
            ask("acme", metadata=elsewhere, engine=world.engine)
        assert caught.value.__context__ is None

    from pii_vault.reencryption.rows import Rows

    def refused(*_: Any) -> int:
        raise OperationalError("UPDATE", {"after": b"hunter2"}, PermissionError("hunter2"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rows, "write", refused)
        with pytest.raises(ConfigurationError, match="'people' cannot be sealed anew: PermissionError") as caught:
            build(world)
    assert caught.value.__context__ is None
    assert build(world).complete


def test_a_tenant_without_an_index_key_is_refused_before_anything_is_opened(world: World) -> None:
    with owning(world.vault._engine) as connection:
        connection.execute(delete(keys).where(keys.c.purpose == "index"))
    world.vault.evict("acme")
    with pytest.raises(KeyStateError, match=r"tenant 'acme' has no index key .*pii-vault key rotate acme"):
        build(world)


def test_nothing_of_others_is_written_over(world: World) -> None:
    """Somebody writes a row between its being read and its being written: what he wrote stays."""
    from pii_vault.reencryption.resealing import Resealing

    original = Resealing._write
    done: list[bool] = []

    def late(self: Resealing, change: Any) -> int:
        if not done:
            done.append(True)
            with world.vault.tenant("acme"), world.engine.begin() as connection:
                connection.execute(update(OldPerson).where(OldPerson.id == 3).values(email="late@example.com"))
        return original(self, change)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Resealing, "_write", late)
        assert build(world).complete
    assert found(world, Person.email == "late@example.com") == [2]
    assert found(world, Person.email == "p2@example.com") == []


def test_writers_that_do_not_know_the_index_are_refused_once_it_is_ready(world: World) -> None:
    build(world)
    world.vault.evict("acme")
    said = r"would write values without them.*index drop acme people\.email 0"
    with pytest.raises(BlindIndexError, match=said), world.session() as session:
        session.add(OldPerson(email="old@example.com"))
    with world.session("glob") as session:  # whose index is not ready
        session.add(OldPerson(email="old@example.com"))
    assert world.vault.drop_index("acme", "people.email", 0)
    assert not world.vault.drop_index("acme", "people.email", 0)
    with pytest.raises(BlindIndexError, match=r"people\.ssn"), world.session() as session:
        session.add(OldPerson(email="old@example.com", ssn="1"))
    with world.session() as session:
        session.add(OldPerson(email="old@example.com"))
    with pytest.raises(IndexNotReadyError, match="20 of 21"):
        found(world, Person.email == "old@example.com")


# Replacing the index key.


def test_an_index_key_is_replaced_while_values_are_found_all_the_time(world: World, calendar: Calendar) -> None:
    build(world)
    lookups = lambda: (found(world, Person.email == "p7@example.com"), found(world, Person.ssn.in_(["000000001", "x"])))  # noqa: E731
    assert lookups() == ([7], [1])
    step = rotate(world)
    assert (step.step, step.generation, step.other) == (Step.PREPARED, 1, 2)
    assert step.next_at == calendar.now + timedelta(seconds=300)
    assert lookups() == ([7], [1])
    assert rotate(world).step is Step.PREPARED  # too early: nothing happens
    with world.session() as session:
        session.add(Person(email="early@example.com", age=50))
    assert generations(world) == {1}
    calendar.now += timedelta(seconds=301)
    step = rotate(world)
    assert (step.step, step.generation, step.other, step.left, step.problems) == (Step.ACTIVATED, 2, 1, 0, ())
    assert generations(world) == {2}
    assert lookups() == ([7], [1])
    assert found(world, Person.email == "early@example.com") == [50]
    calendar.now += timedelta(days=1, seconds=1)
    step = rotate(world)
    assert (step.step, step.generation, step.other, step.next_at) == (Step.FINISHED, 2, None, None)
    assert lookups() == ([7], [1])
    records = [key for key in world.vault._store.load("acme").keys if key.purpose is Purpose.INDEX]
    assert [(key.version, key.state) for key in records] == [(1, KeyState.DESTROYED), (2, KeyState.ACTIVE)]
    assert world.vault.audit.verify("acme").problems == ()
    assert generations(world, "glob") == {0}


def replacing(world: World, calendar: Calendar) -> None:
    """Bring the world to where two index keys live and a row of each is there."""
    build(world)
    rotate(world)
    calendar.now += timedelta(seconds=301)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pii_vault.reencryption.indexing.reseal", lambda *_: [])
        assert rotate(world).left == 20
    with world.session() as session:
        session.add(Person(email="two@example.com", age=2))
    assert generations(world) == {1, 2}


def test_values_of_both_keys_are_found_meanwhile(world: World, calendar: Calendar) -> None:
    replacing(world, calendar)
    assert found(world, Person.email == "p7@example.com") == [7]
    assert found(world, Person.email == "two@example.com") == [2]
    assert found(world, Person.email.in_(["p7@example.com", "two@example.com"])) == [7, 2]
    assert len(found(world, Person.email.not_in(["p7@example.com", "two@example.com"]))) == 19
    assert len(found(world, Person.email != "two@example.com")) == 20
    with world.session() as session:
        assert session.execute(update(Person).where(Person.email == "p7@example.com").values(age=70)).rowcount == 1
    assert found(world, Person.email == "p7@example.com") == [70]


def test_columns_are_not_compared_nor_grouped_meanwhile(world: World, calendar: Calendar) -> None:
    replacing(world, calendar)
    other = aliased(Person)
    for statement in (
        select(Person.id).join(other, other.email == Person.email),
        select(func.count()).group_by(Person.email.blind_index),
        select(Person.id).where(Person.email.in_(select(other.email))),
    ):
        with (
            pytest.raises(BlindIndexError, match="index key of tenant 'acme' is being replaced"),
            world.session() as session,
        ):
            session.execute(statement).all()
    calendar.now += timedelta(days=2)
    assert rotate(world).step is Step.FINISHED
    with world.session() as session:
        joined = select(Person.id).join(other, other.email == Person.email).where(Person.tenant_id == "acme")
        assert len(session.execute(joined).all()) == 21


def test_values_stay_unique_meanwhile(world: World, calendar: Calendar) -> None:
    replacing(world, calendar)
    for writes in (
        lambda session: session.add(Person(email="P7@example.com")),
        lambda session: session.execute(insert(Person), [{"email": "a"}, {"email": "p7@example.COM"}]),
        lambda session: session.execute(insert(Person).values(email="p7@example.com")),
        lambda session: session.execute(update(Person).where(Person.id == 1).values(email="p7@example.com")),
        lambda session: setattr(session.get(Person, 2), "email", "p7@example.com"),
    ):
        with pytest.raises(IntegrityError) as caught, world.session() as session:
            writes(session)
        assert isinstance(caught.value, DuplicateValueError)
        assert "p7@" not in str(caught.value).lower()
    with pytest.raises(IntegrityError), world.session() as session:
        session.add(Person(email="two@EXAMPLE.com"))
    if world.engine.dialect.name == "mariadb":  # whose upserts name no token, and so are not refused at once
        upsert = mysql.insert(Person).values(email="p7@example.com").on_duplicate_key_update(age=0)
        with pytest.raises(DuplicateValueError), world.session() as session:
            session.execute(upsert)
    with world.session() as session:  # what is not there may be written, and a row may keep its own value
        session.add(Person(email="free@example.com"))
        session.execute(update(Person).where(Person.email == "p9@example.com").values(email="P9@example.com"))
    assert found(world, Person.email == "p9@example.com") == [9]


def test_values_stay_unique_meanwhile_by_an_index_of_one_s_own(world: World, calendar: Calendar) -> None:
    own = MetaData()
    hidden = EncryptedString(index=BlindIndex(create=False))
    badges = Table(
        "badges",
        own,
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String(60)),
        Column("number", hidden),
        Column("room", hidden),
    )
    Index("ix_badges_number", badges.c.tenant_id, badges.c.number.blind_index.desc(), unique=True)  # type: ignore[attr-defined]
    Index("ix_badges_room", badges.c.id, badges.c.room.blind_index, unique=True)  # type: ignore[attr-defined]
    own.create_all(world.engine)

    def write(number: str) -> None:
        with world.vault.tenant("acme"), world.engine.begin() as connection:
            connection.execute(insert(badges), {"tenant_id": "acme", "number": number, "room": "one"})

    write("7")
    world.vault.rotate_index("acme", metadata=own, engine=world.engine)
    calendar.now += timedelta(seconds=301)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pii_vault.reencryption.indexing.reseal", lambda *_: [])
        assert world.vault.rotate_index("acme", metadata=own, engine=world.engine).step is Step.ACTIVATED
    with pytest.raises(DuplicateValueError, match=r"badges\.number"):
        write("7")
    write("8")


def test_a_duplicate_that_slipped_through_is_named_in_the_end(world: World, calendar: Calendar) -> None:
    replacing(world, calendar)
    with pytest.MonkeyPatch.context() as patched, world.session() as session:
        patched.setattr("pii_vault.orm.uniqueness.check", lambda *_, **_kw: None)  # as two transactions at once
        session.add(Person(email="p7@example.com", age=77))
    assert found(world, Person.email == "p7@example.com") == [7, 77]
    calendar.now += timedelta(days=2)
    step = rotate(world)
    assert (step.step, step.left, len(step.problems), step.next_at) == (Step.ACTIVATED, 1, 1, None)
    assert step.problems[0].why.startswith("another row has the same value")
    with world.session() as session:
        session.execute(text("DELETE FROM people WHERE id = (SELECT max(id) FROM people)"))
    assert rotate(world).step is Step.FINISHED


def test_the_metadata_has_to_hold_all_that_is_searched(world: World, calendar: Calendar) -> None:
    build(world)
    fewer = MetaData()
    Person.__table__.to_metadata(fewer)
    only = MetaData()
    Table("others", only, Column("id", Integer, primary_key=True), Column("name", EncryptedString(index=True)))
    only.create_all(world.engine)
    with pytest.raises(ValueError, match=r"'people\.email', 'people\.ssn' are searched for tenant 'acme'"):
        world.vault.rotate_index("acme", metadata=only, engine=world.engine)
    assert world.vault.rotate_index("acme", metadata=fewer, engine=world.engine).step is Step.PREPARED


def test_a_key_is_not_destroyed_before_its_time(world: World, calendar: Calendar) -> None:
    from pii_vault.lifecycle import index_key

    replacing(world, calendar)
    with pytest.raises(KeyStateError, match="may still be writing tokens of index key 1"):
        index_key.retire(world.vault._parts, "acme", "")
    with pytest.raises(KeyStateError, match="is being replaced"):
        index_key.prepare(world.vault._parts, "acme", "")
