"""The tokens of a column as SQL: where they stand in the sealed value, and what they may be compared with.

A token is a function of a column, ``substr(customers.email, 11, 16)``, with its offsets written out: an expression
index is used only by a statement that says the same as the index does, also one that was prepared for every parameter.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BinaryExpression,
    ColumnClause,
    ColumnElement,
    Dialect,
    Integer,
    LargeBinary,
    TypeDecorator,
    literal_column,
)
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeEngine

from ..blind_index import INDEX, Message, Slot
from ..envelope import TOKEN_BYTES
from ..errors import ConfigurationError, UnsupportedOperationError
from .attachment import required
from .processors import lookup_processor

EQUALITY: Final = frozenset((operators.eq, operators.ne, operators.in_op, operators.not_in_op))
"""What tokens can answer."""

MODIFIERS: Final = frozenset(
    (operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op, operators.distinct_op)
)
"""They have no operand: where one is refused, that is when the statement is compiled, which can say why."""


def _not_rendered(_value: Any) -> str:
    return "pii_vault_refuses_to_render_a_value_that_is_looked_for()"


# A TypeDecorator's key is made anew for each statement, and SQLAlchemy goes through the names of its arguments for it.
_by_class: Final = property(lambda self: (type(self),))
"""The key of a type without arguments."""


class Sought(TypeDecorator[Any]):
    """The type of a value that is looked for, until a statement is compiled and it is known in which slot."""

    impl = LargeBinary
    cache_ok = True
    _static_cache_key = _by_class  # pyright: ignore[reportAssignmentType]

    def bind_processor(self, dialect: Dialect) -> Any:
        """Refuse it: whoever comes here was compiled by an engine that is not attached."""
        required(dialect)
        raise UnsupportedOperationError("a value that is looked for by its token is used outside a comparison")

    def literal_processor(self, dialect: Dialect) -> Any:
        """Render no value into SQL text; an error raised here would be wrapped together with it."""
        return _not_rendered


class _Bytes(BYTEA):
    render_bind_cast = True


_SOUGHT: Final = Sought()


class Lookup(TypeDecorator[Any]):
    """Binds a value as the tokens by which it is found in one slot.

    Args:
        slot: The slot.
        column: The column, for messages.
        pair: Whether to bind the tokens of both generations of index keys together, 32 bytes, or 16 for each element of
            a list.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, slot: Slot, column: str, pair: bool) -> None:
        super().__init__()
        self.slot = slot
        self.column = column
        self.pair = pair

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """On PostgreSQL, say that it is bytes: of a NULL inside ``substr()`` nobody could tell."""
        return dialect.type_descriptor(_Bytes() if dialect.name == "postgresql" else LargeBinary())

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that makes tokens of a value."""
        return lookup_processor(required(dialect), self.column, self.slot, self.pair)

    def literal_processor(self, dialect: Dialect) -> Any:
        """Render no value into SQL text, nor its token."""
        return _not_rendered


class TokenComparator(TypeDecorator.Comparator[Any]):
    """The operators of a token: it is equal to another one, or it is not."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build equality with a value, a list of them or another token; refuse the rest."""
        refusal = self.refusal(op)
        if refusal is not None:
            del other
            raise refusal
        try:
            return super().operate(op, *other, **kwargs)
        except ArgumentError:  # it shows what in_() was given
            del other
        raise UnsupportedOperationError(
            f"{op.__name__} on {_named(self.expr)} was given something else than values",
            hint="give in_() a list of values, a SELECT or a bound parameter",
        )

    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``expression == token``, refuse the rest."""
        refusal = self.refusal(op)
        if refusal is not None:
            del other
            raise refusal
        return super().reverse_operate(op, other, **kwargs)

    def candidates(self, value: Any) -> ColumnElement[bool]:
        """Build a condition on the rows whose token is that of a value: those that have it, and others by chance.

        For tokens of fewer than 128 bits. `pii_vault.matching` keeps the rows that have the value.
        """
        return super().operate(operators.eq, value)

    def span(self, low: Any, below: Any) -> ColumnElement[bool]:
        """Build a condition on the values from `low` to less than `below`, for a token that is made of a `Bucket`.

        Raises:
            UnsupportedOperationError: a bound lies inside a bucket, so the database cannot tell; or there are too many.
            EncodingError: a bound is no value of the column.
        """
        token: Any = self.expr
        if not token.slot.exact:
            raise inexact("a range", token)
        return super().operate(operators.in_op, [Message(each) for each in token.slot.form.span(low, below)])

    def refusal(self, op: Any) -> UnsupportedOperationError | None:
        """Return why an operator cannot be used, or None."""
        token, equality = self.expr, op in EQUALITY
        if equality and isinstance(token, TokenOf) and token.exact:
            return None
        if op in MODIFIERS or op in (operators.is_, operators.is_not):
            return None
        name = getattr(op, "__name__", op)
        if not equality or not isinstance(token, TokenOf):
            return UnsupportedOperationError(
                f"{name} on {_named(token)} cannot be answered by the database: tokens are equal, or they are not",
                hint="compare it with ==, !=, in_ or not_in",
            )
        return inexact(name, token)


def inexact(what: str, token: TokenOf) -> UnsupportedOperationError:
    """Return the error for a place where the other values that a token of few bits finds would go unnoticed."""
    return UnsupportedOperationError(
        f"{what} on {_named(token)}: it keeps {token.slot.form.bits} bits of its tokens and so finds other values too",
        hint="ask for .candidates(value) in the conditions of a SELECT, and keep the rows that have the value with "
        "pii_vault.matching",
    )


class TokenBytes(TypeDecorator[bytes]):
    """The type of a token: 16 bytes, compared with values of its column."""

    impl = LargeBinary
    cache_ok = True
    comparator_factory: Any = TokenComparator
    _static_cache_key = _by_class  # pyright: ignore[reportAssignmentType]

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Bind what a token is compared with as a value that is looked for."""
        return _SOUGHT


_TOKEN_BYTES: Final = TokenBytes()


class TokenOf(Function[bytes]):
    """One of a column's tokens.

    Args:
        column: The column: of a table, an alias or a subquery.
        token: The token's name; the index by default.

    Attributes:
        exact: Whether two values have the same token only if they are equal.
    """

    inherit_cache = True

    def __init__(self, column: Any, token: str = INDEX) -> None:
        slot = column.type.slot(token)
        super().__init__("substr", column, number(slot.start), number(TOKEN_BYTES), type_=_TOKEN_BYTES)
        self.token_name = token
        self.exact = slot.exact

    @property
    def column(self) -> Any:
        """The column that it is a token of."""
        return arguments(self)[0]

    @property
    def slot(self) -> Slot:
        """Where it stands, and how it is made."""
        found: Slot = self.column.type.slot(self.token_name)
        return found

    def refusal(self, op: Any) -> UnsupportedOperationError | None:
        """Return why an operator cannot be used on it, or None."""
        comparator: Any = self.comparator
        refusal: UnsupportedOperationError | None = comparator.refusal(op)
        return refusal


def arguments(function: Any) -> list[Any]:
    """Return what a function is called with. Its own `clauses` are those of what it was copied from."""
    return list(function.clause_expr.element)


def number(value: int) -> ColumnElement[int]:
    """Return a number that is written out, as an index's are."""
    return literal_column(str(value), Integer)


def token_of(expression: Any, token: str = INDEX) -> TokenOf:
    """Return a token of a column.

    Raises:
        ConfigurationError: the column declares none of this name.
        UnsupportedOperationError: the expression is not a column.
    """
    bare = expression
    while hasattr(bare, "element") and not isinstance(bare, ColumnClause):
        bare = bare.element
    if not isinstance(bare, ColumnClause):
        raise UnsupportedOperationError(
            f"a {type(bare).__name__} has no token: only a column has", hint="compare the column itself"
        )
    return TokenOf(bare, token)


def bind_as(bind: Any, token: TokenOf, *, pair: bool) -> Any:
    """Return a bound parameter, of the same name and value, as what is looked for among a column's tokens."""
    made = bind._clone(maintain_key=True)
    made.type = Lookup(token.slot, token.column.type.context or token.column.name, pair)
    return made


def compared(left: Any, right: Any, operator: Any) -> BinaryExpression[bool]:
    """Return a comparison as it is rendered, whatever the operands' types think of it."""
    negated = {operators.in_op: operators.not_in_op, operators.eq: operators.ne}
    return BinaryExpression(left, right, operator, negate=negated.get(operator))


def encrypted_column(element: Any) -> str | None:
    """Name the encrypted column of a table that an expression is made from, through aliases, subqueries and labels."""
    pending = [element]
    while pending:
        for each in visitors.iterate(pending.pop()):
            for column in getattr(each, "base_columns", ()):
                if not isinstance(column, ColumnClause):
                    pending.extend([column] if column is not each else [])
                elif hasattr(column.type, "has_index"):
                    table = getattr(column.table, "name", None)
                    return f"{table}.{column.name}" if table else str(column.name)
    return None


def _named(token: Any) -> str:
    name = encrypted_column(token)
    if name is None:
        return "a token"
    label = getattr(token, "token_name", INDEX)
    return f"token {label!r} of {name!r}" if label else f"the blind index of {name!r}"


def no_such_token(column: str, token: str, known: list[str]) -> ConfigurationError:
    """Return the error for a token, or an index, that a column does not declare."""
    if token == INDEX:
        return ConfigurationError(
            f"{column!r} has no blind index", hint="declare it with index=True, and re-seal its rows"
        )
    names = ", ".join(map(repr, known)) or "none"
    return ConfigurationError(f"{column!r} has no token {token!r}; it has {names}", hint="declare it in tokens={…}")
