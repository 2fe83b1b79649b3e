"""A migration that seals a plaintext column, and one that opens it again: `op.encrypt_column`, `op.decrypt_column`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Engine,
    MetaData,
    String,
    Text,
    inspect,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.alembic_app import AlembicApp
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars
from pii_vault.envelope import parse
from pii_vault.migrations import include_object

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]


class Plain(DeclarativeBase):
    """The application before."""


class Sealed(DeclarativeBase):
    """The application afterwards."""


class PlainCustomer(Plain):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(String(100))
    note: Mapped[str] = mapped_column(Text, default="")


class Customer(Sealed):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(
        EncryptedString(index=BlindIndex(normalise=("casefold",)), tokens={"last4": LastChars(4)})
    )
    note: Mapped[str] = mapped_column(Text, default="")


KIND = "EncryptedString(index=BlindIndex(normalise=('casefold',)), tokens={'last4': LastChars(4)})"
HEAD = "from pii_vault import *\nfrom pii_vault import BlindIndex, EncryptedString, LastChars\n"
ENCRYPT = f'op.encrypt_column("customers", "email", {KIND}, tenant_column="tenant_id")'
DECRYPT = f'op.decrypt_column("customers", "email", {KIND}, sa.String(100), tenant_column="tenant_id")'
INDEX = 'op.create_blind_index("ix_customers_email_blind", "customers", "email", slot=0, if_not_exists=True)'
LAST4 = 'op.create_blind_index("ix_customers_email_last4", "customers", "email", slot=1, if_not_exists=True)'
UNINDEX = 'op.drop_blind_index("ix_customers_email_blind", "customers", "email", slot=0)'
UNLAST4 = 'op.drop_blind_index("ix_customers_email_last4", "customers", "email", slot=1)'

ROWS = [
    {"id": 1, "tenant_id": "acme", "email": "ada@example.com"},
    {"id": 2, "tenant_id": "acme", "email": None},
    {"id": 3, "tenant_id": "glob", "email": "Zoë 😀 ß@example.com"},
    {"id": 4, "tenant_id": "acme", "email": ""},
    {"id": 5, "tenant_id": "glob", "email": "' \\ % :x %s ; \n"},
    {"id": 6, "tenant_id": None, "email": None},
    *({"id": 10 + n, "tenant_id": "acme", "email": f"p{n}@example.com"} for n in range(40)),
]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), **keys)


@pytest.fixture
def app(world: World, make_engine: Callable[..., Engine], tmp_path: Path) -> AlembicApp:
    """An application with an environment that names the vault."""
    return AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})


@pytest.fixture
def filled(world: World, app: AlembicApp) -> AlembicApp:
    """With customers in plaintext."""
    Plain.metadata.create_all(world.engine)
    insert(world.engine, ROWS)
    return app


def insert(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(PlainCustomer.__table__.insert(), [{"note": "", **row} for row in rows])


def write(app: AlembicApp, up: str, down: str = "pass") -> None:
    """Write a revision with the package's names in it."""
    lines = ["\n    ".join(each.strip().splitlines()) for each in (up, down)]
    imports = "from pii_vault import BlindIndex, EncryptedString, LastChars\nimport tests\n"
    app.write_revision(f"{imports}def upgrade():\n    {lines[0]}\ndef downgrade():\n    {lines[1]}\n")


def plaintext(engine: Engine) -> dict[int, str | None]:
    with engine.connect() as connection:
        table: Any = PlainCustomer.__table__
        return dict(connection.execute(select(table.c.id, table.c.email)).all())


def stored(engine: Engine) -> dict[int, bytes | None]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, email FROM customers"))
        return {key: None if email is None else bytes(email) for key, email in rows}


def opened(world: World) -> dict[int, str | None]:
    """Return what the application reads of all tenants' rows."""
    found: dict[int, str | None] = {}
    for tenant in ("acme", "glob"):
        with world.session(tenant) as session:
            query = select(Customer.id, Customer.email).where(Customer.tenant_id == tenant)
            found |= dict(session.execute(query).all())
    return found


def expected(tenants: tuple[str, ...] = ("acme", "glob")) -> dict[int, str | None]:
    return {row["id"]: row["email"] for row in ROWS if row["tenant_id"] in tenants}


def revision(engine: Engine) -> str | None:
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def columns(engine: Engine) -> set[str]:
    return {each["name"] for each in inspect(engine).get_columns("customers") if not each.get("computed")}


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_object": include_object}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_a_column_is_sealed_with_its_values_and_opened_again(world: World, filled: AlembicApp) -> None:
    write(filled, f"{ENCRYPT}\n{INDEX}\n{LAST4}", f"{UNINDEX}\n{UNLAST4}\n{DECRYPT}")
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()
    assert {key for key, value in stored(world.engine).items() if value is None} == {2, 6}
    assert all(parse(value).tokens == 2 for value in stored(world.engine).values() if value is not None)
    with world.session() as session:
        assert session.scalars(select(Customer.id).where(Customer.email == "ADA@example.com")).all() == [1]
        assert len(session.scalars(select(Customer.id).where(Customer.email.token("last4") == ".com")).all()) == 41
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    filled.check(Sealed.metadata)
    filled.downgrade(Plain.metadata)
    assert plaintext(world.engine) == {row["id"]: row["email"] for row in ROWS}
    assert columns(world.engine) == {"id", "tenant_id", "email", "note"}
    assert differences(world.engine, Plain.metadata) == []
    filled.upgrade(Sealed.metadata)
    assert opened(world) == expected()
    filled.check(Sealed.metadata)
