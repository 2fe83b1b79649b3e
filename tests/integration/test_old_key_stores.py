"""A key store that an earlier release made, with data in it, serves this one: what it sealed opens, its log verifies.

The rows are those that the earlier release wrote itself (tests/vectors/key_store_0002.json and 0003); the tables are
made by its own migrations, with its own triggers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, MetaData, String, Table, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.vectors import load

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import TenantErasedError
from pii_vault.keystore.upgrade import MIGRATIONS, check, upgrade


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


OLD: dict[str, dict[str, Any]] = {each: load(f"key_store_{each}.json") for each in ("0002", "0003")}


@pytest.fixture(params=OLD)
def revision(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


@pytest.fixture
def old(
    revision: str, database_url: str, tmp_path: Path, make_engine: Callable[..., Engine]
) -> Iterator[tuple[Vault, Engine]]:
    engine = make_engine(database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    command.upgrade(config, revision)
    with engine.begin() as connection:
        fill(connection, OLD[revision]["tables"])
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        sealed = Note.__table__.c.body
        for number, value in enumerate(OLD[revision]["values"], 1):
            raw = {"id": number, "tenant_id": value["tenant"], "body": bytes.fromhex(value["sealed"])}
            reflected = Table("notes", MetaData(), autoload_with=connection)
            assert sealed.name in reflected.c
            connection.execute(insert(reflected).values(raw))
    kms = tmp_path / "kms.json"
    kms.write_text(json.dumps(OLD[revision]["kms"]))
    kms.chmod(0o600)
    vault = Vault(database_url, kms=LocalKms(kms))
    yield vault, engine
    vault.close()


def fill(connection: Connection, tables: dict[str, Any]) -> None:
    """Write the rows as the earlier release did: its triggers let keys and logs only move forward."""
    for name, rows in tables.items():
        table = Table(name, MetaData(), autoload_with=connection)
        for row in rows:
            values = {column: value(connection, each) for column, each in row.items()}
            if name == "pii_vault_keys":
                connection.execute(insert(table).values(values | {"state": "pre_active"}))
            elif name == "pii_vault_audit_chains":
                connection.execute(insert(table).values(values | {"seq": 1}))
                for seq in range(2, values["seq"] + 1):
                    connection.execute(update(table).where(table.c.tenant_uid == values["tenant_uid"]).values(seq=seq))
            else:
                connection.execute(insert(table).values(values))
        if name == "pii_vault_keys":
            ended = table.c.deactivated_at.is_not(None)
            connection.execute(update(table).where(ended).values(state="active"))
            connection.execute(update(table).where(ended).values(state="deactivated"))
            connection.execute(update(table).where(table.c.state == "pre_active").values(state="active"))


def value(connection: Connection, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    if "hex" in stored:
        return bytes.fromhex(stored["hex"])
    instant = datetime.fromisoformat(stored["utc"])
    return instant if connection.dialect.name == "postgresql" else instant.replace(tzinfo=None)


def test_what_an_earlier_release_sealed_opens_and_its_log_verifies(old: tuple[Vault, Engine], revision: str) -> None:
    vault, engine = old
    upgrade(engine)
    assert check(engine).problems == ()
    vault.attach(engine, tenant_column="tenant_id")
    opened = []
    for tenant in ("acme", "glob"):
        with vault.tenant(tenant), Session(engine) as session:
            opened += session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id))
        assert vault.audit.verify(tenant).problems == ()
    assert opened == [each["opened"] for each in OLD[revision]["values"]]
    vault.set_terms("acme", ttl=60)
    assert vault.rotate("acme").version == 3
    with vault.tenant("acme") as scope:
        assert scope.keyset is not None
        assert scope.keyset.index_generation == 1  # it had none, and nothing of that release needs one
    assert vault.audit.verify("acme").problems == ()


def test_its_tenants_can_be_erased(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    vault.attach(engine, tenant_column="tenant_id")
    keys = vault._store.load("acme").data_keys
    done = vault.erase("acme", metadata=Base.metadata, engine=engine)
    assert [(each.version, each.state_before) for each in done.keys if each.kind == "data"] == [
        (key.version, key.state) for key in keys
    ]
    assert done.remains is not None
    assert sum(each.values for each in done.remains) > 0
    assert vault.audit.verify("acme", done.anchor).problems == ()
    with pytest.raises(TenantErasedError), vault.tenant("acme"):
        pass
    with vault.tenant("glob"):
        pass


@pytest.mark.parametrize("revision", ["0002"], indirect=True)
def test_its_tenants_have_no_terms_of_their_own_and_none_was_evicted(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    policy = vault._store.load("acme").tenant.policy
    assert (policy.rotation_days, policy.ttl_seconds, policy.grace_seconds) == (90, None, None)
    assert vault._store.evicted(0) == (0, [])


def test_no_slot_is_ready_and_a_search_makes_it_so(old: tuple[Vault, Engine], revision: str) -> None:
    vault, engine = old
    upgrade(engine)

    class Searched(DeclarativeBase):
        pass

    class SearchedNote(Searched):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str] = mapped_column(String(30))
        body: Mapped[str] = mapped_column(EncryptedString(index=True))

    vault.attach(engine, tenant_column="tenant_id")
    if revision == "0002":
        vault.rotate("acme")  # that release made no index keys
    assert vault._store.load("acme").slots == ()
    assert vault.build_index("acme", metadata=Searched.metadata, engine=engine).complete
    with vault.tenant("acme"), Session(engine) as session:
        query = select(SearchedNote.id).where(SearchedNote.body == "sealed with version 1")
        assert session.scalars(query).all() == [1]
    assert [(each.context, each.number) for each in vault._store.load("acme").slots if each.ready_at] == [
        ("notes.body", 0)
    ]
