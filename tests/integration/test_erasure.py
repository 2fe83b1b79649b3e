"""A tenant is erased: every key at once, for good, in every process; and the report says what that does not reach."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, delete, event, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.audited import change, everything, found, rows, uid, written
from tests.support.calendar import DAY, Calendar
from tests.support.clocks import Clocks
from tests.support.kms_policy import account_of
from tests.support.processes import forking
from tests.support.strict_kms import VENDOR, StrictKms
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault
from pii_vault.errors import (
    AuditError,
    ConfigurationError,
    KeyStoreError,
    KmsDeniedError,
    TenantErasedError,
    TenantNotFoundError,
)
from pii_vault.keyring.terms import NOTICE_SECONDS
from pii_vault.keys import KeyState, Purpose
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import audit, keks, keys
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms
from pii_vault.kms.aws_admin import AwsKeyOwner
from pii_vault.lifecycle.erasure import KeyDeletion
from pii_vault.lifecycle.evidence import Erasure, Owner, Remains, meaning
from pii_vault.lifecycle.parts import Reason
from pii_vault.lifecycle.schedule import Step

KILLED = -signal.SIGKILL


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString(index=True))
    mark: Mapped[int | None] = mapped_column(EncryptedInteger())


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    """Two tenants with a note each."""
    world = build_world(Base.metadata, now=calendar, actor="operator")
    for tenant in ("acme", "glob"):
        write(world, tenant)
    return world


def write(world: World, tenant: str = "acme") -> None:
    with world.session(tenant) as session:
        session.add(Note(body=f"of {tenant}", mark=7))


def read(world: World, tenant: str = "acme") -> list[str]:
    with world.session(tenant) as session:
        return list(session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)))


def records(world: World, tenant: str = "acme") -> Snapshot:
    return world.vault._parts.store.load(tenant, even_erased=True)


def erase(world: World, tenant: str = "acme", **options: Any) -> Erasure:
    return world.vault.erase(tenant, **{"reason": "the contract has ended", **options})


def looked(world: World) -> dict[str, Any]:
    return {"metadata": Base.metadata, "engine": world.engine}


def wrapped(world: World, tenant: str = "acme") -> int:
    """How many wrapped keys the key store holds of a tenant."""
    owner = uid(world, tenant)
    with world.engine.connect() as connection:
        counts = [
            connection.scalar(select(func.count()).where(table.c.tenant_uid == owner, func.length(column) > 0))
            for table, column in ((keks, keks.c.wrapped), (keys, keys.c.encrypted_key))
        ]
    return sum(count or 0 for count in counts)


# Everything is gone.


def in_every_state(world: World, calendar: Calendar) -> None:
    """Let acme have a data key in each state, two index keys that live, and the second KEK."""
    world.vault.rewrap("acme", new_kek=True)
    for _ in range(3):
        world.vault.rotate("acme")
    with world.engine.begin() as connection:
        connection.execute(delete(Note.__table__).where(Note.__table__.c.tenant_id == "acme"))
    calendar.now += DAY
    world.vault.destroy_key("acme", 1, **looked(world))
    world.vault.compromise("acme", 2)
    world.vault.rotate_index("acme", **looked(world))
    calendar.now += timedelta(days=363)
    world.vault.rotate_due()


def test_keys_of_every_state_are_destroyed_and_told_of(world: World, calendar: Calendar) -> None:
    in_every_state(world, calendar)
    before = records(world)
    assert {key.state for key in before.data_keys} == set(KeyState)
    others = {table.name: rows(world.engine, table, uid(world, "glob")) for table in (keks, keys)}
    calendar.now += DAY
    done = erase(world)

    assert wrapped(world) == 0
    after = records(world)
    assert {key.state for key in (after.kek, *after.keys)} == {KeyState.DESTROYED}
    assert [key.commitment for key in after.keys] == [key.commitment for key in before.keys]
    assert {table.name: rows(world.engine, table, uid(world, "glob")) for table in (keks, keys)} == others
    told = [(each.kind, each.version, str(each.state_before)) for each in done.keys]
    assert told == [
        *(("kek", 1, "destroyed"), ("kek", 2, "active")),
        *(("data", 1, "destroyed"), ("data", 2, "compromised"), ("data", 3, "deactivated")),
        *(("data", 4, "active"), ("data", 5, "pre_active")),
        *(("index", 1, "active"), ("index", 2, "pre_active")),
    ]
    earlier = {("kek", 1), ("data", 1)}
    for each in done.keys:
        assert (each.destroyed_at == calendar.now) is ((each.kind, each.version) not in earlier)
        assert each.destroyed_at is not None
    commitments = {(str(key.purpose), key.version): key.commitment.hex() for key in before.keys}
    assert {(each.kind, each.version): each.commitment for each in done.keys if each.kind != "kek"} == commitments
    assert done.keys[1].commitment == before.kek.commitment.hex()

    assert (done.made, done.at, done.actor, done.reason) == (True, calendar.now, "operator", "the contract has ended")
    assert written(world)[-1] == ("tenant.erased", "the contract has ended")
    assert found(world) == found(world, "glob") == ()
    assert read(world, "glob") == ["of glob"]


def test_the_report_can_be_checked_against_the_log(world: World, calendar: Calendar) -> None:
    done = erase(world)
    last = world.vault.audit.entries("acme")[-1]
    assert done.anchor is not None
    assert (done.anchor.seq, done.anchor.at) == (last.seq, last.at)
    assert world.vault.audit.verify("acme", done.anchor).problems == ()
    assert world.vault.audit.anchor("acme").head == done.anchor.head
    lie = replace(done.anchor, head="00" * 32)
    assert "was written anew" in world.vault.audit.verify("acme", lie).problems[0]
    assert last.details["erasure"] == {"eviction": done.eviction, "held_seconds": 300}
    assert done.held_until == calendar.now + timedelta(seconds=300)
    assert "if its ttl and grace are not longer than those that the erasure was made with" in meaning(done)[1]
    world.vault.set_terms("glob", ttl=60, grace=30)
    of_glob = erase(world, "glob")
    assert of_glob.held_seconds == 90
    assert "none uses them after 2026-03-01 12:31:45 UTC, by the tenant's own terms" in meaning(of_glob)[1]


def test_done_again_it_changes_nothing_and_tells_the_same(world: World, calendar: Calendar) -> None:
    world.vault.suspend("acme")
    first = erase(world, **looked(world))
    calendar.now += DAY
    before = everything(world)
    again = erase(world, reason="another reason", **looked(world))
    assert again == replace(first, made=False)
    assert erase(world, dry_run=True, **looked(world)) == again
    assert everything(world) == before


def test_a_dry_run_tells_what_would_be_destroyed_and_changes_nothing(world: World, calendar: Calendar) -> None:
    in_every_state(world, calendar)
    before = everything(world)
    planned = erase(world, dry_run=True, **looked(world))
    assert everything(world) == before
    assert (planned.made, planned.at, planned.anchor, planned.eviction, planned.held_until) == (False, *[None] * 4)
    done = erase(world, **looked(world))
    told = [(each.kind, each.version, each.state_before) for each in planned.keys]
    assert told == [(each.kind, each.version, each.state_before) for each in done.keys]
    assert {each.destroyed_at for each in planned.keys if each.state_before is not KeyState.DESTROYED} == {None}
    assert [each.key.arn for each in planned.kms_keys] == [each.key.arn for each in done.kms_keys]
    assert planned.remains == done.remains
    assert not any("destroyed in the live key store. What" in each for each in meaning(planned))


def test_nobody_has_this_name(world: World) -> None:
    with pytest.raises(TenantNotFoundError, match="no tenant 'nobody' is registered"):
        erase(world, "nobody")


# In every process.


def test_other_processes_forget_the_keys_when_they_look(database_url: str, world_on: Callable[..., World]) -> None:
    clocks = Clocks()
    world = world_on(database_url, Base.metadata, clock=clocks.as_clock)
    for tenant in ("acme", "glob"):
        write(world, tenant)
    operator = Vault(world.url, kms=world.kms)
    with world.vault.tenant("acme"), world.sessions() as session:
        session.scalars(select(Note.body).where(Note.tenant_id == "acme")).all()
        done = operator.erase("acme")
        operator.close()
        assert read(world) == ["of acme"]  # until it looks
        clocks.pass_(NOTICE_SECONDS)
        with pytest.raises(TenantErasedError):
            session.scalars(select(Note.body).where(Note.tenant_id == "acme")).all()
    with pytest.raises(TenantErasedError):
        write(world)
    assert done.eviction == world.vault._parts.store.evicted(None)[0]
    assert read(world, "glob") == ["of glob"]


def test_this_process_forgets_at_once_in_open_scopes_too(world: World) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        session.scalars(select(Note.body).where(Note.tenant_id == "acme")).all()
        erase(world)
        with pytest.raises(TenantErasedError):
            session.scalars(select(Note.body).where(Note.tenant_id == "acme")).all()


# Nobody is asked but our own KMS.


def test_it_works_after_the_customer_has_shut_its_kms_key(world: World) -> None:
    world.kms.disable_key(world.keys["acme"])
    assert erase(world).made
    assert wrapped(world) == 0
    assert found(world) == ()


def test_without_our_own_kms_nothing_is_written_down_and_so_nothing_destroyed(world: World) -> None:
    before = everything(world)
    other = Vault(world.url, kms=world.kms)
    world.kms.disable_key(world.kms.platform_key())
    with pytest.raises(KmsDeniedError):
        other.erase("acme")
    other.close()
    assert everything(world) == before


def test_nothing_is_asked_of_the_customer_over_aws(
    strict_kms: StrictKms, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in strict_kms.environment().items():
        monkeypatch.setenv(name, value)
    key, platform = strict_kms.customer_key(), strict_kms.platform_key()
    vault = Vault(database_url, kms=AwsKms(), platform_key=platform)
    vault.create_all()
    vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    with strict_kms.counting() as calls:
        done = vault.erase("acme")
    assert {call.key for call in calls.calls} <= {platform}
    (involved,) = done.kms_keys
    assert (involved.key.arn, involved.owner) == (key.arn, Owner.CUSTOMER)
    account = key.arn.split(":")[4]
    assert any(
        f"in account {account}, and only the customer can delete it: aws kms schedule-key-deletion" in each
        for each in meaning(done)
    )
    vault.close()


# Afterwards.


USES: dict[str, Callable[[World], object]] = {
    "scope": read,
    "add_tenant": lambda world: world.vault.add_tenant("acme", key=world.keys["acme"]),
    "add_tenant, another key": lambda world: world.vault.add_tenant("acme", key=world.kms.create_key()),
    "suspend": lambda world: world.vault.suspend("acme"),
    "resume": lambda world: world.vault.resume("acme"),
    "set_terms": lambda world: world.vault.set_terms("acme", ttl=60),
    "set_rotation": lambda world: world.vault.set_rotation("acme", days=30),
    "validate": lambda world: world.vault.validate("acme"),
    "rotate": lambda world: world.vault.rotate("acme", Reason.COMPROMISED),
    "rewrap": lambda world: world.vault.rewrap("acme"),
    "rewrap, new KEK": lambda world: world.vault.rewrap("acme", to=world.kms.create_key(), new_kek=True),
    "deactivate": lambda world: world.vault.deactivate("acme"),
    "compromise": lambda world: world.vault.compromise("acme", 1),
    "destroy_key": lambda world: world.vault.destroy_key("acme", 1, **looked(world)),
    "reencrypt": lambda world: world.vault.reencrypt("acme", **looked(world)),
    "index_status": lambda world: world.vault.index_status("acme", **looked(world)),
    "build_index": lambda world: world.vault.build_index("acme", **looked(world)),
    "rotate_index": lambda world: world.vault.rotate_index("acme", **looked(world)),
    "drop_index": lambda world: world.vault.drop_index("acme", "notes.body", 0),
}


def test_every_use_says_that_the_tenant_is_erased_and_changes_nothing(world: World) -> None:
    erase(world)
    before = everything(world)
    for name, use in USES.items():
        with pytest.raises(TenantErasedError, match="tenant 'acme' is erased: its keys are destroyed") as caught:
            use(world)
        assert "register it under another one" in str(caught.value.hint), name
    assert everything(world) == before


def test_whoever_goes_through_all_tenants_leaves_it_out(world: World, calendar: Calendar) -> None:
    erase(world)
    assert world.vault.tenants() == ["glob"]
    assert world.vault.tenants(even_erased=True) == ["acme", "glob"]
    assert [each.tenant for each in world.vault.rewrap_all(new_kek=True)] == ["glob"]
    calendar.now += timedelta(days=400)
    assert [(each.tenant, each.step) for each in world.vault.rotate_due()] == [("glob", Step.ROTATED)]
    assert {each.name: (each.erased, each.version) for each in world.vault._parts.store.summaries()} == {
        "acme": (True, None),
        "glob": (False, 2),
    }


def test_a_tenant_that_is_erased_while_a_scheduler_looks_is_skipped(world: World, calendar: Calendar) -> None:
    calendar.now += timedelta(days=400)
    steps = world.vault.rotate_due(progress=lambda done, total: None if done else erase(world))
    assert [(each.tenant, each.step, each.reason) for each in steps] == [
        ("acme", Step.SKIPPED, "erased"),
        ("glob", Step.ROTATED, "scheduled"),
    ]


def test_coverage_counts_what_is_left_as_sealed_with_destroyed_keys(world: World) -> None:
    erase(world)
    for tenant in ("acme", None):
        stored = world.vault.coverage(tenant=tenant, **looked(world)).stored
        assert {each.state for each in stored if each.tenant == "acme"} == {KeyState.DESTROYED}
    assert {each.state for each in stored if each.tenant == "glob"} == {KeyState.ACTIVE}


def test_the_kms_key_of_an_erased_tenant_can_be_that_of_its_successor(world: World) -> None:
    erase(world)
    world.vault.add_tenant("acme again", key=world.keys["acme"])
    assert records(world, "acme again").tenant.identity.keyset_id != records(world).tenant.identity.keyset_id


# What is left in the application's tables.


def test_what_is_left_is_counted_by_column_with_its_tokens(world: World) -> None:
    write(world)
    with world.session() as session:
        session.add(Note(body="without a mark"))
    assert erase(world).remains is None
    assert erase(world, **looked(world)).remains == (Remains("notes", "body", 3, 3), Remains("notes", "mark", 2, 0))
    said = meaning(erase(world, **looked(world)))
    assert any(each.startswith("5 values of the tenant are left") and "3 of them with search" in each for each in said)
    with world.engine.begin() as connection:
        connection.execute(delete(Note.__table__).where(Note.__table__.c.tenant_id == "acme"))
    again = erase(world, **looked(world))
    assert again.remains == (Remains("notes", "body", 0, 0), Remains("notes", "mark", 0, 0))
    assert "No value of the tenant is left" in meaning(again)[-1]


def test_what_is_left_on_mariadb_is_counted_too(
    mariadb_url: str, world_on: Callable[..., World], sqlite_url: str
) -> None:
    world = world_on(mariadb_url, Base.metadata, key_store_url=sqlite_url)
    for tenant in ("acme", "glob"):
        write(world, tenant)
    assert erase(world, **looked(world)).remains == (Remains("notes", "body", 1, 1), Remains("notes", "mark", 1, 0))


def test_metadata_and_engine_belong_together(world: World) -> None:
    with pytest.raises(ConfigurationError, match="metadata and engine belong together"):
        erase(world, metadata=Base.metadata)
    assert wrapped(world) > 0


# Backups.


def test_a_backup_opens_as_long_as_the_kms_key_of_its_day_lives(
    sqlite_url: str, world_on: Callable[..., World], tmp_path: Path, calendar: Calendar
) -> None:
    """What the report says of backups, tried out: with copies of a SQLite file from two days."""
    world = world_on(sqlite_url, Base.metadata, now=calendar)
    write(world)
    first, second = world.keys["acme"], world.kms.create_key()
    backups = []
    for arn in (first, second):
        if arn == second:
            world.vault.rewrap("acme", to=second, new_kek=True)
        backups.append(tmp_path / f"backup {len(backups)}.sqlite3")
        shutil.copy(world.engine.url.database or "", backups[-1])
        calendar.now += DAY
    done = erase(world)
    assert [(each.key.arn, each.key.until) for each in done.kms_keys] == [
        (first, calendar.now - DAY),
        (second, calendar.now),
    ]

    def opens(backup: Path) -> bool:
        vault = Vault(f"sqlite:///{backup}", kms=world.kms)
        try:
            with vault.tenant("acme"):
                return True
        except KmsDeniedError:
            return False
        finally:
            vault.close()

    assert [opens(each) for each in backups] == [True, True]
    world.kms.disable_key(second)
    assert [opens(each) for each in backups] == [True, False]
    world.kms.disable_key(first)
    assert [opens(each) for each in backups] == [False, False]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'live.sqlite3'}"


def test_every_kms_key_is_named_with_whose_it_is(world: World, calendar: Calendar) -> None:
    own, moved = world.keys["acme"], world.vault.platform_key
    calendar.now += DAY
    world.vault.rewrap("acme", to=moved)
    world.vault.rewrap("glob", to=own, shared_key=True)
    done = erase(world)
    assert [(each.key.arn, each.owner, each.others) for each in done.kms_keys] == [
        (own, Owner.OURS, ("glob",)),
        (moved, Owner.PLATFORM, ()),
    ]
    said = [each for each in meaning(done) if each.startswith("KMS key")]
    assert "Other tenants' keys lie under it too (glob)" in said[0]
    assert "It is the platform's and stays: these backups have to go." in said[1]


# The KMS key's deletion.


def state_of(world: World, arn: str) -> str:
    return world.kms.describe(KmsKey(arn)).state


def test_our_own_kms_key_is_deleted_with_the_tenant_if_that_is_asked_for(world: World) -> None:
    arn = world.keys["acme"]
    planned = erase(world, key_deletion=KeyDeletion(world.kms, 7), dry_run=True)
    assert (planned.kms_keys[0].deleted_at, state_of(world, arn)) == (None, "Enabled")
    done = erase(world, key_deletion=KeyDeletion(world.kms, 7))
    deleted_at = done.kms_keys[0].deleted_at
    assert deleted_at is not None
    assert abs(deleted_at - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=5)
    assert (done.key_deletion_failure, state_of(world, arn)) == (None, "PendingDeletion")
    assert [event for event, _ in written(world)][-2:] == ["tenant.erased", "kms.deletion_scheduled"]
    # Asked for again, it keeps its day, and is written down once.
    again = erase(world, key_deletion=KeyDeletion(world.kms, 30))
    assert again == replace(done, made=False)
    assert again.kms_keys[0].deleted_at == deleted_at
    assert [event for event, _ in written(world)].count("kms.deletion_scheduled") == 1
    assert any(f"to be deleted at {deleted_at:%Y-%m-%d %H:%M} UTC" in each for each in meaning(again))
    assert found(world) == ()


@pytest.mark.parametrize("whose", ["platform", "shared", "too soon"])
def test_a_kms_key_that_is_not_to_be_deleted_keeps_everything(world: World, whose: str) -> None:
    days, match = 7, "lie under the platform's KMS key .*, which is not deleted"
    if whose == "platform":
        world.vault.rewrap("acme", to=world.vault.platform_key)
    elif whose == "shared":
        world.vault.rewrap("glob", to=world.keys["acme"], shared_key=True)
        match = "the keys of tenant 'glob' lie under KMS key .* too"
    else:
        days, match = 6, "after 7 to 30 days, not 6"
    before = everything(world)
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match=match):
            erase(world, key_deletion=KeyDeletion(world.kms, days), dry_run=dry_run)
    assert everything(world) == before
    assert state_of(world, records(world).kek.kms_key_arn) == "Enabled"


def test_the_customers_kms_key_is_not_ours_to_delete_and_a_refusal_undoes_nothing(
    strict_kms: StrictKms, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in strict_kms.environment().items():
        monkeypatch.setenv(name, value)
    customers, platform = strict_kms.customer_key(), strict_kms.platform_key()
    ours = strict_kms.create_key(account_of(VENDOR))
    strict_kms.allow(ours, VENDOR)
    vault = Vault(database_url, kms=AwsKms(), platform_key=platform)
    vault.create_all()
    vault.add_tenant("acme", key=customers.arn, role_arn=customers.role_arn, external_id=customers.external_id)
    vault.add_tenant("glob", key=ours)
    wish = KeyDeletion(AwsKeyOwner(), 14)
    with pytest.raises(ConfigurationError, match="is the customer's, and only the customer can delete it") as caught:
        vault.erase("acme", key_deletion=wish)
    assert f"aws kms schedule-key-deletion --key-id {customers.arn} --pending-window-in-days 14" in str(caught.value)
    assert vault.audit.entries("acme")[-1].event == "key.activated"
    done = vault.erase("glob", key_deletion=wish)
    assert done.made
    assert "ScheduleKeyDeletion with KMS key" in str(done.key_deletion_failure)
    assert "AccessDeniedException" in str(done.key_deletion_failure)
    assert (done.kms_keys[0].owner, done.kms_keys[0].deleted_at) == (Owner.OURS, None)
    assert any("It is our own and has to be deleted" in each for each in meaning(done))
    strict_kms.allow(ours, VENDOR, actions=["kms:ScheduleKeyDeletion"])
    again = vault.erase("glob", key_deletion=wish)
    assert (again.made, again.key_deletion_failure) == (False, None)
    assert again.kms_keys[0].deleted_at is not None
    assert abs(again.kms_keys[0].deleted_at - datetime.now(UTC) - timedelta(days=14)) < timedelta(minutes=5)
    vault.close()


# What nobody of us has done.


def test_a_wrapped_key_that_no_record_explains_keeps_everything(world: World) -> None:
    """Somebody who owns the database has put a second KEK beside the one that counts."""
    (row,) = rows(world.engine, keks, uid(world))
    change(world, insert(keks).values({**row, "generation": 9, "state": "deactivated"}))
    before = everything(world)
    with pytest.raises(KeyStoreError, match="holds a wrapped key of the tenant that none of its records explains"):
        erase(world)
    assert everything(world) == before


def test_keys_that_somebody_else_destroyed_are_no_erasure(world: World) -> None:
    change(world, update(keks).where(keks.c.tenant_uid == uid(world)).values(state="destroyed", wrapped=b""))
    world.vault.evict("acme")
    with pytest.raises(TenantErasedError):
        read(world)
    with pytest.raises(AuditError, match="are destroyed, and its audit log does not say by whom"):
        erase(world)
    assert "the last KEK: state is destroyed, the log says active" in found(world)


def test_keys_that_come_back_are_found(world: World) -> None:
    saved = rows(world.engine, keks, uid(world))
    erase(world)
    change(world, delete(keks).where(keks.c.tenant_uid == uid(world)), insert(keks).values(saved))
    assert "the active KEK: state is active, the log says destroyed" in found(world)


def test_a_damaged_log_keeps_everything(world: World) -> None:
    damaged = '{"at":"2026-01-01T00:00:00+00:00","actor":"","event":"","reason":"","details":{"keks":[{"state":"x"}]}}'
    change(world, update(audit).where(audit.c.seq == 1).values(entry=damaged))
    with pytest.raises(AuditError, match="the audit log of tenant 'acme' was changed"):
        erase(world)
    assert wrapped(world) > 0


# At the same time.


def test_a_rotation_that_was_decided_on_before_makes_no_key_afterwards(world: World) -> None:
    erased = []

    class Kms(LocalKms):
        def generate(self, *arguments: Any) -> Any:
            made = super().generate(*arguments)
            if not erased:
                erased.append(erase(world))
            return made

    slow = Vault(world.url, kms=Kms(world.kms._path))
    with pytest.raises(TenantErasedError):
        slow.rotate("acme")
    slow.close()
    assert erased
    assert wrapped(world) == 0
    assert found(world) == ()


def test_of_many_who_erase_at_once_one_does_it(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url, Base.metadata)
    done: list[Erasure] = []
    threads = [threading.Thread(target=lambda: done.append(erase(world))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(each.made for each in done) == [False, False, False, True]
    assert [event for event, _ in written(world)].count("tenant.erased") == 1


def erase_and_be_killed(url: str, kms_file: Path, fuse: int) -> None:
    """Erase acme in a process that is killed at so many looks at the database."""
    left = [fuse]

    def passed(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    vault = Vault(url, kms=LocalKms(kms_file))
    for moment in ("begin", "commit", "before_cursor_execute", "after_cursor_execute"):
        event.listen(vault._engine, moment, passed)
    vault.erase("acme", reason="in a child")


def test_killed_at_any_statement_it_is_done_or_not_and_never_half(world: World, tmp_path: Path) -> None:
    world.vault.rotate("acme")
    world.vault.rotate("acme")
    assert read(world) == ["of acme"]
    whole, before = wrapped(world), everything(world)
    context: Any = forking()
    fuse, codes = 1, []
    while 0 not in codes:
        child = context.Process(target=erase_and_be_killed, args=(world.url, tmp_path / "kms.json", fuse))
        child.start()
        child.join()
        codes.append(child.exitcode)
        snapshot = records(world)
        assert found(world) == ()
        if snapshot.erased:
            assert wrapped(world) == 0
            break
        assert wrapped(world) == whole
        assert everything(world) == before
        fuse += 3
    assert fuse > 40
    assert codes[0] == KILLED
    # Whether or not it came to tell of it: the next one tells.
    again = erase(world)
    assert (again.made, again.reason) == (False, "in a child")
    assert {each.kind for each in again.keys} == {"kek", "data", "index"}
    assert {key.purpose for key in snapshot.keys} == set(Purpose)
