"""Which columns of a table are written together: a plaintext column, and the sealed one that takes over its values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Table
from sqlalchemy.sql.selectable import FromClauseAlias

from ..errors import ConfigurationError
from .encrypted_type import EncryptedType

NOT_GIVEN: Final = object()
"""In place of a value, where there is none."""


class Pair(NamedTuple):
    """A plaintext column and the sealed one that takes over its values.

    Attributes:
        plaintext: The plaintext column's key.
        sealed: The sealed column's key.
        kind: The sealed column's type.
        names: What both are called, for messages.
        default: The value of an INSERT that gives neither.
        to_add: The columns that do not bring this default themselves, by key.
    """

    plaintext: str
    sealed: str
    kind: EncryptedType[Any]
    names: str
    default: Any = NOT_GIVEN
    to_add: tuple[str, ...] = ()

    def other(self, key: str) -> str:
        """Return the key of the other column."""
        return self.sealed if key == self.plaintext else self.plaintext

    def same(self, one: Any, other: Any) -> bool:
        """Say whether two values are stored as one."""
        try:
            return self.kind.compare_values(one, other)
        except Exception:  # noqa: BLE001 - whatever it is, it may hold a value; it is no equality
            return False


def base_table(source: Any) -> Table | None:
    """Return the table that a statement writes to, also under another name; None for a join."""
    while isinstance(source, FromClauseAlias):
        source = source.element
    return source if isinstance(source, Table) else None


def adopted_column(kind: EncryptedType[Any], columns: Iterable[Any]) -> Any:
    """Return the plaintext column that a type adopts, of the columns beside it.

    Raises:
        ConfigurationError: there is none, or it is encrypted itself.
    """
    found = next((each for each in columns if each.name == kind.adopts), None)
    if found is None:
        raise ConfigurationError(
            f"{kind.column_name()} adopts {kind.adopts!r}, and its table has no such column",
            hint="name the plaintext column as the database does; when it is dropped, leave out adopting()",
        )
    if isinstance(found.type, EncryptedType):
        raise ConfigurationError(f"{kind.column_name()} adopts {kind.adopts!r}, which is an encrypted column itself")
    return found


def pairs_of(table: Any) -> tuple[Pair, ...]:
    """Return the columns of a table that are written together.

    Raises:
        ConfigurationError: what is declared cannot be kept: somebody else than Python would write one of them.
    """
    adopting = [each for each in table.columns if getattr(each.type, "adopts", None) is not None]
    pairs = tuple(_pair(sealed, adopted_column(sealed.type, table.columns)) for sealed in adopting)
    if len({pair.plaintext for pair in pairs}) < len(pairs):
        raise ConfigurationError(f"two columns of {table.name!r} adopt the same one")
    return pairs


def _pair(sealed: Column[Any], plaintext: Column[Any]) -> Pair:
    columns = (plaintext, sealed)
    for column in columns:
        default = column.default
        made_elsewhere = (column.server_default, column.server_onupdate, column.onupdate, column.computed)
        if any(each is not None for each in made_elsewhere) or not (default is None or default.is_scalar):
            raise ConfigurationError(
                f"{column.table.name}.{column.name} is being adopted, and is given values that its other column would "
                "not get",
                hint="take its default and onupdate away until that is done; a constant default of Python's may stay",
            )
    kind: Any = sealed.type
    pair = Pair(plaintext.key, sealed.key, kind, f"{_name(plaintext)} and {_name(sealed)}")
    with_default = [column for column in columns if column.default is not None]
    if not with_default:
        return pair
    arguments: list[Any] = [getattr(column.default, "arg", None) for column in with_default]
    if not pair.same(arguments[0], arguments[-1]):
        raise ConfigurationError(f"{pair.names} are being made one, and have two defaults")
    lacking = tuple(column.key for column in columns if column.default is None)
    return pair._replace(default=arguments[0], to_add=lacking)


def _name(column: Any) -> str:
    return f"{column.table.name}.{column.name}"
