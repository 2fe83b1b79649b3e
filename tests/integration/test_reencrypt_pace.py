"""Re-encryption leaves the database to others: so many rows a second, and never far ahead of a replica."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from tests.support.crew_app import Base, Person, stored, versions
from tests.support.postgres import EmbeddedPostgres
from tests.support.world import World

from pii_vault import Vault
from pii_vault.errors import ConfigurationError
from pii_vault.reencryption import pacing
from pii_vault.reencryption.crews import Crew, Part, PartDone
from pii_vault.reencryption.pacing import Pace


class Time:
    """What the job takes for the time: it stands still but when somebody sleeps, and nobody really does."""

    def __init__(self) -> None:
        self.now, self.sleeps = 1000.0, 0
        self.asleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.sleeps += 1
        self.asleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(pacing, "time", made)
    return made


def filled(world: World, count: int = 60) -> World:
    with world.session() as session:
        session.add_all(Person(email=f"{n}@example.com", age=n) for n in range(count))
    world.vault.rotate("acme")
    return world


def run(world: World, engine: Engine | None = None, **options: Any) -> Any:
    return world.vault.reencrypt("acme", metadata=Base.metadata, engine=engine or world.engine, **options)


# The rate.


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return filled(build_world(Base.metadata))


def test_so_many_rows_a_second_are_written_and_a_batch_is_at_most_a_second_of_them(world: World, clock: Time) -> None:
    steps: list[tuple[float, int]] = []

    def progress(table: str, done: int, _total: int) -> None:
        if table == "people":
            steps.append((clock.now - 1000, done))

    assert run(world, rate=8, progress=progress).left == 0
    assert clock.now - 1000 == pytest.approx(60 / 8)
    told = dict.fromkeys(done for _, done in steps)
    assert list(told) == [0, 8, 16, 24, 32, 40, 48, 56, 60]
    assert all(done <= 8 * (seconds + 1) + 1e-6 for seconds, done in steps)


def test_a_rate_below_one_row_a_second_is_one_row_at_a_time(world: World, clock: Time) -> None:
    with world.engine.begin() as connection:
        connection.execute(text("DELETE FROM people WHERE id > 4"))
    assert run(world, rate=0.5).left == 0
    assert clock.now - 1000 == pytest.approx(8)


def test_what_was_slow_is_not_made_up_for_by_more_than_a_second(world: World, clock: Time) -> None:
    """A database that did nothing for a minute is not asked for a minute's rows at once."""
    times: list[float] = []

    def progress(table: str, done: int, _total: int) -> None:
        if table == "people" and done and (len(times) < done // 10):
            times.append(clock.now)
            clock.now += 60 if done == 20 else 0

    run(world, rate=10, progress=progress)
    gaps = [round(after - before) for before, after in pairwise(times)]
    assert gaps == [1, 60, 1, 1, 1]


def test_whoever_waits_is_asked_whether_to_go_on(world: World, clock: Time) -> None:
    """Ctrl-C does not wait for a rate of a row in ten seconds."""
    pressed: list[bool] = []

    def press() -> None:
        if clock.sleeps == 3:
            pressed.append(True)

    def progress(_table: str, _done: int, _total: int) -> None:
        if pressed:
            raise KeyboardInterrupt

    clock.asleep = press
    with pytest.raises(KeyboardInterrupt):
        run(world, rate=0.1, progress=progress)
    assert clock.now < 1002
    assert versions(world.engine) == {1: 118, 2: 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": -1},
        {"rate": 0},
        {"rate": -1},
        {"rate": math.nan},
        {"rate": math.inf},
        {"max_lag": -1},
        {"max_lag": math.nan},
        {"max_lag": math.inf},
    ],
)
def test_a_pace_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="a rate is above 0, and a lag is not below 0"):
        Pace(**wrong)


def test_a_pace_is_shared() -> None:
    assert Pace(100, 30.0, 5.0).shared(3) == Pace(100, 10.0, 5.0)
    assert Pace(100).shared(3) == Pace(100)
    assert [Pace(2_000, rate).rows for rate in (None, 0.1, 1, 7.9, 5_000)] == [2_000, 1, 1, 7, 2_000]


# Replicas.


@pytest.fixture
def primary(servers: tuple[EmbeddedPostgres, EmbeddedPostgres], world_on: Callable[..., World]) -> Iterator[World]:
    """A world on a server with a standby that follows it."""
    server, standby = servers
    name = server.create_database()
    world = filled(world_on(server.url(name), Base.metadata))
    standby.catch_up(server)
    yield world
    standby.pause_replay(False)
    world.vault.close()
    world.engine.dispose()
    server.drop_database(name)


class Watch:
    """Writes down how far the job is; each batch takes two seconds."""

    def __init__(self, clock: Time) -> None:
        self._clock, self.done = clock, 0

    def __call__(self, table: str, done: int, _total: int) -> None:
        if table == "people" and done > self.done:
            self.done = done
            self._clock.now += 2


def test_it_waits_for_a_replica_that_stands_still_and_goes_on_when_it_follows(
    servers: tuple[EmbeddedPostgres, EmbeddedPostgres], primary: World, clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    server, standby = servers
    watch, waited = Watch(clock), list[int]()

    def asleep() -> None:
        waited.append(watch.done)
        if clock.sleeps == 200:
            standby.pause_replay(False)
            standby.catch_up(server)
        if clock.sleeps > 200:
            time.sleep(0.01)  # its answer is on the way

    clock.asleep = asleep
    standby.pause_replay()
    assert run(primary, batch=10, max_lag=5, progress=watch).left == 0
    assert set(waited[:200]) == {40}  # when the fourth batch is written, the first one is 6 seconds old
    assert watch.done == 60
    (told,) = [each.getMessage() for each in caplog.records if each.name == pacing.__name__]
    assert "a replica is 3" in told
    assert "and re-encryption waits for it" in told


def test_a_replica_that_follows_is_not_waited_for_long(primary: World) -> None:
    assert run(primary, batch=10, max_lag=0).left == 0


class Here(Crew):
    """Does parts in this process, one after the other, as a worker does."""

    def __init__(self, vault: Vault, engine: Engine) -> None:
        super().__init__(1)
        self._vault, self._engine = vault, engine

    def do(self, parts: Sequence[Part]) -> Generator[PartDone]:
        for part in parts:
            yield self._vault.reencrypt_part(part, metadata=Base.metadata, engine=self._engine)


def test_a_worker_waits_too_though_each_of_its_parts_is_short(
    servers: tuple[EmbeddedPostgres, EmbeddedPostgres], primary: World, clock: Time
) -> None:
    server, standby = servers
    watch, waited = Watch(clock), list[int]()

    def asleep() -> None:
        waited.append(watch.done)
        standby.pause_replay(False)
        standby.catch_up(server)
        time.sleep(0.01)

    clock.asleep = asleep
    standby.pause_replay()
    assert run(primary, batch=5, max_lag=5, progress=watch, crew=Here(primary.vault, primary.engine)).left == 0
    assert waited
    assert waited[0] < 30


def test_a_replica_that_vanishes_is_waited_for_no_more(
    servers: tuple[EmbeddedPostgres, EmbeddedPostgres], primary: World, clock: Time
) -> None:
    _, standby = servers
    watch = Watch(clock)

    def asleep() -> None:
        if standby.is_running():
            standby.stop()
        time.sleep(0.01)

    clock.asleep = asleep
    standby.pause_replay()
    try:
        assert run(primary, batch=10, max_lag=5, progress=watch).left == 0
        assert clock.sleeps
        with create_engine(primary.url).connect() as connection:
            engine = connection.engine
            assert connection.scalar(text("SELECT count(*) FROM pg_stat_replication")) == 0
        with pytest.raises(ConfigurationError, match="no replica is connected to this server"):
            run(primary, engine, max_lag=5)  # nobody who begins now finds one
        engine.dispose()
    finally:
        standby.start()


def test_without_a_replica_there_is_none_to_wait_for(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = filled(world_on(postgres_url, Base.metadata))
    before = stored(world.engine)
    with pytest.raises(ConfigurationError, match=r"no replica is connected .* \(leave the limit out\)"):
        run(world, max_lag=5)
    assert stored(world.engine) == before


def test_sqlite_has_none(sqlite_url: str, world_on: Callable[..., World]) -> None:
    with pytest.raises(ConfigurationError, match=r"replicas are behind cannot be seen on sqlite \(leave .* set a rate"):
        run(filled(world_on(sqlite_url, Base.metadata)), max_lag=5)


def test_who_may_not_see_replicas_is_told_what_to_grant(primary: World) -> None:
    role = f"blind_{primary.engine.url.database}"
    engine = create_engine(primary.url)
    event.listen(engine, "connect", lambda connection, _: become(connection, role))
    with primary.engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
        connection.exec_driver_sql(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"')
    try:
        with pytest.raises(ConfigurationError, match=r"by this database user \(grant it pg_read_all_stats\)"):
            run(primary, engine, max_lag=5)
        with primary.engine.begin() as connection:
            connection.exec_driver_sql(f'GRANT pg_read_all_stats TO "{role}"')
        assert run(primary, engine, max_lag=5).left == 0
    finally:
        engine.dispose()
        with primary.engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')


def become(connection: Any, role: str) -> None:
    connection.execute(f'SET ROLE "{role}"')
    connection.commit()


def test_an_archive_is_no_replica(servers: tuple[EmbeddedPostgres, EmbeddedPostgres], primary: World) -> None:
    """`pg_receivewal` replays nothing, and is not taken for one that may not be seen."""
    archive = servers[0].receive_wal(f"archive-{primary.engine.url.database}")
    try:
        seen = text("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn IS NULL")
        deadline = time.monotonic() + 30
        with primary.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.scalar(seen):
                assert archive.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert run(primary, max_lag=5).left == 0
    finally:
        archive.terminate()
        archive.wait(timeout=30)
