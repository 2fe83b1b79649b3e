"""A key store that an earlier release made, with data in it, serves this one: what it sealed opens, its log verifies.

The rows are those that the earlier release wrote itself, one file for each revision in tests/vectors/key_store_*.json;
the tables are made by its own migrations, with its own triggers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, String, Table, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.old_key_stores import write_key_store
from tests.support.vectors import load

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import IndexNotReadyError, PiiEncryptionDisabledError, TenantErasedError, TenantSuspendedError
from pii_vault.keys import USE_ROTATE
from pii_vault.keystore import schema
from pii_vault.keystore.upgrade import check, upgrade
from pii_vault.lifecycle.schedule import Step
from pii_vault.stages import Stage


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class Searched(DeclarativeBase):
    """The application once it searches."""


class SearchedNote(Searched):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString(index=True))


OLD: dict[str, dict[str, Any]] = {each: load(f"key_store_{each}.json") for each in schema.REVISIONS[:-1]}


@pytest.fixture(params=OLD)
def revision(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


@pytest.fixture
def old(
    revision: str, database_url: str, tmp_path: Path, make_engine: Callable[..., Engine]
) -> Iterator[tuple[Vault, Engine]]:
    engine = make_engine(database_url)
    write_key_store(database_url, revision, OLD[revision])
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


NO_LOG = ("there is no audit log: it begins with the tenant's next change",)


def test_the_newest_revision_before_this_one_is_among_them() -> None:
    """Whoever adds a revision dumps a key store of the one before, or nobody knows whether its data survives."""
    assert list(OLD) == list(schema.REVISIONS[:-1])
    assert all(OLD[each]["tables"] and OLD[each]["values"] for each in OLD)


def test_what_an_earlier_release_sealed_opens_and_its_log_verifies(old: tuple[Vault, Engine], revision: str) -> None:
    vault, engine = old
    upgrade(engine)
    assert check(engine).problems == ()
    vault.attach(engine, tenant_column="tenant_id")
    for tenant in ("acme", "glob"):
        with vault.tenant(tenant), Session(engine) as session:
            opened = session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)).all()
        assert opened == [each["opened"] for each in OLD[revision]["values"] if each["tenant"] == tenant]
        assert vault.audit.verify(tenant).problems == (NO_LOG if revision == "0001" else ())
    vault.set_terms("acme", ttl=60)
    assert vault.rotate("acme").version == 3
    with vault.tenant("acme") as scope:
        assert scope.keyset is not None
        assert scope.keyset.index_generation == 1  # the first releases made none, and nothing of theirs needs one
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


@pytest.mark.parametrize(("revision", "days"), [("0001", None), ("0002", 90)], indirect=["revision"])
def test_its_tenants_have_no_terms_of_their_own_and_none_was_evicted(
    old: tuple[Vault, Engine], days: int | None
) -> None:
    vault, engine = old
    upgrade(engine)
    policy = vault._store.load("acme").tenant.policy
    assert (policy.rotation_days, policy.ttl_seconds, policy.grace_seconds) == (days, None, None)
    assert vault._store.evicted(0) == (0, [])


@pytest.mark.parametrize("revision", ["0001"], indirect=True)
def test_keys_from_before_uses_were_counted_are_due(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    found = {each.tenant: each.step for each in vault.rotate_due()}
    assert found == {"acme": Step.ROTATED, "glob": Step.ROTATED}
    assert {each.reserved for each in vault._store.load("acme").data_keys[:-1]} == {USE_ROTATE}
    assert vault.rotate_due() == []


@pytest.mark.parametrize("revision", ["0004", "0005"], indirect=True)
def test_terms_states_and_evictions_are_what_they_were(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    vault.attach(engine, tenant_column="tenant_id")
    policy = vault._store.load("acme").tenant.policy
    assert (policy.rotation_days, policy.ttl_seconds, policy.grace_seconds) == (90, 120, 60)
    number, names = vault._store.evicted(0)
    assert number >= len(names)
    assert "acme" in names
    assert vault.tenants() == ["acme", "glob", "initech"]
    for tenant, refusal in (("initech", TenantSuspendedError), ("umbrella", TenantErasedError)):
        with pytest.raises(refusal), vault.tenant(tenant):
            pass
        assert vault.audit.verify(tenant).problems == ()
    again = vault.erase("umbrella", metadata=Base.metadata, engine=engine)
    assert again.remains is not None
    assert sum(each.values for each in again.remains) == 1
    vault.resume("initech")
    with vault.tenant("initech"), Session(engine) as session:
        assert session.scalars(select(Note.body).where(Note.tenant_id == "initech")).all() == [
            "of one that is suspended"
        ]


@pytest.mark.parametrize("revision", ["0004", "0005"], indirect=True)
def test_what_an_earlier_release_indexed_is_found(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    vault.attach(engine, tenant_column="tenant_id")

    def found(tenant: str, body: str) -> list[int]:
        with vault.tenant(tenant), Session(engine) as session:
            return list(session.scalars(select(SearchedNote.id).where(SearchedNote.body == body)))

    assert found("acme", "sealed with version 1") == [2]
    assert found("acme", "sealed with version 2") == [3]
    with vault.tenant("acme"), Session(engine) as session, session.begin():
        session.add(SearchedNote(id=100, tenant_id="acme", body="sealed with version 1"))
    assert found("acme", "sealed with version 1") == [2, 100]
    with pytest.raises(IndexNotReadyError):
        found("glob", "of the other one")  # one of its values has no token, and that is remembered too
    assert vault.build_index("glob", metadata=Searched.metadata, engine=engine).complete
    assert found("glob", "of the other one") == [4]
    assert found("glob", "from before the index") == [1]
    vault.rotate_index("acme", metadata=Searched.metadata, engine=engine)
    assert found("acme", "sealed with version 1") == [2, 100]


def test_its_tenants_have_pii_encryption_and_its_kms_keys_no_replicas(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    assert all(each.pii_encryption for each in vault._store.summaries())
    assert {vault._store.load(each, even_erased=True).kek.replica_regions for each in ("acme", "glob")} == {()}
    assert vault._store.onboardings.all() == []
    vault.set_pii_encryption("acme", False)
    with pytest.raises(PiiEncryptionDisabledError), vault.tenant("acme"):
        pass
    vault.set_pii_encryption("acme", True)
    with vault.tenant("acme"):
        pass
    assert vault.audit.verify("acme").problems == ()


@pytest.mark.parametrize("revision", ["0005"], indirect=True)
def test_steps_of_adoptions_are_what_they_were(old: tuple[Vault, Engine]) -> None:
    vault, engine = old
    upgrade(engine)
    assert [(each.stage, each.rows) for each in vault._store.adoption_steps("people.email")] == [
        (Stage.ADDED, None),
        (Stage.FILLED, 4),
        (Stage.VERIFIED, 4),
    ]


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"], indirect=True)
def test_no_slot_is_ready_and_a_search_makes_it_so(old: tuple[Vault, Engine], revision: str) -> None:
    vault, engine = old
    upgrade(engine)
    vault.attach(engine, tenant_column="tenant_id")
    if revision < "0003":
        vault.rotate("acme")  # those releases made no index keys
    assert vault._store.load("acme").slots == ()
    assert vault.build_index("acme", metadata=Searched.metadata, engine=engine).complete
    with vault.tenant("acme"), Session(engine) as session:
        query = select(SearchedNote.id).where(SearchedNote.body == "sealed with version 1")
        assert session.scalars(query).all() == [1]
    assert [(each.context, each.number) for each in vault._store.load("acme").slots if each.ready_at] == [
        ("notes.body", 0)
    ]
