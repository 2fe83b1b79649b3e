"""The audit log: an entry with every change of keys, in the transaction of the change, however many write at once; and
who may write it, and who may verify it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, String, event, insert, inspect, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.audited import (
    ACTOR,
    IN_ORDER,
    assert_in_order,
    change,
    everything,
    found,
    mine,
    rows,
    uid,
    written,
)
from tests.support.calendar import Calendar
from tests.support.canary import Secrets, watched_keys
from tests.support.kms_policy import account_of
from tests.support.processes import forking
from tests.support.strict_kms import VENDOR, StrictKms
from tests.support.world import World, make_world

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import AuditError, KeyStoreError, KmsDeniedError, PiiVaultError
from pii_vault.keystore.schema import application, audit, audit_chains, audit_keys, keks, keys, tenants
from pii_vault.keystore.upgrade import MIGRATIONS, upgrade
from pii_vault.lifecycle.erasure import KeyDeletion
from pii_vault.lifecycle.parts import Reason
from pii_vault.lifecycle.schedule import Step

AUDITOR = f"arn:aws:iam::{account_of(VENDOR)}:user/auditor"


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


@pytest.fixture
def calendar() -> Calendar:
    return Calendar(step=timedelta(seconds=1))


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    return build_world(Base.metadata, actor=ACTOR, now=calendar)


# Written with every change.


@dataclass
class Deed:
    """Something that is done to a tenant's keys.

    Attributes:
        does: Do it.
        transactions: The entries of each transaction: event and reason.
        tenant: Whose log they are in.
        before: What must be so for it.
        refused: With what it fails even so.
    """

    does: Callable[[], Any]
    transactions: list[list[tuple[str, str]]]
    tenant: str = "acme"
    before: Callable[[], Any] = lambda: None
    refused: type[Exception] | None = None
    entries: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [entry for transaction in self.transactions for entry in transaction]

    def do(self) -> None:
        if self.refused is None:
            self.does()
            return
        with pytest.raises(self.refused):
            self.does()


def deeds(world: World, calendar: Calendar) -> Iterator[Deed]:
    """Everything that can be done to a tenant's keys, in an order in which it can."""
    vault, kms = world.vault, world.kms
    others = [kms.create_key() for _ in range(3)]
    step: dict[str, Any] = {}

    def later(**by: float) -> None:
        calendar.now += timedelta(**by)

    def rotate_due() -> None:
        (step["due"],) = (due for due in vault.rotate_due(ahead=timedelta(days=1)) if due.tenant == "acme")
        if step["due"].step is Step.FAILED:
            raise KeyStoreError(step["due"].reason)

    yield Deed(
        lambda: vault.add_tenant("new", key=others[0], rotation_days=3000),
        [[("tenant.added", "")], [("key.created", "initial")], [("key.activated", "initial")]],
        "new",
    )
    yield Deed(lambda: vault.rotate("acme"), [[("key.created", "forced")], [("key.activated", "forced")]])
    yield Deed(lambda: vault.set_rotation("acme", days=30), [[("tenant.changed", "")]])
    yield Deed(rotate_due, [[("key.created", "scheduled")]], before=lambda: later(days=29.5))
    assert step["due"].step is Step.PREPARED
    yield Deed(rotate_due, [[("key.activated", "scheduled")]], before=lambda: later(days=1))
    assert (step["due"].step, step["due"].version) == (Step.ROTATED, 3)
    yield Deed(lambda: vault.rewrap("acme", to=others[1], reason="moved"), [[("kek.rewrapped", "moved")]])
    yield Deed(
        lambda: vault.rewrap("acme", to=others[2], new_kek=True, reason="a leak"), [[("kek.replaced", "a leak")]]
    )
    yield Deed(lambda: vault.suspend("acme", "unpaid"), [[("tenant.suspended", "unpaid")]])
    yield Deed(lambda: vault.set_pii_encryption("acme", False, "not booked"), [[("tenant.changed", "not booked")]])
    yield Deed(lambda: vault.set_pii_encryption("acme", True, "booked"), [[("tenant.changed", "booked")]])
    yield Deed(lambda: vault.resume("acme", "paid: Zoë 📧"), [[("tenant.resumed", "paid: Zoë 📧")]])
    yield Deed(lambda: vault.compromise("acme", 1, "found on a disk"), [[("key.compromised", "found on a disk")]])
    yield Deed(
        lambda: vault.destroy_key("acme", 1, metadata=Base.metadata, engine=world.engine, reason="not needed"),
        [[("key.destroyed", "not needed")]],
        before=lambda: later(days=2),
    )
    yield Deed(rotate_due, [[("key.created", "scheduled")]], before=lambda: later(days=27.4))
    yield Deed(
        lambda: vault.rotate("acme", Reason.COMPROMISED),
        [[("key.withdrawn", "compromised"), ("key.created", "compromised")], [("key.activated", "compromised")]],
    )
    yield Deed(lambda: vault.deactivate("acme", "for now"), [[("key.deactivated", "for now")]])
    yield Deed(
        lambda: vault.rotate("acme"),
        [[("kms.refused", "Decrypt: DisabledException")]],
        before=lambda: kms.disable_key(others[2]),
        refused=KmsDeniedError,
    )
    yield Deed(
        lambda: vault.erase("acme", reason="the end", key_deletion=KeyDeletion(kms, 7)),
        [[("tenant.erased", "the end")], [("kms.deletion_scheduled", "the end")]],
    )


def test_every_change_of_keys_is_written_with_who_and_why_and_the_log_verifies_after_each(
    world: World, calendar: Calendar
) -> None:
    assert written(world) == [("tenant.added", ""), ("key.created", "initial"), ("key.activated", "initial")]
    for deed in deeds(world, calendar):
        deed.before()
        known = len(written(world, deed.tenant))
        since = calendar.now
        deed.do()
        assert written(world, deed.tenant)[known:] == deed.entries
        for entry in world.vault.audit.entries(deed.tenant, after=known):
            assert entry.actor == ACTOR
            assert since < entry.at <= calendar.now
        assert_in_order(world)
    with world.engine.connect() as connection:
        assert set(connection.scalars(select(keys.c.state))) == {"destroyed", "active"}
    assert len(written(world, "glob")) == 3


@contextmanager
def entry_refused(world: World, name: str) -> Iterator[None]:
    """Let the database fail at an entry, which is the last thing that its transaction writes."""
    condition = f'NEW.entry LIKE \'%"event":"{name}"%\''
    if world.engine.dialect.name == "sqlite":
        made = f"CREATE TRIGGER fault BEFORE INSERT ON pii_vault_audit WHEN {condition} BEGIN SELECT json('no'); END"
        ended = "DROP TRIGGER fault"
    else:
        made = f"""CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {condition} THEN RAISE 'fault'; END IF; RETURN NEW; END $$;
            CREATE TRIGGER fault BEFORE INSERT ON pii_vault_audit FOR EACH ROW EXECUTE FUNCTION fault()"""
        ended = "DROP FUNCTION fault() CASCADE"
    with world.engine.begin() as connection:
        connection.exec_driver_sql(made.replace("%", "%%"))
    yield
    with world.engine.begin() as connection:
        connection.exec_driver_sql(ended)


@contextmanager
def commit_lost(world: World, name: str) -> Iterator[None]:
    """Let the commit of a transaction fail in which an entry was written."""
    engine = world.vault._engine
    doomed: list[Any] = []

    def writing(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "INTO pii_vault_audit " in statement and f'"event":"{name}"' in str(parameters):
            doomed.append(connection.connection.dbapi_connection)

    def committing(connection: Any) -> None:
        if connection.connection.dbapi_connection in doomed:
            doomed.clear()
            raise OperationalError("COMMIT", {}, ConnectionError())

    event.listen(engine, "before_cursor_execute", writing)
    event.listen(engine, "commit", committing)
    yield
    event.remove(engine, "before_cursor_execute", writing)
    event.remove(engine, "commit", committing)


@pytest.mark.parametrize("fault", [entry_refused, commit_lost], ids=["at the entry", "at the commit"])
def test_an_error_in_the_middle_leaves_neither_the_change_nor_its_entry(
    world: World, calendar: Calendar, fault: Callable[[World, str], Any]
) -> None:
    for deed in deeds(world, calendar):
        deed.before()
        known = len(written(world, deed.tenant))

        def fails(name: str, deed: Deed = deed) -> None:
            with fault(world, name), pytest.raises(deed.refused or KeyStoreError):
                deed.does()

        for number, transaction in enumerate(deed.transactions):
            for name, _ in transaction:
                if number:
                    fails(name)  # only now are the transactions before it made
                before = everything(world)
                fails(name)
                assert everything(world) == before
            done = [entry for earlier in deed.transactions[:number] for entry in earlier]
            assert written(world, deed.tenant)[known:] == done
            if known or done:
                assert found(world, deed.tenant) == IN_ORDER
        deed.do()
        assert written(world, deed.tenant)[known:] == deed.entries
        assert found(world, deed.tenant) == IN_ORDER


def test_a_refusal_is_written_once_and_again_after_something_else(world: World, calendar: Calendar) -> None:
    refusal = ("kms.refused", "Decrypt: DisabledException")
    known = len(written(world))
    world.vault.set_rotation("acme", days=1)

    def refused() -> list[tuple[str, str]]:
        world.kms.disable_key(world.keys["acme"])
        for _ in range(3):
            with pytest.raises(KmsDeniedError):
                world.vault.rotate("acme")
        calendar.now += timedelta(days=2)
        assert [due.denied for due in world.vault.rotate_due()] == [True]
        with pytest.raises(KmsDeniedError):
            world.vault.rewrap("acme", new_kek=True, to=world.kms.create_key())
        world.kms.enable_key(world.keys["acme"])
        return written(world)[known + 1 :]

    assert refused() == [refusal]
    assert refused() == [refusal]
    world.vault.rotate("acme")
    rotated = [("key.created", "forced"), ("key.activated", "forced")]
    assert refused() == [refusal, *rotated, refusal]
    assert_in_order(world)
    assert len(written(world, "glob")) == 3


def test_a_look_that_changes_nothing_is_not_written(world: World) -> None:
    vault, before = world.vault, everything(world)
    vault.validate("acme")
    vault.rotate_due(dry_run=True)
    vault.rewrap("acme", new_kek=True, dry_run=True)
    vault.rewrap("acme")
    vault.resume("acme")
    vault.set_rotation("acme")
    vault.add_tenant("acme", key=world.keys["acme"])
    vault.audit.anchor("acme")
    assert everything(world) == before


def test_no_entry_holds_a_key_wrapped_or_not_nor_a_value(world: World, calendar: Calendar) -> None:
    secrets = Secrets("ada@example.com")
    wrapped = [(keks, "wrapped"), (keys, "encrypted_key"), (audit_keys, "wrapped")]
    wrapped += [(audit_chains, "root"), (audit_chains, "sealed_key")]
    with watched_keys(secrets):
        for deed in deeds(world, calendar):
            deed.before()
            deed.do()
            for data in (bytes(row[name]) for table, name in wrapped for row in rows(world.engine, table)):
                if data:  # a destroyed key has none
                    secrets.add(data)
            if deed.entries[0][0] in ("key.created", "key.activated"):
                with world.session() as session:
                    session.add(Note(body="ada@example.com"))
                with world.engine.begin() as connection:
                    secrets.add(bytes(connection.execute(text("SELECT body FROM notes")).scalar_one()))
                    connection.execute(text("DELETE FROM notes"))
    entries = rows(world.engine, audit)
    assert len(secrets) > 60
    assert len(entries) > 25
    for entry in entries:
        # With blanks too: as `Secrets` knows bytes that stand there as a list of numbers.
        for data in (entry["entry"].encode(), entry["entry"].replace(",", ", ").encode(), bytes(entry["mac"])):
            assert secrets.in_bytes(data) == set()


# Several at once.


CHANGES = 3


def _write(vault: Vault, number: int) -> None:
    for day in range(CHANGES):
        done = False
        while not done:
            with suppress(KeyStoreError):  # the others were faster, many times in a row
                vault.set_rotation("acme", days=100 * (number + 1) + day)
                done = True


def _write_in_a_process(url: str, kms_file: Path, number: int, together: Any) -> None:
    vault = Vault(url, kms=LocalKms(kms_file), actor=f"writer {number}")
    together.wait(60)
    _write(vault, number)
    vault.close()


def assert_one_chain(world: World, writers: list[str], known: int) -> None:
    """No gap and no fork, and everything that was asked for stands there once."""
    log = world.vault.audit.entries("acme")
    assert [entry.seq for entry in log] == list(range(1, known + CHANGES * len(writers) + 1))
    asked = sorted((entry.actor, entry.details["tenant"]["rotation_days"]) for entry in log[known:])
    assert asked == sorted((writer, 100 * (n + 1) + day) for n, writer in enumerate(writers) for day in range(CHANGES))
    assert_in_order(world)


def test_processes_that_write_at_once_leave_one_chain_without_gaps(world: World, tmp_path: Path) -> None:
    context = forking()
    together = context.Barrier(8)
    given = (world.url, tmp_path / "kms.json")
    processes = [context.Process(target=_write_in_a_process, args=(*given, n, together)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert_one_chain(world, [f"writer {number}" for number in range(8)], 3)


def test_threads_that_write_at_once_leave_one_chain_without_gaps(world: World) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> None:
        together.wait()
        _write(world.vault, number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert_one_chain(world, [ACTOR] * 8, 3)


def test_what_is_added_while_a_log_is_verified_is_no_false_alarm(world: World) -> None:
    ended, verified = threading.Event(), []

    def verify() -> None:
        while not ended.is_set():
            verified.append(world.vault.audit.verify("acme"))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(verify)
        for _ in range(6):
            world.vault.rotate("acme")
            world.vault.suspend("acme")
            world.vault.resume("acme")
        ended.set()
        reader.result()
    assert len({each.entries for each in verified}) > 1
    assert {each.problems for each in verified} == {IN_ORDER}


@pytest.mark.parametrize("statement", ["FROM pii_vault_keys", "FROM pii_vault_audit "])
def test_a_rotation_between_two_reads_of_a_verification_is_no_false_alarm(
    world: World, calendar: Calendar, statement: str
) -> None:
    other = Vault(world.url, kms=world.kms, now=calendar)
    rotated: list[Any] = []

    def reading(_connection: Any, _cursor: Any, executed: str, *_: Any) -> None:
        if not rotated and statement in executed.replace("\n", " ") + " ":
            rotated.append(other.rotate("acme"))

    event.listen(world.vault._engine, "before_cursor_execute", reading)
    assert found(world) == IN_ORDER
    assert len(rotated) == 1
    other.close()


# Tenants that are older than the log.


@pytest.fixture
def aged(database_url: str, tmp_path: Path, make_engine: Callable[..., Engine], calendar: Calendar) -> Iterator[World]:
    """A world whose tenants were registered, and rotated once, when the key store had no log yet."""
    young = make_world(f"sqlite:///{tmp_path / 'young.sqlite3'}", tmp_path, make_engine, actor="somebody", now=calendar)
    young.vault.rotate("acme")
    young.vault.close()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    command.upgrade(config, "0001")
    engine = make_engine(database_url)
    with engine.begin() as connection:
        for table in (application, tenants, keks, keys):
            known = {column["name"] for column in inspect(connection).get_columns(table.name)}
            for row in rows(young.engine, table):
                new = {"state": "pre_active"} if table is keys else {}
                connection.execute(insert(table).values({name: row[name] for name in known} | new))
        pre_active = keys.c.state == "pre_active"
        connection.execute(update(keys).where(keys.c.deactivated_at.is_not(None)).values(state="active"))
        connection.execute(update(keys).where(keys.c.deactivated_at.is_not(None)).values(state="deactivated"))
        connection.execute(update(keys).where(pre_active).values(state="active"))
    upgrade(engine)
    vault = Vault(database_url, kms=young.kms, actor=ACTOR, now=calendar)
    yield World(database_url, young.kms, young.keys, vault, engine, young.sessions)
    vault.close()


def test_a_tenant_that_is_older_than_the_log_begins_its_chain_at_its_next_change(aged: World) -> None:
    vault = aged.vault
    assert vault.audit.entries("acme") == []
    assert found(aged) == ("there is no audit log: it begins with the tenant's next change",)
    with pytest.raises(AuditError, match="no audit log"):
        vault.audit.anchor("acme")
    assert vault.rotate("acme").version == 3
    assert written(aged) == [("chain.begun", ""), ("key.created", "forced"), ("key.activated", "forced")]
    begun = vault.audit.entries("acme")[0]
    assert begun.actor == ACTOR
    assert [(key["purpose"], key["version"], key["state"]) for key in begun.details["keys"]] == [
        *(("data", 1, "deactivated"), ("data", 2, "active"), ("index", 1, "active"))
    ]
    assert [kek["generation"] for kek in begun.details["keks"]] == [1]
    assert begun.details["tenant"]["name"] == "acme"
    assert found(aged) == IN_ORDER
    assert found(aged, "glob") != IN_ORDER
    anchor = vault.audit.anchor("acme")
    vault.suspend("acme")
    assert vault.audit.verify("acme", anchor).problems == IN_ORDER
    first = (mine(keys, uid(aged)), keys.c.purpose == "data", keys.c.version == 1)
    change(aged, update(keys).where(*first).values(created_by="eve"))
    assert found(aged) == ("data key version 1: created_by is eve, the log says somebody",)


def test_the_first_thing_that_an_old_tenants_log_tells_of_may_be_a_refusal(aged: World) -> None:
    aged.kms.disable_key(aged.keys["glob"])
    for _ in range(2):
        with pytest.raises(KmsDeniedError):
            aged.vault.rotate("glob")
    assert written(aged, "glob") == [("chain.begun", ""), ("kms.refused", "Decrypt: DisabledException")]
    assert found(aged, "glob") == IN_ORDER


# Who may do what.


PURPOSE = "pii-vault:purpose"


@dataclass
class Separated:
    """An application that may write the log, and an auditor who may verify it; the customer's key and its KMS."""

    kms: StrictKms
    customer: str
    writer: Vault
    auditor: Vault


def read_only(url: str) -> str:
    if url.startswith("sqlite"):
        return url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    return f"{url}{'&' if '?' in url else '?'}options=-c%20default_transaction_read_only%3Don"


@pytest.fixture
def separated(strict_kms: StrictKms, database_url: str) -> Iterator[Separated]:
    kms, platform = strict_kms, strict_kms.create_key(account_of(VENDOR))
    kms.add_identity(AUDITOR)
    kms.allow(platform, VENDOR, actions=["kms:GenerateDataKey"], context={PURPOSE: ["audit", "audit-root"]})
    kms.allow(platform, VENDOR, actions=["kms:Decrypt"], context={PURPOSE: "audit"}, describe=False)
    kms.allow(platform, AUDITOR, actions=["kms:Decrypt"], context={PURPOSE: ["audit", "audit-root"]}, describe=False)
    writer = Vault(database_url, kms=kms.provider(attempts=1), platform_key=platform)
    auditor = Vault(read_only(database_url), kms=kms.provider(AUDITOR, attempts=1), platform_key=platform)
    writer.create_all()
    key = kms.customer_key()
    writer.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    yield Separated(kms, key.arn, writer, auditor)
    writer.close()
    auditor.close()


def test_who_may_write_the_log_need_not_be_able_to_verify_it(separated: Separated) -> None:
    with separated.kms.counting() as calls:
        assert separated.writer.rotate("acme").version == 2
    assert not [call for call in calls.calls if call.context.get(PURPOSE) == "audit-root"]
    with pytest.raises(KmsDeniedError):
        separated.writer.audit.verify("acme")
    with pytest.raises(KmsDeniedError):
        separated.writer.audit.anchor("acme")


def test_who_verifies_needs_neither_the_customers_key_nor_to_write(separated: Separated) -> None:
    separated.writer.rotate("acme")
    separated.kms.disable(separated.customer)
    with separated.kms.counting() as calls:
        anchor = separated.auditor.audit.anchor("acme")
    assert {(call.operation, call.context[PURPOSE]) for call in calls.calls} == {
        ("Decrypt", "audit"),
        ("Decrypt", "audit-root"),
    }
    assert separated.auditor.audit.verify("acme", anchor).problems == IN_ORDER
    with pytest.raises(PiiVaultError):
        separated.auditor.suspend("acme")


def test_what_a_customer_that_has_revoked_is_told_stands_in_the_log(separated: Separated) -> None:
    separated.kms.disable(separated.customer)
    for _ in range(3):
        with pytest.raises(KmsDeniedError):
            separated.writer.rotate("acme")
    separated.writer.suspend("acme", "revoked")
    separated.kms.enable(separated.customer)
    separated.writer.resume("acme")
    separated.writer.rotate("acme")
    separated.kms.disable(separated.customer)
    with pytest.raises(KmsDeniedError):
        separated.writer.rotate("acme")
    log = [(entry.event, entry.reason) for entry in separated.writer.audit.entries("acme", after=3)]
    refusal = ("kms.refused", "Decrypt: DisabledException")
    assert log[:3] == [refusal, ("tenant.suspended", "revoked"), ("tenant.resumed", "")]
    assert log[3:] == [("key.created", "forced"), ("key.activated", "forced"), refusal]
    assert separated.auditor.audit.verify("acme").problems == IN_ORDER


def test_without_our_own_kms_no_key_is_changed_and_none_is_logged(separated: Separated) -> None:
    vault = separated.writer
    fresh = Vault(vault._engine, kms=separated.kms.provider(attempts=1), platform_key=vault.platform_key)
    separated.kms.disable(vault.platform_key)
    before = len(fresh.audit.entries("acme"))
    for change_keys in (fresh.suspend, fresh.rotate, fresh.deactivate):
        with pytest.raises(KmsDeniedError):
            change_keys("acme")
    assert len(fresh.audit.entries("acme")) == before
    separated.kms.enable(vault.platform_key)
    assert separated.auditor.audit.verify("acme").problems == IN_ORDER
    assert fresh.suspend("acme")
