"""What an index consists of, as a migration says it: names of columns, and tokens as a column and a slot.

A migration has to run when the models have long changed, so it says what is in the database: the place of a token in
the sealed value, and nothing of how the token is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, TypeGuard

from sqlalchemy import ColumnClause

from ..envelope import HEADER_BYTES, MAX_TOKENS, TOKEN_BYTES
from ..orm.generated import PREFIX
from ..orm.tokens import TokenOf

Part = str | tuple[str, int]
"""A column's name, or a token: the name of its column and its slot."""

_GENERATED: Final = re.compile(rf"{PREFIX}(.+)_(\d+)")
_SUBSTR: Final = re.compile(r"\(*substr\((.+?), ?(\d+), ?(\d+)\)+", re.IGNORECASE)
_QUOTES: Final = '`"[] '


def is_token(part: Part | None) -> TypeGuard[tuple[str, int]]:
    """Tell whether a part is a token."""
    return isinstance(part, tuple)


def parts_of(expressions: Iterable[Any]) -> tuple[Part, ...] | None:
    """Return what an index consists of, or None when it has no token, or something that is neither column nor token.

    Args:
        expressions: Of an index in a model, or of one that was read from a database of any kind.
    """
    found = [_part(each) for each in expressions]
    parts = tuple(each for each in found if each is not None)
    return parts if len(parts) == len(found) and any(map(is_token, parts)) else None


def token_in(sql: str) -> tuple[str, int] | None:
    """Return the token that an expression cuts out of a column, or None when it is something else."""
    match = _SUBSTR.fullmatch(sql.strip())
    if match is None or int(match[3]) != TOKEN_BYTES:
        return None
    slot, rest = divmod(int(match[2]) - 1 - HEADER_BYTES, TOKEN_BYTES)
    return None if rest or not 0 <= slot < MAX_TOKENS else (match[1].strip(_QUOTES), slot)


def named_token(name: str) -> tuple[str, int] | None:
    """Return the token that a generated column holds, by its name, or None when it is another column."""
    match = _GENERATED.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def _part(expression: Any) -> Part | None:
    if isinstance(expression, TokenOf):
        return expression.column.name, expression.slot.number
    if isinstance(expression, str):
        return named_token(expression) or expression
    if isinstance(expression, ColumnClause) and not expression.is_literal:
        return named_token(expression.name) or str(expression.name)
    return token_in(str(getattr(expression, "text", expression)))
