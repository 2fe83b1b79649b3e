"""Parts of re-encryption that need no database."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from uuid import UUID

import psycopg
import pytest
from psycopg.adapt import PyFormat, Transformer

from pii_vault.cli.words import duration
from pii_vault.reencryption.ahead import one_ahead
from pii_vault.reencryption.rows_psycopg import BinaryArray, _sent
from pii_vault.reencryption.running import Counts

# One ahead.

_place: ContextVar[str] = ContextVar("_place", default="nowhere")


def test_each_thing_is_made_while_the_one_before_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def things() -> Iterator[int]:
        for number in range(3):
            made[number].set()
            yield number
        made[3].set()

    found = []
    for number in one_ahead(things()):
        assert made[number + 1].wait(30)  # nobody has asked for it yet
        assert number == 2 or not made[min(number + 2, 3)].is_set()
        found.append(number)
    assert found == [0, 1, 2]


def test_things_are_made_in_another_thread_and_in_the_context_of_whoever_asks() -> None:
    def things() -> Iterator[tuple[str, bool]]:
        while True:
            yield _place.get(), threading.current_thread() is threading.main_thread()

    token = _place.set("here")
    ahead = one_ahead(things())
    assert next(ahead) == ("here", False)
    _place.reset(token)
    assert next(ahead) == ("here", False)
    ahead.close()


def test_an_error_comes_in_its_turn_and_a_thread_is_left_by_nobody() -> None:
    def things() -> Iterator[int]:
        yield 1
        raise LookupError("two")

    before, ahead = threading.active_count(), one_ahead(things())
    assert next(ahead) == 1
    with pytest.raises(LookupError, match="two"):
        next(ahead)
    stopped = one_ahead(iter(range(100)))
    assert next(stopped) == 0
    stopped.close()
    assert list(one_ahead(iter(()))) == []
    assert threading.active_count() == before


# Arrays.


def by_psycopg(values: list[object]) -> bytes:
    transformer = Transformer()
    dumped = transformer.get_dumper(values, PyFormat.BINARY).dump(values)
    assert dumped is not None
    return bytes(dumped)


@pytest.mark.parametrize(
    ("oid", "values"),
    [
        (17, [b"", b"\x00", bytes(range(256)), b"'\\\""]),
        (2950, [UUID(int=0), UUID(int=2**128 - 1)]),
        (20, [-(2**63), 2**40, 2**63 - 1]),
    ],
)
def test_an_array_is_as_psycopg_itself_would_send_it(oid: int, values: list[object]) -> None:
    ours = BinaryArray(17, values).sent if oid == 17 else _sent(oid, values).sent  # type: ignore[arg-type]
    assert ours == by_psycopg(values)


def test_a_key_that_does_not_fit_its_type_is_no_other_key() -> None:
    assert _sent(23, [-1]).sent[-4:] == b"\xff" * 4
    assert _sent(21, [-1]).sent[-2:] == b"\xff" * 2
    for oid, value in ((20, 2**63), (23, 2**31), (21, 2**15)):
        with pytest.raises(struct.error):
            _sent(oid, [value])
    assert _sent(25, ("a", "b")) == ["a", "b"]
    assert psycopg.adapters.types["text"].oid == 25


# Words and counts.


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3601, "1 h 1 s"),
        (7505, "2 h 5 min"),
        (86_400, "1 d"),
        (90_061, "1 d 1 h"),
        (100_000_000, "1,157 d 9 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_counts_never_pass_what_was_left_and_say_which_tables_are_begun() -> None:
    told: list[tuple[str, int, int]] = []
    counts = Counts({"a": 10, "b": 5, "c": 0}, lambda *each: told.append(each))
    counts.add("a", 7)
    counts.add("a", 7)
    counts.others_begin()
    assert told == [("a", 0, 10), ("b", 0, 5), ("c", 0, 0), ("a", 7, 10), ("a", 10, 10), ("b", 0, 5), ("c", 0, 0)]
    assert counts.total == 15
