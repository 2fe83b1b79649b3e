"""Several processes at once, and transactions that fail: keys are stored before values, once, and stay."""

import io
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine, String, create_engine, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.processes import forking
from tests.support.world import World

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import KmsDeniedError, TenantExistsError
from pii_vault.keys import TRANSITIONS, KeyState
from pii_vault.keystore.schema import keks, keys, tenants


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


def work(parent: Connection, url: str, kms_file: str, key: str, what: str) -> None:
    """Get ready, wait for the word, rotate or register; then send what there was to complain about."""
    with redirect_stderr(io.StringIO()) as complaints:
        vault = Vault(url, kms=LocalKms(kms_file))
        parent.send("ready")
        parent.recv()
        try:
            if what == "register":
                register(vault, url, key)
            else:
                for _ in range(2 if what == "rotate" else 10_000):
                    vault.rotate("acme")
        except Exception:  # noqa: BLE001 - the test reads it
            traceback.print_exc()
    parent.send(complaints.getvalue())


def register(vault: Vault, url: str, key: str) -> None:
    vault.add_tenant("new", key=key)
    engine = create_engine(url, connect_args={"timeout": 30} if url.startswith("sqlite") else {})
    sessions = sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    with vault.tenant("new"), sessions.begin() as session:
        session.add(Note(body="by one of several"))


@dataclass
class Worker:
    """A process that waits for the word to work."""

    process: BaseProcess
    says: Connection

    def go(self) -> None:
        self.says.send("go")


def run_at_once(world: World, what: str, count: int) -> list[Worker]:
    key = world.kms.create_key() if what == "register" else world.keys["acme"]
    workers = []
    for _ in range(count):
        ours, theirs = forking().Pipe()
        arguments = (theirs, world.url, str(world.kms_file), key, what)
        workers.append(Worker(forking().Process(target=work, args=arguments), ours))
        workers[-1].process.start()
        theirs.close()
    for worker in workers:
        assert worker.says.recv() == "ready"
    return workers


def finish(workers: list[Worker]) -> list[str]:
    for worker in workers:
        worker.go()
    errors = []
    for worker in workers:
        assert worker.says.poll(60)
        errors.append(worker.says.recv())
        worker.process.join(timeout=60)
    assert [worker.process.exitcode for worker in workers] == [0] * len(workers)
    return errors


@pytest.fixture
def world(build_world: Callable[..., World], tmp_path: Path) -> World:
    world = build_world(Base.metadata)
    world.kms_file = tmp_path / "kms.json"  # type: ignore[attr-defined]
    return world


def test_processes_that_register_one_tenant_at_once_end_with_one_key(world: World) -> None:
    errors = finish(run_at_once(world, "register", 5))
    assert errors == [""] * 5, "\n".join(errors)
    with world.engine.connect() as connection:
        uid = connection.scalars(select(tenants.c.uid).where(tenants.c.name == "new")).one()
        count = connection.scalar(
            select(func.count()).select_from(keys).where(keys.c.tenant_uid == uid, keys.c.purpose == "data")
        )
    assert count == 1
    with world.session("new") as session:
        assert [note.body for note in session.scalars(select(Note))] == ["by one of several"] * 5


def test_processes_that_rotate_at_once_make_each_version_once(world: World) -> None:
    with world.session() as session:
        session.add(Note(body="before"))
    errors = finish(run_at_once(world, "rotate", 3))
    assert [error for error in errors if error and "being rotated by others" not in error] == []
    with world.engine.connect() as connection:
        uid = connection.scalars(select(tenants.c.uid).where(tenants.c.name == "acme")).one()
        rows = connection.execute(
            select(keys.c.version, keys.c.state)
            .where(keys.c.tenant_uid == uid, keys.c.purpose == "data")
            .order_by(keys.c.version)
        ).all()
    assert [version for version, _ in rows] == list(range(1, len(rows) + 1))
    assert [state for _, state in rows] == ["deactivated"] * (len(rows) - 1) + ["active"]
    world.vault.evict("acme")
    with world.session() as session:
        assert session.scalars(select(Note.body)).all() == ["before"]
        session.add(Note(body="after"))


def test_rotations_killed_at_any_moment_leave_what_the_next_one_goes_on_from(world: World) -> None:
    with world.session() as session:
        session.add(Note(body="before"))
    for number, worker in enumerate(run_at_once(world, "rotate for ever", 6)):
        worker.go()
        time.sleep(0.02 + 0.017 * number)
        worker.process.kill()
        worker.process.join()
        assert worker.process.exitcode == -signal.SIGKILL
        world.vault.evict("acme")
        with world.session() as session:
            assert session.scalars(select(Note.body)).first() == "before"
            session.add(Note(body=f"after {number}"))
    newest = world.vault.rotate("acme").version
    with world.engine.connect() as connection:
        mine = (keys.c.tenant_uid == acme(world)) & (keys.c.purpose == "data")
        rows = connection.execute(select(keys.c.version, keys.c.state).where(mine).order_by(keys.c.version)).all()
    assert [version for version, _ in rows] == list(range(1, newest + 1))
    assert [state for _, state in rows] == ["deactivated"] * (newest - 1) + ["active"]
    with world.session() as session:
        assert len(session.scalars(select(Note.body)).all()) == 7


def test_a_rolled_back_application_transaction_leaves_no_row_under_a_key_that_no_table_holds(world: World) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        session.execute(select(func.count()).select_from(Note))
        version = world.vault.rotate("acme").version
        session.rollback()
    with world.session() as session:
        session.add(Note(body="sealed after the rollback"))
    with world.engine.connect() as connection:
        header = connection.execute(text("SELECT body FROM notes")).scalar_one()
    assert int.from_bytes(bytes(header)[5:7], "big") == version == 2
    with world.session() as session:
        assert session.scalars(select(Note.body)).one() == "sealed after the rollback"


def test_a_tenant_is_not_registered_again_with_another_kms_key(world: World) -> None:
    with pytest.raises(TenantExistsError, match="acme"):
        world.vault.add_tenant("acme", key=world.kms.create_key())


def test_nothing_is_registered_when_the_kms_refuses(world: World) -> None:
    key = world.kms.create_key()
    world.kms.disable_key(key)
    with pytest.raises(KmsDeniedError):
        world.vault.add_tenant("late", key=key)
    assert world.vault.tenants() == ["acme", "glob"]


def test_the_active_key_stays_when_the_kms_refuses_to_make_its_successor(world: World) -> None:
    world.kms.disable_key(world.keys["acme"])
    with pytest.raises(KmsDeniedError):
        world.vault.rotate("acme")
    world.kms.enable_key(world.keys["acme"])
    world.vault.evict("acme")
    with world.session() as session:
        session.add(Note(body="still version 1"))
    assert world.vault.rotate("acme").version == 2


def test_the_key_store_can_live_in_another_database(
    sqlite_url: str, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    kms = LocalKms(tmp_path / "kms.json")
    vault = Vault(f"sqlite:///{tmp_path / 'keys.sqlite3'}", kms=kms)
    vault.create_all()
    vault.add_tenant("acme", key=kms.create_key())
    engine = make_engine(sqlite_url)
    vault.attach(engine)
    Base.metadata.create_all(engine)
    with vault.tenant("acme"), Session(engine) as session, session.begin():
        session.add(Note(tenant_id="acme", body="elsewhere"))
        session.flush()
        assert session.scalars(select(Note.body)).one() == "elsewhere"
    vault.close()


def refused(world: World, statement: object) -> None:
    with pytest.raises(DBAPIError, match="pii_vault"), world.engine.begin() as connection:
        connection.execute(statement)  # type: ignore[call-overload]


def put_in_state(world: World, state: KeyState) -> None:
    """Move acme's first key forward to a state, one legal step after another."""
    steps = {
        KeyState.ACTIVE: (),
        KeyState.DEACTIVATED: ("deactivated",),
        KeyState.COMPROMISED: ("compromised",),
        KeyState.DESTROYED: ("deactivated", "destroyed"),
    }[state]
    for step in steps:
        values = {"state": step} | ({"encrypted_key": b""} if step == "destroyed" else {})
        with world.engine.begin() as connection:
            connection.execute(
                update(keys).where(keys.c.tenant_uid == acme(world), keys.c.purpose == "data").values(**values)
            )


def acme(world: World) -> bytes:
    with world.engine.connect() as connection:
        return bytes(connection.scalars(select(tenants.c.uid).where(tenants.c.name == "acme")).one())


@pytest.mark.parametrize(
    ("before", "after"),
    [(b, a) for b in TRANSITIONS for a in KeyState if b is not KeyState.PRE_ACTIVE and a is not b],
)
def test_the_database_lets_a_key_only_move_forward(world: World, before: KeyState, after: KeyState) -> None:
    put_in_state(world, before)
    values: dict[str, object] = {"state": after}
    if before is KeyState.DESTROYED:
        values["encrypted_key"] = b"x" * 48
    elif after is KeyState.DESTROYED:
        values["encrypted_key"] = b""
    statement = update(keys).where(keys.c.tenant_uid == acme(world), keys.c.purpose == "data").values(**values)
    if after in TRANSITIONS[before]:
        with world.engine.begin() as connection:
            assert connection.execute(statement).rowcount == 1
    else:
        refused(world, statement)


def test_the_database_lets_nobody_empty_or_replace_key_records(world: World) -> None:
    for table in ("keys", "keks"):
        if world.engine.dialect.name == "postgresql":
            refused(world, text(f"TRUNCATE pii_vault_{table}"))
        else:
            columns = [column.name for column in (keys if table == "keys" else keks).columns]
            new = ["'pre_active'" if name == "state" and table == "keys" else name for name in columns]
            replaced = f"SELECT {', '.join(new)} FROM pii_vault_{table} WHERE tenant_uid = :uid"
            refused(world, text(f"INSERT OR REPLACE INTO pii_vault_{table} {replaced}").bindparams(uid=acme(world)))
    with world.session() as session:
        session.add(Note(body="still sealed"))


def test_the_database_refuses_what_no_key_record_may_be(world: World) -> None:
    uid = acme(world)
    mine = (keys.c.tenant_uid == uid) & (keys.c.purpose == "data")
    refused(world, keys.delete().where(mine))
    refused(world, keks.delete().where(keks.c.tenant_uid == uid))
    refused(world, update(keys).where(mine).values(commitment=b"x" * 32))
    refused(world, update(keys).where(mine).values(version=2))
    refused(world, update(keks).where(keks.c.tenant_uid == uid).values(commitment=b"x" * 32))
    with world.engine.connect() as connection:
        row = dict(connection.execute(select(keys).where(mine)).mappings().one())
    for wrong in ({"version": 0}, {"version": 65536}, {"version": 1}, {"version": 2, "state": "active"}):
        with pytest.raises(DBAPIError), world.engine.begin() as connection:
            connection.execute(keys.insert().values({**row, "state": "pre_active", **wrong}))
    with world.engine.begin() as connection:
        connection.execute(keys.insert().values({**row, "version": 2, "state": "pre_active"}))
    with pytest.raises(DBAPIError), world.engine.begin() as connection:
        connection.execute(update(keys).where(mine, keys.c.version == 2).values(state="active"))
