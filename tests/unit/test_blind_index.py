"""Tokens are those of the frozen vectors, and equal exactly where the values are."""

from __future__ import annotations

import datetime as dt
import enum
import string
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.vectors import build, cases, identity, named

from pii_vault import encoding, primitives
from pii_vault.blind_index import FULL_BITS, After, Bucket, Form, LastChars, Part, Prefix, Whole, normaliser, token
from pii_vault.context import index_context
from pii_vault.encoding import Encoding
from pii_vault.errors import ConfigurationError, EncodingError

KEY = bytes(range(32))

ENCODINGS: dict[str, Encoding[Any]] = {
    "text": Encoding.of(encoding.TEXT),
    "bytes": Encoding.of(encoding.BYTES),
    "int": encoding.INTEGER,
    "float": Encoding.of(encoding.FLOAT64),
    "decimal": Encoding.of(encoding.DECIMAL),
    "bool": Encoding.of(encoding.BOOL),
    "date": Encoding.of(encoding.DATE),
    "time": Encoding.of(encoding.TIME),
    "instant": Encoding.of(encoding.DATETIME_AWARE),
    "datetime": Encoding.of(encoding.DATETIME_NAIVE),
    "uuid": Encoding.of(encoding.UUID),
}

PARTS = {"whole": Whole(), "last(4)": LastChars(4), "prefix(3)": Prefix(3), "after(@)": After("@")}
MORE_PARTS = {"last(2)": LastChars(2), "prefix(2)": Prefix(2), "after(~)": After("~")}


UNITS = {"y": "years", "m": "months", "d": "days"}


def part_of(text: str) -> Part | Bucket:
    """Return the part that a form's text names."""
    if text in (known := PARTS | MORE_PARTS):
        return known[text]
    size = text.removeprefix("bucket(").removesuffix(")")
    return Bucket(**{UNITS[size[-1]]: int(size[:-1])}) if size[-1] in UNITS else Bucket(width=Decimal(size))


def form_of(text: str, members: Any = None) -> Form:
    kind, *normalise, part, bits = text.split(";")
    names = tuple(name.partition("/")[0] for name in normalise)
    encoded = ENCODINGS[kind] if members is None else Encoding.of(encoding.enum_codec(members))
    return Form.of(encoded, normalise=names, part=part_of(part), bits=int(bits))


@pytest.mark.parametrize("case", cases("tokens.json"), ids=named)
def test_the_frozen_tokens_are_made_again(case: dict[str, Any]) -> None:
    members = enum.Enum("members", case["members"]) if "members" in case else None
    form = form_of(case["form"], members)
    assert form.text == case["form"]
    context = index_context(1, identity(case), case["index"], form.text)
    assert context.hex() == case["context"]
    subkey = primitives.derive(bytes.fromhex(case["index_key"]), "index", context)
    assert subkey.hex() == case["subkey"]
    message = form.message(build(case["value"], members))
    assert message is not None
    assert message.hex() == case["message"]
    assert token(subkey, form, message).hex() == case["token"]


# Equal values have equal messages, and others have not.

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(codec="utf-8"), max_size=5),
    "bytes": st.binary(max_size=3),
    "int": st.integers() | st.integers(-300, 300) | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    "float": st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0]),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False)
    | st.builds(lambda digits, exponent: Decimal(digits).scaleb(exponent), st.integers(-120, 120), st.integers(-3, 3)),
    "bool": st.booleans(),
    "date": st.dates(),
    "time": st.times(),
    "instant": st.datetimes(
        dt.datetime(2000, 1, 1),
        dt.datetime(2000, 1, 2),
        timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=2)), dt.timezone(dt.timedelta(hours=-5))]),
    ),
    "datetime": st.datetimes(),
    "uuid": st.uuids(),
}


@pytest.mark.parametrize("kind", VALUES)
def test_messages_are_equal_exactly_where_values_are(kind: str) -> None:
    form = Form.of(ENCODINGS[kind])

    @given(VALUES[kind], VALUES[kind])
    def check(one: Any, other: Any) -> None:
        assert (form.message(one) == form.message(other)) == (one == other)
        assert form.message(one) == form.asked(one)

    check()


@given(st.integers(-(10**20), 10**20), st.integers(-5, 5), st.integers(0, 5))
def test_a_decimal_is_found_whatever_its_exponent_and_whatever_the_context(
    digits: int, exponent: int, zeros: int
) -> None:
    form = Form.of(ENCODINGS["decimal"])
    one = Decimal((int(digits < 0), tuple(map(int, str(abs(digits)))), exponent))
    other = Decimal((int(digits < 0), tuple(map(int, str(abs(digits) * 10**zeros))), exponent - zeros))
    assert form.message(one) == form.message(other)


def test_an_enum_is_found_by_its_member_and_an_alias_is_its_member() -> None:
    class Mood(enum.Enum):
        GOOD = 1
        FINE = 1  # noqa: PIE796 - an alias
        BAD = 2

    form = Form.of(Encoding.of(encoding.enum_codec(Mood)))
    assert form.text == "enum;whole;128"
    assert form.message(Mood.FINE) == form.message(Mood.GOOD) != form.message(Mood.BAD)


# Normalisers and parts.


@given(st.text(st.characters(codec="utf-8"), max_size=8))
def test_what_is_normalised_once_is_found_by_what_is_normalised_twice(text: str) -> None:
    form = Form.of(ENCODINGS["text"], normalise=("nfkc", "casefold", "nfkc", "strip"))
    message = form.message(text)
    assert message is not None
    assert form.message(message.decode()) == message
    assert form.asked(text) == message


@given(st.text(string.ascii_lowercase + "@", max_size=8), st.sampled_from(list(PARTS.values())))
def test_a_value_is_found_by_its_part(text: str, part: Part) -> None:
    form = Form.of(ENCODINGS["text"], normalise=("casefold",), part=part)
    found = part.of(text)
    if found is None:
        assert form.message(text.upper()) is None
    else:
        assert form.message(text.upper()) == form.asked(found) == form.asked(found.upper())


def test_what_has_no_such_part_has_a_token_that_nobody_asks_for() -> None:
    form = Form.of(ENCODINGS["text"], part=After("@"))
    assert form.message("no separator") is None
    assert len({token(KEY, form, None) for _ in range(100)}) == 100
    assert form.message("ends with it@") == form.asked("") == b""


@pytest.mark.parametrize("bits", [1, 7, 8, 24, 127, 128])
def test_a_shorter_token_is_the_beginning_of_the_whole_one(bits: int) -> None:
    form, whole = Form.of(ENCODINGS["text"], bits=bits), Form.of(ENCODINGS["text"])
    for message in (b"a", b"b", None):
        number = int.from_bytes(token(KEY, form, message), "big")
        assert number % 2 ** (FULL_BITS - bits) == 0
        if message is not None:
            assert number >> (FULL_BITS - bits) == int.from_bytes(token(KEY, whole, message), "big") >> (
                FULL_BITS - bits
            )


def test_each_form_has_a_text_of_its_own() -> None:
    text = ENCODINGS["text"]
    forms = [
        Form.of(text),
        Form.of(text, bits=64),
        Form.of(text, normalise=("strip",)),
        Form.of(text, normalise=("casefold", "strip")),
        Form.of(text, normalise=("strip", "casefold")),
        Form.of(text, part=Prefix(3)),
        Form.of(text, part=Prefix(4)),
        Form.of(text, part=LastChars(3)),
        Form.of(text, part=After("@")),
        *(Form.of(each) for name, each in ENCODINGS.items() if name != "text"),
    ]
    assert len({form.text for form in forms}) == len(forms)
    assert len({index_context(1, identity(cases("tokens.json")[0]), "i", form.text) for form in forms}) == len(forms)


# What is refused.


@pytest.mark.parametrize("name", ["strip", "casefold", "nfkc", "digits"])
def test_only_text_has_normalisers_and_parts(name: str) -> None:
    for kind, each in ENCODINGS.items():
        if kind == "text":
            assert Form.of(each, normalise=(name,)).text == f"text;{name}/1;whole;128"
        else:
            with pytest.raises(ConfigurationError, match=f"a column of {kind} values has neither"):
                Form.of(each, normalise=(name,))
            with pytest.raises(ConfigurationError, match="neither normalisers nor parts"):
                Form.of(each, part=Prefix(2))


@pytest.mark.parametrize("codec", [encoding.JSON, encoding.array_codec(ENCODINGS["text"])], ids=["json", "array"])
def test_what_is_equal_in_several_ways_has_no_index(codec: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no blind index.*column of its own"):
        Form.of(Encoding.of(codec))


@pytest.mark.parametrize("bits", [0, 129, -1])
def test_a_token_keeps_some_of_its_bits(bits: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 128 bits"):
        Form.of(ENCODINGS["text"], bits=bits)


@pytest.mark.parametrize("make", [lambda: Prefix(0), lambda: LastChars(1001), lambda: After(""), lambda: After("ab")])
def test_a_part_that_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize("separator", [*"aZ0 ;()\n", "ß"])
def test_a_separator_cannot_be_mistaken_for_the_text_of_a_form(separator: str) -> None:
    with pytest.raises(ConfigurationError, match="one ASCII character"):
        After(separator)


@pytest.mark.parametrize(
    ("kind", "value"), [("text", 7), ("text", "\ud800"), ("int", "CANARY"), ("date", "CANARY"), ("uuid", b"CANARY")]
)
def test_what_the_column_does_not_take_is_refused_without_showing_it(kind: str, value: Any) -> None:
    for part in (Whole(), Prefix(2)) if kind == "text" else (Whole(),):
        form = Form.of(ENCODINGS[kind], part=part)
        for ask in (form.message, form.asked):
            with pytest.raises(EncodingError) as caught:
                ask(value)
            assert "CANARY" not in str(caught.value)
            assert caught.value.__context__ is None


def test_a_normaliser_of_ones_own_is_registered_once_with_examples_that_hold() -> None:
    def squeezed(text: str) -> str:
        return "".join(text.split())

    normaliser("test-squeezed", squeezed, examples={"DE 12": "DE12"})
    normaliser("test-squeezed", squeezed, examples={"DE 12": "DE12"})
    form = Form.of(ENCODINGS["text"], normalise=("test-squeezed", "casefold"))
    assert form.text == "text;test-squeezed/1;casefold/1;whole;128"
    assert form.message("DE 12") == b"de12"
    with pytest.raises(ConfigurationError, match="a normaliser 'test-squeezed' already"):
        normaliser("test-squeezed", str.strip, examples={" a": "a"})
    with pytest.raises(ConfigurationError, match="a normaliser 'casefold' already"):
        normaliser("casefold", str.lower, version=2, examples={"A": "a"})
    with pytest.raises(ConfigurationError, match=r"no longer makes 'x' of 'X'.*another version"):
        normaliser("test-changed", str.upper, examples={"X": "x"})
    with pytest.raises(ConfigurationError, match="without an example"):
        normaliser("test-bare", str.upper, examples={})
    for name in ("", "Upper", "a/b", "a;b", "x" * 33):
        with pytest.raises(ConfigurationError, match="name is 1 to 32"):
            normaliser(name, str.upper, examples={"x": "X"})
    with pytest.raises(ConfigurationError, match=r"no normaliser 'lower'.*casefold, digits, nfkc, strip"):
        Form.of(ENCODINGS["text"], normalise=("lower",))


def test_a_form_shows_no_value_and_compares_by_its_text() -> None:
    form = Form.of(ENCODINGS["text"], normalise=("strip",))
    assert form == Form.of(Encoding.of(encoding.TEXT), normalise=("strip",))
    assert hash(form) == hash(Form.of(ENCODINGS["text"], normalise=("strip",)))
    assert repr(form) == "Form(text='text;strip/1;whole;128', bits=128)"
    assert form.message(str(uuid.UUID(int=0))) is not None
