"""Fixtures for every test: databases that are real, fresh and gone afterwards."""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from tests.support.child_server import ServerUnavailableError
from tests.support.mariadb import MariaDBServer, missing, start_mariadb
from tests.support.postgres import PostgresServer, start_crashable_postgres, start_postgres
from tests.support.strict_kms import StrictKms


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for each test process. Do not kill it: `crashable_postgres` is for that."""
    server = start_postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _crashable_postgres() -> Iterator[PostgresServer]:
    server = start_crashable_postgres()
    yield server
    server.close()


@pytest.fixture
def crashable_postgres(_crashable_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A second server, which tests may kill, stop and start. It is up at the start of each test."""
    yield _crashable_postgres
    if not _crashable_postgres.is_running():
        _crashable_postgres.start()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh PostgreSQL database."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    """One server for each test process. A machine without MariaDB skips its tests."""
    try:
        server = start_mariadb()
    except ServerUnavailableError as error:
        pytest.skip(str(error))
    yield server
    server.close()


@pytest.fixture
def mariadb_url(mariadb_server: MariaDBServer) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh MariaDB database: for the application's tables, never for a key store."""
    name = mariadb_server.create_database()
    yield mariadb_server.url(name)
    mariadb_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The SQLAlchemy URL of a fresh SQLite file."""
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh database: the test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """Create engines as `create_engine` does; they are disposed after the test."""
    engines: list[Engine] = []

    def make(url: str, **options: Any) -> Engine:
        engines.append(create_engine(url, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def make_async_engine() -> Iterator[Callable[..., AsyncEngine]]:
    """Create engines as `create_async_engine` does, but without a pool; they are disposed after the test.

    A pooled connection belongs to the event loop that opened it, and each `asyncio.run` of a test has
    its own. A test of pooling names its `poolclass` and disposes the engine in the loop that used it.
    """
    engines: list[AsyncEngine] = []

    def make(url: str, **options: Any) -> AsyncEngine:
        options.setdefault("poolclass", NullPool)
        engines.append(create_async_engine(url, **options))
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.dispose())


def pytest_configure(config: pytest.Config) -> None:
    # scripts/test says which SQLAlchemy it means, so that a run on 2.0 is not a second run on 2.1 by mistake.
    expected = os.environ.get("PII_VAULT_EXPECTED_SQLALCHEMY")
    if expected and not sqlalchemy.__version__.startswith(f"{expected}."):
        raise pytest.UsageError(f"This run is for SQLAlchemy {expected} and found {sqlalchemy.__version__}.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A mark makes one line for each file in the summary, a skip in a fixture one for each test.
    reason = missing()
    for item in items if reason else ():
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "mariadb" in parameters.values() or "mariadb_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    # Modules and collected tests stay to the end: looking through them for garbage took a sixth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_report_header() -> str:
    return f"SQLAlchemy {sqlalchemy.__version__}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # pytest calls a run in which every test was skipped a success.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if reporter is None or is_worker or session.config.option.collectonly or exitstatus != pytest.ExitCode.OK:
        return
    if not any(reporter.stats.get(outcome) for outcome in ("passed", "xfailed")):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture
def strict_kms() -> Iterator[StrictKms]:
    """A KMS and STS of its own for each test, over HTTP."""
    with StrictKms() as kms:
        yield kms
