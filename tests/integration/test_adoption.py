"""A plaintext column is adopted stage by stage while processes of every release write, and each stage is taken back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import DateTime, Numeric, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.adopting import UP, People
from tests.support.world import World

from pii_vault import EncryptedDateTime, EncryptedNumeric
from pii_vault.errors import AdoptionError
from pii_vault.reencryption.pacing import Pace


def test_all_values_are_there_at_every_stage_up_and_down_and_up_again(people: People) -> None:
    people.add("ann@a.example", "Béa@a.example", None, "")
    people.add("gil@g.example", "ann@a.example", tenant="glob")
    values = [email for email, _ in people.rows()]
    assert people.adoption.status().drift == ()

    def values_at(stage: str) -> None:
        assert (people.stage, people.drift) == (stage, ())
        plain, sealed = zip(*people.rows(), strict=True)
        if stage not in ("emptied",):
            assert list(plain) == values
        if stage not in ("none", "added"):
            assert list(sealed) == values

    for stage in UP:
        assert people.adoption.next(quiet=0, reason="up").stage == stage
        values_at(stage)
    assert [email for email, _ in people.rows()] == [None] * 6
    with pytest.raises(AdoptionError, match="at its last stage"):
        people.adoption.next()
    for stage in ("retired", "switched", "verified", "filled", "added", "none"):
        assert people.adoption.rollback(reason="down").stage == stage
        if stage != "retired":
            values_at(stage)
    with pytest.raises(AdoptionError, match="has not begun"):
        people.adoption.rollback()
    # Somebody writes while there is no guard: what is sealed for it is old, and found when there is one again.
    people.sql("UPDATE people SET email = 'new@a.example' WHERE id = 1")
    people.up("added")
    assert people.rows()[0] == ("new@a.example", "new@a.example")
    people.up("emptied")
    assert [sealed for _, sealed in people.rows()] == ["new@a.example", *values[1:]]
    assert [step.number for step in people.adoption.status().steps] == list(range(1, 19))


def test_what_is_done_to_tenants_is_in_their_audit_logs(people: People) -> None:
    people.add("ann@a.example")
    people.up("emptied")
    people.adoption.rollback()
    told = [entry.details["adoption"] for entry in entries(people.world, "acme")]
    assert [(each["context"], each["stage"]) for each in told] == [
        ("people.email", stage) for stage in ("switched", "retired", "emptied", "retired")
    ]
    assert entries(people.world, "glob") == []
    for tenant in ("acme", "glob"):
        assert people.world.vault.audit.verify(tenant).problems == ()


def entries(world: World, tenant: str) -> list[Any]:
    return [each for each in world.vault.audit.entries(tenant) if each.event == "column.adoption"]


def test_the_release_before_goes_on_until_the_switch(people: People) -> None:
    """It writes the plaintext alone. Nothing of that is lost, and the sealed column never holds what it overwrote."""
    people.add("ann@a.example", "bea@a.example")
    people.up("verified")
    people.sql("UPDATE people SET email = 'ANN@a.example' WHERE id = 1")
    people.add("eve@a.example")
    assert people.rows() == [("ANN@a.example", None), ("bea@a.example",) * 2, ("eve@a.example", None)]
    assert "2 rows were written by somebody who writes 'email' alone" in people.drift
    people.up("switched")
    assert people.rows() == [(each, each) for each in ("ANN@a.example", "bea@a.example", "eve@a.example")]


def test_who_still_writes_the_plaintext_alone_is_seen_before_they_are_refused(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.add("ann@a.example")
    people.up("verified")
    monkeypatch.setattr("pii_vault.adoption.moves.Moves.pause", lambda *_: people.add("eve@a.example"))
    with pytest.raises(AdoptionError, match="1 rows of people were written just now by somebody who writes 'email'"):
        people.adoption.next(quiet=10)
    people.add("bob@a.example")
    assert people.stage == "verified"


def test_who_still_writes_the_plaintext_is_seen_before_the_guard_is_gone(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.add("ann@a.example")
    people.up("retired")
    monkeypatch.setattr("pii_vault.adoption.moves.Moves.pause", lambda *_: people.both(1, "ANN@a.example"))
    with pytest.raises(AdoptionError, match="written just now by somebody who still writes 'email'"):
        people.adoption.next(quiet=10)
    assert (people.stage, people.rows()) == ("retired", [("ANN@a.example", "ANN@a.example")])
    monkeypatch.undo()
    people.up("emptied")
    assert people.rows() == [(None, "ANN@a.example")]


def test_a_table_without_rows_is_adopted(people: People) -> None:
    people.up("emptied")
    assert people.drift == ()


def test_values_are_re_encrypted_and_keys_rotated_at_any_stage(people: People) -> None:
    people.add("ann@a.example", "bea@a.example")
    vault = people.world.vault
    for stage in ("filled", "verified", "switched"):
        people.up(stage)
        vault.rotate("acme")
        people.both(1, f"{stage}@a.example")
        vault.reencrypt("acme", metadata=people.metadata, engine=people.engine)
        assert (people.drift, people.rows()) == ((), [(f"{stage}@a.example",) * 2, ("bea@a.example",) * 2])
    people.up("retired")
    vault.rotate("acme")
    vault.reencrypt("acme", metadata=people.metadata, engine=people.engine)
    assert [sealed for _, sealed in people.rows()] == ["switched@a.example", "bea@a.example"]
    people.adoption.rollback()
    assert people.rows() == [("switched@a.example",) * 2, ("bea@a.example",) * 2]


def test_it_tells_how_far_it_is_and_writes_no_faster_than_it_may(people: People) -> None:
    people.add(*(f"{n}@a.example" for n in range(6)))
    people.up("added")
    told: list[tuple[str, int, int]] = []
    people.adoption.next(pace=Pace(batch=2), progress=lambda *each: told.append(each))
    assert told == [("people.email", done, 6) for done in (0, 2, 4, 6)]
    slept: list[int] = []
    people.sql("UPDATE people SET email_sealed = NULL")
    people.adoption.next(pace=Pace(batch=4, rate=8.0), progress=lambda *each: slept.append(each[1]))
    assert slept[0] == 0
    assert slept[-1] == 6
    assert len(slept) > 4  # while it waits it goes on telling


def test_values_that_a_plain_column_keeps_in_another_form_are_the_same(postgres_people: People) -> None:
    """1.1 is 1.10 in a column of two places, and an instant loses its offset there. Who writes both has the former."""

    class Other(DeclarativeBase):
        pass

    class Price(Other):
        __tablename__ = "prices"
        id: Mapped[int] = mapped_column(primary_key=True)
        amount: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        amount_sealed: Mapped[Decimal | None] = mapped_column(EncryptedNumeric().adopting("amount"))
        since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
        since_sealed: Mapped[datetime | None] = mapped_column(EncryptedDateTime(timezone=True).adopting("since"))

    people, instant = postgres_people, datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))
    Other.metadata.create_all(people.engine)
    values: dict[str, tuple[Any, Any]] = {
        "amount": (EncryptedNumeric(), Decimal("1.1")),
        "since": (EncryptedDateTime(timezone=True), instant),
    }
    people.sql("INSERT INTO prices (id) VALUES (1)")
    for name, (kind, value) in values.items():
        adoption = people.world.vault.adoption(
            f"prices.{name}", metadata=Other.metadata, engine=people.engine, tenant="acme"
        )
        adoption.next()
        sealed = people.sealed(value, context=f"prices.{name}", kind=kind)
        people.sql(f"UPDATE prices SET {name} = :v, {name}_sealed = :s", v=value, s=sealed)
        for stage in UP[1:]:
            assert adoption.next(quiet=0).stage == stage


def test_an_engine_that_begins_its_transactions_itself_is_one_too(local_people: People) -> None:
    """As SQLAlchemy's documentation advises for SQLite."""
    engine = local_people.engine
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    engine.dispose()
    local_people.add("ann@a.example")
    local_people.up("emptied")
    assert (local_people.rows(), local_people.drift) == ([(None, "ann@a.example")], ())
