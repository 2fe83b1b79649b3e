"""The keyring: whom it asks and how often, and what it does when key records are not what they were."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, delete, event, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.clocks import Clocks
from tests.support.world import World

from pii_vault import EncryptedString, LocalKms
from pii_vault.errors import (
    KeyNotFoundError,
    KeyRecordError,
    KeyStateError,
    KmsDeniedError,
    KmsError,
    PiiVaultError,
    TenantSuspendedError,
)
from pii_vault.keyring import UNKNOWN_VERSIONS, Keyring
from pii_vault.keyring.terms import REFUSED_SECONDS
from pii_vault.keystore.schema import keks, key_use, keys, tenants
from pii_vault.kms import KmsKey


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


@pytest.fixture
def unwraps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The KMS keys that were asked to unwrap, in order."""
    asked: list[str] = []
    original = LocalKms.unwrap

    def unwrap(self: LocalKms, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        asked.append(key.arn)
        return original(self, key, blob, context)

    monkeypatch.setattr(LocalKms, "unwrap", unwrap)
    return asked


@pytest.fixture
def build(sqlite_url: str, world_on: Callable[..., World]) -> Callable[..., World]:
    return partial(world_on, sqlite_url, Base.metadata)


def write(world: World, body: str, tenant: str = "acme") -> None:
    with world.session(tenant) as session:
        session.add(Note(body=body))


def read(world: World, tenant: str = "acme") -> list[str]:
    with world.session(tenant) as session:
        return list(session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)))


def change(world: World, *statements: Any) -> None:
    """Write to the key store past every trigger, as somebody who owns the database can."""
    with world.engine.begin() as connection:
        for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(statement)


def uid(world: World, tenant: str = "acme") -> bytes:
    with world.engine.connect() as connection:
        return bytes(connection.scalars(select(tenants.c.uid).where(tenants.c.name == tenant)).one())


def test_a_warm_scope_asks_neither_the_kms_nor_the_key_store(build: Callable[..., World], unwraps: list[str]) -> None:
    world = build()
    write(world, "one")
    asked = len(unwraps)
    statements: list[str] = []
    event.listen(world.vault._engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    write(world, "two")
    assert read(world) == ["one", "two"]
    assert (len(unwraps) - asked, statements) == (0, [])


def test_sixty_four_cold_threads_ask_the_kms_once(build: Callable[..., World], unwraps: list[str]) -> None:
    world = build()
    unwraps.clear()
    together = threading.Barrier(64)

    def enter(_: int) -> str:
        together.wait()
        with world.vault.tenant("acme") as scope:
            return scope.tenant

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(enter, range(64))) == {"acme"}
    assert len(unwraps) == 1


def test_a_failure_is_shared_by_those_who_wait_and_not_kept_for_long(
    build: Callable[..., World], unwraps: list[str]
) -> None:
    clocks = Clocks()
    world = build(clock=clocks.as_clock)
    world.kms.disable_key(world.keys["acme"])
    unwraps.clear()
    together = threading.Barrier(16)

    def enter(_: int) -> str:
        together.wait()
        try:
            with world.vault.tenant("acme"):
                return "entered"
        except KmsDeniedError:
            return "denied"

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(enter, range(16))) == {"denied"}
    assert len(unwraps) == 1
    world.kms.enable_key(world.keys["acme"])
    clocks.pass_(REFUSED_SECONDS)
    write(world, "again")
    assert read(world) == ["again"]


def test_without_a_time_to_live_every_scope_asks(build: Callable[..., World], unwraps: list[str]) -> None:
    world = build(ttl=0)
    unwraps.clear()
    write(world, "one")
    assert read(world) == ["one"]
    assert len(unwraps) == 2


def test_what_another_process_sealed_with_a_newer_key_is_read_at_once(
    build: Callable[..., World], tmp_path: Path
) -> None:
    world = build()
    write(world, "version 1")
    script = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
sys.path.insert(0, sys.argv[3])
from pii_vault import LocalKms, Vault
from test_keyring import Note
vault = Vault(sys.argv[1], kms=LocalKms(sys.argv[2]))
vault.rotate("acme")
engine = create_engine(sys.argv[1])
sessions = sessionmaker(engine)
vault.attach(engine, sessions, tenant_column="tenant_id")
with vault.tenant("acme"), sessions.begin() as session:
    session.add(Note(body="version 2"))
"""
    arguments = [world.url, str(tmp_path / "kms.json"), str(Path(__file__).parent)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=60)
    assert read(world) == ["version 1", "version 2"]


def test_forged_versions_are_not_found_without_a_storm_of_calls(
    build: Callable[..., World], unwraps: list[str]
) -> None:
    clocks = Clocks()
    world = build(clock=clocks.as_clock)
    write(world, "genuine")
    with world.engine.connect() as connection:
        genuine = bytes(connection.execute(text("SELECT body FROM notes")).scalar_one())
    unwraps.clear()
    for version in range(100, 200):
        forged = genuine[:5] + version.to_bytes(2, "big") + genuine[7:]
        change(world, text("UPDATE notes SET body = :body").bindparams(body=forged))
        with pytest.raises(KeyNotFoundError):
            read(world)
    assert len(unwraps) == UNKNOWN_VERSIONS
    clocks.pass_(6)
    with pytest.raises(KeyNotFoundError):
        read(world)
    assert len(unwraps) == UNKNOWN_VERSIONS + 1


def test_eviction_reaches_a_scope_that_is_open(build: Callable[..., World], unwraps: list[str]) -> None:
    world = build()
    write(world, "one")
    with world.vault.tenant("acme"), world.sessions() as session:
        world.kms.disable_key(world.keys["acme"])
        assert session.scalars(select(Note.body)).all() == ["one"]
        world.vault.evict("acme")
        with pytest.raises(KmsDeniedError):
            session.scalars(select(Note.body)).all()


def test_a_suspended_tenant_is_refused(build: Callable[..., World]) -> None:
    world = build()
    change(world, update(tenants).where(tenants.c.name == "acme").values(suspended=True))
    with pytest.raises(TenantSuspendedError, match="acme"):
        write(world, "no")


@pytest.mark.parametrize(
    "values",
    [
        {"encrypted_key": b"x" * 48},
        {"iv": b"x" * 12},
        {"commitment": b"x" * 32},
        {"activation_mac": b"x" * 32},
        {"epoch": 2},
        {"version": 2},
        {"kek_generation": 2},
        {"algorithm": 2},
        {"purpose": "index"},
        {"state": "compromised"},
    ],
    ids=lambda values: "-".join(f"{name} {value!r:.12}" for name, value in values.items()),
)
def test_a_changed_key_record_gives_an_error_and_no_value(build: Callable[..., World], values: dict[str, Any]) -> None:
    world = build(ttl=0)
    write(world, "sealed")
    mine = keys.c.tenant_uid == uid(world)
    if "purpose" in values:  # two keys of one purpose that are active are refused by the database
        change(
            world, delete(key_use).where(key_use.c.purpose == "index"), delete(keys).where(keys.c.purpose == "index")
        )
    change(world, update(keys).where(mine, keys.c.purpose == "data").values(**values))
    for use in (lambda: read(world), lambda: write(world, "never")):
        with pytest.raises((KeyRecordError, KeyStateError, KeyNotFoundError)):
            use()
    with world.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM notes")).scalar_one() == 1


@pytest.mark.parametrize("state", ["deactivated", "pre_active"])
def test_without_an_active_key_nothing_is_sealed_and_all_opens(build: Callable[..., World], state: str) -> None:
    world = build(ttl=0)
    write(world, "sealed")
    change(world, update(keys).where(keys.c.tenant_uid == uid(world), keys.c.purpose == "data").values(state=state))
    with pytest.raises(KeyStateError, match="tenant 'acme' has no active data key"):
        write(world, "never")
    assert read(world) == ["sealed"]


@pytest.mark.parametrize(
    "values",
    [{"wrapped": b"x" * 100}, {"commitment": b"x" * 32}, {"generation": 2}, {"kms_key_arn": "alias/other"}],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_kek_record_gives_an_error_and_no_value(build: Callable[..., World], values: dict[str, Any]) -> None:
    world = build(ttl=0)
    write(world, "sealed")
    change(world, update(keks).where(keks.c.tenant_uid == uid(world)).values(**values))
    with pytest.raises((KeyRecordError, KmsError)):
        read(world)


def test_key_records_swapped_between_tenants_open_nothing(build: Callable[..., World]) -> None:
    world = build(ttl=0)
    write(world, "of acme")
    columns = [keys.c.encrypted_key, keys.c.iv, keys.c.commitment, keys.c.activation_mac]
    with world.engine.connect() as connection:
        glob = (
            connection.execute(
                select(*columns).where(keys.c.tenant_uid == uid(world, "glob"), keys.c.purpose == "data")
            )
            .mappings()
            .one()
        )
    change(world, update(keys).where(keys.c.tenant_uid == uid(world), keys.c.purpose == "data").values(**glob))
    with pytest.raises(KeyRecordError):
        read(world)


def test_a_key_table_that_was_rolled_back_is_not_sealed_with(build: Callable[..., World]) -> None:
    world = build(ttl=0)
    write(world, "version 1")
    with world.engine.connect() as connection:
        before = dict(
            connection.execute(select(keys).where(keys.c.tenant_uid == uid(world), keys.c.purpose == "data"))
            .mappings()
            .one()
        )
    assert world.vault.rotate("acme").version == 2
    write(world, "version 2")
    change(
        world,
        keys.delete().where(keys.c.tenant_uid == uid(world), keys.c.purpose == "data"),
        keys.insert().values(**before),
    )
    with pytest.raises(KeyRecordError, match="rolled back"):
        write(world, "never")


def test_a_process_that_opens_a_newer_value_does_not_seal_with_an_older_key(
    build: Callable[..., World], tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    world = build(ttl=0)
    write(world, "version 1")
    world.vault.rotate("acme")
    write(world, "version 2")
    mine = (keys.c.tenant_uid == uid(world)) & (keys.c.purpose == "data")
    change(
        world,
        update(keys).where(mine, keys.c.version == 2).values(state="pre_active", epoch=0, activation_mac=b""),
        update(keys).where(mine, keys.c.version == 1).values(state="active"),
    )
    fresh = World(world.url, world.kms, world.keys, type(world.vault)(world.url, kms=world.kms, ttl=0), *([None] * 2))  # type: ignore[arg-type]
    fresh.engine = make_engine(world.url)
    fresh.sessions = type(world.sessions)(fresh.engine)
    fresh.vault.attach(fresh.engine, fresh.sessions, tenant_column="tenant_id")
    assert read(fresh) == ["version 1", "version 2"]
    with pytest.raises(PiiVaultError, match="rolled back"):
        write(fresh, "never")
    fresh.vault.close()


_WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None  # as where it is not installed
from sqlalchemy import create_engine, select
sys.path.insert(0, {folder!r})
from test_keyring import Base, Clocks, Note
from pii_vault import LocalKms, Vault
from sqlalchemy.orm import Session
clocks = Clocks()
vault = Vault(sys.argv[1], kms=LocalKms(sys.argv[2]), clock=clocks.as_clock)
engine = create_engine(sys.argv[1])
vault.attach(engine, tenant_column="tenant_id")
query = select(Note.body).where(Note.tenant_id == "acme").execution_options(yield_per=1)
with vault.tenant("acme"), Session(engine) as session:
    session.add_all(Note(tenant_id="acme", body=str(number)) for number in range(3))
    session.flush()
    rows = iter(session.scalars(query))
    seen = [next(rows)]
    clocks.pass_(300)  # the keys expire in the middle of a stream,
    seen += rows
    clocks.pass_(300)  # and before a statement
    print(seen, session.scalars(query).all())
"""


def test_a_synchronous_application_needs_no_greenlet(build: Callable[..., World], tmp_path: Path) -> None:
    world = build()
    script = _WITHOUT_GREENLET.format(folder=str(Path(__file__).parent))
    arguments = [sys.executable, "-c", script, world.url, str(tmp_path / "kms.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['0', '1', '2'] ['0', '1', '2']\n"


def test_so_many_keysets_are_held_and_who_uses_another_one_goes_on_with_it(
    build: Callable[..., World], unwraps: list[str]
) -> None:
    world = build()
    tenants = [f"t{number}" for number in range(30)]
    for tenant in tenants:
        world.vault.add_tenant(tenant, key=world.kms.create_key())
    keyring = Keyring(world.vault._store, world.kms, size=10)
    first = keyring.get("t0")
    for tenant in tenants:
        keyring.get(tenant)
    assert keyring._memory.held()[0] == 10
    assert keyring.cached("t0") is None
    assert keyring.fresh(first)
    unwraps.clear()
    assert [keyring.get(tenant).tenant for tenant in tenants[-10:]] == tenants[-10:]
    assert unwraps == []
    keyring.evict("t0")
    assert not keyring.fresh(first)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_children_repeat_no_iv_and_wait_for_no_lock(build: Callable[..., World]) -> None:
    world = build()
    column = Note.__table__.c.body.type.dialect_impl(world.engine.dialect)
    seal = column.bind_processor(world.engine.dialect)
    lock, forked, held = world.vault._keyring._memory.lock, threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            forked.wait()

    with world.vault.tenant("acme"):
        seal("warm")
        children = []
        holder = threading.Thread(target=hold)  # a thread that no child has
        holder.start()
        held.wait()
        for _ in range(8):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                os.close(reader)
                with os.fdopen(writer, "wb") as out:
                    out.write(b"".join(seal("x")[10:22] for _ in range(10_000)))
                    with world.vault.tenant("glob"):
                        out.write(b"glob" * 3)
                os._exit(0)
            os.close(writer)
            children.append((child, reader))
        forked.set()
        holder.join()
        ivs: list[bytes] = []
        for child, reader in children:
            with os.fdopen(reader, "rb") as source:
                data = source.read()
            assert os.waitpid(child, 0)[1] == 0
            assert data.endswith(b"glob" * 3)
            ivs.extend(data[at : at + 12] for at in range(0, 120_000, 12))
    assert len(set(ivs)) == 80_000
