"""The planner keeps to the numbers that CipherSweet has published, and says so where none is right."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, log2

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pii_vault.blind_index import FULL_BITS, Plan, Verdict, plan
from pii_vault.errors import ConfigurationError


def bits(found: Plan) -> tuple[int | None, int | None]:
    return found.minimum, found.maximum


@pytest.mark.parametrize(
    ("rows", "distinct", "others", "expected"),
    [
        (50_000, None, 0, (8, 15)),  # published
        (50_000, None, 4, (4, 11)),  # published
        (16, None, 0, (2, 3)),
        (17, None, 0, (3, 4)),
        (1_000, None, 0, (5, 9)),
        (65_536, None, 0, (8, 15)),
        (65_537, None, 0, (9, 16)),
        (1_000_000, None, 0, (10, 19)),
        (2**63 - 1, None, 0, (32, 62)),
        (50_000, 10_000, 0, (8, 14)),
        (50_000, 10_000, 13, (1, 2)),
        (50_000, 224, 0, (8, 8)),
        (50_000, 10**30, 0, (8, 15)),
        (50_000, None, 14, (1, 1)),
        (16, 4, 0, (2, 2)),
    ],
)
def test_so_many_bits(rows: int, distinct: int | None, others: int, expected: tuple[int, int]) -> None:
    found = plan(rows, distinct=distinct, others=others)
    assert bits(found) == expected
    assert found.verdict is Verdict.SHORTEN


@pytest.mark.parametrize(
    ("rows", "distinct", "others", "verdict"),
    [
        (0, None, 0, Verdict.FEW_ROWS),
        (1, None, 0, Verdict.FEW_ROWS),
        (2, 2, 0, Verdict.FEW_ROWS),
        (15, None, 4, Verdict.FEW_ROWS),
        (16, 3, 0, Verdict.FEW_VALUES),
        (50_000, 2, 0, Verdict.FEW_VALUES),
        (50_000, 1, 0, Verdict.FEW_VALUES),
        (50_000, 223, 0, Verdict.FEW_VALUES),
        (50_000, 2, 200, Verdict.FEW_VALUES),
        (50_000, None, 15, Verdict.OTHERS_TELL),
        (2**63 - 1, None, FULL_BITS, Verdict.OTHERS_TELL),
    ],
)
def test_where_shorter_tokens_do_not_help_no_number_is_given(
    rows: int, distinct: int | None, others: int, verdict: Verdict
) -> None:
    found = plan(rows, distinct=distinct, others=others)
    assert found == Plan(rows, verdict)
    assert bits(found) == (None, None)


@given(
    st.integers(16, 2**40) | st.integers(16, 300),
    st.none() | st.integers(1, 2**45) | st.integers(1, 300),
    st.integers(0, 45),
)
def test_the_numbers_are_those_of_the_published_bounds(rows: int, distinct: int | None, others: int) -> None:
    found = plan(rows, distinct=distinct, others=others)
    assume(found.verdict is Verdict.SHORTEN)
    limit = 256 if distinct is None else ceil(log2(distinct))
    sharing = {length: Fraction(rows, 2 ** (others + min(length, limit))) for length in range(257)}
    lengths = [length for length in range(1, 257) if sharing[length] >= 2 and sharing[length] ** 2 <= rows]
    assert found.minimum == (lengths[0] if lengths else 1)
    boundary = max(Fraction(2), sharing[256])
    assert found.maximum == 1 + max(length for length in range(257) if sharing[length] > boundary)
    assert found.minimum <= found.maximum <= FULL_BITS


@given(st.integers(16, 2**63 - 1))
def test_by_chance_a_lookup_finds_between_one_row_and_the_square_root(rows: int) -> None:
    found = plan(rows)
    assert found.minimum is not None
    assert found.maximum is not None
    assert Fraction(rows, 2**found.minimum) ** 2 <= rows
    assert 1 < Fraction(rows, 2**found.maximum) <= 2
    assert found.by_chance(found.minimum) >= found.by_chance(found.maximum)


def test_a_plan_is_put_in_words() -> None:
    assert plan(50_000).advice.startswith("keep 8 to 15 bits: a lookup finds about 195 to 1.5 rows by chance")
    assert plan(50_000).by_chance(8) == 195.3125
    assert plan(0).by_chance(8) == 0
    assert "fewer than 16 rows" in plan(3).advice
    assert "low_entropy=True" in plan(1_000, distinct=2).advice
    assert "other tokens" in plan(1_000, others=128).advice


@pytest.mark.parametrize(
    ("rows", "distinct", "others"), [(-1, None, 0), (2**63, None, 0), (100, 0, 0), (100, -1, 0), (100, None, -1)]
)
def test_a_number_that_cannot_be_is_refused(rows: int, distinct: int | None, others: int) -> None:
    with pytest.raises(ConfigurationError, match="a plan is for"):
        plan(rows, distinct=distinct, others=others)
