"""While an index is built or its key replaced, processes write, search and are killed: nothing is ever missed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, create_engine, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.support.processes import forking
from tests.support.world import World

from pii_vault import BlindIndex, EncryptedString, LocalKms, Vault
from pii_vault.reencryption import running
from pii_vault.reencryption.indexing import Step
from pii_vault.reencryption.pacing import Pace

TTL = 1.0
ROWS = 2_000


class Before(DeclarativeBase):
    pass


class OldNote(Before):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class After(DeclarativeBase):
    pass


class Note(After):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString(index=BlindIndex(unique=True)))


@pytest.fixture
def world(postgres_url: str, world_on: Callable[..., World]) -> World:
    return world_on(postgres_url, ttl=TTL)


def application(url: str, kms: Path) -> tuple[Vault, Any]:
    vault = Vault(url, kms=LocalKms(kms), ttl=TTL)
    engine = create_engine(url)
    vault.attach(engine, tenant_column="tenant_id")
    return vault, engine


def write_and_search(url: str, kms: Path, name: str, stop: Any, failures: Any, counts: Any) -> None:
    """Write values and change some, and look for what was written: each is found, once, at any moment."""
    vault, engine = application(url, kms)
    chance, mine = random.Random(name), list[str]()
    done = 0
    while not stop.is_set():
        value = f"{name}-{done}"
        with vault.tenant("acme"), Session(engine) as session:
            try:
                if mine and chance.random() < 0.3:
                    changed = mine.pop(chance.randrange(len(mine)))
                    note = session.scalars(select(Note).where(Note.body == changed)).one()
                    note.body = value
                else:
                    session.add(Note(tenant_id="acme", body=value))
                session.commit()
                mine.append(value)
                asked = chance.choice(mine)
                found = session.scalar(select(func.count()).where(Note.body == asked))
                if found != 1:
                    failures.put(f"{asked} was found {found} times")
                several = chance.sample(mine, min(len(mine), 5))
                found = len(session.scalars(select(Note.id).where(Note.body.in_(several))).all())
                if found != len(several):
                    failures.put(f"of {len(several)} values {found} were found")
                try:
                    session.execute(insert(Note).values(tenant_id="acme", body=asked))
                    failures.put(f"{asked} was written twice")
                except IntegrityError:
                    session.rollback()
            except Exception as error:  # noqa: BLE001 - the test shows it
                failures.put(f"{type(error).__name__}: {error}")
                return
        done += 1
    counts.put((name, len(mine), done))
    vault.close()


def test_nothing_is_missed_and_nothing_is_there_twice_while_the_key_is_replaced(
    world: World, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    After.metadata.create_all(world.engine)
    with world.session() as session:
        session.add_all(Note(body=f"old-{n}") for n in range(400))
    context = forking()
    stop, failures, counts = context.Event(), context.Queue(), context.Queue()
    arguments = (world.url, tmp_path / "kms.json")
    writers = [
        context.Process(target=write_and_search, args=(*arguments, f"w{n}", stop, failures, counts)) for n in range(3)
    ]
    for writer in writers:
        writer.start()
    later = timedelta(0)
    vault = Vault(world.url, kms=world.kms, ttl=TTL, now=lambda: datetime.now(UTC) + later)
    engine = make_engine(world.url)
    turn = lambda: vault.rotate_index("acme", metadata=After.metadata, engine=engine)  # noqa: E731
    for generation in (2, 3):
        step = turn()
        assert (step.step, step.other) == (Step.PREPARED, generation)
        time.sleep(TTL + 0.2)
        step = turn()
        assert (step.step, step.generation, step.problems) == (Step.ACTIVATED, generation, ())
        time.sleep(TTL + 0.5)  # stands for the day in which everybody comes to know it
        later += timedelta(days=1)
        step = turn()
        assert (step.step, step.left, step.problems) == (Step.FINISHED, 0, ())
        later -= timedelta(days=1)
        time.sleep(0.5)
    stop.set()
    for writer in writers:
        writer.join(30)
    found = []
    while not failures.empty():
        found.append(failures.get())
    assert found == []
    written = [counts.get(timeout=10) for _ in writers]
    assert all(done > 10 for _, _, done in written)
    with world.session() as session:
        bodies = session.scalars(select(Note.body)).all()
        assert len(bodies) == len(set(bodies)) == 400 + sum(kept for _, kept, _ in written)
        for body in random.Random(1).sample(list(bodies), 50):
            assert session.scalar(select(func.count()).where(Note.body == body)) == 1
    vault.close()


def build_slowly(url: str, kms: Path) -> None:
    vault, engine = application(url, kms)
    running.reseal.__defaults__ = (Pace(batch=5), None)
    vault.build_index("acme", metadata=After.metadata, engine=engine)
    os._exit(0)


def test_a_build_that_is_killed_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    Before.metadata.create_all(world.engine)
    with world.session() as session:
        session.add_all(OldNote(body=f"old-{n}") for n in range(ROWS))
    context: Any = forking()
    chance, killed = random.Random(7), 0
    for _ in range(30):
        process: multiprocessing.Process = context.Process(target=build_slowly, args=(world.url, tmp_path / "kms.json"))
        process.start()
        process.join(0.15 + chance.random() * 0.2)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        elif process.exitcode == 0:
            break
    assert killed >= 1
    assert world.vault.build_index("acme", metadata=After.metadata, engine=world.engine).complete
    with world.session() as session:
        assert sorted(session.scalars(select(Note.body))) == sorted(f"old-{n}" for n in range(ROWS))
        assert all(session.scalar(select(func.count()).where(Note.body == f"old-{n}")) == 1 for n in range(0, ROWS, 17))
