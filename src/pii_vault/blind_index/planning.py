"""How many bits of a token to keep: so few that unequal values share tokens, so many that a lookup finds few rows.

Pure. Of R rows, R / 2^l share a token of l bits by chance. CipherSweet, which has published such a planner, asks for at
least 2 of them, or equal tokens would prove equal values, and for at most the square root of R, or the index would
hardly narrow a search. The tokens of one column are counted together, because rows are compared by all of them.

- bounds and formula: https://github.com/paragonie/ciphersweet, docs/SECURITY.md, Blind Index Information Leaks
- its numbers, 8 to 15 bits for 50,000 rows, and 4 to 11 beside an index of 4 bits:
  https://ciphersweet.paragonie.com/node.js/blind-index-planning

The largest number of bits is here what it is there: the first that leaves 2 rows or fewer, so between 1 and 2. Each
tenant has an index key of its own, so R is the rows of one tenant. One declaration serves all of them: the smallest
tenant decides on the most bits, the largest on how much a search costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ..errors import ConfigurationError

FEWEST_ROWS: Final = 16
"""With fewer, the square root is below 4, and between it and 2 there may be no whole number of bits."""

_MOST_ROWS: Final = 2**63 - 1


class Verdict(Enum):
    """Whether shorter tokens help."""

    SHORTEN = "shorten"
    """Keep between `minimum` and `maximum` bits."""

    FEW_ROWS = "few_rows"
    """There are too few rows for values to share tokens."""

    FEW_VALUES = "few_values"
    """Values are so few that even a whole token is shared by more rows than the square root of all."""

    OTHERS_TELL = "others_tell"
    """The column's other tokens tell already which values are equal."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many bits of a token to keep.

    Attributes:
        rows: How many rows the plan is for.
        verdict: Whether shorter tokens help.
        minimum: The fewest bits; None unless the verdict is `Verdict.SHORTEN`.
        maximum: The most bits; None likewise.
    """

    rows: int
    verdict: Verdict
    minimum: int | None = None
    maximum: int | None = None

    def by_chance(self, bits: int) -> float:
        """Return how many rows a lookup finds that have another value, on average, if nearly all values differ."""
        return self.rows / (1 << bits)

    @property
    def advice(self) -> str:
        """Return the plan in words."""
        if self.minimum is None or self.maximum is None:
            return _ADVICE[self.verdict]
        most, fewest = (self.by_chance(bits) for bits in (self.minimum, self.maximum))
        return (
            f"keep {self.minimum} to {self.maximum} bits: a lookup finds about {most:,.0f} to {fewest:,.1f} rows by "
            "chance, which are opened and dropped; fewer bits tell less"
        )


_ADVICE: Final = {
    Verdict.FEW_ROWS: (
        f"fewer than {FEWEST_ROWS} rows hide nothing in shorter tokens: plan for the rows that will come, or have no "
        "index and compare after opening"
    ),
    Verdict.FEW_VALUES: (
        "so few values are told by the sizes of their groups, and shorter tokens do not hide them: have no index, or "
        "accept it with BlindIndex(low_entropy=True)"
    ),
    Verdict.OTHERS_TELL: (
        "the other tokens of this column tell already which values are equal: shorten those, or keep all bits here"
    ),
}


def plan(rows: int, *, distinct: int | None = None, others: int = 0) -> Plan:
    """Return how many bits of a token to keep.

    Not for unique indexes, which need all bits.

    Args:
        rows: How many rows of one tenant there will be.
        distinct: How many values there can be: 10,000 for four digits. None for more than there are rows.
        others: The bits of the column's other tokens, added up, each with at most the bits that number its values.

    Raises:
        ConfigurationError: a number is negative, or no table has so many rows.
    """
    if not 0 <= rows <= _MOST_ROWS or others < 0 or (distinct is not None and distinct < 1):
        raise ConfigurationError(
            "a plan is for 0 to 2^63 - 1 rows, 1 or more values, and 0 or more bits of other tokens"
        )
    if rows < FEWEST_ROWS:
        return Plan(rows, Verdict.FEW_ROWS)
    if distinct is not None and distinct**2 < rows:
        return Plan(rows, Verdict.FEW_VALUES)
    maximum = _at_most_two(rows) - others
    if maximum < 1:
        return Plan(rows, Verdict.OTHERS_TELL)
    if distinct is not None:
        maximum = min(maximum, (distinct - 1).bit_length())
    return Plan(rows, Verdict.SHORTEN, max(1, _at_most_root(rows) - others), maximum)


def _at_most_two(rows: int) -> int:
    """Return the fewest bits with rows / 2^bits <= 2."""
    return (rows - 1).bit_length() - 1


def _at_most_root(rows: int) -> int:
    """Return the fewest bits with rows / 2^bits <= the square root of rows, which is rows <= 4^bits."""
    return ((rows - 1).bit_length() + 1) // 2
