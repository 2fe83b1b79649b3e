"""What an application keeps beside its values, by the ORM or by the database's own triggers, does not see a move."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import pytest
from sqlalchemy import DateTime, String, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString

ROWS: Final = 30
STAMP: Final = datetime(2020, 1, 2, 3, 4, 5)


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString(index=True))
    age: Mapped[int | None] = mapped_column(EncryptedInteger())
    stamped: Mapped[datetime] = mapped_column(DateTime, default=STAMP, onupdate=func.now())
    touched: Mapped[datetime] = mapped_column(DateTime, default=STAMP)
    counted: Mapped[int] = mapped_column(default=0, onupdate=text("counted + 1"))
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": revision}


class Name(Base):
    """What somebody was called before, kept by a trigger."""

    __tablename__ = "names"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column()
    name: Mapped[str] = mapped_column(String(30))


TRIGGERS: Final = {
    "postgresql": (
        """
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.name IS DISTINCT FROM OLD.name THEN NEW.touched = now(); END IF;
            RETURN NEW;
        END $$
        """,
        "CREATE TRIGGER touch BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION touch()",
        """
        CREATE FUNCTION keep_name() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO names (person_id, name) VALUES (OLD.id, OLD.name);
            RETURN NULL;
        END $$
        """,
        # Told by the columns that a statement names, changed or not.
        "CREATE TRIGGER keep_name AFTER UPDATE OF name, stamped, revision ON people FOR EACH ROW "
        "EXECUTE FUNCTION keep_name()",
    ),
    "sqlite": (
        """
        CREATE TRIGGER touch AFTER UPDATE ON people WHEN NEW.name IS NOT OLD.name
        BEGIN UPDATE people SET touched = CURRENT_TIMESTAMP WHERE id = NEW.id; END
        """,
        """
        CREATE TRIGGER keep_name AFTER UPDATE OF name, stamped, revision ON people
        BEGIN INSERT INTO names (person_id, name) VALUES (OLD.id, OLD.name); END
        """,
    ),
}


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    world = build_world(Base.metadata)
    with world.engine.begin() as connection:
        for statement in TRIGGERS[connection.dialect.name]:
            connection.execute(text(statement))
    with world.session() as session:
        session.add_all(
            Person(id=n, name=f"n{n}", email=f"{n}@x.example", age=None if n % 3 else n) for n in range(1, ROWS + 1)
        )
    world.vault.rotate("acme")
    return world


def plain(world: World) -> list[Any]:
    kept = (Person.id, Person.tenant_id, Person.name, Person.stamped, Person.touched, Person.counted, Person.revision)
    with world.engine.connect() as connection:
        people = connection.execute(select(*kept).order_by(Person.id)).all()
        return [*people, *connection.execute(select(Name.person_id, Name.name)).all()]


def old_values(world: World) -> int:
    query = " + ".join(f"count(CASE WHEN substr({each}, 6, 2) = :old THEN 1 END)" for each in ("email", "age"))
    with world.engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT {query} FROM people"), {"old": b"\0\1"}) or 0)


def test_no_time_stamp_counter_or_history_moves_with_the_values(world: World) -> None:
    before = plain(world)
    assert old_values(world) == ROWS + ROWS // 3
    done = world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine, batch=7)
    assert (done.left, done.problems, old_values(world)) == (0, (), 0)
    assert plain(world) == before


def test_they_do_move_with_what_the_application_writes(world: World) -> None:
    """So that the test above says something."""
    with world.session() as session:
        person = session.get_one(Person, 4)
        person.name = "another"
    with world.session() as session:
        person = session.get_one(Person, 4)
        assert person.stamped != STAMP
        assert person.touched != STAMP
        assert (person.counted, person.revision) == (1, 2)
        assert session.scalars(select(Name.name)).all() == ["n4"]


def test_an_object_that_was_loaded_before_is_saved_after(world: World) -> None:
    """Its row's version counter is what it was."""
    with world.sessions(expire_on_commit=False) as session:
        with world.vault.tenant("acme"):
            person = session.get_one(Person, 4)
            session.commit()
        world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine)
        with world.vault.tenant("acme"):
            person.age = 77
            session.commit()
    with world.session() as session:
        assert session.scalar(select(Person.age).where(Person.id == 4)) == 77
        assert session.scalar(select(Person.revision).where(Person.id == 4)) == 2


def test_an_update_of_the_application_by_core_counts_as_one(world: World) -> None:
    world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine)
    with world.session() as session:
        session.execute(update(Person).where(Person.id == 4).values(age=5))
        assert session.scalar(select(Person.counted).where(Person.id == 4)) == 1
