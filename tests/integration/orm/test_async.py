"""The asynchronous drivers do what the synchronous ones do: the same statements, refused and allowed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import delete, exists, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import aliased, contains_eager, joinedload, selectinload, subqueryload
from tests.integration.orm.models import SEALED, TWIN, facts
from tests.integration.orm.test_reads import LEGAL
from tests.integration.orm.test_refused_statements import CONDITIONS, NAMES_THE_COLUMN, SELECTS, WRITES
from tests.support.urls import ASYNC_DRIVERS, async_url
from tests.support.world import World

from pii_vault.errors import NoTenantError, TenantMismatchError, UnsupportedOperationError

User, Team, Address = SEALED.User, SEALED.Team, SEALED.Address
Sessions = async_sessionmaker[AsyncSession]
Work = Callable[[Any, Sessions], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.parametrize(
    ("_shared_world", "driver"),
    [(backend, driver) for backend, drivers in ASYNC_DRIVERS.items() for driver in drivers],
    indirect=["_shared_world"],
    scope="session",
)


@pytest.fixture
def run(orm_world: World, driver: str) -> Callable[[Work], None]:
    """Run a coroutine function with the vault and asynchronous sessions on the driver."""
    url = async_url(orm_world.url, driver)

    @asynccontextmanager
    async def attached() -> AsyncIterator[Sessions]:
        engine = create_async_engine(url)
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        orm_world.vault.attach(engine, sessions, tenant_column="tenant_id")
        try:
            yield sessions
        finally:
            await engine.dispose()

    def run(work: Work) -> None:
        async def main() -> None:
            async with attached() as sessions:
                await work(orm_world.vault, sessions)

        asyncio.run(main())

    return run


def rows(session: Any, statement: Any) -> list[Any]:
    return [facts(row) for row in session.execute(statement)]


def test_selects_give_the_rows_that_plaintext_would_give(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        for name, statement in LEGAL.items():
            async with vault.tenant("acme"), sessions() as session:
                sealed, plain = [await session.run_sync(rows, statement(models)) for models in (SEALED, TWIN)]
            assert sorted(sealed, key=repr) == sorted(plain, key=repr), name

    run(work)


def test_what_cannot_be_answered_is_refused(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        upsert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[sessions.kw["bind"].dialect.name]
        statements = [
            *(lambda c=c: select(User.id).where(c()) for c in CONDITIONS.values()),
            *SELECTS.values(),
            *(lambda w=w: w(upsert) for w in WRITES.values()),
        ]
        async with vault.tenant("acme"), sessions() as session:
            for statement in statements:
                with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
                    await session.execute(statement())

    run(work)


def test_rows_are_written_by_the_unit_of_work_in_bulk_and_by_core(run: Callable[[Work], None]) -> None:
    def row(number: int) -> dict[str, Any]:
        return {"id": number, "tenant_id": "acme", "name": f"n{number}", "email": f"{number}@new"}

    async def work(vault: Any, sessions: Sessions) -> None:
        async with vault.tenant("acme"):
            async with sessions.begin() as session:
                session.add_all([User(**{**row(100), "tenant_id": None}), User(**row(101))])
                await session.flush()
                await session.execute(insert(User), [row(number) for number in range(102, 1102)])
                await session.execute(insert(User).values([row(1102), row(1103)]))
                connection = await session.connection()
                await connection.execute(insert(User.__table__), [row(1104), row(1105)])
                found = await session.scalars(
                    insert(User).returning(User.email, sort_by_parameter_order=True), [row(1106), row(1107)]
                )
                assert found.all() == ["1106@new", "1107@new"]
                await session.execute(update(User), [{"id": 100, "email": "by key"}, {"id": 101, "email": "by key"}])
                await session.execute(update(User).where(User.name == "n102").values(email="by name"))
                updated = update(User).where(User.id == 103).values(phone="1").returning(User.email, User.phone)
                assert (await session.execute(updated)).all() == [("103@new", "1")]
                await session.execute(delete(User).where(User.id == 104))
                merged = await session.merge(User(id=105, name="merged", email="merged"))
                await session.flush()
                await session.refresh(merged)
                assert (merged.email, merged.tenant_id) == ("merged", "acme")
                async with session.begin_nested() as savepoint:
                    merged.email = "undone"
                    await session.flush()
                    await savepoint.rollback()
                await session.refresh(merged)
                assert merged.email == "merged"
            async with sessions() as session:
                found = await session.execute(select(User.id, User.email).where(User.id >= 100).order_by(User.id))
                wanted = {number: f"{number}@new" for number in range(100, 1108) if number != 104}
                wanted |= {100: "by key", 101: "by key", 102: "by name", 105: "merged"}
                assert dict(found.all()) == wanted

    run(work)


def test_an_upsert_takes_the_proposed_row(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        upsert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[sessions.kw["bind"].dialect.name](User)
        statement = upsert.on_conflict_do_update(
            index_elements=[User.id], set_={"email": upsert.excluded.email, "phone": "set"}
        )
        async with vault.tenant("acme"), sessions.begin() as session:
            rows = [{"id": n, "tenant_id": "acme", "name": f"n{n}", "email": f"{n}@new"} for n in (1, 100)]
            await session.execute(statement, rows)
            found = await session.execute(select(User.email, User.phone).where(User.id.in_([1, 100])).order_by(User.id))
            assert found.all() == [("1@new", "set"), ("100@new", None)]

    run(work)


def test_relationships_are_loaded_by_every_eager_strategy(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        for strategy in (selectinload, joinedload, subqueryload):
            statement = select(User).options(strategy(User.addresses), strategy(User.team)).order_by(User.id).limit(3)
            async with vault.tenant("acme"), sessions() as session:
                users = (await session.scalars(statement)).unique().all()
                assert [u.team.motto for u in users] == ["festina lente", "festina lente", None]
                assert [[a.city for a in u.addresses] for u in users] == [["London", "Bath"], [], ["London"]]
        boss = aliased(User)
        statement = select(User).join(User.boss.of_type(boss)).options(contains_eager(User.boss.of_type(boss)))
        async with vault.tenant("acme"), sessions() as session:
            users = (await session.scalars(statement.order_by(User.id))).all()
            assert [u.boss.email for u in users] == ["ada@example.com", "ada@example.com", "bob@example.com"]

    run(work)


def test_attributes_are_loaded_under_run_sync_and_by_refresh(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        async with vault.tenant("acme"), sessions() as session:
            ada = await session.get_one(User, 1)
            assert await session.run_sync(lambda _: [address.city for address in ada.addresses]) == ["London", "Bath"]
            session.expire(ada)
            await session.refresh(ada, ["email", "team"])
            assert (ada.email, ada.team.motto) == ("ada@example.com", "festina lente")
            deferred = await session.run_sync(lambda sync: sync.query(User.email).order_by(User.id).first())
            assert deferred == ("ada@example.com",)

    run(work)


def test_results_are_streamed(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        wanted = ["ada@example.com", "bob@example.com", "eve@example.com", "ada@example.com"]
        async with vault.tenant("acme"), sessions() as session:
            columns = await session.stream_scalars(select(User.email).order_by(User.id))
            assert [email async for email in columns] == wanted
            portions = select(User).order_by(User.id).execution_options(yield_per=2)
            assert [user.email async for user in await session.stream_scalars(portions)] == wanted
            connection = await session.connection()
            async with connection.stream(select(User.__table__).order_by(User.id)) as rows:
                assert [row.email async for row in rows] == wanted
            assert await session.scalar(select(func.count(User.phone)).where(exists().where(Team.id == 1))) == 2

    run(work)


def test_tasks_with_a_tenant_each_share_compiled_statements_and_no_value(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        async def write(tenant: str, first: int) -> None:
            for number in range(first, first + 20):
                async with vault.tenant(tenant), sessions.begin() as session:
                    session.add(User(id=number, name=f"n{number}", email=f"{tenant}{number}"))
                    await session.flush()
                    stored = await session.scalars(select(User.email).where(User.id == number))
                    assert stored.one() == f"{tenant}{number}"

        # SQLite has one writer: the tasks take turns there, and still meet in the compiled cache.
        together = sessions.kw["bind"].dialect.name != "sqlite"
        turns = [("acme", 100), ("glob", 200), ("acme", 300), ("glob", 400)]
        if together:
            await asyncio.gather(*(write(*turn) for turn in turns))
        for tenant, first in () if together else turns:
            await write(tenant, first)
        async with vault.tenant("glob"), sessions() as session:
            found = await session.scalars(select(User.email).where(User.tenant_id == "glob").order_by(User.id))
            assert found.all() == [f"glob{n}" for n in (*range(200, 220), *range(400, 420))]

    run(work)


def test_without_a_scope_and_with_a_row_of_another_tenant_nothing_is_done(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        async with sessions() as session:
            with pytest.raises(NoTenantError):
                await session.execute(select(User.email))
        async with vault.tenant("glob"), sessions() as session:
            with pytest.raises(TenantMismatchError):
                await session.execute(select(User.email).where(User.tenant_id == "acme"))
            session.add(User(id=100, tenant_id="acme", name="x", email="x"))
            with pytest.raises(TenantMismatchError):
                await session.flush()

    run(work)


def test_a_refused_value_is_not_shown(run: Callable[[Work], None]) -> None:
    async def work(vault: Any, sessions: Sessions) -> None:
        async with vault.tenant("acme"), sessions() as session:
            for statement in (
                update(User).values(email=literal("SECRET")),
                select(User).where(literal("SECRET") == User.email),
            ):
                with pytest.raises(UnsupportedOperationError) as caught:
                    await session.execute(statement)
                assert "SECRET" not in repr(caught.value)

    run(work)
