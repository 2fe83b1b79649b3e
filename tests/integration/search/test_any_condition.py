"""Whatever conditions are combined over whatever rows, the ids are those that the plaintext twin gives."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import and_, bindparam, exists, func, literal, not_, or_, select
from sqlalchemy.orm import aliased
from tests.integration.search.conftest import empty
from tests.integration.search.models import SEALED, TWIN, Shade
from tests.support.world import World

TEXTS = ("", "a", "A", "a ", "b", "straße", "STRASSE", "é", "é", "ａ")
POOLS: dict[str, tuple[Any, ...]] = {
    "email": TEXTS,
    "sponsor": TEXTS,
    "nick": TEXTS,
    "alias": TEXTS,
    "age": (0, 1, -1, 127, 128, -128, 2**62),
    "score": (0.0, -0.0, 1.5, 1e300),
    "price": (Decimal(0), Decimal("-0.0"), Decimal("1.5"), Decimal("1.50"), Decimal("15E-1"), Decimal(100)),
    "born": (dt.date(1970, 1, 1), dt.date(1, 1, 1)),
    "seen": (
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC),
    ),
    "vip": (True, False),
    "shade": tuple(Shade),
}
COMPARABLE = (("email", "sponsor"), ("sponsor", "email"), ("nick", "alias"), ("age", "age"), ("email", "email"))

Condition = Callable[[SimpleNamespace, Any], Any]


def values_of(name: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(POOLS[name])


def row() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.none() | values_of(name) for name in POOLS})


def of_a_value(name: str) -> st.SearchStrategy[Condition]:
    def compare(how: str, value: Any) -> Condition:
        compared: dict[str, Condition] = {
            "==": lambda m, c: getattr(c, name) == value,
            "!=": lambda m, c: getattr(c, name) != value,
            "value ==": lambda m, c: literal(value, getattr(TWIN.Customer, name).type) == getattr(c, name),
            "literal": lambda m, c: getattr(c, name) == literal(value, getattr(c, name).type),
            "bound": lambda m, c: getattr(c, name) != bindparam(None, value, type_=getattr(c, name).type),
            "in a select": lambda m, c: getattr(c, name).in_(
                select(getattr(other := aliased(m.Customer), name)).where(getattr(other, name) == value)
            ),
        }
        return compared[how]

    hows = st.sampled_from(("==", "==", "!=", "value ==", "literal", "bound", "in a select"))
    return st.builds(compare, hows, values_of(name))


def of_values(name: str) -> st.SearchStrategy[Condition]:
    def among(negated: bool, values: list[Any]) -> Condition:
        if negated:
            return lambda m, c: getattr(c, name).not_in(values)
        return lambda m, c: getattr(c, name).in_(values)

    return st.builds(among, st.booleans(), st.lists(values_of(name), max_size=4))


def of_columns() -> st.SearchStrategy[Condition]:
    def compare(how: str, names: tuple[str, str]) -> Condition:
        left, right = names
        compared: dict[str, Condition] = {
            "==": lambda m, c: getattr(c, left) == getattr(c, right),
            "!=": lambda m, c: getattr(c, left) != getattr(c, right),
            "exists": lambda m, c: exists(
                select((other := aliased(m.Customer)).id).where(
                    getattr(other, left) == getattr(c, right), other.id != c.id
                )
            ),
            "in": lambda m, c: getattr(c, left).in_(select(getattr(aliased(m.Customer), right))),
            "not in": lambda m, c: getattr(c, left).not_in(select(getattr(aliased(m.Customer), right))),
            "first": lambda m, c: (
                getattr(c, left)
                == select(getattr(other := aliased(m.Customer), right)).order_by(other.id).limit(1).scalar_subquery()
            ),
        }
        return compared[how]

    return st.builds(
        compare, st.sampled_from(("==", "!=", "exists", "in", "not in", "first")), st.sampled_from(COMPARABLE)
    )


def of_null(name: str) -> st.SearchStrategy[Condition]:
    return st.sampled_from((lambda m, c: getattr(c, name).is_(None), lambda m, c: getattr(c, name) != None))  # noqa: E711


def conditions() -> st.SearchStrategy[Condition]:
    names = st.sampled_from(sorted(POOLS))
    leaves = names.flatmap(of_a_value) | names.flatmap(of_values) | of_columns() | names.flatmap(of_null)

    def combined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        def conjoin(parts: list[Condition]) -> Condition:
            return lambda m, c: and_(*(part(m, c) for part in parts))

        def disjoin(parts: list[Condition]) -> Condition:
            return lambda m, c: or_(*(part(m, c) for part in parts))

        def negate(part: Condition) -> Condition:
            return lambda m, c: not_(part(m, c))

        several = st.lists(inner, min_size=1, max_size=3)
        return st.builds(conjoin, several) | st.builds(disjoin, several) | st.builds(negate, inner)

    return st.recursive(leaves, combined, max_leaves=6)


@pytest.fixture
def clean_world(_search_world: World) -> Iterator[World]:
    yield _search_world
    empty(_search_world)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(row(), min_size=2, max_size=6), st.lists(conditions(), min_size=8, max_size=16))
def test_any_condition_finds_what_the_twin_finds(
    clean_world: World, some: list[dict[str, Any]], asked: list[Condition]
) -> None:
    with clean_world.vault.tenant("acme"), clean_world.sessions() as session:
        for models in (SEALED, TWIN):
            session.add_all(models.Customer(id=n, tenant_id="acme", **each) for n, each in enumerate(some, 1))
        session.flush()
        session.expunge_all()
        for condition in asked:
            found, groups = [], []
            for m in (SEALED, TWIN):
                statement = select(m.Customer.id).where(condition(m, m.Customer)).order_by(m.Customer.id)
                found.append(session.scalars(statement).all())
                key = m.Customer.nick.blind_index if m.sealed else m.Customer.nick
                counted = select(func.min(m.Customer.id), func.count()).where(condition(m, m.Customer)).group_by(key)
                groups.append(sorted(session.execute(counted).all()))
            assert found[0] == found[1]
            assert groups[0] == groups[1]
        session.rollback()
