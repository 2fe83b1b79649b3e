"""What tokens cannot answer is refused when it is built or compiled, and the message names the column and a way out."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    LargeBinary,
    String,
    all_,
    and_,
    any_,
    bindparam,
    case,
    cast,
    collate,
    column,
    delete,
    desc,
    exists,
    func,
    insert,
    label,
    literal,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    type_coerce,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased
from tests.integration.search.models import SEALED
from tests.support.world import World

from pii_vault.errors import BlindIndexError, ConfigurationError, UnsupportedOperationError

Customer, Order, Company = SEALED.Customer, SEALED.Order, SEALED.Company
customers, orders = Customer.__table__, Order.__table__
Other = aliased(Customer)
Statement = Callable[[], Any]

email, index = Customer.email, Customer.email.blind_index
VALUE = "a"
last4 = Customer.contact.token("last4")


def few() -> Any:
    return Customer.contact.token("weak").candidates("x.org")


CONDITIONS: dict[str, Statement] = {
    "columns of different indexes": lambda: Customer.email == Customer.code,
    "columns of different indexes, joined": lambda: exists().where(aliased(Order).email == Customer.contact),
    "columns of different normalisers": lambda: Customer.email == Customer.nick,
    "columns of different types": lambda: Customer.age == Customer.price,
    "same column of tables with different indexes": lambda: exists().where(aliased(Order).total == Customer.price),
    "in_ select of a different index": lambda: Customer.code.in_(select(Order.email)),
    "== scalar subquery of a different index": lambda: Customer.code == select(Order.email).limit(1).scalar_subquery(),
    "indexed and plain column": lambda: Customer.email == Customer.name,
    "plain and indexed column": lambda: Customer.name == Customer.email,
    "indexed and sealed column": lambda: Customer.email == Customer.note,
    "sealed and indexed column": lambda: Customer.note == Customer.email,
    "index and sealed column": lambda: index == Customer.note,
    "index and plain column": lambda: index == Customer.name,
    "plain column and index": lambda: Customer.name == index,
    "index and another column": lambda: index == Customer.code,
    "token and index": lambda: last4 == Customer.contact,
    "token and token": lambda: last4 == Customer.contact.token("prefix3"),
    "in_ plain select": lambda: Customer.email.in_(select(Other.name)),
    "plain in_ select": lambda: Customer.name.in_(select(Other.email)),
    "plain in_ select of the index": lambda: Customer.name.in_(select(Other.email.blind_index)),
    "index in_ plain select": lambda: index.in_(select(Other.name)),
    "index in_ select of two": lambda: tuple_(index, Customer.id).in_(select(Other.email.blind_index, Other.id)),
    "in_ union with a plain select": lambda: Customer.email.in_(union(select(Order.email), select(Other.name))),
    "in_ union of unions": lambda: Customer.email.in_(
        union_all(union(select(Order.email), select(Other.email)).subquery().select(), select(Order.email))
    ),
    "in_ columns": lambda: Customer.email.in_([Customer.sponsor, literal("x")]),
    "in_ values and an expression": lambda: Customer.email.in_(["x", func.lower("X")]),
    "tuple": lambda: tuple_(Customer.id, Customer.email).in_([(1, "x")]),
    "tuple of the index": lambda: tuple_(Customer.id, index).in_([(1, "x")]),
    "tuple of the index and literals": lambda: tuple_(index, Customer.id).in_([(literal("x"), 1)]),
    "tuple == tuple": lambda: tuple_(Customer.id, Customer.email) == tuple_(1, "x"),
    "any_": lambda: Customer.email == any_(select(Order.email).scalar_subquery()),
    "all_": lambda: Customer.email == all_(select(Order.email).scalar_subquery()),
    "literal == any_": lambda: literal("x") == any_(select(Order.email).scalar_subquery()),
    "literal == any_ of the index": lambda: literal("x") == any_(select(Order.email.blind_index).scalar_subquery()),
    "literal == scalar subquery": lambda: literal("x") == select(Order.email).limit(1).scalar_subquery(),
    "literal == scalar subquery of the index": lambda: (
        literal("x") == select(Order.email.blind_index).limit(1).scalar_subquery()
    ),
    "scalar subquery of the index == value": lambda: select(Order.email.blind_index).limit(1).scalar_subquery() == "x",
    "plain column == scalar subquery of the index": lambda: (
        Customer.name == select(Order.email.blind_index).limit(1).scalar_subquery()
    ),
    "literal == column of a subquery of the index": lambda: exists(
        select((s := select(index.label("t"), Customer.id).subquery()).c.id).where(literal("x") == s.c.t)
    ),
    "plain column == column of a subquery of the index": lambda: exists(
        select((s := select(index.label("t"), Customer.id).subquery()).c.id).where(Customer.name == s.c.t)
    ),
    "index == column of a subquery of the index": lambda: exists(
        select((s := select(Other.email.blind_index.label("t")).subquery()).c.t).where(index == s.c.t)
    ),
    "like": lambda: email.like("a%"),
    "ilike": lambda: email.ilike("a%"),
    "startswith": lambda: email.startswith("a"),
    "contains": lambda: email.contains("a"),
    "regexp_match": lambda: email.regexp_match("a"),
    "<": lambda: Customer.age < 3,
    "< literal": lambda: Customer.age < literal(3),
    "literal <": lambda: literal(3) < Customer.age,
    ">= another column": lambda: Customer.age >= Other.age,
    "between": lambda: Customer.born.between(dt.date(1800, 1, 1), dt.date(1900, 1, 1)),
    "between literals": lambda: Customer.age.between(literal(1), literal(2)),
    "is distinct from": lambda: email.is_distinct_from("x"),
    "is distinct from a column": lambda: email.is_distinct_from(Customer.sponsor),
    "is true": lambda: Customer.vip.is_(True),
    "a boolean as a condition": lambda: Customer.vip,
    "not a boolean": lambda: ~Customer.vip,
    "a boolean and another condition": lambda: and_(Customer.vip, Customer.id > 0),
    "arithmetic": lambda: Customer.age + 1 == 37,
    "arithmetic with a literal": lambda: Customer.age + literal(1) == literal(37),
    "own operator": lambda: email.op("=")("x"),
    "own operator on a literal": lambda: email.op("=")(literal("x")),
    "index like": lambda: index.like("a%"),
    "index <": lambda: index < "x",
    "index < literal": lambda: index < literal("x"),
    "literal < index": lambda: literal("x") < index,
    "index < index": lambda: index < Other.email.blind_index,
    "index between": lambda: index.between("a", "b"),
    "index is distinct from": lambda: index.is_distinct_from("x"),
    "index own operator": lambda: index.op("=")(literal("x")),
    "index || text": lambda: index + "x" == "y",
    "text || index": lambda: literal("x") + index == literal("y"),
    "index as a condition": lambda: index,
    "label of the index": lambda: index.label("t") == "x",
    "literal == label of the index of a subquery": lambda: literal("x") == index.label("t") + literal(""),
    "lower": lambda: func.lower(email) == "x",
    "lower of a literal": lambda: email == func.lower("X"),
    "lower of the index": lambda: func.lower(index) == "x",
    "length of the index": lambda: func.length(index) == 16,
    "hex of the index": lambda: func.hex(index) == "00",
    "coalesce": lambda: func.coalesce(email, "x") == "x",
    "coalesce of the index": lambda: func.coalesce(index, "x") == "x",
    "coalesce of the index on the right": lambda: literal("x") == func.coalesce(index, literal("x")),
    "coalesce with the column": lambda: email == func.coalesce(Customer.sponsor, "x"),
    "nullif": lambda: func.nullif(email, "x").is_(None),
    "nullif of the index": lambda: func.nullif(index, "x").is_(None),
    "concat": lambda: email + literal("x") == literal("y"),
    "cast": lambda: cast(email, String) == "x",
    "cast of the value": lambda: email == cast("x", String),
    "cast of the index": lambda: cast(index, String) == "x",
    "collate": lambda: collate(email, "NOCASE") == literal("x"),
    "case of it": lambda: case((Customer.id == 1, email), else_=Customer.sponsor) == "x",
    "== case": lambda: email == case((Customer.id == 1, "x"), else_="y"),
    "case on it": lambda: case({"x": 1}, value=email, else_=0) == 1,
    "case on the index": lambda: case({"x": 1}, value=index, else_=0) == 1,
    "case of the index": lambda: case((Customer.id == 1, index), else_=None) == literal("x"),
    "== literal column": lambda: email == literal_column("'x'"),
    "== text": lambda: email == literal_column("'x'", String),
    "type_coerce of the value": lambda: email == type_coerce("x", String),
    "count distinct of it": lambda: func.count(email.distinct()) > 1,
    "unindexed": lambda: Customer.note == "x",
    "unindexed in_": lambda: Customer.note.in_(["x"]),
    "unindexed literal": lambda: Customer.note == literal("x"),
    "!= inexact": lambda: Customer.weak != "a",
    "== inexact": lambda: Customer.weak == "a",
    "== inexact literal": lambda: Customer.weak == literal("a"),
    "inexact on the right": lambda: literal("a") == Customer.weak,
    "inexact index on the right": lambda: literal("a") == Customer.weak.blind_index,
    "inexact by a lambda": lambda: and_(lambda: Customer.weak == VALUE, Customer.id > 0),
    "in_ inexact": lambda: Customer.weak.in_(["a"]),
    "in_ inexact expanding": lambda: Customer.weak.in_(bindparam("w", expanding=True)),
    "inexact columns": lambda: Customer.weak == Other.weak,
    "inexact in_ select": lambda: Customer.weak.in_(select(Other.weak)),
    "not inexact": lambda: not_(few()),
    "not or of inexact": lambda: ~or_(few(), Customer.id == 1),
    "not and of inexact": lambda: ~and_(few(), Customer.id == 1),
    "inexact is false": lambda: few().is_(False),
    "inexact == false": lambda: few() == literal(0),
    "case of inexact": lambda: case((few(), 1), else_=0) == 1,
    "not exists of inexact": lambda: ~exists(select(Other.id).where(Other.contact.token("weak").candidates("x"))),
    "exists of inexact": lambda: exists(select(Other.id).where(Other.contact.token("weak").candidates("x"))),
    "not_in select of inexact": lambda: Customer.id.not_in(
        select(Other.id).where(Other.contact.token("weak").candidates("x"))
    ),
    "not any of inexact": lambda: ~Customer.sponsored.any(Customer.contact.token("weak").candidates("x")),
    "> count of inexact": lambda: (
        select(func.count(Other.id)).where(Other.contact.token("weak").candidates("x")).scalar_subquery() < 1
    ),
}

SELECTS: dict[str, Statement] = {
    "order by": lambda: select(Customer.id).order_by(email),
    "order by desc": lambda: select(Customer.id).order_by(email.desc()),
    "order by name": lambda: select(Customer.id, email).order_by("email"),
    "order by a label's name": lambda: select(email.label("e")).order_by("e"),
    "order by the index": lambda: select(Customer.id).order_by(index),
    "order by the index, desc": lambda: select(Customer.id).order_by(desc(index)),
    "order by the index, nulls last": lambda: select(Customer.id).order_by(index.asc().nulls_last()),
    "order by a label of the index": lambda: select(t := index.label("t")).order_by(t),
    "order by the name of a label of the index": lambda: select(index.label("t")).order_by("t"),
    "order by the name of a label of the index, desc": lambda: select(index.label("t")).order_by(desc("t")),
    "order by an unqualified label of the index": lambda: select(index.label("t")).order_by(column("t")),
    "order by the index of a subquery": lambda: select((s := select(index.label("t")).subquery()).c.t).order_by(s.c.t),
    "order by a function of the index": lambda: select(Customer.id).order_by(func.hex(index)),
    "order by a case of the index": lambda: select(Customer.id).order_by(case((Customer.id == 1, index))),
    "row_number by the index": lambda: select(func.row_number().over(order_by=index)),
    "row_number by it": lambda: select(func.row_number().over(order_by=email)),
    "partition by it": lambda: select(func.row_number().over(partition_by=email)),
    "first_value of the index": lambda: select(func.first_value(index).over(order_by=Customer.id)),
    "group by": lambda: select(func.count()).group_by(email),
    "group by its name": lambda: select(email, func.count()).group_by("email"),
    "group by a function of the index": lambda: select(func.count()).group_by(func.hex(index)),
    "distinct": lambda: select(email).distinct(),
    "count distinct": lambda: select(func.count(email.distinct())),
    "maximum": lambda: select(func.max(email)),
    "maximum of the index": lambda: select(func.max(index)),
    "minimum of the index": lambda: select(func.min(index)),
    "minimum of the index in HAVING": lambda: (
        select(Customer.age.blind_index).group_by(Customer.age.blind_index).having(func.min(index) == literal("x"))
    ),
    "lower of the index": lambda: select(func.lower(index)),
    "index || text": lambda: select(literal("x") + index),
    "concatenation of indexes": lambda: select(func.group_concat(index, ",")),
    "union": lambda: union(select(email), select(Customer.sponsor)),
    "union all of columns": lambda: union_all(select(email), select(Customer.sponsor)),
    "union all ordered by the index": lambda: union_all(select(index.label("t")), select(index.label("t"))).order_by(
        "t"
    ),
    "label of another type": lambda: select(label("e", email, String)),
    "cast": lambda: select(cast(email, LargeBinary)),
    "join on different indexes": lambda: select(Customer.id).join(Order, Order.email == Customer.code),
    "join on a plain column": lambda: select(Customer.id).join(Order, Order.item == Customer.email),
    "join on VALUES": lambda: select(Customer.id).join(
        v := values(column("e", String), name="v").data([("x",)]), v.c.e == Customer.email
    ),
    "join on a subquery of a different index": lambda: select(Customer.id).join(
        s := select(Order.total).subquery(), s.c.total == Customer.price
    ),
    "inexact in a join": lambda: select(Customer.id).join(Order, and_(Order.id == Customer.id, few())),
    "inexact in an outer join": lambda: select(Customer.id).outerjoin(Order, and_(Order.id == Customer.id, few())),
    "inexact in HAVING": lambda: (
        select(Customer.contact.blind_index).group_by(Customer.contact.blind_index).having(few())
    ),
    "inexact selected": lambda: select(Customer.id, few()),
    "inexact in ORDER BY": lambda: select(Customer.id).order_by(few()),
    "inexact in a filter": lambda: select(func.count(Customer.id).filter(few())),
    "inexact in a case": lambda: select(case((few(), 1), else_=0)),
    "inexact in a scalar subquery": lambda: select(select(Other.id).where(few()).limit(1).scalar_subquery()),
    "inexact in an exists that is selected": lambda: select(exists(select(Other.id).where(few()))),
}

ROW = {"id": 99, "tenant_id": "acme", "kind": "customer"}

WRITES: dict[str, Callable[[Any], Any]] = {
    "update to another column of the same index": lambda _: update(Customer).values(sponsor=Customer.email),
    "update to the index": lambda _: update(Customer).values(sponsor=index),
    "update to a literal": lambda _: update(Customer).values(email=literal("x")),
    "update where columns of different indexes": lambda _: (
        update(Customer).where(Customer.email == Customer.code).values(name="x")
    ),
    "update where on the index <": lambda _: update(customers).where(literal("x") < index).values(name="x"),
    "update of a plain column to a function of the index": lambda _: update(Customer).values(name=func.hex(index)),
    "update where inexact": lambda _: update(Customer).where(few()).values(name="x"),
    "update where in_ select of inexact": lambda _: (
        update(Order).where(Order.id.in_(select(Customer.id).where(few()))).values(item="x")
    ),
    "update where exists of inexact": lambda _: (
        update(Order).where(exists(select(Customer.id).where(few()))).values(item="x")
    ),
    "update from a subquery of inexact": lambda _: (
        update(orders).where(orders.c.id == select(customers.c.id).where(few()).subquery().c.id).values(item="x")
    ),
    "update to a scalar subquery of inexact": lambda _: update(Order).values(
        item=select(Customer.name).where(few()).limit(1).scalar_subquery()
    ),
    "update from a common table expression of inexact": lambda _: (
        update(Order).where(Order.id.in_(select(select(Customer.id).where(few()).cte().c.id))).values(item="x")
    ),
    "delete where inexact": lambda _: delete(Customer).where(few()),
    "delete where in_ select of inexact": lambda _: delete(Order).where(Order.id.in_(select(Customer.id).where(few()))),
    "update in a common table expression, where inexact": lambda _: select(
        update(customers).where(few()).values(name="x").returning(customers.c.id).cte()
    ),
    "insert from select": lambda _: insert(Order).from_select(
        ["id", "tenant_id", "item", "email"], select(Order.id + 9, Order.tenant_id, Order.item, Order.email)
    ),
    "insert from select of another column of the same index": lambda _: insert(Order).from_select(
        ["id", "tenant_id", "item", "email"], select(Customer.id + 9, Customer.tenant_id, Customer.name, Customer.email)
    ),
    "insert from select of inexact": lambda _: insert(Order).from_select(
        ["id", "tenant_id", "item"], select(Customer.id + 9, Customer.tenant_id, Customer.name).where(few())
    ),
    "update by a parameter that is searched for": lambda _: (
        update(Customer)
        .where(Customer.sponsor == (who := bindparam("who", "x", type_=Customer.email.type)))
        .values(email=who)
    ),
    "a parameter for two columns of different indexes": lambda _: select(Customer.id).where(
        or_(Customer.email == (who := bindparam("who", "x")), Customer.code == who)
    ),
    "a parameter for an indexed and a plain column": lambda _: select(Customer.id).where(
        or_(Customer.email == (who := bindparam("who", "x", type_=String)), Customer.name == who)
    ),
    "a parameter for a plain and an indexed column": lambda _: select(Customer.id).where(
        or_(Customer.name == (who := bindparam("who", "x", type_=String)), Customer.email == who)
    ),
    "upsert on it": lambda upsert: (
        upsert(Customer).values(**ROW).on_conflict_do_nothing(index_elements=[Customer.code])
    ),
    "upsert on its name": lambda upsert: upsert(Customer).values(**ROW).on_conflict_do_nothing(index_elements=["code"]),
    "upsert on a function of the index": lambda upsert: (
        upsert(Customer).values(**ROW).on_conflict_do_nothing(index_elements=[func.hex(Customer.code.blind_index)])
    ),
    "upsert set to the index": lambda upsert: (
        upsert(Customer)
        .values(**ROW)
        .on_conflict_do_update(index_elements=[Customer.code.blind_index], set_={"email": Customer.code.blind_index})
    ),
    "upsert set to another column of the proposed row": lambda upsert: (
        statement := upsert(Customer).values(**ROW, email="x")
    ).on_conflict_do_update(index_elements=[Customer.code.blind_index], set_={"sponsor": statement.excluded.email}),
    "upsert where inexact": lambda upsert: (
        upsert(Customer)
        .values(**ROW)
        .on_conflict_do_update(index_elements=[Customer.code.blind_index], set_={"name": "x"}, where=few())
    ),
}

NAMES_THE_COLUMN = (
    r"(?s)(customers\.(email|sponsor|nick|code|contact|age|price|born|vip|weak|note)|companies\.vat|"
    r"orders\.(email|total)|parameter 'who')"
)


def run(world: World, build: Callable[[], Any]) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        session.execute(build(), {"w": ["a"]} if "expanding" in repr(build) else {})


def assert_refused(world: World, build: Callable[[], Any]) -> None:
    with pytest.raises((UnsupportedOperationError, ConfigurationError, BlindIndexError)) as caught:
        run(world, build)
    error = caught.value
    assert error.hint
    assert re.search(NAMES_THE_COLUMN, str(error)), str(error)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_refused(found_world: World, name: str) -> None:
    assert_refused(found_world, lambda: select(Customer.id).where(CONDITIONS[name]()))


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_of_a_join_update_or_delete_is_refused(found_world: World, name: str) -> None:
    for build in (
        lambda: select(Customer.id).join(Order, and_(Order.id == Customer.id, CONDITIONS[name]())),
        lambda: update(Customer).values(name="x").where(CONDITIONS[name]()),
        lambda: delete(Customer).where(CONDITIONS[name]()),
        lambda: select(Customer.id).where(or_(Customer.id == 1, ~and_(Customer.id == 2, CONDITIONS[name]()))),
        lambda: select(func.count()).group_by(Customer.id).having(CONDITIONS[name]()),
    ):
        assert_refused(found_world, build)


@pytest.mark.parametrize("name", SELECTS)
def test_a_select_is_refused(found_world: World, name: str) -> None:
    assert_refused(found_world, SELECTS[name])


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_refused(found_world: World, name: str) -> None:
    upsert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}.get(found_world.engine.dialect.name)
    if name.startswith("upsert") and upsert is None:
        pytest.skip("MariaDB has upserts of its own kind")
    assert_refused(found_world, lambda: WRITES[name](upsert))
