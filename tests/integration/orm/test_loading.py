"""However an attribute is loaded, it is opened."""

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    aliased,
    contains_eager,
    defer,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    raiseload,
    selectinload,
    subqueryload,
    undefer,
    with_parent,
)
from tests.integration.orm.models import SEALED, TWIN, facts
from tests.support.world import World

User, Team, Address = SEALED.User, SEALED.Team, SEALED.Address

STRATEGIES = [selectinload, joinedload, subqueryload, lazyload, immediateload]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_collections_are_loaded_by(read_only_world: World, strategy: Any) -> None:
    statement = select(Team).options(strategy(Team.users).options(strategy(User.addresses))).order_by(Team.id)
    with read_only_world.session() as session:
        teams = session.scalars(statement).unique().all()
        found = [(t.motto, [(u.email, [a.city for a in u.addresses]) for u in t.users]) for t in teams]
    assert found == [
        ("festina lente", [("ada@example.com", ["London", "Bath"]), ("bob@example.com", [])]),
        (None, [("eve@example.com", ["London"])]),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_references_are_loaded_by(read_only_world: World, strategy: Any) -> None:
    statement = select(User).options(strategy(User.team), strategy(User.boss)).order_by(User.id)
    with read_only_world.session() as session:
        found = [(u.team and u.team.motto, u.boss and u.boss.email) for u in session.scalars(statement)]
    assert found == [
        ("festina lente", None),
        ("festina lente", "ada@example.com"),
        (None, "ada@example.com"),
        (None, "bob@example.com"),
    ]


@pytest.mark.parametrize("strategy", [joinedload, subqueryload, selectinload])
def test_a_limit_counts_the_parents(read_only_world: World, strategy: Any) -> None:
    statement = select(User).options(strategy(User.addresses)).order_by(User.id).limit(2).offset(0)
    with read_only_world.session() as session:
        users = session.scalars(statement).unique().all()
        assert [(u.email, [a.city for a in u.addresses]) for u in users] == [
            ("ada@example.com", ["London", "Bath"]),
            ("bob@example.com", []),
        ]


def test_a_joined_row_can_fill_the_relationship(read_only_world: World) -> None:
    statement = select(User).join(User.addresses).where(Address.zip == "2000").options(contains_eager(User.addresses))
    other = aliased(Address)
    by_alias = select(User).join(User.addresses.of_type(other)).options(contains_eager(User.addresses.of_type(other)))
    with read_only_world.session() as session:
        users = session.scalars(statement.execution_options(populate_existing=True)).unique().all()
        assert [[a.city for a in u.addresses] for u in users] == [["Bath"]]
        users = session.scalars(by_alias.order_by(User.id).execution_options(populate_existing=True)).unique().all()
        assert [sorted(a.city for a in u.addresses) for u in users] == [["Bath", "London"], ["London"]]


def test_raiseload_raises_and_opens_nothing(read_only_world: World) -> None:
    with read_only_world.session() as session:
        ada = session.scalars(select(User).where(User.id == 1).options(raiseload("*"))).one()
        with pytest.raises(InvalidRequestError):
            ada.addresses
        assert ada.email == "ada@example.com"


def test_deferred_columns_are_opened_when_they_are_read(read_only_world: World) -> None:
    with read_only_world.session() as session:
        ada = session.scalars(select(User).where(User.id == 1).options(defer(User.email), defer(User.age))).one()
        assert "email" not in ada.__dict__
        assert (ada.email, ada.age) == ("ada@example.com", 36)
        session.expunge_all()
        ada = session.scalars(select(User).where(User.id == 1).options(load_only(User.name))).one()
        assert "phone" not in ada.__dict__
        assert ada.phone == "+44 1"
        session.expunge_all()
        ada = session.scalars(select(User).where(User.id == 1).options(defer("*"), undefer(User.email))).one()
        assert ada.__dict__["email"] == "ada@example.com"
        session.expunge_all()
        ada = session.scalars(select(User).where(User.id == 1).options(defer(User.email, raiseload=True))).one()
        with pytest.raises(InvalidRequestError):
            ada.email


def test_rows_come_in_portions(read_only_world: World) -> None:
    wanted = ["ada@example.com", "bob@example.com", "eve@example.com", "ada@example.com"]
    with read_only_world.session() as session:
        by_two = select(User).order_by(User.id).execution_options(yield_per=2)
        assert [user.email for user in session.scalars(by_two)] == wanted
        assert [len(part) for part in session.scalars(by_two).partitions()] == [2, 2]
        columns = select(User.email).order_by(User.id).execution_options(stream_results=True)
        with session.scalars(columns) as result:
            assert result.fetchmany(3) == wanted[:3]
        assert session.execute(select(User.email).order_by(User.id)).freeze()().scalars().all() == wanted
    with read_only_world.session() as session:
        connection = session.connection(execution_options={"stream_results": True, "max_row_buffer": 2})
        assert [row.email for row in connection.execute(select(User.__table__).order_by(User.id))] == wanted


def test_the_query_api_gives_what_the_twin_gives(read_only_world: World) -> None:
    def run(m: Any, session: Any) -> list[Any]:
        query = session.query(m.User)
        ada = query.filter_by(name="ada").one()
        return [
            query.order_by(m.User.id).all(),
            session.query(m.User.email, m.User.phone).order_by(m.User.id).limit(2).all(),
            query.filter(m.User.phone.is_(None)).order_by(m.User.id).all(),
            query.filter(m.User.phone.is_(None)).count(),
            session.query(func.count(m.User.phone)).scalar(),
            query.join(m.User.team).filter(m.Team.name == "red").order_by(m.User.id).all(),
            query.options(joinedload(m.User.addresses)).order_by(m.User.id).first().addresses,
            session.query(m.Address).filter(with_parent(ada, m.User.addresses)).order_by(m.Address.id).all(),
            session.query(query.filter(m.User.id == 1).exists()).scalar(),
            session.query(m.User.email).filter(m.User.id == 1).scalar_subquery() is not None,
            session.get(m.User, 3),
            query.filter(m.User.id < 3).order_by(m.User.id).enable_eagerloads(False).yield_per(1).all(),
            session.query(query.subquery().c.email).count(),
            query.with_entities(m.User.id, m.User.email).distinct().order_by(m.User.id).all(),
        ]

    with read_only_world.session() as session:
        assert facts(run(SEALED, session)) == facts(run(TWIN, session))


def test_an_object_in_the_session_keeps_its_opened_values(read_only_world: World) -> None:
    with read_only_world.session() as session:
        bob = session.get_one(User, 2)
        assert session.get_one(User, 2) is bob
        assert bob.boss is session.get_one(User, 1)
        assert bob.boss.email == "ada@example.com"
