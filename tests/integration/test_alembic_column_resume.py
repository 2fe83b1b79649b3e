"""A migration that is killed anywhere is run again and goes on; whatever was there is there in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, String, create_engine, event, insert, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import AlembicApp
from tests.support.processes import forking
from tests.support.world import World

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.backfill.filling import Filling
from pii_vault.migrations import moving

pytestmark = [pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")]


class Plain(DeclarativeBase):
    pass


class PlainCustomer(Plain):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str] = mapped_column(String(100), index=True)


class Sealed(DeclarativeBase):
    pass


class Customer(Sealed):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(50))
    email: Mapped[str] = mapped_column(EncryptedString(index=True))


BASES: dict[str, Any] = {"up": Sealed.metadata, "down": Plain.metadata}
ROWS = [{"id": n, "tenant_id": ("acme", "glob")[n % 2], "email": f"p{n}@example.com"} for n in range(1, 31)]

REVISION = """
from pii_vault import EncryptedString
KIND = EncryptedString(index=True)
MORE = {"tenant_column": "tenant_id", "batch": 5}

def upgrade():
    op.encrypt_column("customers", "email", KIND, drops=["ix_customers_email"], **MORE)
    op.create_blind_index("ix_customers_email_blind", "customers", "email", slot=0, if_not_exists=True)

def downgrade():
    op.drop_blind_index("ix_customers_email_blind", "customers", "email", slot=0, if_exists=True)
    op.decrypt_column("customers", "email", KIND, sa.String(100), **MORE)
    op.create_index("ix_customers_email", "customers", ["email"], if_not_exists=True)
"""

POINTS = ("added", "batch", "filled", "compared", "half", "swapped", "moved")


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), Plain.metadata, **keys)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(owner: Any, name: str, *, calls: int = 1) -> None:
    """Die after so many calls of a function."""
    real, made = getattr(owner, name), []

    def call(*arguments: Any, **kw: Any) -> Any:
        result = real(*arguments, **kw)
        made.append(None)
        if len(made) == calls:
            die()
        return result

    setattr(owner, name, call)


def die_halfway(engine: Engine) -> None:
    """Die when a column or a table is gone, and the other one does not have its name yet."""

    def look(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.strip().startswith("ALTER TABLE") and " RENAME " in sql:
            die()

    event.listen(engine, "before_cursor_execute", look)


PLACES: dict[str, Callable[[Engine], object]] = {
    "added": lambda _: then_die(moving.Move, "_add"),
    "batch": lambda _: then_die(Filling, "_write", calls=3),
    "filled": lambda _: setattr(moving, "alone", die),
    "compared": lambda _: setattr(moving, "swap", die),
    "half": die_halfway,
    "swapped": lambda _: then_die(moving, "swap"),
    "moved": lambda _: then_die(moving.Move, "do"),
}


def run_and_be_killed(url: str, keys: str, kms: Path, folder: Path, way: str, point: str) -> None:
    vault, engine = Vault(keys, kms=LocalKms(kms)), create_engine(url)
    app = AlembicApp(folder, engine, {"pii_vault": vault})
    app.write_revision(REVISION)
    PLACES[point](engine)
    run(app, way)


def run(app: AlembicApp, way: str) -> None:
    if way == "up":
        app.upgrade(BASES[way])
    else:
        app.downgrade(BASES[way])


def read(world: World, metadata: MetaData) -> list[dict[str, Any]]:
    table, found = metadata.tables["customers"], []
    for tenant in ("acme", "glob"):
        with world.vault.tenant(tenant), world.engine.connect() as connection:
            rows = connection.execute(select(table).where(table.c.tenant_id == tenant))
            found += [dict(row._mapping) for row in rows]
    return sorted(found, key=lambda row: row["id"])


def indexes(engine: Engine) -> set[str]:
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'customers'"
            return set(connection.execute(text(query)).scalars())
    return {str(each["name"]) for each in inspect(engine).get_indexes("customers")}


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("point", POINTS)
def test_it_goes_on_where_it_was_killed(
    world: World, make_engine: Callable[..., Engine], tmp_path: Path, way: str, point: str
) -> None:
    if point == "half" and world.engine.dialect.name == "mariadb":
        pytest.skip("there it is one statement")
    app = AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})
    app.write_revision(REVISION)
    with world.engine.begin() as connection:
        connection.execute(insert(Plain.metadata.tables["customers"]), ROWS)
    if way == "down":
        app.upgrade(Sealed.metadata)
    keys = world.vault._engine.url.render_as_string(hide_password=False)
    url = world.engine.url.render_as_string(hide_password=False)
    given = (url, keys, tmp_path / "kms.json", tmp_path / "child", way, point)
    child: Any = forking().Process(target=run_and_be_killed, args=given)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    run(app, way)
    metadata = BASES[way]
    assert read(world, metadata) == ROWS
    assert {each["name"] for each in inspect(world.engine).get_columns("customers") if not each.get("computed")} == {
        "id",
        "tenant_id",
        "email",
    }
    assert indexes(world.engine) == {"ix_customers_email_blind" if way == "up" else "ix_customers_email"}
    with world.engine.connect() as connection:
        versions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    assert versions == (["r1"] if way == "up" else [])
