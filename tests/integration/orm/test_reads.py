"""SELECTs that a sealed column allows give the very rows that the plaintext twin gives."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import (
    LargeBinary,
    String,
    and_,
    bindparam,
    case,
    cast,
    column,
    desc,
    distinct,
    exists,
    func,
    lambda_stmt,
    lateral,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    tuple_,
    type_coerce,
    union,
    union_all,
    values,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Bundle, Session, aliased, load_only, with_loader_criteria
from tests.integration.orm.models import SEALED, TWIN, facts
from tests.support.world import World

from pii_vault.errors import NoTenantError

Statement = Callable[[SimpleNamespace], Any]


def chain_of_bosses(m: SimpleNamespace) -> Any:
    top = select(m.User.id, m.User.email, literal(0).label("depth")).where(m.User.boss_id.is_(None))
    chain = top.cte("chain", recursive=True)
    below = select(m.User.id, m.User.email, chain.c.depth + 1).join(chain, m.User.boss_id == chain.c.id)
    chain = chain.union_all(below)
    return select(chain.c.email, chain.c.depth)


def through_subquery(m: SimpleNamespace) -> Any:
    inner = select(m.User.id, m.User.email.label("address"), m.User.name).where(m.User.age.is_not(None)).subquery()
    return select(inner.c.address, inner.c.name).where(inner.c.id > 1)


def aliased_subquery(m: SimpleNamespace) -> Any:
    user = aliased(m.User, select(m.User).where(m.User.id > 1).subquery())
    return select(user)


def subquery_of_subquery(m: SimpleNamespace) -> Any:
    inner = select(m.User.email.label("one")).subquery()
    outer = select(inner.c.one.label("two")).subquery()
    return select(outer.c.two.label("three"))


def with_cte(m: SimpleNamespace) -> Any:
    found = select(m.User.id, m.User.email, m.User.team_id).where(m.User.name != "eve").cte("found")
    return select(found.c.email, m.Team.motto).join(m.Team, m.Team.id == found.c.team_id)


def self_join(m: SimpleNamespace) -> Any:
    boss = aliased(m.User)
    return select(m.User.email, boss.email, boss.email.label("boss")).join(boss, m.User.boss_id == boss.id)


def outer_self_join(m: SimpleNamespace) -> Any:
    boss = aliased(m.User)
    return select(m.User, boss).outerjoin(boss, m.User.boss)


def union_all_of_one_column(m: SimpleNamespace) -> Any:
    both = union_all(select(m.User.id, m.User.email), select(m.User.id, m.User.email).where(m.User.id == 1))
    return both.order_by("id")


def entities_from_union_all(m: SimpleNamespace) -> Any:
    both = union_all(select(m.User).where(m.User.id == 1), select(m.User).where(m.User.id == 3))
    return select(m.User).from_statement(both)


def aliased_union_all(m: SimpleNamespace) -> Any:
    both = union_all(select(m.User).where(m.User.id == 1), select(m.User).where(m.User.id == 3)).subquery()
    return select(aliased(m.User, both))


def correlated_scalar(m: SimpleNamespace) -> Any:
    city = select(m.Address.city).where(m.Address.user_id == m.User.id, m.Address.zip == "2000").scalar_subquery()
    return select(m.User.name, city.label("city"), city)


def query_by_lambda(m: SimpleNamespace) -> Any:
    user, name = m.User, "ada"
    statement = lambda_stmt(lambda: select(user))
    return statement + (lambda s: s.where(user.name == name))


def distinct_on(statement: Any, *columns: Any) -> Any:
    if hasattr(postgresql, "distinct_on"):
        return statement.ext(postgresql.distinct_on(*columns))
    return statement.distinct(*columns)


LEGAL: dict[str, Statement] = {
    "entities": lambda m: select(m.User),
    "one column": lambda m: select(m.User.email),
    "columns of every kind": lambda m: select(
        m.User.email, m.User.phone, m.User.age, m.User.born, m.User.prefs, m.User.tags
    ),
    "entity and column": lambda m: select(m.User, m.User.email, m.Address.city).join(m.User.addresses),
    "the Core table": lambda m: select(m.User.__table__),
    "the same column twice": lambda m: select(m.User.email, m.User.email, m.User.email.label("again")),
    "label": lambda m: select(m.User.email.label("address")),
    "label of a label": lambda m: select(m.User.email.label("one").label("two")),
    "bundle": lambda m: select(Bundle("contact", m.User.email, m.User.phone)),
    "where on a plain column": lambda m: select(m.User).where(m.User.name == "ada"),
    "filter_by": lambda m: select(m.User).filter_by(name="eve"),
    "order by a plain column": lambda m: select(m.User.email).order_by(m.User.name.desc()).limit(2).offset(1),
    "order by a plain label": lambda m: select(m.User.email, m.User.name.label("n")).order_by(desc("n")),
    "is null": lambda m: select(m.User.email).where(m.User.phone.is_(None)),
    "is not null": lambda m: select(m.User.email).where(m.User.phone.is_not(None)),
    "== None": lambda m: select(m.User.email).where(m.User.phone == None),  # noqa: E711
    "!= None": lambda m: select(m.User.email).where(m.User.phone != None),  # noqa: E711
    "is null()": lambda m: select(m.User.email).where(m.User.phone.is_(null())),
    "not is null": lambda m: select(m.User.email).where(~m.User.phone.is_(None)),
    "is null in and, or": lambda m: select(m.User.email).where(
        or_(m.User.phone.is_(None), and_(m.User.age.is_(None), m.User.id > 2))
    ),
    "is null in the select list": lambda m: select(m.User.id, m.User.phone.is_(None)),
    "is null in case": lambda m: select(m.User.id, case((m.User.phone.is_(None), "none"), else_="some")),
    "order by is null": lambda m: select(m.User.email).order_by(m.User.phone.is_(None), m.User.id),
    "group by is null": lambda m: select(func.count(m.User.id)).group_by(m.User.phone.is_(None)),
    "is null in a join": lambda m: select(m.User.email, m.Team.name).join(
        m.Team, and_(m.Team.id == m.User.team_id, m.Team.motto.is_(None))
    ),
    "is null of an alias": lambda m: select((user := aliased(m.User)).email).where(user.phone.is_(None)),
    "count(*)": lambda m: select(func.count()).select_from(m.User),
    "count(column)": lambda m: select(func.count(m.User.phone)),
    "count with filter": lambda m: select(func.count(m.User.phone).filter(m.User.id > 1)),
    "count by group": lambda m: select(m.User.team_id, func.count(m.User.phone)).group_by(m.User.team_id),
    "having count": lambda m: select(m.User.team_id).group_by(m.User.team_id).having(func.count(m.User.phone) >= 1),
    "count over": lambda m: select(m.User.id, func.count(m.User.phone).over(partition_by=m.User.team_id)),
    "order by count": lambda m: (
        select(m.User.team_id).group_by(m.User.team_id).order_by(func.count(m.User.email), m.User.team_id)
    ),
    "window over plain columns beside": lambda m: select(
        m.User.email, func.row_number().over(partition_by=m.User.team_id, order_by=m.User.id)
    ),
    "maximum of a plain column beside": lambda m: select(func.max(m.User.id), func.min(m.User.name)),
    "distinct with the primary key": lambda m: select(m.User.id, m.User.email).join(m.User.addresses).distinct(),
    "distinct entities": lambda m: select(m.User).join(m.User.addresses).distinct(),
    "distinct alias": lambda m: select(user := aliased(m.User)).join(user.addresses).distinct(),
    "distinct of a subquery with the primary key": lambda m: select(
        (s := select(m.User.id, m.User.email).join(m.User.addresses).subquery()).c.id, s.c.email
    ).distinct(),
    "distinct of plain columns": lambda m: select(m.User.tenant_id).distinct(),
    "count distinct of a plain column": lambda m: select(func.count(distinct(m.User.team_id))),
    "join": lambda m: select(m.User.email, m.Address.city).join(m.Address, m.Address.user_id == m.User.id),
    "join along a relationship": lambda m: select(m.User.email, m.Team.motto).outerjoin(m.User.team),
    "nested join": lambda m: select(m.User.email, m.Address.city, m.Team.motto).select_from(
        m.Team.__table__.join(
            m.User.__table__.join(m.Address.__table__, m.Address.user_id == m.User.id), m.User.team_id == m.Team.id
        )
    ),
    "self join": self_join,
    "outer self join": outer_self_join,
    "subquery": through_subquery,
    "aliased subquery": aliased_subquery,
    "subquery of a subquery": subquery_of_subquery,
    "common table expression": with_cte,
    "recursive common table expression": chain_of_bosses,
    "union all": union_all_of_one_column,
    "union all of entities": entities_from_union_all,
    "aliased union all": aliased_union_all,
    "union of plain columns": lambda m: union(select(m.User.name), select(m.Team.name)),
    "exists": lambda m: select(m.User.email).where(exists().where(m.Address.user_id == m.User.id)),
    "exists over a sealed column": lambda m: select(m.User.email).where(
        exists(select(m.Address.city).where(m.Address.user_id == m.User.id))
    ),
    "any": lambda m: select(m.User.email).where(m.User.addresses.any(m.Address.zip == "2000")),
    "has": lambda m: select(m.User.email).where(m.User.team.has(name="red")),
    "not any": lambda m: select(m.User.email).where(~m.User.addresses.any()),
    "is null in exists": lambda m: select(m.Team.name).where(m.Team.users.any(m.User.phone.is_(None))),
    "plain in a subquery": lambda m: select(m.User.email).where(m.User.id.in_(select(m.Address.user_id))),
    "plain tuple": lambda m: select(m.User.email).where(tuple_(m.User.tenant_id, m.User.id).in_([("acme", 2)])),
    "scalar subquery": correlated_scalar,
    "plain scalar subquery in where": lambda m: select(m.User.email).where(
        m.User.id == select(func.max(m.Address.user_id)).scalar_subquery()
    ),
    "group by the primary key": lambda m: (
        select(m.User.id, m.User.email, func.count(m.Address.id)).join(m.User.addresses).group_by(m.User.id)
    ),
    "from a text statement": lambda m: select(m.User).from_statement(
        text(f"select * from {m.prefix}users where id < :top").columns(*m.User.__table__.columns).bindparams(top=3)
    ),
    "columns of a text statement": lambda m: text(f"select email, id from {m.prefix}users").columns(
        m.User.email, m.User.id
    ),
    "a text statement as a subquery": lambda m: select(
        text(f"select id, email from {m.prefix}users").columns(m.User.id, m.User.email).subquery("t").c.email
    ),
    "loader criteria": lambda m: select(m.Team).options(with_loader_criteria(m.User, m.User.phone.is_(None))),
    "loader criteria by lambda": lambda m: select(m.User).options(
        with_loader_criteria(m.User, lambda user: user.phone.is_not(None))
    ),
    "lambda statement": query_by_lambda,
    "load_only": lambda m: select(m.User).options(load_only(m.User.email)),
    "cast of null to the type": lambda m: select(cast(null(), m.User.email.type)),
    "bound parameter": lambda m: select(m.User.email).where(m.User.id == bindparam("id", 1)),
    "literal column": lambda m: select(literal_column("1"), m.User.email),
    "for update": lambda m: select(m.User).with_for_update(),
}

NOT_ON_MARIADB = {"count with filter"}

POSTGRESQL: dict[str, Statement] = {
    "values of plain columns": lambda m: select(m.User.email).join(
        (v := values(column("name", String), name="v").data([("ada",), ("kim",)])), v.c.name == m.User.name
    ),
    "distinct on a plain column": lambda m: distinct_on(select(m.User.email), m.User.team_id).order_by(
        m.User.team_id, m.User.id
    ),
    "lateral": lambda m: select(
        m.User.email,
        (
            first := lateral(
                select(m.Address.city).where(m.Address.user_id == m.User.id).order_by(m.Address.id).limit(1)
            )
        ).c.city,
    ).join(first, true()),
    "full outer join": lambda m: select(m.User.email, m.Team.motto).outerjoin(m.User.team, full=True),
}


def rows(session: Session, statement: Any, *, ordered: bool) -> list[Any]:
    found = [facts(row) for row in session.execute(statement)]
    return found if ordered else sorted(found, key=repr)


def assert_same_rows(world: World, name: str, statement: Statement) -> None:
    with world.session() as session:
        wanted = rows(session, statement(TWIN), ordered="order by" in name)
        assert wanted
        assert rows(session, statement(SEALED), ordered="order by" in name) == wanted


@pytest.mark.parametrize("name", LEGAL)
def test_a_select_gives_the_rows_that_plaintext_would_give(read_only_world: World, name: str) -> None:
    if name in NOT_ON_MARIADB and read_only_world.engine.dialect.name == "mariadb":
        pytest.skip("MariaDB has no such clause")
    assert_same_rows(read_only_world, name, LEGAL[name])


@pytest.mark.parametrize("name", POSTGRESQL)
def test_a_select_of_postgresql_gives_the_rows_that_plaintext_would_give(read_only_world: World, name: str) -> None:
    if read_only_world.engine.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL has this")
    assert_same_rows(read_only_world, name, POSTGRESQL[name])


def test_type_coerce_is_the_way_around_that_shows_the_stored_bytes(read_only_world: World) -> None:
    with read_only_world.session() as session:
        stored = session.scalars(select(type_coerce(SEALED.User.email, LargeBinary)).where(SEALED.User.id == 1)).one()
    assert stored[0] == 0xFA
    assert b"ada" not in stored


def test_without_a_scope_a_sealed_column_is_not_even_asked_for(read_only_world: World) -> None:
    with read_only_world.sessions() as session:
        for statement in (
            select(SEALED.User.email).where(SEALED.User.id == 99),
            select(SEALED.User).where(SEALED.User.id == 99),
        ):
            with pytest.raises(NoTenantError):
                session.execute(statement)
        plain = select(func.count(SEALED.User.phone)).where(SEALED.User.email.is_not(None))
        assert session.scalar(plain) == 2
        assert session.scalar(select(func.count()).select_from(select(SEALED.User.email).subquery())) == 4
