"""For every codec: a value comes back as it was, and bytes that decode are the only encoding of their value."""

from __future__ import annotations

import enum
import math
import struct
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pii_vault import encoding
from pii_vault.encoding import Codec, Encoding, array_codec, enum_codec
from pii_vault.errors import EncodingError, FormatError


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


unhurried = settings(deadline=None)

ENUM = enum_codec(Colour)
TEXTS = array_codec(Encoding.of(encoding.TEXT))
INTEGERS = array_codec(encoding.INTEGER)
NESTED = array_codec(Encoding.of(array_codec(Encoding.of(encoding.JSON))))

INT64_LIMITS = [2**63 - 1, -(2**63)]
text = st.text(st.characters(exclude_categories=["Cs"]))
outside_int64 = st.one_of(st.integers(min_value=2**63), st.integers(max_value=-(2**63) - 1))
finite_decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, tuple(map(int, str(digits))), exponent)),
    st.integers(0, 1),
    st.integers(0, 10**40),
    st.one_of(st.integers(-40, 40), st.integers(-(10**17), 10**17)),
)
zones = st.one_of(
    st.just(UTC),
    st.timezones(),
    st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds))),
)
offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
aware = st.one_of(
    st.datetimes(timezones=zones),
    st.builds(lambda edge, zone: edge.replace(tzinfo=zone), st.sampled_from([datetime.min, datetime.max]), offsets),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)
some_json = json_values.filter(lambda value: value is not None)


def bits(value: Any) -> Any:
    """The value as something that compares by type, bits, exponent and UTC offset."""
    match value:
        case float():
            return "float", struct.pack(">d", value)
        case Decimal():
            return "Decimal", value.as_tuple()
        case datetime():
            return "datetime", value.replace(tzinfo=None, fold=0), value.utcoffset()
        case time():
            return "time", value.replace(fold=0)
        case list() | tuple():
            return "list", [bits(item) for item in value]
        case dict():
            return "dict", {key: bits(item) for key, item in value.items()}
    return type(value).__name__, value


def assert_round_trip(codec: Codec[Any], value: Any) -> None:
    data = codec.encode(value)
    assert type(data) is bytes
    assert bits(codec.decode(data)) == bits(value)
    assert codec.encode(codec.decode(data)) == data


@given(text)
@example("")
@example("\0")
@example("a\0b")
@example("\U0001f469\u200d\U0001f469\u200d\U0001f467")
@example("\u202eabc\u05d0\u0627")
@example("e\u0301 \u00e9 \u1e9b\u0323 \ufb01")
@example("\ufeff\uffff\U0010ffff")
@example("x" * 2**20)
@example("\U0001f600" * 2**18)
@unhurried
def test_text(value: str) -> None:
    assert_round_trip(encoding.TEXT, value)


@given(st.text(st.characters(categories=["Cs"]), min_size=1), text)
@unhurried
def test_text_with_lone_surrogates_is_refused(surrogates: str, around: str) -> None:
    for codec, value in ((encoding.TEXT, surrogates), (encoding.JSON, [surrogates]), (TEXTS, [surrogates])):
        with pytest.raises(EncodingError):
            codec.encode(value)
    with pytest.raises(EncodingError):
        encoding.TEXT.encode(around + surrogates + around)


@given(st.binary())
@example(b"")
@example(bytes(2**20))
@unhurried
def test_bytes(value: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        assert encoding.BYTES.decode(encoding.BYTES.encode(kind(value))) == value


@given(st.integers(*reversed(INT64_LIMITS)))
@example(2**63 - 1)
@example(-(2**63))
@unhurried
def test_int64(value: int) -> None:
    assert_round_trip(encoding.INT64, value)
    assert len(encoding.INT64.encode(value)) == 8


@given(outside_int64)
@example(2**63)
@example(-(2**63) - 1)
@example(10**5000)
@unhurried
def test_bigint(value: int) -> None:
    assert_round_trip(encoding.BIGINT, value)


@given(st.integers(9, 64), st.sampled_from([-1, 0, 1]), st.booleans())
@unhurried
def test_bigint_at_the_edges_of_its_bytes(size: int, step: int, negative: bool) -> None:
    value = (-1 if negative else 1) * 2 ** (8 * size - 1) + step
    assert_round_trip(encoding.BIGINT, value)


@given(st.one_of(st.integers(), outside_int64))
@unhurried
def test_integers_of_any_size(value: int) -> None:
    number, data = encoding.INTEGER.encode(value)
    assert encoding.INTEGER.decoders()[number](data) == value
    other = encoding.BIGINT if number == encoding.INT64.id else encoding.INT64
    with pytest.raises(EncodingError):
        other.encode(value)


@given(st.floats())
@example(-0.0)
@example(math.inf)
@example(math.nan)
@example(5e-324)
@unhurried
def test_float64(value: float) -> None:
    assert_round_trip(encoding.FLOAT64, value)


@given(st.integers(-(2**1100), 2**1100))
@unhurried
def test_an_integer_is_a_float_exactly_or_not_at_all(value: int) -> None:
    try:
        data = encoding.FLOAT64.encode(value)
    except EncodingError:
        assert abs(value) > 2**53
    else:
        assert int(encoding.FLOAT64.decode(data)) == value


@given(finite_decimals)
@example(Decimal("1.10"))
@example(Decimal("-0"))
@example(Decimal("0E+17"))
@example(Decimal("-0.00000000000"))
@example(Decimal("9" * 10_000))
@unhurried
def test_decimal(value: Decimal) -> None:
    assert_round_trip(encoding.DECIMAL, value)


@given(st.booleans())
@unhurried
def test_bool(value: bool) -> None:
    assert encoding.BOOL.decode(encoding.BOOL.encode(value)) is value


@given(st.dates())
@example(date.min)
@example(date.max)
@unhurried
def test_date(value: date) -> None:
    assert_round_trip(encoding.DATE, value)


@given(st.times())
@example(time.max)
@unhurried
def test_time(value: time) -> None:
    assert_round_trip(encoding.TIME, value)


@given(aware)
@settings(unhurried, max_examples=300)
def test_datetime_aware(value: datetime) -> None:
    offset = value.utcoffset()
    assert offset is not None
    assert_round_trip(encoding.DATETIME_AWARE, value)
    assert len(encoding.DATETIME_AWARE.encode(value)) == 12
    with pytest.raises(EncodingError):
        encoding.DATETIME_NAIVE.encode(value)


@given(st.datetimes())
@example(datetime.min)
@example(datetime.max)
@unhurried
def test_datetime_naive(value: datetime) -> None:
    assert_round_trip(encoding.DATETIME_NAIVE, value)
    assert encoding.DATETIME_NAIVE.decode(encoding.DATETIME_NAIVE.encode(value)).tzinfo is None
    with pytest.raises(EncodingError):
        encoding.DATETIME_AWARE.encode(value)


@given(st.uuids())
@unhurried
def test_uuid(value: Any) -> None:
    assert_round_trip(encoding.UUID, value)


@given(st.sampled_from(Colour))
@unhurried
def test_enum(value: Colour) -> None:
    assert_round_trip(ENUM, value)


@given(some_json)
@example([1, 1.0, -0.0, True, None])
@example({"\U0001f600": 1, "\uffff": 2, "": 3})
@example('\x00\x1f\x7f\u2028\u2029"\\/')
@example(1e16)
@example(2**200)
@unhurried
def test_json(value: Any) -> None:
    assert_round_trip(encoding.JSON, value)


@given(st.dictionaries(text, st.integers(), min_size=2), st.randoms(use_true_random=False))
@unhurried
def test_json_does_not_depend_on_the_order_of_keys(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert encoding.JSON.encode(dict(items)) == encoding.JSON.encode(value)


@given(st.lists(st.one_of(st.none(), text)))
@example([])
@example([""])
@example([None])
@example([None] * 2**16)
@unhurried
def test_array_of_text(value: list[str | None]) -> None:
    assert_round_trip(TEXTS, value)
    assert TEXTS.encode(tuple(value)) == TEXTS.encode(value)


@given(st.lists(st.one_of(st.none(), st.integers(), outside_int64)))
@unhurried
def test_array_of_integers(value: list[int | None]) -> None:
    assert_round_trip(INTEGERS, value)


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), some_json))), max_size=4))
@unhurried
def test_array_of_arrays(value: Any) -> None:
    assert_round_trip(NESTED, value)


# --- bytes that nobody encoded -------------------------------------------------------------------------------

CODECS: dict[str, tuple[Codec[Any], st.SearchStrategy[Any]]] = {
    "text": (encoding.TEXT, text),
    "bytes": (encoding.BYTES, st.binary()),
    "int64": (encoding.INT64, st.integers(*reversed(INT64_LIMITS))),
    "bigint": (encoding.BIGINT, outside_int64),
    "float64": (encoding.FLOAT64, st.floats()),
    "decimal": (encoding.DECIMAL, finite_decimals),
    "bool": (encoding.BOOL, st.booleans()),
    "date": (encoding.DATE, st.dates()),
    "time": (encoding.TIME, st.times()),
    "datetime_aware": (encoding.DATETIME_AWARE, aware),
    "datetime_naive": (encoding.DATETIME_NAIVE, st.datetimes()),
    "uuid": (encoding.UUID, st.uuids()),
    "enum": (ENUM, st.sampled_from(Colour)),
    "json": (encoding.JSON, some_json),
    "array of text": (TEXTS, st.lists(st.one_of(st.none(), text))),
    "array of integers": (INTEGERS, st.lists(st.one_of(st.none(), st.integers()))),
    "array of arrays": (NESTED, st.lists(st.lists(some_json, max_size=3), max_size=3)),
}
every_codec = pytest.mark.parametrize("name", CODECS)


def assert_canonical_or_malformed(codec: Codec[Any], data: bytes) -> None:
    error = None
    try:
        value = codec.decode(data)
    except FormatError as caught:
        error = caught
    if error is None:
        assert value is not None
        assert codec.encode(value) == data
    else:
        assert error.__context__ is None
        assert error.__cause__ is None


widths = st.sampled_from([0, 1, 4, 8, 9, 12, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
# Small numbers, so that dates and times are often in their range.
near_zero = st.builds(
    lambda number, size: number.to_bytes(size, "big", signed=True),
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([4, 8]),
)
instants = st.builds(
    lambda instant, offset: struct.pack(">qi", instant, offset),
    st.integers(-(2**56), 2**58),
    st.integers(-90_000, 90_000),
)
decimal_texts = st.from_regex(r"\A[-+]?[0-9_]{0,6}\.?[0-9]{0,8}([eE][-+]?[0-9]{1,3})?\Z").map(str.encode)
json_texts = st.from_regex(r"\A[\[{]?(\"[a-b\\u0]*\"|-?[0-9.]{1,4}([eE][-+]?[0-9]+)?|null|NaN)[\]}]?\Z").map(str.encode)
items = st.lists(
    st.one_of(
        st.just(b"\0"),
        st.builds(
            lambda number, size, data: bytes((number,)) + size.to_bytes(4, "big") + data,
            st.sampled_from([1, 3, 4, 15, 200]),
            st.integers(0, 12),
            st.binary(max_size=12),
        ),
    ),
    max_size=4,
).map(b"".join)


@every_codec
@given(data=st.one_of(st.binary(), widths, near_zero, instants, decimal_texts, json_texts, items))
@settings(unhurried, max_examples=200)
def test_any_bytes_are_canonical_or_malformed(name: str, data: bytes) -> None:
    assert_canonical_or_malformed(CODECS[name][0], data)


@every_codec
@given(data=st.data())
@settings(unhurried, max_examples=60)
def test_changed_bytes_are_canonical_or_malformed(name: str, data: st.DataObject) -> None:
    codec, values = CODECS[name]
    changed = bytearray(codec.encode(data.draw(values)))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(changed)))
        match data.draw(st.sampled_from(["replace", "insert", "delete"])):
            case "replace":
                changed[position : position + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                changed[position:position] = data.draw(st.binary(min_size=1, max_size=2))
            case _:
                del changed[position : position + 1]
    assert_canonical_or_malformed(codec, bytes(changed))


@every_codec
@pytest.mark.parametrize("piece", [b"\0", b"\xff", b"9", b"[", b'"', b'{"a":', b"\x01\0\0\0\0", b"1E+"])
def test_huge_bytes_are_canonical_or_malformed(name: str, piece: bytes) -> None:
    assert_canonical_or_malformed(CODECS[name][0], piece * (2**20 // len(piece)))


@every_codec
@given(data=st.data())
@settings(unhurried, max_examples=30)
def test_two_values_never_share_an_encoding(name: str, data: st.DataObject) -> None:
    codec, values = CODECS[name]
    one, other = data.draw(values), data.draw(values)
    assert (codec.encode(one) == codec.encode(other)) == (bits(one) == bits(other))
