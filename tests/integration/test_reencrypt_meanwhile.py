"""Rows that come, go and change while a job is past them, or in the middle of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from tests.integration.test_reencrypt_failures import (
    BATCH,
    ROWS,
    Base,
    Person,
    filled,
    run,
    started,
    versions,
)
from tests.support.application import wait_until
from tests.support.world import World


@pytest.fixture
def world(build_world: Callable[..., World]) -> World:
    return filled(build_world(Base.metadata))


def between_batches(do: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Do something once, when the first batch is done and others are not."""
    done_before: list[int] = []

    def progress(_table: str, done: int, _total: int) -> None:
        if done >= BATCH and not done_before:
            done_before.append(done)
            do()

    return progress


def ages(world: World) -> dict[int, int | None]:
    with world.session() as session:
        return {row.id: row.age for row in session.execute(select(Person.id, Person.age))}


EXPECTED = {n: n for n in range(1, ROWS + 1)}


def test_rows_that_go_are_not_missed(world: World) -> None:
    def delete() -> None:
        with world.engine.begin() as connection:
            connection.execute(text(f"DELETE FROM people WHERE id IN (1, {BATCH + 1}, {ROWS})"))

    done = run(world, progress=between_batches(delete))
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2: 2 * (ROWS - 3)}
    assert ages(world) == {n: n for n in EXPECTED if n not in (1, BATCH + 1, ROWS)}


def test_old_values_that_come_to_stand_behind_the_job_are_found(world: World) -> None:
    """As of a process that has fetched its keys before the rotation: a new row, and a value that was there before."""
    with world.engine.connect() as connection:
        old = connection.execute(text("SELECT email, age FROM people WHERE id = 7")).one()

    def put_back() -> None:
        new = {"email": old.email, "age": old.age}
        with world.engine.begin() as connection:
            insert = "INSERT INTO people (id, tenant_id, name, email, age) VALUES (-5, 'acme', '', :email, :age)"
            connection.execute(text(insert), new)
            connection.execute(text("UPDATE people SET email = :email, age = :age WHERE id = 2"), new)

    done = run(world, progress=between_batches(put_back))
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2: 2 * (ROWS + 1)}
    assert ages(world) == {**EXPECTED, -5: 7, 2: 7}


def test_a_row_that_goes_or_is_emptied_in_the_middle_of_its_batch_is_no_error(
    postgres_url: str,
    world_on: Callable[..., World],
    make_engine: Callable[..., Engine],
) -> None:
    world = filled(world_on(postgres_url, Base.metadata))
    waiting = text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    looking = make_engine(postgres_url, isolation_level="AUTOCOMMIT").connect()
    with make_engine(postgres_url).connect() as somebody, looking:
        somebody.execute(text("DELETE FROM people WHERE id = 30"))
        somebody.execute(text("UPDATE people SET age = (SELECT age FROM people WHERE id = 8) WHERE id = 31"))
        with started(world) as job:
            wait_until(lambda: looking.scalar(waiting) or job.done())
            somebody.commit()
            done: Any = job.result(60)
    assert (done.left, done.problems) == (0, ())
    assert versions(world) == {2: 2 * (ROWS - 1)}
    found = ages(world)
    assert 30 not in found
    assert found[31] == 8
