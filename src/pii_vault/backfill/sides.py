"""The two columns of a move: one is read, the other one is written, and each holds its values sealed or as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Dialect, LargeBinary, Text, cast
from sqlalchemy.types import NullType, TypeEngine

from ..envelope import parse
from ..errors import FormatError
from ..keyring import Keyring
from ..orm.attachment import Attachment
from ..orm.encrypted_type import EncryptedType
from ..orm.processors import indexed_open_processor, indexed_seal_processor, open_processor, seal_processor

_MYSQL: Final = ("mysql", "mariadb")

Taken = Callable[[Any], Any]
"""Makes a value of what a driver gives, or what is bound of a value."""


class Side(ABC):
    """One of the columns.

    Args:
        name: Its name.
        bound: The type that what is written is bound with.
        selected: The type that it is read with, before `reader` makes values of that.
    """

    def __init__(self, name: str, bound: TypeEngine[Any], selected: TypeEngine[Any]) -> None:
        self.name: Final = name
        self.bound: Final = bound
        self.selected: Final = selected

    @abstractmethod
    def reader(self, dialect: Dialect, sql_type: Any) -> Taken:
        """Return the function that makes a value of what was read, inside the tenant's scope."""

    @abstractmethod
    def write(self, value: Any) -> Any:
        """Return what is bound for a value, inside the tenant's scope."""

    @abstractmethod
    def exact(self, dialect: Dialect, column: Column[Any]) -> ColumnElement[Any]:
        """Return an expression of the column that is the same only where exactly the same is stored."""

    def is_current(self, stored: Any) -> bool:
        """Say whether what is stored is in the form in which it would be written now."""
        return True


class Sealed(Side):
    """A column of sealed values.

    Args:
        name: Its name.
        kind: Its type, which knows its context.
        keyring: Of the vault whose scopes are entered.
    """

    def __init__(self, name: str, kind: EncryptedType[Any], keyring: Keyring) -> None:
        super().__init__(name, LargeBinary(), LargeBinary())
        self.kind: Final = kind
        hold, context, how = Attachment(keyring, None, None), str(kind.context), kind.encoding()
        if kind.slots:
            self._open = indexed_open_processor(hold, context, how)
            self._seal = indexed_seal_processor(hold, context, how, kind.slots)
        else:
            self._open = open_processor(hold, context, how)
            self._seal = seal_processor(hold, context, how)

    def reader(self, dialect: Dialect, sql_type: Any) -> Taken:
        """Return the function that opens a value."""
        return self._open

    def write(self, value: Any) -> Any:
        """Seal a value."""
        return self._seal(value)

    def exact(self, dialect: Dialect, column: Column[Any]) -> ColumnElement[Any]:
        """Return the column itself: its bytes."""
        return column

    def is_current(self, stored: Any) -> bool:
        """Say whether a value has the tokens that its type declares."""
        try:
            return parse(bytes(stored)).tokens == len(self.kind.slots)
        except FormatError:
            return False


class Plain(Side):
    """A column of values as they are.

    Args:
        name: Its name.
        kind: The type that makes Python's values of them.
    """

    def __init__(self, name: str, kind: TypeEngine[Any]) -> None:
        super().__init__(name, kind, NullType())
        self.kind: Final = kind

    def reader(self, dialect: Dialect, sql_type: Any) -> Taken:
        """Return the function that makes a value of what the driver gives.

        What such a function raises can hold the value, so it is called by ourselves and not by SQLAlchemy.
        """
        return self.kind.dialect_impl(dialect).result_processor(dialect, sql_type) or _as_it_is

    def write(self, value: Any) -> Any:
        """Return the value."""
        return value

    def exact(self, dialect: Dialect, column: Column[Any]) -> ColumnElement[Any]:
        """Return what no collation and no rounding makes equal: text, bytes, or what SQLite stores."""
        if dialect.name in _MYSQL:
            return cast(column, LargeBinary)
        if dialect.name == "sqlite":
            return column.collate("BINARY")
        return cast(column, Text).collate("C")


def _as_it_is(value: Any) -> Any:
    return value
