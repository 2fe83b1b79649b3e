"""What values, rows, columns, key versions, tenants and processes cost, counted: no clock is read, no machine matters.

A change that makes the library slower mostly makes it do more: a function call, an object, a statement, a request.
These tests see that on a machine where a timing would not.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, String, event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.support.clocks import Clocks
from tests.support.world import TENANTS, World

from pii_vault import EncryptedInteger, EncryptedString, LocalKms, Vault
from pii_vault.keyring.terms import EARLY
from pii_vault.kms import KmsKey

COLUMNS = ("email", "phone", "street")
FEW, MANY = 50, 250


class Base(DeclarativeBase): ...


class Sealed(Base):
    __tablename__ = "sealed"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())
    phone: Mapped[str] = mapped_column(EncryptedString())
    street: Mapped[str] = mapped_column(EncryptedString())


class Twin(Base):
    __tablename__ = "twin"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str]
    phone: Mapped[str]
    street: Mapped[str]


class Count(Base):
    __tablename__ = "counts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    visits: Mapped[int] = mapped_column(EncryptedInteger())


MODELS: tuple[Any, ...] = (Sealed, Twin)


@pytest.fixture
def unwraps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The KMS keys that were asked to unwrap, in order."""
    asked: list[str] = []
    original = LocalKms.unwrap

    def unwrap(self: LocalKms, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        asked.append(key.arn)
        return original(self, key, blob, context)

    monkeypatch.setattr(LocalKms, "unwrap", unwrap)
    return asked


def rows(count: int, first: int = 1) -> list[dict[str, Any]]:
    return [
        {"id": number, "tenant_id": "acme", **{name: f"{name} {number:020}" for name in COLUMNS}}
        for number in range(first, first + count)
    ]


@contextmanager
def python_calls() -> Iterator[Counter[str]]:
    """Count the calls of Python functions and of built-in ones."""
    seen: Counter[str] = Counter()

    def note(_frame: Any, what: str, _argument: Any) -> None:
        seen[what] += 1

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def processors(world: World, column: Any = Sealed.email) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    kind, dialect = column.type.dialect_impl(world.engine.dialect), world.engine.dialect
    return kind.bind_processor(dialect), kind.result_processor(dialect, None)


def calls_per_value(function: Callable[[Any], Any], value: Any) -> dict[str, float]:
    function(value)
    with python_calls() as few:
        for _ in range(FEW):
            function(value)
    with python_calls() as many:
        for _ in range(MANY):
            function(value)
    return {what: (many[what] - few[what]) / (MANY - FEW) for what in ("call", "c_call")}


@pytest.mark.parametrize("size", [24, 4_096])
def test_a_value_is_opened_by_one_function_that_calls_four_built_in_ones(
    build_world: Callable[..., World], size: int
) -> None:
    """The scope, the clock, the decryption and the text."""
    world = build_world(Base.metadata)
    with world.vault.tenant("acme"):
        seal, open_ = processors(world)
        found = calls_per_value(open_, seal("x" * size))
    assert found["call"] == 1
    assert found["c_call"] <= 4


@pytest.mark.parametrize("size", [24, 4_096])
def test_a_value_is_sealed_by_one_function_that_draws_one_iv(build_world: Callable[..., World], size: int) -> None:
    """The other function is the one that counts the key's uses and draws the IV."""
    world = build_world(Base.metadata)
    with world.vault.tenant("acme"):
        seal, _ = processors(world)
        found = calls_per_value(seal, "x" * size)
    assert found["call"] <= 2
    assert found["c_call"] <= 6


def test_an_opened_value_is_one_object_and_none_that_the_collector_follows(build_world: Callable[..., World]) -> None:
    """With an object for each value that is followed, a load would take half as long again."""
    world = build_world(Base.metadata)
    with world.vault.tenant("acme"):
        seal, open_ = processors(world)
        sealed = [seal(f"value {number}") for number in range(MANY)]
        opened: list[Any] = [None] * MANY
        open_(sealed[0])
        gc.collect()
        gc.disable()
        try:
            followed, blocks = gc.get_count()[0], sys.getallocatedblocks()
            for number, each in enumerate(sealed):
                opened[number] = open_(each)
            followed, blocks = gc.get_count()[0] - followed, sys.getallocatedblocks() - blocks
        finally:
            gc.enable()
    assert opened[-1] == f"value {MANY - 1}"
    assert followed < MANY / 20
    assert blocks < MANY * 1.05 + 10


def calls_per_row(world: World, work: Callable[[Any, int], None]) -> dict[str, float]:
    """Return how many Python functions a row takes beyond its twin, whatever a statement costs by itself."""
    found = {}
    for model in MODELS:
        by_rows = []
        work(model, FEW)  # compiles the statements
        for count in (FEW, MANY):
            with python_calls() as seen:
                work(model, count)
            by_rows.append(seen["call"])
        found[model.__tablename__] = (by_rows[1] - by_rows[0]) / (MANY - FEW)
    return found


def test_a_loaded_row_takes_one_function_more_for_each_encrypted_column(build_world: Callable[..., World]) -> None:
    world = build_world(Base.metadata)
    with world.session() as session:
        for model in MODELS:
            session.execute(insert(model), rows(MANY))

    def load(model: Any, count: int) -> None:
        with world.session() as session:
            assert len(session.scalars(select(model).limit(count)).all()) == count

    found = calls_per_row(world, load)
    assert found["sealed"] - found["twin"] < len(COLUMNS) * 1.5


def test_an_inserted_row_takes_two_functions_more_for_each_encrypted_column(
    build_world: Callable[..., World],
) -> None:
    """The one that seals and the one that draws the IV; and each row's tenant is checked."""
    world = build_world(Base.metadata)
    numbers = iter(range(1, 100))

    def add(model: Any, count: int) -> None:
        with world.session() as session:
            session.execute(insert(model), rows(count, next(numbers) * MANY))

    found = calls_per_row(world, add)
    assert found["sealed"] - found["twin"] < len(COLUMNS) * 3


def test_encrypted_columns_send_no_statement_of_their_own(build_world: Callable[..., World]) -> None:
    world = build_world(Base.metadata)
    sent: dict[str, list[int]] = {}
    for model in MODELS:
        first = 1
        for count in (FEW, MANY):
            with statements(world.engine) as of_inserts, world.session() as session:
                session.add_all([model(**each) for each in rows(count, first)])
            first += count
            with statements(world.engine) as of_loads, world.session() as session:
                assert session.scalars(select(model)).all()
            with statements(world.engine) as of_gets, world.session() as session:
                assert session.get(model, 1)
            sent.setdefault(model.__tablename__, []).extend(map(len, (of_inserts, of_loads, of_gets)))
    assert sent["sealed"] == sent["twin"] == [1, 1, 1] * 2


def test_reading_asks_the_key_store_nothing_while_keys_are_in_memory(build_world: Callable[..., World]) -> None:
    world = build_world(Base.metadata)
    with world.session() as session:
        session.execute(insert(Sealed), rows(MANY))
    with world.vault.tenant("acme"):
        pass  # reserves uses of the key in place of those
    with statements(world.vault._engine) as asked:
        for _ in range(3):
            with world.session() as session:
                assert len(session.scalars(select(Sealed)).all()) == MANY
    assert asked == []


@pytest.mark.parametrize("versions", [1, 4])
def test_a_process_asks_the_kms_once_for_each_tenant_whatever_there_is(
    build_world: Callable[..., World], make_engine: Callable[..., Engine], unwraps: list[str], versions: int
) -> None:
    """However many rows, columns, tables and key versions: one request for each process, tenant and time to live."""
    clocks = Clocks()
    world = build_world(Base.metadata, ttl=300, clock=clocks.as_clock)
    for version in range(versions):
        if version:
            world.vault.rotate("acme")
        with world.session() as session:
            session.execute(insert(Sealed), rows(FEW, 1 + version * FEW))
            session.execute(insert(Count), [{"tenant_id": "acme", "visits": number} for number in range(FEW)])
    others = [Vault(world.url, kms=world.kms, ttl=300, clock=clocks.as_clock) for _ in range(2)]
    for vault in others:
        engine, asked = make_engine(world.url), len(unwraps)
        vault.attach(engine)
        for _ in range(3):
            with vault.tenant("acme"), engine.connect() as connection:
                assert (
                    len(connection.execute(select(Sealed.email, Sealed.phone, Sealed.street)).all()) == FEW * versions
                )
                assert len(connection.execute(select(Count.visits)).all()) == FEW * versions
        assert unwraps[asked:] == [world.keys["acme"]]
        clocks.pass_(301)
        with vault.tenant("acme"), engine.connect() as connection:
            assert connection.execute(select(Sealed.email)).first()
        assert unwraps[asked:] == [world.keys["acme"]] * 2
        for name in TENANTS:
            with vault.tenant(name):
                pass
        assert Counter(unwraps[asked:]) == {world.keys["acme"]: 2, world.keys["glob"]: 1}
    for vault in others:
        vault.close()


def test_a_busy_process_asks_the_kms_once_in_each_time_to_live_fetching_ahead_counted(
    build_world: Callable[..., World], unwraps: list[str]
) -> None:
    """An hour of work with a scope every five seconds: between two fetches nobody is asked, and none comes twice."""
    clocks, ttl, step = Clocks(), 300, 5
    world = build_world(Base.metadata, ttl=ttl, clock=clocks.as_clock)
    with world.session() as session:
        session.execute(insert(Sealed), rows(FEW))
    del unwraps[:]
    fetched: list[float] = []
    for _ in range(3_600 // step):
        clocks.pass_(step)
        asked = len(unwraps)
        with world.session() as session:
            assert len(session.scalars(select(Sealed)).all()) == FEW
        fetched += [clocks.monotonic] * (len(unwraps) - asked)
    pauses = [later - earlier for earlier, later in pairwise(fetched)]
    assert all(EARLY[0] * ttl - step <= pause <= ttl for pause in pauses)
    assert 3_600 / ttl <= len(fetched) <= 3_600 / (EARLY[0] * ttl) + 1
