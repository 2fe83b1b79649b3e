"""One world for all tests of a module: a fresh PostgreSQL database for each test would be most of the time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import MetaData, create_engine
from tests.support.postgres import PostgresServer
from tests.support.world import World, make_world


@contextmanager
def shared_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, metadata: MetaData
) -> Iterator[World]:
    """A world on the database that the fixture's parameter names."""
    folder = tmp_path_factory.mktemp("world")
    url = f"sqlite:///{folder}/app.sqlite3"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.url(server.create_database())
    world = make_world(url, folder, create_engine, metadata)
    yield world
    world.vault.close()
    world.engine.dispose()


@contextmanager
def emptied(world: World, metadata: MetaData) -> Iterator[World]:
    """The world for one test, which leaves no row behind."""
    yield world
    with world.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
