"""Codecs 8 to 11: date, time, and datetime with and without a UTC offset.

Integers only: float arithmetic would lose microseconds, and `datetime.timestamp` asks for the machine's time
zone. The fields of a value are read one by one, because subclasses give subtraction another meaning.
"""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Final

from ..errors import EncodingError
from .codec import Codec, malformed, refused

_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_UTC: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL: Final = _EPOCH.toordinal()
_FIRST_DAY: Final = date.min.toordinal() - _EPOCH_ORDINAL
_LAST_DAY: Final = date.max.toordinal() - _EPOCH_ORDINAL
_FIRST_INSTANT: Final = _FIRST_DAY * _DAY
_LAST_INSTANT: Final = (_LAST_DAY + 1) * _DAY - 1
_MAX_OFFSET: Final = 86_399
_DAYS: Final = struct.Struct(">i")
_MICROSECONDS: Final = struct.Struct(">q")
_INSTANT: Final = struct.Struct(">qi")


def _encode_date(value: object) -> bytes:
    if isinstance(value, date) and not isinstance(value, datetime):
        return _DAYS.pack(value.toordinal() - _EPOCH_ORDINAL)
    raise refused("date", value)


def _decode_date(data: bytes) -> date:
    if len(data) == 4:
        (day,) = _DAYS.unpack(data)
        if _FIRST_DAY <= day <= _LAST_DAY:
            return date.fromordinal(day + _EPOCH_ORDINAL)
    raise malformed("date")


def _of_day(value: time | datetime) -> int:
    return ((value.hour * 60 + value.minute) * 60 + value.second) * _SECOND + value.microsecond


def _after(epoch: datetime, microseconds: int) -> datetime:
    return epoch + timedelta(0, *divmod(microseconds, _SECOND))


def _encode_time(value: object) -> bytes:
    if isinstance(value, time):
        if value.tzinfo is None:
            return _MICROSECONDS.pack(_of_day(value))
        raise EncodingError("expected time without time zone, got time with one")
    raise refused("time", value)


def _decode_time(data: bytes) -> time:
    if len(data) == 8:
        (elapsed,) = _MICROSECONDS.unpack(data)
        if 0 <= elapsed < _DAY:
            return _after(_EPOCH, elapsed).time()
    raise malformed("time")


def _wall_clock(value: datetime) -> int:
    return (value.toordinal() - _EPOCH_ORDINAL) * _DAY + _of_day(value)


def _utc_offset(value: datetime) -> timedelta | None:
    try:
        return value.utcoffset()
    except Exception:  # noqa: BLE001, S110 (a tzinfo is foreign code)
        pass
    raise EncodingError("expected datetime with a UTC offset, got one whose tzinfo raised an error")


def _encode_aware(value: object) -> bytes:
    if isinstance(value, datetime):
        offset = _utc_offset(value)
        if offset is None:
            raise EncodingError("expected datetime with a UTC offset, got naive datetime")
        if offset.microseconds:
            raise EncodingError("expected datetime with a UTC offset of whole seconds, got a fraction")
        seconds = offset.days * 86_400 + offset.seconds
        return _INSTANT.pack(_wall_clock(value) - seconds * _SECOND, seconds)
    raise refused("datetime", value)


def _decode_aware(data: bytes) -> datetime:
    if len(data) == 12:
        instant, offset = _INSTANT.unpack(data)
        wall_clock = instant + offset * _SECOND
        if -_MAX_OFFSET <= offset <= _MAX_OFFSET and _FIRST_INSTANT <= wall_clock <= _LAST_INSTANT:
            epoch = datetime(1970, 1, 1, tzinfo=timezone(timedelta(0, offset))) if offset else _EPOCH_UTC
            return _after(epoch, wall_clock)
    raise malformed("datetime_aware")


def _encode_naive(value: object) -> bytes:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return _MICROSECONDS.pack(_wall_clock(value))
        raise EncodingError("expected datetime without time zone, got datetime with one")
    raise refused("datetime", value)


def _decode_naive(data: bytes) -> datetime:
    if len(data) == 8:
        (wall_clock,) = _MICROSECONDS.unpack(data)
        if _FIRST_INSTANT <= wall_clock <= _LAST_INSTANT:
            return _after(_EPOCH, wall_clock)
    raise malformed("datetime_naive")


DATE: Final = Codec(8, _encode_date, _decode_date)
TIME: Final = Codec(9, _encode_time, _decode_time)
DATETIME_AWARE: Final = Codec(10, _encode_aware, _decode_aware)
DATETIME_NAIVE: Final = Codec(11, _encode_naive, _decode_naive)
