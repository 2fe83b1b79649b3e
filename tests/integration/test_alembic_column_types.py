"""A migration seals and opens values of all types, on all databases."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Engine,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Text,
    Time,
    Uuid,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.alembic_app import AlembicApp
from tests.support.world import World

import pii_vault
from pii_vault.migrations import include_object


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Plain(DeclarativeBase):
    """The application before."""


class Sealed(DeclarativeBase):
    """The application afterwards."""


class PlainKinds(Plain):
    __tablename__ = "kinds"
    tenant_id: Mapped[str] = mapped_column(String(50), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    text_: Mapped[Any | None] = mapped_column("text", Text)
    blob: Mapped[Any | None] = mapped_column(LargeBinary)
    small: Mapped[Any | None] = mapped_column(Integer)
    large: Mapped[Any | None] = mapped_column(BigInteger)
    ratio: Mapped[Any | None] = mapped_column(Double)
    price: Mapped[Any | None] = mapped_column(Numeric(12, 3))
    flag: Mapped[Any | None] = mapped_column(Boolean)
    born: Mapped[Any | None] = mapped_column(Date)
    at: Mapped[Any | None] = mapped_column(Time)
    seen: Mapped[Any | None] = mapped_column(DateTime)
    uid: Mapped[Any | None] = mapped_column(Uuid)
    colour: Mapped[Any | None] = mapped_column(Enum(Colour))
    doc: Mapped[Any | None] = mapped_column(JSON)


class Kinds(Sealed):
    __tablename__ = "kinds"
    tenant_id: Mapped[str] = mapped_column(String(50), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    text_: Mapped[Any | None] = mapped_column("text", pii_vault.EncryptedText())
    blob: Mapped[Any | None] = mapped_column(pii_vault.EncryptedBytes())
    small: Mapped[Any | None] = mapped_column(pii_vault.EncryptedInteger())
    large: Mapped[Any | None] = mapped_column(pii_vault.EncryptedInteger())
    ratio: Mapped[Any | None] = mapped_column(pii_vault.EncryptedFloat())
    price: Mapped[Any | None] = mapped_column(pii_vault.EncryptedNumeric())
    flag: Mapped[Any | None] = mapped_column(pii_vault.EncryptedBoolean())
    born: Mapped[Any | None] = mapped_column(pii_vault.EncryptedDate())
    at: Mapped[Any | None] = mapped_column(pii_vault.EncryptedTime())
    seen: Mapped[Any | None] = mapped_column(pii_vault.EncryptedDateTime())
    uid: Mapped[Any | None] = mapped_column(pii_vault.EncryptedUUID())
    colour: Mapped[Any | None] = mapped_column(pii_vault.EncryptedEnum(Colour))
    doc: Mapped[Any | None] = mapped_column(pii_vault.EncryptedJSON())


VALUES: dict[str, list[Any]] = {
    "text_": ["Zoë", "", "x" * 5_000],
    "blob": [b"\xfa\x00plain", b"", bytes(range(256))],
    "small": [0, -1, 2**31 - 1],
    "large": [2**63 - 1, -(2**63), 5],
    "ratio": [0.1, -1e300, 5e-324],
    "price": [Decimal("1.100"), Decimal("-999999.999"), Decimal("0.000")],
    "flag": [True, False, True],
    "born": [dt.date(1815, 12, 10), dt.date(2024, 2, 29), dt.date(9999, 12, 31)],
    "at": [dt.time(0), dt.time(23, 59, 59), dt.time(12, 30)],
    "seen": [dt.datetime(1999, 12, 31, 23, 59, 59), dt.datetime(2024, 2, 29), dt.datetime(2000, 1, 1, 1)],
    "uid": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.uuid4()],
    "colour": [Colour.RED, Colour.BLUE, Colour.RED],
    "doc": [{"a": [1, "ë", None, True]}, [], "x"],
}


def kinds_of(session: Session, model: Any) -> list[dict[str, Any]]:
    rows = session.scalars(select(model).order_by(model.tenant_id, model.number)).all()
    return [{name: getattr(row, name) for name in VALUES} for row in rows]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> World:
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    # No key store is on MariaDB.
    keys = {"key_store_url": f"sqlite:///{tmp_path / 'keys.sqlite3'}"} if request.param == "mariadb" else {}
    return world_on(request.getfixturevalue(names[request.param]), Plain.metadata, **keys)


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_object": include_object}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_all_types_come_and_go_with_their_values(
    world: World, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    app = AlembicApp(tmp_path / "app", make_engine(world.url), {"pii_vault": world.vault})
    rows = [{name: values[n] for name, values in VALUES.items()} for n in range(3)]
    rows.append(dict.fromkeys(VALUES))
    with Session(world.engine) as session, session.begin():
        for tenant in ("acme", "glob"):
            session.add_all(PlainKinds(tenant_id=tenant, number=n, **row) for n, row in enumerate(rows))
    # None in a column of JSON is null, unless somebody says otherwise.
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE kinds SET doc = NULL WHERE number = 3")
    tables: Any = (PlainKinds.__table__, Kinds.__table__)
    names = [column.name for column in tables[1].columns if not column.primary_key]
    types = {"colour": "pii_vault.EncryptedEnum(context.config.attributes['colour'])"}
    app.more["colour"] = Colour
    steps: dict[str, list[str]] = {"up": [], "down": []}
    for name in names:
        kind = types.get(name, f"pii_vault.{tables[1].c[name].type!r}")
        steps["up"].append(f"op.encrypt_column('kinds', '{name}', {kind}, tenant_column='tenant_id', batch=3)")
        plain = f"context.config.attributes['plain'].c.{name}.type"
        steps["down"].append(
            f"op.decrypt_column('kinds', '{name}', {kind}, {plain}, tenant_column='tenant_id', batch=3)"
        )
    app.more["plain"] = tables[0]
    up, down = ("\n    ".join(each) for each in steps.values())
    app.write_revision(f"def upgrade():\n    {up}\ndef downgrade():\n    {down}\n")
    app.upgrade(Sealed.metadata)
    found = []
    for tenant in ("acme", "glob"):
        with world.session(tenant) as session:
            found.append(kinds_of_tenant(session, tenant))
    assert found == [rows, rows]
    assert differences(world.engine, Sealed.metadata) == []
    app.downgrade(Plain.metadata)
    with Session(world.engine) as session:
        assert kinds_of(session, PlainKinds) == [*rows, *rows]
    assert differences(world.engine, Plain.metadata) == []


def kinds_of_tenant(session: Session, tenant: str) -> list[dict[str, Any]]:
    rows = session.scalars(select(Kinds).where(Kinds.tenant_id == tenant).order_by(Kinds.number)).all()
    return [{name: getattr(row, name) for name in VALUES} for row in rows]
