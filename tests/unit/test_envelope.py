"""The header: every field at both ends of its range, and everything that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.vectors import cases, named

from pii_vault.envelope import OVERHEAD_BYTES, Header, parse
from pii_vault.errors import FormatError, NotEncryptedError

GOOD = Header(0xFA, 0x01020304, 0x0506, 7)


@pytest.mark.parametrize("case", cases("sealed_values.json"), ids=named)
def test_known_values_parse_into_their_fields(case: dict[str, Any]) -> None:
    sealed = bytes.fromhex(case["sealed"])
    header = parse(sealed)
    assert header == Header(
        case["suite"],
        case["keyset_id"],
        case["version"],
        case["codec"],
        case["index_generation"],
        len(case["tokens"]),
    )
    assert header.pack() == sealed[:10]
    assert sealed[header.iv_offset : header.iv_offset + 12].hex() == case["iv"]
    assert len(sealed) == len(case["plaintext"]) // 2 + 38 + 16 * len(case["tokens"])


def test_the_fields_stand_where_the_format_says() -> None:
    assert GOOD.pack().hex() == "fa010203040506070000"
    assert Header(0xFB, 1, 2, 3, 4, 5).pack().hex() == "fb000000010002030405"


@pytest.mark.parametrize(
    "change",
    [
        {"suite": 0xFB},
        {"keyset_id": 0},
        {"keyset_id": 2**32 - 1},
        {"version": 1},
        {"version": 65535},
        {"codec": 1},
        {"codec": 255},
        {"index_generation": 1, "tokens": 1},
        {"index_generation": 255, "tokens": 15},
    ],
)
def test_the_ends_of_every_range_are_allowed(change: dict[str, int]) -> None:
    header = GOOD._replace(**change)
    assert parse(header.pack() + bytes(16 * header.tokens + 28)) == header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": 0xF9}, "suite"),
        ({"suite": 0xFF}, "suite"),
        ({"suite": 0}, "suite"),
        ({"keyset_id": -1}, "keyset id"),
        ({"keyset_id": 2**32}, "keyset id"),
        ({"version": 0}, "version"),
        ({"version": -1}, "version"),
        ({"version": 65536}, "version"),
        ({"codec": 0}, "codec"),
        ({"codec": 256}, "codec"),
        ({"index_generation": 1, "tokens": 16}, "reserved"),
        ({"index_generation": 1, "tokens": -1}, "reserved"),
        ({"index_generation": 256, "tokens": 1}, "generation"),
        ({"index_generation": -1, "tokens": 1}, "generation"),
        ({"index_generation": 0, "tokens": 1}, "contradict"),
        ({"index_generation": 1, "tokens": 0}, "contradict"),
    ],
)
def test_a_counter_never_wraps_and_no_field_is_cut(change: dict[str, int], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        GOOD._replace(**change).pack()


@pytest.mark.parametrize("first", range(256))
def test_only_two_first_bytes_begin_a_sealed_value(first: int) -> None:
    sealed = bytes((first,)) + GOOD.pack()[1:] + bytes(28)
    if first in (0xFA, 0xFB):
        assert parse(sealed).suite == first
    elif first >= 0xF8:
        with pytest.raises(FormatError, match="newer release") as caught:
            parse(sealed)
        assert type(caught.value) is FormatError
    else:
        with pytest.raises(NotEncryptedError):
            parse(sealed)


def test_bytes_that_never_begin_text_are_told_from_text() -> None:
    starts = {chr(point).encode()[0] for point in range(0x110000) if not 0xD800 <= point < 0xE000}
    assert max(starts) < 0xF8


@pytest.mark.parametrize("tokens", range(16))
def test_a_value_shorter_than_its_header_says_is_refused(tokens: int) -> None:
    header = GOOD._replace(tokens=tokens, index_generation=min(tokens, 1))
    whole = header.pack() + bytes(16 * tokens + 28)
    assert parse(whole) == header
    assert len(whole) == OVERHEAD_BYTES + 16 * tokens
    for size in range(1, len(whole)):
        with pytest.raises(FormatError):
            parse(whole[:size])


def test_nothing_was_never_sealed() -> None:
    with pytest.raises(NotEncryptedError):
        parse(b"")


@pytest.mark.parametrize("value", [b"ada@example.com", b"\xf9 4111 1111", bytes(38), b"\xfa canary"])
def test_an_error_does_not_show_the_bytes(value: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse(value)
    assert "canary" not in repr(caught.value)
    assert "4111" not in str(caught.value)
    assert "ada" not in str(caught.value)
