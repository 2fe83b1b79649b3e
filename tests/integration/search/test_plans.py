"""Searches are answered by an index: the planner says so, also where it plans once for every parameter."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    Index,
    String,
    create_engine,
    delete,
    event,
    exists,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column
from sqlalchemy.pool import NullPool
from tests.support.urls import async_url
from tests.support.world import World, make_world

from pii_vault import BlindIndex, EncryptedString, LastChars
from pii_vault.orm import uniqueness

ROWS = 3000
EMAIL = BlindIndex(name="email")


class Base(DeclarativeBase):
    type_annotation_map = {str: String(60)}


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str | None]
    email: Mapped[str | None] = mapped_column(EncryptedString(index=EMAIL, tokens={"last9": LastChars(9)}))
    code: Mapped[str | None] = mapped_column(EncryptedString(index=BlindIndex(unique=True, create=False)))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str | None] = mapped_column(EncryptedString(index=EMAIL))


Index("ix_customers_code", Customer.tenant_id, Customer.code.blind_index, unique=True)  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("plans")
    engines: list[Engine] = []

    def make_engine(url: str) -> Engine:
        engines.append(create_engine(url))
        return engines[-1]

    server, name, url, key_store_url = None, "", f"sqlite:///{directory / 'plans.sqlite3'}", None
    if request.param != "sqlite":
        server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
        name = server.create_database()
        url = server.url(name)
    if request.param == "mariadb":
        key_store_url = f"sqlite:///{directory / 'keys.sqlite3'}"
    world = make_world(url, directory, make_engine, Base.metadata, key_store_url)
    fill(world)
    yield world
    for engine in engines:
        engine.dispose()
    world.vault.close()
    if server:
        server.drop_database(name)


def fill(world: World) -> None:
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        of_all = [{"id": n, "tenant_id": "acme", "email": f"{n:06}@x.org"} for n in range(1, ROWS)]
        connection.execute(insert(Order), of_all)
        connection.execute(insert(Customer), [{**each, "code": f"C{each['id']}"} for each in of_all])
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        tables = "TABLE customers, orders" if world.engine.dialect.name == "mariadb" else ""
        connection.exec_driver_sql(f"ANALYZE {tables}")


BY_EMAIL, BY_PART, BY_CODE = "ix_customers_email_blind", "ix_customers_email_last9", "ix_customers_code"
OF_ORDERS = "ix_orders_email_blind"

SEARCHES: dict[str, tuple[str, Callable[[], Any]]] = {
    "==": (BY_EMAIL, lambda: select(Customer.name).where(Customer.email == "000007@x.org")),
    "in_": (BY_EMAIL, lambda: select(Customer.name).where(Customer.email.in_(["000007@x.org", "000008@x.org"]))),
    "part": (BY_PART, lambda: select(Customer.name).where(Customer.email.token("last9") == "007@x.org")),
    "alias": (BY_EMAIL, lambda: select((other := aliased(Customer)).name).where(other.email == "000007@x.org")),
    "and the tenant": (
        BY_CODE,
        lambda: select(Customer.name).where(Customer.tenant_id == "acme", Customer.code == "C7"),
    ),
    "in_ and the tenant": (
        BY_CODE,
        lambda: select(Customer.name).where(Customer.tenant_id == "acme", Customer.code.in_(["C7", "C8"])),
    ),
    "join": (
        OF_ORDERS,
        lambda: select(Customer.name, Order.id).join(Order, Order.email == Customer.email).where(Customer.id == 7),
    ),
    "outer join": (
        OF_ORDERS,
        lambda: select(Customer.name, Order.id).outerjoin(Order, Order.email == Customer.email).where(Customer.id == 7),
    ),
    "join of a search": (
        OF_ORDERS,
        lambda: (
            select(Customer.name, Order.tenant_id)
            .join(Order, Order.email == Customer.email)
            .where(Customer.email == "000007@x.org")
        ),
    ),
    "exists": (
        OF_ORDERS,
        lambda: select(Customer.name).where(Customer.id == 7, exists().where(Order.email == Customer.email)),
    ),
    "in_ select": (
        BY_EMAIL,
        lambda: select(Customer.name).where(Customer.email.in_(select(Order.email).where(Order.id == 7))),
    ),
    "update": (BY_EMAIL, lambda: update(Customer).where(Customer.email == "000007@x.org").values(name="seven")),
    "delete": (BY_EMAIL, lambda: delete(Customer).where(Customer.email.in_(["000007@x.org", "000008@x.org"]))),
}


def explained(connection: Connection, work: Callable[[], Any]) -> str:
    """Return the plan of the statement that some work executes."""
    work()  # the first time, values without tokens are looked for
    seen: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", listen)
    work()
    event.remove(connection, "before_cursor_execute", listen)
    ((statement, parameters),) = seen
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).mappings()
    return "\n".join(str(dict(row)) for row in rows)


def is_used(index: str, plan: str) -> bool:
    """Tell whether an index is in a plan, and no table, nor an index, is read from one end to the other."""
    scans = r"Seq Scan|SCAN (customers|orders)|'table': '(customers|orders).*'(type': '(ALL|index)|rows': '\d\d\d)"
    return bool(re.search(rf"\b{index}\b", plan)) and not re.search(scans, plan)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("world", ["sqlite", "mariadb"], indirect=True)
def test_an_index_answers(world: World, name: str) -> None:
    index, build = SEARCHES[name]
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        plan = explained(connection, lambda: connection.execute(build()))
        connection.rollback()
    assert is_used(index, plan), plan


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_an_index_answers_what_psycopg_has_prepared(world: World, name: str, mode: str) -> None:
    index, build = SEARCHES[name]
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        plan = prepared_plan(connection, mode, lambda: connection.execute(build()))
        connection.invalidate()
    assert is_used(index, plan), plan


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_an_index_answers_what_asyncpg_has_prepared(world: World) -> None:
    async def on(url: str) -> None:
        engine = create_async_engine(url, poolclass=NullPool)
        world.vault.attach(engine, tenant_column="tenant_id")
        for name, (index, build) in SEARCHES.items():
            for mode in ("auto", "force_generic_plan"):
                async with world.vault.tenant("acme"), engine.connect() as connection:
                    plan = await connection.run_sync(
                        lambda sync, mode, build: prepared_plan(sync, mode, lambda: sync.execute(build())), mode, build
                    )
                assert is_used(index, plan), (name, mode, plan)

    asyncio.run(on(async_url(world.url, "asyncpg")))


def prepared_plan(connection: Connection, mode: str, work: Callable[[], Any]) -> str:
    """Return the plan that PostgreSQL keeps for every parameter after some work's statement was executed many times."""
    connection.execute(text(f"SET plan_cache_mode = {mode}"))
    for _ in range(14):
        work()
    name, count, kept = connection.execute(
        text(
            "SELECT name, coalesce(array_length(parameter_types, 1), 0), generic_plans FROM pg_prepared_statements "
            "WHERE statement LIKE '%customers%substr(%' AND statement NOT LIKE '%pg_prepared%' "
            "ORDER BY prepare_time DESC, name DESC LIMIT 1"
        )
    ).one()
    assert kept > 0
    nothing = ", ".join(["NULL"] * count)  # what the parameters are does not matter for such a plan
    return "\n".join(connection.exec_driver_sql(f'EXPLAIN EXECUTE "{name}" ({nothing})').scalars())


@pytest.mark.parametrize(("column", "index"), [("email", BY_EMAIL), ("code", BY_CODE)])
def test_an_index_tells_whether_a_value_is_there_while_a_key_is_replaced(world: World, column: str, index: str) -> None:
    slot: Any = Customer.__table__.columns[column].type.slots[0]  # type: ignore[attr-defined]
    home = (Customer.__table__, column)
    with world.engine.connect() as connection:

        def look() -> int:
            return uniqueness._found(connection, home, slot, [bytes(16), b"x" * 16], ("tenant_id", "acme"), None)

        on_postgresql = connection.dialect.name == "postgresql"
        plan = prepared_plan(connection, "auto", look) if on_postgresql else explained(connection, look)
        connection.invalidate()
    assert is_used(index, plan), plan
