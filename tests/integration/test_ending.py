"""The end of a key: it stops sealing, it stops opening, it is gone; for good, and without asking the customer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.audited import change
from tests.support.calendar import DAY, Calendar
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString
from pii_vault.errors import AuditError, ConfigurationError, KeyNotFoundError, KeyStateError
from pii_vault.keys import KeyRecord, KeyState
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import audit
from pii_vault.keystore.schema import metadata as key_store
from pii_vault.lifecycle.ending import Destruction
from pii_vault.lifecycle.parts import Reason
from pii_vault.sealing import Keyset

SECOND = timedelta(seconds=1)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())
    mark: Mapped[int | None] = mapped_column(EncryptedInteger())


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str | None] = mapped_column("e-mail", EncryptedString())
    plain: Mapped[str] = mapped_column(String(30), default="plain")


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    """Two tenants; acme has a note under version 1 and one under version 2."""
    world = build_world(Base.metadata, now=calendar, actor="operator")
    write(world, "version 1")
    calendar.now += DAY
    world.vault.rotate("acme")
    write(world, "version 2")
    write(world, "of glob", "glob")
    return world


def records(world: World, tenant: str = "acme") -> Snapshot:
    return world.vault._parts.store.load(tenant)


def key(world: World, version: int) -> KeyRecord:
    return records(world).data_keys[version - 1]


def write(world: World, body: str, tenant: str = "acme") -> int:
    """Write a note and return its id."""
    world.vault.evict(tenant)
    with world.session(tenant) as session:
        note = Note(body=body)
        session.add(note)
        session.flush()
        return note.id


def read(world: World, note: int | None = None, tenant: str = "acme") -> list[str]:
    """Read the tenant's notes, or one of them. The first was sealed with version 1, the second with version 2."""
    world.vault.evict(tenant)
    query = select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)
    with world.session(tenant) as session:
        return list(session.scalars(query if note is None else query.where(Note.id == note)))


def destroy(world: World, version: int, **options: Any) -> KeyRecord:
    options = {"metadata": Base.metadata, "engine": world.engine, **options}
    return world.vault.destroy_key("acme", version, **options).key


def everything(world: World) -> dict[str, list[Any]]:
    """All that the key store's tables hold."""
    with world.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in key_store.sorted_tables
        }


def written_down(world: World, event: str, version: int, reason: str) -> None:
    last = world.vault.audit.entries("acme")[-1]
    assert (last.event, last.reason, last.actor) == (event, reason, "operator")
    assert [each["version"] for each in last.details["keys"]] == [version]
    assert world.vault.audit.verify("acme").problems == ()


# It opens, and no longer seals.


def test_a_deactivated_key_opens_and_seals_nothing_until_the_tenant_is_rotated(
    world: World, calendar: Calendar
) -> None:
    calendar.now += DAY
    ended = world.vault.deactivate("acme", "on suspicion")
    assert ended == key(world, 2)
    assert (ended.state, ended.deactivated_at) == (KeyState.DEACTIVATED, calendar.now)
    written_down(world, "key.deactivated", 2, "on suspicion")
    assert read(world) == ["version 1", "version 2"]
    with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key, so nothing can be sealed"):
        write(world, "nothing")
    with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key"):
        world.vault.deactivate("acme")
    write(world, "of glob too", "glob")
    made = world.vault.rotate("acme")
    assert (made.version, made.previous) == (3, 0)
    write(world, "version 3")
    assert read(world) == ["version 1", "version 2", "version 3"]


def test_deactivation_reaches_open_scopes_of_the_same_process(world: World) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        assert session.scalars(select(Note.body).where(Note.id == 1)).one() == "version 1"
        world.vault.deactivate("acme")
        session.add(Note(body="nothing"))
        with pytest.raises(KeyStateError, match="acme"):
            session.flush()


# It opens for re-encryption only.


def by_the_kek(world: World, version: int) -> str:
    """Open a note as re-encryption does: with the key itself."""
    snapshot = records(world)
    identity = snapshot.tenant.identity
    secret = world.vault._parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek).unwrap(key(world, version))
    keyset = Keyset("acme", identity, version, {version: secret}, deadline=0.0, wall_deadline=0.0)
    with world.engine.connect() as connection:
        query = text("SELECT body FROM notes WHERE id = :id").bindparams(id=version)
        sealed = bytes(connection.execute(query).scalar_one())
    return keyset.open_("notes.body", sealed)[1].decode()


def test_what_a_compromised_key_sealed_is_for_re_encryption_only(world: World, calendar: Calendar) -> None:
    before = key(world, 1)
    calendar.now += DAY
    ended = world.vault.compromise("acme", 1, "found on a laptop")
    assert ended == key(world, 1)
    # What it is about stays: since when it is out of use, and its bytes.
    assert (ended.state, ended.deactivated_at) == (KeyState.COMPROMISED, before.deactivated_at)
    assert (ended.encrypted_key, ended.commitment) == (before.encrypted_key, before.commitment)
    written_down(world, "key.compromised", 1, "found on a laptop")
    for note in (1, None):
        with pytest.raises(KeyNotFoundError, match="data key version 1 of tenant 'acme' is compromised") as caught:
            read(world, note)
        assert caught.value.hint == "re-encrypt it to read it"
    assert read(world, 2) == ["version 2"]
    assert by_the_kek(world, 1) == "version 1"
    assert read(world, write(world, "version 2 again")) == ["version 2 again"]


def test_an_active_key_that_is_compromised_neither_opens_nor_seals(world: World, calendar: Calendar) -> None:
    calendar.now += DAY
    ended = world.vault.compromise("acme", 2)
    assert (ended.state, ended.deactivated_at) == (KeyState.COMPROMISED, calendar.now)
    with pytest.raises(KeyNotFoundError, match="data key version 2 of tenant 'acme' is compromised"):
        read(world, 2)
    with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key"):
        write(world, "nothing")
    assert read(world, 1) == ["version 1"]
    assert world.vault.rotate("acme", Reason.COMPROMISED).version == 3
    assert read(world, write(world, "version 3")) == ["version 3"]
    assert by_the_kek(world, 2) == "version 2"


def test_a_version_that_waits_can_be_compromised_and_is_never_used_then(world: World, calendar: Calendar) -> None:
    calendar.now += timedelta(days=364)
    world.vault.rotate_due()
    world.vault.compromise("acme", 3)
    assert world.vault.rotate("acme").version == 4
    assert [str(each.state) for each in records(world).data_keys] == [
        "deactivated",
        "deactivated",
        "compromised",
        "active",
    ]
    assert read(world) == ["version 1", "version 2"]


@pytest.mark.parametrize("version", [0, 3])
def test_a_version_that_there_is_not_is_not_ended(world: World, version: int) -> None:
    for end in (lambda: world.vault.compromise("acme", version), lambda: destroy(world, version)):
        with pytest.raises(KeyStateError, match=f"tenant 'acme' has no data key version {version}") as caught:
            end()
        assert caught.value.hint == "pii-vault key list acme shows those that it has"


def test_a_key_is_compromised_once(world: World) -> None:
    world.vault.compromise("acme", 1)
    before = everything(world)
    with pytest.raises(KeyStateError, match="version 1 of tenant 'acme' is compromised and cannot become compromised"):
        world.vault.compromise("acme", 1)
    assert everything(world) == before


# It is gone.


def empty(world: World, *ids: int) -> None:
    with world.engine.begin() as connection:
        connection.execute(text(f"DELETE FROM notes WHERE id IN ({', '.join(map(str, ids))})"))


def test_a_destroyed_key_leaves_its_record_and_a_clear_error(world: World, calendar: Calendar) -> None:
    with world.engine.connect() as connection:
        left = connection.execute(text("SELECT body FROM notes WHERE id = 1")).scalar_one()
    empty(world, 1)
    calendar.now += DAY
    before = key(world, 1)
    ended = destroy(world, 1, reason="nothing is left")
    assert ended == key(world, 1)
    assert (ended.state, ended.encrypted_key, ended.destroyed_at) == (KeyState.DESTROYED, b"", calendar.now)
    for kept in (
        "commitment",
        "created_at",
        "created_by",
        "reason",
        "kms_key_arn",
        "deactivated_at",
        "due_at",
        "epoch",
    ):
        assert getattr(ended, kept) == getattr(before, kept)
    written_down(world, "key.destroyed", 1, "nothing is left")
    assert read(world) == ["version 2"]
    with world.engine.begin() as connection:
        statement = text("INSERT INTO notes (id, tenant_id, body) VALUES (1, 'acme', :left)")
        connection.execute(statement.bindparams(left=left))
    with pytest.raises(KeyNotFoundError, match=r"1 of tenant 'acme' is destroyed: a value of 'notes\.body' that"):
        read(world, 1)
    assert read(world, 2) == ["version 2"]
    with pytest.raises(KeyStateError, match="version 1 of tenant 'acme' is destroyed and cannot become destroyed"):
        destroy(world, 1)
    with pytest.raises(KeyStateError, match="is destroyed and cannot become compromised"):
        world.vault.compromise("acme", 1)
    assert world.vault.rotate("acme").version == 3


def test_a_key_in_use_is_not_destroyed(world: World, calendar: Calendar) -> None:
    empty(world, 1, 2)
    calendar.now += 30 * DAY
    before = everything(world)
    with pytest.raises(
        KeyStateError, match="version 2 of tenant 'acme' is active and cannot become destroyed"
    ) as caught:
        destroy(world, 2)
    assert caught.value.hint == "rotate the tenant first"
    assert everything(world) == before


@pytest.mark.parametrize("end", ["deactivate", "compromise"])
def test_a_key_is_not_destroyed_within_a_day_of_its_use(world: World, calendar: Calendar, end: str) -> None:
    empty(world, 1, 2)
    calendar.now += DAY
    if end == "compromise":
        world.vault.compromise("acme", 2)
    else:
        world.vault.deactivate("acme")
    before = everything(world)
    calendar.now += DAY - SECOND
    with pytest.raises(
        KeyStateError, match="version 2 of tenant 'acme' was taken out of use at 2026-03-03 12:30 UTC"
    ) as c:
        destroy(world, 2)
    assert c.value.hint == "destroy it after 2026-03-04 12:30 UTC"
    assert everything(world) == before
    calendar.now += SECOND
    assert destroy(world, 2).state is KeyState.DESTROYED


def test_a_version_that_never_sealed_can_be_destroyed_at_once(world: World, calendar: Calendar) -> None:
    calendar.now += timedelta(days=364)
    world.vault.rotate_due()
    assert destroy(world, 3).state is KeyState.DESTROYED
    assert world.vault.rotate("acme").version == 4


def test_values_that_are_left_keep_their_key_and_are_counted_by_column(world: World, calendar: Calendar) -> None:
    world.vault.rotate("acme")
    with world.session() as session:
        session.add_all(Note(body="x", mark=number if number % 2 else None) for number in range(1203))
        session.add_all(Person(email="a@example.com" if number < 40 else None) for number in range(50))
    with world.session("glob") as session:
        session.add_all(Person(email="b@example.com") for _ in range(7))
    world.vault.rotate("acme")
    with world.session() as session:
        session.add_all(Person(email="later@example.com") for _ in range(5))
    calendar.now += DAY
    before = everything(world)
    for dry_run in (True, False):
        with pytest.raises(KeyStateError) as caught:
            destroy(world, 3, dry_run=dry_run)
        assert str(caught.value) == (
            "data key version 3 of tenant 'acme' still holds 1,844 values: 1,203 in notes.body, 601 in notes.mark, "
            "40 in people.e-mail (re-encrypt them with the active version first)"
        )
    assert everything(world) == before
    # One value is enough.
    with world.engine.begin() as connection:
        connection.execute(text("DELETE FROM notes"))
        connection.execute(text("DELETE FROM people WHERE id > 1 AND tenant_id = 'acme'"))
    with pytest.raises(KeyStateError, match=r"still holds 1 value: 1 in people\.e-mail"):
        destroy(world, 3)


def test_a_dry_run_makes_every_check_and_changes_nothing(world: World, calendar: Calendar) -> None:
    calendar.now += DAY
    with pytest.raises(KeyStateError, match=r"still holds 1 value: 1 in notes\.body"):
        destroy(world, 1, dry_run=True)
    empty(world, 1)
    before = everything(world)
    assert destroy(world, 1, dry_run=True) == key(world, 1)
    assert everything(world) == before
    assert key(world, 1).state is KeyState.DEACTIVATED


def test_rows_in_a_schema_are_counted_too(world: World, calendar: Calendar) -> None:
    # SQLite calls an attached database a schema; the one that everybody has is "main".
    schema = "archive" if world.engine.dialect.name == "postgresql" else "main"
    elsewhere = MetaData(schema=schema)
    letters = Table(
        "letters",
        elsewhere,
        Column("id", Integer, primary_key=True),
        Column("tenant_id", String(30)),
        Column("to", EncryptedString()),
    )
    with world.engine.begin() as connection:
        if schema == "archive":
            connection.execute(text("CREATE SCHEMA archive"))
        elsewhere.create_all(connection)
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(letters).values(id=1, tenant_id="acme", to="ada"))
    world.vault.rotate("acme")
    calendar.now += DAY
    with pytest.raises(KeyStateError, match=f"still holds 1 value: 1 in {schema}.letters.to"):
        destroy(world, 2, metadata=elsewhere)
    with world.engine.begin() as connection:
        connection.execute(delete(letters))
    assert destroy(world, 2, metadata=elsewhere).state is KeyState.DESTROYED


def test_tables_that_refer_to_each_other_are_counted_without_a_warning(world: World, calendar: Calendar) -> None:
    circle = MetaData()
    for name, other in (("hens", "eggs"), ("eggs", "hens")):
        Table(
            name,
            circle,
            Column("id", Integer, primary_key=True),
            Column("of", ForeignKey(f"{other}.id", name=f"fk_{name}")),
            Column("secret", EncryptedString()),
        )
    circle.create_all(world.engine)
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(circle.tables["eggs"]).values(id=1, secret="x"))
    world.vault.rotate("acme")
    calendar.now += DAY
    with pytest.raises(KeyStateError, match=r"still holds 1 value: 1 in eggs\.secret"):
        destroy(world, 2, metadata=circle)


def test_metadata_without_encrypted_columns_proves_nothing(world: World, calendar: Calendar) -> None:
    calendar.now += DAY
    plain = MetaData()
    Table("notes", plain, Column("id", Integer, primary_key=True))
    for metadata in (plain, MetaData()):
        with pytest.raises(ConfigurationError, match="the metadata holds no encrypted column"):
            destroy(world, 1, metadata=metadata)
    assert key(world, 1).state is KeyState.DEACTIVATED


@pytest.mark.parametrize("missing", ["table", "column"])
def test_metadata_that_the_database_does_not_fit_proves_nothing(world: World, calendar: Calendar, missing: str) -> None:
    calendar.now += DAY
    other = MetaData()
    Table("notes", other, Column("id", Integer, primary_key=True), Column("body", EncryptedString()))
    name = "elsewhere" if missing == "table" else "people"
    Table(name, other, Column("id", Integer, primary_key=True), Column("secret", EncryptedString()))
    empty(world, 1)
    with pytest.raises(ConfigurationError, match=f"table '{name}' cannot be read") as caught:
        destroy(world, 1, metadata=other)
    assert caught.value.__cause__ is None
    assert key(world, 1).state is KeyState.DEACTIVATED


def test_an_engine_on_another_database_proves_nothing(
    world: World, calendar: Calendar, make_engine: Callable[..., Engine]
) -> None:
    calendar.now += DAY
    with pytest.raises(ConfigurationError, match="table 'notes' cannot be read"):
        destroy(world, 1, engine=make_engine("sqlite://"))
    assert key(world, 1).state is KeyState.DEACTIVATED


def test_values_that_are_not_sealed_or_are_no_values_are_not_counted(world: World, calendar: Calendar) -> None:
    calendar.now += DAY
    with world.engine.begin() as connection:
        header = bytes(connection.execute(text("SELECT body FROM notes WHERE id = 1")).scalar_one())[:10]
        for id_, stored in ((1, b""), (2, header[:6]), (3, b"\xfa" + header[2:])):
            connection.execute(text("UPDATE notes SET body = :stored WHERE id = :id"), {"stored": stored, "id": id_})
    assert destroy(world, 1).state is KeyState.DESTROYED


# What backups have of it.


def backups(world: World, version: int = 1) -> Destruction:
    """What a destruction would say of backups."""
    return world.vault.destroy_key("acme", version, metadata=Base.metadata, engine=world.engine, dry_run=True)


def test_a_destroyed_key_is_in_backups_that_open_with_the_kms_keys_of_their_day(
    world: World, calendar: Calendar
) -> None:
    empty(world, 1, 2)
    calendar.now += DAY
    first, second = world.keys["acme"], world.kms.create_key()
    found = backups(world)
    assert [(each.arn, each.until) for each in found.backup_keys] == [(first, None)]
    assert f"open with KMS key {first} until that is deleted" in found.promise
    world.vault.rewrap("acme", to=second)
    moved_at = calendar.now
    found = backups(world)
    assert [(each.arn, each.until) for each in found.backup_keys] == [(first, moved_at), (second, None)]
    assert f"open with KMS keys {first}, {second} until these are deleted" in found.promise
    assert "live key store only" in found.promise
    # A key that is younger than the move was never under the first one.
    calendar.now += DAY
    world.vault.rotate("acme")
    calendar.now += DAY
    world.vault.rotate("acme")
    calendar.now += DAY
    assert [each.arn for each in backups(world, 3).backup_keys] == [second]
    # A new KEK does not take the key out of backups from before either; and the platform's KMS key is not deleted.
    assert "platform" not in found.promise
    world.vault.rewrap("acme", to=world.vault.platform_key, new_kek=True)
    found = backups(world)
    assert [each.arn for each in found.backup_keys] == [first, second, world.vault.platform_key]
    assert "The platform's KMS key lives on for other tenants" in found.promise
    told = world.vault.destroy_key("acme", 1, metadata=Base.metadata, engine=world.engine)
    assert (told.key, told.backup_keys, told.promise) == (key(world, 1), found.backup_keys, found.promise)


def test_a_log_that_does_not_say_where_the_keys_lay_destroys_nothing(world: World, calendar: Calendar) -> None:
    empty(world, 1)
    calendar.now += DAY
    change(
        world,
        update(audit)
        .where(audit.c.seq == 1)
        .values(entry='{"at":"2026-01-01","actor":"","event":"","reason":"","details":{"keks":[{}]}}'),
    )
    with pytest.raises(AuditError, match="the audit log of tenant 'acme' was changed"):
        destroy(world, 1)
    assert key(world, 1).state is KeyState.DEACTIVATED


# The customer is not asked.


def test_keys_are_ended_while_the_customers_kms_key_is_disabled(world: World, calendar: Calendar) -> None:
    world.kms.disable_key(world.keys["acme"])
    world.vault.deactivate("acme", "the contract has ended")
    world.vault.compromise("acme", 2)
    empty(world, 1, 2)
    calendar.now += DAY
    for version in (1, 2):
        assert destroy(world, version).state is KeyState.DESTROYED
    world.vault.suspend("acme")
    assert world.vault.audit.verify("acme").problems == ()
    assert [entry.event for entry in world.vault.audit.entries("acme")][-5:] == [
        "key.deactivated",
        "key.compromised",
        "key.destroyed",
        "key.destroyed",
        "tenant.suspended",
    ]
    assert read(world, tenant="glob") == ["of glob"]


def test_the_keys_of_a_suspended_tenant_can_be_ended(world: World, calendar: Calendar) -> None:
    world.vault.suspend("acme")
    world.vault.compromise("acme", 1)
    world.vault.deactivate("acme")
    empty(world, 1)
    calendar.now += DAY
    destroy(world, 1)
    world.vault.resume("acme")
    assert read(world) == ["version 2"]


def test_a_key_is_not_destroyed_when_it_came_into_use_while_its_values_were_counted(
    world: World, calendar: Calendar
) -> None:
    """Between the count and the change lies time, in which a version that waits can become active."""
    calendar.now += timedelta(days=364)
    world.vault.rotate_due()
    counted: list[int] = []

    @event.listens_for(world.engine, "checkin")
    def after_the_count(*_: Any) -> None:
        counted.append(1)
        if len(counted) == 1:
            world.vault.rotate("acme")

    with pytest.raises(KeyStateError, match="version 3 of tenant 'acme' is active and cannot become destroyed"):
        destroy(world, 3)
    assert counted == [1, 1]  # one for each table
    assert key(world, 3).state is KeyState.ACTIVE


def test_only_the_versions_row_is_touched(world: World, calendar: Calendar) -> None:
    before = everything(world)
    calendar.now += DAY
    empty(world, 1)
    destroy(world, 1)
    after = everything(world)
    changed = {name for name in before if before[name] != after[name]}
    evicted = {"pii_vault_tenants", "pii_vault_application"}  # every process is to forget the key
    assert changed == {"pii_vault_keys", "pii_vault_audit", "pii_vault_audit_chains", *evicted}
    for table in ("pii_vault_keys", *evicted):
        assert len(set(before[table]) - set(after[table])) == 1
    with pytest.raises(Exception, match="key records only move forward"), world.engine.begin() as connection:
        connection.execute(
            update(key_store.tables["pii_vault_keys"])
            .where(text("state = 'destroyed'"))
            .values(state="deactivated", encrypted_key=b"x" * 48)
        )
