"""Objects that are loaded, changed and deleted through searches: what the plaintext twin does, happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import and_, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    Session,
    aliased,
    contains_eager,
    joinedload,
    lazyload,
    raiseload,
    selectinload,
    subqueryload,
    undefer,
    with_parent,
)
from tests.integration.search.models import SEALED, TWIN, facts
from tests.integration.search.test_found_rows import FOUND, rows
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import matching
from pii_vault.errors import NoTenantError, UnsupportedOperationError

Work = Callable[[Session, SimpleNamespace], Any]


def assert_same(world: World, work: Work) -> Any:
    """Do it to the sealed models and the twin; return what both return."""
    results = []
    for models in (TWIN, SEALED):
        with world.vault.tenant("acme"), world.sessions() as session:
            outcome = facts(work(session, models))
            session.flush()
            session.expire_all()
            customers = session.scalars(select(models.Customer).order_by(models.Customer.id)).all()
            orders = session.scalars(select(models.Order).order_by(models.Order.id)).all()
            stored = [(c.id, c.name, c.email, c.sponsor, c.code) for c in customers]
            results.append((outcome, stored, [(o.id, o.item, o.email, o.total) for o in orders]))
            session.rollback()
    assert results[0] == results[1]
    return results[0][0]


# Relationships.


@pytest.mark.parametrize("strategy", [lazyload, selectinload, joinedload])
@pytest.mark.parametrize("name", ["orders", "by_nick", "sponsored"])
def test_collections_are_loaded_by_every_strategy(found_world: World, name: str, strategy: Any) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        session.add(m.Customer(id=50, tenant_id="acme", sponsor="ada@x.org", nick="ada"))
        session.flush()
        statement = select(m.Customer).options(strategy(getattr(m.Customer, name))).order_by(m.Customer.id)
        return [[each.id for each in getattr(c, name)] for c in session.scalars(statement).unique()]

    assert any(assert_same(found_world, work))


@pytest.mark.parametrize("strategy", [lazyload, selectinload, joinedload])
def test_references_are_loaded_by_every_strategy(found_world: World, strategy: Any) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        statement = select(m.Order).options(strategy(m.Order.customer)).order_by(m.Order.id)
        return [order.customer and order.customer.id for order in session.scalars(statement)]

    assert assert_same(found_world, work) == [1, 1, 2, None, None, 4]


def test_subqueryload_is_refused_since_it_would_find_each_object_twice(found_world: World) -> None:
    Customer = SEALED.Customer
    with (
        found_world.session() as session,
        pytest.raises(UnsupportedOperationError, match=r"DISTINCT over the encrypted column 'customers\.email'"),
    ):
        session.scalars(select(Customer).options(subqueryload(Customer.orders))).all()


def test_a_limit_is_kept_beside_a_joined_collection(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        statement = select(m.Customer).where(m.Customer.email.in_(["ada@x.org", "bob@x.org", "firm@x.org"]))
        statement = statement.options(joinedload(m.Customer.orders)).order_by(m.Customer.id).limit(2)
        return [[order.id for order in c.orders] for c in session.scalars(statement).unique()]

    assert assert_same(found_world, work) == [[1, 2], [3]]


def test_contains_eager_and_with_parent(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        pens = select(m.Customer).join(m.Customer.orders).where(m.Order.total == Decimal("1.10"))
        found = session.scalars(pens.options(contains_eager(m.Customer.orders))).unique().all()
        ada = session.get_one(m.Customer, 1)
        of_ada = session.scalars(select(m.Order).where(with_parent(ada, m.Customer.orders)).order_by(m.Order.id))
        return [[order.id for order in c.orders] for c in found], [order.id for order in of_ada]

    assert assert_same(found_world, work) == ([[1]], [1, 2])


def test_a_reference_is_written_as_the_value_that_it_is_by(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        ada, bob = session.get_one(m.Customer, 1), session.get_one(m.Customer, 2)
        ada.orders.append(m.Order(id=20, tenant_id="acme", item="new"))
        session.get_one(m.Order, 4).customer = bob
        session.get_one(m.Order, 3).customer = None
        session.flush()
        session.expire_all()
        return [order.id for order in ada.orders], [order.id for order in bob.orders]

    assert assert_same(found_world, work) == ([1, 2, 20], [4])


def test_a_column_property_that_searches_is_undeferred(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        statement = select(m.Customer).options(undefer(m.Customer.orders_count)).order_by(m.Customer.id)
        return [c.orders_count for c in session.scalars(statement.options(raiseload("*")))]

    assert assert_same(found_world, work) == [2, 1, 0, 1, 0, 0]


def test_refresh_merge_and_get_work_beside_searches(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        ada = session.scalars(select(m.Customer).where(m.Customer.email == "ada@x.org")).one()
        merged = session.merge(m.Person(id=1, email="merged@x.org", code="A"))
        session.flush()
        session.refresh(ada)
        found = session.scalars(select(m.Customer).where(m.Customer.email == "merged@x.org")).one()
        return merged is ada, found is ada, ada.email, session.get_one(m.Person, 1) is ada

    assert assert_same(found_world, work) == (True, True, "merged@x.org", True)


def test_the_query_of_old(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        query = session.query(m.Customer)
        return (
            query.filter(m.Customer.email == "ada@x.org").one().id,
            query.filter_by(age=36, vip=True).count(),
            query.filter(m.Customer.nick.in_(["ada"])).order_by(m.Customer.id).first().id,
            session.query(query.filter(m.Customer.code == "B").exists()).scalar(),
            sorted(row[0] for row in session.query(m.Order.id).join(m.Customer, m.Customer.email == m.Order.email)),
            query.filter(m.Customer.email == "bob@x.org").update({"name": "changed"}),
            query.filter(m.Customer.code == "C").with_for_update().one().id,
            session.query(m.Order).filter(m.Order.email == "ada@x.org").delete(),
            query.filter(m.Customer.email != "x").enable_eagerloads(False).yield_per(2).count(),
        )

    outcome = assert_same(found_world, work)
    assert outcome[4] == [1, 2, 3, 6]
    assert outcome[5] == 1


# UPDATE and DELETE.

CONDITIONS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "value": lambda m: m.Customer.email == "ada@x.org",
    "values": lambda m: m.Customer.email.in_(["ada@x.org", "bob@x.org"]),
    "not a value": lambda m: m.Customer.age != 36,
    "normalised": lambda m: m.Customer.nick == "ADA",
    "columns": lambda m: m.Customer.email == m.Customer.sponsor,
    "normalised columns": lambda m: m.Customer.nick == m.Customer.alias,
    "normalised columns, deep": lambda m: or_(m.Customer.id == 1, ~and_(m.Customer.nick != m.Customer.alias)),
    "in_ select": lambda m: m.Customer.email.in_(select(m.Order.email).where(m.Order.total == Decimal(100))),
    "exists": lambda m: exists().where(m.Order.email == m.Customer.email),
    "bound parameter": lambda m: m.Customer.email == bindparam("who", "ada@x.org"),
}


@pytest.mark.parametrize("synchronize", ["auto", "fetch", "evaluate", False])
@pytest.mark.parametrize("name", CONDITIONS)
def test_rows_are_updated_and_deleted_by_a_search_and_the_session_knows(
    found_world: World, name: str, synchronize: Any
) -> None:
    def change(session: Session, m: SimpleNamespace) -> Any:
        objects = session.scalars(select(m.Customer).order_by(m.Customer.id)).all()
        statement = update(m.Customer).where(CONDITIONS[name](m)).values(name="changed")
        how = synchronize if m.sealed else synchronize and "fetch"  # SQLAlchemy does not know the twin's type either
        count: Any = session.execute(statement, execution_options={"synchronize_session": how})
        known = [each.id for each in objects if each.name == "changed"]
        if synchronize and m.sealed:
            table = m.Customer.__table__
            stored = session.scalars(select(table.c.id).where(table.c.name == "changed").order_by(table.c.id)).all()
            assert known == stored != []
        return count.rowcount, known

    def remove(session: Session, m: SimpleNamespace) -> Any:
        objects = session.scalars(select(m.Customer).order_by(m.Customer.id)).all()
        session.execute(delete(m.Company.__table__))
        statement = delete(m.Customer).where(CONDITIONS[name](m), m.Customer.kind != "company")
        how = synchronize if m.sealed else synchronize and "fetch"  # SQLAlchemy does not know the twin's type either
        count: Any = session.execute(statement, execution_options={"synchronize_session": how})
        known = [each.id for each in objects if each in session]
        session.expunge_all()
        session.execute(delete(m.Customer.__table__).where(m.Customer.kind == "company"))
        return count.rowcount, known

    if synchronize != "evaluate":
        assert assert_same(found_world, change)[0]
        assert_same(found_world, remove)
        return
    for work in (change, remove):
        with (
            found_world.vault.tenant("acme"),
            found_world.sessions() as session,
            pytest.raises((InvalidRequestError, UnsupportedOperationError)),
        ):
            work(session, SEALED)


def test_update_returns_the_rows_that_it_met(found_world: World) -> None:
    if found_world.engine.dialect.name == "mariadb":
        pytest.skip("MariaDB has no UPDATE ... RETURNING")

    def work(session: Session, m: SimpleNamespace) -> Any:
        changed = update(m.Order).where(m.Order.email == "ada@x.org").values(item="x", email="new@x.org")
        return sorted(session.execute(changed.returning(m.Order.id, m.Order.email)).all())

    assert assert_same(found_world, work) == [(1, "new@x.org"), (2, "new@x.org")]


def test_delete_returns_the_rows_that_it_met(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        gone = delete(m.Order).where(m.Order.email == "ada@x.org").returning(m.Order.id, m.Order.email)
        return sorted(session.execute(gone).all())

    assert assert_same(found_world, work) == [(1, "ada@x.org"), (2, "ada@x.org")]


def test_many_searches_update_in_one_statement(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        table = m.Customer.__table__
        statement = (
            update(table)
            .where(table.c.email == bindparam("who"), table.c.age == bindparam("old"))
            .values(name=bindparam("new"), email=bindparam("next"))
        )
        session.connection().execute(
            statement,
            [
                {"who": "ada@x.org", "old": 36, "new": "one", "next": "a"},
                {"who": "bob@x.org", "old": 36, "new": "two", "next": "b"},
                {"who": "firm@x.org", "old": 36, "new": "three", "next": "c"},
                {"who": None, "old": 36, "new": "four", "next": "d"},
            ],
        )
        return set(session.scalars(select(table.c.id).where(table.c.email.in_(["a", "b"]))))

    assert len(assert_same(found_world, work)) == 2


def test_update_from_another_table_by_a_search(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        statement = (
            update(m.Order)
            .where(m.Order.email == m.Customer.email, m.Customer.nick == "ADA")
            .values(item=m.Customer.name)
            .execution_options(synchronize_session=False)
        )
        session.execute(statement)

    assert_same(found_world, work)


def test_rows_are_written_in_bulk_and_found(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        new = [{"id": n, "tenant_id": "acme", "item": "new", "email": f"{n}@new"} for n in range(100, 400)]
        returned = session.execute(insert(m.Order).returning(m.Order.id, m.Order.email), new).all()
        session.execute(update(m.Order), [{"id": 100, "email": "changed"}, {"id": 101, "email": "150@new"}])
        session.bulk_update_mappings(m.Order, [{"id": 102, "email": "150@new"}])
        found = select(m.Order.id).where(m.Order.email.in_(["100@new", "changed", "150@new", "399@new"]))
        return sorted(returned), sorted(session.scalars(found))

    assert assert_same(found_world, work)[1] == [100, 101, 102, 150, 399]


def upsert(world: World) -> Any:
    found = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}.get(world.engine.dialect.name)
    return found or pytest.skip("MariaDB has upserts of its own kind")


def test_upserts_meet_the_row_that_has_the_value(found_world: World) -> None:
    def work(session: Session, m: SimpleNamespace) -> Any:
        new = [
            {"id": 100, "tenant_id": "acme", "kind": "customer", "code": "A", "name": "met", "email": "a@new"},
            {"id": 101, "tenant_id": "acme", "kind": "customer", "code": "Z", "name": "new", "email": "z@new"},
        ]
        target = [m.Customer.code.blind_index if m.sealed else m.Customer.code]
        statement = upsert(found_world)(m.Customer)
        session.execute(statement.on_conflict_do_nothing(index_elements=target), new)
        between = session.execute(select(m.Customer.id, m.Customer.name).where(m.Customer.code.in_(["A", "Z"]))).all()
        statement = statement.on_conflict_do_update(
            index_elements=target,
            set_={"name": statement.excluded.name, "email": statement.excluded.email},
            where=m.Customer.age == 36,
        )
        session.execute(statement, new)
        returned = statement.returning(m.Customer.id, m.Customer.email)
        return sorted(between), session.execute(returned, [{**new[0], "email": "b@new"}]).all()

    assert assert_same(found_world, work) == ([(1, "ada"), (101, "new")], [(1, "b@new")])


def test_the_database_refuses_a_second_row_with_a_unique_value_of_one_tenant(found_world: World) -> None:
    Customer = SEALED.Customer
    with found_world.vault.tenant("acme"), found_world.sessions() as session:
        session.add(Customer(id=300, code="A"))
        with pytest.raises(IntegrityError, match="ix_customers_code_blind"):
            session.flush()
        session.rollback()
        session.add_all([Customer(id=300, code=None), Customer(id=301, code=None)])
        session.flush()
        session.rollback()
    with found_world.vault.tenant("glob"), found_world.sessions() as session:
        session.add(Customer(id=300, code="A"))
        session.flush()
        session.rollback()


# Tokens of parts.


@pytest.mark.parametrize(
    ("token", "value", "ids"),
    [
        ("domain", "x.org", [1, 2]),
        ("domain", "X.Org", [1, 2]),
        ("domain", "", []),
        ("last4", ".org", [1]),
        ("last4", ".ORG", [2]),
        ("last4", "ress", [3]),
        ("prefix3", "ada", [1]),
        ("prefix3", "bob", [2]),
        ("prefix3", "adax", []),
    ],
)
def test_rows_are_found_by_a_part_of_their_value(found_world: World, token: str, value: str, ids: list[int]) -> None:
    Customer = SEALED.Customer
    part = Customer.contact.token(token)
    with found_world.session() as session:
        found = select(Customer.id).where(Customer.id < 50).order_by(Customer.id)
        assert session.scalars(found.where(part == value)).all() == ids
        assert session.scalars(found.where(part.in_([value, "nothing"]))).all() == ids
        assert session.scalars(found.where(part == bindparam("v", value))).all() == ids
        others = {1, 2, 3} - set(ids)
        assert set(session.scalars(found.where(part != value))) == others
        assert set(session.scalars(found.where(part.not_in([value])))) == others


def test_candidates_are_kept_only_if_they_match(found_world: World) -> None:
    Customer = SEALED.Customer
    weak = Customer.weak.blind_index
    with found_world.session() as session:
        found = session.scalars(select(Customer).where(weak.candidates("a")).order_by(Customer.id)).all()
        assert {1, 4} <= {each.id for each in found}
        assert [each.id for each in matching(found, weak, "a")] == [1, 4]
        rows = session.execute(select(Customer.id, Customer.weak).where(or_(weak.candidates("a"), Customer.id == 2)))
        assert sorted(row.id for row in matching(rows, weak, "a")) == [1, 4]
        joined = select(Customer).options(joinedload(Customer.orders)).where(weak.candidates("a")).limit(9)
        assert len(list(matching(session.scalars(joined).unique(), weak, "a"))) == 2
        part = aliased(Customer).contact.token("weak")
        some = session.scalars(select(func.count()).where(part.candidates("x.org"))).one()
        assert 0 <= some <= 3


def test_without_a_scope_nothing_is_searched(found_world: World) -> None:
    Customer = SEALED.Customer
    with found_world.sessions() as session:
        for statement in (
            select(Customer.id).where(Customer.email == "ada@x.org"),
            select(Customer.id).where(Customer.email.in_([])),
            select(Customer.id).where(Customer.email == Customer.sponsor),
            select(func.count()).group_by(Customer.email.blind_index),
            update(Customer).where(Customer.email == "x").values(name="x"),
        ):
            with pytest.raises(NoTenantError):
                session.execute(statement)


# Asynchronous drivers.


def test_asynchronous_drivers_find_the_same_rows(found_world: World) -> None:
    if not async_urls(found_world.url):
        pytest.skip("no asynchronous driver of MariaDB is tested")

    async def on(url: str) -> None:
        engine = create_async_engine(url)
        sessions = async_sessionmaker(engine)
        found_world.vault.attach(engine, sessions, tenant_column="tenant_id")
        try:
            for name, statement in FOUND.items():
                async with found_world.vault.tenant("acme"), sessions() as session:
                    wanted = await session.run_sync(rows, statement(TWIN), ordered=False)
                    session.expunge_all()
                    assert await session.run_sync(rows, statement(SEALED), ordered=False) == wanted, (url, name)
            async with found_world.vault.tenant("acme"), sessions() as session:
                await changes(session)
        finally:
            await engine.dispose()

    async def changes(session: AsyncSession) -> None:
        Customer = SEALED.Customer
        changed = update(Customer).where(Customer.email == "ada@x.org").values(sponsor="x").returning(Customer.id)
        assert (await session.scalars(changed)).all() == [1]
        ada = (await session.scalars(select(Customer).where(Customer.sponsor == "x"))).one()
        assert [order.id for order in await session.run_sync(lambda _: ada.orders)] == [1, 2]
        stream = await session.stream_scalars(select(Customer.id).where(Customer.age == 36).order_by(Customer.id))
        assert [each async for each in stream] == [1, 2]
        await session.rollback()

    for url in async_urls(found_world.url):
        asyncio.run(on(url))
