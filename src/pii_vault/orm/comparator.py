"""Python operators on an encrypted column: ``IS NULL`` passes, everything else is refused at once, with one exception.

``==`` with another SQL expression is built as usual: SQLAlchemy's ORM itself writes ``column in list`` and so calls it.
What such an expression would mean in SQL is for the statement checker to refuse.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, TypeDecorator
from sqlalchemy.sql import operators, visitors

from ..errors import UnsupportedOperationError

_NULL_TESTS = frozenset((operators.is_, operators.is_not, operators.eq, operators.ne))

# They have no operand: ORDER BY and DISTINCT are refused when the statement is compiled, which can say so.
_MODIFIERS = frozenset(
    (operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op, operators.distinct_op)
)


class SealedComparator(TypeDecorator.Comparator[Any]):
    """The operators of an encrypted column."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``column == expression`` and ``column IS NULL``, refuse the rest."""
        refusal = self._refusal(op, other)
        if refusal is not None:
            del other
            raise refusal
        return super().operate(op, *other, **kwargs)

    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``expression == column``, refuse the rest."""
        refusal = self._refusal(op, (other,))
        if refusal is not None:
            del other
            raise refusal
        return super().reverse_operate(op, other, **kwargs)

    # The caller raises, once it holds the plain value no more: a traceback shows the locals of every frame.
    def _refusal(self, op: Any, others: tuple[Any, ...]) -> UnsupportedOperationError | None:
        builds = op in _NULL_TESTS or op in _MODIFIERS
        for other in others:
            if (
                other is not None
                and not hasattr(other, "__clause_element__")
                and not hasattr(other, "_propagate_attrs")
            ):
                builds = False
        return None if builds else refused(f"{getattr(op, '__name__', op)} on", self.expr)


def refused(what: str, element: Any) -> UnsupportedOperationError:
    """Return the error for SQL that only the plaintext could answer."""
    column = _name(element)
    return UnsupportedOperationError(
        f"{what} the encrypted column {column!r} cannot be answered by the database, which sees sealed values only",
        hint="select the column as it is and compute in Python, or filter by another column; IS NULL and count() work",
    )


def _name(element: Any) -> str:
    """Name the encrypted column of a table that an expression is made from, through aliases, subqueries and labels."""
    for each in visitors.iterate(element):
        for column in getattr(each, "base_columns", ()):
            if isinstance(column, ColumnClause) and isinstance(column.comparator, SealedComparator):
                table = getattr(column.table, "name", None)
                return f"{table}.{column.name}" if table else str(column.name)
    context: str | None = getattr(getattr(element, "type", None), "context", None)
    return context or type(element).__name__
