"""SQL that only the plaintext could answer is refused, when it is built or compiled, and the message names the column.

Randomised ciphertext would answer these with a wrong result and no error, or the database would store plaintext.
"""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
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
    distinct,
    except_,
    except_all,
    exists,
    extract,
    func,
    insert,
    intersect,
    label,
    lambda_stmt,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    tablesample,
    true,
    tuple_,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.exc import ObjectNotExecutableError
from sqlalchemy.orm import Bundle, aliased, with_loader_criteria
from tests.integration.orm.models import SEALED
from tests.support.world import World

from pii_vault.errors import ConfigurationError, UnsupportedOperationError

Statement = Callable[[], Any]

User, Team, Address = SEALED.User, SEALED.Team, SEALED.Address
users, addresses = User.__table__, Address.__table__
Other = aliased(User)


CONDITIONS: dict[str, Statement] = {
    "== value": lambda: User.email == "x",
    "!= value": lambda: User.email != "x",
    "value ==": lambda: "x" == User.email,  # noqa: SIM300
    "in_ values": lambda: User.email.in_(["x", "y"]),
    "not_in values": lambda: User.email.not_in(["x"]),
    "in_ nothing": lambda: User.email.in_([]),
    "in_ literals": lambda: User.email.in_([literal("x")]),
    "like": lambda: User.email.like("a%"),
    "ilike": lambda: User.email.ilike("a%"),
    "contains": lambda: User.email.contains("a"),
    "startswith": lambda: User.email.startswith("a"),
    "startswith literal": lambda: User.email.startswith(literal("a")),
    "regexp_match": lambda: User.email.regexp_match("a"),
    "match": lambda: User.email.match("a"),
    "<": lambda: User.age < 18,
    ">=": lambda: User.age >= 18,
    "between": lambda: User.age.between(1, 2),
    "between literals": lambda: User.age.between(literal(1), literal(2)),
    "own operator": lambda: User.email.op("=")("x"),
    "own operator on a literal": lambda: User.email.op("=")(literal("x")),
    "bool operator": lambda: User.email.bool_op("=")(literal("x")),
    "is distinct from": lambda: User.email.is_distinct_from("x"),
    "is distinct from literal": lambda: User.email.is_distinct_from(literal("x")),
    "is true": lambda: User.age.is_(True),
    "bare": lambda: User.age,
    "not": lambda: not_(User.age),
    "arithmetic": lambda: User.age + 1 > 2,
    "arithmetic with a literal": lambda: User.age + literal(1) > 2,
    "negative": lambda: -User.age > literal(1),
    "== literal": lambda: User.email == literal("x"),
    "== literal of type String": lambda: User.email == literal("x", String),
    "literal ==": lambda: literal("x") == User.email,
    "== bound parameter": lambda: User.email == bindparam("e", "x"),
    "== bound parameter of type String": lambda: User.email == bindparam("e", "x", type_=String),
    "== bound parameter of the column's type": lambda: User.email == bindparam("e", "x", type_=User.email.type),
    "plain == bound parameter of the column's type": lambda: User.name == bindparam("e", "x", type_=User.email.type),
    "== function": lambda: User.email == func.lower("X"),
    "function ==": lambda: func.lower("X") == User.email,
    "== column": lambda: User.email == User.phone,
    "== itself": lambda: User.email == User.email,
    "== alias": lambda: exists().where(User.email == Other.email),
    "== plain column": lambda: User.email == User.name,
    "plain column ==": lambda: User.name == User.email,
    "== literal column": lambda: User.email == literal_column("'x'"),
    "unqualified name": lambda: column("email") == "x",
    "unqualified literal column": lambda: literal_column("email") == "x",
    "== scalar subquery": lambda: User.email == select(Other.email).where(Other.id == 1).scalar_subquery(),
    "plain == scalar subquery": lambda: User.name == select(Other.email).where(Other.id == 1).scalar_subquery(),
    "== plain scalar subquery": lambda: User.email == select(Other.name).where(Other.id == 1).scalar_subquery(),
    "scalar subquery == value": lambda: select(Other.email).scalar_subquery() == "x",
    "scalar subquery is null": lambda: select(Other.email).where(Other.id == 1).scalar_subquery().is_(None),
    "in_ select": lambda: User.email.in_(select(Other.email)),
    "plain in_ select": lambda: User.name.in_(select(Other.email)),
    "plain in_ select of a label": lambda: User.name.in_(select(Other.email.label("name"))),
    "plain in_ select of a subquery": lambda: User.name.in_(select(select(Other.email).subquery())),
    "plain in_ union all": lambda: User.name.in_(union_all(select(Other.email), select(Other.email))),
    "plain not_in select": lambda: User.name.not_in(select(Other.email)),
    "in_ plain select": lambda: User.email.in_(select(Other.name)),
    "tuple": lambda: tuple_(User.tenant_id, User.email).in_([("acme", "x")]),
    "tuple in_ select": lambda: tuple_(User.id, User.name).in_(select(Other.id, Other.email)),
    "tuple == tuple": lambda: tuple_(User.id, User.email) == tuple_(1, "x"),
    "== any": lambda: User.name == any_(select(Other.email).scalar_subquery()),
    "== all": lambda: literal("x") == all_(select(Other.email).scalar_subquery()),
    "lower": lambda: func.lower(User.email) == "x",
    "length": lambda: func.length(User.email) > 3,
    "coalesce": lambda: func.coalesce(User.phone, "x") == "x",
    "nullif": lambda: func.nullif(User.phone, "").is_(None),
    "lower is null": lambda: func.lower(User.email).is_(None),
    "concat": lambda: User.email + literal("x") == "y",
    "concat value": lambda: User.email + "x" == "y",
    "concat on the right": lambda: literal("x").concat(User.email) == "y",
    "cast": lambda: cast(User.email, String) == "x",
    "extract": lambda: extract("year", User.born) == 1815,
    "case": lambda: case((User.id == 1, User.email), else_=literal("x")) == "x",
    "case on it": lambda: case({"x": 1}, value=User.email, else_=0) == 1,
    "collate": lambda: collate(User.email, "C") == literal("x"),
    "label == value": lambda: User.email.label("e") == "x",
    "label == literal": lambda: User.email.label("e") == literal("x"),
    "in or": lambda: or_(User.id == 1, User.email == literal("x")),
    "deep": lambda: not_(and_(User.id == 1, or_(User.id == 2, not_(User.email == literal("x"))))),
    "in exists": lambda: exists().where(Other.email == User.email),
    "in exists of a select": lambda: exists(select(Other.id).where(Other.email == literal("x"))),
    "in any": lambda: User.addresses.any(Address.city == literal("x")),
    "in has": lambda: User.team.has(Team.motto == literal("x")),
    "in a nested subquery": lambda: User.id.in_(
        select(Other.id).where(Other.id.in_(select(Address.user_id).where(Address.city == literal("x"))))
    ),
    "json item": lambda: User.prefs["theme"] == "dark",
    "json item by literal": lambda: User.prefs[literal("theme")] == literal("dark"),
    "array item": lambda: User.tags[0] == "x",
    "array contains": lambda: User.tags.contains(["x"]),
    "null() == expression": lambda: null() == func.lower(User.email),
    "is bound parameter": lambda: User.email.is_(bindparam("e", None)),
    "in_ expanding parameter": lambda: User.email.in_(bindparam("e", expanding=True)),
    "plain in_ text": lambda: User.name.in_(sqlalchemy.text("select email from users").columns(User.email)),
    "plain in_ rows of an update": lambda: User.name.in_(
        select(update(Other).values(name="x").returning(Other.email).cte())
    ),
    "label of another type": lambda: label("e", User.email, String) == "x",
    "column of a label of another type": lambda: exists(
        select((s := select(label("e", User.email, String)).subquery()).c.e).where(s.c.e == "x")
    ),
    "count distinct": lambda: func.count(distinct(User.email)) > 1,
    "count of an expression": lambda: func.count(func.lower(User.email)) > 1,
}

SELECTS: dict[str, Statement] = {
    "order by": lambda: select(User).order_by(User.email),
    "order by desc": lambda: select(User).order_by(User.email.desc()),
    "order by desc()": lambda: select(User).order_by(desc(User.email)),
    "order by nulls last": lambda: select(User).order_by(User.email.asc().nulls_last()),
    "order by name": lambda: select(User.email).order_by("email"),
    "order by name of a column that is not selected": lambda: select(User.id).order_by("email"),
    "order by name, desc": lambda: select(User.email).order_by(desc("email")),
    "order by label": lambda: select(e := User.email.label("e")).order_by(e),
    "order by label, desc": lambda: select(e := User.email.label("e")).order_by(e.desc()),
    "order by name of a label": lambda: select(User.email.label("e")).order_by("e"),
    "order by unqualified column": lambda: select(User.id, User.email).order_by(column("email")),
    "order by label that hides a plain column": lambda: select(User.email.label("name")).order_by("name"),
    "order by label of a scalar subquery": lambda: select(
        User.id, select(Address.city).where(Address.user_id == User.id).limit(1).scalar_subquery().label("c")
    ).order_by("c"),
    "order by function": lambda: select(User).order_by(func.lower(User.email)),
    "order by case": lambda: select(User).order_by(case((User.email == literal("x"), 0), else_=1)),
    "order by subquery column": lambda: select(s := select(User.email).subquery()).order_by(s.c.email),
    "order by alias": lambda: select(Other).order_by(Other.email),
    "order by in a subquery": lambda: select(select(User.id).order_by(User.email).limit(1).subquery()),
    "order by in a scalar subquery": lambda: select(select(User.id).order_by(User.email).limit(1).scalar_subquery()),
    "order by in a common table expression": lambda: select(select(User.id).order_by(User.email).limit(1).cte()),
    "group by": lambda: select(func.count()).select_from(User).group_by(User.email),
    "group by name": lambda: select(User.email, func.count()).group_by("email"),
    "group by label": lambda: select(User.email.label("e"), func.count()).group_by("e"),
    "group by with the primary key": lambda: select(User.email).group_by(User.id, User.email),
    "having": lambda: select(User.team_id).group_by(User.team_id).having(User.email == literal("x")),
    "having maximum": lambda: select(User.team_id).group_by(User.team_id).having(func.max(User.age) > literal(3)),
    "distinct": lambda: select(User.email).distinct(),
    "distinct with another plain column": lambda: select(User.tenant_id, User.email).distinct(),
    "distinct with another table's primary key": lambda: (
        select(Address.id, User.email).join(User, User.id == Address.user_id).distinct()
    ),
    "distinct with an alias's primary key": lambda: select(Other.id, User.email).distinct(),
    "distinct of a label": lambda: select(User.email.label("e")).distinct(),
    "distinct of a subquery": lambda: select(select(User.email).subquery()).distinct(),
    "distinct of a scalar subquery": lambda: select(
        select(Address.city).where(Address.user_id == User.id).limit(1).scalar_subquery()
    ).distinct(),
    "label of another type": lambda: select(label("e", User.email, String)),
    "row_number by its name in an alias named excluded": lambda: select(
        aliased(User, name="excluded").email, func.row_number().over(order_by="email")
    ),
    "join on it in parentheses, in an alias named excluded": lambda: select(Team.id).join(
        e := aliased(User, name="excluded"), func.length(e.email) > 3
    ),
    "sample by it": lambda: select(tablesample(User, func.bernoulli(User.age)).c.id),
    "unnested": lambda: select(func.unnest(User.tags).table_valued("t").render_derived()),
    "unnested, lateral": lambda: select(User.id).join(func.unnest(User.tags).table_valued("t").lateral(), true()),
    "suffix": lambda: select(User.id).suffix_with(desc(User.email)),
    "distinct column": lambda: select(User.email.distinct()),
    "distinct()": lambda: select(distinct(User.email)),
    "count distinct": lambda: select(func.count(distinct(User.email))),
    "count of the distinct column": lambda: select(func.count(User.email.distinct())),
    "count distinct subquery": lambda: select(func.count()).select_from(select(User.email).distinct().subquery()),
    "maximum": lambda: select(func.max(User.email)),
    "minimum": lambda: select(func.min(User.born)),
    "sum": lambda: select(func.sum(User.age)),
    "lower": lambda: select(func.lower(User.email)),
    "length": lambda: select(func.length(User.email)),
    "coalesce": lambda: select(func.coalesce(User.phone, "none")),
    "concat": lambda: select(User.email + literal("x")),
    "concat()": lambda: select(func.concat(User.email, "x")),
    "concat of two columns": lambda: select(User.email + User.phone),
    "literal on the left": lambda: select(literal("x") + User.email),
    "arithmetic": lambda: select(User.age + literal(1)),
    "negative": lambda: select(-User.age),
    "comparison": lambda: select(User.email == literal("x")),
    "cast": lambda: select(cast(User.email, String)),
    "cast to bytes": lambda: select(cast(User.email, LargeBinary)),
    "cast to its own type": lambda: select(cast(User.email, User.email.type)),
    "collate": lambda: select(collate(User.email, "C")),
    "case": lambda: select(case((User.id == 1, User.email), else_=User.phone)),
    "case on it": lambda: select(case((User.email == literal("x"), 1), else_=0)),
    "case of is null and itself": lambda: select(case((User.phone.is_(None), literal("none")), else_=User.phone)),
    "tuple": lambda: select(tuple_(User.id, User.email)),
    "bound value of the type": lambda: select(literal("x", User.email.type)),
    "json item": lambda: select(User.prefs["theme"]),
    "json item by literal": lambda: select(User.prefs[literal("theme")]),
    "row_number by it": lambda: select(func.row_number().over(order_by=User.email)),
    "row_number by its name": lambda: select(User.email, func.row_number().over(order_by="email")),
    "row_number partitioned by it": lambda: select(func.row_number().over(partition_by=User.email)),
    "row_number partitioned by its name": lambda: select(User.email, func.row_number().over(partition_by="email")),
    "first_value": lambda: select(func.first_value(User.email).over(order_by=User.id)),
    "count over it": lambda: select(func.count(User.id).over(partition_by=User.email)),
    "count with filter on it": lambda: select(func.count(User.id).filter(User.email == literal("x"))),
    "aggregate ordered by it": lambda: select(func.group_concat(aggregate_order_by(User.name, User.email))),
    "aggregate of it": lambda: select(func.group_concat(User.email)),
    "json of it": lambda: select(func.json_object("email", User.email)),
    "union": lambda: union(select(User.email), select(User.email)),
    "union with the primary key": lambda: union(select(User.id, User.email), select(User.id, User.email)),
    "union of entities": lambda: union(select(User), select(User)),
    "intersect": lambda: intersect(select(User.email), select(User.email)),
    "except": lambda: except_(select(User.email), select(User.email)),
    "except all": lambda: except_all(select(User.email), select(User.email)),
    "union all of two columns": lambda: union_all(select(User.email), select(User.phone)),
    "union all with a plain column": lambda: union_all(select(User.email), select(User.name)),
    "union all with a plain column first": lambda: union_all(select(User.name), select(User.email)),
    "union all with a literal": lambda: union_all(select(User.email), select(literal("x"))),
    "union all ordered by it": lambda: union_all(select(User.email), select(User.email)).order_by("email"),
    "union all of unions": lambda: union_all(
        union(select(User.email), select(User.email)).subquery().select(), select(User.email)
    ),
    "union in a subquery": lambda: select(union(select(User.email), select(User.email)).subquery()),
    "union in a common table expression": lambda: select(union(select(User.email), select(User.email)).cte()),
    "recursive union": lambda: select(
        (c := select(User.id, User.email).cte("c", recursive=True)).union(
            select(Other.id, Other.email).join(c, Other.boss_id == c.c.id)
        )
    ),
    "recursive union all of two columns": lambda: select(
        (c := select(User.id, User.email).cte("c", recursive=True)).union_all(
            select(Other.id, Other.phone).join(c, Other.boss_id == c.c.id)
        )
    ),
    "join on it": lambda: select(User.id).join(Other, User.email == Other.email),
    "join on it and a plain column": lambda: select(User.id).join(
        Other, and_(User.id == Other.id, User.email == Other.email)
    ),
    "join on it in parentheses": lambda: select(User.id).select_from(
        Team.__table__.join(users.join(addresses, users.c.email == addresses.c.city), users.c.team_id == Team.id)
    ),
    "join on a subquery's column": lambda: select(User.id).join(
        s := select(Address.city.label("c")).subquery(), s.c.c == User.email
    ),
    "implicit join on it": lambda: select(User.id, Address.id).where(User.email == Address.city),
    "join with a common table expression": lambda: select(User.id).join(
        c := select(Other.email).cte(), c.c.email == User.email
    ),
    "values compared with it": lambda: select(User.id).join(
        v := values(column("e", String), name="v").data([("x",)]), v.c.e == User.email
    ),
    "values that hold it": lambda: select(
        User.id, values(column("e", String), name="v").data([(User.email,)]).scalar_values()
    ),
    "function in from": lambda: select(func.json_each(User.prefs).table_valued("key", "value")),
    "function in from, joined": lambda: select(User.id).join(
        func.json_each(User.prefs).table_valued("key", "value"), true()
    ),
    "function in from, in parentheses": lambda: select(User.id).select_from(
        Team.__table__.join(users.join(func.json_each(users.c.prefs).table_valued("key"), true()), true())
    ),
    "function alias in from": lambda: select(func.unnest(User.tags).alias("t")),
    "function column in from": lambda: select(func.unnest(User.tags).column_valued("t")),
    "function selected from": lambda: select(literal_column("*")).select_from(func.unnest(User.tags)),
    "whole row": lambda: select(func.row_to_json(users.table_valued())),
    "lateral on it": lambda: select(User.id).join(
        select(Address.id).where(Address.city == User.email).lateral(), true()
    ),
    "limit by it": lambda: select(User.id).limit(select(func.max(User.age)).scalar_subquery()),
    "hybrid bundle": lambda: select(Bundle("b", User.id, func.lower(User.email))),
    "lambda statement": lambda: lambda_stmt(lambda: select(User).order_by(User.email)),
    "loader criteria": lambda: select(Team).options(with_loader_criteria(Team, Team.motto == literal("x"))),
    "loader criteria by lambda": lambda: select(Team).options(
        with_loader_criteria(Team, lambda team: team.motto == literal("x"))
    ),
    "for update beside order by": lambda: select(User).order_by(User.email).with_for_update(),
    "common table expression of an update": lambda: select(
        update(User).where(User.email == literal("x")).values(name="x").returning(User.id).cte()
    ),
    "common table expression of a delete": lambda: select(
        delete(User).where(User.email == literal("x")).returning(User.id).cte()
    ),
    "common table expression of an insert": lambda: select(
        insert(User).values(name=select(Other.email).scalar_subquery()).returning(User.id).cte()
    ),
}

POSTGRESQL: dict[str, Statement] = {
    "distinct on": lambda: distinct_on(select(User.id), User.email),
    "distinct on a name": lambda: distinct_on(select(User.id, User.email), "email"),
    "within group": lambda: select(func.percentile_disc(0.5).within_group(User.age)),
    "array_agg": lambda: select(func.array_agg(User.email)),
    "array_agg ordered by it": lambda: select(func.array_agg(aggregate_order_by(User.id, User.email))),
    "array of it": lambda: select(postgresql.array([User.email, User.phone])),
    "any of an array": lambda: select(User.id).where(literal("x") == any_(postgresql.array([User.email]))),
    "string_agg": lambda: select(func.string_agg(User.email, ",")),
    "generate_series": lambda: select(func.generate_series(1, User.age).alias("g")),
    "update from a function": lambda: (
        update(Team)
        .values(name=(f := func.json_each_text(User.prefs).table_valued("key", "value")).c.value)
        .where(f.c.key == "theme")
    ),
}


def distinct_on(statement: Any, *columns: Any) -> Any:
    if hasattr(postgresql, "distinct_on"):
        return statement.ext(postgresql.distinct_on(*columns))
    return statement.distinct(*columns)


ROW = {"id": 9, "tenant_id": "acme", "name": "new"}

WRITES: dict[str, Callable[[Any], Any]] = {
    "update to another column": lambda _: update(User).values(email=User.phone),
    "update to itself": lambda _: update(User).values(email=User.email),
    "update to a plain column": lambda _: update(User).values(email=User.name),
    "update of a plain column to it": lambda _: update(User).values(name=User.email),
    "update of a plain column to an expression of it": lambda _: update(User).values(name=func.lower(User.email)),
    "update of a plain column to its case": lambda _: update(User).values(name=case((User.id == 1, User.email))),
    "update of a plain column to its subquery": lambda _: update(User).values(
        name=select(Address.city).where(Address.user_id == User.id).scalar_subquery()
    ),
    "update of a plain column to the case of its scalar subquery": lambda _: update(User).values(
        name=case((User.id == 1, select(func.max(Address.city)).scalar_subquery()), else_="x")
    ),
    "update to a function": lambda _: update(User).values(email=func.lower("X")),
    "update to a literal": lambda _: update(User).values(email=literal("x")),
    "update to a literal of type String": lambda _: update(User).values(email=literal("x", String)),
    "update to a bound parameter of type String": lambda _: update(User).values(
        email=bindparam("e", "x", type_=String)
    ),
    "update to a bound parameter of another column's type": lambda _: update(User).values(
        email=bindparam("e", "x", type_=User.phone.type)
    ),
    "update to a literal column": lambda _: update(User).values(email=literal_column("'x'")),
    "update to text": lambda _: update(User).values(email=sqlalchemy.text("'x'")),
    "update to a cast": lambda _: update(User).values(email=cast("x", LargeBinary)),
    "update to type_coerce": lambda _: update(User).values(email=sqlalchemy.type_coerce("x", LargeBinary)),
    "update to a case": lambda _: update(User).values(email=case((User.id == 1, "x"), else_="y")),
    "update to a subquery": lambda _: update(User).values(email=select(Team.motto).scalar_subquery()),
    "update to a subquery of the same column": lambda _: update(User).values(
        email=select(Other.email).where(Other.id == 1).scalar_subquery()
    ),
    "update to a concatenation": lambda _: update(User).values(email=User.email + literal("x")),
    "update of a number by arithmetic": lambda _: update(User).values(age=User.age + literal(1)),
    "update by column object": lambda _: update(users).values({users.c.email: func.lower("X")}),
    "update by attribute": lambda _: update(User).values({User.email: func.lower("X")}),
    "update of an item": lambda _: update(users).values({users.c.tags[literal(0)]: "x"}),
    "update in order": lambda _: update(User).ordered_values((User.name, "x"), (User.email, func.lower("X"))),
    "update of the Core table": lambda _: update(users).values(email=users.c.phone),
    "update where": lambda _: update(User).where(User.email == literal("x")).values(name="x"),
    "update where in a select": lambda _: update(User).where(User.name.in_(select(Other.email))).values(name="x"),
    "update from another table": lambda _: update(User).where(User.id == Address.user_id).values(email=Address.city),
    "update of a plain column from another table": lambda _: (
        update(User).where(User.id == Address.user_id).values(name=Address.city)
    ),
    "update from another table on it": lambda _: update(User).where(User.email == Address.city).values(name="x"),
    "update from an alias named excluded": lambda _: (
        update(User).where(User.id == (other := aliased(User, name="excluded")).id).values(email=other.email)
    ),
    "update returning an expression": lambda _: update(User).values(name="x").returning(func.lower(User.email)),
    "update where, evaluated in Python": lambda _: (
        update(User)
        .where(User.email == literal("x"))
        .values(name="x")
        .execution_options(synchronize_session="evaluate")
    ),
    "delete where": lambda _: delete(User).where(User.email == literal("x")),
    "delete where of the Core table": lambda _: delete(users).where(users.c.email == users.c.phone),
    "delete where exists": lambda _: delete(User).where(exists().where(Address.city == User.email)),
    "delete returning an expression": lambda _: delete(User).where(User.id == 99).returning(func.length(User.email)),
    "insert of a function": lambda _: insert(User).values(**ROW, email=func.lower("X")),
    "insert of a literal": lambda _: insert(User).values(**ROW, email=literal("x")),
    "insert of text": lambda _: insert(User).values(**ROW, email=sqlalchemy.text("'x'")),
    "insert of a literal column": lambda _: insert(User).values(**ROW, email=literal_column("'x'")),
    "insert of a bound parameter of type String": lambda _: insert(User).values(
        **ROW, email=bindparam("e", "x", type_=String)
    ),
    "insert of a subquery": lambda _: insert(User).values(**ROW, email=select(Team.motto).scalar_subquery()),
    "insert of it into a plain column": lambda _: insert(User).values(
        {**ROW, "name": select(Other.email).where(Other.id == 1).scalar_subquery(), "email": "x"}
    ),
    "insert into the Core table": lambda _: insert(users).values(**ROW, email=func.lower("X")),
    "insert of many rows": lambda _: insert(User).values(
        [{**ROW, "email": "x"}, {"id": 10, "tenant_id": "acme", "name": "n", "email": func.lower("X")}]
    ),
    "insert of many tuples": lambda _: insert(Team).values([(9, "acme", "a", "x"), (10, "acme", "b", func.lower("X"))]),
    "insert of one tuple": lambda _: insert(Team).values((9, "acme", "a", func.lower("X"))),
    "insert of many rows into a plain column": lambda _: insert(Team).values(
        [(9, "acme", "a", "x"), (10, "acme", select(Other.email).where(Other.id == 1).scalar_subquery(), "x")]
    ),
    "insert returning an expression": lambda _: (
        insert(User).values(**ROW, email="x").returning(func.coalesce(User.phone, "none"))
    ),
    "update to a cast to its own type": lambda _: update(User).values(email=cast("x", User.email.type)),
    "update to bytes": lambda _: update(User).values(email=bindparam("e", b"x", type_=LargeBinary)),
    "update to an array": lambda _: update(User).values(tags=postgresql.array(["x"])),
    "insert from select": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name", "motto"], select(User.id, User.tenant_id, User.name, User.email)
    ),
    "insert from select of the same column": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name", "motto"], select(Team.id + 10, Team.tenant_id, Team.name, Team.motto)
    ),
    "insert from select of plaintext": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name", "motto"], select(User.id, User.tenant_id, User.name, User.name)
    ),
    "insert from select into a plain column": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name"], select(User.id, User.tenant_id, User.email)
    ),
    "insert from select of a union": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name"],
        union_all(select(User.id, User.tenant_id, User.name), select(User.id, User.tenant_id, User.email)),
    ),
    "insert from select ordered by it": lambda _: insert(Team).from_select(
        ["id", "tenant_id", "name"], select(User.id, User.tenant_id, User.name).order_by(User.email)
    ),
    "upsert on it": lambda upsert: (
        upsert(User).values(**ROW, email="x").on_conflict_do_nothing(index_elements=[User.email])
    ),
    "upsert on its name": lambda upsert: (
        upsert(User).values(**ROW, email="x").on_conflict_do_nothing(index_elements=["email"])
    ),
    "upsert on an expression of it": lambda upsert: (
        upsert(User).values(**ROW, email="x").on_conflict_do_nothing(index_elements=[func.lower(User.email)])
    ),
    "upsert where the index": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_nothing(index_elements=[User.id], index_where=User.email == literal("x"))
    ),
    "upsert set to an expression": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_update(index_elements=[User.id], set_={"email": func.lower("X")})
    ),
    "upsert set to a literal": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_update(index_elements=[User.id], set_={"email": literal("x", String)})
    ),
    "upsert set to another column": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_update(index_elements=[User.id], set_={"email": User.phone})
    ),
    "upsert set by column object": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_update(index_elements=[User.id], set_={users.c.email: func.lower("X")})
    ),
    "upsert set to another column of the proposed row": lambda upsert: (
        statement := upsert(User).values(**ROW, email="x", phone="y")
    ).on_conflict_do_update(index_elements=[User.id], set_={"email": statement.excluded.phone}),
    "upsert set to an expression of the proposed row": lambda upsert: (
        statement := upsert(User).values(**ROW, email="x")
    ).on_conflict_do_update(index_elements=[User.id], set_={"email": func.lower(statement.excluded.email)}),
    "upsert of a plain column to the proposed row": lambda upsert: (
        statement := upsert(User).values(**ROW, email="x")
    ).on_conflict_do_update(index_elements=[User.id], set_={"name": statement.excluded.email}),
    "upsert where": lambda upsert: (
        upsert(User)
        .values(**ROW, email="x")
        .on_conflict_do_update(index_elements=[User.id], set_={"name": "x"}, where=User.email == literal("x"))
    ),
    "upsert where the proposed row differs": lambda upsert: (
        statement := upsert(User).values(**ROW, email="x")
    ).on_conflict_do_update(index_elements=[User.id], set_={"name": "x"}, where=statement.excluded.email != User.email),
}

NAMES_THE_COLUMN = (
    r"the encrypted column '(plain_)?(users\.(email|phone|age|born|prefs|tags)|addresses\.city|teams\.motto)'"
)


def run(world: World, build: Callable[[], Any]) -> None:
    with world.vault.tenant("acme"), world.sessions() as session:
        session.execute(build()).all()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_refused(read_only_world: World, name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        run(read_only_world, lambda: select(User.id).where(CONDITIONS[name]()))


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_of_a_join_update_or_delete_is_refused(read_only_world: World, name: str) -> None:
    for build in (
        lambda: select(User.id).join(Address, and_(Address.user_id == User.id, CONDITIONS[name]())),
        lambda: update(User).values(name="x").where(CONDITIONS[name]()),
        lambda: delete(User).where(CONDITIONS[name]()),
    ):
        with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
            run(read_only_world, build)


@pytest.mark.parametrize("name", SELECTS)
def test_a_select_is_refused(read_only_world: World, name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        run(read_only_world, SELECTS[name])


@pytest.mark.parametrize("name", POSTGRESQL)
def test_a_statement_of_postgresql_is_refused(read_only_world: World, name: str) -> None:
    if read_only_world.engine.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has this")
    with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        run(read_only_world, POSTGRESQL[name])


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_refused(read_only_world: World, name: str) -> None:
    upsert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}.get(read_only_world.engine.dialect.name)
    if upsert is None and name.startswith("upsert"):
        pytest.skip("MariaDB has upserts of its own kind")
    with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
        run(read_only_world, lambda: WRITES[name](upsert))


def test_a_statement_that_was_compiled_for_another_engine_is_not_executed(read_only_world: World) -> None:
    for dialect in (read_only_world.engine.dialect.__class__(), sqlite.dialect()):
        compiled = select(User.id).where(User.email == literal("x")).compile(dialect=dialect)
        with (
            read_only_world.vault.tenant("acme"),
            read_only_world.engine.connect() as connection,
            pytest.raises((ConfigurationError, ObjectNotExecutableError)),
        ):
            connection.execute(compiled)


@pytest.mark.filterwarnings("ignore:.*DISTINCT ON.*:sqlalchemy.exc.SADeprecationWarning")
def test_distinct_on_is_distinct_where_the_database_has_none(read_only_world: World) -> None:
    for build in (lambda: select(User.email).distinct(User.name), lambda: select(User.id).distinct(User.email)):
        if read_only_world.engine.dialect.name == "sqlite" or build().column_descriptions[0]["name"] == "id":
            with pytest.raises(UnsupportedOperationError, match=NAMES_THE_COLUMN):
                run(read_only_world, build)


@pytest.mark.parametrize("options", [{"literal_binds": True}, {"render_postcompile": True, "literal_binds": True}])
def test_no_value_is_rendered_into_sql(read_only_world: World, options: dict[str, bool]) -> None:
    for statement in (insert(User).values(email="SECRET"), update(User).values(email="SECRET", age=41)):
        with pytest.raises(UnsupportedOperationError, match="literal_binds") as caught:
            statement.compile(read_only_world.engine, compile_kwargs=options)
        assert "SECRET" not in repr(caught.value)
        assert "SECRET" not in str(statement.compile(compile_kwargs=options))


def test_no_value_is_rendered_at_execution(read_only_world: World) -> None:
    statement = update(User).values(email=bindparam("e", "SECRET", type_=User.email.type, literal_execute=True))
    with pytest.raises(UnsupportedOperationError, match="literal_binds") as caught:
        run(read_only_world, lambda: statement)
    assert "SECRET" not in repr(caught.value)
