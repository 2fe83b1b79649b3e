"""Re-wrap: a tenant's key-encryption key comes under another KMS key, and no row and no value notices.

Customers in AWS, over HTTP and on PostgreSQL; what does not need AWS on a local KMS, with SQLite and with PostgreSQL.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Row, String, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.kms_http import Call
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import RUNTIME_ACTIONS, VENDOR, FaultRule, StrictKms

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.context import kms_context
from pii_vault.errors import (
    KeyRecordError,
    KeyValidationError,
    KmsConfigurationError,
    KmsDeniedError,
    PiiVaultError,
)
from pii_vault.hierarchy import Kek
from pii_vault.keys import KEK_PURPOSE, KeyState, Secret
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import keks, policies
from pii_vault.keystore.schema import metadata as key_store_tables
from pii_vault.kms import KmsKey, KmsLifecycle
from pii_vault.lifecycle.rewrap import Rewrap, Way

OURS, THEIRS = "111122223333", "444455556666"
RE_ENCRYPTED = ["DescribeKey", "ReEncrypt", "ReEncrypt"]
NEW_KEK = ["DescribeKey", "Decrypt", "GenerateDataKey", "Decrypt"]


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())


@dataclass
class Application:
    """One process of the application: its vault, and what it has in memory."""

    kms: Any
    vault: Vault
    engine: Engine
    sessions: sessionmaker[Session]
    restarted: Callable[..., "Application"]

    def write(self, email: str, tenant: str = "acme") -> None:
        with self.vault.tenant(tenant), self.sessions.begin() as session:
            session.add(Person(email=email))

    def read(self, tenant: str = "acme") -> list[str]:
        with self.vault.tenant(tenant), self.sessions() as session:
            return list(session.scalars(select(Person.email).where(Person.tenant_id == tenant).order_by(Person.id)))

    def rows(self) -> list[Row[Any]]:
        """The rows as stored; on PostgreSQL with the place of each, and the transaction that wrote it."""
        place = "xmin, ctid, " if self.engine.dialect.name == "postgresql" else ""
        with self.engine.connect() as connection:
            return list(connection.execute(text(f"SELECT {place}people.* FROM people ORDER BY id")))

    def key_store(self) -> dict[str, list[Row[Any]]]:
        tables = key_store_tables.sorted_tables
        with self.engine.connect() as connection:
            return {one.name: list(connection.execute(select(one).order_by(*one.columns))) for one in tables}

    def records(self, tenant: str = "acme") -> Snapshot:
        return self.vault._store.load(tenant)

    def events(self, tenant: str = "acme") -> list[tuple[str, str]]:
        return [(entry.event, entry.reason) for entry in self.vault.audit.entries(tenant)]

    def check(self, tenant: str = "acme") -> None:
        """See that the tenant has one KEK, that it wraps every living key, and that the audit log says the same."""
        records = self.records(tenant)
        mine = keks.c.tenant_uid == records.tenant.identity.tenant_uid
        with self.engine.connect() as connection:
            found = connection.execute(select(keks.c.state, keks.c.wrapped).where(mine).order_by(keks.c.generation))
            *gone, (state, wrapped) = found.all()
        assert (state, bytes(wrapped)) == ("active", records.kek.wrapped)
        assert {(state, bytes(wrapped)) for state, wrapped in gone} <= {("destroyed", b"")}
        living = [key for key in records.keys if key.state is not KeyState.DESTROYED]
        assert {key.kek_generation for key in living} == {records.kek.generation}
        assert self.vault.audit.verify(tenant).problems == ()
        assert [outcome for outcome in self.vault.validate(tenant) if not outcome.passed] == []


@pytest.fixture
def start(make_engine: Callable[..., Engine]) -> Iterator[Callable[..., Application]]:
    with ExitStack() as stack:

        def start(url: str, kms: Any, provider: KmsLifecycle, **options: Any) -> Application:
            vault = Vault(url, kms=provider, **options)
            stack.callback(vault.close)
            engine = make_engine(url, connect_args={"timeout": 30} if url.startswith("sqlite") else {})
            sessions = sessionmaker(engine)
            vault.attach(engine, sessions, tenant_column="tenant_id")
            vault.create_all()
            Base.metadata.create_all(engine)

            def again(**more: Any) -> Application:
                return start(url, kms, provider, **options | more)

            return Application(kms, vault, engine, sessions, again)

        yield start


@pytest.fixture
def aws(strict_kms: StrictKms, postgres_url: str, start: Callable[..., Application]) -> Application:
    # Each request is made once, since they are counted; a machine that stands still for a moment is no outage here.
    provider = strict_kms.provider(attempts=1, connect_timeout=20, read_timeout=20)
    return start(postgres_url, strict_kms, provider, platform_key=strict_kms.platform_key())


@pytest.fixture
def local(database_url: str, tmp_path: Path, start: Callable[..., Application]) -> Application:
    kms = LocalKms(tmp_path / "kms.json")
    return start(database_url, kms, kms)


def customer(kms: StrictKms, account: str = OURS, region: str = "eu-west-1") -> KmsKey:
    """A KMS key with a role that may use keys of other accounts too, as far as they let it."""
    external_id = f"for-{account}"
    return kms.customer_key(account=account, region=region, external_id=external_id, identity_policy=ALLOW_EVERYTHING)


def lets_in(kms: StrictKms, destination: KmsKey, source: KmsKey) -> None:
    """Let whoever uses one key encrypt under the other, and no more."""
    kms.allow(destination.arn, source.role_arn or VENDOR, actions=["kms:ReEncryptTo"], describe=False)


def join(application: Application, key: KmsKey, tenant: str = "acme", **options: Any) -> KmsKey:
    vault = application.vault
    vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id, **options)
    return key


def move(application: Application, key: KmsKey, tenant: str = "acme", **options: Any) -> Rewrap:
    return application.vault.rewrap(tenant, to=key.arn, role_arn=key.role_arn, external_id=key.external_id, **options)


def role_of(key: KmsKey) -> str:
    assert key.role_arn is not None
    return key.role_arn


def asked(calls: list[Call]) -> list[str]:
    """What the KMS was asked; roles are assumed now and then."""
    return [call.operation for call in calls if call.operation != "AssumeRole"]


def is_by(call: Call, key: KmsKey) -> bool:
    """Tell whether a request was signed by the one who is to use a key."""
    if key.role_arn is None:
        return call.principal == VENDOR
    return f":assumed-role/{key.role_arn.rpartition('/')[2]}/" in call.principal


def test_after_the_kms_key_was_rotated_the_kek_comes_under_its_newer_material_inside_the_kms(aws: Application) -> None:
    key = join(aws, customer(aws.kms))
    for number in range(3):
        aws.write(f"{number}@example.com")
    before, rows = aws.records(), aws.rows()
    aws.kms.rotate(key.arn)
    with aws.kms.counting() as calls:
        done = aws.vault.rewrap("acme", reason="yearly")
    # Nothing that answers with a plaintext key was asked for.
    assert [call.operation for call in calls.calls] == RE_ENCRYPTED
    after = aws.records()
    context = kms_context(after.tenant.identity, KEK_PURPOSE, after.kek.generation)
    for call, blob in zip(calls.calls[1:], (before.kek.wrapped, after.kek.wrapped), strict=True):
        assert (call.parameters["SourceKeyId"], call.parameters["DestinationKeyId"]) == (key.arn, key.arn)
        assert call.parameters["SourceEncryptionContext"] == call.parameters["DestinationEncryptionContext"] == context
        assert base64.b64decode(call.parameters["CiphertextBlob"]) == blob
    assert (done.way, done.generation, done.kms_key_arn) == (Way.RE_ENCRYPTED, 1, key.arn)
    assert after.kek.kms_key_material_id == done.kms_key_material_id != before.kek.kms_key_material_id
    assert after.kek.commitment == before.kek.commitment
    assert after.keys == before.keys
    assert aws.rows() == rows
    assert aws.events()[-1] == ("kek.rewrapped", "yearly")
    materials: list[str] = []
    aws.kms.script(FaultRule("Decrypt", alter=lambda answer: materials.append(answer["KeyMaterialId"]) or answer))
    assert aws.restarted().read() == ["0@example.com", "1@example.com", "2@example.com"]
    assert materials == [done.kms_key_material_id]
    aws.check()


def test_what_lies_under_the_present_material_is_left_as_it_is(aws: Application) -> None:
    key = join(aws, customer(aws.kms))
    aws.kms.rotate(key.arn)
    assert aws.vault.rewrap("acme").way is Way.RE_ENCRYPTED
    key_store = aws.key_store()
    with aws.kms.counting() as calls:
        done = aws.vault.rewrap("acme")
    assert (done.way, [call.operation for call in calls.calls]) == (Way.UNCHANGED, ["DescribeKey"])
    assert aws.key_store() == key_store


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
@pytest.mark.parametrize("to", ["the same account", "another account", "from the platform's key"])
def test_a_tenant_moves_to_another_kms_key_and_back(aws: Application, to: str, new_kek: bool) -> None:
    away = customer(aws.kms, THEIRS if to == "another account" else OURS)
    home = KmsKey(aws.kms.platform_key()) if to == "from the platform's key" else customer(aws.kms)
    join(aws, home)
    if not new_kek:
        lets_in(aws.kms, away, home)
        lets_in(aws.kms, home, away)
    written = ["before@example.com"]
    aws.write(*written)
    for source, destination in ((home, away), (away, home)):
        rows = aws.rows()
        with aws.kms.counting() as calls:
            done = move(aws, destination, new_kek=new_kek)
        crypto = [call for call in calls.calls if call.operation != "AssumeRole"]
        assert asked(calls.calls) == (NEW_KEK if new_kek else RE_ENCRYPTED)
        users = (destination, source, *([destination] * (len(crypto) - 2)))
        assert all(is_by(call, user) for call, user in zip(crypto, users, strict=True))
        assert (done.previous_arn, done.kms_key_arn) == (source.arn, destination.arn)
        assert aws.rows() == rows
        aws.check()
        # Other processes notice nothing, and neither does one that begins now: the old KMS key is not needed any more.
        aws.kms.disable(source.arn)
        for process in (aws, aws.restarted()):
            written.append(f"{len(written)}@example.com")
            process.write(written[-1])
            assert process.read() == written
        aws.kms.disable(destination.arn)
        with pytest.raises(KmsDeniedError, match="DisabledException"):
            aws.restarted().read()
        aws.kms.enable(source.arn)
        aws.kms.enable(destination.arn)
    assert aws.restarted().read() == written


def test_a_new_kek_can_lie_in_another_region_and_the_policy_expects_it_there(aws: Application) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS, "us-east-1")
    aws.write("ada@example.com")
    for key, expected in ((away, (THEIRS, "us-east-1")), (home, (OURS, "eu-west-1"))):
        move(aws, key, new_kek=True)
        with aws.engine.connect() as connection:
            assert connection.execute(select(policies.c.kms_account, policies.c.kms_region)).one() == expected
        assert aws.restarted().read() == ["ada@example.com"]
        aws.check()


def test_a_record_that_is_pointed_at_another_accounts_key_after_a_re_wrap_is_refused_before_any_call(
    aws: Application,
) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    aws.write("ada@example.com")
    before = aws.records().kek
    move(aws, away)
    # What somebody does who can write to the key store: the record as it was, which its KMS key would still open.
    columns = ("kms_key_arn", "role_arn", "external_id", "wrapped")
    with aws.engine.begin() as connection:
        connection.execute(update(keks).values({name: getattr(before, name) for name in columns}))
    process = aws.restarted()
    uses: list[Callable[[], object]] = [
        process.read,
        lambda: process.vault.rewrap("acme"),
        lambda: move(process, away, new_kek=True),
        lambda: move(process, away, dry_run=True),
        lambda: process.vault.rotate("acme"),
    ]
    for use in uses:
        with aws.kms.counting() as calls, pytest.raises(KeyRecordError, match=f"not in account {THEIRS}"):
            use()
        assert calls.count() == 0


def test_a_new_kek_wraps_every_living_key_and_the_old_one_opens_nothing_any_more(local: Application) -> None:
    now = [datetime.now(UTC)]
    process = local.restarted(now=lambda: now[0], ttl=0)
    vault = process.vault
    join(process, KmsKey(local.kms.create_key()))
    for _ in range(3):
        vault.rotate("acme")
        process.write("of a version that lives")
    now[0] += timedelta(days=2)
    vault.destroy_key("acme", 1, metadata=Base.metadata, engine=process.engine)
    with process.engine.begin() as connection:
        connection.execute(text("DELETE FROM people WHERE id = 1"))
    vault.compromise("acme", 2)
    vault.rotate_due(ahead=timedelta(days=400))
    before, rows = process.records(), process.rows()
    living = {2: "compromised", 3: "deactivated", 4: "active", 5: "pre_active"}
    assert {key.version: str(key.state) for key in before.data_keys} == {1: "destroyed", **living}
    identity, old_kek = before.tenant.identity, vault._keyring.unwrap_kek(before.tenant, before.kek)
    context = kms_context(identity, KEK_PURPOSE, 1)
    stolen = Secret(local.kms.unwrap(KmsKey(before.kek.kms_key_arn), before.kek.wrapped, context))

    done = vault.rewrap("acme", to=local.kms.create_key(), new_kek=True, reason="leak")

    assert (done.way, done.generation) == (Way.NEW_KEK, 2)
    after = process.records()
    new_kek = vault._keyring.unwrap_kek(after.tenant, after.kek)
    assert new_kek.commitment != old_kek.commitment
    assert after.keys[0] == before.keys[0]
    for was, now_is in zip(before.keys[1:], after.keys[1:], strict=True):
        assert new_kek.unwrap(now_is).reveal() == old_kek.unwrap(was).reveal()
        changed = {"kek_generation": 2, "iv": now_is.iv, "encrypted_key": now_is.encrypted_key}
        assert now_is == replace(was, **changed, activation_mac=now_is.activation_mac)
        assert now_is.iv != was.iv
        for generation in (1, 2):
            with pytest.raises(KeyRecordError):
                Kek(identity, generation, stolen).unwrap(replace(now_is, kek_generation=generation))
    active, ended = after.keys[3], (after.keys[1], after.keys[2], after.keys[4])
    new_kek.check_activation(active)
    for generation in (1, 2):
        with pytest.raises(KeyRecordError):
            Kek(identity, generation, stolen).check_activation(active)
    assert before.keys[2].activation_mac
    assert [key.activation_mac for key in ended] == [b""] * 3
    with process.engine.connect() as connection:
        assert connection.scalars(select(keks.c.wrapped).where(keks.c.generation == 1)).one() == b""
    assert process.rows() == rows
    process.check()
    assert process.events()[-1] == ("kek.replaced", "leak")
    assert process.restarted().read() == ["of a version that lives"] * 2
    assert vault.rotate("acme").version == 5
    process.write("sealed with the one that waited")
    assert len(process.restarted().read()) == 3


def test_a_suspended_tenant_is_re_wrapped_and_stays_suspended(local: Application) -> None:
    join(local, KmsKey(local.kms.create_key()))
    local.write("ada@example.com")
    local.vault.suspend("acme")
    local.vault.rewrap("acme", to=local.kms.create_key())
    local.vault.rewrap("acme", new_kek=True)
    assert local.records().tenant.suspended
    local.vault.resume("acme")
    assert local.restarted().read() == ["ada@example.com"]


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
def test_the_report_says_which_promise_holds(local: Application, new_kek: bool) -> None:
    way = Way.NEW_KEK if new_kek else Way.RE_ENCRYPTED
    promise = "The key-encryption key is new" if new_kek else "The same key-encryption key is wrapped anew"
    platform = "The old KMS key is the platform's and lives on for other tenants"
    own, other = local.kms.create_key(), local.kms.create_key()
    local.vault.add_tenant("acme")
    steps = [(own, True), (other, False), (local.vault.platform_key, False)]
    for key, leaves_platform in steps:
        for dry_run in (True, False):
            done = local.vault.rewrap("acme", to=key, new_kek=new_kek, dry_run=dry_run)
            assert (done.way, done.promise.startswith(promise)) == (way, True)
            assert "with the old KMS key until that is deleted" in done.promise
            assert (platform in done.promise) is leaves_platform
    local.kms.rotate_key(local.vault.platform_key)
    done = local.vault.rewrap("acme", new_kek=new_kek)
    assert (done.way, done.promise.startswith(promise), platform in done.promise) == (way, True, False)
    assert "as before, with the KMS key, which is the same" in done.promise
    done = local.vault.rewrap("acme")
    assert (done.way, done.promise[:23]) == (Way.UNCHANGED, "Nothing was to be done:")


def signing_key(kms: StrictKms) -> KmsKey:
    """A key of another kind, with the policy and the role of one that could be used."""
    role, admin = role_of(customer(kms, THEIRS)), f"arn:aws:iam::{THEIRS}:user/admin"
    kms.add_identity(admin, ALLOW_EVERYTHING)
    client = kms.session(admin).client("kms", endpoint_url=kms.endpoint_url)
    made = client.create_key(KeyUsage="GENERATE_VERIFY_MAC", KeySpec="HMAC_256")["KeyMetadata"]["Arn"]
    kms.allow(made, role)
    return KmsKey(made, role, f"for-{THEIRS}")


def with_policy(kms: StrictKms, *actions: str, describe: bool = True) -> KmsKey:
    """A key whose role may do no more than this."""
    key = customer(kms, THEIRS)
    kms.put_key_policy(key.arn, {"Statement": []})
    kms.allow(key.arn, role_of(key), actions=actions, describe=describe)
    return key


def changed(kms: StrictKms, change: Callable[[str], object], *, when: str | None = None) -> KmsKey:
    """A key that its owner changes before it is looked at, or as soon as it was."""
    key = customer(kms, THEIRS)
    if when is None:
        change(key.arn)
    else:
        kms.script(FaultRule(when, key=key.arn, alter=lambda answer: change(key.arn) or answer))
    return key


@dataclass
class Refusal:
    """A KMS key that a tenant cannot come under, and what is said about it."""

    key: Callable[[StrictKms], KmsKey]
    error: type[PiiVaultError]
    says: str
    logged: str = ""
    lets_in: bool = True


REFUSALS = {
    "does not let the old key's role in": Refusal(
        lambda kms: customer(kms, THEIRS),
        KmsDeniedError,
        "kms:ReEncryptTo",
        "ReEncrypt: AccessDeniedException",
        lets_in=False,
    ),
    "may not be opened by its own role": Refusal(
        lambda kms: with_policy(kms, "kms:GenerateDataKey", "kms:Decrypt", "kms:ReEncryptTo"),
        KmsDeniedError,
        "kms:ReEncryptFrom",
        "ReEncrypt: AccessDeniedException",
    ),
    "may not be looked at": Refusal(
        lambda kms: with_policy(kms, *RUNTIME_ACTIONS, describe=False),
        KmsDeniedError,
        "kms:DescribeKey",
        "DescribeKey: AccessDeniedException",
    ),
    "has a role that does not let us in": Refusal(
        lambda kms: replace(customer(kms, THEIRS), external_id="mistyped"),
        KmsDeniedError,
        "trust policy or ExternalId",
        "DescribeKey: AccessDenied",
    ),
    "is disabled": Refusal(lambda kms: changed(kms, kms.disable), KeyValidationError, "Disabled"),
    "is disabled a moment later": Refusal(
        lambda kms: changed(kms, kms.disable, when="DescribeKey"),
        KmsDeniedError,
        "DisabledException",
        "ReEncrypt: DisabledException",
    ),
    "is to be deleted": Refusal(lambda kms: changed(kms, kms.schedule_deletion), KeyValidationError, "PendingDeletion"),
    "is of another kind": Refusal(signing_key, KeyValidationError, "GENERATE_VERIFY_MAC"),
    "is in another region": Refusal(
        lambda kms: customer(kms, THEIRS, "us-east-1"), KmsConfigurationError, "different regions"
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_the_old_wrapping_stays_when_the_new_kms_key(aws: Application, refusal: Refusal) -> None:
    home = join(aws, customer(aws.kms))
    aws.write("ada@example.com")
    destination = refusal.key(aws.kms)
    if refusal.lets_in:
        lets_in(aws.kms, destination, home)
    records, events = aws.records(), aws.events()
    with pytest.raises(refusal.error) as caught:
        move(aws, destination)
    after = aws.records()
    assert (after.tenant, after.kek, after.keys) == (records.tenant, records.kek, records.keys)
    assert aws.events() == events + ([("kms.refused", refusal.logged)] if refusal.logged else [])
    aws.check()
    process = aws.restarted()
    process.write("bob@example.com")
    assert process.read() == ["ada@example.com", "bob@example.com"]
    # Which key it is about, what is missing, and what to do.
    assert destination.arn in str(caught.value)
    assert refusal.says in str(caught.value)
    assert caught.value.hint


def test_a_role_that_may_do_no_more_than_seal_and_open_goes_on_and_a_re_wrap_says_what_it_lacks(
    aws: Application,
) -> None:
    key = with_policy(aws.kms, "kms:GenerateDataKey", "kms:Decrypt")
    join(aws, key)
    aws.kms.rotate(key.arn)
    for missing in ("kms:ReEncryptFrom", "kms:ReEncryptTo"):
        with pytest.raises(KmsDeniedError, match=missing) as caught:
            aws.vault.rewrap("acme")
        assert key.arn in str(caught.value)
        aws.kms.allow(key.arn, role_of(key), actions=[missing], describe=False)
        process = aws.restarted()
        process.write("ada@example.com")
        assert set(process.read()) == {"ada@example.com"}
        aws.vault.rotate("acme")
        aws.check()
    assert aws.vault.rewrap("acme").way is Way.RE_ENCRYPTED


def test_a_refusal_that_goes_on_is_written_down_once(aws: Application) -> None:
    join(aws, customer(aws.kms))
    for _ in range(2):
        with pytest.raises(KmsDeniedError):
            move(aws, customer(aws.kms, THEIRS))
    assert [event for event, _ in aws.events()].count("kms.refused") == 1


WRONG_BLOBS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "noise": lambda old, new: bytes(len(new)),
    "nothing but the key's name": lambda old, new: new[:36],
    "the right one with one bit changed": lambda old, new: new[:-1] + bytes([new[-1] ^ 1]),
    "what was sent": lambda old, new: old,
}


@pytest.mark.parametrize("answer", WRONG_BLOBS.values(), ids=WRONG_BLOBS)
def test_a_new_wrapping_that_does_not_open_is_never_stored(
    aws: Application, answer: Callable[[bytes, bytes], bytes]
) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    aws.write("ada@example.com")
    old, key_store = aws.records().kek.wrapped, aws.key_store()

    def alter(answered: dict[str, Any]) -> dict[str, Any]:
        blob = answer(old, base64.b64decode(answered["CiphertextBlob"]))
        return {**answered, "CiphertextBlob": base64.b64encode(blob).decode()}

    aws.kms.script(FaultRule("ReEncrypt", key=home.arn, alter=alter))
    with pytest.raises(KeyValidationError, match=away.arn):
        move(aws, away)
    assert aws.key_store() == key_store
    assert aws.restarted().read() == ["ada@example.com"]
    assert move(aws, away).way is Way.RE_ENCRYPTED
    assert aws.restarted().read() == ["ada@example.com"]


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
def test_a_dry_run_changes_nothing_and_says_what_would_be(aws: Application, new_kek: bool) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    key_store = aws.key_store()
    with aws.kms.counting() as calls:
        planned = move(aws, away, new_kek=new_kek, dry_run=True)
    assert "GenerateDataKey" not in asked(calls.calls)
    assert all(call.outcome != "ok" for call in calls.matching("Decrypt"))
    assert aws.key_store() == key_store
    done = move(aws, away, new_kek=new_kek)
    assert replace(planned, generation=done.generation) == done


@pytest.mark.parametrize(
    ("new_kek", "lacking"),
    [
        (False, RUNTIME_ACTIONS),
        (False, {"kms:ReEncryptFrom"}),
        (True, RUNTIME_ACTIONS),
        (True, {"kms:Decrypt"}),
    ],
    ids=["re-encrypted, all", "re-encrypted, ReEncryptFrom", "new kek, all", "new kek, Decrypt"],
)
def test_a_dry_run_fails_where_the_old_kms_key_does_not_permit_the_real_one(
    aws: Application, new_kek: bool, lacking: set[str]
) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    aws.kms.put_key_policy(home.arn, {"Statement": []})
    aws.kms.allow(home.arn, role_of(home), actions=[action for action in RUNTIME_ACTIONS if action not in lacking])
    key_store = aws.key_store()
    with pytest.raises(KmsDeniedError):
        move(aws, away, new_kek=new_kek, dry_run=True)
    assert aws.key_store() == key_store
    with pytest.raises(KmsDeniedError):
        move(aws, away, new_kek=new_kek)
    assert aws.events()[-1][0] == "kms.refused"
