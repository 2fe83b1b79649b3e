"""A second implementation of blind-index tokens, written from docs/format.md, section 10, and docs/codecs.md alone.

It shares no code with the package and must never import it. What the other sections say comes from the independent
opener. It is written to be compared with the page, line by line, and is neither fast nor hardened.
"""

from __future__ import annotations

import hmac
import os
import re
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.independent_opener import ALGORITHM, REFUSED, Failure, Kind, Tenant, decode, derive, encode, lp, u8

SIZE = 16
MOST = 10**18


# --- the form ---


@dataclass(frozen=True)
class Form:
    kind: str
    normalisers: tuple[str, ...]
    part: str
    argument: str
    bits: int


_FORM = re.compile(
    r"(?P<kind>[a-z]+)"
    r"(?P<normalisers>(?:;[a-z][a-z0-9_-]{0,31}/[1-9][0-9]*)*)"
    r";(?P<part>whole|prefix|last|after|bucket)(?:\((?P<argument>.+)\))?"
    r";(?P<bits>[1-9][0-9]*)",
)
_SEPARATOR = re.compile(r"[!-~]")
_WHOLE_NUMBER = re.compile(r"[1-9][0-9]*")
_WIDTH = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]*[1-9]))?")
_NUMBERS = {"int", "decimal"}
_DAYS = {"date", "datetime", "instant"}


def parse_form(text: str) -> Form:
    found = _FORM.fullmatch(text)
    if found is None or found["kind"] not in CODECS:
        raise Failure(REFUSED)
    normalisers = tuple(found["normalisers"].split(";")[1:])
    form = Form(found["kind"], normalisers, found["part"], found["argument"] or "", int(found["bits"]))
    _require(1 <= form.bits <= 128)
    _require(all(name in NORMALISERS for name in normalisers))
    _require(form.kind == "text" or not normalisers)
    if form.part == "whole":
        _require(found["argument"] is None)
    elif form.part == "bucket":
        _bucket_size(form)
    elif form.part == "after":
        _require(form.kind == "text" and _SEPARATOR.fullmatch(form.argument) is not None)
        _require(not form.argument.isalnum() and form.argument not in ";()")
    else:
        _require(form.kind == "text" and _WHOLE_NUMBER.fullmatch(form.argument) is not None)
        _require(int(form.argument) <= 1000)
    return form


def _require(condition: bool) -> None:
    if not condition:
        raise Failure(REFUSED)


def _bucket_size(form: Form) -> tuple[int, str] | tuple[int, int]:
    """n and its unit, or w as a whole number and by what power of ten it was multiplied."""
    if form.kind in _DAYS:
        number, unit = form.argument[:-1], form.argument[-1:]
        _require(unit in {"y", "m", "d"} and _WHOLE_NUMBER.fullmatch(number) is not None)
        _require(int(number) <= MOST and not (unit == "m" and int(number) % 12 == 0))
        return int(number), unit
    _require(form.kind in _NUMBERS)
    found = _WIDTH.fullmatch(form.argument)
    if found is None:
        raise Failure(REFUSED)
    fraction = found[2] or ""
    width = int(found[1] + fraction)
    _require(len(fraction) <= 18 and not (fraction and form.kind == "int"))
    _require(0 < width <= MOST * 10 ** len(fraction))
    return width, len(fraction)


# --- normalisers and parts of a text ---

# Characters with the property White_Space, and U+001C to U+001F.
_STRIPPED = {
    *range(0x09, 0x0E),
    *range(0x1C, 0x21),
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
}


def _strip(text: str) -> str:
    first, end = 0, len(text)
    while first < end and ord(text[first]) in _STRIPPED:
        first += 1
    while first < end and ord(text[end - 1]) in _STRIPPED:
        end -= 1
    return text[first:end]


def _casefold(text: str) -> str:
    return text.casefold()


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) for c in text if unicodedata.category(c) == "Nd")


NORMALISERS: Mapping[str, Callable[[str], str]] = {
    "strip/1": _strip,
    "casefold/1": _casefold,
    "nfkc/1": _nfkc,
    "digits/1": _digits,
}


def _normalised(form: Form, text: str) -> str:
    for name in form.normalisers:
        text = NORMALISERS[name](text)
    return text


def _part_of_text(form: Form, text: str) -> str | None:
    if form.part == "whole":
        return text
    if form.part == "after":
        at = text.rfind(form.argument)
        return None if at < 0 else text[at + 1 :]
    count = int(form.argument)
    return text[:count] if form.part == "prefix" else text[max(0, len(text) - count) :]


# --- messages, by kind ---


def _signed(number: int) -> bytes:
    """Two's complement in as few bytes as hold the number with its sign bit."""
    size = 1
    while not -(1 << (8 * size - 1)) <= number < 1 << (8 * size - 1):
        size += 1
    return number.to_bytes(size, "big", signed=True)


def _float_message(encoded: bytes) -> bytes:
    (bits,) = struct.unpack(">Q", encoded)
    magnitude = bits & (2**63 - 1)
    if magnitude == 0:
        return bytes(8)
    if magnitude > 0x7FF0000000000000:
        return bytes.fromhex("7ff8000000000000")
    return encoded


def _coefficient(encoded: bytes) -> tuple[int, str, int]:
    """Sign, digits without zeros at either end, exponent; the digits of a zero are none."""
    sign, found, exponent = decode(Kind((6,)), 6, encoded).as_tuple()
    digits = "".join(map(str, found)).lstrip("0")
    kept = digits.rstrip("0")
    return sign, kept, exponent + len(digits) - len(kept)


def _decimal_message(encoded: bytes) -> bytes:
    sign, digits, exponent = _coefficient(encoded)
    if not digits:
        return b"0"
    return f"{'-' * sign}{digits}E{exponent}".encode()


def _integer(encoded: bytes) -> int:
    return int.from_bytes(encoded, "big", signed=True)


CODECS: Mapping[str, tuple[int, ...]] = {
    "text": (1,),
    "bytes": (2,),
    "int": (3, 4),
    "float": (5,),
    "decimal": (6,),
    "bool": (7,),
    "date": (8,),
    "time": (9,),
    "instant": (10,),
    "datetime": (11,),
    "uuid": (12,),
    "enum": (13,),
}

_WHOLE: Mapping[str, Callable[[bytes], bytes]] = {
    "int": lambda encoded: _signed(_integer(encoded)),
    "float": _float_message,
    "decimal": _decimal_message,
    "instant": lambda encoded: encoded[:8],
}


def message_of(form: Form, codec: int, encoded: bytes) -> bytes | None:
    """The message of a value as a codec encodes it. None is that of a text without the part that is asked."""
    _require(codec in CODECS[form.kind])
    if form.part == "bucket":
        return _signed(bucket(form, encoded))
    if form.kind != "text":
        return _WHOLE.get(form.kind, lambda encoded: encoded)(encoded)
    part = _part_of_text(form, _normalised(form, encoded.decode("utf-8")))
    return None if part is None else part.encode("utf-8")


def message_of_value(form: Form, value: Any, members: Mapping[str, str] | None = None) -> bytes | None:
    return message_of(form, *encode(Kind(CODECS[form.kind], members=members), value))


def message_of_search(form: Form, given: Any, members: Mapping[str, str] | None = None) -> bytes:
    """The message by which values are found: of a part of a text, the part is what is given."""
    codec, encoded = encode(Kind(CODECS[form.kind], members=members), given)
    if form.kind == "text":
        return _normalised(form, encoded.decode("utf-8")).encode("utf-8")
    found = message_of(form, codec, encoded)
    assert found is not None
    return found


# --- buckets ---

_MICROSECONDS_A_DAY = 86_400_000_000
_FIRST_DAY = -719162  # 0001-01-01, in days since 1970-01-01
_DAYS_OF_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def year_and_month(days: int) -> tuple[int, int]:
    """Of a day that is so many days from 0001-01-01, before it and behind year 9999 as well."""
    cycles, rest = divmod(days, 146097)  # 400 years have so many days
    year = 1 + 400 * cycles
    while rest >= 365 + _leap(year):
        rest -= 365 + _leap(year)
        year += 1
    month = 1
    while rest >= (length := _DAYS_OF_MONTHS[month - 1] + (month == 2 and _leap(year))):
        rest -= length
        month += 1
    return year, month


def bucket(form: Form, encoded: bytes) -> int:
    size, unit = _bucket_size(form)
    if form.kind == "int":
        return _integer(encoded) // size
    if form.kind == "decimal":
        sign, digits, exponent = _coefficient(encoded)
        _require(len(digits) + exponent <= 1000 and exponent >= -1000 if digits else True)
        # value ÷ w, both multiplied by the same power of ten, so that both are whole.
        assert isinstance(unit, int)
        scale = max(unit, -exponent, 0) if digits else unit
        value = int(digits) * 10 ** (exponent + scale) if digits else 0
        return (-value if sign else value) // (size * 10 ** (scale - unit))
    since_1970 = _integer(encoded) if form.kind == "date" else _integer(encoded[:8]) // _MICROSECONDS_A_DAY
    days = since_1970 - _FIRST_DAY
    if unit == "d":
        return days // size
    year, month = year_and_month(days)
    return year // size if unit == "y" else (12 * year + month - 1) // size


# --- the token ---


def index_context(tenant: Tenant, index_name: str, form: str) -> bytes:
    return lp(u8(ALGORITHM), tenant.app_uid, tenant.tenant_uid, index_name.encode(), form.encode())


def index_subkey(index_key: bytes, tenant: Tenant, index_name: str, form: str) -> bytes:
    return derive(index_key, "index", index_context(tenant, index_name, form))


def cut(token: bytes, bits: int) -> bytes:
    """The first 16 bytes with all bits after the first `bits` set to 0."""
    number = int.from_bytes(token[:SIZE], "big")
    mask = ((1 << bits) - 1) << (8 * SIZE - bits)
    return (number & mask).to_bytes(SIZE, "big")


def token_of(subkey: bytes, message: bytes | None, bits: int) -> bytes:
    if message is None:
        return cut(os.urandom(SIZE), bits)
    return cut(hmac.digest(subkey, message, "sha256"), bits)


def place(sealed: bytes, number: int) -> bytes | None:
    """What stands in a place, from 0, of a sealed value; None if the value has fewer."""
    return sealed[10 + 16 * number : 26 + 16 * number] if number < sealed[9] else None
