"""Buckets: the stretch of days or of numbers that a value lies in.

The buckets of one size lie side by side and have numbers. A token is made of the number, so it tells which values share
a bucket, and not which bucket comes first. A range that begins and ends with a bucket is a set of buckets, and asked as
one. All arithmetic is exact: a value in the wrong bucket would be missed in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError, EncodingError, UnsupportedOperationError
from .messages import Message, of_integer

MOST_BUCKETS: Final = 1_000
"""How many buckets one range may have: each is a parameter of the statement."""

_MOST: Final = 10**18
_POINT: Final = 18
_DIGITS: Final = 1_000
_DAY: Final = 86_400 * 1_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal() - 1
_CYCLE: Final = 146_097  # the days of 400 years, after which the Gregorian calendar repeats

_DATES: Final = ("date", "datetime", "instant")
_NUMBERS: Final = ("int", "decimal")


class Place(NamedTuple):
    """Where a value lies.

    Attributes:
        number: The number of its bucket.
        is_first: Whether it is the bucket's first value, so that a range can begin or end with it.
    """

    number: int
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bucket:
    """A bucket size: `Bucket(years=10)`, `Bucket(months=1)`, `Bucket(days=7)` or `Bucket(width=100)`.

    Two spellings of one size are equal: 12 months are a year, and ``Decimal("0.50")`` is ``Decimal("0.5")``.

    Args:
        years: For dates and datetimes. A decade is 1980 to 1989.
        months: For dates and datetimes, counted from January of year 0.
        days: For dates and datetimes, counted from 0001-01-01, a Monday: 7 days are Monday to Sunday.
        width: For integers and decimals, counted from 0: a width of 100 has 0 to 99 and -100 to -1.

    Datetimes with a UTC offset are placed by their UTC date.

    Raises:
        ConfigurationError: not exactly one size is given, or no size that a bucket can have.
    """

    years: int | None = None
    months: int | None = None
    days: int | None = None
    width: int | Decimal | None = None

    def __post_init__(self) -> None:
        given = [size for size in (self.years, self.months, self.days, self.width) if size is not None]
        if len(given) != 1:
            raise ConfigurationError("a Bucket has exactly one of years, months, days and width")
        if self.width is not None:
            object.__setattr__(self, "width", _exact(self.width))
        elif not _is_size(given[0]):
            raise ConfigurationError("a Bucket has a whole number of years, months or days, from 1 to 10^18")
        elif self.months is not None and self.months % 12 == 0:
            object.__setattr__(self, "years", self.months // 12)
            object.__setattr__(self, "months", None)

    def __repr__(self) -> str:
        sizes = {name: getattr(self, name) for name in ("years", "months", "days", "width")}
        return f"Bucket({', '.join(f'{name}={size!r}' for name, size in sizes.items() if size is not None)})"

    def text(self) -> str:
        """Return ``bucket(10y)``, ``bucket(1m)``, ``bucket(7d)`` or ``bucket(0.5)``."""
        if self.width is not None:
            return f"bucket({Decimal(self.width):f})"
        size, unit = next((size, unit) for size, unit in self._calendar() if size is not None)
        return f"bucket({size}{unit})"

    def place(self, kind: str, message: bytes) -> Place:
        """Return where the value of a message lies, for a kind that `Buckets.of` has accepted.

        Raises:
            EncodingError: a decimal is too large or too fine to be placed; the error does not hold it.
        """
        if self.width is not None:
            number, over = divmod(_number(kind, message), Fraction(self.width))
            return Place(number, not over)
        day, into_day = _day(kind, message)
        if self.days is not None:
            number, into_bucket = divmod(day, self.days)
            return Place(number, not (into_bucket or into_day))
        month, into_month = _month(day)
        number, into_bucket = divmod(month, self.months or 12 * (self.years or 0))
        return Place(number, not (into_bucket or into_month or into_day))

    def _calendar(self) -> tuple[tuple[int | None, str], ...]:
        return (self.years, "y"), (self.months, "m"), (self.days, "d")


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of one column.

    Args:
        bucket: Their size.
        kind: The column's kind of values.
        message_of: What makes the message of a value of the column.
    """

    bucket: Bucket
    kind: str
    message_of: Message

    @classmethod
    def of(cls, bucket: Bucket, kind: str, message_of: Message) -> Buckets:
        """Return the buckets of a column.

        Raises:
            ConfigurationError: values of this kind have no such buckets; says what they have.
        """
        if kind not in (_DATES if bucket.width is None else _NUMBERS):
            raise ConfigurationError(f"a column of {kind} values has no {bucket.text()}", hint=_way_out(kind))
        if kind == "int" and Fraction(bucket.width or 0).denominator != 1:
            raise ConfigurationError(f"a column of int values has no {bucket.text()}", hint="give a whole number")
        return cls(bucket, kind, message_of)

    def message(self, value: Any) -> bytes:
        """Return the message of a value's bucket: its number.

        Raises:
            EncodingError: the column does not take this value, or it has no bucket; the error does not hold it.
        """
        return of_integer(self._place(value).number)

    def span(self, low: Any, below: Any) -> list[bytes]:
        """Return the messages of all buckets from `low` to the one that `below` begins, without the latter.

        Raises:
            EncodingError: a bound is no value of the column; the error does not hold it.
            UnsupportedOperationError: a bound is in the middle of a bucket, or there are too many buckets.
        """
        first, end = self._place(low), self._place(below)
        if not (first.is_first and end.is_first):
            raise UnsupportedOperationError(
                f"this range does not begin and end where a {self.bucket.text()} does",
                hint="ask for whole buckets, datetimes at 00:00 UTC if they have an offset, and filter after opening",
            )
        if end.number - first.number > MOST_BUCKETS:
            raise UnsupportedOperationError(
                f"this range has more than {MOST_BUCKETS:,} of {self.bucket.text()}",
                hint="ask for a shorter one, or declare a larger bucket beside this one",
            )
        return [of_integer(number) for number in range(first.number, end.number)]

    def _place(self, value: Any) -> Place:
        return self.bucket.place(self.kind, self.message_of(value))


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _MOST


def _exact(width: int | Decimal) -> Decimal:
    """Return a width in its one spelling."""
    if isinstance(width, int | Decimal) and not isinstance(width, bool):
        number = Decimal(width)
        if number.is_finite() and 0 < number <= _MOST and number.adjusted() >= -_POINT:
            before, _, behind = f"{number:f}".partition(".")
            behind = behind.rstrip("0")
            if len(behind) <= _POINT:
                return Decimal(f"{before}.{behind}" if behind else before)
    raise ConfigurationError(
        "a Bucket's width is an int or a Decimal above 0, at most 10^18, with at most 18 digits behind the point",
        hint='a float is not exact: write Decimal("0.5")',
    )


def _way_out(kind: str) -> str:
    if kind in _DATES:
        return "dates and datetimes have buckets of years, months or days"
    if kind in _NUMBERS:
        return "numbers have buckets of a width"
    if kind == "text":
        return "a text has LastChars, Prefix and After; for ranges, keep dates and numbers in columns of their types"
    if kind == "float":
        return "a float is no exact bound: keep the number in a column of integers or decimals"
    return "dates, datetimes, integers and decimals have buckets"


def _number(kind: str, message: bytes) -> int | Fraction:
    if kind == "int":
        return int.from_bytes(message, "big", signed=True)
    number = Decimal(message.decode())
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    # 1E+999999999 is a short text, and would be a number that fills the memory.
    if number.adjusted() >= _DIGITS or exponent < -_DIGITS:
        raise EncodingError(
            f"expected at most {_DIGITS:,} digits before and behind the point, in a column with buckets"
        )
    return Fraction(number)


def _day(kind: str, message: bytes) -> tuple[int, int]:
    """Return the days since 0001-01-01, and the microseconds since midnight."""
    number = int.from_bytes(message, "big", signed=True)
    day, into_day = (number, 0) if kind == "date" else divmod(number, _DAY)
    return day + _EPOCH, into_day


def _month(day: int) -> tuple[int, int]:
    """Return the months since January of year 0, and the days since the month began.

    An instant's UTC date can lie a day beyond what `date` can hold, so the calendar is repeated.
    """
    cycles, rest = divmod(day, _CYCLE)
    found = date.fromordinal(rest + 1)
    return 12 * (found.year + 400 * cycles) + found.month - 1, found.day - 1
