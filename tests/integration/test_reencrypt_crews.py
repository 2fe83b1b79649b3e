"""Several workers move a tenant's rows: each part anywhere, in any order, and again."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, make_url, select, text, update
from tests.support.canary import Secrets, watched_keys
from tests.support.command import environment
from tests.support.crew_app import (
    COUNTS,
    SEALED,
    Base,
    Dying,
    Opening,
    Person,
    Refused,
    Without,
    rows,
    stored,
    versions,
)
from tests.support.world import World

from pii_vault import Vault
from pii_vault.errors import ConfigurationError, KmsDeniedError
from pii_vault.reencryption.crews import Crew, LocalCrew, Part, PartDone
from pii_vault.reencryption.pacing import Pace
from pii_vault.reencryption.rows import WHOLE

TOTAL = sum(COUNTS.values())


def filled(world: World, counts: dict[str, int] = COUNTS) -> World:
    for tenant in ("acme", "glob"):
        with world.session(tenant) as session:
            mine = rows(tenant, counts)
            for each in mine:  # text keys are not to clash between tenants
                if each.__tablename__ == "words":
                    each.id = f"{each.id}{'' if tenant == 'acme' else ' of another'}"
            session.add_all(mine)
    world.vault.rotate("acme")
    return world


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return filled(build_world(Base.metadata))


@pytest.fixture
def postgres(postgres_url: str, world_on: Callable[..., World]) -> World:
    return filled(world_on(postgres_url, Base.metadata))


def run(world: World, **options: Any) -> Any:
    return world.vault.reencrypt("acme", metadata=Base.metadata, engine=world.engine, **options)


def task(world: World, tmp_path: Path) -> Opening:
    return Opening(world.url, str(tmp_path / "kms.json"))


def is_done(world: World) -> bool:
    """Say whether all values of acme, and none of anybody else, are under the second version."""
    moved = TOTAL + COUNTS["people"] - COUNTS["people"] // 5
    return versions(world.engine) == {1: moved, 2: moved}


class Here(Crew):
    """Does parts in this process, in order or not at all; remembers them."""

    def __init__(self, world: World, size: int = 1, *, does: bool = True) -> None:
        super().__init__(size)
        self._world, self._does = world, does
        self.parts: list[Part] = []
        self.done: list[PartDone] = []

    def do(self, parts: Sequence[Part]) -> Generator[PartDone]:
        self.parts += parts
        for part in parts if self._does else ():
            self.done.append(do(self._world.vault, self._world, part))
            yield self.done[-1]


def do(vault: Vault, world: World, part: Part) -> PartDone:
    return vault.reencrypt_part(part, metadata=Base.metadata, engine=world.engine)


# Parts.


def test_parts_are_cut_by_any_primary_key_and_hold_every_row_once(world: World) -> None:
    crew = Here(world)
    done = run(world, batch=7, crew=crew)
    assert (done.left, done.problems) == (0, ())
    assert is_done(world)
    largest = TOTAL // 16
    assert {part.table for part in crew.parts} == set(SEALED)
    for table, count in COUNTS.items():
        spans = [part.span for part in crew.parts if part.table == table]
        assert len(spans) == count // largest + 1
        assert [each.after for each in spans] == [None, *(each.upto for each in spans[:-1])]
        assert spans[-1].upto is None
        assert [each.written for each in crew.done if each.table == table] == [largest] * (count // largest) + [
            count % largest
        ]


def test_a_few_rows_are_one_part_and_where_nothing_is_left_there_is_none(world: World) -> None:
    crew = Here(world, 4)
    run(world, crew=crew)
    assert [(part.table, part.span) for part in crew.parts] == [(table, WHOLE) for table in sorted(SEALED)]
    again = Here(world, 4)
    assert run(world, crew=again).left == 0
    assert again.parts == []


def test_workers_share_the_rate_and_whoever_stops_them_waits_for_seconds(world: World) -> None:
    crew = Here(world, 4, does=False)
    run(world, crew=crew, rate=2.0, max_lag=None)
    assert {part.pace for part in crew.parts} == {Pace(rate=0.5)}
    assert len(crew.parts) >= TOTAL // 5  # 5 rows are 10 seconds
    crew = Here(world, 2, does=False)
    run(world, crew=crew, batch=3)
    assert {part.pace for part in crew.parts} == {Pace(3)}


def test_parts_done_twice_overlapping_in_any_order_and_among_writers_lose_and_change_nothing(
    postgres: World, tmp_path: Path
) -> None:
    world, chance = postgres, random.Random(7)
    crew = Here(world, 2, does=False)
    run(world, batch=5, crew=crew)
    whole = [replace(part, span=WHOLE) for part in {part.table: part for part in crew.parts}.values()]
    every = [*crew.parts, *crew.parts, *whole]
    chance.shuffle(every)
    stop, written = threading.Event(), dict[int, str]()

    def write() -> None:
        vault, engine = task(world, tmp_path).opened()
        while not stop.is_set():
            key, new = chance.randrange(COUNTS["people"]) + 1, f"written {len(written)}"
            with vault.tenant("acme"), engine.begin() as connection:
                connection.execute(update(Person).where(Person.id == key).values(email=new))
            written[key] = new
        engine.dispose()
        vault.close()

    writer = threading.Thread(target=write)
    writer.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: do(world.vault, world, part), every))
    stop.set()
    writer.join()
    assert written
    with world.session() as session:
        people = session.scalars(select(Person).where(Person.tenant_id == "acme"))
        found = {each.id: each.email for each in people}
    assert {key: found[key] for key in written} == written
    assert {value for key, value in found.items() if key not in written} <= {
        f"acme-{n}@example.com" for n in range(COUNTS["people"])
    }
    before = stored(world.engine)
    chance.shuffle(every)
    with ThreadPoolExecutor(4) as pool:
        assert {done.written for done in pool.map(lambda part: do(world.vault, world, part), every)} == {0}
    assert stored(world.engine) == before
    assert is_done(world)


def test_a_part_travels_without_a_key_a_value_or_an_address(postgres: World, tmp_path: Path) -> None:
    secrets = Secrets(*(f"acme-{n}@example.com" for n in range(COUNTS["people"])))
    crew = Here(postgres, does=False)
    postgres.vault.evict("acme")
    with watched_keys(secrets):
        run(postgres, batch=5, crew=crew)
        with postgres.session() as session:
            session.scalars(select(Person.email).where(Person.tenant_id == "acme")).all()
    with postgres.vault.tenant("acme") as scope:
        assert scope.keyset is not None
        for key in scope.keyset._keys.values():
            secrets.add(bytes(key.reveal()))
    assert len(secrets) > COUNTS["people"] + 4
    url = make_url(postgres.url)
    for part in crew.parts:
        sent = pickle.dumps(part)
        assert pickle.loads(sent) == part
        assert secrets.in_bytes(sent) == set()
        for hidden in (str(url.database), str(tmp_path), "postgresql", "sqlite", *postgres.keys.values()):
            assert hidden.encode() not in sent
        for each in stored(postgres.engine)["people"]:
            assert bytes(each[1]) not in sent


def test_a_part_for_another_application_is_refused(world: World) -> None:
    crew = Here(world, does=False)
    run(world, crew=crew)
    part = crew.parts[0]
    with pytest.raises(ConfigurationError, match=r"the metadata has no table 'other' with encrypted columns \(every"):
        do(world.vault, world, replace(part, table="other"))
    newer = replace(part, wanted=replace(part.wanted, version=3))
    before = stored(world.engine)
    with pytest.raises(ConfigurationError, match=r"reads has no data key version 3 .* and no replica that lags"):
        do(world.vault, world, newer)
    assert stored(world.engine) == before


# Processes of this machine.


def test_processes_move_every_row_and_name_what_cannot_be(postgres: World, tmp_path: Path) -> None:
    with postgres.engine.begin() as connection:
        connection.execute(text("UPDATE people SET email = set_byte(email, 30, get_byte(email, 30) # 1) WHERE id = 7"))
    told: list[tuple[str, int, int]] = []
    done = run(
        postgres,
        batch=10,
        crew=LocalCrew(task(postgres, tmp_path), 2),
        progress=lambda *each: told.append(each),
    )
    assert [(each.column, each.key) for each in done.problems] == [("people.email", "7")]
    assert done.left == 1
    assert {("people", COUNTS["people"], COUNTS["people"]), ("words", 60, 60)} <= set(told)
    moved = TOTAL + COUNTS["people"] - COUNTS["people"] // 5
    assert versions(postgres.engine) == {1: moved + 1, 2: moved - 1}
    assert workers_of(os.getpid()) == []


def test_a_worker_that_is_killed_is_an_error_and_the_next_run_finishes(postgres: World, tmp_path: Path) -> None:
    dying = Dying(postgres.url, str(tmp_path / "kms.json"), str(tmp_path / "mark"), 3)
    with pytest.raises(ConfigurationError, match=r"a worker failed: it died \(.*What is done stays; run it again"):
        run(postgres, batch=10, crew=LocalCrew(dying, 2))
    assert (tmp_path / "mark").exists()
    done = versions(postgres.engine)[2]
    assert 0 < done < TOTAL
    assert run(postgres, batch=10, crew=LocalCrew(dying, 2)).left == 0
    assert is_done(postgres)


def test_a_worker_that_lacks_the_task_or_the_models_says_so(
    postgres: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "gone_tomorrow.py"
    module.write_text("def task(part):\n    return part\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    gone = importlib.import_module("gone_tomorrow")
    module.unlink()
    with pytest.raises(ConfigurationError, match=r"a worker failed: ModuleNotFoundError \(it needs the models"):
        run(postgres, crew=LocalCrew(gone.task, 1))
    with pytest.raises(ConfigurationError, match="the metadata holds no encrypted column"):
        run(postgres, crew=LocalCrew(Without(postgres.url, str(tmp_path / "kms.json")), 1))
    with pytest.raises(ConfigurationError, match=r"cannot be handed to another process: .*\(make it a function of a"):
        LocalCrew(lambda part: part, 1)  # type: ignore[arg-type, return-value]
    assert capfd.readouterr().err == ""
    del sys.modules["gone_tomorrow"]


def test_a_kms_that_refuses_a_worker_is_the_same_error_as_without_workers(postgres: World, tmp_path: Path) -> None:
    refused = Refused(postgres.url, str(tmp_path / "kms.json"), postgres.keys["acme"])
    with pytest.raises(KmsDeniedError) as caught:
        run(postgres, crew=LocalCrew(refused, 1))
    postgres.vault.evict("acme")
    with pytest.raises(KmsDeniedError) as alone:
        run(postgres)
    assert str(caught.value) == str(alone.value)
    assert (caught.value.code, caught.value.hint) == (alone.value.code, alone.value.hint)
    assert postgres.url not in "".join(traceback.format_exception(caught.value))  # with what the worker has sent along


_PARENT = """
import sys
from sqlalchemy import create_engine
from pii_vault.reencryption.crews import LocalCrew
from tests.support.crew_app import Base, Opening
if __name__ == "__main__":
    opening = Opening(*sys.argv[1:])
    vault, engine = opening.opened()
    vault.reencrypt("acme", metadata=Base.metadata, engine=engine, batch=5, crew=LocalCrew(opening, 2))
"""


def test_workers_end_with_a_parent_that_is_killed(postgres: World, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, "utf-8")
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), environment()["PYTHONPATH"]])
    holder = create_engine(postgres.url)
    with holder.connect() as connection:
        connection.execute(text("SELECT 1 FROM people FOR UPDATE"))
        parent = subprocess.Popen(
            [sys.executable, str(script), postgres.url, str(tmp_path / "kms.json")],
            env=environment(PYTHONPATH=path),
            stderr=subprocess.PIPE,
        )
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with postgres.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            until(lambda: other.scalar(waiting) or parent.poll() is not None)
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
        assert b"Traceback" not in parent.communicate()[1]
        connection.rollback()
    holder.dispose()
    assert run(postgres).left == 0
    assert is_done(postgres)


def workers_of(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children() if "spawn_main" in " ".join(each.cmdline())]


def until(reached: Callable[[], Any]) -> None:
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.02)
