"""What is due is rotated, once and for its reason, whoever looks and however late; what is not is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine, event, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.calendar import DAY, START, Calendar
from tests.support.world import World

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import KmsDeniedError, KmsUnavailableError
from pii_vault.keys import USE_ROTATE, KeyRecord
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import audit_chains, key_use, metadata
from pii_vault.kms import GeneratedKey, KmsKey, KmsKeyDescription
from pii_vault.kms.aws_errors import kms_error
from pii_vault.lifecycle.parts import Reason
from pii_vault.lifecycle.schedule import Due, Step, denied_together

YEAR = 365 * DAY


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class CountingKms(LocalKms):
    """Counts what it is asked; while it is `out`, it describes no key and generates no data key."""

    out = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        self.asked.append("generate")
        if self.out and context["pii-vault:purpose"] == "data":
            raise kms_error("KMSInternalException", "GenerateDataKey", key.arn)
        return super().generate(key, context)

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        self.asked.append("unwrap")
        return super().unwrap(key, blob, context)

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        self.asked.append("describe")
        if self.out:
            raise kms_error("KMSInternalException", "DescribeKey", key.arn)
        return super().describe(key)

    def rotation_period(self, key: KmsKey) -> timedelta | None:
        self.asked.append("rotation period")
        return super().rotation_period(key)


class Reader:
    """Another process: a vault of its own on the same key store, whose questions to that and to the KMS are counted."""

    def __init__(self, world: World, kms_file: Path) -> None:
        self.kms = CountingKms(kms_file)
        self.vault = Vault(world.engine.url, kms=self.kms)
        self.engine = create_engine(world.engine.url)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")
        self.statements: list[str] = []
        event.listen(self.vault._engine, "before_cursor_execute", lambda *a: self.statements.append(a[2]))

    def read(self) -> list[str]:
        self.statements.clear()
        self.kms.asked.clear()
        with self.vault.tenant("acme"), self.sessions() as session:
            return list(session.scalars(select(Note.body).order_by(Note.id)))

    def close(self) -> None:
        self.vault.close()
        self.engine.dispose()


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    return build_world(Base.metadata, now=calendar)


@pytest.fixture
def counted(
    sqlite_url: str, tmp_path: Path, world_on: Callable[..., World], calendar: Calendar
) -> Iterator[tuple[World, CountingKms]]:
    """A world whose vault asks a KMS that counts."""
    world = world_on(sqlite_url, now=calendar)
    world.vault.close()
    kms = CountingKms(tmp_path / "kms.json")
    world.vault = Vault(sqlite_url, kms=kms, now=calendar)
    yield world, kms
    world.vault.close()


@pytest.fixture
def reader(world: World, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(world, tmp_path / "kms.json")
    yield reader
    reader.close()


def records(world: World, tenant: str = "acme") -> Snapshot:
    return world.vault._parts.store.load(tenant)


def active(world: World, tenant: str = "acme") -> KeyRecord:
    found = records(world, tenant).active
    assert found is not None
    return found


def states(world: World, tenant: str = "acme") -> list[str]:
    return [str(key.state) for key in records(world, tenant).data_keys]


def write(world: World, body: str) -> None:
    with world.session() as session:
        session.add(Note(body=body))


def looked(world: World, **options: Any) -> dict[str, tuple[str, str, int]]:
    """What a look came to: step, reason and version of each tenant that it found something about."""
    return {due.tenant: (due.step, due.reason, due.version) for due in world.vault.rotate_due(**options)}


def everything(world: World) -> dict[str, list[Any]]:
    """All that the key store's tables hold."""
    with world.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }


# A version's day.


def test_nothing_is_done_about_a_tenant_that_is_not_due(world: World, calendar: Calendar) -> None:
    before = everything(world)
    for days in (0, 1, 363.99):
        calendar.now = START + timedelta(days=days)
        assert world.vault.rotate_due() == []
    assert everything(world) == before


def test_the_next_version_is_stored_a_day_ahead_once_and_seals_on_its_day(world: World, calendar: Calendar) -> None:
    world.vault.set_rotation("glob", days=1000)
    calendar.now = START + YEAR - DAY
    assert looked(world) == {"acme": (Step.PREPARED, Reason.SCHEDULED, 1)}
    waiting = records(world).pending
    assert waiting is not None
    assert (waiting.version, waiting.reason, waiting.created_at) == (2, Reason.SCHEDULED, calendar.now)
    calendar.now += DAY - timedelta(seconds=1)
    assert looked(world) == {"acme": (Step.NOT_DUE, "", 1)}
    assert states(world) == ["active", "pre_active"]
    calendar.now += timedelta(seconds=1)
    assert looked(world) == {"acme": (Step.ROTATED, Reason.SCHEDULED, 2)}
    assert states(world) == ["deactivated", "active"]
    assert active(world).commitment == waiting.commitment
    assert active(world).activated_at == calendar.now
    assert active(world).due_at == calendar.now + YEAR
    assert looked(world) == {}
    assert world.vault.audit.verify("acme").problems == ()


def test_the_time_ahead_can_be_chosen(world: World, calendar: Calendar) -> None:
    calendar.now = START + YEAR - timedelta(days=7)
    assert looked(world) == {}
    assert looked(world, ahead=timedelta(days=7), dry_run=True).keys() == {"acme", "glob"}
    assert looked(world, ahead=timedelta(days=7)) == dict.fromkeys(("acme", "glob"), ("prepared", "scheduled", 1))


def test_a_process_that_knew_the_version_ahead_opens_its_first_value_without_asking_anybody(
    world: World, calendar: Calendar, reader: Reader
) -> None:
    write(world, "before")
    calendar.now = START + YEAR - DAY / 2
    world.vault.rotate_due()
    assert reader.read() == ["before"]
    calendar.now = START + YEAR
    world.vault.rotate_due()
    write(world, "after")
    assert reader.read() == ["before", "after"]
    assert (reader.statements, reader.kms.asked) == ([], [])


def test_a_process_that_did_not_know_the_version_asks_once(world: World, reader: Reader) -> None:
    write(world, "before")
    assert reader.read() == ["before"]
    world.vault.rotate("acme")
    for body in ("after", "after that"):
        write(world, body)
    assert reader.read() == ["before", "after", "after that"]
    assert reader.kms.asked == ["unwrap"]
    assert reader.read() == ["before", "after", "after that"]
    assert reader.kms.asked == []
    assert not any("pii_vault_keys" in statement for statement in reader.statements)


def test_after_missed_runs_there_is_one_rotation_and_not_one_for_each(world: World, calendar: Calendar) -> None:
    calendar.now = START + 5 * YEAR
    assert looked(world) == dict.fromkeys(("acme", "glob"), (Step.ROTATED, Reason.SCHEDULED, 2))
    assert looked(world) == {}
    assert active(world).due_at == calendar.now + YEAR


# The other reasons.


@pytest.mark.parametrize(("uses", "rotates"), [(USE_ROTATE - 1, False), (USE_ROTATE, True)])
def test_a_key_that_was_used_too_often_is_replaced_before_its_day(world: World, uses: int, rotates: bool) -> None:
    mine = key_use.c.tenant_uid == records(world).tenant.identity.tenant_uid
    with world.engine.begin() as connection:
        connection.execute(update(key_use).where(mine).values(reserved=uses))
    assert looked(world) == ({"acme": (Step.ROTATED, Reason.LIMIT, 2)} if rotates else {})
    if rotates:
        assert (active(world).reason, active(world).reserved) == (Reason.LIMIT, 0)
        assert looked(world) == {}


def test_a_tenant_that_follows_its_kms_key_is_rotated_when_that_has_new_material(world: World) -> None:
    arn = world.keys["acme"]
    world.vault.set_rotation("acme", follows_kms=True)
    for tenant in ("acme", "glob"):
        world.kms.rotate_key(world.keys[tenant])
    assert looked(world) == {"acme": (Step.ROTATED, Reason.KMS_ROTATION, 2)}
    assert active(world).kms_key_material_id == world.kms.describe(KmsKey(arn)).key_material_id
    assert looked(world) == {"acme": (Step.NOT_DUE, "", 2)}
    assert states(world, "glob") == ["active"]


def test_a_tenant_that_moves_to_another_kms_key_is_not_rotated_for_that_alone(world: World) -> None:
    world.vault.set_rotation("acme", follows_kms=True)
    elsewhere = world.kms.create_key()
    world.vault.rewrap("acme", to=elsewhere)
    assert looked(world) == {"acme": (Step.NOT_DUE, "", 1)}
    world.kms.rotate_key(elsewhere)
    assert looked(world) == {"acme": (Step.ROTATED, Reason.KMS_ROTATION, 2)}
    assert looked(world) == {"acme": (Step.NOT_DUE, "", 2)}
    # Its KEK under the newest material, the data key is as new as that.
    world.kms.rotate_key(elsewhere)
    world.vault.rewrap("acme", new_kek=True)
    assert looked(world) == {"acme": (Step.ROTATED, Reason.KMS_ROTATION, 3)}


def test_a_kms_that_names_no_material_rotates_nobody(counted: tuple[World, CountingKms]) -> None:
    world, _ = counted
    world.vault.set_rotation("acme", follows_kms=True)
    world.kms.rotate_key(world.keys["acme"])
    with pytest.MonkeyPatch.context() as patched:
        nameless = CountingKms.describe

        def describe(self: CountingKms, key: KmsKey) -> KmsKeyDescription:
            said = nameless(self, key)
            return KmsKeyDescription(said.arn, said.account, said.region, said.state, said.usage, said.spec)

        patched.setattr(CountingKms, "describe", describe)
        assert looked(world) == {"acme": (Step.NOT_DUE, "", 1)}


def test_only_tenants_that_follow_their_kms_key_cost_a_call_when_they_are_not_due(
    counted: tuple[World, CountingKms],
) -> None:
    world, kms = counted
    world.vault.set_rotation("acme", follows_kms=True)
    world.vault.rotate_due()
    kms.asked.clear()
    world.vault.rotate_due()
    assert sorted(kms.asked) == ["describe", "rotation period"]


# What was left unfinished.


@pytest.mark.parametrize("reason", [Reason.FORCED, Reason.COMPROMISED, Reason.LIMIT, Reason.KMS_ROTATION])
def test_a_rotation_that_was_begun_for_another_reason_than_its_day_is_finished_at_once(
    counted: tuple[World, CountingKms], reason: Reason
) -> None:
    world, kms = counted
    kms.out = True
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CountingKms, "generate", LocalKms.generate)
        with pytest.raises(KmsUnavailableError):
            world.vault.rotate("acme", reason)
    assert states(world) == ["active", "pre_active"]
    kms.out = False
    assert looked(world) == {"acme": (Step.ROTATED, reason, 2)}
    assert states(world) == ["deactivated", "active"]
    assert looked(world) == {}


def test_after_a_leak_the_version_that_was_waiting_is_not_used(world: World, calendar: Calendar) -> None:
    calendar.now = START + YEAR - DAY
    world.vault.rotate_due()
    assert world.vault.rotate("acme", Reason.COMPROMISED).version == 3
    assert states(world) == ["deactivated", "destroyed", "active"]
    assert active(world).reason == Reason.COMPROMISED
    # Any other rotation takes what waits.
    assert world.vault.rotate("glob").version == 2
    assert states(world, "glob") == ["deactivated", "active"]


@pytest.mark.parametrize("moment", ["before there was a key", "while the key waited"])
def test_a_tenant_that_was_registered_half_way_is_finished(counted: tuple[World, CountingKms], moment: str) -> None:
    world, kms = counted
    kms.out = True
    with pytest.MonkeyPatch.context() as patched:
        if moment == "while the key waited":
            patched.setattr(CountingKms, "generate", LocalKms.generate)
        with pytest.raises(KmsUnavailableError):
            world.vault.add_tenant("new", key=world.kms.create_key())
    assert states(world, "new") == ["pre_active"] * (moment == "while the key waited")
    kms.out = False
    assert looked(world) == {"new": (Step.ROTATED, Reason.INITIAL, 1)}
    assert states(world, "new") == ["active"]
    with world.vault.tenant("new") as scope:
        assert scope.keyset is not None
        assert scope.keyset.active == 1


# What is left alone, and what fails.


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda vault: vault.suspend("acme"), "suspended"),
        (lambda vault: vault.set_pii_encryption("acme", False), "PII encryption is off"),
        (lambda vault: vault.deactivate("acme"), "no active key: rotate it by hand"),
        (lambda vault: vault.compromise("acme", 1), "no active key: rotate it by hand"),
    ],
    ids=["suspended", "off", "deactivated", "compromised"],
)
def test_what_somebody_took_out_of_use_is_left_so(
    world: World, calendar: Calendar, end: Callable[[Vault], object], says: str
) -> None:
    end(world.vault)
    calendar.now = START + YEAR
    before = records(world)
    assert looked(world) == {
        "acme": (Step.SKIPPED, says, 0 if says.startswith("no active key") else 1),
        "glob": (Step.ROTATED, Reason.SCHEDULED, 2),
    }
    assert records(world) == before


def test_a_tenant_that_was_resumed_is_rotated_with_the_next_look(world: World, calendar: Calendar) -> None:
    world.vault.suspend("acme")
    calendar.now = START + YEAR
    world.vault.rotate_due()
    world.vault.resume("acme")
    assert looked(world) == {"acme": (Step.ROTATED, Reason.SCHEDULED, 2)}


@pytest.mark.parametrize("prepared", [False, True], ids=["nothing waits", "a version waits"])
def test_a_customer_that_refuses_fails_alone_and_the_refusal_is_written_down_once(
    world: World, calendar: Calendar, prepared: bool
) -> None:
    if prepared:
        calendar.now = START + YEAR - DAY
        world.vault.rotate_due()
    calendar.now = START + YEAR
    world.kms.disable_key(world.keys["acme"])
    for _ in range(2):
        acme = next(due for due in world.vault.rotate_due() if due.tenant == "acme")
        assert (acme.step, acme.denied, acme.version) == (Step.FAILED, True, 0)
        assert world.keys["acme"] in acme.reason
    assert states(world)[0] == "active"
    assert active(world, "glob").version == 2
    refusals = [entry for entry in world.vault.audit.entries("acme") if entry.event == "kms.refused"]
    assert len(refusals) == 1
    world.kms.enable_key(world.keys["acme"])
    assert looked(world) == {"acme": (Step.ROTATED, Reason.SCHEDULED, 2)}
    assert world.vault.audit.verify("acme").problems == ()


def test_a_kms_that_does_not_answer_is_no_refusal(counted: tuple[World, CountingKms], calendar: Calendar) -> None:
    world, kms = counted
    calendar.now = START + YEAR
    kms.out = True
    found = world.vault.rotate_due()
    assert [(due.step, due.denied) for due in found] == [(Step.FAILED, False)] * 2
    assert not denied_together(found)


def damage_kek(world: World) -> None:
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_keks SET wrapped = :x WHERE tenant_uid = :uid"), _acme(world, b"x"))


def damage_key(world: World) -> None:
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE pii_vault_keys SET iv = :x WHERE tenant_uid = :uid"), _acme(world, b"x" * 12))


def damage_chain(world: World) -> None:
    """Put the end of the audit chain back to an earlier entry."""
    with world.engine.connect() as connection:
        mine = audit_chains.c.tenant_uid == records(world).tenant.identity.tenant_uid
        earlier = dict(connection.execute(select(audit_chains).where(mine)).mappings().one())
    world.vault.suspend("acme")
    world.vault.resume("acme")
    with world.engine.begin() as connection:
        if world.engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE pii_vault_audit_chains DISABLE TRIGGER USER"))
        else:
            connection.execute(text("DROP TRIGGER pii_vault_audit_chains_update"))
        connection.execute(update(audit_chains).where(mine).values(earlier))


def _acme(world: World, damage: bytes) -> dict[str, bytes]:
    return {"x": damage, "uid": records(world).tenant.identity.tenant_uid}


@pytest.mark.parametrize("damage", [damage_kek, damage_key, damage_chain])
def test_a_tenant_whose_records_are_damaged_fails_alone(
    world: World, calendar: Calendar, damage: Callable[[World], None]
) -> None:
    damage(world)
    calendar.now = START + YEAR
    found = {due.tenant: due for due in world.vault.rotate_due()}
    assert (found["acme"].step, found["acme"].denied) == (Step.FAILED, False)
    assert found["acme"].reason != ""
    assert (found["glob"].step, found["glob"].version) == (Step.ROTATED, 2)


def test_many_customers_who_refuse_at_once_are_told_from_few(world: World, calendar: Calendar) -> None:
    calendar.now = START + YEAR
    names = [f"tenant {number}" for number in range(3)]
    refusing = [world.kms.create_key() for _ in names]
    for name, key in zip(names, refusing, strict=True):
        world.vault.add_tenant(name, key=key)
    calendar.now += YEAR
    for key in refusing[:2]:
        world.kms.disable_key(key)
    few = world.vault.rotate_due(dry_run=False)
    assert ([due.denied for due in few], denied_together(few)) == ([False, False, True, True, False], False)
    calendar.now += YEAR
    world.kms.disable_key(refusing[2])
    many = world.vault.rotate_due()
    assert ([due.denied for due in many], denied_together(many)) == ([False, False, True, True, True], True)


@pytest.mark.parametrize(
    ("denied", "others", "together"),
    [(0, 0, False), (2, 0, False), (3, 0, True), (3, 2, True), (3, 3, False), (50, 49, True), (50, 50, False)],
)
def test_it_is_probably_us_when_three_and_more_than_half_refuse(denied: int, others: int, together: bool) -> None:
    found = [Due("acme", Step.FAILED, "", 0, None, denied=number < denied) for number in range(denied + others)]
    assert denied_together(found) is together


# Looking only.


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    counted: tuple[World, CountingKms], calendar: Calendar
) -> None:
    world, kms = counted
    for name, days in (("follows", None), ("shorter", None), ("soon", 366), ("later", 700), ("stopped", None)):
        world.vault.add_tenant(name, key=world.kms.create_key(), rotation_days=days)
    for name in ("follows", "shorter"):
        world.vault.set_rotation(name, days=700, follows_kms=True)
    keks = {name: records(world, name).kek.kms_key_arn for name in ("follows", "shorter")}
    world.kms.rotate_key(keks["follows"])
    world.kms.set_rotation_period(keks["shorter"], 90)
    world.vault.suspend("stopped")
    world.vault.deactivate("glob")
    calendar.now = START + YEAR
    before = everything(world)
    kms.asked.clear()
    would = looked(world, dry_run=True)
    assert everything(world) == before
    assert {"generate", "unwrap"}.isdisjoint(kms.asked)
    assert {name: (step, reason) for name, (step, reason, _) in would.items()} == {
        "acme": (Step.ROTATED, Reason.SCHEDULED),
        "follows": (Step.ROTATED, Reason.KMS_ROTATION),
        "glob": (Step.SKIPPED, "no active key: rotate it by hand"),
        "shorter": (Step.ROTATED, Reason.SCHEDULED),
        "soon": (Step.PREPARED, Reason.SCHEDULED),
        "stopped": (Step.SKIPPED, "suspended"),
    }
    done = looked(world)
    assert {name: found[:2] for name, found in done.items()} == {name: found[:2] for name, found in would.items()}


def test_a_refusal_to_say_the_period_is_written_down_but_not_by_a_dry_run(world: World) -> None:
    world.vault.set_rotation("acme", follows_kms=True)
    with pytest.MonkeyPatch.context() as patched:

        def refuses(_: LocalKms, key: KmsKey) -> timedelta | None:
            raise kms_error("AccessDeniedException", "GetKeyRotationStatus", key.arn)

        patched.setattr(LocalKms, "rotation_period", refuses)
        before = everything(world)
        assert [due.denied for due in world.vault.rotate_due(dry_run=True)] == [True]
        assert everything(world) == before
        assert [due.denied for due in world.vault.rotate_due()] == [True]
    last = world.vault.audit.entries("acme")[-1]
    assert (last.event, last.reason) == ("kms.refused", "GetKeyRotationStatus: AccessDeniedException")


def test_a_refusal_of_a_rotation_by_hand_is_written_down(world: World) -> None:
    world.kms.disable_key(world.keys["acme"])
    with pytest.raises(KmsDeniedError):
        world.vault.rotate("acme")
    last = world.vault.audit.entries("acme")[-1]
    assert (last.event, last.reason) == ("kms.refused", "Decrypt: DisabledException")


def test_progress_is_told_for_each_tenant_and_at_the_end(world: World, calendar: Calendar) -> None:
    calendar.now = START + YEAR
    told: list[tuple[int, int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total, active(world).version + active(world, "glob").version))

    world.vault.rotate_due(progress=progress)
    assert told == [(0, 2, 2), (1, 2, 3), (2, 2, 4)]
    told.clear()
    world.vault.rotate_due(progress=progress)
    assert told == [(0, 0, 4)]
