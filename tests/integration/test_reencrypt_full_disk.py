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
SPARE: Final = 64 * 2**10
"""Enough for some batches, and not for all."""


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
            (version,) = {int.from_bytes(bytes(each)[:2], "big") for each in row}
            assert {bytes(each)[-1] for each in row} == {version - 1}, "tokens and version came at once"
            found[version] = found.get(version, 0) + 1
    return found


def assert_contents(world: World) -> None:
    with world.session() as session:
        found = session.execute(select(OldPerson.id, OldPerson.email, OldPerson.note).order_by(OldPerson.id)).all()
    assert [tuple(row) for row in found] == [(n, f"{n}@x.example", f"note {n}") for n in range(ROWS)]


def assert_it_stops_and_goes_on(world: World, engine: Engine, make_room: Callable[[], Engine], why: str = "") -> None:
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="rows of table 'people' cannot be sealed anew") as caught:
            run(world, engine)
        assert why in str(caught.value)
        assert "what is done stays" in str(caught.value)
        assert "@x.example" not in str(caught.value)
    found = rows_by_version(world)
    assert set(found) == {1, 2}, found
    assert sum(found.values()) == ROWS
    assert_contents(world)
    done = run(world, make_room())
    assert (done.left, done.problems) == (0, ())
    assert rows_by_version(world) == {2: ROWS}
    assert_contents(world)


def test_a_sqlite_file_that_cannot_grow(
    sqlite_url: str, world_on: Callable[..., World], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    world = filled(world_on(sqlite_url, Before.metadata, key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite3'}"))
    with world.engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count")) or 0
    engine = make_engine(sqlite_url)

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages + SPARE // 2**14}")

    assert_it_stops_and_goes_on(world, engine, lambda: make_engine(sqlite_url))


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

        def make_room() -> Engine:
            filler.unlink()
            return world.engine

        assert_it_stops_and_goes_on(world, world.engine, make_room, "DiskFull")
    finally:
        do("ALTER TABLE people SET TABLESPACE pg_default")
        do(f"DROP TABLESPACE {name}")
