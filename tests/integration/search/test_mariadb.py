"""Statements that only MariaDB has: they search as the plaintext twin's do, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import case, delete, func, select, update
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session
from tests.integration.search.models import SEALED
from tests.integration.search.test_objects import assert_same
from tests.integration.search.test_refused_searches import ROW, assert_refused, few
from tests.support.world import World

pytestmark = pytest.mark.parametrize("_search_world", ["mariadb"], indirect=True, scope="session")

Customer = SEALED.Customer


def test_upserts_meet_the_row_that_has_the_value(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        row = {"tenant_id": "acme", "kind": "customer"}
        statement = mysql.insert(m.Customer)
        statement = statement.on_duplicate_key_update(name=statement.inserted.name, email=statement.inserted.email)
        for new in (
            {"id": 100, "code": "A", "name": "met", "email": "a@new"},
            {"id": 101, "code": "Z", "name": "new", "email": "z@new"},
            {"id": 102, "code": None, "name": "none", "email": "n@new"},
        ):
            session.execute(statement, [{**row, **new}])
        met = select(m.Customer.id, m.Customer.name).where(m.Customer.email.in_(["a@new", "z@new", "n@new"]))
        return sorted(session.execute(met).all())

    assert assert_same(found_world, work) == [(1, "met"), (101, "new"), (102, "none")]


def test_an_update_of_two_tables_is_by_a_search(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        customers, orders = m.Customer.__table__, m.Order.__table__
        both = (
            update(customers)
            .where(customers.c.email == orders.c.email, orders.c.nick == "ADA")
            .values({customers.c.name: "both", customers.c.sponsor: "new@x.org", orders.c.item: customers.c.name})
        )
        session.execute(both)
        gone = delete(orders).where(orders.c.email == customers.c.email, customers.c.nick == "bob")
        session.execute(gone)
        return sorted(session.scalars(select(customers.c.id).where(customers.c.sponsor == "new@x.org")))

    assert assert_same(found_world, work) == [1]


UPSERTS: dict[str, Callable[[Any], Any]] = {
    "set to the index": lambda upsert: upsert.on_duplicate_key_update(email=Customer.code.blind_index),
    "set to another column of the proposed row": lambda upsert: upsert.on_duplicate_key_update(
        sponsor=upsert.inserted.email
    ),
    "set to the index of the proposed row": lambda upsert: upsert.on_duplicate_key_update(
        name=func.hex(upsert.inserted.email.blind_index)
    ),
    "set by a search of few bits": lambda upsert: upsert.on_duplicate_key_update(name=case((few(), "x"), else_="y")),
}


@pytest.mark.parametrize("name", UPSERTS)
def test_an_upsert_is_refused(found_world: World, name: str) -> None:
    assert_refused(found_world, lambda: UPSERTS[name](mysql.insert(Customer).values(**ROW, email="x")))
