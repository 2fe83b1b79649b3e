"""Python operators on an encrypted column: ``IS NULL`` passes, comparing with a plain value is refused at once.

A comparison with another SQL expression is built as usual: SQLAlchemy's ORM itself writes ``column in list`` and so
calls ``==``. What such an expression would mean in SQL is for the statement checker to refuse.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, TypeDecorator
from sqlalchemy.sql import operators, visitors

from ..errors import UnsupportedOperationError

_NULL_TESTS = frozenset((operators.is_, operators.is_not, operators.eq, operators.ne))


class SealedComparator(TypeDecorator.Comparator[Any]):
    """The operators of an encrypted column."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``column op other``, unless other is a plain value."""
        refusal = self._refusal(op, other)
        if refusal is not None:
            del other
            raise refusal
        return super().operate(op, *other, **kwargs)

    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``other op column``, unless other is a plain value."""
        refusal = self._refusal(op, (other,))
        if refusal is not None:
            del other
            raise refusal
        return super().reverse_operate(op, other, **kwargs)

    # The caller raises, once it holds the plain value no more: a traceback shows the locals of every frame.
    def _refusal(self, op: Any, others: tuple[Any, ...]) -> UnsupportedOperationError | None:
        for other in others:
            if other is None and op in _NULL_TESTS:
                continue
            if not hasattr(other, "__clause_element__") and not hasattr(other, "_propagate_attrs"):
                return refused(f"{getattr(op, '__name__', op)} on", self.expr)
        return None


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
    return getattr(element, "name", None) or type(element).__name__
