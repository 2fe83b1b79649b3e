"""PII encryption is a feature that a tenant has or has not: without it nothing is sealed or opened, nothing lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import String, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.calendar import Calendar
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import KmsUnavailableError, PiiEncryptionDisabledError, TenantErasedError, TenantSuspendedError
from pii_vault.keys import Policy
from pii_vault.lifecycle.parts import Reason
from pii_vault.lifecycle.schedule import Step


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString(index=True))


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    world = build_world(Base.metadata, now=calendar)
    with world.session() as session:
        session.add(Note(body="from before"))
    return world


def found(world: World, body: str = "from before") -> list[str]:
    with world.session() as session:
        return list(session.scalars(select(Note.body).where(Note.body == body)))


def test_off_nothing_is_sealed_or_opened_and_on_again_nothing_is_lost(world: World) -> None:
    before = world.vault._store.load("acme")
    assert world.vault.set_pii_encryption("acme", False, "not booked")
    assert not world.vault.set_pii_encryption("acme", False)
    with pytest.raises(PiiEncryptionDisabledError, match="pii-vault tenant set acme --pii-encryption on") as refused:
        found(world)
    assert not refused.value.retryable
    with world.vault.tenant("glob"):
        pass
    assert world.vault.set_pii_encryption("acme", True)
    assert not world.vault.set_pii_encryption("acme", True)
    after = world.vault._store.load("acme")
    assert (after.kek, after.keys, after.tenant) == (before.kek, before.keys, before.tenant)
    assert found(world) == ["from before"]
    with world.session() as session:
        session.add(Note(body="from after"))
    assert found(world, "from after") == ["from after"]
    assert world.vault.audit.verify("acme").problems == ()


def test_an_open_scope_ends_with_it(world: World) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        assert session.scalar(select(Note.body)) == "from before"
        world.vault.set_pii_encryption("acme", False)
        session.expire_all()
        with pytest.raises(PiiEncryptionDisabledError):
            session.scalars(select(Note.body)).all()


def test_coroutines_are_refused_likewise(world: World) -> None:
    url = str(world.engine.url.render_as_string(hide_password=False))
    url = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql+psycopg:", "postgresql+asyncpg:")

    async def main() -> None:
        engine = create_async_engine(url)
        sessions = async_sessionmaker(engine)
        world.vault.attach(engine, sessions, tenant_column="tenant_id")
        async with world.vault.tenant("acme"), sessions() as session:
            assert await session.scalar(select(Note.body)) == "from before"
        await asyncio.to_thread(world.vault.set_pii_encryption, "acme", False)
        with pytest.raises(PiiEncryptionDisabledError):
            async with world.vault.tenant("acme"):
                pass
        await asyncio.to_thread(world.vault.set_pii_encryption, "acme", True)
        async with world.vault.tenant("acme"), sessions() as session:
            assert await session.scalar(select(Note.body)) == "from before"
        await engine.dispose()

    asyncio.run(main())


def test_a_suspension_is_told_first_and_told_apart(world: World) -> None:
    world.vault.set_pii_encryption("acme", False)
    world.vault.suspend("acme")
    for use in (lambda: found(world), lambda: world.vault.rotate("acme")):
        with pytest.raises(TenantSuspendedError):
            use()
    assert {each.tenant: each.reason for each in world.vault.rotate_due(ahead=timedelta(days=400))}["acme"] == (
        "suspended"
    )
    world.vault.resume("acme")
    for use in (lambda: found(world), lambda: world.vault.rotate("acme")):
        with pytest.raises(PiiEncryptionDisabledError):
            use()
    world.vault.suspend("acme")
    world.vault.set_pii_encryption("acme", True)
    with pytest.raises(TenantSuspendedError):
        found(world)


REFUSED: dict[str, Callable[[World], object]] = {
    "rotate": lambda world: world.vault.rotate("acme"),
    "re-encrypt": lambda world: world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine),
    "build the index": lambda world: world.vault.build_index("acme", metadata=Base.metadata, engine=world.engine),
    "rotate the index": lambda world: world.vault.rotate_index("acme", metadata=Base.metadata, engine=world.engine),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_or_uses_keys_is_refused_and_changes_nothing(world: World, name: str) -> None:
    world.vault.set_pii_encryption("acme", False)
    before = world.vault._store.load("acme")
    with pytest.raises(PiiEncryptionDisabledError):
        REFUSED[name](world)
    assert world.vault._store.load("acme") == before


def test_what_ends_or_moves_keys_works_as_ever(world: World) -> None:
    world.vault.set_pii_encryption("acme", False)
    assert all(each.passed for each in world.vault.validate("acme"))
    assert world.vault.rewrap("acme", to=world.kms.create_key()).tenant == "acme"
    world.vault.evict("acme")
    world.vault.set_terms("acme", ttl=60)
    world.vault.set_rotation("acme", days=30)
    world.vault.deactivate("acme")
    world.vault.compromise("acme", 1)
    assert not world.vault._store.load("acme").tenant.policy.pii_encryption
    assert world.vault.audit.verify("acme").problems == ()
    world.vault.erase("acme")
    with pytest.raises(TenantErasedError):
        world.vault.set_pii_encryption("acme", True)


def test_a_tenant_that_is_added_without_it_has_its_keys_and_needs_no_kms_to_begin(world: World) -> None:
    key = world.kms.create_key()
    tenant = world.vault.add_tenant("new", key=key, pii_encryption=False)
    assert not tenant.policy.pii_encryption
    assert world.vault.add_tenant("new", key=key, pii_encryption=False) == tenant
    assert [each.state for each in world.vault._store.load("new").data_keys] == ["active"]
    with pytest.raises(PiiEncryptionDisabledError), world.vault.tenant("new"):
        pass
    world.kms.disable_key(key)
    world.vault.set_pii_encryption("new", True)
    world.kms.enable_key(key)
    with world.session("new") as session:
        session.add(Note(body="the first"))
    assert world.vault.audit.verify("new").problems == ()


def test_one_whose_registration_was_cut_off_is_finished_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.kms.create_key()
    with monkeypatch.context() as patched:
        patched.setattr("pii_vault.lifecycle.rotation.prepare", _out)
        with pytest.raises(KmsUnavailableError):
            world.vault.add_tenant("new", key=key, pii_encryption=False)
    done = {each.tenant: (each.step, each.reason) for each in world.vault.rotate_due()}
    assert done == {"new": (Step.ROTATED, Reason.INITIAL)}
    with pytest.raises(PiiEncryptionDisabledError):
        world.vault.rotate("new")


def _out(*_: object) -> None:
    raise KmsUnavailableError("out")


def test_a_whole_look_leaves_it_out_and_takes_it_with_the_next(world: World, calendar: Calendar) -> None:
    world.vault.set_pii_encryption("acme", False)
    calendar.now += timedelta(days=366)
    looked = {each.tenant: (each.step, each.reason) for each in world.vault.rotate_due()}
    assert looked["acme"] == (Step.SKIPPED, "PII encryption is off")
    assert looked["glob"] == (Step.ROTATED, Reason.SCHEDULED)
    world.vault.set_pii_encryption("acme", True)
    assert [each.step for each in world.vault.rotate_due()] == [Step.ROTATED]
    assert found(world) == ["from before"]


def test_the_log_says_it_and_what_it_said_before_stays_as_it_was(world: World) -> None:
    uid = world.vault._store.load("acme").tenant.identity.tenant_uid
    first = world.vault._store.entries(uid)
    assert all("pii_encryption" not in each.text for each in first)
    world.vault.set_pii_encryption("acme", False, "not booked")
    world.vault.set_pii_encryption("acme", True)
    *same, off, on = world.vault._store.entries(uid)
    assert same == first
    assert json.loads(off.text)["reason"] == "not booked"
    assert json.loads(off.text)["details"]["tenant"]["pii_encryption"] is False
    assert "pii_encryption" not in json.loads(on.text)["details"]["tenant"]


@pytest.mark.parametrize("is_on", [True, False])
def test_whoever_turns_it_on_or_off_in_the_database_is_found_out(world: World, is_on: bool) -> None:
    world.vault.set_pii_encryption("acme", not is_on)
    with world.engine.begin() as connection:
        connection.execute(text(f"UPDATE pii_vault_policies SET pii_encryption = {str(is_on).lower()}"))
    problems = world.vault.audit.verify("acme").problems
    assert any("pii_encryption" in each for each in problems), problems


def test_a_policy_has_it_unless_it_says_otherwise() -> None:
    assert Policy.for_key("arn:local:kms:local:000000000000:key/1").pii_encryption
