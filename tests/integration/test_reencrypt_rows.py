"""Rows of tables with keys of every kind, through psycopg's own way and through the one for any database."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    column,
    create_engine,
    event,
    insert,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, INTERVAL, OID
from sqlalchemy.types import BigInteger, Integer
from tests.support.world import World

from pii_vault import EncryptedString
from pii_vault.reencryption import resealing
from pii_vault.reencryption.rows import Rows
from pii_vault.reencryption.rows_psycopg import PsycopgRows
from pii_vault.reencryption.targets import Wanted, encrypted_tables
from pii_vault.scope import ReencryptionScope

COUNT = 23


class Mood(enum.Enum):
    """In an order that is not that of the alphabet."""

    sunny = 1
    bad = 2
    good = 3


def moods(number: int) -> Mood:
    return list(Mood)[number]


KEYS: dict[str, tuple[Any, Callable[[int], Any], int]] = {
    "bigint": (BigInteger, lambda n: (n - 5) * 2**58 // 5, COUNT),
    "smallint": (SmallInteger, lambda n: n - 7, COUNT),
    "integer": (Integer, lambda n: (n - 11) * 10**8, COUNT),
    "uuid": (Uuid, lambda n: uuid.UUID(int=(n * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128), COUNT),
    "text": (Text, lambda n: ["", " ", "'", "%s", "\\", "ä", "Z", "z", "\t{}", '"'][n] if n < 10 else f"k{n}", COUNT),
    "varchar": (String(9), lambda n: f"{'aA'[n % 2]}{n}", COUNT),
    "char": (CHAR(6), lambda n: f"{n}", COUNT),
    "enum": (Enum(Mood, name="the Mood"), moods, 3),
    "numeric": (Numeric(20, 4), lambda n: Decimal(n - 9) * Decimal("1234567.8901"), COUNT),
    "date": (Date, lambda n: date(1999, 12, 25) + timedelta(n), COUNT),
    "timestamptz": (
        DateTime(timezone=True),
        lambda n: datetime(2026, 3, 29, 0, 59, 59, 123456 + n, UTC) + timedelta(minutes=n),
        COUNT,
    ),
    "timestamp": (DateTime, lambda n: datetime(2026, 3, 29, 1, 59, 59, n) + timedelta(hours=n), COUNT),
    "bytea": (LargeBinary, lambda n: bytes((n, 0, 255 - n)), COUNT),
    "boolean": (Boolean, bool, 2),
    "double": (DOUBLE_PRECISION, lambda n: (n - 3) / 3, COUNT),
    "interval": (INTERVAL, lambda n: timedelta(days=n, microseconds=n), COUNT),
    "oid": (OID, lambda n: 4_000_000_000 + n, COUNT),
}


def things(*keys: Any, name: str = "Some things", schema: str | None = None) -> Table:
    """A table whose names have to be quoted."""
    columns = [Column(f"The key {n}", each, primary_key=True, autoincrement=False) for n, each in enumerate(keys)]
    secret = Column("sealed Value", EncryptedString(context="things.secret"), key="secret")
    return Table(
        name, MetaData(), *columns, Column("tenant_id", String(20), server_default="acme"), secret, schema=schema
    )


@pytest.fixture
def on(postgres_url: str, world_on: Callable[..., World]) -> Callable[..., World]:
    def build(**options: Any) -> World:
        return world_on(postgres_url, **options)

    return build


def fill(world: World, made: Table, keys: list[tuple[Any, ...]]) -> None:
    made.metadata.create_all(world.engine)
    names = [each.key for each in made.primary_key.columns]
    values = [dict(zip(names, key, strict=True)) | {"secret": f"value {n}"} for n, key in enumerate(keys)]
    with world.vault.tenant("acme"), world.engine.begin() as connection:
        connection.execute(insert(made), values)
    world.vault.rotate("acme")


def sealed_by(world: World, made: Table) -> list[int]:
    plain = table(made.name, column("sealed Value", LargeBinary), schema=made.schema)
    with world.engine.connect() as connection:
        return [int.from_bytes(bytes(each)[5:7], "big") for each in connection.scalars(select(plain))]


def opened(world: World, made: Table) -> list[str]:
    with world.vault.tenant("acme"), world.engine.connect() as connection:
        return sorted(connection.scalars(select(made.c.secret)))


@contextmanager
def generic() -> Iterator[None]:
    """As through a driver that nothing is known of."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resealing, "rows_of", Rows)
        yield


def run(world: World, made: Table, **options: Any) -> Any:
    return world.vault.reencrypt("acme", metadata=made.metadata, engine=world.engine, **options)


@pytest.mark.parametrize("kind", KEYS)
def test_rows_with_a_key_of_any_type_are_moved_in_parts_and_in_one(kind: str, on: Callable[..., World]) -> None:
    key, value, count = KEYS[kind]
    world, made = on(), things(key)
    fill(world, made, [(value(n),) for n in range(count)])
    steps: list[int] = []
    assert run(world, made, batch=4, progress=lambda _, done, __: steps.append(done)).left == 0
    assert sealed_by(world, made) == [2] * count
    assert [each for each in dict.fromkeys(steps) if each] == [*range(4, count, 4), count]
    assert opened(world, made) == sorted(f"value {n}" for n in range(count))
    world.vault.rotate("acme")
    with generic():
        assert run(world, made, batch=4).left == 0
    assert sealed_by(world, made) == [3] * count
    assert opened(world, made) == sorted(f"value {n}" for n in range(count))


@pytest.mark.parametrize("kinds", [("text", "uuid"), ("enum", "timestamptz"), ("bytea", "char"), ("numeric", "oid")])
def test_so_are_rows_with_a_key_of_several_columns(kinds: tuple[str, str], on: Callable[..., World]) -> None:
    (first, one, _), (second, other, _) = (KEYS[each] for each in kinds)
    world, made = on(), things(first, second)
    fill(world, made, [(one(n % 3), other(n)) for n in range(COUNT)])
    assert run(world, made, batch=4).left == 0
    assert sealed_by(world, made) == [2] * COUNT
    assert opened(world, made) == sorted(f"value {n}" for n in range(COUNT))


def test_keys_are_compared_as_the_column_collates_them(on: Callable[..., World]) -> None:
    world = on()
    with world.engine.connect() as connection:
        icu = connection.scalar(text("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'"))
    if not icu:
        pytest.skip("this PostgreSQL knows no collation but those of C")
    made = things(Text(collation="und-x-icu"))
    fill(world, made, [(f"{'aAbBäÄ-'[n % 7]}{n}",) for n in range(COUNT)])
    assert run(world, made, batch=2).left == 0
    assert sealed_by(world, made) == [2] * COUNT


def test_a_key_of_an_extension_is_taken_too(on: Callable[..., World]) -> None:
    world = on()
    with world.engine.connect() as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'")):
            pytest.skip("this PostgreSQL has no citext")
    from sqlalchemy.dialects.postgresql import CITEXT

    with world.engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION citext"))
    made = things(CITEXT)
    fill(world, made, [(f"{'aA'[n % 2]}{n}",) for n in range(COUNT)])
    assert run(world, made, batch=2).left == 0
    assert sealed_by(world, made) == [2] * COUNT


@pytest.mark.parametrize("name", ["new", "newer", "order", 'with "quotes"', "50% off", "Größe:x"])
def test_tables_of_any_name_are_moved(name: str, on: Callable[..., World]) -> None:
    world, made = on(), things(Integer, name=name)
    fill(world, made, [(n,) for n in range(COUNT)])
    assert run(world, made, batch=4).left == 0
    assert sealed_by(world, made) == [2] * COUNT


def test_a_map_of_schemas_is_followed(on: Callable[..., World]) -> None:
    world = on()
    with world.engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Customer 7"'))
    mapped, real = things(Integer, schema="template"), things(Integer, schema="Customer 7")
    fill(world, real, [(n,) for n in range(COUNT)])
    engine = world.engine.execution_options(schema_translate_map={"template": "Customer 7"})
    done = world.vault.reencrypt("acme", metadata=mapped.metadata, engine=engine, batch=4)
    assert done.left == 0
    assert sealed_by(world, real) == [2] * COUNT


def test_one_connection_is_enough(on: Callable[..., World]) -> None:
    world, made = on(), things(Integer)
    fill(world, made, [(n,) for n in range(COUNT)])
    engine = create_engine(world.url, pool_size=1, max_overflow=0, pool_timeout=5)
    world.vault.attach(engine)
    assert world.vault.reencrypt("acme", metadata=made.metadata, engine=engine, batch=2).left == 0
    engine.dispose()


def test_both_ways_read_and_write_the_same(on: Callable[..., World]) -> None:
    """Of two rows whose bytes somebody has changed meanwhile neither writes any."""
    world, made = on(), things(Integer)
    fill(world, made, [(n,) for n in range(COUNT)])
    seen = []
    for kind in (Rows, PsycopgRows):
        world.vault.rotate("acme")
        changes: list[Any] = []
        with pytest.MonkeyPatch.context() as patched:
            original = kind.write

            def write(self: Any, change: Any, original: Any = original, changes: Any = changes) -> int:
                if not changes:
                    with world.engine.begin() as connection:
                        others = 'UPDATE "Some things" SET "sealed Value" = NULL WHERE "The key 0" IN (1, 2)'
                        connection.execute(text(others))
                changes.append((change.names, list(change.keys), [len(each) for each in change.before]))
                return int(original(self, change))

            patched.setattr(kind, "write", write)
            patched.setattr(kind, "side_by_side", False)
            patched.setattr(resealing, "rows_of", kind)
            steps: list[int] = []
            assert run(world, made, batch=4, progress=lambda _, done, __, steps=steps: steps.append(done)).left == 0
        seen.append((changes, steps))
        with world.vault.tenant("acme"), world.engine.begin() as connection:
            connection.execute(made.update().where(made.c["The key 0"].in_((1, 2))).values(secret="again"))
    assert seen[0] == seen[1]
    assert seen[0][1][-1] == COUNT - 2


def test_a_batch_is_one_read_and_one_update_and_a_read_never_scans_the_whole_table(on: Callable[..., World]) -> None:
    world, made, rows = on(), things(Integer), 20_000
    fill(world, made, [(n,) for n in range(rows)])
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text('VACUUM ANALYZE "Some things"'))
    asked: list[str] = []

    def ask(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if "Some things" in sql:
            asked.append(sql.split(maxsplit=1)[0])

    event.listen(world.engine, "before_cursor_execute", ask)
    (target,) = encrypted_tables(made.metadata)
    for batch in (2_000, 500):
        before = scans(world, made)
        with ReencryptionScope(world.vault._keyring, "acme") as scope:
            job = resealing.Resealing(world.engine, scope, target, Wanted(frozenset((1,)), 9), batch)
            asked.clear()
            assert sum(len(change.keys) for changes in job._batches() for change in changes) == rows
            # The end of the first batch is looked for, all are read, and after the last an empty one; and the types of
            # the key, once.
            assert asked == ["SELECT"] * (rows // batch + 3)
            after = scans(world, made)
            assert after["seq_scan"] == before["seq_scan"]
            assert after["idx_tup_fetch"] - before["idx_tup_fetch"] <= 3 * rows
            nothing = resealing.Resealing(world.engine, scope, target, Wanted(frozenset((1,)), 1), 500)
            asked.clear()
            assert list(nothing._batches()) == []
            # Each time twice as many rows are looked through, up to their end, and that is looked for too.
            assert asked == ["SELECT"] * (2 * len((500, 1_000, 2_000, 4_000, 8_000, 16_000)) + 1)
            assert scans(world, made)["seq_scan"] == before["seq_scan"]
        asked.clear()
        assert run(world, made, batch=batch).left == 0
        assert asked.count("UPDATE") == rows // batch
        world.vault.rotate("acme")


def scans(world: World, made: Table) -> dict[str, int]:
    """Say how often a table was read from end to end, and how many rows were found by an index."""
    world.engine.dispose()  # what connections have counted is told at their end
    query = text("SELECT seq_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = :name")
    with world.engine.connect() as connection:
        return dict(connection.execute(query, {"name": made.name}).mappings().one())
