"""Fixtures of the integration tests."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from tests.support.adopting import DATABASES, Base, People
from tests.support.calendar import Calendar
from tests.support.child_server import ServerUnavailableError
from tests.support.postgres import EmbeddedPostgres
from tests.support.world import World, make_world


@pytest.fixture
def world_on(tmp_path: Path, make_engine: Callable[..., Engine]) -> Iterator[Callable[..., World]]:
    """Build a world on a given database: `world_on(url, metadata, ttl=…)`; its vault is closed after the test."""
    worlds: list[World] = []

    def build(url: str, metadata: Any = None, **options: Any) -> World:
        worlds.append(make_world(url, tmp_path, make_engine, metadata, **options))
        return worlds[-1]

    yield build
    for world in worlds:
        world.vault.close()


@pytest.fixture
def build_world(database_url: str, world_on: Callable[..., World]) -> Callable[..., World]:
    """Build a world on a fresh database (SQLite, then PostgreSQL): `build_world(metadata, ttl=…)`."""
    return partial(world_on, database_url)


@pytest.fixture
def people_on(
    request: pytest.FixtureRequest,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], People]:
    """Build a table whose plaintext column is adopted, on a fresh database: `people_on("mariadb")`."""

    def build(database: str) -> People:
        monkeypatch.setattr("pii_vault.adoption.adopt._NOTICED", 0.0)
        # No key store is on MariaDB.
        keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if database == "mariadb" else {}
        world = world_on(request.getfixturevalue(DATABASES[database]), Base.metadata, **keys)
        return People(world, make_engine(world.engine.url))

    return build


@pytest.fixture(params=list(DATABASES))
def people(request: pytest.FixtureRequest, people_on: Callable[[str], People]) -> People:
    """The same, on each database."""
    return people_on(request.param)


@pytest.fixture
def local_people(people_on: Callable[[str], People]) -> People:
    """The same, on SQLite."""
    return people_on("sqlite")


@pytest.fixture
def postgres_people(people_on: Callable[[str], People]) -> People:
    """The same, on PostgreSQL."""
    return people_on("postgresql")


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """A primary, and a standby that follows it."""
    try:
        primary = EmbeddedPostgres()
    except ServerUnavailableError as error:
        pytest.skip(f"a standby is made of the wheel's PostgreSQL: {error}")
    primary.start()
    standby = primary.standby()
    yield primary, standby
    standby.close()
    primary.close()
