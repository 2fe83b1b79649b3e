"""Codecs 13 to 15: enum, JSON and array."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from decimal import Decimal
from enum import Enum, Flag
from json.encoder import encode_basestring
from typing import Final, TypeVar

from ..errors import ConfigurationError, EncodingError, FormatError
from .codec import REGISTRY, Codec, Encoding, malformed, refused

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

JSON_DEPTH: Final = 100
"""How deep arrays and objects of a JSON value can be nested."""

JSON_DIGITS: Final = 4300
"""How many decimal digits an integer of a JSON value can have, whatever the interpreter would convert."""

_ENUM_BYTES: Final = 8
_MAX_ITEM: Final = 0xFFFF_FFFF
_pack_item: Final = struct.Struct(">BI").pack
_INT64: Final = 2**63
_TOO_LONG: Final = 10**JSON_DIGITS


def _member_number(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:_ENUM_BYTES]


def enum_codec(enum_class: type[E]) -> Codec[E]:
    """Return the codec of an enum class: 8 bytes, the first of SHA-256 over the member's name in UTF-8.

    The width is fixed because a name's length would tell the value; the number depends on the name alone, so
    that members can be added, reordered and given other values. An alias is read as its member and never
    written: this is how a member is renamed (``NEW = 1; OLD = 1``).

    Raises:
        ConfigurationError: the class has no members, is a `Flag`, or two of its names have the same number.
    """
    if issubclass(enum_class, Flag):
        raise ConfigurationError(f"{enum_class.__name__} is a Flag: its combinations have no names; store an integer")
    numbers = {name: _member_number(name) for name in enum_class.__members__}
    members = {numbers[name]: member for name, member in enum_class.__members__.items()}
    if not members:
        raise ConfigurationError(f"{enum_class.__name__} has no members")
    if len(members) != len(numbers):
        raise ConfigurationError(f"two names of {enum_class.__name__} have the same number; rename one")

    def encode(value: object) -> bytes:
        if isinstance(value, enum_class):
            number = numbers.get(value._name_)
            if number is not None:
                return number
            raise EncodingError(f"expected a declared member of {enum_class.__name__}, got another")
        raise refused(enum_class.__name__, value)

    def decode(data: bytes) -> E:
        member = members.get(data)
        if member is not None:
            return member
        if len(data) != _ENUM_BYTES:
            raise malformed("enum")
        raise FormatError(
            f"a stored member of {enum_class.__name__} was removed or renamed",
            hint="declare the old name again; for a renamed member as an alias",
        )

    return Codec(13, encode, decode)


def array_codec(items: Encoding[T]) -> Codec[list[T | None]]:
    """Return the codec of a list whose items have this encoding; an item can be None.

    Each item says which codec it uses: 00 for None, else 1 byte codec id, 4 bytes length, big endian, and the
    item's own bytes. A list or tuple is taken, a list returned; an empty one has no bytes.
    """
    encode_item, decoders = items.encode, items.decoders()

    def encode(value: object) -> bytes:
        if not isinstance(value, (list, tuple)):
            raise refused("list or tuple", value)
        parts: list[bytes] = []
        for item in value:
            if item is None:
                parts.append(b"\x00")
                continue
            number, data = encode_item(item)
            if len(data) > _MAX_ITEM:
                raise EncodingError("expected array items of less than 4 GiB, got a larger one")
            parts += (_pack_item(number, len(data)), data)
        return b"".join(parts)

    def decode(data: bytes) -> list[T | None]:
        values: list[T | None] = []
        position, size = 0, len(data)
        while position < size:
            number = data[position]
            if number == 0:
                values.append(None)
                position += 1
                continue
            start = position + 5
            end = start + int.from_bytes(data[position + 1 : start], "big")
            if end > size:
                raise malformed("array")
            decode_item = decoders.get(number)
            if decode_item is None:
                raise _wrong_item(number, items)
            values.append(decode_item(data[start:end]))
            position = end
        return values

    return Codec(15, encode, decode)


def _wrong_item(number: int, items: Encoding[T]) -> FormatError:
    expected = " or ".join(codec.name for codec in items.codecs)
    return FormatError(f"expected array items stored as {expected}, got {REGISTRY.get(number, 'an unknown codec')}")


def _write_json(value: object, depth: int = 0) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value) if -_INT64 < value < _INT64 else _write_long(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float.__repr__(value)
        raise EncodingError("expected a JSON number, got float that is not a number or infinite")
    if not isinstance(value, (dict, list, tuple)):
        raise refused("a JSON value (dict, list, tuple, str, int, float, bool or None)", value)
    if depth == JSON_DEPTH:
        raise EncodingError(f"expected JSON of at most {JSON_DEPTH} levels, got deeper nesting")
    if isinstance(value, dict):
        return _write_object(value, depth + 1)
    return "[" + ",".join([_write_json(item, depth + 1) for item in value]) + "]"


def _write_long(value: int) -> str:
    if -_TOO_LONG < value < _TOO_LONG:
        return str(Decimal(value))  # str() of an int would ask for the interpreter's own limit
    raise EncodingError(f"expected JSON integers of at most {JSON_DIGITS} digits, got a longer int")


def _write_object(value: dict[object, object], depth: int) -> str:
    members: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise refused("str as JSON key", key)
        members[str.__str__(key)] = item
    if len(members) != len(value):
        raise EncodingError("expected distinct JSON keys, got two that are the same text")
    parts = [f"{encode_basestring(key)}:{_write_json(members[key], depth)}" for key in sorted(members)]
    return "{" + ",".join(parts) + "}"


def _encode_json(value: object) -> bytes:
    if value is None:
        raise refused("a JSON value other than null", value)
    try:
        return _write_json(value).encode()
    except UnicodeEncodeError:
        problem = "str with a lone surrogate"
    except RecursionError:
        problem = "a value too deep for the stack that is left"
    raise EncodingError(f"expected a JSON value, got {problem}")


def _read_long(text: str) -> int:
    if len(text) <= JSON_DIGITS + text.startswith("-"):
        return int(Decimal(text))
    raise ValueError("too many digits")


_any_limit: Final = json.JSONDecoder(parse_int=_read_long)


def _decode_json(data: bytes) -> object:
    try:
        text = data.decode()
        # An interpreter with another limit for integers would refuse others; one with none would take minutes.
        usual = sys.get_int_max_str_digits() == JSON_DIGITS
        value: object = json.loads(text) if usual else _any_limit.decode(text)
        # Writing it again finds all that makes it another text: duplicate keys, order, spaces, NaN, escapes.
        if value is not None and _write_json(value) == text:
            return value
    except (ValueError, RecursionError):
        pass
    raise malformed("json")


JSON: Final = Codec(14, _encode_json, _decode_json)
