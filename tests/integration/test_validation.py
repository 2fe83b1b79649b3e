"""Each check that a key must pass: what makes it fail, what it says then, and what a rotation does about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, event, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import EncryptedString, LocalKms, Vault, primitives
from pii_vault.errors import KeyRecordError, KeyStateError, KeyValidationError, KmsDeniedError, KmsError
from pii_vault.keys import KeyRecord, KeyState
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import keks, keys, metadata
from pii_vault.kms import GeneratedKey, KmsKey, KmsKeyDescription
from pii_vault.kms.aws_errors import kms_error

ALL = (
    *("kms-key-exists", "kms-key-enabled", "kms-key-usage", "kms-key-owner", "kms-unwrap", "kms-wrong-context"),
    *("record-stored", "version-follows", "key-commitment", "activation-proof", "key-is-new", "canary", "kms-role"),
)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class App:
    """An application with one tenant, acme, that has written a row under version 1."""

    def __init__(self, url: str, make_engine: Callable[..., Engine], kms: Any, key: KmsKey, **options: Any) -> None:
        self.kms, self.key = kms, key
        self.vault = Vault(url, kms=kms, **options)
        self.vault.create_all()
        self.vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
        self.engine = make_engine(url)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")
        Base.metadata.create_all(self.engine)
        self.bodies: list[str] = []
        self.write()

    def write(self) -> int:
        """Write a row and return the version that sealed it."""
        self.vault.evict("acme")
        self.bodies.append(f"row {len(self.bodies) + 1}")
        with self.vault.tenant("acme"), self.sessions.begin() as session:
            session.add(Note(body=self.bodies[-1]))
        with self.engine.connect() as connection:
            header = bytes(connection.execute(text("SELECT body FROM notes ORDER BY id DESC LIMIT 1")).scalar_one())
        return int.from_bytes(header[5:7], "big")

    def read(self) -> list[str]:
        self.vault.evict("acme")
        with self.vault.tenant("acme"), self.sessions() as session:
            return list(session.scalars(select(Note.body).order_by(Note.id)))

    def records(self) -> Snapshot:
        return self.vault._parts.store.load("acme")

    def states(self) -> list[str]:
        return [str(key.state) for key in self.records().data_keys]

    def change(self, *statements: Any) -> None:
        """Write to the key store past every trigger, as somebody who owns the database can."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                for name in ("keys", "keks", "key_use"):
                    connection.execute(text(f"ALTER TABLE pii_vault_{name} DISABLE TRIGGER USER"))
            else:
                for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                    connection.execute(text(f"DROP TRIGGER {name}"))
            for statement in statements:
                connection.execute(statement)

    def uid(self) -> bytes:
        return self.records().tenant.identity.tenant_uid

    def everything(self) -> dict[str, list[Any]]:
        """All that the key store's tables hold."""
        with self.engine.connect() as connection:
            return {
                table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for table in metadata.sorted_tables
            }

    def failed(self) -> dict[str, str]:
        """The checks that fail, with what they say; validation has changed nothing."""
        before = self.everything()
        outcomes = self.vault.validate("acme")
        assert self.everything() == before
        assert tuple(outcome.check for outcome in outcomes) == ALL
        return {outcome.check: outcome.finding for outcome in outcomes if outcome.passed is False}

    def not_made(self) -> set[str]:
        return {outcome.check for outcome in self.vault.validate("acme") if outcome.passed is None}

    def wait_with_next_version(self) -> KeyRecord:
        """Begin a rotation that cannot end: version 2 waits."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(self.kms), "describe", _silent)
            with pytest.raises(KmsDeniedError):
                self.vault.rotate("acme")
        waiting = self.records().pending
        assert waiting is not None
        return waiting


def _silent(_: Any, key: KmsKey) -> KmsKeyDescription:
    raise kms_error("AccessDeniedException", "DescribeKey", key.arn)


Build = Callable[..., App]


@pytest.fixture
def strict(
    strict_kms: StrictKms,
    sqlite_url: str,
    make_engine: Callable[..., Engine],
) -> Iterator[App]:
    """The application with its customer in AWS."""
    app = App(
        sqlite_url,
        make_engine,
        strict_kms.provider(attempts=1),
        strict_kms.customer_key(),
        platform_key=strict_kms.platform_key(),
    )
    yield app
    app.vault.close()


@pytest.fixture
def build(database_url: str, tmp_path: Path, make_engine: Callable[..., Engine]) -> Iterator[Build]:
    """Make the application with a KMS in a file, of a given class."""
    made: list[App] = []

    def make(kind: type[LocalKms] = LocalKms, **options: Any) -> App:
        kms = kind(tmp_path / "kms.json")
        made.append(App(database_url, make_engine, kms, KmsKey(kms.create_key()), **options))
        return made[-1]

    yield make
    for app in made:
        app.vault.close()


def only(app: App, check: str) -> str:
    """Exactly this check fails; return what it says."""
    found = app.failed()
    assert found.keys() == {check}
    return found[check]


def refuses(app: App, *, match: str) -> pytest.ExceptionInfo[Any]:
    """A rotation fails; the present version is ACTIVE as before, and seals."""
    present = app.records().active
    assert present is not None
    with pytest.raises((KeyValidationError, KeyRecordError, KmsError), match=match) as caught:
        app.vault.rotate("acme")
    active = app.records().active
    assert active is not None
    assert (active.version, active.commitment) == (present.version, present.commitment)
    assert app.write() == present.version
    assert app.read() == app.bodies
    return caught


def test_all_checks_pass_on_a_key_in_order_and_say_so(strict: App) -> None:
    assert strict.failed() == {}
    assert all(outcome.passed and outcome.finding for outcome in strict.vault.validate("acme"))


def test_a_version_that_waits_is_checked_when_none_is_active(build: Build) -> None:
    app = build()
    app.wait_with_next_version()
    app.vault.deactivate("acme")
    findings = {outcome.check: outcome.finding for outcome in app.vault.validate("acme")}
    assert findings["activation-proof"] == "an activation of data key version 2 can be proven"
    assert app.failed() == {}


def test_nothing_is_checked_when_no_version_seals_or_waits(build: Build) -> None:
    app = build()
    app.vault.deactivate("acme")
    with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key"):
        app.vault.validate("acme")


# The customer's KMS says something that it should not.


def described(**said: str) -> FaultRule:
    return FaultRule("DescribeKey", times=None, alter=lambda answer: {"KeyMetadata": {**answer["KeyMetadata"], **said}})


_FAULTS = {
    "kms-key-exists": (
        FaultRule("DescribeKey", times=None, error="AccessDeniedException"),
        "DescribeKey with KMS key {arn} failed: AccessDeniedException",
        {"kms-key-enabled", "kms-key-usage", "kms-key-owner"},
    ),
    "kms-key-enabled": (described(KeyState="PendingDeletion"), "KMS key {arn} is PendingDeletion", set()),
    "kms-key-usage": (
        described(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256"),
        "KMS key {arn} is for SIGN_VERIFY with ECC_NIST_P256",
        set(),
    ),
}


@pytest.mark.parametrize("check", _FAULTS)
def test_what_the_kms_says_about_its_key_makes_one_check_fail_and_a_rotation_wait(
    strict: App,
    strict_kms: StrictKms,
    check: str,
) -> None:
    rule, says, not_made = _FAULTS[check]
    says = says.format(arn=strict.key.arn)
    strict_kms.script(rule)
    assert says in only(strict, check)
    assert strict.not_made() == not_made
    error = refuses(strict, match=says).value
    if isinstance(error, KeyValidationError):
        assert error.check == check
    goes_on_with_the_same_version(strict, strict_kms)


def test_a_kms_that_does_not_unwrap_fails_one_check_and_a_rotation_waits(
    strict: App,
    strict_kms: StrictKms,
) -> None:
    denied = FaultRule("Decrypt", key=strict.key.arn, error="AccessDeniedException", times=1)
    says = f"Decrypt with KMS key {strict.key.arn} failed: AccessDeniedException"
    strict_kms.script(denied)
    assert says in only(strict, "kms-unwrap")
    strict_kms.script(denied)
    assert strict.not_made() == {"key-commitment", "activation-proof", "key-is-new", "canary"}
    strict_kms.script(denied)
    refuses(strict, match=says)
    assert strict.states() == ["active"]
    strict.wait_with_next_version()
    strict_kms.script(denied)
    refuses(strict, match=says)
    goes_on_with_the_same_version(strict, strict_kms)


def goes_on_with_the_same_version(app: App, kms: StrictKms) -> None:
    waiting = app.records().data_keys[-1]
    assert app.states() == ["active", "pre_active"]
    kms.clear_script()
    assert app.vault.rotate("acme").version == 2
    assert app.states() == ["deactivated", "active"]
    assert app.records().data_keys[-1].commitment == waiting.commitment
    assert app.write() == 2
    assert app.read() == app.bodies
    assert app.vault.audit.verify("acme").problems == ()


class MovedKms(LocalKms):
    """A KMS whose keys can come to be somebody else's."""

    account = "000000000000"

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        return replace(super().describe(key), account=self.account)


class CarelessKms(LocalKms):
    """A KMS that binds nothing to the encryption context, and looks at it itself while it is `careful`."""

    careful = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._contexts: dict[bytes, Mapping[str, str]] = {}

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        generated = super().generate(key, {})
        self._contexts[generated.wrapped.blob] = dict(context)
        return generated

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        if self.careful and self._contexts[blob] != context:
            raise kms_error("InvalidCiphertextException", "Decrypt", key.arn)
        return super().unwrap(key, blob, {})


class RepeatingKms(LocalKms):
    """A KMS that, while it `repeats`, gives the bytes of the data key before once more."""

    repeats = False
    last = b""

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        generated = super().generate(key, context)
        if context["pii-vault:purpose"] != "data":
            return generated
        if self.repeats:
            return GeneratedKey(self.last, self._wrap(key, self.last, context, "GenerateDataKey"))
        self.last = generated.plaintext
        return generated


def test_a_kms_key_of_another_account_fails_one_check_and_a_rotation_waits(build: Build) -> None:
    app = build(MovedKms)
    app.kms.account = "999999999999"
    says = "belongs to account 999999999999 in local, not to 000000000000 in local"
    assert says in only(app, "kms-key-owner")
    assert refuses(app, match=says).value.check == "kms-key-owner"
    assert app.states() == ["active", "pre_active"]
    app.kms.account = "000000000000"
    assert app.vault.rotate("acme").version == 2
    assert app.states() == ["deactivated", "active"]


def test_an_address_in_another_account_is_not_asked_about(build: Build) -> None:
    app = build()
    elsewhere = app.key.arn.replace("000000000000", "999999999999")
    app.change(update(keks).values(kms_key_arn=elsewhere))
    assert "is not in account 000000000000" in app.failed()["kms-key-exists"]
    with pytest.raises(KeyRecordError, match="is not in account 000000000000"):
        app.vault.rotate("acme")
    assert app.states() == ["active"]


def test_a_kms_that_takes_any_encryption_context_fails_one_check_and_a_rotation_waits(build: Build) -> None:
    app = build(CarelessKms)
    app.kms.careful = False
    says = "unwraps tenant 'acme''s KEK under a wrong encryption context"
    assert says in only(app, "kms-wrong-context")
    assert refuses(app, match=says).value.check == "kms-wrong-context"
    assert app.states() == ["active", "pre_active"]
    app.kms.careful = True
    assert app.vault.rotate("acme").version == 2
    assert app.states() == ["deactivated", "active"]


def test_no_tenant_comes_into_use_with_a_kms_that_takes_any_encryption_context(build: Build) -> None:
    app = build(CarelessKms)
    app.kms.careful = False
    with pytest.raises(KeyValidationError, match="under a wrong encryption context"):
        app.vault.add_tenant("new", key=app.kms.create_key())
    new = app.vault._parts.store.load("new")
    assert [key.state for key in new.data_keys] == [KeyState.PRE_ACTIVE]
    app.kms.careful = True
    app.vault.rotate_due()
    new = app.vault._parts.store.load("new")
    assert [key.state for key in new.data_keys] == [KeyState.ACTIVE]


# The key store holds something that it should not.


def is_withdrawn(app: App, version: int = 2) -> None:
    """A version is destroyed without ever having been active; the next rotation makes the one after it."""
    gone = app.records().data_keys[-1]
    assert (gone.version, gone.state, gone.encrypted_key) == (version, KeyState.DESTROYED, b"")
    assert (gone.epoch, gone.activated_at) == (0, None)
    assert gone.destroyed_at is not None
    assert app.vault.audit.entries("acme")[-1].event == "key.withdrawn"


def next_one_follows(app: App, version: int = 3) -> None:
    made = app.vault.rotate("acme")
    assert (made.version, made.made) == (version, True)
    assert app.records().data_keys[-1].previous_version == version - 1
    assert app.write() == version
    assert app.read() == app.bodies


_ALTERING = {
    "postgresql": (
        "CREATE FUNCTION alters() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.created_at := date_trunc('hour', NEW.created_at); RETURN NEW; END $$",
        "CREATE TRIGGER alters BEFORE INSERT ON pii_vault_keys FOR EACH ROW EXECUTE FUNCTION alters()",
        "DROP TRIGGER alters ON pii_vault_keys",
    ),
    "sqlite": (
        "CREATE TRIGGER alters AFTER INSERT ON pii_vault_keys FOR EACH ROW BEGIN UPDATE pii_vault_keys "
        "SET iv = CAST(substr(iv, 1, 11) || 'x' AS BLOB) WHERE version = NEW.version; END",
        "DROP TRIGGER alters",
    ),
}


def test_a_database_that_changes_what_it_stores_gets_no_key_activated(build: Build) -> None:
    app = build()
    *make, unmake = _ALTERING[app.engine.dialect.name]
    with app.engine.begin() as connection:
        for statement in make:
            connection.exec_driver_sql(statement)
    says = "data key version 2 does not read from the key store as it was written"
    assert refuses(app, match=says).value.check == "record-stored"
    is_withdrawn(app)
    with app.engine.begin() as connection:
        connection.exec_driver_sql(unmake)
    next_one_follows(app)


def test_a_record_that_changes_while_it_is_checked_fails_one_check(build: Build) -> None:
    app = build()
    app.change()
    reads: list[int] = []

    @event.listens_for(app.vault._engine, "begin")
    def between_the_reads(_: Any) -> None:
        reads.append(1)
        if len(reads) == 2:
            app.change(update(keys).values(kms_key_material_id="another"))

    found = {outcome.check: outcome.finding for outcome in app.vault.validate("acme") if not outcome.passed}
    assert found.keys() == {"record-stored"}
    assert "data key version 1 does not read from the key store as it was written" in found["record-stored"]


def test_a_rotation_while_the_key_is_checked_is_no_fault(build: Build) -> None:
    app = build()
    reads: list[int] = []
    other = Vault(app.vault._engine.url, kms=app.kms)

    @event.listens_for(app.vault._engine, "begin")
    def between_the_reads(_: Any) -> None:
        reads.append(1)
        if len(reads) == 2:
            assert other.rotate("acme").version == 2

    outcomes = app.vault.validate("acme")
    other.close()
    assert [outcome for outcome in outcomes if not outcome.passed] == []


def test_a_missing_version_fails_one_check_and_the_new_version_is_withdrawn(build: Build) -> None:
    app = build()
    app.vault.rotate("acme")
    uses = text("DELETE FROM pii_vault_key_use WHERE version = 1")
    app.change(uses, keys.delete().where(keys.c.purpose == "data", keys.c.version == 1))
    app.bodies.clear()
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM notes"))
    says = "version {} does not follow the version before it"
    assert says.format(2) in only(app, "version-follows")
    assert refuses(app, match=says.format(3)).value.check == "version-follows"
    is_withdrawn(app, 3)
    assert app.states() == ["active", "destroyed"]


@pytest.mark.parametrize(
    "values", [{"iv": b"x" * 12}, {"encrypted_key": b"x" * 48}], ids=lambda values: next(iter(values))
)
def test_a_changed_record_fails_one_check_and_is_withdrawn_if_it_waits(build: Build, values: dict[str, bytes]) -> None:
    app = build()
    app.wait_with_next_version()
    original = app.records().active
    assert original is not None
    says = "data key version {} fails its authentication"
    app.change(update(keys).where(keys.c.purpose == "data", keys.c.version == 1).values(**values))
    assert says.format(1) in only(app, "key-commitment")
    assert app.not_made() == {"key-is-new", "canary"}
    app.change(
        update(keys)
        .where(keys.c.purpose == "data", keys.c.version == 1)
        .values(iv=original.iv, encrypted_key=original.encrypted_key),
        update(keys).where(keys.c.purpose == "data", keys.c.version == 2).values(**values),
    )
    with pytest.raises(KeyRecordError, match=says.format(2)):
        app.vault.rotate("acme")
    is_withdrawn(app)
    assert app.write() == 1
    next_one_follows(app)


@pytest.mark.parametrize("values", [{"activation_mac": b"x" * 32}, {"epoch": 2}], ids=lambda values: next(iter(values)))
def test_an_active_version_without_proof_fails_one_check(build: Build, values: dict[str, Any]) -> None:
    app = build()
    app.change(update(keys).values(**values))
    assert "data key version 1 claims to be active without proof" in only(app, "activation-proof")


def test_an_older_version_that_was_put_back_fails_one_check(build: Build) -> None:
    app = build()
    app.vault.rotate("acme")
    app.change(
        update(keys).where(keys.c.purpose == "data", keys.c.version == 2).values(state="deactivated"),
        update(keys).where(keys.c.purpose == "data", keys.c.version == 1).values(state="active"),
    )
    assert "a later data key than version 1 was active before" in only(app, "activation-proof")


def test_a_kms_that_gives_the_same_bytes_twice_fails_one_check_and_the_version_is_withdrawn(build: Build) -> None:
    app = build(RepeatingKms)
    app.kms.repeats = True
    says = "data key version {} is the same key as version 1"
    assert refuses(app, match=says.format(2)).value.check == "key-is-new"
    is_withdrawn(app)
    app.wait_with_next_version()
    app.vault.deactivate("acme")
    assert says.format(3) in only(app, "key-is-new")
    app.kms.repeats = False
    with pytest.raises(KeyValidationError, match=says.format(3)):
        app.vault.rotate("acme")
    is_withdrawn(app, 3)
    next_one_follows(app, 4)


def test_a_destroyed_version_cannot_be_compared_and_is_left_out(build: Build) -> None:
    app = build()
    app.vault.rotate("acme")
    app.change(
        update(keys).where(keys.c.purpose == "data", keys.c.version == 1).values(state="destroyed", encrypted_key=b"")
    )
    assert app.failed() == {}
    assert app.vault.rotate("acme").version == 3


# The cipher does something that it should not.


def broken(plaintext: Callable[[bytes], bytes], aad: Callable[[bytes], bytes], *, seals: bool = True) -> Any:
    """A library whose cipher does something else with values, but not with keys, which have 32 bytes."""
    genuine = primitives.sealer

    def sealer(key: bytes) -> primitives.Cipher:
        def encrypt(iv: bytes, data: bytes, bound: bytes) -> bytes:
            if len(data) == primitives.KEY_BYTES:
                return genuine(key)(iv, data, bound)
            return genuine(key)(iv, plaintext(data), aad(bound)) if seals else data + bytes(primitives.TAG_BYTES)

        return encrypt

    return sealer


@pytest.mark.parametrize(
    "sealer",
    [
        broken(lambda data: data[::-1], lambda aad: aad),
        broken(lambda data: data, lambda aad: b""),
        broken(lambda data: data, lambda aad: aad, seals=False),
    ],
    ids=["garbles", "forgets what it binds", "lets the value be seen"],
)
def test_a_key_that_does_not_open_what_it_seals_fails_one_check_and_is_withdrawn(
    build: Build, monkeypatch: pytest.MonkeyPatch, sealer: Any
) -> None:
    app = build()
    with monkeypatch.context() as patched:
        patched.setattr(primitives, "sealer", sealer)
        assert "data key version 1 does not open what it sealed" in only(app, "canary")
        with pytest.raises(KeyValidationError, match="data key version 2 does not open what it sealed") as caught:
            app.vault.rotate("acme")
    assert caught.value.check == "canary"
    is_withdrawn(app)
    assert app.write() == 1
    next_one_follows(app)


def test_the_canary_is_not_looked_for_in_what_opens_only(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cipher that opens what it never sealed is caught by what it shows, not by what it gives back."""
    app = build()
    with monkeypatch.context() as patched:
        patched.setattr(primitives, "sealer", broken(bytes, bytes, seals=False))
        genuine, tag = primitives.opener, bytes(primitives.TAG_BYTES)

        def opener(key: bytes) -> primitives.Cipher:
            opened = genuine(key)
            return lambda iv, data, aad: data.removesuffix(tag) if data.endswith(tag) else opened(iv, data, aad)

        patched.setattr(primitives, "opener", opener)
        assert "data key version 1 does not open what it sealed" in only(app, "canary")


# Whose fault it is.


@pytest.mark.parametrize(
    "values", [{"commitment": b"x" * 32}, {"kms_key_arn": "elsewhere"}], ids=lambda values: next(iter(values))
)
def test_a_version_that_waits_is_not_withdrawn_for_a_fault_of_the_kek(build: Build, values: dict[str, Any]) -> None:
    app = build()
    waiting = app.wait_with_next_version()
    kek = app.records().kek
    app.change(update(keks).values(**values))
    with pytest.raises(KeyRecordError):
        app.vault.rotate("acme")
    assert app.states() == ["active", "pre_active"]
    app.change(update(keks).values(commitment=kek.commitment, kms_key_arn=kek.kms_key_arn))
    assert app.vault.rotate("acme").version == 2
    assert app.records().data_keys[-1].commitment == waiting.commitment
    assert app.read() == app.bodies
