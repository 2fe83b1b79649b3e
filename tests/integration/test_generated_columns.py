"""The generated columns that hold tokens on MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Index, Integer, MetaData, String, Table, Text, insert, inspect, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.canary import Secrets, leaks
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LastChars
from pii_vault.errors import ConfigurationError

CANARY = "canary-7Qw9ZkPpYv2"
LAST4 = BlindIndex(part=LastChars(4), create=False)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedString(tokens={"home_last4": LAST4}))
    phone_home: Mapped[str | None] = mapped_column(
        EncryptedString(index=BlindIndex(create=False), tokens={"last4": LAST4})
    )


Index("ix_one", Customer.phone.token("home_last4"))  # type: ignore[attr-defined]
Index("ix_two", Customer.phone_home.token("last4"))  # type: ignore[attr-defined]


def test_two_names_that_run_together_are_two_columns(mariadb_url: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(mariadb_url)
    Base.metadata.create_all(engine)
    generated = {
        each["name"]: each["computed"]["sqltext"]
        for each in inspect(engine).get_columns("customers")
        if "computed" in each
    }
    assert generated == {
        "pii_vault_phone_0": "(substr(`phone`,11,16))",
        "pii_vault_phone_home_1": "(substr(`phone_home`,27,16))",
    }


@pytest.fixture
def world(world_on: Callable[..., World], mariadb_url: str, tmp_path: Path) -> Callable[..., World]:
    return partial(world_on, mariadb_url, key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite3'}")


def customers(*, create: bool = False) -> Table:
    return Table(
        "customers",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String(30)),
        Column("notes", Text),
        Column("email", EncryptedString(index=BlindIndex(create=create))),
    )


def found(world: World, table: Table, condition: Any) -> list[int]:
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        return list(connection.scalars(select(table.c.id).where(condition)))


def test_a_column_without_a_database_index_is_searched(world: Callable[..., World]) -> None:
    """As for a boolean, where an index over all rows is of no use."""
    table = customers()
    attached = world(table.metadata)
    with attached.vault.tenant("acme"), attached.engine.begin() as connection:
        connection.execute(insert(table), [{"id": n, "email": f"{n}@x.org"} for n in (1, 2)])
        connection.execute(update(table).where(table.c.email == "2@x.org").values(notes="two"))
    assert found(attached, table, table.c.email == "2@x.org") == [2]
    assert found(attached, table, table.c.email != "2@x.org") == [1]
    assert [each["name"] for each in inspect(attached.engine).get_columns("customers")] == list(table.columns.keys())


def test_an_index_that_is_not_made_yet_is_asked_for(world: Callable[..., World]) -> None:
    attached = world(customers().metadata)
    table = customers(create=True)
    with pytest.raises(ConfigurationError, match=r"'email' .*'customers\.pii_vault_email_0'.*by a migration") as caught:
        found(attached, table, table.c.email == CANARY)
    assert leaks(caught.value, Secrets(CANARY)) == []
    for index in table.indexes:
        index.create(attached.engine)
    assert found(attached, table, table.c.email == CANARY) == []


def test_an_index_keeps_what_else_it_was_declared_with(world: Callable[..., World]) -> None:
    table = customers()
    Index("ix_one", table.c.notes, table.c.email.blind_index, mariadb_length={"notes": 20}, mariadb_using="hash")
    Index("ix_two", table.c.tenant_id, table.c.email.blind_index.desc(), unique=True)
    attached = world(table.metadata)
    with attached.engine.connect() as connection:
        made = connection.exec_driver_sql("SHOW CREATE TABLE customers").one()[1]
    assert "KEY `ix_one` (`notes`(20),`pii_vault_email_0`) USING HASH" in made
    assert "UNIQUE KEY `ix_two` (`tenant_id`,`pii_vault_email_0` DESC)" in made
    assert found(attached, table, table.c.email == "x") == []
