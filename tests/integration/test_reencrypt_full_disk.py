"""A disk that is full ends a job; nothing is lost or half done, and when there is room the next one goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Engine, String, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.child_server import make_folder, server_user
from tests.support.postgres import EmbeddedPostgres, PostgresServer
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import ConfigurationError

ROWS: Final = 1_000
BATCH: Final = 50
SPARE: Final = 32 * 2**10
"""Enough for some rows, and not for all."""

A_BIT: Final = 8 * 2**10
"""What is given free from time to time: the disk is full at another point of a batch each time."""


class Before(DeclarativeBase):
    """The application as it was. Values grow when they are sealed anew: they get tokens."""


class OldPerson(Before):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())
    note: Mapped[str] = mapped_column(EncryptedString())


class After(DeclarativeBase):
    pass


class Person(After):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString(index=True))
    note: Mapped[str] = mapped_column(EncryptedString(index=True))


def filled(world: World) -> World:
    with world.session() as session:
        session.add_all(OldPerson(id=n, email=f"{n}@x.example", note=f"note {n}") for n in range(ROWS))
    world.vault.rotate("acme")
    return world


def run(world: World, engine: Engine) -> Any:
    return world.vault.reencrypt("acme", metadata=After.metadata, engine=engine, batch=BATCH)


def rows_by_version(world: World) -> dict[int, int]:
    """Say how many rows each data-key version has sealed; a row that two have sealed is half done."""
    found: dict[int, int] = {}
    with world.engine.connect() as connection:
        for row in connection.execute(text("SELECT substr(email, 6, 5), substr(note, 6, 5) FROM people")):
            versions = {int.from_bytes(bytes(each)[:2], "big") for each in row}
            assert len(versions) == 1, "a row is half done"
            version = versions.pop()
            assert {bytes(each)[-1] for each in row} == {version - 1}, "tokens come with the newer version"
            found[version] = found.get(version, 0) + 1
    return found


def assert_contents(world: World) -> None:
    with world.session() as session:
        found = session.execute(select(OldPerson.id, OldPerson.email, OldPerson.note).order_by(OldPerson.id)).all()
    assert [tuple(row) for row in found] == [(n, f"{n}@x.example", f"note {n}") for n in range(ROWS)]


def assert_it_stops(world: World, engine: Engine, why: str) -> None:
    with pytest.raises(ConfigurationError, match="rows of table 'people' cannot be sealed anew") as caught:
        run(world, engine)
    assert why in str(caught.value)
    assert "what is done stays" in str(caught.value)
    assert "@x.example" not in str(caught.value)
    assert sum(rows_by_version(world).values()) == ROWS
    assert_contents(world)


def assert_it_goes_on(world: World) -> None:
    assert set(rows_by_version(world)) == {1, 2}
    done = run(world, world.engine)
    assert (done.left, done.problems) == (0, ())
    assert rows_by_version(world) == {2: ROWS}
    assert_contents(world)


def limited(engine: Engine, pages: int) -> Engine:
    """Let connections to a SQLite file refuse to make it longer than so many pages."""

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    return engine


def test_a_sqlite_file_that_cannot_grow(
    sqlite_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    world = filled(world_on(sqlite_url, Before.metadata, key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite3'}"))
    with world.engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count")) or 0
    for more in range(8):
        assert_it_stops(world, limited(make_engine(sqlite_url), pages + more), "SQLITE_FULL")
    assert_it_goes_on(world)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of two megabytes, which the server may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system for a tablespace")
    folder = make_folder("pii-vault-full-", server_user())
    mount = ["mount", "-t", "tmpfs", "-o", f"size=2m,uid={folder.stat().st_uid},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        yield folder
    finally:
        if not done.returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path) -> Path:
    """Write a file that leaves only `SPARE` bytes."""
    filler, space = folder / "filler", os.statvfs(folder)
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - SPARE))
    return filler


@pytest.fixture
def small_tablespace(postgres_server: PostgresServer) -> Iterator[tuple[str, Path]]:
    """A tablespace on a small disk: its name and its place."""
    if not isinstance(postgres_server, EmbeddedPostgres):
        pytest.skip("the server's disk is not this machine's")
    with small_disk() as folder:
        yield f"small_{folder.name.replace('-', '_')}", folder


def test_a_disk_of_postgresql_that_is_full(
    small_tablespace: tuple[str, Path],
    postgres_url: str,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
) -> None:
    name, folder = small_tablespace
    world = filled(world_on(postgres_url, Before.metadata))
    admin = make_engine(postgres_url, isolation_level="AUTOCOMMIT")

    def do(statement: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(statement))

    do(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
    try:
        do(f"ALTER TABLE people SET TABLESPACE {name}")
        filler = fill(folder)

        for _ in range(6):
            assert_it_stops(world, world.engine, "DiskFull")
            os.truncate(filler, filler.stat().st_size - A_BIT)
        filler.unlink()
        assert_it_goes_on(world)
    finally:
        do("ALTER TABLE people SET TABLESPACE pg_default")
        do(f"DROP TABLESPACE {name}")
