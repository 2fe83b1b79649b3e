"""A range of whole buckets finds exactly the values that lie in it, and no error says which values were asked for."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pii_vault import encoding
from pii_vault.blind_index import MOST_BUCKETS, Bucket, Form, Prefix, Whole
from pii_vault.encoding import Encoding
from pii_vault.errors import ConfigurationError, EncodingError, UnsupportedOperationError

DATE = Encoding.of(encoding.DATE)
NAIVE = Encoding.of(encoding.DATETIME_NAIVE)
AWARE = Encoding.of(encoding.DATETIME_AWARE)
INTEGER = encoding.INTEGER
DECIMAL = Encoding.of(encoding.DECIMAL)

NO_BUCKETS: dict[str, Encoding[Any]] = {
    "text": Encoding.of(encoding.TEXT),
    "float": Encoding.of(encoding.FLOAT64),
    "bytes": Encoding.of(encoding.BYTES),
    "bool": Encoding.of(encoding.BOOL),
    "time": Encoding.of(encoding.TIME),
    "uuid": Encoding.of(encoding.UUID),
}


# A value is in a span exactly where it is between the bounds.

BUCKETS = st.one_of(
    st.builds(lambda size: Bucket(years=size), st.integers(1, 30)),
    st.builds(lambda size: Bucket(months=size), st.integers(1, 30)),
    st.builds(lambda size: Bucket(days=size), st.integers(1, 400)),
)
DATES = st.dates(dt.date(1850, 1, 1), dt.date(2150, 12, 31))
OFFSETS = st.builds(
    lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)), st.integers(-14 * 60, 14 * 60) | st.just(0)
)


def first_day(bucket: Bucket, number: int) -> dt.date:
    """Return the day on which a bucket begins, reckoned in another way than the code does."""
    if bucket.days is not None:
        return dt.date(1, 1, 1) + dt.timedelta(days=number * bucket.days)
    size = bucket.months if bucket.months is not None else 12 * bucket.years  # type: ignore[operator]
    year, month = divmod(number * size, 12)
    return dt.date(year, month + 1, 1)


def number_of(form: Form, value: Any) -> int:
    message = form.message(value)
    assert message is not None
    return int.from_bytes(message, "big", signed=True)


@given(BUCKETS, DATES, DATES, st.integers(0, 40))
@example(Bucket(years=10), dt.date(1980, 1, 1), dt.date(1989, 12, 31), 1)
@example(Bucket(months=1), dt.date(2000, 2, 29), dt.date(2000, 3, 1), 1)
def test_a_date_is_in_a_span_exactly_where_it_is_between_the_bounds(
    bucket: Bucket, near: dt.date, value: dt.date, count: int
) -> None:
    form = Form.of(DATE, part=bucket)
    number = number_of(form, near)
    low, below = first_day(bucket, number), first_day(bucket, number + count)
    assert low <= near
    span = form.span(low, below)
    assert len(span) == count
    for each in (value, near, low, below, below - dt.timedelta(days=1)):
        assert (low <= each < below) == (form.message(each) in span)


@given(BUCKETS, st.datetimes(dt.datetime(1850, 1, 1), dt.datetime(2150, 1, 1)), OFFSETS, OFFSETS, st.integers(0, 40))
def test_a_datetime_is_in_a_span_exactly_where_it_is_between_the_bounds(
    bucket: Bucket, value: dt.datetime, offset: dt.timezone, other: dt.timezone, count: int
) -> None:
    microsecond = dt.timedelta(microseconds=1)
    for encoded, zone in ((NAIVE, None), (AWARE, offset)):
        form = Form.of(encoded, part=bucket)
        stored = value.replace(tzinfo=zone)
        number = number_of(form, stored)
        days = [first_day(bucket, each) for each in (number, number + count)]
        low, below = [dt.datetime(day.year, day.month, day.day, tzinfo=zone and dt.UTC) for day in days]
        if zone is not None:  # a bound may be named with any offset
            low = low.astimezone(other)
        span = form.span(low, below)
        for each in (stored, low, low - microsecond, below, below - microsecond):
            assert (low <= each < below) == (form.message(each) in span)


NUMBERS = st.integers(-1_000, 1_000) | st.integers(-(10**21), 10**21)


@given(st.integers(1, 500), NUMBERS, NUMBERS, st.integers(0, 40))
@example(100, -1, -100, 1)
def test_an_integer_is_in_a_span_exactly_where_it_is_between_the_bounds(
    width: int, near: int, value: int, count: int
) -> None:
    form = Form.of(INTEGER, part=Bucket(width=width))
    low = near - near % width
    below = low + count * width
    span = form.span(low, below)
    for each in (value, near, low, low - 1, below, below - 1):
        assert (low <= each < below) == (form.message(each) in span)


@given(
    st.sampled_from(["0.5", "0.1", "0.3", "2.5", "100", "0.000001", "0.0000007"]),
    st.decimals(-1_000_000, 1_000_000, places=8),
    st.integers(-1_000, 1_000),
    st.integers(0, 40),
)
def test_a_decimal_is_in_a_span_exactly_where_it_is_between_the_bounds(
    width: str, value: Decimal, first: int, count: int
) -> None:
    form = Form.of(DECIMAL, part=Bucket(width=Decimal(width)))
    low, below = first * Decimal(width), (first + count) * Decimal(width)
    span = form.span(low, below)
    least = Decimal("1E-30")
    for each in (value, low, below, least, -least, Decimal("-0"), low + Decimal("1E-15"), below - Decimal("1E-15")):
        assert (low <= each < below) == (form.message(each) in span)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=3))
def test_a_value_is_asked_for_by_any_other_of_its_bucket(value: Decimal) -> None:
    form = Form.of(DECIMAL, part=Bucket(width=7))
    assert form.asked(value) == form.message(value) == form.message(value // 7 * 7 if value >= 0 else value)


def test_a_range_that_ends_before_it_begins_has_nothing_in_it() -> None:
    form = Form.of(INTEGER, part=Bucket(width=10))
    assert form.span(50, 50) == form.span(50, 20) == []


def test_weeks_begin_on_monday() -> None:
    form = Form.of(DATE, part=Bucket(days=7))
    for day in range(14):
        date = dt.date(2024, 1, 1) + dt.timedelta(days=day)
        monday = date - dt.timedelta(days=date.weekday())
        assert form.message(date) == form.message(monday)
        assert form.span(monday, monday + dt.timedelta(days=7)) == [form.message(date)]


def test_a_birthday_is_found_by_its_decade_and_beyond_what_a_date_can_hold() -> None:
    form = Form.of(DATE, part=Bucket(years=10))
    eighties = form.span(dt.date(1980, 1, 1), dt.date(1990, 1, 1))
    assert eighties == [form.message(dt.date(1984, 5, 17))] == [form.asked(dt.date(1989, 12, 31))]
    last = Form.of(AWARE, part=Bucket(years=1))
    sentinel = dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5)))
    assert number_of(last, sentinel) == 10_000
    assert number_of(last, dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5)))) == 0


# One size has one text.


def test_two_spellings_of_one_size_are_one_bucket() -> None:
    for one, other, text in (
        (Bucket(months=120), Bucket(years=10), "bucket(10y)"),
        (Bucket(months=12), Bucket(years=1), "bucket(1y)"),
        (Bucket(width=100), Bucket(width=Decimal("1E+2")), "bucket(100)"),
        (Bucket(width=100), Bucket(width=Decimal("100.00")), "bucket(100)"),
        (Bucket(width=Decimal("0.50")), Bucket(width=Decimal("5E-1")), "bucket(0.5)"),
        (Bucket(width=Decimal("1E-18")), Bucket(width=Decimal("0." + 17 * "0" + "1000")), f"bucket(0.{17 * '0'}1)"),
    ):
        assert one == other
        assert hash(one) == hash(other)
        assert one.text() == other.text() == text
    assert Bucket(months=18).text() == "bucket(18m)"
    assert Form.of(DATE, part=Bucket(days=7), bits=16).text == "date;bucket(7d);16"
    assert Form.of(AWARE, part=Bucket(months=1)).text == "instant;bucket(1m);128"
    assert Form.of(DECIMAL, part=Bucket(width=1)) != Form.of(INTEGER, part=Bucket(width=1))


@given(st.integers(1, 40), DATES)
def test_twelve_months_are_a_year_for_every_date(years: int, value: dt.date) -> None:
    assert number_of(Form.of(DATE, part=Bucket(months=12 * years)), value) == value.year // years


# What is refused.


@pytest.mark.parametrize(
    "sizes", [{}, {"years": 1, "months": 1}, {"days": 7, "width": 7}, {"years": 10, "width": Decimal(1)}]
)
def test_a_bucket_has_one_size(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="exactly one of"):
        Bucket(**sizes)


@pytest.mark.parametrize("unit", ["years", "months", "days"])
@pytest.mark.parametrize("size", [0, -1, True, 1.0, Decimal(1), "1", 10**18 + 1])
def test_a_size_of_the_calendar_is_a_whole_number(unit: str, size: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole number of years, months or days"):
        Bucket(**{unit: size})


@pytest.mark.parametrize(
    "width",
    [
        *(
            0,
            -5,
            True,
            0.5,
            "5",
            10**18 + 1,
            pytest.param(10**6000, id="huge"),
            Decimal(0),
            Decimal("-0.5"),
            Decimal("1E+19"),
            Decimal("1E-19"),
        ),
        *(Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1E+999999999"), Decimal("1.5E-18")),
    ],
)
def test_a_width_is_exact_and_neither_huge_nor_tiny(width: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"width is an int or a Decimal above 0.*float is not exact"):
        Bucket(width=width)


@pytest.mark.parametrize("bucket", [Bucket(years=1), Bucket(days=1), Bucket(width=1)])
@pytest.mark.parametrize("kind", NO_BUCKETS)
def test_other_kinds_have_no_buckets_and_say_what_they_have(kind: str, bucket: Bucket) -> None:
    hint = {"text": "LastChars, Prefix and After", "float": "integers or decimals"}.get(kind, "have buckets")
    with pytest.raises(ConfigurationError, match=rf"a column of {kind} values has no bucket.*{hint}"):
        Form.of(NO_BUCKETS[kind], part=bucket)


def test_a_size_fits_the_kind_or_says_which_would() -> None:
    for column in (DATE, NAIVE, AWARE):
        with pytest.raises(ConfigurationError, match="buckets of years, months or days"):
            Form.of(column, part=Bucket(width=10))
    for column in (INTEGER, DECIMAL):
        with pytest.raises(ConfigurationError, match="buckets of a width"):
            Form.of(column, part=Bucket(days=1))
    with pytest.raises(ConfigurationError, match=r"no bucket\(0.5\).*give a whole number"):
        Form.of(INTEGER, part=Bucket(width=Decimal("0.5")))
    with pytest.raises(ConfigurationError, match="neither normalisers nor parts"):
        Form.of(DATE, part=Bucket(days=1), normalise=("strip",))


YEARS = Form.of(DATE, part=Bucket(years=10))
BOUNDS: list[tuple[Form, Any, Any]] = [
    (YEARS, dt.date(1981, 1, 1), dt.date(1990, 1, 1)),
    (YEARS, dt.date(1980, 1, 2), dt.date(1990, 1, 1)),
    (YEARS, dt.date(1980, 1, 1), dt.date(1989, 12, 31)),
    (YEARS, dt.date(1980, 2, 1), dt.date(1990, 2, 1)),
    (Form.of(DATE, part=Bucket(months=1)), dt.date(1980, 1, 1), dt.date(1980, 3, 31)),
    (Form.of(DATE, part=Bucket(days=7)), dt.date(1980, 1, 1), dt.date(1980, 1, 8)),
    (Form.of(NAIVE, part=Bucket(days=1)), dt.datetime(1980, 1, 1), dt.datetime(1980, 1, 2, microsecond=1)),
    (Form.of(NAIVE, part=Bucket(months=1)), dt.datetime(1980, 1, 1, 1), dt.datetime(1980, 2, 1)),
    (
        Form.of(AWARE, part=Bucket(days=1)),
        dt.datetime(1980, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        dt.datetime(1980, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ),
    (Form.of(INTEGER, part=Bucket(width=100)), 1980, 2000),
    (Form.of(INTEGER, part=Bucket(width=100)), 1900, 1980),
    (Form.of(DECIMAL, part=Bucket(width=Decimal("0.5"))), Decimal("19.80"), Decimal("20")),
]


@pytest.mark.parametrize(("form", "low", "below"), BOUNDS)
def test_a_bound_in_the_middle_of_a_bucket_is_refused_without_showing_it(form: Form, low: Any, below: Any) -> None:
    with pytest.raises(
        UnsupportedOperationError, match=r"does not begin and end where a bucket\(.*whole buckets"
    ) as caught:
        form.span(low, below)
    assert "19" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_span_has_at_most_a_thousand_buckets() -> None:
    form = Form.of(INTEGER, part=Bucket(width=7))
    assert len(form.span(-7, 7 * (MOST_BUCKETS - 1))) == MOST_BUCKETS
    with pytest.raises(UnsupportedOperationError, match=r"more than 1,000 of bucket\(7\).*larger bucket") as caught:
        form.span(-7, 7 * MOST_BUCKETS)
    assert "1001" not in str(caught.value)


@pytest.mark.parametrize("part", [None, Whole(), Prefix(3)])
def test_only_a_bucket_answers_a_range(part: Any) -> None:
    column = NO_BUCKETS["text"] if isinstance(part, Prefix) else DATE
    with pytest.raises(UnsupportedOperationError, match=r"not made of a Bucket.*Bucket\(\.\.\.\)"):
        Form.of(column, part=part).span(dt.date(1980, 1, 1), dt.date(1990, 1, 1))


@pytest.mark.parametrize("value", ["CANARY", None, dt.datetime(1980, 1, 1), 1980])
def test_what_the_column_does_not_take_is_refused_without_showing_it(value: Any) -> None:
    for ask in (YEARS.message, YEARS.asked, lambda it: YEARS.span(it, dt.date(1990, 1, 1))):
        with pytest.raises(EncodingError) as caught:
            ask(value)
        assert "CANARY" not in str(caught.value)
        assert "1980" not in str(caught.value)
        assert caught.value.__context__ is None


@pytest.mark.parametrize("value", ["1E+1000", "1E-1001", "1E+999999999", "-1E-999999999", "1" + 1000 * "0"])
def test_a_decimal_that_would_fill_the_memory_has_no_bucket(value: str) -> None:
    form = Form.of(DECIMAL, part=Bucket(width=1))
    with pytest.raises(EncodingError, match="1,000 digits before and behind the point") as caught:
        form.message(Decimal(value))
    assert caught.value.__context__ is None
    assert number_of(form, Decimal("9E+999")) == 9 * 10**999
    assert number_of(form, Decimal("-1E-1000")) == -1
    assert number_of(form, Decimal("0E+999999999")) == 0
