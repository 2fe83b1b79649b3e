"""The one message of a value: what its tokens are made of.

An encoding keeps what equality ignores: 1.10 and 1.1, one instant at two offsets. A message does not: equal values have
equal messages, and no two unequal values of one kind have.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from ..encoding import Encoding
from ..errors import ConfigurationError

Message = Callable[[Any], bytes]

_NAN: Final = bytes.fromhex("7ff8000000000000")
_ZERO: Final = bytes(8)


def kind_of(encoding: Encoding[Any]) -> tuple[str, Message]:
    """Return what kind of values a column has, and the function that makes a value's message.

    The function raises `EncodingError`, without the value, for what the column does not take.

    Raises:
        ConfigurationError: values of this kind are not found by equality.
    """
    names = {codec.name for codec in encoding.codecs}
    encode = encoding.encode

    def encoded(value: Any) -> bytes:
        return encode(value)[1]

    if names == {"int64", "bigint"}:
        return "int", lambda value: of_integer(int.from_bytes(encoded(value), "big", signed=True))
    (name,) = names
    if name == "float64":
        return "float", lambda value: _float(encoded(value))
    if name == "decimal":
        return "decimal", lambda value: _decimal(encoded(value))
    if name == "datetime_aware":
        return "instant", lambda value: encoded(value)[:8]
    if name in ("json", "array"):
        raise ConfigurationError(
            f"{name} values have no blind index: two of them can be equal in more than one way",
            hint="keep what is to be searched for in an encrypted column of its own",
        )
    return _KINDS[name], encoded


_KINDS: Final = {
    "text": "text",
    "bytes": "bytes",
    "bool": "bool",
    "date": "date",
    "time": "time",
    "datetime_naive": "datetime",
    "uuid": "uuid",
    "enum": "enum",
}


def of_integer(number: int) -> bytes:
    """Return two's complement in as few bytes as possible."""
    size = (number if number >= 0 else ~number).bit_length() // 8 + 1
    return number.to_bytes(size, "big", signed=True)


def _float(encoded: bytes) -> bytes:
    """Return the 8 bytes of binary64, with one zero and one NaN."""
    number: float = struct.unpack(">d", encoded)[0]
    if math.isnan(number):
        return _NAN
    return encoded if number else _ZERO


def _decimal(encoded: bytes) -> bytes:
    """Return sign, digits without zeros at the end, ``E`` and exponent in ASCII; ``0`` for every zero."""
    sign, digits, exponent = Decimal(encoded.decode()).as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return b"0"
    kept = text.rstrip("0")
    assert isinstance(exponent, int)
    return f"{'-' if sign else ''}{kept}E{exponent + len(text) - len(kept)}".encode()
