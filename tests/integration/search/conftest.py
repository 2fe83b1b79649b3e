"""One world for each database, shared by the tests of this folder: tables are emptied, not made anew."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event
from tests.integration.search.models import SEALED, TWIN, some_rows
from tests.support.world import World, make_world


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def _search_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("search")
    engines: list[Engine] = []

    def make_engine(url: str) -> Engine:
        engines.append(create_engine(url))
        if engines[-1].dialect.name == "sqlite":
            # No test here cuts the power.
            event.listen(engines[-1], "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        return engines[-1]

    server, name, url, key_store_url = None, "", f"sqlite:///{directory / 'search.sqlite3'}", None
    if request.param != "sqlite":
        server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
        name = server.create_database()
        url = server.url(name)
    if request.param == "mariadb":  # which no key store is on
        key_store_url = f"sqlite:///{directory / 'keys.sqlite3'}"
        with make_engine(url).begin() as connection:  # the twin's texts are equal only if they are the same
            connection.exec_driver_sql(f"ALTER DATABASE {name} COLLATE utf8mb4_nopad_bin")
    world = make_world(url, directory, make_engine, SEALED.metadata, key_store_url)
    TWIN.metadata.create_all(world.engine)
    yield world
    for engine in engines:
        engine.dispose()
    world.vault.close()
    if server:
        server.drop_database(name)


def empty(world: World) -> None:
    with world.engine.begin() as connection:
        for models in (SEALED, TWIN):
            for table in reversed(models.metadata.sorted_tables):
                connection.execute(table.delete())


def fill(world: World) -> None:
    with world.session() as session:
        for models in (SEALED, TWIN):
            rows = some_rows(models)
            for row in rows:
                row.tenant_id = "acme"
            session.add_all(rows)


@pytest.fixture
def search_world(_search_world: World) -> Iterator[World]:
    """A world whose tables of `SEALED` and `TWIN` hold `some_rows`; the test may change them."""
    fill(_search_world)
    yield _search_world
    empty(_search_world)


@pytest.fixture(scope="module")
def found_world(_search_world: World) -> Iterator[World]:
    """The same, for tests that change no row, or take back what they changed."""
    fill(_search_world)
    yield _search_world
    empty(_search_world)
