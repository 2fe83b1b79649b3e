"""Keep the rows that have a value, of those that a token of few bits has found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from sqlalchemy import Row

from ..blind_index import Form
from ..errors import ConfigurationError, PiiVaultError
from .tokens import TokenOf

RowT = TypeVar("RowT")

_MISSING: Final = object()


def matching(rows: Iterable[RowT], token: Any, value: Any) -> Iterator[RowT]:
    """Yield the rows that have a value, in their order.

    A token of fewer than 128 bits also finds rows with other values. They are told apart here, by the opened values::

        found = session.scalars(select(Customer).where(Customer.ssn.token("last4").candidates("6789")))
        customers = list(matching(found, Customer.ssn.token("last4"), "6789"))

    Args:
        rows: Objects of the ORM that have the column, or rows that hold it.
        token: The token that they were found by.
        value: What was asked for.

    Raises:
        ConfigurationError: the rows do not hold the column.
    """
    if not isinstance(token, TokenOf):
        del value
        raise ConfigurationError("matching() takes a token of a column", hint='Customer.ssn.token("last4")')
    form, column = token.slot.form, token.column
    asked, error = _asked(form, value)
    del value
    if error is not None:
        raise error
    for row in rows:
        stored = _value(row, column)
        if stored is _MISSING:
            del asked, row, stored
            raise ConfigurationError(
                f"the rows do not hold {column.name!r}, so nobody can tell which of them have the value"
            )
        if stored is not None and form.message(stored) == asked:
            yield row


def _asked(form: Form, value: Any) -> tuple[bytes, PiiVaultError | None]:
    try:
        return form.asked(value), None
    except PiiVaultError as error:
        return b"", error.with_traceback(None)


def _value(row: Any, column: Any) -> Any:
    key = column._annotations.get("proxy_key", column.key)
    if isinstance(row, Row):
        mapping = row._mapping
        for name in (column, key):
            if name in mapping:
                return mapping[name]
        # A row of one object: select(Customer)
        row = row[0]
    return getattr(row, key, _MISSING)
