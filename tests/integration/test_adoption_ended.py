"""A step of an adoption that is ended in any way is taken again; others write, and take steps, at the same time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from tests.support.adopting import Base, People
from tests.support.processes import forking

from pii_vault import LocalKms, Vault
from pii_vault.adoption import adopt, guard, moves
from pii_vault.adoption.adopt import Adoption
from pii_vault.adoption.guard import Guard, Mode
from pii_vault.adoption.moves import Moves
from pii_vault.backfill.filling import Filling
from pii_vault.backfill.rows import Rows
from pii_vault.errors import AdoptionError, ConfigurationError, KeyStoreError
from pii_vault.keystore import KeyStore
from pii_vault.reencryption.pacing import Pace
from pii_vault.stages import Stage

EMAILS = [f"p{n}@a.example" for n in range(5)]

# After so many calls of what the process is killed, on the way.
Point = tuple[Any, str, int]
UP: dict[str, Point] = {
    "half a guard": (guard, "_run", 1),
    "batch": (Filling, "_write", 2),
    "switch": (Moves, "guard", 2),
    "told": (Adoption, "_tell", 2),
    "wiped": (Rows, "wipe", 2),
    "no guard": (Moves, "unguard", 1),
}
DOWN: dict[str, Point] = {
    "refilled": (Moves, "refill", 1),
    "both": (Moves, "guard", 3),
    "verified": (KeyStore, "add_adoption_step", 3),
    "stage none": (KeyStore, "add_adoption_step", 6),
}
ELSEWHERE = {"postgresql": ("switch", "verified"), "mariadb": ("half a guard", "refilled")}


def until_killed(url: str, keys: str, kms: Path, way: str, point: str) -> None:
    owner, name, calls = (UP if way == "up" else DOWN)[point]
    real, made = getattr(owner, name), []

    def call(*arguments: Any, **more: Any) -> Any:
        result = real(*arguments, **more)
        made.append(None)
        if len(made) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)
    adopt._NOTICED = 0.0  # type: ignore[misc]
    vault, engine = Vault(keys, kms=LocalKms(kms)), create_engine(url)
    adoption = vault.adoption("people.email", metadata=Base.metadata, engine=engine, tenant_column="tenant_id")
    for _ in range(6):
        if way == "up":
            adoption.next(quiet=0, pace=Pace(batch=2))
        else:
            adoption.rollback(pace=Pace(batch=2))


def killed(people: People, way: str, point: str) -> None:
    urls = [each.url.render_as_string(hide_password=False) for each in (people.engine, people.world.vault._engine)]
    child: Any = forking().Process(target=until_killed, args=(*urls, people.world.kms._path, way, point))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, point


class GuardMissing(Exception):
    """The guard was not there."""


@contextmanager
def only_about_the_guard() -> Iterator[None]:
    try:
        yield
    except AdoptionError as error:
        if "the guard of people.email was not there" in str(error):
            raise GuardMissing from error
        raise


def go(people: People, way: str) -> None:
    """Take the same step again until it is at the end, whatever has to be put right first."""
    end, step = ("emptied", "next") if way == "up" else ("none", "rollback")
    for _ in range(20):
        if people.stage == end and people.drift == ():
            return
        with suppress(GuardMissing), only_about_the_guard():
            people.adoption.next(quiet=0) if step == "next" else people.adoption.rollback()
        assert [sealed or email for email, sealed in people.rows()] == EMAILS
    raise AssertionError(people.drift)


def test_it_is_killed_anywhere_and_goes_on(people: People) -> None:
    people.add(*EMAILS)
    elsewhere = ELSEWHERE.get(people.engine.dialect.name)
    points = [elsewhere] if elsewhere is not None else zip_longest(UP, DOWN)
    for up, down in points:
        people.sql("UPDATE people SET email_sealed = NULL")
        killed(people, "up", up)
        go(people, "up")
        assert people.rows() == [(None, each) for each in EMAILS]
        if down is not None:
            killed(people, "down", down)
        go(people, "down")
        assert [email for email, _ in people.rows()] == EMAILS


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_transaction_from_before_the_switch_is_waited_for_and_others_do_not_wait(
    people_on: Callable[[str], People], database: str
) -> None:
    people = people_on(database)
    people.add("ann@a.example", "bea@a.example")
    people.up("verified")
    with ThreadPoolExecutor(1) as pool, people.engine.connect() as before:
        before.execute(text("UPDATE people SET email = 'ANN@a.example' WHERE id = 1"))
        switch = pool.submit(people.adoption.next, quiet=0)
        time.sleep(0.7)
        assert not switch.done()
        if database == "postgresql":  # the guard is there already; MariaDB's waits with the lock that it needs
            began = time.monotonic()
            people.both(2, "BEA@a.example")
            assert time.monotonic() - began < 1
            with pytest.raises(DBAPIError):
                people.sql("UPDATE people SET email = 'eve@a.example' WHERE id = 2")
        before.commit()
        assert switch.result(30).stage == "switched"
    assert people.rows() == [
        ("ANN@a.example",) * 2,
        ("BEA@a.example" if database == "postgresql" else "bea@a.example",) * 2,
    ]


def test_a_transaction_that_does_not_end_is_named(postgres_people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    people = postgres_people
    people.add("ann@a.example")
    people.up("verified")
    monkeypatch.setattr(moves, "_PATIENCE", 0.3)
    with people.engine.connect() as before:
        process = before.scalar(text("SELECT pg_backend_pid()"))
        before.execute(text("UPDATE people SET email = 'ANN@a.example'"))
        with pytest.raises(AdoptionError, match=f"open for more than 0 seconds: {process}"):
            people.adoption.next(quiet=0)
        before.commit()
    people.up("switched")
    assert people.rows() == [("ANN@a.example",) * 2]


def test_whoever_reads_does_not_wait_long_behind_a_guard_that_waits(
    people_on: Callable[[str], People], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB keeps everybody from a table whose trigger waits for a transaction: by default for a day."""
    people = people_on("mariadb")
    people.add("ann@a.example")
    monkeypatch.setattr(moves, "_LOCK_SECONDS", 1)
    monkeypatch.setattr(moves, "with_retries", lambda do: do())
    with people.engine.connect() as before:
        before.execute(text("SELECT count(*) FROM people"))
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match=r"the guard of people\.email cannot be changed: OperationalError"):
            people.adoption.next()
        assert time.monotonic() - began < 5
    with people.engine.connect() as connection:  # the connection goes back as it was
        assert connection.scalar(text("SELECT @@SESSION.lock_wait_timeout = @@GLOBAL.lock_wait_timeout"))
    assert people.stage == "none"


def test_a_file_in_which_somebody_writes_is_tried_again(local_people: People) -> None:
    people = local_people
    people.add("ann@a.example")
    people.engine.dispose()
    people.engine = create_engine(people.engine.url, connect_args={"timeout": 0.05})
    with ThreadPoolExecutor(1) as pool, people.world.engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        added = pool.submit(people.adoption.next)
        time.sleep(0.3)
        assert not added.done()
        other.rollback()
        assert added.result(30).stage == "added"
    people.engine.dispose()


def test_writers_of_both_releases_lose_nothing_meanwhile(people: People) -> None:
    """Before the switch, some write the plaintext alone and others both; then only these are left."""
    people.add(*EMAILS)
    last: dict[int, str] = {}
    old, new = threading.Event(), threading.Event()

    def write(keys: tuple[int, ...], over: threading.Event, how: Callable[[int, str], object]) -> None:
        for number in range(10_000):
            for key in keys:
                if over.is_set():
                    return
                try:
                    how(key, value := f"p{key}-{number}@a.example")
                except DBAPIError as error:  # a file that is locked, a deadlock: it is not written, and says so
                    if "written together" in str(error):
                        raise
                else:
                    last[key] = value
            time.sleep(0.01)

    def alone(key: int, email: str) -> None:
        people.sql("UPDATE people SET email = :e WHERE id = :id", e=email, id=key)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(write, (1, 2), old, alone), pool.submit(write, (3, 4), new, people.both)]
        try:
            for stage in ("added", "filled", "verified"):
                assert people.adoption.next(pace=Pace(batch=2)).stage == stage
            old.set()
            running[0].result(30)
            for stage in ("switched", "retired"):
                assert people.adoption.next(pace=Pace(batch=2), quiet=0).stage == stage
            with suppress(AdoptionError):  # as long as they write, not all can be emptied
                people.adoption.next(pace=Pace(batch=2), quiet=0)
        finally:
            old.set()
            new.set()
        running[1].result(30)
    people.up("emptied")
    assert [sealed for _, sealed in people.rows()] == [last.get(key, EMAILS[key - 1]) for key in range(1, 6)]


def test_of_two_who_take_a_step_at_once_one_is_told_so(local_people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    people = local_people
    people.add("ann@a.example")
    people.up("verified")
    late = people.adoption
    real, modes = late._moves, list[Mode]()

    def moving(*arguments: Any) -> Moves:
        made = real(*arguments)
        people.up("switched")
        monkeypatch.setattr(Guard, "install", lambda self, connection, mode: modes.append(mode))
        return made

    monkeypatch.setattr(late, "_moves", moving)
    with pytest.raises(KeyStoreError, match="somebody else has just taken a step"):
        late.rollback()
    assert (people.stage, people.drift, modes) == ("switched", (), [])


def test_the_guard_is_put_back_for_whoever_was_first(local_people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has taken its step at the last moment: when ours has looked, and not changed the guard yet."""
    people = local_people
    people.add("ann@a.example")
    people.up("verified")
    real = Adoption._require_nobody_else

    def then_another(adoption: Adoption) -> None:
        real(adoption)
        monkeypatch.undo()
        people.up("switched")

    monkeypatch.setattr(Adoption, "_require_nobody_else", then_another)
    late = people.adoption
    with pytest.raises(KeyStoreError, match="somebody else has just taken a step"):
        late.rollback()
    assert (people.stage, people.drift) == ("switched", ())
    assert people.adoption.status().observed.guard is Mode.REFUSES


def test_a_way_back_that_was_ended_is_ended_before_another_step(
    local_people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = local_people
    people.add("ann@a.example")
    people.up("switched")
    with monkeypatch.context() as patch:
        patch.setattr(Moves, "guard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            people.adoption.rollback()
    assert (people.stage, len(people.drift)) == (Stage.VERIFIED, 1)
    waited: list[float] = []
    real = Moves.pause
    monkeypatch.setattr(Moves, "pause", lambda self, seconds: waited.append(seconds) or real(self, 0))
    monkeypatch.setattr(adopt, "_NOTICED", 5.5)
    assert people.adoption.rollback().stage == "verified"
    assert (waited, people.drift) == ([5.5], ())
    assert people.adoption.rollback().stage == "filled"


def test_a_guard_is_there_until_nobody_falls_back_any_longer(
    local_people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = local_people
    people.add("ann@a.example")
    people.up("added")
    people.adoption.allow_fallback(datetime.now(UTC) + timedelta(days=1))
    seen: list[Any] = []

    def pause(_moves: Moves, _seconds: float) -> None:
        status = people.adoption.status()
        seen.append((status.stage, status.fallback_until, status.observed.guard))

    monkeypatch.setattr(Moves, "pause", pause)
    people.adoption.rollback()
    assert seen == [("none", None, Mode.EMPTIES_SEALED)]
    assert people.drift == ()
