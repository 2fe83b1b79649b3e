"""Codecs 1 to 7 and 12: text, bytes, numbers, bool and UUID."""

from __future__ import annotations

import struct
import uuid
from decimal import Context, Decimal, InvalidOperation
from typing import Final

from ..errors import EncodingError
from .codec import Codec, Encoding, malformed, refused

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_INT64: Final = struct.Struct(">q")
_FLOAT64: Final = struct.Struct(">d")

# The thread's own context would decide on "E" or "e" and on whether a syntax error is NaN.
_decimal_context: Final = Context(capitals=1, traps=[InvalidOperation])


def _encode_text(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return str.encode(value)
        except UnicodeEncodeError:
            pass
        raise EncodingError("expected text that UTF-8 can hold, got str with a lone surrogate")
    raise refused("str", value)


def _decode_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    raise malformed("text")


def _encode_bytes(value: object) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value)
        except ValueError:
            pass
        raise EncodingError("expected bytes, got a released memoryview")
    raise refused("bytes, bytearray or memoryview", value)


def _decode_bytes(data: bytes) -> bytes:
    return data


def _encode_int64(value: object) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        if _INT64_MIN <= value <= _INT64_MAX:
            return _INT64.pack(value)
        raise EncodingError("expected an integer of at most 64 bits, got a larger int")
    raise refused("int", value)


def _decode_int64(data: bytes) -> int:
    if len(data) == 8:
        number: int = _INT64.unpack(data)[0]
        return number
    raise malformed("int64")


def _signed_size(number: int) -> int:
    return (number if number >= 0 else ~number).bit_length() // 8 + 1


def _encode_bigint(value: object) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        if _INT64_MIN <= value <= _INT64_MAX:
            raise EncodingError("expected an integer of more than 64 bits, got a smaller int")
        return int.to_bytes(value, _signed_size(int(value)), "big", signed=True)
    raise refused("int", value)


def _decode_bigint(data: bytes) -> int:
    number = int.from_bytes(data, "big", signed=True)
    if len(data) > 8 and len(data) == _signed_size(number):
        return number
    raise malformed("bigint")


def _encode_integer(value: object) -> tuple[int, bytes]:
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        return BIGINT.id, _encode_bigint(value)
    return INT64.id, _encode_int64(value)


def _encode_float64(value: object) -> bytes:
    if isinstance(value, float):
        return _FLOAT64.pack(value)
    if isinstance(value, int) and not isinstance(value, bool):
        number = _exact_float(value)
        if number is not None:
            return _FLOAT64.pack(number)
        raise EncodingError("expected a float, got an int that no float64 represents exactly")
    raise refused("float", value)


def _exact_float(value: int) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number == value else None


def _decode_float64(data: bytes) -> float:
    if len(data) == 8:
        number: float = _FLOAT64.unpack(data)[0]
        return number
    raise malformed("float64")


def _encode_decimal(value: object) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(int(value), _decimal_context)
    if isinstance(value, Decimal):
        if value.is_finite():
            return _decimal_context.to_sci_string(value).encode()
        raise EncodingError("expected a finite Decimal, got one that is not a number or infinite")
    hint = "a float has no exact decimal form: round it to a Decimal first" if isinstance(value, float) else None
    raise refused("Decimal or int", value, hint=hint)


def _decode_decimal(data: bytes) -> Decimal:
    try:
        text = data.decode()
        number = Decimal(text, _decimal_context)
        if number.is_finite() and _decimal_context.to_sci_string(number) == text:
            return number
    except (UnicodeDecodeError, InvalidOperation):
        pass
    raise malformed("decimal")


def _encode_bool(value: object) -> bytes:
    if value is True:
        return b"\x01"
    if value is False:
        return b"\x00"
    raise refused("bool", value)


def _decode_bool(data: bytes) -> bool:
    if data == b"\x01":
        return True
    if data == b"\x00":
        return False
    raise malformed("bool")


def _encode_uuid(value: object) -> bytes:
    if isinstance(value, uuid.UUID):
        return value.bytes
    raise refused("UUID", value)


def _decode_uuid(data: bytes) -> uuid.UUID:
    if len(data) == 16:
        return uuid.UUID(bytes=data)
    raise malformed("uuid")


TEXT: Final = Codec(1, _encode_text, _decode_text)
BYTES: Final = Codec(2, _encode_bytes, _decode_bytes)
INT64: Final = Codec(3, _encode_int64, _decode_int64)
BIGINT: Final = Codec(4, _encode_bigint, _decode_bigint)
FLOAT64: Final = Codec(5, _encode_float64, _decode_float64)
DECIMAL: Final = Codec(6, _encode_decimal, _decode_decimal)
BOOL: Final = Codec(7, _encode_bool, _decode_bool)
UUID: Final = Codec(12, _encode_uuid, _decode_uuid)

INTEGER: Final = Encoding((INT64, BIGINT), _encode_integer)
"""Integers of any size: int64 where they fit, else bigint."""
