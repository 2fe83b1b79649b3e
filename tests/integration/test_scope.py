"""One tenant at a time: the scope follows the code that opened it, and nothing is read or written outside one."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.clocks import Clocks
from tests.support.shared_world import emptied, shared_world
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import EncryptedString, Vault
from pii_vault.errors import (
    ForeignValueError,
    KmsDeniedError,
    NoTenantError,
    ScopeError,
    TenantMismatchError,
    TenantNotFoundError,
)
from pii_vault.keyring import RECHECK_SECONDS, UNCACHED_SECONDS
from pii_vault.keyring.terms import REFUSED_SECONDS
from pii_vault.scope import current

Build = Callable[..., World]


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str | None]
    email: Mapped[str | None] = mapped_column(EncryptedString())


people: Any = Person.__table__
PLAIN = Table("people", MetaData(), Column("id", Integer), Column("tenant_id", String))
TTL = 100.0


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def everybody_s_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with shared_world(request, tmp_path_factory, Base.metadata) as made:
        yield made


@pytest.fixture
def world(everybody_s_world: World) -> Iterator[World]:
    with emptied(everybody_s_world, Base.metadata) as made:
        yield made


@pytest.fixture(autouse=True)
def no_scope_is_left_behind() -> Iterator[None]:
    assert current.get() is None
    yield
    assert current.get() is None


def unwraps(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every key that the KMS is asked to unwrap with."""
    asked: list[str] = []
    unwrap = world.kms.unwrap

    def noting(key: Any, *arguments: Any) -> bytes:
        asked.append(key.arn)
        return unwrap(key, *arguments)

    monkeypatch.setattr(world.kms, "unwrap", noting)
    return asked


def fill(world: World, tenant: str, count: int, first: int = 1) -> None:
    with world.session(tenant) as session:
        session.execute(
            insert(Person),
            [{"id": first + n, "tenant_id": tenant, "email": f"{n}@{tenant}"} for n in range(count)],
        )


def emails(session: Session, tenant: str) -> list[str | None]:
    query = select(Person.email).where(Person.tenant_id == tenant).order_by(Person.id)
    return list(session.scalars(query))


def tenant_now() -> str | None:
    scope = current.get()
    return scope.tenant if scope is not None else None


# Who sees which scope.


def test_nested_scopes_end_in_turn_also_after_an_error(world: World) -> None:
    with world.vault.tenant("acme"):
        with pytest.raises(ZeroDivisionError), world.vault.tenant("glob"):
            _ = 1 / (tenant_now() != "glob")
        assert tenant_now() == "acme"
        with world.vault.tenant("acme"):
            assert tenant_now() == "acme"
        assert tenant_now() == "acme"


def test_a_scope_that_cannot_be_opened_leaves_none_in_force(world: World) -> None:
    for error, tenant in ((TenantNotFoundError, "nobody"), (TenantNotFoundError, "ACME"), (TenantNotFoundError, "")):
        with pytest.raises(error):
            world.vault.tenant(tenant).__enter__()
        assert tenant_now() is None

    async def enter() -> None:
        async with world.vault.tenant("acme"):
            pytest.fail("entered")

    world.kms.disable_key(world.keys["acme"])
    try:
        world.vault.evict("acme")
        with world.vault.tenant("glob"):
            with pytest.raises(KmsDeniedError):
                world.vault.tenant("acme").__enter__()
            assert tenant_now() == "glob"
        with pytest.raises(KmsDeniedError):
            asyncio.run(enter())
    finally:
        world.kms.enable_key(world.keys["acme"])
        world.vault.evict("acme")


def test_a_scope_is_entered_once_at_a_time(world: World) -> None:
    scope = world.vault.tenant("acme")
    with scope:
        with pytest.raises(ScopeError, match="once"):
            scope.__enter__()
        assert tenant_now() == "acme"


def test_a_thread_starts_without_a_scope_unless_it_is_given_the_context(world: World) -> None:
    seen: list[str | None] = []
    with world.vault.tenant("acme"):
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=lambda: seen.append(tenant_now())),
            threading.Thread(target=lambda: context.run(lambda: seen.append(tenant_now()))),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert seen == [None, "acme"]


def test_threads_of_a_pool_work_for_different_tenants_at_once(world: World) -> None:
    fill(world, "acme", 40, 1)
    fill(world, "glob", 40, 101)
    start = threading.Barrier(4)

    def work(tenant: str) -> list[list[str | None]]:
        start.wait()
        found = []
        for _ in range(10):
            with world.vault.tenant(tenant), world.sessions() as session:
                found.append(emails(session, tenant))
        assert tenant_now() is None
        return found

    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(range(4), pool.map(work, ["acme", "glob", "acme", "glob"]), strict=True))
    for number, tenant in enumerate(["acme", "glob", "acme", "glob"]):
        assert results[number] == [[f"{n}@{tenant}" for n in range(40)]] * 10


def test_tasks_of_one_event_loop_work_for_different_tenants_at_once(
    world: World, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    for url in async_urls(world.url):
        engine = make_async_engine(url)
        world.vault.attach(engine, tenant_column="tenant_id")

        async def work(tenant: str, first: int, engine: AsyncEngine) -> list[str | None]:
            async with world.vault.tenant(tenant):
                for n in range(5):
                    async with AsyncSession(engine) as session:
                        session.add(Person(id=first + n, tenant_id=tenant, email=f"{n}@{tenant}"))
                        await asyncio.sleep(0)
                        await session.commit()
                async with AsyncSession(engine) as session:
                    result = await session.stream_scalars(
                        select(Person.email).where(Person.tenant_id == tenant).order_by(Person.id)
                    )
                    found = []
                    async for email in result:
                        await asyncio.sleep(0)
                        found.append(email)
                return found

        async def both(engine: AsyncEngine) -> list[list[str | None]]:
            try:
                return await asyncio.gather(work("acme", 100, engine), work("glob", 200, engine))
            finally:
                assert tenant_now() is None

        assert asyncio.run(both(engine)) == [[f"{n}@{tenant}" for n in range(5)] for tenant in ("acme", "glob")]
        with world.engine.begin() as connection:
            connection.execute(text("DELETE FROM people"))


def test_a_task_keeps_the_scope_that_it_was_started_in(world: World) -> None:
    """A background task that outlives its request goes on for the request's tenant, as context variables do."""

    async def main() -> list[str | None]:
        seen: list[str | None] = []

        async def later() -> None:
            await asyncio.sleep(0.01)
            seen.append(tenant_now())

        async with world.vault.tenant("acme"):
            task = asyncio.create_task(later())
        seen.append(tenant_now())
        await task
        return seen

    assert asyncio.run(main()) == [None, "acme"]


def test_a_scope_inside_a_generator_reaches_the_caller_between_yields(world: World) -> None:
    """This is Python's way with context variables in generators, and why the documentation advises against it."""

    def rows() -> Iterator[int]:
        with world.vault.tenant("acme"):
            yield 1
            yield 2

    generator = rows()
    next(generator)
    assert tenant_now() == "acme"
    assert list(generator) == [2]
    assert tenant_now() is None


def test_scopes_left_out_of_order_end_without_any_tenant(world: World) -> None:
    def rows(tenant: str) -> Iterator[str]:
        with world.vault.tenant(tenant):
            yield tenant

    first, second = rows("acme"), rows("glob")
    next(first)
    next(second)
    assert tenant_now() == "glob"
    with pytest.raises(ScopeError, match="out of order"):
        first.close()
    assert tenant_now() is None
    with pytest.raises(ScopeError, match="out of order"):
        second.close()
    assert tenant_now() is None


def test_a_scope_left_in_another_context_is_an_error_and_ends_there(world: World) -> None:
    def enter() -> Any:
        scope = world.vault.tenant("acme")
        scope.__enter__()
        return scope

    scope = contextvars.copy_context().run(enter)
    with pytest.raises(ScopeError, match="another context"):
        scope.__exit__(None, None, None)

    copied = contextvars.Context()
    scope = copied.run(enter)
    elsewhere = copied.copy()
    with pytest.raises(ScopeError, match="another context"):
        elsewhere.run(scope.__exit__, None, None, None)
    assert elsewhere.run(tenant_now) is None


def test_an_async_generator_closed_by_the_event_loop_leaves_no_tenant_in_the_loop(world: World) -> None:
    async def rows() -> AsyncIterator[int]:
        async with world.vault.tenant("acme"):
            yield 1
            yield 2

    async def main() -> str | None:
        async def take_one() -> Any:
            generator = rows()
            await anext(generator)
            return generator

        generator = await asyncio.create_task(take_one())
        with contextlib.suppress(ScopeError):
            await generator.aclose()
        return tenant_now()

    assert asyncio.run(main()) is None


# Without a scope, and in another vault's.


def test_nothing_encrypted_is_read_or_written_without_a_scope(world: World) -> None:
    fill(world, "acme", 2)
    with world.sessions() as session:
        for use in (
            lambda: session.scalars(select(Person)).all(),
            lambda: session.scalars(select(Person.email).where(Person.id == 404)).all(),
            lambda: session.execute(insert(Person).values(id=9, tenant_id="acme", email="x")),
            lambda: session.execute(insert(people), [{"id": 9, "tenant_id": "acme", "email": "x"}] * 2),
            lambda: session.get(Person, 1),
            lambda: session.scalars(select(Person).limit(0)).all(),
        ):
            with pytest.raises(NoTenantError):
                use()
            session.rollback()
        assert session.scalar(select(func.count(Person.id))) == 2
        assert session.execute(select(PLAIN)).all() == [(1, "acme"), (2, "acme")]


def test_another_vault_s_scope_is_not_taken_for_ours(world: World, tmp_path: Path) -> None:
    other = Vault(world.url, kms=world.kms)
    fill(world, "acme", 1)
    with other.tenant("acme"), world.sessions() as session:
        for use in (
            lambda: session.scalars(select(Person)).all(),
            lambda: session.execute(insert(people), {"id": 9, "tenant_id": "acme", "email": "x"}),
        ):
            with pytest.raises(ScopeError, match="another vault"):
                use()
            session.rollback()
    other.close()


def test_an_application_with_one_tenant_needs_no_scope(
    build_world: Build, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    world = build_world(Base.metadata, default_tenant="acme")
    with world.sessions.begin() as session:
        session.add(Person(id=1, email="ada"))
        session.flush()
        assert session.get_one(Person, 1).tenant_id == "acme"
    with world.sessions() as session:
        assert emails(session, "acme") == ["ada"]
    with world.vault.tenant("glob"), world.sessions() as session, pytest.raises(ForeignValueError):
        emails(session, "acme")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(world.sessions().scalar(select(Person.email))))
    thread.start()
    thread.join()
    assert seen == ["ada"]
    for url in async_urls(world.url):
        engine = make_async_engine(url)
        world.vault.attach(engine, tenant_column="tenant_id")
        world.vault.evict("acme")

        async def read(engine: AsyncEngine) -> Any:
            async with AsyncSession(engine) as session:
                return await session.scalar(select(Person.email))

        assert asyncio.run(read(engine)) == "ada"


def test_one_compiled_statement_serves_two_tenants_in_turn(world: World) -> None:
    fill(world, "acme", 3, 1)
    fill(world, "glob", 3, 101)
    cache = world.engine._compiled_cache
    assert cache is not None
    with contextlib.ExitStack() as stack:
        sizes = []
        sessions = {tenant: stack.enter_context(world.sessions()) for tenant in ("acme", "glob")}
        for number in range(100):
            for first, (tenant, session) in zip((1000, 2000), sessions.items(), strict=True):
                with world.vault.tenant(tenant):
                    value = f"{number}@{tenant}"
                    session.execute(
                        insert(people).values(id=first + number, tenant_id=tenant, name=tenant, email=value)
                    )
                    found = session.scalar(select(Person.email).where(Person.id == first + number))
                    assert found == value
                    assert emails(session, tenant)[:3] == [f"{n}@{tenant}" for n in range(3)]
                    session.rollback()
            sizes.append(len(cache))
    assert len(set(sizes)) == 1


# Rows and objects that outlive their scope.


def test_rows_that_are_fetched_after_their_scope_are_refused(world: World) -> None:
    fill(world, "acme", 20)
    query = select(Person).order_by(Person.id).execution_options(yield_per=2)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            result = session.scalars(query)
            assert next(result).email == "0@acme"
        with pytest.raises(NoTenantError):
            list(result)
        result.close()
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            result = session.scalars(query)
            next(result)
        with world.vault.tenant("glob"), pytest.raises(ForeignValueError):
            list(result)
        result.close()
    with world.engine.connect() as connection:
        with world.vault.tenant("acme"):
            rows = connection.execute(select(people.c.email))
            assert rows.fetchone() == ("0@acme",)
        with pytest.raises(NoTenantError):
            rows.fetchall()


def test_rows_that_the_session_has_processed_outlive_their_scope(world: World) -> None:
    """They are values in the application's memory, as those that it took out of the result are."""
    fill(world, "acme", 3)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            result = session.scalars(select(Person).order_by(Person.id))
            next(result)
        assert [person.email for person in result] == ["1@acme", "2@acme"]


def test_an_async_stream_that_outlives_its_scope_is_refused(
    world: World, make_async_engine: Callable[..., AsyncEngine]
) -> None:
    fill(world, "acme", 30)

    async def read(engine: AsyncEngine, then: str | None) -> None:
        async with AsyncSession(engine) as session:
            async with world.vault.tenant("acme"):
                result = await session.stream_scalars(select(Person).execution_options(yield_per=2))
                await anext(result)
            if then is None:
                await result.all()
                return
            async with world.vault.tenant(then):
                await result.all()

    for url in async_urls(world.url):
        engine = make_async_engine(url)
        world.vault.attach(engine, tenant_column="tenant_id")
        with pytest.raises(NoTenantError):
            asyncio.run(read(engine, None))
        with pytest.raises(ForeignValueError):
            asyncio.run(read(engine, "glob"))
        asyncio.run(read(engine, "acme"))


def test_an_expired_object_is_not_loaded_again_outside_its_scope(world: World) -> None:
    fill(world, "acme", 1)
    with world.sessions() as session:
        with world.vault.tenant("acme"):
            person = session.get_one(Person, 1)
            session.commit()
        for load in (
            lambda: person.email,
            lambda: person.name,
            lambda: session.refresh(person),
            lambda: session.get(Person, 1),
            lambda: session.get(Person, 1, populate_existing=True),
        ):
            with pytest.raises(NoTenantError):
                load()
            session.rollback()
            with world.vault.tenant("glob"), pytest.raises(TenantMismatchError):
                load()
            session.rollback()
        with world.vault.tenant("acme"):
            assert person.email == "0@acme"
        assert person.email == "0@acme"


# Time.


def test_a_vault_without_a_ttl_asks_the_kms_once_in_every_scope(
    build_world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    world = build_world(Base.metadata, ttl=0, clock=clocks.as_clock)
    asked = unwraps(world, monkeypatch)
    for number in range(3):
        with world.session() as session:
            session.add(Person(id=number + 1, email="ada"))
            session.flush()
            emails(session, "acme")
        assert len(asked) == number + 1
    with world.vault.tenant("acme"), world.sessions() as session:
        emails(session, "acme")
        clocks.pass_(UNCACHED_SECONDS - 1)
        emails(session, "acme")
        assert len(asked) == 4
        clocks.pass_(2)
        world.kms.disable_key(world.keys["acme"])
        with pytest.raises(KmsDeniedError):
            emails(session, "acme")
    with pytest.raises(KmsDeniedError):
        world.vault.tenant("acme").__enter__()
    scope = world.vault.tenant("glob")
    with scope:
        pass
    with scope:
        pass
    assert asked[-2:] == [world.keys["glob"]] * 2


@pytest.mark.parametrize("clock", ["monotonic", "wall"])
def test_keys_expire_in_the_middle_of_a_stream_by_either_clock(
    build_world: Build, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    clocks = Clocks()
    world = build_world(Base.metadata, ttl=TTL, clock=clocks.as_clock)
    fill(world, "acme", 30)
    asked = unwraps(world, monkeypatch)
    query = select(Person.email).order_by(Person.id).execution_options(yield_per=2)

    def expire() -> None:
        setattr(clocks, clock, getattr(clocks, clock) + TTL)
        # Beside a monotonic clock that stands still the wall clock is not looked at for every value.
        clocks.monotonic += RECHECK_SECONDS

    with world.vault.tenant("acme"), world.sessions() as session:
        result = session.scalars(query)
        next(result)
        expire()
        before = len(asked)
        assert len(list(result)) == 29
        assert len(asked) == before + 1
        result = session.scalars(query)
        next(result)
        world.kms.disable_key(world.keys["acme"])
        expire()
        with pytest.raises(KmsDeniedError):
            list(result)
        result.close()


def test_after_revocation_and_expiry_nothing_is_read_or_written_until_the_key_is_enabled(build_world: Build) -> None:
    clocks = Clocks()
    world = build_world(Base.metadata, ttl=TTL, clock=clocks.as_clock)
    fill(world, "acme", 1)
    fill(world, "glob", 1, 101)
    row = {"id": 50, "tenant_id": "acme", "email": "x"}

    def flush(session: Session) -> None:
        session.add(Person(**row))
        session.flush()

    def change(session: Session) -> None:
        session.get_one(Person, 1, options=[]).email = "x"
        session.flush()

    uses: list[Callable[[Session], Any]] = [
        lambda session: emails(session, "acme"),
        lambda session: session.get(Person, 1),
        flush,
        change,
        lambda session: session.execute(insert(people), row),
        lambda session: session.execute(insert(people), [row, {**row, "id": 51}]),
        lambda session: session.execute(insert(people).values([row, {**row, "id": 51}])),
        lambda session: session.bulk_insert_mappings(Person, [row]),  # type: ignore[arg-type]
        lambda session: session.connection().execute(insert(people), row),
    ]
    with world.vault.tenant("acme"):
        world.kms.disable_key(world.keys["acme"])
        with world.sessions() as session:
            assert emails(session, "acme") == ["0@acme"]  # the promise is a bound, not a miracle
        clocks.pass_(TTL)
        for use in uses:
            with world.sessions() as session:
                with pytest.raises(KmsDeniedError):
                    use(session)
                session.rollback()
                session.add(Person(**row))
                with pytest.raises(KmsDeniedError):
                    session.commit()
        with pytest.raises(KmsDeniedError), world.vault.tenant("acme"):
            pytest.fail("entered")
        with world.session("glob") as session:
            assert emails(session, "glob") == ["0@glob"]
            assert session.scalar(text("SELECT count(*) FROM people")) == 2
        world.kms.enable_key(world.keys["acme"])
        clocks.pass_(REFUSED_SECONDS)
        with world.sessions.begin() as session:
            assert emails(session, "acme") == ["0@acme"]
            flush(session)
    assert tenant_now() is None
    with world.session() as session:
        assert emails(session, "acme") == ["0@acme", "x"]
