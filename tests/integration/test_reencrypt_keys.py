"""Rows are gone through by any kind of primary key, in any schema, under any name: each is moved, and once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum as PythonEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Dialect,
    Engine,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    Uuid,
    insert,
    select,
    text,
)
from tests.support.world import World

from pii_vault import EncryptedInteger, EncryptedString

BATCHES: Final = (1, 2, 7)


class Reference(TypeDecorator[int]):
    """A number in Python, a text in the database, which orders them in another way."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else f"ref-{value}"

    def process_result_value(self, value: str | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value.removeprefix("ref-"))


class Colour(PythonEnum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"
    AMBER = "amber"


WORDS: Final = ("", " ", "a", "A", "aa", "Ab", "B", "b", "ß", "ss", "Ä", "ä", "z", "Z", "é", "e\u0301", "日本", "😀")
ONE_OF_EACH: Final = ("", "a", "b", "cc", "d e", "Zz", "ö", "日本", "😀", "0", "10", "9", "_", "%")
MOMENTS: Final = [datetime(1969, 7, 20, 20, 17, 40) + timedelta(days=n * 4000, microseconds=n) for n in range(12)]
ZONES: Final = [
    datetime(2024, 10, 27, hour, 30, tzinfo=timezone(timedelta(hours=zone)))
    for hour in (0, 1, 2)
    for zone in (-5, 0, 9)
]

KINDS: Final[dict[str, tuple[Any, Sequence[Any]]]] = {
    "integers": (Integer, [-(2**31), -10, -9, -1, 0, 1, 9, 10, 100, 2**31 - 1]),
    "big integers": (BigInteger, [-(2**63), -1, 0, 1, 2**31, 2**53 + 1, 2**53 + 2, 2**63 - 1]),
    "UUIDs": (Uuid, [uuid.uuid5(uuid.NAMESPACE_OID, str(n)) for n in range(20)]),
    "UUIDs as texts": (Uuid(native_uuid=False), [uuid.uuid5(uuid.NAMESPACE_OID, str(n)) for n in range(20)]),
    "texts": (String(40), WORDS),
    "dates": (Date, [date(1, 1, 1), date(1582, 10, 15), date(1969, 12, 31), date(1970, 1, 1), date(9999, 12, 31)]),
    "instants": (DateTime, MOMENTS),
    "a type of the application's own": (Reference, [1, 2, 9, 10, 11, 100, -1, -10]),
    "bytes": (LargeBinary(16), [b"", b"\0", b"\0\0", b"'", b"\x7f", b"\x80", b"\xff", b"\xff\0", b"a\0b"]),
    "an enumeration": (Enum(Colour), list(Colour)),
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world_at(request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path) -> Callable[..., World]:
    """A world on each database; the key store beside it."""
    names = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
    url = request.getfixturevalue(names[request.param])
    return partial(world_on, url, key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite3'}")


def table_of(*keys: Column[Any], name: str = "things", **options: Any) -> Table:
    return Table(
        name,
        MetaData(),
        *keys,
        Column("tenant_id", String(30)),
        Column("note", EncryptedString()),
        Column("age", EncryptedInteger()),
        **options,
    )


def fill(world: World, table: Table, keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    table.metadata.create_all(world.engine)
    rows = [{**key, "tenant_id": "acme", "note": f"note {n}", "age": n} for n, key in enumerate(keys)]
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        for row in rows:  # one after the other: a driver may not take all of them at once
            connection.execute(insert(table), row)
    return rows


def stored_versions(engine: Engine, table: Table) -> list[int]:
    bare = Table(table.name, MetaData(), *(Column(each, LargeBinary) for each in ("note", "age")), schema=table.schema)
    with engine.connect() as connection:
        return sorted(
            {int.from_bytes(bytes(each)[5:7], "big") for row in connection.execute(select(bare)) for each in row}
        )


def take(steps: list[tuple[int, int]], _table: str, done: int, total: int) -> None:
    steps.append((done, total))


def assert_moved(world: World, table: Table, rows: Sequence[dict[str, Any]], engine: Engine | None = None) -> None:
    """Rotate and move, with batches of several sizes: each row once, and no other than it was."""
    engine = engine or world.engine
    for version, batch in enumerate(BATCHES, 2):
        world.vault.rotate("acme")
        steps: list[tuple[int, int]] = []
        note = partial(take, steps)
        done = world.vault.reencrypt("acme", metadata=table.metadata, engine=engine, batch=batch, progress=note)
        assert (done.version, done.left, done.problems) == (version, 0, ())
        assert (steps[0], steps[-1]) == ((0, len(rows)), (len(rows), len(rows)))
        assert stored_versions(engine, table) == [version]
    with world.vault.tenant("acme"), engine.connect() as connection:
        found = [dict(row) for row in connection.execute(select(table)).mappings()]
    assert sorted(found, key=lambda row: row["age"]) == rows


def on_mariadb(kind: str, values: Sequence[Any]) -> Sequence[Any]:
    if kind == "bytes":
        pytest.skip("MariaDB takes no BLOB for a key")
    if kind == "instants":
        return [each.replace(microsecond=0) for each in values]  # as DATETIME keeps them
    # Its usual collation takes some of the others for the same.
    return ONE_OF_EACH if kind == "texts" else values


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_found_by_a_key_of(kind: str, world_at: Callable[..., World]) -> None:
    world, (type_, values) = world_at(), KINDS[kind]
    if world.engine.dialect.name in ("mariadb", "mysql"):
        values = on_mariadb(kind, values)
    table = table_of(Column("id", type_, primary_key=True, autoincrement=False))
    assert_moved(world, table, fill(world, table, [{"id": value} for value in values]))


def test_rows_are_found_by_keys_of_several_columns(world_at: Callable[..., World]) -> None:
    """Of which the first ones are the same more often than a table is gone through, and a batch ends between them."""
    world = world_at()
    table = table_of(
        Column("shop", String(20), primary_key=True),
        Column("day", Date, primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
    )
    days = (date(1999, 12, 31), date(2000, 1, 1))
    keys = [
        {"shop": shop, "day": day, "number": number}
        for shop in ("", "a", "b")
        for day in days
        for number in range(-3, 4)
    ]
    assert_moved(world, table, fill(world, table, keys))


@pytest.mark.parametrize(
    ("database", "collation"),
    [
        ("sqlite_url", "NOCASE"),
        ("sqlite_url", "RTRIM"),
        ("postgres_url", "C"),
        ("postgres_url", "en_US.utf8"),
        ("postgres_url", "de-x-icu"),
        ("mariadb_url", "utf8mb4_bin"),
        ("mariadb_url", "utf8mb4_general_ci"),
        ("mariadb_url", "utf8mb4_german2_ci"),
    ],
)
def test_texts_are_ordered_and_compared_by_the_same_collation(
    database: str, collation: str, request: pytest.FixtureRequest, world_on: Callable[..., World], tmp_path: Path
) -> None:
    """That of the column: case, umlauts and blanks count as they do there."""
    url = request.getfixturevalue(database)
    world = world_on(url, key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite3'}")
    if database == "postgres_url":
        known = text("SELECT count(*) FROM pg_collation WHERE collname = :name")
        with world.engine.connect() as connection:
            if not connection.scalar(known, {"name": collation}):
                pytest.skip(f"this PostgreSQL was built or set up without {collation}")
    values = WORDS if database == "postgres_url" else ONE_OF_EACH
    table = table_of(Column("id", String(40, collation=collation), primary_key=True))
    assert_moved(world, table, fill(world, table, [{"id": value} for value in values]))


def test_numbers_with_a_fraction_are_keys_too(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url)
    numbers = [Decimal(each) for each in ("-10.50", "-1.00", "0.00", "0.10", "9.99", "10.00")]
    table = table_of(Column("id", Numeric(10, 2), primary_key=True, autoincrement=False))
    assert_moved(world, table, fill(world, table, [{"id": each} for each in numbers]))


def test_instants_that_clocks_show_twice_are_two_rows(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url)
    moments = sorted({each.astimezone(UTC) for each in ZONES})
    table = table_of(Column("id", DateTime(timezone=True), primary_key=True))
    assert_moved(world, table, fill(world, table, [{"id": each} for each in moments]))


def test_a_table_in_another_schema_is_found(postgres_url: str, world_on: Callable[..., World]) -> None:
    world = world_on(postgres_url)
    with world.engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Other one"'))
    table = table_of(Column("id", Integer, primary_key=True), schema="Other one")
    assert_moved(world, table, fill(world, table, [{"id": n} for n in range(10)]))


def test_a_schema_that_the_engine_maps_is_followed(postgres_url: str, world_on: Callable[..., World]) -> None:
    """And the table of that name which lies where nothing is mapped is left alone."""
    world = world_on(postgres_url)
    with world.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA first"))
    table = table_of(Column("id", Integer, primary_key=True))
    beside = fill(world, table, [{"id": n} for n in range(5)])
    mapped = world.engine.execution_options(schema_translate_map={None: "first"})
    table.metadata.create_all(mapped)
    rows = [{"id": n, "tenant_id": "acme", "note": f"note {n}", "age": n} for n in range(10)]
    with world.vault.tenant("acme"), mapped.begin() as connection:
        connection.execute(insert(table), rows)
    assert_moved(world, table, rows, mapped)
    assert len(beside) == 5
    assert stored_versions(world.engine, table) == [1]


NAMES: Final = ("Order", "select", "two words", 'quo"ted', "100%", "a:b", "a.b", "(x)", "%(y)s", "grün", "user")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_need_quotes_are_quoted(name: str, world_at: Callable[..., World]) -> None:
    world = world_at()
    table = Table(
        f"t {name}",
        MetaData(),
        Column(f"k {name}", Integer, primary_key=True),
        Column(name, Integer, primary_key=True, autoincrement=False),
        Column("tenant_id", String(30)),
        Column(f"e {name}", EncryptedString(context="things.e")),
        Column("note", EncryptedString(context="things.note")),
    )
    table.metadata.create_all(world.engine)
    rows = [{f"k {name}": n, name: -n, "tenant_id": "acme", f"e {name}": f"{n}", "note": f"{n}"} for n in range(10)]
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(table).values({table.columns[each]: value for each, value in row.items()}))
    world.vault.rotate("acme")
    done = world.vault.reencrypt("acme", metadata=table.metadata, engine=world.engine, batch=3)
    assert (done.version, done.left, done.problems) == (2, 0, ())
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        found = sorted(tuple(row) for row in connection.execute(select(table)))
    assert found == [tuple(row.values()) for row in rows]


def test_columns_that_the_application_calls_by_other_names_are_found(world_at: Callable[..., World]) -> None:
    world = world_at()
    table = Table(
        "things",
        MetaData(),
        Column("thing_id", Integer, primary_key=True, autoincrement=False, key="id"),
        Column("tenant_id", String(30)),
        # Each is called as another one is named.
        Column("note", EncryptedString(context="things.first"), key="age"),
        Column("age", EncryptedInteger(context="things.second"), key="note"),
    )
    table.metadata.create_all(world.engine)
    rows = [{"id": n, "tenant_id": "acme", "age": f"text {n}", "note": n} for n in range(10)]
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(table), rows)
    world.vault.rotate("acme")
    done = world.vault.reencrypt("acme", metadata=table.metadata, engine=world.engine, batch=3)
    assert (done.version, done.left, done.problems) == (2, 0, ())
    assert stored_versions(world.engine, table) == [2]
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        found = connection.execute(select(table).order_by(table.c.id)).all()
    assert [tuple(row) for row in found] == [tuple(row.values()) for row in rows]


def test_whose_a_row_is_stands_in_a_column_that_is_called_otherwise(world_at: Callable[..., World]) -> None:
    """The vault is given its name; what was not sealed for the tenant is counted all the same."""
    world = world_at()
    table = Table(
        "things",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("tenant_id", String(30), key="owner"),
        Column("note", EncryptedString()),
    )
    table.metadata.create_all(world.engine)
    with world.engine.begin() as connection:
        connection.execute(text("INSERT INTO things VALUES (1, 'acme', 'never sealed')"))
    done = world.vault.reencrypt("acme", metadata=table.metadata, engine=world.engine)
    assert dict(done.foreign) == {"things.note": 1}
