"""A migration that gives stored values their tokens: `op.build_index`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import ENV, AlembicApp
from tests.support.urls import async_url
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars
from pii_vault.errors import BlindIndexError, ConfigurationError

# SQLAlchemy and Alembic say on SQLite that they do not know indexes over expressions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]

BUILD = 'op.build_index(context.config.attributes["vault"], context.config.attributes["metadata"])'

ASYNC_ENV = """
import asyncio
from alembic import context

def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    async with context.config.attributes["async"].connect() as connection:
        await connection.run_sync(run)

asyncio.run(main())
"""


class Old(DeclarativeBase):
    """The application before its columns had an index."""


class OldPerson(Old):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(EncryptedString())
    ssn: Mapped[str | None] = mapped_column(EncryptedString())


class New(DeclarativeBase):
    """The application afterwards."""


class Person(New):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(unique=True, normalise=("casefold",))))
    ssn: Mapped[str | None] = mapped_column(EncryptedString(index=True, tokens={"last4": LastChars(4)}))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), **keys)


@pytest.fixture
def app(world: World, make_engine: Callable[..., Engine], tmp_path: Path) -> AlembicApp:
    """An application with rows that were sealed before there was an index; the revision that makes it is written."""
    app = AlembicApp(tmp_path / "app", make_engine(world.url), more={"vault": world.vault})
    app.autogenerate(Old.metadata)
    for tenant, count in (("acme", 20), ("glob", 3)):
        with world.session(tenant) as session:
            session.add_all(OldPerson(email=f"p{n}@example.com", ssn=f"{n:09}") for n in range(count))
    app.autogenerate(New.metadata)
    return app


def found(world: World, condition: Any, tenant: str = "acme") -> int:
    with world.session(tenant) as session:
        return len(session.scalars(select(Person).where(condition, Person.tenant_id == tenant)).all())


def revision(app: AlembicApp) -> str:
    with app.engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def test_a_migration_gives_all_values_of_all_tenants_their_tokens(world: World, app: AlembicApp) -> None:
    app.write(BUILD)
    app.upgrade(New.metadata)
    assert revision(app) == "r3"
    assert found(world, Person.email == "P7@EXAMPLE.com") == 1
    assert found(world, Person.ssn.token("last4") == "0002", "glob") == 1
    app.check(New.metadata)


def test_what_a_migration_did_before_is_committed(world: World, app: AlembicApp) -> None:
    app.write(f"op.create_table('made', sa.Column('id', sa.Integer))\n{BUILD}\n1 / 0")
    with pytest.raises(ZeroDivisionError):
        app.upgrade(New.metadata)
    assert inspect(app.engine).has_table("made")
    assert found(world, Person.email == "p7@example.com") == 1
    assert revision(app) == "r2"


def test_only_some_tenants_can_be_named(world: World, app: AlembicApp) -> None:
    app.write(f"{BUILD[:-1]}, tenants=['glob'])")
    app.upgrade(New.metadata)
    assert found(world, Person.email == "p1@example.com", "glob") == 1
    with pytest.raises(BlindIndexError, match="0 of 20"):
        found(world, Person.email == "p1@example.com")


def test_a_value_that_cannot_have_its_token_stops_the_migration_and_is_named(world: World, app: AlembicApp) -> None:
    with world.session() as session:
        session.add(OldPerson(email="P7@example.com"))
    app.write(BUILD)
    with pytest.raises(
        BlindIndexError, match=r"tenant 'acme', people.email of row \d+: another row has the same value"
    ):
        app.upgrade(New.metadata)
    assert revision(app) == "r2"
    with world.engine.begin() as connection:
        connection.execute(text("DELETE FROM people WHERE id = (SELECT m FROM (SELECT MAX(id) AS m FROM people) AS x)"))
    app.upgrade(New.metadata)
    assert revision(app) == "r3"
    assert found(world, Person.email == "p7@example.com") == 1


def test_a_tenant_whose_kms_refuses_does_not_keep_the_others_waiting(world: World, app: AlembicApp) -> None:
    world.kms.disable_key(world.keys["acme"])
    world.vault.evict("acme")
    app.write(BUILD)
    with pytest.raises(BlindIndexError, match="tenant 'acme': ") as caught:
        app.upgrade(New.metadata)
    assert "glob" not in str(caught.value)
    assert found(world, Person.email == "p1@example.com", "glob") == 1


def test_it_cannot_be_written_as_sql(app: AlembicApp) -> None:
    app.write(BUILD)
    with pytest.raises(ConfigurationError, match=r"cannot be written as SQL.*pii-vault index build"):
        app.sql(New.metadata, "r2:head")


def test_a_transaction_of_somebody_elses_is_not_committed(
    world: World, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    env = ENV.replace(".connect() as", ".begin() as")
    app = AlembicApp(tmp_path / "app", make_engine(world.url), env=env, more={"vault": world.vault})
    New.metadata.create_all(world.engine)
    app.write(BUILD)
    with pytest.raises(ConfigurationError, match=r"context\.begin_transaction"):
        app.upgrade(New.metadata)


def test_an_asynchronous_environment_can_build_too(
    database_url: str,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
    make_async_engine: Callable[..., AsyncEngine],
    tmp_path: Path,
) -> None:
    world = world_on(database_url, Old.metadata)
    with world.session() as session:
        session.add(OldPerson(email="p7@example.com"))
    asynchronous = make_async_engine(async_url(database_url))
    more = {"vault": world.vault, "async": asynchronous}
    app = AlembicApp(tmp_path / "app", make_engine(world.url), env=ASYNC_ENV, more=more)
    app.write(f'op.create_blind_index("ix", "people", "email", slot=0)\n{BUILD}')
    app.upgrade(New.metadata)
    assert found(world, Person.email == "p7@example.com") == 1
