"""Every type gives back what it was given, through every driver; None stays NULL."""

import asyncio
import datetime as dt
import enum
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from tests.support.urls import async_urls
from tests.support.world import World

from pii_vault import (
    EncryptedArray,
    EncryptedBoolean,
    EncryptedBytes,
    EncryptedDate,
    EncryptedDateTime,
    EncryptedEnum,
    EncryptedFloat,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedNumeric,
    EncryptedString,
    EncryptedText,
    EncryptedTime,
    EncryptedUUID,
)
from pii_vault.errors import EncodingError, NotEncryptedError


class Colour(enum.Enum):
    RED = "rouge"
    GREEN = 2


TEXTS = [
    "",
    " ",
    "ada@example.com",
    "a\x00b",
    "\x00",
    "🏳️‍🌈👩‍👩‍👧",
    "ي عربى",
    "e\u0301 is not é",
    "\ufeff",
    "x" * 2**20,
    "'; --",
]
VALUES: dict[str, tuple[Any, list[Any]]] = {
    "text": (EncryptedString, TEXTS),
    "long": (EncryptedText, ["line\r\nline", "y" * 2**20]),
    "blob": (EncryptedBytes, [b"", b"\x00", bytes(range(256)), b"\xfa" + bytes(60), b"z" * 2**20]),
    "int": (EncryptedInteger, [0, -1, 2**31, 2**63 - 1, -(2**63), 2**63, -(10**60), 10**60]),
    "float": (EncryptedFloat, [0.0, 0.1, -1e308, float("inf"), 5e-324]),
    "num": (EncryptedNumeric, [Decimal("0"), Decimal("-0.00"), Decimal("1.10"), Decimal("1E+3"), Decimal("9" * 60)]),
    "bool": (EncryptedBoolean, [True, False]),
    "day": (EncryptedDate, [dt.date.min, dt.date(2024, 2, 29), dt.date.max]),
    "time": (EncryptedTime, [dt.time.min, dt.time(23, 59, 59, 999_999)]),
    "naive": (EncryptedDateTime, [dt.datetime.min, dt.datetime(2024, 2, 29, 1, 2, 3, 4), dt.datetime.max]),
    "aware": (
        lambda: EncryptedDateTime(timezone=True),
        [
            dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC),
            dt.datetime(1800, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45))),
        ],
    ),
    "uuid": (EncryptedUUID, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)]),
    "enum": (lambda: EncryptedEnum(Colour), list(Colour)),
    "json": (EncryptedJSON, [{}, [], 0, False, "", {"a": {"é": "\x00🙂"}, "b": [None, 1.5, True]}]),
    "array": (lambda: EncryptedArray(EncryptedString()), [[], [""], ["a", "a\x00b"]]),
    "numbers": (lambda: EncryptedArray(EncryptedInteger), [[], [1, -(2**70)]]),
    "days": (lambda: EncryptedArray(EncryptedDate()), [[dt.date.min, dt.date.max]]),
}

TABLE = Table(
    "kinds",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),  # MariaDB counts on where it is given 0
    Column("tenant_id", String(100)),
    *(Column(name, kind()) for name, (kind, _) in VALUES.items()),
)

HEIGHT = max(len(values) for _, values in VALUES.values())
ROWS = [
    {"id": number, "tenant_id": "acme"}
    | {name: values[number] if number < len(values) else None for name, (_, values) in VALUES.items()}
    for number in range(HEIGHT)
]


@pytest.fixture
def kinds(_shared_world: World) -> Iterator[World]:
    TABLE.create(_shared_world.engine)
    yield _shared_world
    TABLE.drop(_shared_world.engine)


def exact(rows: Any) -> list[Any]:
    """Tell 1 from True, 1.10 from 1.1, and two offsets of one instant apart."""
    return [[(type(cell).__name__, repr(cell)) for cell in row] for row in rows]


WANTED = exact(row.values() for row in ROWS)
STATEMENT = select(TABLE).order_by(TABLE.c.id)


@asynccontextmanager
async def attached_connection(world: World, url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url)
    world.vault.attach(engine, tenant_column="tenant_id")
    try:
        async with world.vault.tenant("acme"), engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def test_a_synchronous_driver_brings_every_value_back(kinds: World) -> None:
    with kinds.session() as session:
        session.execute(insert(TABLE), ROWS)
    with kinds.session() as session:
        assert exact(session.execute(STATEMENT)) == WANTED


def test_one_row_at_a_time_and_returning_bring_every_value_back(kinds: World) -> None:
    with kinds.session() as session:
        for row, wanted in zip(ROWS, WANTED, strict=True):
            assert exact(session.execute(insert(TABLE).values(row).returning(TABLE))) == [wanted]


def test_asynchronous_drivers_bring_every_value_back_and_read_each_others(kinds: World) -> None:
    async def run(url: str) -> None:
        async with attached_connection(kinds, url) as connection:
            await connection.execute(TABLE.delete())
            await connection.execute(insert(TABLE), ROWS)
            assert exact(await connection.execute(STATEMENT)) == WANTED
            assert exact([row async for row in await connection.stream(STATEMENT)]) == WANTED

    for url in async_urls(kinds.url):
        asyncio.run(run(url))
        with kinds.session() as session:
            assert exact(session.execute(STATEMENT)) == WANTED


def test_none_is_null_in_every_column(kinds: World) -> None:
    with kinds.session() as session:
        session.execute(insert(TABLE).values(id=1, **dict.fromkeys(VALUES)))
        row = session.execute(text("select * from kinds")).mappings().one()
    assert {row[name] for name in VALUES} == {None}


def test_values_of_another_kind_are_refused_without_being_shown(kinds: World) -> None:
    wrong = {name: "SECRET" for name in VALUES if name not in ("text", "long", "json")}
    wrong |= {"text": b"SECRET", "long": 5, "bool": 1, "int": True, "num": 0.1, "json": {"k": {1, 2}}, "array": [5]}
    wrong |= {"naive": dt.datetime.now(dt.UTC), "aware": dt.datetime.min, "day": "2024-01-01"}
    with kinds.session() as session:
        for name, value in wrong.items():
            with pytest.raises(EncodingError, match=rf"kinds\.{name}") as caught:
                session.execute(insert(TABLE).values(id=1, **{name: value}))
            assert "SECRET" not in str(caught.value)
        with pytest.raises(EncodingError, match=r"kinds\.text"):
            session.execute(insert(TABLE), [{"id": 1, "text": "\ud800"}])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_a_driver_returns_as_bytes_is_opened(kinds: World, kind: Callable[[bytes], Any]) -> None:
    with kinds.session() as session:
        session.execute(insert(TABLE).values(id=1, text="ada"))
        stored = bytes(session.execute(text("select text from kinds")).scalar_one())
        process = TABLE.c.text.type.result_processor(kinds.engine.dialect, None)
        assert process(kind(stored)) == "ada"


def test_what_was_never_sealed_is_refused_when_it_is_read(kinds: World) -> None:
    with kinds.session() as session:
        session.execute(text("insert into kinds (id, text) values (1, :plain)").bindparams(plain=b"plain"))
        with pytest.raises(NotEncryptedError, match=r"kinds\.text"):
            session.execute(select(TABLE.c.text)).all()


def test_a_value_takes_38_bytes_more_than_its_encoding(kinds: World) -> None:
    raw = Table(
        "kinds", MetaData(), Column("text", LargeBinary), Column("bool", LargeBinary), Column("enum", LargeBinary)
    )
    with kinds.session() as session:
        session.execute(insert(TABLE).values(id=1, text="ada", bool=True, enum=Colour.GREEN))
        assert [len(cell) for cell in session.execute(select(raw.c.text, raw.c.bool)).one()] == [41, 39]
