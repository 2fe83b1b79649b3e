"""What a blind index costs beside an index on plaintext: a look-up, an insert, a join, and bytes on disk.

Sealed rows and their plaintext twins are in one PostgreSQL and read through one attached engine, statement by statement
in turn, so that the machine's noise meets them alike: compare the ratios, not the times. `bare` is the twin through an
engine that no vault has touched. Every statement is built anew, as an application does it, and its values are sealed
and opened.

The rows are loaded past the ORM, with the column types' own processors and COPY; that is not measured.

    python benchmarks/search.py [--json] [--rows N] [--rounds N]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from psycopg import sql
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Connection, Engine, String, create_engine, event, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.postgres import start_postgres

from pii_vault import BlindIndex, EncryptedString, LocalKms, Vault

TENANT = "acme"
LOOKUPS, INSERTS, BATCH, JOINS, JOINED = 50, 50, 1_000, 6, 100


class Base(DeclarativeBase): ...


class SealedCustomer(Base):
    __tablename__ = "sealed_customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString(index=BlindIndex(name="email", unique=True)))


class SealedOrder(Base):
    __tablename__ = "sealed_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString(index=BlindIndex(name="email")))
    amount: Mapped[int]


class PlainCustomer(Base):
    __tablename__ = "plain_customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(String, index=True, unique=True)


class PlainOrder(Base):
    __tablename__ = "plain_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(String, index=True)
    amount: Mapped[int]


@dataclass(frozen=True)
class Side:
    """One of the things compared: its models, and where they are read."""

    customer: Any
    order: Any
    connection: Connection
    session: Session
    new: str = "ada"
    """Whom it inserts. Two transactions that insert one value would wait for each other."""

    @property
    def customers(self) -> Any:
        return self.customer.__table__

    @property
    def orders(self) -> Any:
        return self.order.__table__

    def look_up(self, email: str) -> None:
        found = self.connection.execute(select(self.customers).where(self.customers.c.email == email)).one()
        assert found.email == email

    def look_up_by_orm(self, email: str) -> None:
        found = self.session.scalars(select(self.customer).where(self.customer.email == email)).one()
        assert found.email == email

    def insert(self, email: str) -> None:
        row = {"tenant_id": TENANT, "email": email.replace("ada", self.new)}
        self.connection.execute(insert(self.customers).values(row))

    def insert_batch(self, emails: list[str]) -> None:
        rows = [{"tenant_id": TENANT, "email": email.replace("ada", self.new)} for email in emails]
        self.connection.execute(insert(self.customers), rows)

    def join(self, first: int, *of_customers: Any) -> None:
        customers, orders = self.customers, self.orders
        joined = orders.join(customers, orders.c.email == customers.c.email)
        query = select(*of_customers, orders.c.amount).select_from(joined)
        rows = self.connection.execute(query.where(orders.c.id.between(first, first + JOINED - 1))).all()
        assert len(rows) == JOINED

    def join_all(self, rows: int) -> None:
        joined = self.orders.join(self.customers, self.orders.c.email == self.customers.c.email)
        assert self.connection.scalar(select(func.count()).select_from(joined)) == rows


@dataclass
class Bench:
    """The three sides, and how often each of them is measured."""

    sealed: Side
    plain: Side
    bare: Side
    rows: int
    rounds: int
    progress: Progress

    @property
    def sides(self) -> dict[str, Side]:
        return {"sealed": self.sealed, "plain": self.plain, "bare": self.bare}

    def compare(
        self, name: str, work: Callable[[Side, Any], None], given: Callable[[], list[Any]], *, rounds: int, per: int = 1
    ) -> dict[str, Any]:
        """Let each side do the same, piece by piece and in turn.

        A figure is the median of the rounds' ratios, where a side's time is its median piece's, lest one that was
        interrupted decides. Times are for a piece, or for each of its `per` parts.
        """
        medians: dict[str, list[float]] = {side: [] for side in self.sides}
        orders = list(itertools.permutations(self.sides.items()))
        for number in self.progress.track(range(rounds + 1), description=name):
            pieces = given()
            taken: dict[str, list[int]] = {side: [] for side in self.sides}
            gc.collect()
            for piece, order in zip(pieces, itertools.cycle(orders[number % 6 :] + orders[: number % 6])):
                for side_name, side in order:
                    start = time.perf_counter_ns()
                    work(side, piece)
                    taken[side_name].append(time.perf_counter_ns() - start)
            for side in self.sides.values():
                side.connection.commit()  # psycopg forgets what it has prepared when it rolls back
                side.session.commit()
            if number:  # the first time compiles the statements
                for side_name, nanoseconds in taken.items():
                    medians[side_name].append(statistics.median(nanoseconds) / per / 1_000)
        sealed, plain, bare = medians.values()
        return {
            f"{name}_ratio": _ratio(sealed, plain),
            f"{name}_bare_ratio": _ratio(sealed, bare),
            f"{name}_us": round(statistics.median(sealed), 1),
            f"{name}_plain_us": round(statistics.median(plain), 1),
            f"{name}_bare_us": round(statistics.median(bare), 1),
        }

    def measure(self) -> dict[str, Any]:
        chosen, rows, rounds = random.Random(1), self.rows, self.rounds
        new = itertools.count(rows)

        def known() -> list[str]:
            return [email(chosen.randrange(rows)) for _ in range(LOOKUPS)]

        def unknown(count: int) -> list[str]:
            return [email(next(new)) for _ in range(count)]

        def parts() -> list[int]:
            return [chosen.randint(1, rows - JOINED + 1) for _ in range(JOINS)]

        def ids(side: Side, first: int) -> None:
            side.join(first, side.customers.c.id)

        def opened(side: Side, first: int) -> None:
            side.join(first, side.customers.c.id, side.customers.c.email)

        def only(side: Side, first: int) -> None:
            side.join(first, side.customers.c.email)

        few = max(3, rounds // 4)
        figures: dict[str, Any] = self.sizes()
        figures |= self.compare("lookup", Side.look_up, known, rounds=rounds)
        figures |= self.compare("lookup_orm", Side.look_up_by_orm, known, rounds=rounds)
        figures |= self.compare("join", ids, parts, rounds=rounds)
        figures |= self.compare("join_opened", opened, parts, rounds=rounds)
        figures |= self.compare("join_index_only", only, parts, rounds=rounds)
        figures |= self.compare("join_all", Side.join_all, lambda: [rows], rounds=5)
        figures |= self.plans(known()[0])
        # Last, since there are more rows afterwards.
        figures |= self.compare("unique_insert", Side.insert, lambda: unknown(INSERTS), rounds=rounds)
        figures |= self.compare("batch_insert", Side.insert_batch, lambda: [unknown(BATCH)], rounds=few, per=BATCH)
        return figures

    def sizes(self) -> dict[str, Any]:
        """Bytes of the customers' tables and of the indexes on their e-mails, freshly built."""

        def bytes_of(table: Any, function: str) -> int:
            return int(self.plain.connection.scalar(text(f"SELECT {function}('{table}')")))

        sealed, plain = (each.customers for each in (self.sealed, self.plain))
        figures: dict[str, Any] = {}
        for name, function in (("total", "total_relation"), ("table", "table"), ("indexes", "indexes")):
            ours, theirs = (bytes_of(each.name, f"pg_{function}_size") for each in (sealed, plain))
            figures |= _bytes(name, ours, theirs)
        (sealed_index,), (plain_index,) = sealed.indexes, plain.indexes
        ours, theirs = (bytes_of(each.name, "pg_relation_size") for each in (sealed_index, plain_index))
        figures |= _bytes("index", ours, theirs)
        per_value = text(
            f"SELECT avg(octet_length(email))::int FROM (SELECT email FROM {sealed.name} LIMIT 100) AS few"
        )
        figures["value_bytes"] = self.plain.connection.scalar(per_value)
        figures["value_plain_bytes"] = len(email(0))
        return figures

    def plans(self, value: str) -> dict[str, Any]:
        """How PostgreSQL finds a row: with the value, by psycopg's prepared statement, and without the value."""
        figures: dict[str, Any] = {}
        for name, side in (("", self.sealed), ("plain_", self.plain)):
            with captured(side.connection) as executed:
                for _ in range(7):  # psycopg prepares what it has executed five times
                    side.look_up(value)
                side.join(1, side.customers.c.id)
                side.join(1, side.customers.c.email)
            figures[f"{name}lookup_plan"] = self._nodes(side.connection, *executed[0])
            figures |= self._prepared_plans(side.connection, name, side.customers.name, executed[0][1])
            figures[f"{name}join_plan"] = self._nodes(side.connection, *executed[-2])
            figures[f"{name}join_index_only_plan"] = self._nodes(side.connection, *executed[-1])
        return figures

    def _prepared_plans(self, connection: Connection, name: str, table: str, parameters: Any) -> dict[str, Any]:
        statement = connection.exec_driver_sql(
            "SELECT name, statement, generic_plans, custom_plans FROM pg_prepared_statements "
            f"WHERE statement LIKE 'SELECT {table}.%%WHERE%%' AND statement NOT LIKE '%%BETWEEN%%'"
        ).one()
        raw: Any = connection.connection.dbapi_connection
        values = sql.SQL(", ").join(map(sql.Literal, parameters.values()))
        execute = sql.SQL("EXECUTE {}({})").format(sql.Identifier(statement.name), values).as_string(raw)
        figures = {f"{name}lookup_prepared_plan": self._nodes(connection, execute, None)}
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        figures[f"{name}lookup_generic_plan"] = self._nodes(connection, execute, None)
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = auto")
        figures[f"{name}lookup_plans_used"] = f"{statement.generic_plans} generic, {statement.custom_plans} custom"
        return figures

    def _nodes(self, connection: Connection, statement: str, parameters: Any) -> str:
        (explained,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalars()
        return " > ".join(_node_names(explained[0]["Plan"]))


def _node_names(plan: dict[str, Any]) -> Iterator[str]:
    where = plan.get("Index Name") or plan.get("Relation Name")
    yield plan["Node Type"] + (f" ({where})" if where else "")
    for child in plan.get("Plans", ()):
        yield from _node_names(child)


@contextmanager
def captured(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database."""
    executed: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        executed.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(connection, "before_cursor_execute", note)


def email(number: int) -> str:
    """24 characters, another one for each number below 2^32, in no order."""
    return f"{number * 2_654_435_761 % 2**32:08x}.ada@example.com"


def load(engine: Engine, rows: int, progress: Progress) -> None:
    """Fill the tables, then make their indexes, and let the planner know."""
    tables = [model.__table__ for model in (SealedCustomer, SealedOrder, PlainCustomer, PlainOrder)]
    chosen = random.Random(2)
    buyers = [chosen.randrange(rows) for _ in range(rows)]
    with engine.begin() as connection:
        raw: Any = connection.connection.dbapi_connection
        for table in tables:
            connection.execute(CreateTable(table))
            seal = table.c.email.type.dialect_impl(engine.dialect).bind_processor(engine.dialect) or str
            ordered, sealed = "amount" in table.c, "sealed" in table.name
            columns = "tenant_id, email, amount" if ordered else "tenant_id, email"
            types = ["varchar", "bytea" if sealed else "varchar", *(["int4"] if ordered else [])]
            with raw.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(types)
                for number in progress.track(range(rows), description=f"loading {table}"):
                    if ordered:
                        copy.write_row((TENANT, seal(email(buyers[number])), number % 1_000))
                    else:
                        copy.write_row((TENANT, seal(email(number))))
        for index in progress.track([each for table in tables for each in table.indexes], description="indexing"):
            index.create(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in tables:
            connection.exec_driver_sql(f"VACUUM ANALYZE {table}")


@contextmanager
def bench(url: str, rows: int, rounds: int, progress: Progress) -> Iterator[tuple[Bench, float]]:
    with tempfile.TemporaryDirectory() as folder:
        kms = LocalKms(Path(folder) / "kms.json")
        vault = Vault(url, kms=kms, ttl=36_000)
        vault.create_all()
        vault.add_tenant(TENANT, key=kms.create_key())
        # Parallel workers would measure who else is busy.
        options = {"connect_args": {"options": "-c max_parallel_workers_per_gather=0"}}
        engine, bare = create_engine(url, **options), create_engine(url, **options)
        vault.attach(engine, tenant_column="tenant_id")
        sessions = sessionmaker(engine)
        vault.attach(sessions, tenant_column="tenant_id")
        try:
            with vault.tenant(TENANT):
                start = time.perf_counter()
                load(engine, rows, progress)
                loaded = time.perf_counter() - start
                with (
                    engine.connect() as one,
                    bare.connect() as other,
                    sessions() as session,
                    Session(bare) as untouched,
                ):
                    sealed = Side(SealedCustomer, SealedOrder, one, session)
                    plain = Side(PlainCustomer, PlainOrder, one, session)
                    twin = Side(PlainCustomer, PlainOrder, other, untouched, new="bob")
                    yield Bench(sealed, plain, twin, rows, rounds, progress), loaded
        finally:
            vault.close()
            engine.dispose()
            bare.dispose()


def run(rows: int, rounds: int) -> dict[str, Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    server = start_postgres()
    name = server.create_database()
    try:
        with (
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            bench(server.url(name), rows, rounds, progress) as (one, loaded),
        ):
            figures = {"rows": rows, **one.measure(), "load_seconds": round(loaded, 1)}
            version = one.plain.connection.scalar(text("SHOW server_version"))
        versions = {"python": platform.python_version(), "sqlalchemy": sqlalchemy.__version__, "postgresql": version}
        return {**figures, **versions}
    finally:
        server.drop_database(name)
        server.close()


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(ours, theirs, strict=True)), 3)


def _bytes(name: str, ours: int, theirs: int) -> dict[str, Any]:
    return {f"{name}_bytes_ratio": round(ours / theirs, 3), f"{name}_bytes": ours, f"{name}_plain_bytes": theirs}


def _print(figures: dict[str, Any]) -> None:
    print(
        f"{figures['rows']:,} rows of {figures['value_plain_bytes']} characters, {figures['value_bytes']} bytes sealed"
    )
    print(f"{'':<18}{'ratio':>8}{'to bare':>9}{'sealed':>14}{'plain':>14}{'bare':>14}")
    for name in (key.removesuffix("_us") for key in figures if f"{key.removesuffix('_us')}_bare_us" in figures):
        times = "".join(f"{figures[f'{name}{side}_us']:>11,} us" for side in ("", "_plain", "_bare"))
        print(f"{name:<18}{figures[f'{name}_ratio']:>8}{figures[f'{name}_bare_ratio']:>9}{times}")
    for name in ("table", "index", "indexes", "total"):
        sizes = "".join(f"{figures[f'{name}{side}_bytes']:>14,}" for side in ("", "_plain"))
        print(f"{name + '_bytes':<18}{figures[f'{name}_bytes_ratio']:>8}{'':>9}{sizes}")
    for name, value in figures.items():
        if "_plan" in name and isinstance(value, str):
            print(f"{name:<30}{value}")


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rows", type=int, default=100_000, help=f"rows of each table, at least {JOINED} (100000)")
    parser.add_argument("--rounds", type=int, default=101, help="how often each side is measured (101)")
    options = parser.parse_args()
    if options.rows < JOINED or options.rounds < 1:
        parser.error(f"--rows is at least {JOINED}, --rounds at least 1")
    figures = run(options.rows, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    _print(figures)


if __name__ == "__main__":
    main()
