"""Python operators on an encrypted column: equality where it has a blind index, ``IS NULL`` anywhere.

Everything else is refused at once, with one exception: ``==`` with another SQL expression is built as usual, because
SQLAlchemy's ORM itself writes ``column in list`` and so calls it. What such an expression means is for the statement
checker to find out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, ColumnClause, ColumnElement, Label, TypeDecorator
from sqlalchemy.sql import operators
from sqlalchemy.util import memoized_property

from ..errors import UnsupportedOperationError
from .tokens import EQUALITY, MODIFIERS, TokenOf, encrypted_column, token_of

_NULL_TESTS = frozenset((operators.is_, operators.is_not, operators.eq, operators.ne))
_HAVE_TOKENS = (ColumnClause, Label)


class SealedComparator(TypeDecorator.Comparator[Any]):
    """The operators of an encrypted column."""

    @memoized_property
    def blind_index(self) -> TokenOf:
        """The token that all equal values of the column share: for an index, GROUP BY and ON CONFLICT."""
        return token_of(self.expr)

    def token(self, name: str) -> TokenOf:
        """Return one of the further tokens that the column declares: ``Customer.ssn.token("last4") == "6789"``."""
        return token_of(self.expr, name)

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build equality where the column has an index, ``column == expression`` and ``column IS NULL``."""
        found = self.blind_index if self._is_search(op, other) else None
        refusal = found.refusal(op) if found is not None else self._refusal(op, other)
        if refusal is not None:
            del other
            raise refusal
        if found is not None:
            # A function, which the ORM does not evaluate in Python: there nobody knows of normalisers.
            others = [other]
            del other  # from here on only a list that is empty is in this frame
            searching: ColumnElement[Any] = found.operate(op, *others.pop(), **kwargs)
            return searching
        return super().operate(op, *other, **kwargs)

    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``value == column`` where the column has an index, and ``expression == column``."""
        found = self.blind_index if self._is_search(op, (other,)) else None
        refusal = found.refusal(op) if found is not None else self._refusal(op, (other,))
        if refusal is not None:
            del other
            raise refusal
        if found is not None:
            searching: ColumnElement[Any] = found.reverse_operate(op, other, **kwargs)
            return searching
        return super().reverse_operate(op, other, **kwargs)

    def _is_search(self, op: Any, others: tuple[Any, ...]) -> bool:
        if op not in EQUALITY or not isinstance(self.expr, _HAVE_TOKENS) or len(others) != 1:
            return False
        (other,) = others
        has_index = getattr(self.expr.type, "has_index", False)
        return has_index and other is not None and (isinstance(other, BindParameter) or _is_plain(other))

    # The caller raises, once it holds the plain value no more: a traceback shows the locals of every frame.
    def _refusal(self, op: Any, others: tuple[Any, ...]) -> UnsupportedOperationError | None:
        builds = op in _NULL_TESTS or op in MODIFIERS
        if getattr(self.expr.type, "has_index", False):
            builds = builds or op in EQUALITY
        if any(other is not None and _is_plain(other) for other in others):
            builds = False
        return None if builds else refused(f"{getattr(op, '__name__', op)} on", self.expr)


def _is_plain(other: Any) -> bool:
    return not hasattr(other, "__clause_element__") and not hasattr(other, "_propagate_attrs")


def refused(what: str, element: Any) -> UnsupportedOperationError:
    """Return the error for SQL that only the plaintext could answer."""
    column = _name(element)
    return UnsupportedOperationError(
        f"{what} the encrypted column {column!r} cannot be answered by the database, which sees sealed values only",
        hint="select the column as it is and compute in Python, or filter by another column; IS NULL and count() work, "
        "and with index=True also ==, in_ and joins",
    )


def refused_tokens(what: str, element: Any) -> UnsupportedOperationError:
    """Return the error for SQL that takes tokens for more than they are."""
    return UnsupportedOperationError(
        f"{what} the tokens of the encrypted column {_name(element)!r}: tokens are equal or they are not, no more",
        hint="compare the column itself with ==, != or in_; group, count or partition by its blind_index",
    )


def _name(element: Any) -> str:
    context: str | None = getattr(getattr(element, "type", None), "context", None)
    return encrypted_column(element) or context or type(element).__name__
