"""Where the parts of a header stand in a stored value, for SQL: what is compared are bytes, and no value is opened."""

from __future__ import annotations

from typing import Final, TypeAlias

from sqlalchemy import ColumnElement, LargeBinary, func

from ..envelope import HEADER_BYTES

Place: TypeAlias = tuple[int, int]
"""Where a part begins, counted from 1 as SQL does, and how many bytes it has (docs/format.md, section 1)."""

FIRST: Final[Place] = (1, 1)
KEYSET: Final[Place] = (2, 4)
KEY: Final[Place] = (2, 6)
VERSION: Final[Place] = (6, 2)
GENERATION: Final[Place] = (9, 1)
TOKENS: Final[Place] = (10, 1)
HEADER: Final[Place] = (1, HEADER_BYTES)


def part(stored: ColumnElement[bytes], place: Place) -> ColumnElement[bytes]:
    """Return a part of a stored value's header."""
    return func.substr(stored, *place, type_=LargeBinary)
