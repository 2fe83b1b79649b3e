"""A rotation: what it writes down, when it is due, and what is left of it when its process dies at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.calendar import DAY, START, Calendar
from tests.support.strict_kms import StrictKms
from tests.support.world import TENANTS, World

from pii_vault import EncryptedString, Vault
from pii_vault.errors import ConfigurationError, KmsDeniedError
from pii_vault.keys import KeyRecord, KeyState
from pii_vault.keystore import Snapshot
from pii_vault.kms import KmsKey
from pii_vault.lifecycle.parts import Reason


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


@pytest.fixture
def world(build_world: Callable[..., World], calendar: Calendar) -> World:
    return build_world(Base.metadata, now=calendar, actor="operator")


def records(world: World, tenant: str = "acme") -> Snapshot:
    return world.vault._parts.store.load(tenant)


def active(world: World, tenant: str = "acme") -> KeyRecord:
    found = records(world, tenant).active
    assert found is not None
    return found


def write(world: World, body: str, tenant: str = "acme") -> None:
    with world.session(tenant) as session:
        session.add(Note(body=body))


def read(world: World, tenant: str = "acme") -> list[str]:
    world.vault.evict(tenant)
    with world.session(tenant) as session:
        return list(session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)))


# What is written down.


@pytest.mark.parametrize("reason", Reason)
def test_the_new_record_says_when_why_by_whom_and_with_which_kms_key(
    world: World, calendar: Calendar, reason: Reason
) -> None:
    arn = world.keys["acme"]
    world.kms.rotate_key(arn)
    material = world.kms.describe(KmsKey(arn)).key_material_id
    calendar.now += timedelta(days=20)
    made = world.vault.rotate("acme", reason)
    assert (made.tenant, made.version, made.previous, made.reason, made.made) == ("acme", 2, 1, reason, True)
    first, second = records(world).data_keys
    assert (second.version, second.state, second.previous_version) == (2, KeyState.ACTIVE, 1)
    assert (second.reason, second.created_by) == (reason, "operator")
    assert (second.created_at, second.activated_at) == (calendar.now, calendar.now)
    assert (second.kms_key_arn, second.kms_key_material_id) == (arn, material)
    assert second.due_at == made.due_at == calendar.now + timedelta(days=365)
    assert (second.deactivated_at, second.destroyed_at, second.reserved) == (None, None, 0)
    assert (first.version, first.state, first.deactivated_at) == (1, KeyState.DEACTIVATED, calendar.now)
    assert (first.created_at, first.activated_at) == (START, START)
    assert (first.reason, first.previous_version) == (Reason.INITIAL, None)
    assert first.kms_key_material_id not in (None, material)
    assert len({first.commitment, second.commitment}) == len({first.iv, second.iv}) == 2
    created, activated = world.vault.audit.entries("acme")[-2:]
    assert (created.event, created.reason, created.actor) == ("key.created", reason, "operator")
    assert (activated.event, activated.reason, activated.at) == ("key.activated", reason, calendar.now)
    assert [key["version"] for key in activated.details["keys"]] == [1, 2]


def test_versions_count_on_by_one_and_every_row_stays_readable(world: World) -> None:
    for version in range(1, 6):
        write(world, f"version {version}")
        assert world.vault.rotate("acme").version == version + 1
    keys = records(world).data_keys
    assert [key.version for key in keys] == [1, 2, 3, 4, 5, 6]
    assert [key.previous_version for key in keys] == [None, 1, 2, 3, 4, 5]
    assert [key.epoch for key in keys] == [1, 2, 3, 4, 5, 6]
    assert read(world) == [f"version {version}" for version in range(1, 6)]
    assert [key.version for key in records(world, "glob").data_keys] == [1]
    assert world.vault.audit.verify("acme").problems == ()


# When it is due.


def test_the_next_rotation_is_due_after_the_vaults_period_or_the_tenants_own(
    build_world: Callable[..., World], calendar: Calendar
) -> None:
    world = build_world(Base.metadata, now=calendar, rotation_days=100)
    assert active(world).due_at == START + timedelta(days=100)
    world.vault.add_tenant("own", key=world.kms.create_key(), rotation_days=7)
    assert active(world, "own").due_at == START + timedelta(days=7)
    calendar.now += DAY
    assert world.vault.rotate("own").due_at == calendar.now + timedelta(days=7)
    calendar.now += DAY
    # The due date moves with the period, and counts from the activation.
    world.vault.set_rotation("own", days=30)
    assert active(world, "own").due_at == START + timedelta(days=31)
    world.vault.set_rotation("own")
    assert active(world, "own").due_at == START + timedelta(days=101)
    assert active(world).due_at == START + timedelta(days=100)
    assert world.vault.audit.verify("own").problems == ()
    assert [entry.event for entry in world.vault.audit.entries("own")][-2:] == ["tenant.changed"] * 2


@pytest.mark.parametrize("days", [0, 3651])
def test_a_period_is_one_day_to_ten_years(world: World, days: int) -> None:
    before = records(world)
    with pytest.raises(ConfigurationError, match="1 to 3650 days"):
        world.vault.set_rotation("acme", days=days)
    with pytest.raises(ConfigurationError, match="1 to 3650 days"):
        world.vault.add_tenant("own", key=world.kms.create_key(), rotation_days=days)
    assert records(world) == before
    assert world.vault.tenants() == list(TENANTS)


@dataclass
class Followed:
    """A tenant that follows its KMS key in AWS."""

    kms: StrictKms
    key: KmsKey
    vault: Vault

    def active(self) -> KeyRecord:
        found = self.vault._parts.store.load("acme").active
        assert found is not None
        return found


@pytest.fixture
def followed(
    strict_kms: StrictKms,
    database_url: str,
    calendar: Calendar,
) -> Iterator[Followed]:
    key = strict_kms.customer_key()
    strict_kms.set_rotation_period(key.arn, 180)
    vault = Vault(
        database_url, kms=strict_kms.provider(attempts=1), platform_key=strict_kms.platform_key(), now=calendar
    )
    vault.create_all()
    vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id, follows_kms=True)
    yield Followed(strict_kms, key, vault)
    vault.close()


def test_a_tenant_can_follow_the_period_of_its_kms_key_wherever_it_is_changed(
    followed: Followed, calendar: Calendar
) -> None:
    kms, vault, arn = followed.kms, followed.vault, followed.key.arn
    assert followed.active().due_at == START + timedelta(days=180)
    calendar.now += DAY
    for days, due in ((90, 90), (2560, 2560), (None, 365)):
        kms.set_rotation_period(arn, days)
        assert [each.step for each in vault.rotate_due()] == ["not due"]
        assert followed.active().due_at == START + timedelta(days=due)
    kms.set_rotation_period(arn, 90)
    vault.set_rotation("acme", days=30)
    assert followed.active().due_at == START + timedelta(days=30)
    # With its own period it no longer follows.
    vault.rotate_due()
    assert followed.active().due_at == START + timedelta(days=30)
    vault.set_rotation("acme", follows_kms=True)
    assert followed.active().due_at == START + timedelta(days=90)
    # A KMS key that does not rotate leaves it to the tenant's own period.
    kms.set_rotation_period(arn, None)
    vault.set_rotation("acme", days=40, follows_kms=True)
    assert followed.active().due_at == START + timedelta(days=40)
    kms.set_rotation_period(arn, 200)
    assert vault.rotate("acme").due_at == calendar.now + timedelta(days=200)
    assert vault.audit.verify("acme").problems == ()


def test_a_kms_key_that_comes_to_rotate_more_often_makes_the_data_key_due_at_once(
    followed: Followed, calendar: Calendar
) -> None:
    calendar.now += timedelta(days=100)
    followed.kms.set_rotation_period(followed.key.arn, 90)
    (due,) = followed.vault.rotate_due()
    assert (due.step, due.reason, due.version) == ("rotated", Reason.SCHEDULED, 2)
    assert followed.active().due_at == calendar.now + timedelta(days=90)


# What the KMS is asked.


def test_a_rotation_asks_the_kms_for_every_key_also_when_all_keys_are_warm(followed: Followed) -> None:
    vault, arn = followed.vault, followed.key.arn
    vault.set_rotation("acme")
    with vault.tenant("acme"):
        pass
    for version in (2, 3):
        with vault.tenant("acme"), followed.kms.counting() as calls:
            assert vault.rotate("acme").version == version
        (generated,) = calls.matching("GenerateDataKey", key=arn)
        assert (generated.context["pii-vault:purpose"], generated.outcome) == ("data", "ok")
        unwrapped, wrong = calls.matching("Decrypt", key=arn)
        assert (unwrapped.context["pii-vault:purpose"], unwrapped.outcome) == ("kek", "ok")
        assert wrong.outcome == "InvalidCiphertextException"
        assert calls.count("DescribeKey", key=arn) == 1
        assert [call.operation for call in calls.calls if call.key == arn] == [
            "Decrypt",
            "GenerateDataKey",
            "DescribeKey",
            "Decrypt",
        ]


def test_a_version_that_waits_is_not_activated_from_memory_either(followed: Followed, calendar: Calendar) -> None:
    vault, arn = followed.vault, followed.key.arn
    calendar.now += timedelta(days=179)
    assert [each.step for each in vault.rotate_due()] == ["prepared"]
    with vault.tenant("acme"), followed.kms.counting() as calls:
        assert vault.rotate("acme").version == 2
    assert [call.outcome for call in calls.matching("Decrypt", key=arn)] == ["ok", "InvalidCiphertextException"]
    calendar.now += timedelta(days=179)
    vault.rotate_due()
    followed.kms.disable(arn)
    with pytest.raises(KmsDeniedError):
        vault.rotate("acme")
    assert followed.active().version == 2


# Several at once.

_KENNEL = """
import json, os, signal, sys, traceback
from datetime import datetime
from sqlalchemy import event
from pii_vault import LocalKms, Vault

url, kms_file = sys.argv[1:]


class Bomb:
    # Kills its own process when it has been passed so many times; 0 never does.
    def __init__(self, fuse):
        self.fuse = fuse

    def passed(self, *_):
        self.fuse -= 1
        if self.fuse == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def bombed(kms, bomb):
    class Bombed(LocalKms):
        def _find(self, key, operation):
            bomb.passed()
            return super()._find(key, operation)
    return Bombed(kms)


def work(order):
    bomb = Bomb(order["fuse"])
    now = datetime.fromisoformat(order["now"])
    vault = Vault(url, kms=bombed(kms_file, bomb), now=lambda: now, actor="child")
    for moment in ("begin", "commit"):
        event.listen(vault._engine, moment, bomb.passed)
    event.listen(vault._engine, "before_cursor_execute", bomb.passed)
    event.listen(vault._engine, "after_cursor_execute", bomb.passed)
    if order["do"] == "hold":
        with vault._parts.store.change(vault._parts.store.load(order["tenant"])):
            print("holding", flush=True)
            signal.pause()
    elif order["do"] == "rotate":
        vault.rotate(order["tenant"])
    elif order["do"] == "rotate for ever":
        vault.rotate(order["tenant"])
        print("rotated", flush=True)
        while True:
            vault.rotate(order["tenant"])
    elif order["do"] == "add":
        vault.add_tenant(order["tenant"], key=order["key"])
    else:
        failed = [due for due in vault.rotate_due() if due.step == "failed"]
        if failed:
            raise SystemExit(str(failed))


print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    start, go = os.pipe()
    children = []
    for _ in range(order["count"]):
        child = os.fork()
        if child == 0:
            os.close(go)
            status = 1
            try:
                os.read(start, 1)
                work(order)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    print(json.dumps(children), flush=True)
    os.close(start)
    os.close(go)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Kennel:
    """A process that has loaded everything and forks children that work on the world's key store, and may die of it."""

    def __init__(self, url: str, kms_file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _KENNEL, url, str(kms_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def start(self, do: str, *, now: datetime, count: int = 1, fuse: int = 0, **more: Any) -> list[int]:
        order = {"do": do, "now": now.isoformat(), "count": count, "fuse": fuse, "tenant": "acme", **more}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        children: list[int] = json.loads(self._line())
        return children

    def ended(self) -> list[int]:
        """The exit codes; that of a child that was killed is minus the signal."""
        codes: list[int] = json.loads(self._line())
        return codes

    def run(self, do: str, **order: Any) -> list[int]:
        self.start(do, **order)
        return self.ended()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return line.strip() or str(self.close())

    says = _line

    def close(self) -> str:
        """End it; return what it and its children complained about."""
        return self._process.communicate(timeout=60)[1]


@pytest.fixture
def kennel(world: World, tmp_path: Path) -> Iterator[Kennel]:
    kennel = Kennel(world.engine.url.render_as_string(hide_password=False), tmp_path / "kms.json")
    yield kennel
    assert kennel.close() == ""


def test_processes_that_rotate_what_is_due_at_once_make_one_version_for_each_tenant(
    world: World, calendar: Calendar, kennel: Kennel
) -> None:
    world.vault.add_tenant("far", key=world.kms.create_key(), rotation_days=3650)
    write(world, "before")
    for version in (2, 3, 4):
        calendar.now += timedelta(days=366)
        assert kennel.run("rotate due", now=calendar.now, count=3) == [0, 0, 0]
        for tenant in TENANTS:
            assert [key.version for key in records(world, tenant).data_keys] == list(range(1, version + 1))
            assert active(world, tenant).version == version
        write(world, f"version {version}")
    assert [key.version for key in records(world, "far").data_keys] == [1]
    assert read(world) == ["before", "version 2", "version 3", "version 4"]
    for tenant in (*TENANTS, "far"):
        assert world.vault.audit.verify(tenant).problems == ()


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new KEK"])
@pytest.mark.parametrize("after", range(1, 5))
def test_a_move_to_another_kms_key_between_the_steps_of_a_rotation_breaks_neither(
    world: World, calendar: Calendar, after: int, new_kek: bool
) -> None:
    write(world, "before")
    other = Vault(world.engine.url, kms=world.kms, now=calendar)
    elsewhere = world.kms.create_key()
    begun: list[int] = []

    @event.listens_for(world.vault._engine, "begin")
    def between_the_steps(_: Any) -> None:
        begun.append(1)
        if len(begun) == after:
            other.rewrap("acme", to=elsewhere, new_kek=new_kek)

    assert world.vault.rotate("acme").version == 2
    other.close()
    assert len(begun) > after
    snapshot = records(world)
    assert [key.state for key in snapshot.data_keys] == [KeyState.DEACTIVATED, KeyState.ACTIVE]
    assert snapshot.kek.kms_key_arn == elsewhere
    assert read(world) == ["before"]
    assert world.vault.audit.verify("acme").problems == ()


# Killed.

KILLED = -signal.SIGKILL


def in_order(world: World, *more: str) -> None:
    """Whatever was killed: nothing is in doubt, nothing is lost, and nothing is written down wrongly."""
    for tenant in (*TENANTS, *more):
        snapshot = records(world, tenant)
        states = [key.state for key in snapshot.data_keys]
        assert states.count(KeyState.ACTIVE) <= 1
        assert states.count(KeyState.PRE_ACTIVE) <= 1
        assert [key.version for key in snapshot.data_keys] == list(range(1, len(states) + 1))
        assert world.vault.audit.verify(tenant).problems == ()
    for tenant in TENANTS:
        assert read(world, tenant) == [f"of {tenant}"]


def converged(world: World, calendar: Calendar, *more: str) -> None:
    """Every tenant has a version that seals, and no version waits, or only for a day to come."""
    in_order(world, *more)
    for tenant in (*TENANTS, *more):
        snapshot = records(world, tenant)
        assert snapshot.active is not None
        assert snapshot.active.due_at is not None
        assert snapshot.active.due_at > calendar.now
        if snapshot.pending is not None:
            assert snapshot.pending.reason == Reason.SCHEDULED
            assert snapshot.active.due_at <= calendar.now + DAY


@pytest.fixture
def written(world: World) -> World:
    for tenant in TENANTS:
        write(world, f"of {tenant}", tenant)
    return world


def test_a_rotation_killed_at_any_moment_is_finished_by_the_next_look(
    written: World, calendar: Calendar, kennel: Kennel
) -> None:
    begun, fuse, codes = 0, 1, [KILLED]
    while codes == [KILLED]:
        before = active(written).version
        codes = kennel.run("rotate", now=calendar.now, fuse=fuse)
        in_order(written)
        waits = records(written).pending is not None
        begun += waits
        calendar.now += timedelta(seconds=1)
        assert [due.tenant for due in written.vault.rotate_due()] == ["acme"] * waits
        converged(written, calendar)
        # Either it had been begun, and then is finished, or it has left no trace.
        assert active(written).version == before + (waits or codes == [0])
        fuse += 6
    assert codes == [0]
    assert fuse > 50
    assert begun > 2


@pytest.mark.parametrize("moment", ["a day ahead", "on the day"])
def test_a_look_at_what_is_due_killed_at_any_moment_is_finished_by_the_next_one(
    written: World, calendar: Calendar, kennel: Kennel, moment: str
) -> None:
    fuse, codes = 3, [KILLED]
    while codes == [KILLED]:
        due_at = active(written).due_at
        assert due_at is not None
        calendar.now = due_at - DAY / 2 if moment == "a day ahead" else due_at
        codes = kennel.run("rotate due", now=calendar.now, fuse=fuse)
        in_order(written)
        written.vault.rotate_due()
        converged(written, calendar)
        for tenant in TENANTS:
            assert (records(written, tenant).pending is None) == (moment == "on the day")
        # Due at different times after all of this, both are due by then.
        calendar.now += DAY
        written.vault.rotate_due()
        fuse += 13
    assert codes == [0]
    assert fuse > 40


def test_a_registration_killed_at_any_moment_is_finished_by_the_next_one_or_the_next_look(
    written: World, calendar: Calendar, kennel: Kennel
) -> None:
    half, fuse, codes = 0, 2, [KILLED]
    while codes == [KILLED]:
        name, key = f"new {fuse}", written.kms.create_key()
        codes = kennel.run("add", now=calendar.now, fuse=fuse, tenant=name, key=key)
        begun = name in written.vault.tenants()
        in_order(written, *([name] * begun))
        if begun and fuse % 2:
            half += records(written, name).active is None
            written.vault.rotate_due()
        else:
            written.vault.add_tenant(name, key=key)
        converged(written, calendar, name)
        assert [key.version for key in records(written, name).data_keys] == [1]
        write(written, "sealed", name)
        assert read(written, name) == ["sealed"]
        fuse += 11
    assert codes == [0]
    assert fuse > 70
    assert half > 1


def test_rotations_killed_at_random_moments_lose_nothing(written: World, calendar: Calendar, kennel: Kennel) -> None:
    for _ in range(6):
        calendar.now += timedelta(seconds=1)
        before = active(written).version
        (child,) = kennel.start("rotate for ever", now=calendar.now)
        assert kennel.says() == "rotated"
        time.sleep(random.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert kennel.ended() == [KILLED]
        in_order(written)
        written.vault.rotate_due()
        converged(written, calendar)
        assert active(written).version > before


def test_the_death_of_who_holds_a_tenants_lock_frees_it(
    postgres_url: str, world_on: Callable[..., World], tmp_path: Path, calendar: Calendar
) -> None:
    world = world_on(postgres_url, now=calendar)
    kennel = Kennel(postgres_url, tmp_path / "kms.json")
    (holder,) = kennel.start("hold", now=calendar.now)
    assert kennel.says() == "holding"
    done: list[int] = []
    rotating = threading.Thread(target=lambda: done.append(world.vault.rotate("acme").version))
    rotating.start()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')")
    with world.engine.connect() as connection:
        while not connection.execute(waiting).scalar_one():
            assert rotating.is_alive()
    assert done == []
    # The others are not kept waiting.
    assert world.vault.rotate("glob").version == 2
    os.kill(holder, signal.SIGKILL)
    rotating.join(timeout=30)
    assert done == [2]
    assert kennel.ended() == [KILLED]
    assert kennel.close() == ""
    assert world.vault.audit.verify("acme").problems == ()
