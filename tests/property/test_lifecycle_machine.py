"""The life of one tenant's keys in any order, with crashes at any point: no value is lost, no key comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import String, create_engine, delete, event, func, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.calendar import DAY, START
from tests.support.postgres import PostgresServer

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import (
    KeyNotFoundError,
    KeyStateError,
    KeyValidationError,
    KmsDeniedError,
    PiiVaultError,
    TenantErasedError,
    TenantSuspendedError,
)
from pii_vault.keys import KeyRecord, KeyState
from pii_vault.keystore import Snapshot
from pii_vault.keystore.schema import keks
from pii_vault.kms import KmsKey
from pii_vault.lifecycle.parts import Reason
from pii_vault.lifecycle.rewrap import Way
from pii_vault.lifecycle.schedule import Step
from pii_vault.sealing import Keyset

FORWARD = list(KeyState)
"""The states in their order: a key only moves to the right."""

OPENS = {KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED}

Result = TypeVar("Result")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class Crash(BaseException):
    """The process ends here."""


class Fuse:
    """Crashes when it has burnt so many times; 0 never does."""

    left = 0

    def burn(self, *_: object) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Crash


class FragileKms:
    """A KMS before and after each of whose answers the process can crash."""

    def __init__(self, kms: LocalKms, fuse: Fuse) -> None:
        self._kms, self._fuse = kms, fuse

    def __getattr__(self, name: str) -> Callable[..., Any]:
        asked = getattr(self._kms, name)

        def answer(*arguments: Any) -> Any:
            self._fuse.burn()
            answered = asked(*arguments)
            self._fuse.burn()
            return answered

        return answer


@dataclass
class Ground:
    """Fresh databases, each with a key store, a table of notes and a tenant that nothing is done to."""

    folder: Path
    fresh: Callable[[], str]
    drop: Callable[[str], None]


@dataclass(frozen=True)
class Row:
    id: int
    body: str
    version: int


class LifeOfKeys(RuleBasedStateMachine):
    """What is done to the tenant acme, and what must hold after each of it."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.ground = ground
        self.url = ground.fresh()
        self.kms_file = ground.folder / "kms.json"
        shutil.copy(ground.folder / "template.json", self.kms_file)
        self.kms = LocalKms(self.kms_file)
        self.fuse = Fuse()
        self.now = START
        self.rows: list[Row] = []
        self.written = 0
        self.own_keys = [self.kms.create_key()]
        self.asked_for: dict[KeyState, set[int]] = {KeyState.COMPROMISED: set(), KeyState.DESTROYED: set()}
        self.may_be_out_of_use = True
        self.known: dict[int, KeyRecord] = {}
        self.lain: set[str] = set()
        self.end = 0
        self.open()

    # A process and its end.

    def open(self) -> None:
        self.vault = Vault(self.url, kms=FragileKms(self.kms, self.fuse), ttl=0, now=lambda: self.now)
        for moment in ("begin", "commit"):
            event.listen(self.vault._engine, moment, self.fuse.burn)
        self.engine = create_engine(self.url)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")

    def close(self) -> None:
        self.vault.close()
        self.engine.dispose()

    def attempt(
        self, call: Callable[[], Result], crash: int = 0, refused: type[PiiVaultError] | None = None
    ) -> Result | None:
        """Do something; it succeeds, or is refused as it should be, or the process crashes and another one starts."""
        self.now += timedelta(seconds=1)
        self.fuse.left = crash
        result: Result | None = None
        error: PiiVaultError | None = None
        try:
            result = call()
        except Crash:
            self.fuse.left = 0
            self.close()
            self.open()
            return None
        except PiiVaultError as caught:
            error = caught
        self.fuse.left = 0
        assert (type(error) if error is not None else None) is refused, error or result
        assert error is None or "'acme'" in str(error) or self.arn in str(error)
        return result

    # What is there.

    def load(self) -> Snapshot:
        return self.vault._parts.store.load("acme")

    @property
    def arn(self) -> str:
        return self.load().kek.kms_key_arn

    def is_disabled(self, arn: str) -> bool:
        return self.kms.describe(KmsKey(arn)).state == "Disabled"

    @property
    def closed(self) -> type[PiiVaultError] | None:
        """Why nothing opens or seals."""
        snapshot = self.load()
        if snapshot.tenant.suspended:
            return TenantSuspendedError
        return KmsDeniedError if self.is_disabled(snapshot.kek.kms_key_arn) else None

    def chosen(self, pick: int) -> KeyRecord:
        keys = self.load().data_keys
        return keys[-1 - pick % len(keys)]

    # What is done.

    # About as many points as there are to crash at; 0 is none.
    long = st.just(0) | st.integers(1, 42)
    middle = st.just(0) | st.integers(1, 22)
    short = st.just(0) | st.integers(1, 8)
    picks = st.integers(0, 6)

    @initialize(crash=long, versions=st.integers(1, 4), ahead=st.booleans(), end=long)
    def register(self, crash: int, versions: int, ahead: bool, end: int) -> None:
        self.end = end
        self.attempt(lambda: self.vault.add_tenant("acme", key=self.own_keys[0]), crash)
        self.attempt(lambda: self.vault.add_tenant("acme", key=self.own_keys[0]))
        active = self.load().active
        assert active is not None
        assert active.version == 1
        self.may_be_out_of_use = False
        for _ in range(versions - 1):
            self.write(1, 0)
            self.rotate(Reason.FORCED, 0)
        if ahead:
            self.rotate_due(364, 0)
            assert self.load().pending is not None

    @rule(count=st.integers(1, 3), crash=short)
    def write(self, count: int, crash: int) -> None:
        active = self.load().active
        bodies = [f"row {self.written + number}" for number in range(count)]
        self.written += count

        def write() -> list[int]:
            with self.vault.tenant("acme"), self.sessions.begin() as session:
                notes = [Note(body=body) for body in bodies]
                session.add_all(notes)
                session.flush()
                return [note.id for note in notes]

        ids = self.attempt(write, crash, self.closed or (None if active is not None else KeyStateError))
        if ids is not None:
            assert active is not None
            self.rows += [Row(id_, body, active.version) for id_, body in zip(ids, bodies, strict=True)]

    @rule(reason=st.sampled_from([Reason.FORCED, Reason.COMPROMISED]), crash=middle)
    def rotate(self, reason: Reason, crash: int) -> None:
        before = self.load()
        made = self.attempt(lambda: self.vault.rotate("acme", reason), crash, self.closed)
        if made is not None:
            after = self.load()
            assert after.active is not None
            assert after.active.version == made.version == after.data_keys[-1].version
            assert after.pending is None
            assert made.previous == (before.active.version if before.active is not None else 0)
            self.may_be_out_of_use = False

    @rule(days=st.sampled_from([364, 1, 366, 1000]), crash=long)
    def rotate_due(self, days: int, crash: int) -> None:
        self.now += timedelta(days=days)
        closed, before = self.closed, self.load()
        found = self.attempt(self.vault.rotate_due, crash)
        if found is None:
            return
        steps = {due.tenant: due for due in found}
        assert all(due.step is not Step.FAILED for due in found if due.tenant != "acme")
        after = self.load()
        if before.tenant.suspended or before.active is None:
            assert after == before
        elif closed is not None:
            acme = steps.get("acme")
            assert acme is None or acme.step is Step.NOT_DUE or (acme.step is Step.FAILED and acme.denied)
            assert after.data_keys[: len(before.data_keys)] == before.data_keys
        else:
            assert after.active is not None
            assert after.active.due_at is not None
            assert after.active.due_at > self.now
            ahead = after.pending
            assert ahead is None or (ahead.reason == Reason.SCHEDULED and after.active.due_at <= self.now + DAY)

    @rule(where=st.sampled_from(["stay", "elsewhere", "platform", "back"]), new_kek=st.booleans(), crash=middle)
    def rewrap(self, where: str, new_kek: bool, crash: int) -> None:
        before = self.load().kek
        to = {"stay": None, "platform": self.vault.platform_key, "back": self.own_keys[0]}.get(where)
        if where == "elsewhere":
            self.own_keys.append(to := self.kms.create_key())
        destination = to or before.kms_key_arn
        refused: type[PiiVaultError] | None = None
        if self.is_disabled(destination):
            refused = KeyValidationError
        elif self.is_disabled(before.kms_key_arn):
            refused = KmsDeniedError
        done = self.attempt(lambda: self.vault.rewrap("acme", to=to, new_kek=new_kek), crash, refused)
        if done is not None:
            after = self.load().kek
            assert after.kms_key_arn == destination
            assert after.generation == before.generation + new_kek
            assert (after.wrapped == before.wrapped) == (done.way is Way.UNCHANGED)

    @rule(crash=short)
    def suspend(self, crash: int) -> None:
        before = self.load().tenant.suspended
        changed = self.attempt(lambda: self.vault.suspend("acme"), crash)
        if changed is not None:
            assert changed is not before
            assert self.load().tenant.suspended

    @precondition(lambda self: self.load().tenant.suspended)
    @rule(crash=short)
    def resume(self, crash: int) -> None:
        if self.attempt(lambda: self.vault.resume("acme"), crash) is not None:
            assert not self.load().tenant.suspended

    @rule(crash=short)
    def deactivate(self, crash: int) -> None:
        refused = KeyStateError if self.load().active is None else None
        self.may_be_out_of_use = True
        ended = self.attempt(lambda: self.vault.deactivate("acme"), crash, refused)
        assert ended is None or self.load().active is None

    @rule(pick=picks, crash=short)
    def compromise(self, pick: int, crash: int) -> None:
        key = self.chosen(pick)
        refused = KeyStateError if key.state in {KeyState.COMPROMISED, KeyState.DESTROYED} else None
        self.may_be_out_of_use |= key.state is KeyState.ACTIVE
        self.asked_for[KeyState.COMPROMISED].add(key.version)
        ended = self.attempt(lambda: self.vault.compromise("acme", key.version), crash, refused)
        assert ended is None or self.chosen(pick).state is KeyState.COMPROMISED

    @rule(pick=picks, emptied=st.booleans(), days=st.sampled_from([1, 0.9]), crash=short)
    def destroy(self, pick: int, emptied: bool, days: float, crash: int) -> None:
        key = self.chosen(pick)
        self.now += days * DAY
        if emptied:
            gone = [row.id for row in self.rows if row.version == key.version]
            self.rows = [row for row in self.rows if row.version != key.version]
            with self.engine.begin() as connection:
                connection.execute(delete(Note.__table__).where(Note.__table__.c.id.in_(gone)))
        ended_at, later = key.deactivated_at, self.now + timedelta(seconds=1)
        refused = (
            key.state in {KeyState.ACTIVE, KeyState.DESTROYED}
            or (ended_at is not None and later < ended_at + DAY)
            or any(row.version == key.version for row in self.rows)
        )
        if not refused:
            self.asked_for[KeyState.DESTROYED].add(key.version)
        ended = self.attempt(
            lambda: self.vault.destroy_key("acme", key.version, metadata=Base.metadata, engine=self.engine),
            crash,
            KeyStateError if refused else None,
        )
        assert ended is None or self.chosen(pick).encrypted_key == b""

    @precondition(lambda self: self.arn != self.vault.platform_key)
    @rule()
    def the_customer_disables_its_kms_key(self) -> None:
        self.kms.disable_key(self.arn)

    @precondition(lambda self: self.is_disabled(self.arn))
    @rule()
    def the_customer_enables_its_kms_key(self) -> None:
        self.kms.enable_key(self.arn)

    @precondition(lambda self: not self.is_disabled(self.arn))
    @rule()
    def the_customer_rotates_its_kms_key(self) -> None:
        self.kms.rotate_key(self.arn)

    # What must hold.

    @invariant()
    def it_lies_under_a_kms_key(self) -> None:
        self.lain.add(self.arn)

    @invariant()
    def keys_only_move_forward_and_versions_are_never_reused(self) -> None:
        snapshot = self.load()
        keys = {key.version: key for key in snapshot.data_keys}
        assert list(keys) == list(range(1, len(keys) + 1))
        states = [key.state for key in keys.values()]
        assert states.count(KeyState.ACTIVE) == 1 or (not snapshot.active and self.may_be_out_of_use)
        assert states.count(KeyState.PRE_ACTIVE) <= 1
        for version, before in self.known.items():
            after = keys[version]
            assert FORWARD.index(after.state) >= FORWARD.index(before.state)
            assert after.reserved >= before.reserved
            assert after.commitment == before.commitment
            assert after.epoch == before.epoch or not before.epoch
        for version, key in keys.items():
            assert key.previous_version == (version - 1 or None)
            assert key.state is not KeyState.COMPROMISED or version in self.asked_for[KeyState.COMPROMISED]
            # A version that was never active may be withdrawn.
            assert key.state is not KeyState.DESTROYED or not key.epoch or version in self.asked_for[KeyState.DESTROYED]
        epochs = [key.epoch for key in keys.values() if key.epoch]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len({key.commitment for key in keys.values()}) == len(keys)
        self.known = keys

    @invariant()
    def there_is_one_kek(self) -> None:
        mine = keks.c.tenant_uid == self.load().tenant.identity.tenant_uid
        with self.engine.connect() as connection:
            query = select(keks.c.generation, keks.c.state, func.length(keks.c.wrapped)).where(mine)
            found = connection.execute(query.order_by(keks.c.generation)).all()
        assert [generation for generation, _, _ in found] == list(range(1, len(found) + 1))
        assert [state for _, state, _ in found] == ["destroyed"] * (len(found) - 1) + ["active"]
        assert [bool(length) for _, _, length in found] == [state == "active" for _, state, _ in found]

    @invariant()
    def the_audit_log_says_what_is_there(self) -> None:
        assert self.vault.audit.verify("acme").problems == ()

    @invariant()
    def every_row_opens_or_says_why_not(self) -> None:
        closed, snapshot = self.closed, self.load()
        if closed is not None:
            with pytest.raises(closed), self.vault.tenant("acme"):
                pass
            return
        states = {key.version: key.state for key in snapshot.data_keys}
        whole = [row for row in self.rows if states[row.version] in OPENS]
        assert self.read(whole) == [row.body for row in whole]
        kek = self.vault._parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek)
        secrets = {key.version: kek.unwrap(key) for key in snapshot.data_keys if key.state is not KeyState.DESTROYED}
        lost = {row.version: row for row in self.rows if states[row.version] not in OPENS}
        for version, row in lost.items():
            with pytest.raises(KeyNotFoundError, match=f"version {version} of tenant 'acme' is {states[version]}"):
                self.read([row])
            # Nothing is destroyed while it holds a value, and what is compromised can be re-encrypted.
            assert states[version] is KeyState.COMPROMISED
            assert (
                self.opened(Keyset("acme", kek.identity, 0, secrets, deadline=0.0, wall_deadline=0.0), row) == row.body
            )

    @invariant()
    def it_seals_with_the_newest_key_or_not_at_all(self) -> None:
        if self.closed is not None:
            return
        snapshot = self.load()
        with self.vault.tenant("acme"), self.sessions() as session:
            note = Note(body="not kept")
            session.add(note)
            if snapshot.active is None:
                with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key"):
                    session.flush()
                return
            session.flush()
            sealed = session.execute(text("SELECT body FROM notes WHERE id = :id"), {"id": note.id}).scalar_one()
        assert int.from_bytes(bytes(sealed)[5:7], "big") == snapshot.active.version
        assert all(not key.epoch or key.version <= snapshot.active.version for key in snapshot.data_keys)

    def erase(self) -> None:
        """Erase the tenant in whatever state its keys are: all at once, whenever the process ends."""
        before = self.load()
        self.attempt(lambda: self.vault.erase("acme"), self.end)
        if "acme" in self.vault.tenants():
            assert self.load() == before
            self.every_row_opens_or_says_why_not()
        done = self.vault.erase("acme")
        assert {each.version: each.state_before for each in done.keys if each.kind == "data"} == {
            key.version: key.state for key in before.data_keys
        }
        after = self.vault._parts.store.load("acme", even_erased=True)
        assert not any((after.kek.wrapped, *(key.encrypted_key for key in after.keys)))
        assert self.vault.audit.verify("acme", done.anchor).problems == ()
        with pytest.raises(TenantErasedError), self.vault.tenant("acme"):
            pass
        # Each KMS key that the tenant ever lay under is named, and no other.
        assert {each.key.arn for each in done.kms_keys} == self.lain

    def read(self, rows: list[Row]) -> list[str]:
        with self.vault.tenant("acme"), self.sessions() as session:
            query = select(Note.body).where(Note.id.in_([row.id for row in rows])).order_by(Note.id)
            return list(session.scalars(query))

    def opened(self, keyset: Keyset, row: Row) -> str:
        with self.engine.connect() as connection:
            sealed = connection.execute(text("SELECT body FROM notes WHERE id = :id"), {"id": row.id}).scalar_one()
        return keyset.open_("notes.body", bytes(sealed))[1].decode()

    def teardown(self) -> None:
        try:
            self.fuse.left = 0
            with self.vault.tenant("glob"), self.sessions() as session:
                assert session.scalars(select(Note.body).where(Note.tenant_id == "glob")).all() == ["of glob"]
            assert self.vault.audit.verify("glob").problems == ()
            if "acme" in self.vault.tenants():
                # Everything given back, everything opens.
                self.kms.enable_key(self.arn)
                self.vault.resume("acme")
                self.every_row_opens_or_says_why_not()
                self.erase()
        finally:
            self.close()
            self.ground.drop(self.url)


def lay(url: str, folder: Path) -> None:
    kms = LocalKms(folder / "template.json")
    kms.platform_key()
    vault = Vault(url, kms=kms, now=lambda: START)
    vault.create_all()
    vault.add_tenant("glob", key=kms.create_key())
    engine = create_engine(url)
    vault.attach(engine)
    Base.metadata.create_all(engine)
    with vault.tenant("glob"), Session(engine) as session, session.begin():
        session.add(Note(tenant_id="glob", body="of glob"))
    vault.close()
    engine.dispose()


@contextmanager
def sqlite(folder: Path) -> Iterator[Ground]:
    lay(f"sqlite:///{folder}/template.sqlite3", folder)

    def fresh() -> str:
        shutil.copy(folder / "template.sqlite3", folder / "app.sqlite3")
        return f"sqlite:///{folder}/app.sqlite3"

    yield Ground(folder, fresh, lambda _: None)


@contextmanager
def postgresql(folder: Path, server: PostgresServer) -> Iterator[Ground]:
    template = server.create_database()
    lay(server.url(template), folder)

    def fresh() -> str:
        return server.url(server.create_database(template))

    def drop(url: str) -> None:
        server.drop_database(str(make_url(url).database))

    yield Ground(folder, fresh, drop)
    server.drop_database(template)


def live(ground: Ground, lives: int) -> None:
    run_state_machine_as_test(
        lambda: LifeOfKeys(ground),
        settings=settings(
            max_examples=lives, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_no_order_of_events_and_crashes_loses_a_value_on_postgresql(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with postgresql(tmp_path, postgres_server) as ground:
        live(ground, 12)


def test_no_order_of_events_and_crashes_loses_a_value_on_sqlite(tmp_path: Path) -> None:
    with sqlite(tmp_path) as ground:
        live(ground, 5)
