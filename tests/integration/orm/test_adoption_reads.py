"""A sealed column that adopts another one is read when all of its values are there, and by nobody before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import LargeBinary, bindparam, delete, func, insert, select, text, type_coerce, union_all, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, aliased, load_only, undefer
from tests.integration.orm import adopting
from tests.integration.orm.adopting import Person, Switched, at, emails, forget, people
from tests.support.urls import ASYNC_DRIVERS, async_url
from tests.support.world import World

from pii_vault.errors import AdoptionError, KeyStoreError
from pii_vault.stages import Stage

people_world = adopting.people_world
MUTE = (Stage.NONE, Stage.ADDED, Stage.FILLED, Stage.VERIFIED)
OPEN = (Stage.SWITCHED, Stage.RETIRED, Stage.EMPTIED)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": each, "tenant_id": "acme", "email": f"{each}@new"} for each in range(1, count + 1)]


@pytest.fixture
def filled_world(people_world: World) -> World:
    with people_world.session() as session:
        session.execute(insert(Person), rows(3))
    return people_world


sub = select(Person.id, Person.email_sealed).subquery()
cte = select(Person.id, Person.email_sealed).cte("of_people")
other = aliased(Person)

READS: dict[str, Callable[[Session], Any]] = {
    "the column": lambda s: s.execute(select(Person.email_sealed)).all(),
    "a label": lambda s: s.execute(select(Person.email_sealed.label("x"))).all(),
    "core": lambda s: s.connection().execute(select(people)).all(),
    "an alias": lambda s: s.execute(select(other.email_sealed)).all(),
    "the swapped model": lambda s: s.scalars(select(Switched)).all(),
    "an object": lambda s: s.get(Switched, 1),
    "a deferred attribute": lambda s: s.get_one(Person, 1).email_sealed,
    "undefer": lambda s: s.scalars(select(Person).options(undefer(Person.email_sealed))).all(),
    "a subquery": lambda s: s.execute(select(sub.c.email_sealed)).all(),
    "a condition on a subquery": lambda s: s.execute(select(sub.c.id).where(sub.c.email_sealed.is_(None))).all(),
    "a search in a subquery": lambda s: s.execute(select(sub.c.id).where(sub.c.email_sealed == "1@new")).all(),
    "a CTE": lambda s: s.execute(select(cte.c.email_sealed)).all(),
    "a scalar subquery": lambda s: s.execute(
        select(Person.id, select(other.email_sealed).where(other.id == Person.id).scalar_subquery())
    ).all(),
    "a union": lambda s: s.execute(union_all(select(Person.email_sealed), select(Person.email_sealed))).all(),
    "text": lambda s: s.execute(text("select email_sealed from persons").columns(people.c.email_sealed)).all(),
    "is null": lambda s: s.execute(select(Person.id).where(Person.email_sealed.is_(None))).all(),
    "is not null": lambda s: s.execute(select(Person.id).where(Person.email_sealed.is_not(None))).all(),
    "count": lambda s: s.scalar(select(func.count(Person.email_sealed))),
    "a search": lambda s: s.execute(select(Person.id).where(Person.email_sealed == "1@new")).all(),
    "a search in a list": lambda s: s.execute(select(Switched.id).where(Switched.email.in_(["1@new"]))).all(),
    "a join": lambda s: s.execute(select(Person.id).join(other, other.email_sealed == Person.email_sealed)).all(),
    "a group": lambda s: s.execute(select(func.count(people.c.id)).group_by(people.c.email_sealed.blind_index)).all(),
    "exists": lambda s: s.execute(
        select(Person.id).where(select(other.id).where(other.email_sealed == "1@new").exists())
    ).all(),
    "a condition of an update": lambda s: s.execute(
        update(Person).where(Person.email_sealed == "1@new").values(name="x")
    ),
    "a condition of a delete": lambda s: s.execute(delete(people).where(people.c.email_sealed.is_(None))),
    "a subquery of an insert": lambda s: s.execute(
        insert(Person).values(
            id=9, tenant_id="acme", name=select(other.name).where(other.email_sealed == "1@new").scalar_subquery()
        )
    ),
}
WITH_RETURNING: dict[str, Callable[[Session], Any]] = {
    "returning of an insert": lambda s: s.execute(
        insert(people).values(id=9, tenant_id="acme", email="x").returning(people.c.email_sealed)
    ).all(),
    "returning of the swapped model": lambda s: s.scalars(
        insert(Switched).returning(Switched), [{"id": 9, "tenant_id": "acme", "email": "x"}]
    ).all(),
}


@pytest.mark.parametrize("read", (READS | WITH_RETURNING).values(), ids=READS | WITH_RETURNING)
def test_nothing_is_read_before_the_switch_and_all_after_it(filled_world: World, read: Any) -> None:
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        with pytest.raises(AdoptionError, match=r"persons\.\w+_sealed is read.* 'added'.*deferred=True"):
            read(session)
        session.rollback()
        at(filled_world, Stage.SWITCHED, "persons.email", "persons.nick_name", "persons.born", "persons.plan")
        read(session)


@pytest.mark.parametrize("stage", [*MUTE, *OPEN])
def test_the_stage_decides(filled_world: World, stage: Stage) -> None:
    at(filled_world, stage)
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        if stage in OPEN:
            assert session.scalars(select(Person.email_sealed).order_by(Person.id)).all() == ["1@new", "2@new", "3@new"]
        else:
            with pytest.raises(AdoptionError, match=f"stage '{stage.value}'"):
                session.scalars(select(Person.email_sealed)).all()


def test_each_column_has_a_stage_of_its_own(filled_world: World) -> None:
    at(filled_world, Stage.SWITCHED, "persons.email")
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        session.scalars(select(Person.email_sealed)).all()
        with pytest.raises(AdoptionError, match=r"persons\.nick_sealed"):
            session.execute(select(Person.email_sealed, Person.nick_sealed)).all()


NOT_READS: dict[str, Callable[[Session], Any]] = {
    "objects": lambda s: s.scalars(select(Person)).all(),
    "an object": lambda s: s.get(Person, 1),
    "load_only": lambda s: s.scalars(select(Person).options(load_only(Person.email))).all(),
    "a new object": lambda s: [
        s.add(Person(id=9, tenant_id="acme", email="x")),
        s.flush(),
        s.refresh(s.get(Person, 9)),
    ],
    "many new objects": lambda s: [
        s.add_all(Person(tenant_id="acme", email=f"{each}") for each in range(2000, 2020)),
        s.flush(),
    ],
    "a changed object": lambda s: [
        setattr(person := s.get_one(Person, 1), "email", "x"),
        s.flush(),
        s.expire_all(),
        person.email,
    ],
    "an update": lambda s: s.execute(update(Person).where(Person.email == "1@new").values(email="x")),
    "an update that fetches": lambda s: s.execute(
        update(Person).where(Person.email == "1@new").values(email="x"),
        execution_options={"synchronize_session": "fetch"},
    ),
    "merge": lambda s: [s.merge(Person(id=1, tenant_id="acme", email="x")), s.flush()],
    "a subquery that is not read": lambda s: s.execute(select(sub.c.id)).all(),
    "an entity of a subquery": lambda s: s.execute(select(aliased(Person, select(Person).subquery()).id)).all(),
    "type_coerce": lambda s: s.execute(select(type_coerce(people.c.email_sealed, LargeBinary))).all(),
    "text": lambda s: s.execute(text("select email_sealed from persons")).all(),
    "delete": lambda s: [s.delete(s.get_one(Person, 1)), s.flush()],
}


@pytest.mark.parametrize("work", NOT_READS.values(), ids=NOT_READS)
def test_what_does_not_read_it_works_before_the_switch(filled_world: World, work: Any) -> None:
    with filled_world.session() as session:
        work(session)
    emails(filled_world)


def test_rows_of_the_orm_come_back(filled_world: World) -> None:
    if not filled_world.engine.dialect.insert_returning:
        pytest.skip("it has no RETURNING")
    with filled_world.session() as session:
        made = session.scalars(insert(Person).returning(Person), [{"tenant_id": "acme", "email": "x"}]).one()
        assert made.email == "x"
        if filled_world.engine.dialect.update_returning:
            statement = update(Person).where(Person.email == "x").values(email="y").returning(Person)
            assert session.scalars(statement).one().email == "y"


def test_a_process_follows_the_switch_at_once(filled_world: World) -> None:
    read = select(Person.email_sealed)
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        session.scalars(select(Person)).all()
        forget(filled_world)
        with pytest.raises(AdoptionError):
            session.scalars(read).all()
        adoptions: Any = filled_world.vault._keyring.adoptions
        at(filled_world, Stage.SWITCHED)
        adoptions._due_at = float("inf")
        assert len(session.scalars(read).all()) == 3


def test_refusals_do_not_ask_the_key_store_each_time(filled_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    store: Any = filled_world.vault._store
    adoptions = store.adoptions
    monkeypatch.setattr(store, "adoptions", lambda: looked.append(1) or adoptions())
    forget(filled_world)
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        for _ in range(20):
            with pytest.raises(AdoptionError):
                session.scalars(select(Person.email_sealed)).all()
    assert len(looked) == 2  # what is known is old, and once more before it is refused


def test_a_key_store_that_cannot_be_asked_refuses_nobody_who_may_read(
    filled_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise KeyStoreError("gone")

    at(filled_world, Stage.SWITCHED)
    with filled_world.vault.tenant("acme"), filled_world.sessions() as session:
        session.scalars(select(Person.email_sealed)).all()
        monkeypatch.setattr(filled_world.vault._store, "adoptions", fail)
        adoptions: Any = filled_world.vault._keyring.adoptions
        adoptions._due_at = 0.0
        assert len(session.scalars(select(Person.email_sealed)).all()) == 3
        forget(filled_world)
        with pytest.raises(KeyStoreError, match="gone"):
            session.scalars(select(Person.email_sealed)).all()


def test_after_the_switch_the_swapped_model_does_everything(filled_world: World) -> None:
    at(filled_world, Stage.SWITCHED)
    with filled_world.session() as session:
        person = session.scalars(select(Switched).where(Switched.email == "2@new")).one()
        person.email = "two@new"
        session.add(Switched(id=4, tenant_id="acme", email="4@new"))
        session.flush()
        assert session.scalars(select(Switched.id).where(Switched.email.in_(["two@new", "4@new"]))).all() in (
            [2, 4],
            [4, 2],
        )
        session.execute(
            update(Switched).where(Switched.email == bindparam("e")).values(email="four@new"), {"e": "4@new"}
        )
    with filled_world.session() as session:
        assert session.get_one(Switched, 4).email_plain == "four@new"
    assert emails(filled_world) == {1: "1@new", 2: "two@new", 3: "3@new", 4: "four@new"}


def test_reencryption_and_the_index_do_not_mind(people_world: World) -> None:
    with people_world.session() as session:
        session.execute(insert(Person), rows(3))
        session.execute(text("update persons set email_sealed = null where id = 2"))
    people_world.vault.rotate("acme")
    people_world.vault.reencrypt("acme", engine=people_world.engine, metadata=adopting.Before.metadata)
    people_world.vault.build_index("acme", engine=people_world.engine, metadata=adopting.Before.metadata)
    with people_world.session() as session:
        found = session.execute(select(adopting.AS_IT_IS.c.id, adopting.AS_IT_IS.c.email_sealed)).all()
    assert sorted(found) == [(1, "1@new"), (2, None), (3, "3@new")]


@pytest.mark.parametrize(
    ("_shared_world", "driver"),
    [(backend, driver) for backend, drivers in ASYNC_DRIVERS.items() for driver in drivers],
    indirect=["_shared_world"],
    scope="session",
)
def test_asynchronous_drivers_do_it_too(people_world: World, driver: str) -> None:
    async def work() -> None:
        engine = create_async_engine(async_url(people_world.url, driver))
        sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
        people_world.vault.attach(engine, sessions, tenant_column="tenant_id")
        try:
            async with people_world.vault.tenant("acme"), sessions.begin() as session:
                session.add(Person(**rows(1)[0]))
            forget(people_world)
            async with people_world.vault.tenant("acme"), sessions() as session:
                with pytest.raises(AdoptionError):
                    await session.scalars(select(Person.email_sealed))
                await session.rollback()
                at(people_world, Stage.SWITCHED)
                assert (await session.scalars(select(Switched.email).where(Switched.email == "1@new"))).all() == [
                    "1@new"
                ]
        finally:
            await engine.dispose()

    asyncio.run(work())
    assert emails(people_world) == {1: "1@new"}
