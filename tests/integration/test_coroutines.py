"""Coroutines wait for keys as threads do, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import String, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.clocks import Clocks
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import EncryptedString, Vault
from pii_vault.errors import KmsDeniedError, KmsUnavailableError
from pii_vault.keyring.terms import NOTICE_SECONDS
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms

TTL = 100.0
EARLY = 0.96 * TTL


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class SeenKms(AwsKms):
    """The real client; it remembers which threads have waited for an answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.threads: set[str] = set()

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        self.threads.add(threading.current_thread().name)
        return super().unwrap(key, blob, context)


class App:
    """An asynchronous application with two tenants, on PostgreSQL; nobody's keys are in memory."""

    def __init__(self, url: str, kms: StrictKms) -> None:
        self.url, self.kms, self.clocks = url, kms, Clocks()
        self.client = SeenKms(
            endpoint_url=kms.endpoint_url, sts_endpoint_url=kms.endpoint_url, session=kms.session(), attempts=1
        )
        self.vault = Vault(url, kms=self.client, platform_key=kms.platform_key(), ttl=TTL, clock=self.clocks.as_clock)
        self.vault.create_all()
        self.keys: dict[str, KmsKey] = {}
        for tenant in ("acme", "glob"):
            key = self.keys[tenant] = kms.customer_key()
            self.vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
        self.key_store_threads: set[str] = set()
        event.listen(
            self.vault._engine,
            "before_cursor_execute",
            lambda *_: self.key_store_threads.add(threading.current_thread().name),
        )
        self.forget()

    def forget(self) -> None:
        for tenant in self.keys:
            self.vault.evict(tenant)
        self.client.threads, self.key_store_threads = set(), set()

    def run(self, work: Callable[[async_sessionmaker[AsyncSession]], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with self.sessions() as sessions:
                await work(sessions)

        asyncio.run(main())

    @asynccontextmanager
    async def sessions(self) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(self.url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(engine)
        self.vault.attach(engine, sessions, tenant_column="tenant_id")
        try:
            yield sessions
        finally:
            await engine.dispose()

    async def enter(self, tenant: str = "acme") -> str:
        async with self.vault.tenant(tenant) as scope:
            return scope.tenant

    def unwraps(self, tenant: str = "acme", outcome: str | None = None) -> int:
        return self.kms.count("Decrypt", key=self.keys[tenant].arn, outcome=outcome)

    def slow(self, tenant: str = "acme", seconds: float = 0.4, **more: Any) -> None:
        self.kms.script(FaultRule("Decrypt", key=self.keys[tenant].arn, latency=seconds, **more))


@pytest.fixture
def app(postgres_url: str, strict_kms: StrictKms) -> Iterator[App]:
    app = App(postgres_url, strict_kms)
    yield app
    app.vault.close()


async def until(condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + 30
        await asyncio.sleep(0.005)


async def write(app: App, sessions: async_sessionmaker[AsyncSession], *bodies: str) -> None:
    async with app.vault.tenant("acme"), sessions.begin() as session:
        session.add_all(Note(body=body) for body in bodies)


def our_threads() -> set[threading.Thread]:
    """Threads that fetch keys, those of other tests' vaults too."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("pii-vault")}


def test_five_hundred_cold_coroutines_ask_the_kms_once_and_take_one_thread(app: App) -> None:
    gaps, done, asked, before = [], threading.Event(), app.unwraps(), our_threads()

    async def ticking() -> None:
        last = time.monotonic()
        while not done.is_set():
            await asyncio.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async def main() -> None:
        ticks = asyncio.create_task(ticking())
        waiting = [asyncio.create_task(app.enter()) for _ in range(500)]
        await until(lambda: app.unwraps(outcome="open"))
        assert len(our_threads() - before) == 1
        await asyncio.to_thread(lambda: None)  # the loop's own threads are free
        assert not any(task.done() for task in waiting)
        assert await asyncio.gather(*waiting) == ["acme"] * 500
        done.set()
        await ticks

    app.slow(seconds=2)
    asyncio.run(main())
    assert app.unwraps() == asked + 1
    assert max(gaps) < 1  # whatever else the machine does; benchmarks/event_loop.py measures it


def test_nothing_is_asked_on_the_event_loop(app: App) -> None:
    async def work(sessions: async_sessionmaker[AsyncSession]) -> None:
        await write(app, sessions, "one")
        async with app.vault.tenant("acme"), sessions() as session:
            for step in (EARLY, TTL):  # due, expired
                app.clocks.pass_(step)
                assert await session.scalar(select(Note.body)) == "one"
                await asyncio.sleep(0.05)

    app.run(work)
    main = threading.current_thread().name
    assert app.client.threads
    assert main not in app.client.threads
    assert app.key_store_threads
    assert main not in app.key_store_threads


def test_a_failure_is_shared_by_all_who_wait(app: App) -> None:
    asked = app.unwraps()

    async def main() -> None:
        outcomes = await asyncio.gather(*(app.enter() for _ in range(50)), return_exceptions=True)
        assert {type(each) for each in outcomes} == {KmsDeniedError}

    app.kms.disable(app.keys["acme"].arn)
    asyncio.run(main())
    assert app.unwraps() == asked + 1


@pytest.mark.parametrize("leads", [True, False], ids=["who asks", "who waits"])
def test_a_coroutine_that_is_cancelled_takes_nobody_with_it(app: App, leads: bool) -> None:
    asked = app.unwraps()

    async def main() -> None:
        first = asyncio.create_task(app.enter())
        await until(lambda: app.unwraps(outcome="open"))
        others = [asyncio.create_task(app.enter()) for _ in range(10)]
        await asyncio.sleep(0)
        (first if leads else others[0]).cancel()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(each) for each in outcomes].count(asyncio.CancelledError) == 1
        assert outcomes.count("acme") == 10

    app.slow()
    asyncio.run(main())
    assert app.unwraps() == asked + 1


def test_who_is_cancelled_alone_leaves_nothing_behind(app: App) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(app.enter(), 0.1)
        assert await app.enter() == "acme"

    app.slow()
    asyncio.run(main())


def test_a_loop_that_ends_before_the_answer_comes_leaves_nothing_behind(app: App) -> None:
    async def main() -> None:
        asyncio.create_task(app.enter())  # noqa: RUF006 - it is to be left behind
        await until(lambda: app.unwraps(outcome="open"))

    asked = app.unwraps()
    app.slow()
    asyncio.run(main())
    assert asyncio.run(app.enter()) == "acme"
    assert app.unwraps() == asked + 1


def test_coroutines_of_several_loops_and_threads_wait_for_one_answer(app: App) -> None:
    asked = app.unwraps()

    def in_a_loop(_: int) -> list[str]:
        async def main() -> list[str]:
            return list(await asyncio.gather(*(app.enter() for _ in range(20))))

        return asyncio.run(main())

    def in_a_thread(_: int) -> list[str]:
        with app.vault.tenant("acme") as scope:
            return [scope.tenant]

    app.slow()
    with ThreadPoolExecutor(8) as pool:
        loops, threads = pool.map(in_a_loop, range(4)), pool.map(in_a_thread, range(4))
        assert list(loops) == [["acme"] * 20] * 4
        assert list(threads) == [["acme"]] * 4
    assert app.unwraps() == asked + 1


def test_coroutines_that_wait_for_one_customer_s_kms_hold_up_no_other_s(app: App) -> None:
    async def main() -> None:
        dark = [asyncio.create_task(app.enter("acme")) for _ in range(300)]
        await until(lambda: app.unwraps("acme"))
        assert await app.enter("glob") == "glob"
        assert not any(task.done() for task in dark)
        outcomes = await asyncio.gather(*dark, return_exceptions=True)
        assert {type(each) for each in outcomes} == {KmsUnavailableError}

    app.kms.script(FaultRule("Decrypt", key=app.keys["acme"].arn, times=None, black_hole=True))
    asyncio.run(main())


@pytest.mark.parametrize("refused", [False, True], ids=["granted", "refused"])
def test_keys_are_fetched_ahead_while_everybody_goes_on_and_a_refusal_is_known_to_the_next_one(
    app: App, refused: bool
) -> None:
    async def work(sessions: async_sessionmaker[AsyncSession]) -> None:
        await write(app, sessions, "one")
        asked = app.unwraps()
        if refused:
            app.kms.disable(app.keys["acme"].arn)
        app.slow()
        app.clocks.pass_(EARLY)
        async with app.vault.tenant("acme"), sessions() as session:
            assert await session.scalar(select(Note.body)) == "one"
            await until(lambda: app.unwraps() == asked + 1)
            assert await session.scalar(select(Note.body)) == "one"
            await until(lambda: not app.unwraps(outcome="open"))
            await asyncio.sleep(0.1)
            if refused:
                with pytest.raises(KmsDeniedError):
                    await session.scalar(select(Note.body))
            else:
                assert await session.scalar(select(Note.body)) == "one"
        assert app.unwraps() == asked + 1

    app.run(work)


def test_rows_that_stream_wait_for_keys_off_the_loop_and_the_bound_holds_for_them(app: App) -> None:
    query = select(Note.body).order_by(Note.id).execution_options(yield_per=1)

    async def work(sessions: async_sessionmaker[AsyncSession]) -> None:
        await write(app, sessions, "one", "two", "three")
        app.client.threads, app.key_store_threads = set(), set()
        async with app.vault.tenant("acme"), sessions() as session:
            rows = await session.stream_scalars(query)
            assert await rows.fetchmany(1) == ["one"]
            app.clocks.pass_(TTL)
            assert await rows.fetchmany(1) == ["two"]
            app.kms.disable(app.keys["acme"].arn)
            app.clocks.pass_(TTL)
            with pytest.raises(KmsDeniedError):
                await rows.fetchmany(1)
            await rows.close()

    app.run(work)
    assert len(app.client.threads) == 1
    assert threading.current_thread().name not in app.client.threads | app.key_store_threads


def test_rows_that_stream_hear_of_an_eviction(app: App) -> None:
    query = select(Note.body).order_by(Note.id).execution_options(yield_per=1)
    operator = Vault(app.url, kms=app.client, platform_key=app.kms.platform_key())

    async def work(sessions: async_sessionmaker[AsyncSession]) -> None:
        await write(app, sessions, "one", "two", "three")
        async with app.vault.tenant("acme"), sessions() as session:
            rows = await session.stream_scalars(query)
            assert await rows.fetchmany(1) == ["one"]
            app.kms.disable(app.keys["acme"].arn)
            await asyncio.to_thread(operator.evict, "acme")
            app.key_store_threads = set()
            app.clocks.pass_(NOTICE_SECONDS)
            with pytest.raises(KmsDeniedError):
                await rows.fetchmany(1)
            await rows.close()

    app.run(work)
    operator.close()
    assert threading.current_thread().name not in app.key_store_threads


@pytest.mark.parametrize("known", [True, False])
def test_without_a_time_to_live_every_scope_asks_off_the_loop(app: App, known: bool) -> None:
    app.vault.set_terms("acme", ttl=0)
    if known:
        asyncio.run(app.enter())  # whoever reads the records knows it; before that, all wait for the first one
    app.client.threads, asked = set(), app.unwraps()

    async def main() -> None:
        assert await asyncio.gather(*(app.enter() for _ in range(10))) == ["acme"] * 10

    asyncio.run(main())
    assert app.unwraps() == asked + 10
    assert threading.current_thread().name not in app.client.threads


def test_a_coroutine_does_not_wait_for_ever(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pii_vault.keyring.flight.WAIT_SECONDS", 0.05)

    async def main() -> None:
        with pytest.raises(KmsUnavailableError, match=r"tenant 'acme' are still being fetched after 0\.05 s"):
            await app.enter()

    app.slow()
    asyncio.run(main())
