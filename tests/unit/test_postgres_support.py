"""The tests' own PostgreSQL is a real one, survives a crash with its rows, and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.support import postgres
from tests.support.child_server import is_alive, wait_until_gone
from tests.support.postgres import EmbeddedPostgres, ExternalPostgres, PostgresServer, start_postgres
from tests.support.urls import async_url, async_urls

MakeEngine = Callable[..., Engine]
MakeAsyncEngine = Callable[..., AsyncEngine]


def test_the_server_is_a_real_postgresql(postgres_url: str, make_engine: MakeEngine) -> None:
    with make_engine(postgres_url).connect() as connection:
        assert str(connection.scalar(text("SELECT version()"))).startswith("PostgreSQL ")


def test_text_is_unicode_and_not_just_ascii(postgres_url: str, make_engine: MakeEngine) -> None:
    with make_engine(postgres_url).connect() as connection:
        assert connection.scalar(text("SELECT lower('ÄÖÜ')")) == "äöü"


def test_every_driver_reaches_the_database(postgres_url: str, make_async_engine: MakeAsyncEngine) -> None:
    async def current_database(url: str) -> str:
        async with make_async_engine(url).connect() as connection:
            return str(await connection.scalar(text("SELECT current_database()")))

    names = {asyncio.run(current_database(url)) for url in async_urls(postgres_url)}

    assert len(async_urls(postgres_url)) == 2
    assert names == {make_url(postgres_url).database}


def test_sqlite_has_an_asynchronous_driver_too(sqlite_url: str, make_async_engine: MakeAsyncEngine) -> None:
    async def write_and_read() -> int | None:
        async with make_async_engine(async_url(sqlite_url)).begin() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER)"))
            await connection.execute(text("INSERT INTO t VALUES (7)"))
            return cast("int | None", await connection.scalar(text("SELECT n FROM t")))

    assert asyncio.run(write_and_read()) == 7


def test_a_driver_that_the_database_does_not_have_is_refused(sqlite_url: str) -> None:
    with pytest.raises(ValueError, match="aiosqlite, not asyncpg"):
        async_url(sqlite_url, "asyncpg")


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_gets_an_empty_database(database_url: str, make_engine: MakeEngine, attempt: int) -> None:
    with make_engine(database_url).begin() as connection:
        # Fails on the second attempt if the first one's table is still there.
        connection.execute(text("CREATE TABLE only_once (n INTEGER)"))


def test_two_databases_do_not_see_each_other(
    postgres_server: PostgresServer, postgres_url: str, make_engine: MakeEngine
) -> None:
    other = postgres_server.create_database()
    with make_engine(postgres_url).begin() as connection:
        connection.execute(text("CREATE TABLE here (n INTEGER)"))
    with make_engine(postgres_server.url(other)).connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('here')")) is None
    postgres_server.drop_database(other)


def test_a_database_can_be_copied(postgres_server: PostgresServer, make_engine: MakeEngine) -> None:
    original = postgres_server.create_database()
    engine = make_engine(postgres_server.url(original))
    _insert_row(engine)
    engine.dispose()

    copy = postgres_server.create_database(template=original)

    assert _rows(make_engine(postgres_server.url(copy))) == 1
    postgres_server.drop_database(copy)
    postgres_server.drop_database(original)


def test_rows_survive_a_kill_and_a_start(crashable_postgres: PostgresServer, make_engine: MakeEngine) -> None:
    engine = make_engine(crashable_postgres.url(crashable_postgres.create_database()))
    _insert_row(engine)
    with engine.connect() as open_when_it_dies:
        open_when_it_dies.execute(text("INSERT INTO t VALUES (2)"))
        crashable_postgres.kill()
        assert not crashable_postgres.is_running()
        crashable_postgres.start()
        open_when_it_dies.invalidate()

    assert _rows(engine) == 1


def test_rows_survive_a_stop_and_a_start(crashable_postgres: PostgresServer, make_engine: MakeEngine) -> None:
    engine = make_engine(crashable_postgres.url(crashable_postgres.create_database()))
    _insert_row(engine)
    engine.dispose()
    crashable_postgres.stop()
    crashable_postgres.start()

    assert _rows(engine) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root has to start the server as somebody else.")
def test_binaries_that_only_root_can_read_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site_packages = postgres._wheel_binaries().parent.parent
    for name in (postgres.WHEEL, f"{postgres.WHEEL}.libs"):
        if (site_packages / name).exists():
            shutil.copytree(site_packages / name, tmp_path / name, symlinks=True)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(postgres, "_wheel_binaries", lambda: tmp_path / postgres.WHEEL / "pginstall18")

    server = EmbeddedPostgres()
    server.start()

    assert server.is_running()
    server.close()


def test_a_server_that_is_closed_leaves_no_process_and_no_folder() -> None:
    server = EmbeddedPostgres()
    server.start()
    pid, folder = server.pid, Path(str(server.admin_url.query["host"]))
    server.kill()
    server.close()

    assert pid is not None
    assert not is_alive(pid)
    assert not folder.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_test_process_that_is_ended_takes_its_server_along(end: signal.Signals) -> None:
    code = (
        "import signal, time; from tests.support.postgres import EmbeddedPostgres; "
        # A process started in the background may have been told to ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "server = EmbeddedPostgres(); server.start(); "
        "print(server.pid, server.admin_url.query['host'], flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=_root()
    ) as process:
        assert process.stdout
        pid, folder = process.stdout.readline().split()
        process.send_signal(end)

    wait_until_gone(int(pid), Path(folder))


def test_a_named_server_is_used_and_never_stopped(
    monkeypatch: pytest.MonkeyPatch,
    postgres_server: PostgresServer,
    postgres_url: str,
    make_engine: MakeEngine,
) -> None:
    monkeypatch.setenv("PII_VAULT_TEST_DATABASE_URL", postgres_url)
    external = start_postgres()
    name = external.create_database()
    _insert_row(make_engine(external.url(name)))
    external.drop_database(name)
    external.close()

    assert isinstance(external, ExternalPostgres)
    assert postgres_server.is_running()
    with pytest.raises(NotImplementedError):
        external.kill()


def test_a_named_server_that_is_not_postgresql_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PII_VAULT_TEST_DATABASE_URL", "sqlite:///somewhere.sqlite3")
    with pytest.raises(ValueError, match="PostgreSQL"):
        start_postgres()


def _insert_row(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))


def _rows(engine: Engine) -> int | None:
    with engine.connect() as connection:
        return cast("int | None", connection.scalar(text("SELECT count(*) FROM t")))


def _root() -> Path:
    return Path(__file__).resolve().parents[2]
