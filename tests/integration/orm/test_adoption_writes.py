"""Whoever writes a column that is being adopted, or the sealed one beside it, writes both: in every way there is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, bindparam, func, insert, literal, select
from sqlalchemy import update as update_of
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session
from tests.integration.orm import adopting
from tests.integration.orm.adopting import Person, Switched, emails, people, stored
from tests.support.canary import Secrets, leaks, log_leaks
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.errors import (
    AdoptionError,
    ConfigurationError,
    NoTenantError,
    PiiVaultError,
    TenantMismatchError,
    UnsupportedOperationError,
)
from pii_vault.orm import engine
from pii_vault.scope import Scope

people_world = adopting.people_world
CANARY = "canary-7Qw9ZkPpYv2"
OTHER = "canary-Lm4RtXx8Ns6"
SECRETS = Secrets(CANARY, OTHER)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "tenant_id": "acme", "name": f"n{number}", "email": f"{number}@new", **more}


def rows(count: int) -> list[dict[str, Any]]:
    return [row(number) for number in range(1, count + 1)]


def by_add(session: Session, rows: list[Any]) -> None:
    session.add_all(Person(**each) for each in rows)


def by_add_of_the_other_attribute(session: Session, rows: list[Any]) -> None:
    session.add_all(Switched(**each) for each in rows)


def by_merge(session: Session, rows: list[Any]) -> None:
    for each in rows:
        session.merge(Person(**each))


def by_orm_insert(session: Session, rows: list[Any]) -> None:
    session.execute(insert(Person), rows)


def by_orm_insert_of_the_other_attribute(session: Session, rows: list[Any]) -> None:
    session.execute(insert(Switched), rows)


def by_orm_insert_values(session: Session, rows: list[Any]) -> None:
    session.execute(insert(Person).values(rows))


def by_orm_insert_values_of_the_other_attribute(session: Session, rows: list[Any]) -> None:
    session.execute(insert(Switched).values(rows))


def by_orm_insert_of_one_value(session: Session, rows: list[Any]) -> None:
    for each in rows:
        session.execute(insert(Switched).values({getattr(Switched, key): value for key, value in each.items()}))


def by_orm_insert_with_a_common_value(session: Session, rows: list[Any]) -> None:
    for each in rows:
        email = each.pop("email")
        session.execute(insert(Person).values(email=email), [each])
        each["email"] = email


def by_bulk_save_objects(session: Session, rows: list[Any]) -> None:
    session.bulk_save_objects([Person(**each) for each in rows], return_defaults=True)


def by_bulk_insert_mappings(session: Session, rows: list[Any]) -> None:
    session.bulk_insert_mappings(Person, rows)


def by_core_insert(session: Session, rows: list[Any]) -> None:
    session.connection().execute(insert(people), rows)


def by_core_insert_of_the_sealed_column(session: Session, rows: list[Any]) -> None:
    sealed = [{**each, "email_sealed": each["email"]} for each in rows]
    for each in sealed:
        del each["email"]
    session.connection().execute(insert(people), sealed)


def by_core_insert_of_both(session: Session, rows: list[Any]) -> None:
    session.connection().execute(insert(people), [{**each, "email_sealed": each["email"]} for each in rows])


def by_core_insert_of_the_sealed_column_beside_none(session: Session, rows: list[Any]) -> None:
    sealed = [{**each, "email_sealed": each["email"], "email": None} for each in rows]
    session.connection().execute(insert(people), sealed)


def by_core_insert_of_both_beside_none(session: Session, rows: list[Any]) -> None:
    for each in rows:
        email = each["email"]
        session.connection().execute(insert(people).values({**each, "email": None, "email_sealed": email}))


def by_core_insert_of_column_objects(session: Session, rows: list[Any]) -> None:
    for each in rows:
        session.connection().execute(insert(people).values({people.c[key]: value for key, value in each.items()}))


def by_core_insert_of_many_values(session: Session, rows: list[Any]) -> None:
    session.connection().execute(insert(people).values(rows))


def by_core_insert_of_tuples(session: Session, rows: list[Any]) -> None:
    # Each column by its place; what has none gets NULL, and the columns of a pair stand beside each other.
    whole = [tuple(each.get(column.key) for column in people.columns) for each in rows]
    with_plan = [tuple("free" if c.key == "plan" else v for c, v in zip(people.c, each, strict=True)) for each in whole]
    session.connection().execute(insert(people).values(with_plan))


def by_core_insert_of_bound_parameters(session: Session, rows: list[Any]) -> None:
    statement = insert(people).values({key: bindparam(f"my_{key}") for key in rows[0]})
    session.connection().execute(statement, [{f"my_{key}": value for key, value in each.items()} for each in rows])


def by_core_insert_of_one_parameter_for_both(session: Session, rows: list[Any]) -> None:
    statement = insert(people).values(
        id=bindparam("my_id"), tenant_id="acme", email=bindparam("mine"), email_sealed=bindparam("mine")
    )
    session.connection().execute(statement, [{"my_id": each["id"], "mine": each["email"]} for each in rows])


def by_core_insert_of_parameters_with_none(session: Session, rows: list[Any]) -> None:
    statement = insert(people).values(id=bindparam("my_id"), tenant_id="acme", email=bindparam("e"), email_sealed=None)
    session.connection().execute(statement, [{"my_id": each["id"], "e": each["email"]} for each in rows])


def by_core_insert_of_many_values_with_parameters(session: Session, rows: list[Any]) -> None:
    values = [{**each, "email": bindparam(f"email_of_{each['id']}")} for each in rows]
    session.connection().execute(
        insert(people).values(values), {f"email_of_{each['id']}": each["email"] for each in rows}
    )


def by_upsert(session: Session, rows: list[Any]) -> None:
    make = insert_of(session)
    statement = make(people)
    session.execute(conflicting(statement, {"email": proposed(statement).email}), rows)


INSERTS = [value for name, value in list(globals().items()) if name.startswith("by_")]


def insert_of(session: Session) -> Any:
    dialects: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert, "mysql": mysql.insert}
    return dialects.get(session.get_bind().dialect.name, mysql.insert)


def proposed(statement: Any) -> Any:
    return statement.excluded if hasattr(statement, "excluded") else statement.inserted


def conflicting(statement: Any, assigned: Any) -> Any:
    if hasattr(statement, "excluded"):
        return statement.on_conflict_do_update(index_elements=["id"], set_=assigned)
    return statement.on_duplicate_key_update(assigned)


@pytest.mark.parametrize("write", INSERTS)
def test_one_row_and_several_are_inserted(people_world: World, write: Callable[..., None]) -> None:
    for some in (rows(1), rows(4)[1:]):
        with people_world.session() as session:
            write(session, some)
    assert emails(people_world) == {each["id"]: each["email"] for each in rows(4)}


@pytest.mark.parametrize("write", [by_add, by_orm_insert, by_core_insert, by_bulk_insert_mappings])
def test_a_thousand_rows_are_inserted(people_world: World, write: Callable[..., None]) -> None:
    with people_world.session() as session:
        write(session, rows(1000))
    assert len(emails(people_world)) == 1000


@pytest.mark.parametrize("write", INSERTS)
def test_rows_without_a_value_have_none_in_both(people_world: World, write: Callable[..., None]) -> None:
    with people_world.session() as session:
        write(session, [row(1, email=None), row(2, email=None)])
        write(session, [row(3), row(4, email=None)] if write is not by_upsert else [row(3)])
    assert emails(people_world)[1] is None
    assert emails(people_world)[3] == "3@new"


def update_object(session: Session, email: str | None) -> None:
    session.get_one(Person, 1).email = email


def update_the_other_attribute(session: Session, email: str | None) -> None:
    session.get_one(Person, 1).email_sealed = email


def update_both_attributes(session: Session, email: str | None) -> None:
    person = session.get_one(Person, 1)
    person.email = person.email_sealed = email


def update_by_merge(session: Session, email: str | None) -> None:
    session.merge(Person(id=1, tenant_id="acme", email=email))


def update_by_orm_statement(session: Session, email: str | None) -> None:
    session.execute(update_of(Person).where(Person.id == 1).values(email=email))


def update_by_orm_statement_of_the_other_attribute(session: Session, email: str | None) -> None:
    session.execute(update_of(Switched).where(Switched.id == 1).values(email=email))


def update_by_orm_statement_that_fetches(session: Session, email: str | None) -> None:
    session.execute(
        update_of(Person).where(Person.id == 1).values({Person.email: email}),
        execution_options={"synchronize_session": "fetch"},
    )


def update_by_orm_bulk(session: Session, email: str | None) -> None:
    session.execute(update_of(Person), [{"id": 1, "email": "first"}, {"id": 1, "email": email}])


def update_by_mappings(session: Session, email: str | None) -> None:
    session.bulk_update_mappings(Switched, [{"id": 1, "email": email}])


def update_by_core(session: Session, email: str | None) -> None:
    session.connection().execute(update_of(people).where(people.c.id == 1).values(email=email))


def update_by_core_parameters(session: Session, email: str | None) -> None:
    session.connection().execute(update_of(people).where(people.c.id == 1), {"email_sealed": email})


def update_by_ordered_values(session: Session, email: str | None) -> None:
    statement = update_of(people).where(people.c.id == 1)
    session.connection().execute(statement.ordered_values((people.c.email_sealed, email), (people.c.name, "new")))


def update_by_executemany(session: Session, email: str | None) -> None:
    statement = update_of(people).where(people.c.id == bindparam("its_id")).values(email=bindparam("its_email"))
    session.connection().execute(statement, [{"its_id": each, "its_email": email} for each in (1, 9)])


def update_by_a_parameter_with_a_value(session: Session, email: str | None) -> None:
    statement = update_of(people).where(people.c.id == 1).values(email=bindparam("mine", email))
    session.connection().execute(statement)
    session.connection().execute(statement.values(email=bindparam("mine", "nobody")), {"mine": email})


def update_by_typed_literal(session: Session, email: str | None) -> None:
    session.connection().execute(update_of(people).where(people.c.id == 1).values(email=literal(email, String)))


def update_by_upsert(session: Session, email: str | None) -> None:
    session.execute(conflicting(insert_of(session)(people).values(row(1)), {"email": email}))


def update_by_upsert_of_the_other(session: Session, email: str | None) -> None:
    session.execute(conflicting(insert_of(session)(Switched).values(row(1)), {people.c.email_sealed: email}))


def update_by_upsert_of_the_proposed_row(session: Session, email: str | None) -> None:
    statement = insert_of(session)(Switched).values(row(1, email=email))
    session.execute(conflicting(statement, {"email_sealed": proposed(statement).email_sealed}))


def update_by_upsert_of_a_parameter(session: Session, email: str | None) -> None:
    statement = conflicting(insert_of(session)(people).values(row(1)), {"email_sealed": bindparam("mine")})
    session.execute(statement, {"mine": email})


def update_by_upsert_of_both(session: Session, email: str | None) -> None:
    statement = insert_of(session)(Switched).values(row(1, email=email))
    new = proposed(statement)
    session.execute(conflicting(statement, {"email_sealed": new.email_sealed, "email": new.email}))


def update_under_another_name(session: Session, email: str | None) -> None:
    if session.get_bind().dialect.name == "sqlite":
        pytest.skip("SQLAlchemy renders no UPDATE of an alias for SQLite")
    other = people.alias("other")
    session.connection().execute(update_of(other).where(other.c.id == 1).values(email_sealed=email))


UPDATES = [value for name, value in list(globals().items()) if name.startswith("update_") and name != "update_of"]


@pytest.mark.parametrize("write", UPDATES)
@pytest.mark.parametrize("email", ["changed@new", None])
def test_a_row_is_updated(people_world: World, write: Callable[..., None], email: str | None) -> None:
    with people_world.session() as session:
        session.add_all(Person(**each) for each in rows(3))
    with people_world.session() as session:
        write(session, email)
    assert emails(people_world) == {1: email, 2: "2@new", 3: "3@new"}


def test_an_upsert_of_new_rows_is_an_insert(people_world: World) -> None:
    with people_world.session() as session:
        session.execute(conflicting(insert_of(session)(people).values(row(1)), {"email": "changed@new"}))
        statement = conflicting(insert_of(session)(people), {"email_sealed": bindparam("mine")})
        for each in (row(2, mine="2@changed"), row(1, mine="1@changed")):
            session.execute(statement, each)
    assert emails(people_world) == {1: "1@changed", 2: "2@new"}


def test_rows_that_become_objects_are_written_too(people_world: World) -> None:
    dialect = people_world.engine.dialect
    if not dialect.insert_returning:
        pytest.skip("it has no RETURNING")
    whole = (people.c.id, people.c.email)
    with people_world.session() as session:
        made = select(Person).from_statement(insert(Person).values(row(1)).returning(*whole))
        assert session.scalars(made).one().email == "1@new"
        made = select(Person).from_statement(insert(people).returning(*whole))
        assert session.scalars(made, row(2)).one().email == "2@new"
        if dialect.update_returning:
            changed = update_of(people).where(people.c.id == 1).values(email="changed@new").returning(*whole)
            session.expire_all()
            assert session.scalars(select(Person).from_statement(changed)).one().email == "changed@new"
    expected = "changed@new" if dialect.update_returning else "1@new"
    assert emails(people_world) == {1: expected, 2: "2@new"}
    of_another = select(Person).from_statement(insert(people).values(row(3, tenant_id="glob")).returning(people.c.id))
    with people_world.session() as session, pytest.raises(TenantMismatchError):
        session.scalars(of_another)


def test_the_callers_statement_and_parameters_stay_as_they_are(people_world: World) -> None:
    with people_world.session() as session:
        statement = insert_of(session)(people)
        statement = conflicting(statement, {"email": proposed(statement).email}).values(email="1@new")
        before, mine = str(statement.compile(dialect=people_world.engine.dialect)), {"id": 1, "tenant_id": "acme"}
        session.connection().execute(statement, mine)
        assert mine == {"id": 1, "tenant_id": "acme"}
        assert str(statement.compile(dialect=people_world.engine.dialect)) == before
        assert "email_sealed" not in before


def test_all_pairs_of_a_table_are_kept(people_world: World) -> None:
    born = dt.date(1815, 12, 10)
    with people_world.session() as session:
        session.add(Person(**row(1, nick="ada", born=born)))
        session.add(Switched(**row(2, nick="bob", born=born, plan="paid")))
        session.connection().execute(insert(people).values(row(3, nick_sealed="eve", born_sealed=born)))
    with people_world.session() as session:
        session.execute(update_of(people).where(people.c.id == 1).values(nick="Ada", born_sealed=None))
    with people_world.session() as session:
        found = stored(session)
    assert [found[1][name] for name in ("nick_name", "born", "plan")] == ["Ada", None, "free"]
    assert [found[2][name] for name in ("nick_name", "born", "plan")] == ["bob", born, "paid"]
    assert [found[3][name] for name in ("nick_name", "born", "plan")] == ["eve", born, "free"]


def default_of_object(session: Session) -> None:
    person = Person(id=1, tenant_id="acme")
    session.add(person)
    session.flush()
    assert person.plan == "free"


def default_of_the_other_attribute(session: Session) -> None:
    person = Switched(id=1, tenant_id="acme")
    session.add(person)
    session.flush()
    assert person.plan == "free"


DEFAULTS: dict[str, Callable[[Session], Any]] = {
    "an object": default_of_object,
    "the other model": default_of_the_other_attribute,
    "orm": lambda session: session.execute(insert(Person), [{"id": 1, "tenant_id": "acme"}]),
    "orm values": lambda session: session.execute(insert(Switched).values(id=1, tenant_id="acme")),
    "core": lambda session: session.execute(insert(people), {"id": 1, "tenant_id": "acme"}),
    "core values": lambda session: session.execute(insert(people).values(id=1, tenant_id="acme")),
    "many values": lambda session: session.execute(insert(people).values([{"id": 1, "tenant_id": "acme"}])),
    "none beside it": lambda session: session.execute(
        insert(people), {"id": 1, "tenant_id": "acme", "plan_sealed": None}
    ),
}


@pytest.mark.parametrize("write", DEFAULTS.values(), ids=DEFAULTS)
def test_a_constant_default_is_for_both(people_world: World, write: Callable[[Session], Any]) -> None:
    with people_world.session() as session:
        write(session)
    with people_world.session() as session:
        assert stored(session)[1]["plan"] == "free"


def test_an_orm_insert_is_compiled_once(people_world: World) -> None:
    def write(count: int) -> None:
        with people_world.session() as session:
            for number in range(1, count + 1):
                session.execute(insert(Person).values(row(number)))
                session.execute(update_of(Person).where(Person.id == number).values(email="x"))
                session.add(Person(**row(number + 1000)))
                session.flush()
                session.connection().execute(
                    update_of(people).where(people.c.id == 1).values(email=bindparam("b", "x"))
                )

    write(2)
    with people_world.session() as session:
        session.connection().execute(people.delete())
    cache = people_world.engine._compiled_cache
    before = len(cache or ())
    write(100)
    assert len(cache or ()) == before


# Refused.

REFUSED: dict[str, tuple[type[PiiVaultError], Callable[[Session], Any]]] = {
    "different values": (AdoptionError, lambda s: s.execute(insert(people), row(1, email=CANARY, email_sealed=OTHER))),
    "different values in one row of many": (
        AdoptionError,
        lambda s: s.execute(insert(people), [row(1, email_sealed="1@new"), row(2, email=CANARY, email_sealed=OTHER)]),
    ),
    "different values of an object": (
        AdoptionError,
        lambda s: [s.add(Person(**row(1, email=CANARY, email_sealed=OTHER))), s.flush()],
    ),
    "different values in values()": (
        AdoptionError,
        lambda s: s.execute(insert(Person).values(row(1, email=CANARY, email_sealed=OTHER))),
    ),
    "different values in many values()": (
        AdoptionError,
        lambda s: s.execute(insert(people).values([row(1, email=CANARY, email_sealed=OTHER)])),
    ),
    "different parameters": (
        AdoptionError,
        lambda s: s.execute(
            update_of(people).values(email=bindparam("one"), email_sealed=bindparam("other")),
            {"one": CANARY, "other": OTHER},
        ),
    ),
    "an update beside none": (
        AdoptionError,
        lambda s: s.execute(update_of(people), {"email": CANARY, "email_sealed": None}),
    ),
    "an update beside none in values()": (
        AdoptionError,
        lambda s: s.execute(update_of(Person).values(email=None, email_sealed=CANARY)),
    ),
    "different values in an upsert": (
        AdoptionError,
        lambda s: s.execute(conflicting(insert_of(s)(people).values(row(1)), {"email": CANARY, "email_sealed": OTHER})),
    ),
    "a value beside the proposed row": (
        AdoptionError,
        lambda s: s.execute(
            conflicting(
                statement := insert_of(s)(people).values(row(1)),
                {"email": proposed(statement).email, "email_sealed": CANARY},
            )
        ),
    ),
    "rows with and without": (
        AdoptionError,
        lambda s: s.execute(insert(people), [row(1, email=CANARY), {"id": 2, "tenant_id": "acme"}]),
    ),
    "values() with and without": (
        AdoptionError,
        lambda s: s.execute(insert(people).values([row(1, email=CANARY), {"id": 2, "tenant_id": "acme"}])),
    ),
    "a function": (UnsupportedOperationError, lambda s: s.execute(update_of(people).values(email=func.lower(CANARY)))),
    "a column": (UnsupportedOperationError, lambda s: s.execute(update_of(Person).values(email=Person.name))),
    "a function in an object": (
        UnsupportedOperationError,
        lambda s: [s.add(Person(**row(1, email=func.lower(CANARY)))), s.flush()],
    ),
    "a function in many values()": (
        UnsupportedOperationError,
        lambda s: s.execute(insert(people).values([row(1, email=func.lower(CANARY))])),
    ),
    "a function in an upsert": (
        UnsupportedOperationError,
        lambda s: s.execute(conflicting(insert_of(s)(people).values(row(1)), {"email": func.lower(CANARY)})),
    ),
    "another column of the proposed row": (
        UnsupportedOperationError,
        lambda s: s.execute(
            conflicting(statement := insert_of(s)(people).values(row(1)), {"email": proposed(statement).name})
        ),
    ),
    "a function of the parameter": (
        UnsupportedOperationError,
        lambda s: s.execute(update_of(people).values(email=bindparam("e", callable_=lambda: CANARY))),
    ),
    "insert from select": (
        UnsupportedOperationError,
        lambda s: s.execute(insert(people).from_select(["id", "email"], select(people.c.id, people.c.name))),
    ),
    "values() and parameters": (
        UnsupportedOperationError,
        lambda s: s.execute(update_of(people).values(email=CANARY), {"email_sealed": CANARY}),
    ),
    "inside a CTE": (
        UnsupportedOperationError,
        lambda s: s.execute(
            select(insert(people).values(row(1, email=CANARY)).returning(people.c.id).cte("made")),
        ),
    ),
    "one parameter for two columns": (
        UnsupportedOperationError,
        lambda s: s.execute(
            update_of(people).where(people.c.name == bindparam("e")).values(email_sealed=bindparam("e")), {"e": CANARY}
        ),
    ),
    "no text": (PiiVaultError, lambda s: s.execute(insert(people), row(1, email=CANARY.encode()))),
}


@pytest.fixture(autouse=True)
def every_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("INFO", "sqlalchemy.engine")
    yield
    assert log_leaks(caplog.get_records("call"), SECRETS) == []


@pytest.mark.parametrize(("kind", "write"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_equal_is_refused(people_world: World, kind: type[PiiVaultError], write: Any) -> None:
    with people_world.vault.tenant("acme"), people_world.sessions() as session:
        with pytest.raises(kind) as caught:
            write(session)
        assert leaks(caught.value, SECRETS) == []
        assert "persons.email" in str(caught.value) or "parameter 'e'" in str(caught.value)
        session.rollback()
    assert emails(people_world) == {}


def test_a_default_inside_another_statement_is_refused(people_world: World) -> None:
    inside = insert(people).values(id=1, tenant_id="acme").returning(people.c.id).cte("made")
    with people_world.session() as session, pytest.raises(UnsupportedOperationError, match=r"persons\.plan"):
        session.execute(select(inside))


WITHOUT_SCOPE: dict[str, Callable[[Session], Any]] = {
    "insert": lambda session: session.connection().execute(insert(people), row(1, email=CANARY)),
    "insert of none": lambda session: session.connection().execute(insert(people), row(1, email=None)),
    "update": lambda session: session.connection().execute(update_of(people).values(email=CANARY)),
    "update to none": lambda session: session.connection().execute(update_of(people).values(email=None)),
}


@pytest.mark.parametrize("write", WITHOUT_SCOPE.values(), ids=WITHOUT_SCOPE)
def test_no_scope_no_write(people_world: World, write: Any) -> None:
    with people_world.sessions() as session, pytest.raises(NoTenantError) as caught:
        write(session)
    assert leaks(caught.value, SECRETS) == []


def test_other_columns_are_written_without_a_scope(people_world: World) -> None:
    with people_world.sessions() as session:
        session.connection().execute(update_of(people).values(name="x"))


@pytest.mark.parametrize("write", [by_core_insert, by_core_insert_of_many_values, by_orm_insert])
def test_rows_of_another_tenant_are_refused(people_world: World, write: Any) -> None:
    with people_world.vault.tenant("acme"), people_world.sessions() as session, pytest.raises(TenantMismatchError):
        write(session, [row(1, tenant_id="glob")])


def test_each_value_is_counted(people_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    warm = engine.warm

    def counting(scope: Scope, need: int = 0) -> None:
        counted.append(need)
        warm(scope, need)

    monkeypatch.setattr(engine, "warm", counting)
    with people_world.session() as session:
        session.connection().execute(insert(people), rows(10))
    assert counted == [40]  # four sealed columns


# Declared so that it cannot be kept.


def declared(plaintext: Column[Any] | None, sealed: Any = None, *more: Column[Any]) -> Table:
    kind = EncryptedString().adopting("email")
    columns = [] if plaintext is None else [plaintext]
    sealed = Column("email_sealed", kind) if sealed is None else sealed
    return Table("declared", MetaData(), Column("id", Integer, primary_key=True), *columns, sealed, *more)


IMPOSSIBLE: dict[str, Callable[[], Table]] = {
    "no plaintext column": lambda: declared(None),
    "an encrypted one": lambda: declared(Column("email", EncryptedString(context="other"))),
    "a callable default": lambda: declared(Column("email", String, default=lambda: CANARY)),
    "a context-sensitive default": lambda: declared(Column("email", String, default=lambda _context: CANARY)),
    "an SQL default": lambda: declared(Column("email", String, default=func.lower("x"))),
    "a server default": lambda: declared(Column("email", String, server_default="x")),
    "onupdate": lambda: declared(Column("email", String, onupdate="x")),
    "two defaults": lambda: declared(
        Column("email", String, default="x"), Column("email_sealed", EncryptedString().adopting("email"), default="y")
    ),
    "two adopters": lambda: declared(
        Column("email", String), None, Column("more", EncryptedString(context="more").adopting("email"))
    ),
}


@pytest.mark.parametrize("make", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_would_fill_one_column_alone_is_refused_at_first_use(people_world: World, make: Any) -> None:
    table = make()
    with people_world.vault.tenant("acme"), people_world.engine.connect() as connection:
        with pytest.raises(ConfigurationError):
            connection.execute(insert(table), {"email": CANARY})
        with pytest.raises(ConfigurationError):
            connection.execute(update_of(table).values(id=1))


# Whatever is done, in whatever order.

VALUES = st.one_of(st.none(), st.sampled_from(["", "a", "ä@ö", "~", "x" * 90]))
STEPS = st.one_of(
    st.tuples(st.sampled_from(INSERTS), st.lists(VALUES, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(UPDATES), VALUES),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=1, max_size=6))
def test_after_any_writes_both_columns_hold_the_same(people_world: World, steps: list[Any]) -> None:
    if people_world.engine.dialect.name == "sqlite":
        steps = [each for each in steps if each[0] is not update_under_another_name]
    number = 10
    expected: dict[int, str | None] = {1: "first"}
    with people_world.session() as session:
        session.connection().execute(people.delete())
        session.add(Person(**row(1, email="first")))
    for write, what in steps:
        with people_world.session() as session:
            if isinstance(what, list):
                write(session, [row(number + place, email=email) for place, email in enumerate(what)])
                expected.update({number + place: email for place, email in enumerate(what)})
                number += len(what)
            else:
                write(session, what)
                expected[1] = what
    assert emails(people_world) == expected
