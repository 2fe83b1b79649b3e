"""The codecs: known answers, what they refuse, and that no error holds a value."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import json
import math
import struct
import sys
import time as clock
import types
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support.vectors import build

from pii_vault import encoding
from pii_vault.encoding import Codec, Encoding, array_codec, compound, enum_codec
from pii_vault.errors import ConfigurationError, EncodingError, FormatError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "codecs.json").read_text("utf-8"))
CANARY = "canary-7d1f"


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = RED


class Level(enum.IntEnum):
    LOW = 1
    HUGE = 2**70


class Role(enum.StrEnum):
    ADMIN = "admin"


SIMPLE: dict[str, Codec[Any]] = {
    codec.name: codec
    for codec in (
        encoding.TEXT,
        encoding.BYTES,
        encoding.INT64,
        encoding.BIGINT,
        encoding.FLOAT64,
        encoding.DECIMAL,
        encoding.BOOL,
        encoding.DATE,
        encoding.TIME,
        encoding.DATETIME_AWARE,
        encoding.DATETIME_NAIVE,
        encoding.UUID,
        encoding.JSON,
    )
}
ALL = [*SIMPLE.values(), enum_codec(Colour), array_codec(Encoding.of(encoding.TEXT))]


def build_items(items: str | list[str]) -> Encoding[Any]:
    if isinstance(items, list):
        return Encoding.of(array_codec(build_items(items[1])))
    return encoding.INTEGER if items == "integer" else Encoding.of(SIMPLE[items])


def build_codec(vector: dict[str, Any]) -> tuple[Codec[Any], Any]:
    if vector["codec"] == "enum":
        members = enum.Enum("Members", vector["members"])
        return enum_codec(members), members
    if vector["codec"] == "array":
        return array_codec(build_items(vector["items"])), None
    return SIMPLE[vector["codec"]], None


def same(left: Any, right: Any) -> bool:
    """Equality that also sees types, -0.0, NaN bits, exponents and UTC offsets."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, datetime):
        return left.isoformat() == right.isoformat()
    return bool(left == right)


def vector_id(vector: dict[str, Any]) -> str:
    return f"{vector['codec']}-{vector['name'].encode('ascii', 'backslashreplace').decode()}"


@pytest.mark.parametrize("vector", VECTORS, ids=vector_id)
def test_known_answer(vector: dict[str, Any]) -> None:
    codec, members = build_codec(vector)
    assert (codec.id, codec.name) == (vector["id"], vector["codec"])
    match vector["expect"]:
        case "success":
            value = build(vector["value"], members)
            decoded = build(vector["decoded"]) if "decoded" in vector else value
            data = bytes.fromhex(vector["hex"])
            assert codec.encode(value) == data
            assert type(codec.encode(value)) is bytes
            assert same(codec.decode(data), decoded)
        case "refused on encode":
            with pytest.raises(EncodingError):
                codec.encode(build(vector["value"], members))
        case "malformed on decode":
            with pytest.raises(FormatError):
                codec.decode(bytes.fromhex(vector["hex"]))
        case unknown:
            pytest.fail(f"unknown expectation {unknown}")


def test_every_codec_has_answers_of_every_kind() -> None:
    seen = {(vector["codec"], vector["expect"]) for vector in VECTORS}
    kinds = ("success", "refused on encode", "malformed on decode")
    missing = {(name, kind) for name in encoding.REGISTRY.values() for kind in kinds} - seen
    assert missing == {("bytes", "malformed on decode")}  # all bytes are bytes


def parts_of(description: Any) -> Iterator[dict[str, Any]]:
    if isinstance(description, dict):
        yield description
        description = list(description.values())
    if isinstance(description, list):
        for part in description:
            yield from parts_of(part)


TAKEN = {
    "text": {"str", "utf16"},
    "bytes": {"bytes"},
    "int64": {"int"},
    "bigint": {"int"},
    "float64": {"float64", "int"},
    "decimal": {"decimal", "int"},
    "json": {"none", "float64", "int", "str", "utf16", "list", "dict", "nested"},
}


def test_only_refusals_that_other_languages_can_repeat_are_left_unmarked() -> None:
    """Every value of them is of a kind that the codec takes, and a JSON key is text."""
    refusals = [vector for vector in VECTORS if vector["expect"] == "refused on encode"]
    assert all(vector in refusals for vector in VECTORS if "python_only" in vector)
    for vector in refusals:
        parts = list(parts_of(vector["value"]))
        keys = {kind for part in parts for key, _ in part.get("dict", []) for kind in key}
        repeatable = {kind for part in parts for kind in part} <= TAKEN.get(vector["codec"], set())
        assert vector.get("python_only", False) is not (repeatable and keys <= {"str", "utf16"})


# --- the registry and the interface --------------------------------------------------------------------------


def test_the_registry_is_frozen() -> None:
    assert list(encoding.REGISTRY.items()) == [
        (1, "text"),
        (2, "bytes"),
        (3, "int64"),
        (4, "bigint"),
        (5, "float64"),
        (6, "decimal"),
        (7, "bool"),
        (8, "date"),
        (9, "time"),
        (10, "datetime_aware"),
        (11, "datetime_naive"),
        (12, "uuid"),
        (13, "enum"),
        (14, "json"),
        (15, "array"),
    ]
    assert isinstance(encoding.REGISTRY, types.MappingProxyType)
    assert sorted(codec.id for codec in ALL) == list(encoding.REGISTRY)


@pytest.mark.parametrize("number", [-1, 0, 16, 255, 256])
def test_a_codec_outside_the_registry_cannot_be_made(number: int) -> None:
    with pytest.raises(ConfigurationError, match=f"codec {number} is not registered"):
        Codec(number, encoding.TEXT.encode, encoding.TEXT.decode)


def test_a_codec_is_frozen_and_prints_its_number_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoding.TEXT.id = 2  # type: ignore[misc]
    assert repr(encoding.TEXT) == "Codec(id=1)"


def test_an_encoding_of_one_codec_gives_it_away() -> None:
    text = Encoding.of(encoding.TEXT)
    assert text.single is encoding.TEXT
    assert text.codecs == (encoding.TEXT,)
    assert text.encode("a") == (1, b"a")
    assert text.decoders() == {1: encoding.TEXT.decode}


def test_integers_choose_the_codec_by_size() -> None:
    integer = encoding.INTEGER
    assert integer.single is None
    for value in (0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**1000, Level.LOW, Level.HUGE):
        number, data = integer.encode(value)
        assert number == (3 if -(2**63) <= value < 2**63 else 4)
        assert integer.decoders()[number](data) == value
    for wrong in (True, 1.0, "1", None, Decimal(1)):
        with pytest.raises(EncodingError, match=f"expected int, got {type(wrong).__name__}"):
            integer.encode(wrong)


# --- refusals ------------------------------------------------------------------------------------------------

EXPECTED = {
    "text": "str",
    "bytes": "bytes, bytearray or memoryview",
    "int64": "int",
    "bigint": "int",
    "float64": "float",
    "decimal": "Decimal or int",
    "bool": "bool",
    "date": "date",
    "time": "time",
    "datetime_aware": "datetime",
    "datetime_naive": "datetime",
    "uuid": "UUID",
    "enum": "Colour",
    "json": "a JSON value (dict, list, tuple, str, int, float, bool or None)",
    "array": "list or tuple",
}


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_a_value_of_another_type_is_refused_by_the_names_of_both(codec: Codec[Any]) -> None:
    with pytest.raises(EncodingError) as caught:
        codec.encode(object())
    assert caught.value.args == (f"expected {EXPECTED[codec.name]}, got object",)


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_none_has_no_encoding(codec: Codec[Any]) -> None:
    with pytest.raises(EncodingError, match="got NoneType"):
        codec.encode(None)


@pytest.mark.parametrize("name", ["int64", "bigint", "float64", "decimal"])
def test_a_bool_is_not_a_number(name: str) -> None:
    with pytest.raises(EncodingError, match=f"expected {EXPECTED[name]}, got bool"):
        SIMPLE[name].encode(True)


def test_integer_codecs_name_the_reason() -> None:
    with pytest.raises(EncodingError, match="at most 64 bits"):
        encoding.INT64.encode(2**63)
    with pytest.raises(EncodingError, match="more than 64 bits"):
        encoding.BIGINT.encode(1)


def test_a_float_is_refused_as_decimal_with_the_way_out() -> None:
    with pytest.raises(EncodingError, match=r"got float \(.*round it to a Decimal first\)"):
        encoding.DECIMAL.encode(0.1)


# --- subclasses of the types ---------------------------------------------------------------------------------


def test_subclasses_are_stored_as_their_base() -> None:
    assert encoding.TEXT.encode(Role.ADMIN) == b"admin"
    assert encoding.INT64.encode(Level.LOW) == bytes(7) + b"\x01"
    assert encoding.BIGINT.encode(Level.HUGE) == (2**70).to_bytes(9, "big")
    assert encoding.DECIMAL.encode(Level.LOW) == b"1"
    assert encoding.JSON.encode({Role.ADMIN: Level.LOW}) == b'{"admin":1}'


def test_a_str_subclass_cannot_choose_its_own_bytes() -> None:
    class Shout(str):
        def encode(self, *_: object) -> bytes:  # type: ignore[override]
            return b"other"

        def __str__(self) -> str:
            return "other"

    assert encoding.TEXT.encode(Shout("a")) == b"a"
    assert encoding.JSON.encode({Shout("a"): Shout("b")}) == b'{"a":"b"}'


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_from_every_driver_are_the_same_and_copied(kind: Any) -> None:
    stored = encoding.BYTES.encode(kind(b"\x00\xff"))
    assert stored == b"\x00\xff"
    assert type(stored) is bytes


def test_a_slice_of_memory_and_released_memory() -> None:
    assert encoding.BYTES.encode(memoryview(b"abcd")[::2]) == b"ac"
    released = memoryview(b"abcd")
    released.release()
    with pytest.raises(EncodingError, match="released"):
        encoding.BYTES.encode(released)


# --- decimal -------------------------------------------------------------------------------------------------


def test_decimals_do_not_depend_on_the_thread_context() -> None:
    with decimal.localcontext() as context:
        context.prec, context.capitals, context.Emax, context.Emin, context.rounding = 1, 0, 1, -1, "ROUND_UP"
        context.traps = dict.fromkeys(context.traps, False)
        for text in ("1.23456E+10", "1E-40", "-0.00"):
            assert encoding.DECIMAL.encode(Decimal(text)) == text.encode()
            assert str(encoding.DECIMAL.decode(text.encode()).as_tuple()) == str(Decimal(text).as_tuple())
        assert encoding.DECIMAL.encode(12345) == b"12345"
        with pytest.raises(FormatError):
            encoding.DECIMAL.decode(b"one")
    with decimal.localcontext() as context:
        context.traps = dict.fromkeys(context.traps, True)
        assert encoding.DECIMAL.encode(Decimal("1.10")) == b"1.10"
        assert not any(context.flags.values())


def test_integers_of_any_length_are_decimals() -> None:
    assert encoding.DECIMAL.decode(encoding.DECIMAL.encode(10**6000)) == Decimal("1" + "0" * 6000)
    assert encoding.DECIMAL.encode(10**6000) == b"1" + b"0" * 6000


# --- dates and times -----------------------------------------------------------------------------------------


@pytest.fixture(params=["UTC", "America/St_Johns", "Pacific/Apia"])
def machine_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    clock.tzset()
    yield
    monkeypatch.undo()
    clock.tzset()


@pytest.mark.usefixtures("machine_zone")
def test_the_time_zone_of_the_machine_plays_no_part() -> None:
    naive = datetime(2024, 3, 10, 2, 30, 0, 1)
    aware = naive.replace(tzinfo=timezone(timedelta(hours=2)))
    assert encoding.DATETIME_NAIVE.encode(naive).hex() == "00061345339f1a01"
    assert encoding.DATETIME_NAIVE.decode(bytes.fromhex("00061345339f1a01")) == naive
    assert encoding.DATETIME_AWARE.encode(aware).hex() == "000613438677d201" + "00001c20"
    assert same(encoding.DATETIME_AWARE.decode(bytes.fromhex("000613438677d20100001c20")), aware)


def test_an_aware_datetime_comes_back_with_a_fixed_offset() -> None:
    from zoneinfo import ZoneInfo

    summer = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Vienna"))
    back = encoding.DATETIME_AWARE.decode(encoding.DATETIME_AWARE.encode(summer))
    assert back == summer
    assert back.tzinfo == timezone(timedelta(hours=2))
    in_utc = encoding.DATETIME_AWARE.decode(encoding.DATETIME_AWARE.encode(summer.astimezone(UTC)))
    assert in_utc.tzinfo is UTC


def test_the_two_passes_of_a_repeated_hour_stay_apart_when_aware() -> None:
    from zoneinfo import ZoneInfo

    first = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Vienna"))
    codec = encoding.DATETIME_AWARE
    assert codec.decode(codec.encode(first)).utcoffset() == timedelta(hours=2)
    assert codec.decode(codec.encode(first.replace(fold=1))).utcoffset() == timedelta(hours=1)


def test_fold_is_dropped_where_there_is_no_zone() -> None:
    assert encoding.TIME.decode(encoding.TIME.encode(time(1, fold=1))).fold == 0
    naive = datetime(2024, 10, 27, 2, 30, fold=1)
    assert encoding.DATETIME_NAIVE.decode(encoding.DATETIME_NAIVE.encode(naive)).fold == 0


class Broken(tzinfo):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def utcoffset(self, moment: datetime | None) -> Any:
        if isinstance(self.answer, Exception):
            self.answer.args = (moment, CANARY)
            raise self.answer
        return self.answer


def test_a_zone_without_offset_is_neither_aware_nor_naive() -> None:
    with pytest.raises(EncodingError, match="naive datetime"):
        encoding.DATETIME_AWARE.encode(datetime(2024, 1, 1, tzinfo=Broken(None)))
    with pytest.raises(EncodingError, match="without time zone"):
        encoding.DATETIME_NAIVE.encode(datetime(2024, 1, 1, tzinfo=Broken(None)))
    with pytest.raises(EncodingError, match="without time zone"):
        encoding.TIME.encode(time(1, tzinfo=Broken(None)))


def test_a_subclass_that_subtracts_in_its_own_way_is_stored_right() -> None:
    class Moment(datetime):
        def __sub__(self, other: Any) -> Any:
            return timedelta(0)

    assert encoding.DATETIME_NAIVE.encode(Moment(1970, 1, 2)) == (86_400_000_000).to_bytes(8, "big")
    assert encoding.DATETIME_AWARE.encode(Moment(1970, 1, 2, tzinfo=UTC))[:8] == (86_400_000_000).to_bytes(8, "big")


# --- enum ----------------------------------------------------------------------------------------------------


def test_the_number_depends_on_the_name_alone() -> None:
    stored = enum_codec(Colour).encode(Colour.RED)
    later = enum.Enum("Paint", {"BLUE": 1, "GREEN": "g", "RED": "r"})
    assert len(stored) == 8
    assert enum_codec(later).decode(stored) is later["RED"]


def test_an_alias_is_its_member_and_opens_what_was_stored_under_the_old_name() -> None:
    codec = enum_codec(Colour)
    assert codec.encode(Colour.CRIMSON) == codec.encode(Colour.RED)
    assert codec.decode(codec.encode(Colour.CRIMSON)) is Colour.RED
    before = enum.Enum("Before", {"CRIMSON": 1})
    assert codec.decode(enum_codec(before).encode(before.CRIMSON)) is Colour.RED


def test_a_removed_member_is_named_as_such() -> None:
    before = enum.Enum("Colour", {"BLUE": 3})
    with pytest.raises(FormatError, match=r"member of Colour was removed or renamed .*alias"):
        enum_codec(Colour).decode(enum_codec(before).encode(before.BLUE))


def test_the_value_and_the_name_of_a_member_are_no_member() -> None:
    for wrong in (1, "RED", Level.LOW):
        with pytest.raises(EncodingError, match="expected Colour"):
            enum_codec(Colour).encode(wrong)
    with pytest.raises(EncodingError, match="expected Role, got str"):
        enum_codec(Role).encode("admin")


def test_a_member_made_on_the_fly_is_refused() -> None:
    class Open(enum.Enum):
        ONE = 1

        @classmethod
        def _missing_(cls, value: object) -> Any:
            made = object.__new__(cls)
            made._name_, made._value_ = CANARY, value
            return made

    with pytest.raises(EncodingError, match="declared member of Open") as caught:
        enum_codec(Open).encode(Open(5))
    assert_holds_nothing(caught.value)


def test_members_that_cannot_be_hashed() -> None:
    class Unhashable(enum.Enum):
        ONE = [1]
        __hash__ = None  # type: ignore[assignment]

    assert enum_codec(Unhashable).decode(enum_codec(Unhashable).encode(Unhashable.ONE)) is Unhashable.ONE


def test_enums_that_cannot_be_stored_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="Empty has no members"):
        enum_codec(enum.Enum("Empty", {}))
    with pytest.raises(ConfigurationError, match="Rights is a Flag"):
        enum_codec(enum.Flag("Rights", ["READ", "WRITE"]))
    monkeypatch.setattr(compound, "_member_number", lambda name: name.encode()[:1] * 8)
    with pytest.raises(ConfigurationError, match="two names of Twins"):
        enum_codec(enum.Enum("Twins", ["RED", "ROSE"]))


# --- JSON ----------------------------------------------------------------------------------------------------


def test_json_refuses_what_json_dumps_would_change() -> None:
    for key in (1, 1.5, True, None, b"a"):
        with pytest.raises(EncodingError, match=f"expected str as JSON key, got {type(key).__name__}"):
            encoding.JSON.encode({"a": [{key: 1}]})


def test_two_keys_with_the_same_text_are_refused() -> None:
    class Field(str, enum.Enum):  # noqa: UP042 (unlike StrEnum it hashes by name)
        A = "a"

        def __hash__(self) -> int:
            return 7

    assert len({"a": 1, Field.A: 2}) == 2
    with pytest.raises(EncodingError, match="distinct JSON keys"):
        encoding.JSON.encode({"a": 1, Field.A: 2})


def test_json_names_a_lone_surrogate() -> None:
    for value in ("\ud800", {"\ud800": 1}):
        with pytest.raises(EncodingError, match="str with a lone surrogate"):
            encoding.JSON.encode(value)


def test_a_cycle_is_refused() -> None:
    loop: list[object] = []
    loop.append({"again": loop})
    with pytest.raises(EncodingError, match="at most 100 levels"):
        encoding.JSON.encode(loop)


@pytest.fixture(params=[4300, 640, 4301, 100_000, 0])
def interpreter_limit(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many digits Python itself converts: as it is by default, lowered, raised, and without any limit."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(request.param)
    yield request.param
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("interpreter_limit")
@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_in_json_has_4300_digits_at_most_whatever_the_interpreter_converts(sign: int) -> None:
    minus = b"-" if sign < 0 else b""
    for value, digits in (
        (10**639, b"1" + b"0" * 639),
        (10**640, b"1" + b"0" * 640),
        (10**4299 + 7, b"1" + b"0" * 4298 + b"7"),
        (10**4300 - 1, b"9" * 4300),
    ):
        data = b'{"a":[' + minus + digits + b"]}"
        assert encoding.JSON.encode({"a": [sign * value]}) == data
        assert encoding.JSON.decode(data) == {"a": [sign * value]}
    for value, digits in ((10**4300, b"1" + b"0" * 4300), (10**100_001, b"1" * 100_001)):
        with pytest.raises(EncodingError, match="at most 4300 digits, got a longer int") as refusal:
            encoding.JSON.encode({"a": [sign * value]})
        assert_holds_nothing(refusal.value)
        with pytest.raises(FormatError) as malformed:
            encoding.JSON.decode(b'{"a":[' + minus + digits + b"]}")
        assert_holds_nothing(malformed.value)


@pytest.mark.usefixtures("interpreter_limit")
def test_numbers_in_json_are_read_alike_whatever_the_interpreter_converts() -> None:
    for data in (b"0", b"-1", b"9223372036854775807", b"-9223372036854775808", b"[1,1.0,-0.0,1e+16]"):
        assert encoding.JSON.encode(encoding.JSON.decode(data)) == data
    for data in (b"-0", b"01", b"1" * 4301, b"1_0", "\u0661".encode(), b"\xef\xbb\xbf1"):
        with pytest.raises(FormatError):
            encoding.JSON.decode(data)


def test_many_digits_are_refused_at_once_without_a_limit_of_the_interpreter() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        start = clock.process_time()
        with pytest.raises(FormatError):
            encoding.JSON.decode(b"[" + b"7" * 400_000 + b"]")
        with pytest.raises(EncodingError):
            encoding.JSON.encode([1 << 1_400_000])
        assert clock.process_time() - start < 2
    finally:
        sys.set_int_max_str_digits(before)


def test_the_precision_of_the_thread_plays_no_part_in_json() -> None:
    with decimal.localcontext() as context:
        context.prec, context.capitals, context.Emax, context.Emin = 1, 0, 1, -1
        context.traps = dict.fromkeys(context.traps, True)
        assert encoding.JSON.encode(10**700 + 1) == b"1" + b"0" * 699 + b"1"
        assert encoding.JSON.decode(b"1" + b"0" * 699 + b"1") == 10**700 + 1


def at_the_end_of_the_stack(call: Any) -> Any:
    """Call with so little stack left that deep nesting cannot be walked."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 40)
    try:
        return call()
    finally:
        sys.setrecursionlimit(before)


def test_a_stack_that_is_nearly_used_up_gives_a_typed_error() -> None:
    value: list[Any] = []
    for _ in range(90):
        value = [value]
    data = encoding.JSON.encode(value)
    caught: list[Exception] = []

    def encode_and_decode() -> None:
        for call, argument in ((encoding.JSON.encode, value), (encoding.JSON.decode, data)):
            try:
                call(argument)  # type: ignore[operator]
            except (EncodingError, FormatError, RecursionError) as error:
                caught.append(error)

    at_the_end_of_the_stack(encode_and_decode)
    assert [type(error) for error in caught] == [EncodingError, FormatError]
    assert "too deep for the stack" in str(caught[0])


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_bottomless_json_is_malformed(opening: bytes) -> None:
    with pytest.raises(FormatError):
        encoding.JSON.decode(opening * 200_000)


# --- array ---------------------------------------------------------------------------------------------------


def test_an_array_item_of_another_type_is_named() -> None:
    integers = array_codec(encoding.INTEGER)
    texts = array_codec(Encoding.of(encoding.TEXT))
    with pytest.raises(FormatError, match="expected array items stored as int64 or bigint, got text"):
        integers.decode(texts.encode(["a"]))
    with pytest.raises(FormatError, match="got an unknown codec"):
        integers.decode(b"\xfe\x00\x00\x00\x00")


def test_an_array_item_that_its_length_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compound, "_MAX_ITEM", 3)
    codec = array_codec(Encoding.of(encoding.TEXT))
    assert codec.encode(["abc"]) == b"\x01\x00\x00\x00\x03abc"
    with pytest.raises(EncodingError, match="4 GiB"):
        codec.encode(["abcd"])


def test_a_list_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(EncodingError):
        array_codec(Encoding.of(array_codec(Encoding.of(encoding.TEXT)))).encode(loop)


# --- no error holds the value --------------------------------------------------------------------------------


def reachable(error: BaseException) -> Iterator[BaseException]:
    """The error and everything in its chain, each once: SQLAlchemy raises an error from itself."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            pending += (current.__cause__, current.__context__)
            yield current


def assert_holds_nothing(error: BaseException) -> None:
    assert error.__context__ is None
    assert error.__cause__ is None
    for current in reachable(error):
        public = [getattr(current, name, None) for name in ("object", "doc", "obj", "name", "value", "hint")]
        texts = [str(current), repr(current), repr(current.args), repr(vars(current)), repr(public)]
        assert CANARY not in "".join(texts)
        assert all(type(arg) is str for arg in current.args)


class Carrier:
    """An object that tells the canary whoever prints it."""

    def __repr__(self) -> str:
        return CANARY


BAD_VALUES: list[tuple[str, Codec[Any], Any]] = [
    *((f"object as {codec.name}", codec, Carrier()) for codec in ALL),
    *((f"str as {codec.name}", codec, CANARY) for codec in ALL if codec.name not in {"text", "json"}),
    ("surrogate", encoding.TEXT, CANARY + "\ud800"),
    ("int64", encoding.INT64, 2**64),
    ("float64 from int", encoding.FLOAT64, 2**2000),
    ("decimal NaN", encoding.DECIMAL, Decimal("NaN")),
    ("tzinfo raises", encoding.DATETIME_AWARE, datetime(2024, 1, 1, tzinfo=Broken(ValueError()))),
    ("tzinfo answers nonsense", encoding.DATETIME_AWARE, datetime(2024, 1, 1, tzinfo=Broken(CANARY))),
    ("json surrogate", encoding.JSON, [CANARY, "\ud800"]),
    ("json key surrogate", encoding.JSON, {CANARY + "\ud800": 1}),
    ("json key", encoding.JSON, {CANARY: {1: CANARY}}),
    ("json nested", encoding.JSON, {CANARY: Carrier()}),
    ("json NaN", encoding.JSON, {CANARY: math.nan}),
    ("json int", encoding.JSON, {CANARY: 10**5000}),
    ("array item", array_codec(Encoding.of(encoding.TEXT)), [CANARY, CANARY + "\ud800"]),
    ("array item type", array_codec(encoding.INTEGER), [CANARY]),
]


@pytest.mark.parametrize(("codec", "value"), [case[1:] for case in BAD_VALUES], ids=[c[0] for c in BAD_VALUES])
def test_a_refusal_holds_nothing_of_the_value(codec: Codec[Any], value: Any) -> None:
    with pytest.raises(EncodingError) as caught:
        codec.encode(value)
    assert_holds_nothing(caught.value)


SECRET = CANARY.encode()
BAD_BYTES: list[tuple[str, Codec[Any], bytes]] = [
    ("text", encoding.TEXT, SECRET + b"\xff"),
    ("decimal", encoding.DECIMAL, SECRET),
    ("decimal bytes", encoding.DECIMAL, SECRET + b"\xff"),
    ("json syntax", encoding.JSON, b'{"a":' + SECRET),
    ("json bytes", encoding.JSON, b'"' + SECRET + b"\xff"),
    ("json surrogate", encoding.JSON, b'"' + SECRET + b'\\ud800"'),
    ("json order", encoding.JSON, b'{"b":"' + SECRET + b'","a":1}'),
    ("json NaN", encoding.JSON, b'["' + SECRET + b'",NaN]'),
    ("array", array_codec(Encoding.of(encoding.TEXT)), SECRET),
    ("array item", array_codec(Encoding.of(encoding.TEXT)), b"\x01\x00\x00\x00\x0c" + SECRET + b"\xff"),
    *((codec.name, codec, SECRET) for codec in ALL if codec.name not in {"text", "bytes", "bigint"}),
]


@pytest.mark.parametrize(("codec", "data"), [case[1:] for case in BAD_BYTES], ids=[c[0] for c in BAD_BYTES])
def test_a_format_error_holds_nothing_of_the_bytes(codec: Codec[Any], data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        codec.decode(data)
    assert_holds_nothing(caught.value)
