"""What somebody has changed behind an adoption's back: it is said, and never served or emptied in silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.adopting import EMAILS, People, next_refused, nothing_changed

from pii_vault.adoption.guard import Guard, Mode
from pii_vault.errors import AdoptionError


@pytest.fixture
def people(local_people: People) -> People:
    local_people.add(*EMAILS)
    return local_people


def past_the_guard(people: People, statement: str, **values: Any) -> None:
    with people.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(text(statement).bindparams(*people._bound(values)), values)


@pytest.fixture
def real(postgres_people: People) -> People:
    postgres_people.add(*EMAILS)
    return postgres_people


def test_what_is_written_past_the_guard_before_the_switch_is_sealed_anew(real: People) -> None:
    """A plaintext alone, a value of another row, and one that does not open: none of them is switched to."""
    real.up("filled")
    for stage in ("filled", "verified"):
        past_the_guard(real, f"UPDATE people SET email = '{stage}@a.example' WHERE id = 1")
        past_the_guard(
            real, "UPDATE people SET email_sealed = (SELECT email_sealed FROM people WHERE id = 1) WHERE id = 2"
        )
        with pytest.raises(AdoptionError, match=r"2 sealed values .* and are sealed anew: id = 1; id = 2"):
            real.adoption.next(quiet=0)
        assert real.stage == stage
        assert real.rows() == [(f"{stage}@a.example",) * 2, (EMAILS[1],) * 2]
        real.adoption.next(quiet=0)
    assert (real.stage, real.drift) == ("switched", ())


def test_what_is_written_past_the_guard_after_it_is_named_and_no_plaintext_is_emptied(real: People) -> None:
    real.up("switched")
    swapped = "UPDATE people SET email_sealed = (SELECT email_sealed FROM people WHERE id = 1) WHERE id = 2"
    past_the_guard(real, swapped)
    next_refused(real, AdoptionError, r"1 sealed values of people\.email are not what the plaintext is: id = 2")
    real.both(2, EMAILS[1])
    real.up("retired")
    past_the_guard(real, swapped)
    with pytest.raises(AdoptionError, match=r"1 sealed values of people\.email are not what the plaintext is: id = 2"):
        real.adoption.next(quiet=0)
    assert (real.stage, [email for email, _ in real.rows()]) == ("retired", [None, EMAILS[1]])
    with pytest.raises(AdoptionError, match=r"1 sealed values of people\.email are not what the plaintext is: id = 2"):
        real.adoption.rollback()
    real.both(2, EMAILS[1])
    real.up("emptied")
    assert real.rows() == [(None, email) for email in EMAILS]


def test_strays_past_the_guard_are_named_at_the_switch_and_on_the_way_back(real: People) -> None:
    real.up("verified")
    past_the_guard(real, "UPDATE people SET email = NULL WHERE id = 2")
    next_refused(real, AdoptionError, "1 rows of people hold 'email_sealed' and no 'email': id = 2")
    real.both(2, EMAILS[1])
    real.up("switched")
    past_the_guard(real, "UPDATE people SET email = NULL WHERE id = 2")
    assert real.drift == ("1 rows hold 'email_sealed' and no 'email'",)
    with nothing_changed(real, AdoptionError, "1 rows of people hold 'email_sealed' and no 'email': id = 2"):
        real.adoption.rollback()


@pytest.mark.parametrize("stage", ["added", "verified"])
def test_without_its_guard_an_adoption_begins_anew_and_falls_back_no_longer(people: People, stage: str) -> None:
    people.up("filled")
    people.adoption.allow_fallback(datetime.now(UTC) + timedelta(days=1))
    if stage == "added":
        people.adoption.rollback()
    else:
        people.up("verified")
    drop_guard(people)
    assert people.drift == ("the guard is missing, or is not ours, and at this stage it empties the sealed column",)
    people.sql("UPDATE people SET email = 'new@a.example' WHERE id = 1")
    with pytest.raises(AdoptionError, match="its adoption is taken back to its beginning"):
        people.adoption.next()
    status = people.adoption.status()
    assert (status.stage, status.fallback_until, status.drift) == ("none", None, ())
    people.up("added")
    assert people.rows()[0] == ("new@a.example", "new@a.example")
    people.up("switched")


@pytest.mark.parametrize("stage", ["switched", "retired"])
def test_without_its_guard_a_sealed_column_is_compared_before_anything_else(people: People, stage: str) -> None:
    people.up(stage)
    drop_guard(people)
    people.sql("UPDATE people SET email = 'new@a.example' WHERE id = 1")
    if stage == "switched":
        with pytest.raises(AdoptionError, match="was not there, and is again"):
            people.adoption.next(quiet=0)
    for _ in range(2):
        with pytest.raises(AdoptionError, match=r"are not what the plaintext is: id = 1"):
            people.adoption.next(quiet=0)
    assert people.stage == stage
    assert people.rows()[0] == ("new@a.example", EMAILS[0])


def test_a_guard_that_is_left_is_taken_away(people: People) -> None:
    people.up("added")
    drop_guard(people)
    with pytest.raises(AdoptionError):
        people.adoption.next()
    with people.engine.begin() as connection:
        guard(people).install(connection, Mode.EMPTIES_SEALED)
    assert people.drift == ("the guard empties the sealed column, and at this stage there is none",)
    assert people.adoption.rollback().stage == "none"
    assert people.drift == ()


def guard(people: People) -> Any:
    return Guard(people.engine.dialect, people.adoption.pair, ("id",))


def drop_guard(people: People) -> None:
    with people.engine.begin() as connection:
        guard(people).remove(connection)
