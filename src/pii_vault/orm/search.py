"""Equality on encrypted columns becomes equality of tokens, when a statement is compiled.

Until then a comparison is what it is for any other column, so that the ORM can adapt it, cache it, and turn a
relationship's condition into a query. Here ``Customer.email == "ada@example.com"`` becomes ``substr(customers.email,
11, 16) IN (substr(:p, 1, 16), substr(:p, 17, 16))``, with one parameter that holds the tokens of both live generations
of index keys: twice the same when there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    BinaryExpression,
    BindParameter,
    ColumnClause,
    CompoundSelect,
    Label,
    LargeBinary,
    ScalarSelect,
    Select,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ClauseList, Grouping
from sqlalchemy.sql.functions import Function
from sqlalchemy.sql.selectable import SelectStatementGrouping

from ..blind_index import Slot
from ..envelope import TOKEN_BYTES
from ..errors import UnsupportedOperationError
from .comparator import refused
from .tokens import EQUALITY, TokenOf, bind_as, compared, encrypted_column, inexact, number

_STARTS = (1, TOKEN_BYTES + 1)
_WRAPPERS = (Grouping, Label, ScalarSelect, SelectStatementGrouping)


class Searched(NamedTuple):
    """What a statement relies on: that each value of a column has its token in a slot.

    Attributes:
        home: The table, and the column's name in the database.
        context: The column's context id.
        slot: The slot.
    """

    home: tuple[Any, str]
    context: str
    slot: Slot


class Search(NamedTuple):
    """A comparison as it is rendered.

    Attributes:
        binary: The comparison.
        token: The token that is compared.
        by_value: Whether it is compared with values; else with other tokens, of one generation each.
    """

    binary: BinaryExpression[bool]
    token: TokenOf
    by_value: bool


def searched(token: TokenOf) -> Searched:
    """Return what a token in a statement relies on.

    Raises:
        UnsupportedOperationError: the column is no table's, so nobody can tell whether all of its values have one.
    """
    kind = token.column.type
    if kind.home is None:
        raise UnsupportedOperationError(
            f"{token.column.name!r} is searched, and is the column of no table", hint="search the table's own column"
        )
    return Searched(kind.home, kind.context, token.slot)


def translate(binary: Any) -> Search | None:
    """Return how a comparison is rendered, or None if it has nothing to do with tokens.

    Raises:
        UnsupportedOperationError: tokens cannot answer it.
    """
    if not isinstance(binary, BinaryExpression) or binary.operator not in EQUALITY:
        return None
    left, right = _token(binary.left), _token(binary.right)
    if left is not None and right is not None:
        return _columns(binary, left, right)
    if left is not None:
        return _with_value(binary, left, binary.right)
    if right is not None and binary.operator in (operators.eq, operators.ne):
        return _with_value(binary, right, binary.left)
    return None


def is_inexact(search: Search) -> bool:
    """Say whether a comparison is also true for other values than the one that is looked for."""
    return not search.token.slot.exact


def _token(element: Any) -> TokenOf | None:
    """Return the token that an operand is or stands for, or None."""
    while isinstance(element, Grouping | Label):
        element = element.element
    if isinstance(element, TokenOf):
        return element
    if isinstance(element, ColumnClause) and getattr(element.type, "has_index", False):
        return TokenOf(element)
    return None


def _columns(binary: Any, left: TokenOf, right: TokenOf) -> Search:
    _check_comparable(left, right)
    return Search(compared(left, right, binary.operator), left, by_value=False)


def _with_value(binary: Any, token: TokenOf, other: Any) -> Search:
    operator = binary.operator
    if not token.slot.exact and (operator is not operators.eq or not isinstance(binary.left, TokenOf)):
        raise inexact(operator.__name__, token)  # only candidates() has built what says that it finds other values too
    bare = other
    while isinstance(bare, Grouping | Label):
        bare = bare.element
    among = operators.in_op if operator in (operators.eq, operators.in_op) else operators.not_in_op
    if isinstance(bare, BindParameter):
        if bare.expanding:
            return Search(compared(token, bind_as(bare, token, pair=False), among), token, by_value=True)
        return Search(compared(token, _tuple(_pair(bare, token)), among), token, by_value=True)
    if isinstance(bare, ClauseList) and all(isinstance(each, BindParameter) for each in bare.clauses):
        pairs = [part for each in bare.clauses for part in _pair(each, token)]
        return Search(compared(token, _tuple(pairs), among), token, by_value=True)
    select = _of_tokens(other, token)
    if select is not None:
        return Search(compared(token, select, operator), token, by_value=False)
    raise refused("comparing an SQL expression with", token.column)


def _pair(bind: Any, token: TokenOf) -> list[Any]:
    """Return the tokens of a value in both live generations, out of one parameter that holds them."""
    both = bind_as(bind, token, pair=True)
    return [Function("substr", both, number(start), number(TOKEN_BYTES), type_=LargeBinary()) for start in _STARTS]


def _tuple(elements: list[Any]) -> Any:
    return ClauseList(*elements).self_group(against=operators.in_op)


def _of_tokens(other: Any, token: TokenOf) -> Any:
    """Return a select of one encrypted column as a select of its tokens, or None if it is no such thing."""
    bare = other
    while isinstance(bare, _WRAPPERS):
        bare = bare.element
    found: Any
    if isinstance(bare, CompoundSelect):
        parts = [_of_tokens(each, token) for each in bare.selects]
        if any(each is None for each in parts) or bare._order_by_clauses:
            return None
        # A copy keeps its LIMIT. Its parts have parentheses only where they must: SQLite does not take them.
        found = bare._generate()
        found.selects = [each.element.self_group(against=found) for each in parts]
    elif isinstance(bare, Select):
        columns = list(bare._all_selected_columns)
        mine = _token(columns[0]) if len(columns) == 1 else None
        if mine is None:
            return None
        _check_comparable(token, mine)
        found = bare.with_only_columns(mine)
    else:
        return None
    return found.scalar_subquery() if isinstance(other, ScalarSelect) else found.self_group(against=operators.in_op)


def _check_comparable(left: TokenOf, right: TokenOf) -> None:
    if not left.slot.comparable(right.slot):
        raise UnsupportedOperationError(
            f"{_described(left)} and {_described(right)} cannot be compared: their tokens are made differently",
            hint="declare both with one name, the same normalisers and the same bits: index=BlindIndex(name='email')",
        )
    if not left.slot.exact:
        raise inexact("a comparison of columns", left)


def _described(token: TokenOf) -> str:
    return f"{encrypted_column(token)!r} (index {token.slot.index!r}, {token.slot.form.text})"
