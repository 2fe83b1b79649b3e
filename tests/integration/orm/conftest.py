"""One world for each database, shared by the tests of this folder: tables are emptied, not made anew."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event
from tests.integration.orm.models import SEALED, TWIN, some_rows
from tests.support.world import World, make_world


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def _shared_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("orm")
    engines: list[Engine] = []

    def make_engine(url: str) -> Engine:
        engines.append(create_engine(url))
        if engines[-1].dialect.name == "sqlite":
            # No test here cuts the power.
            event.listen(engines[-1], "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        return engines[-1]

    server, name, url, key_store_url = None, "", f"sqlite:///{directory / 'orm.sqlite3'}", None
    if request.param != "sqlite":
        server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
        name = server.create_database()
        url = server.url(name)
    if request.param == "mariadb":  # which no key store is on
        key_store_url = f"sqlite:///{directory / 'keys.sqlite3'}"
    world = make_world(url, directory, make_engine, SEALED.metadata, key_store_url)
    TWIN.metadata.create_all(world.engine)
    if request.param == "postgresql":
        with world.engine.begin() as connection:  # some_rows bring their own ids
            connection.exec_driver_sql("ALTER SEQUENCE users_id_seq RESTART WITH 1000")
    yield world
    for engine in engines:
        engine.dispose()
    world.vault.close()
    if server:
        server.drop_database(name)


def _empty(world: World) -> None:
    with world.engine.begin() as connection:
        for models in (SEALED, TWIN):
            connection.execute(models.User.__table__.update().values(boss_id=None))
            for table in reversed(models.metadata.sorted_tables):
                connection.execute(table.delete())


def _fill(world: World) -> None:
    with world.session() as session:
        for models in (SEALED, TWIN):
            session.add_all(some_rows(models))


@pytest.fixture
def orm_world(_shared_world: World) -> Iterator[World]:
    """A world whose tables of `SEALED` and `TWIN` hold `some_rows`; the test may change them."""
    _fill(_shared_world)
    yield _shared_world
    _empty(_shared_world)


@pytest.fixture(scope="module")
def read_only_world(_shared_world: World) -> Iterator[World]:
    """The same, for tests that change no row."""
    _fill(_shared_world)
    yield _shared_world
    _empty(_shared_world)
