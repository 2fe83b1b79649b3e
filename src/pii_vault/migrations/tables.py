"""What a database has of a table: its columns, its primary key, and what is built over one of its columns."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, inspect
from sqlalchemy.types import TypeEngine, _Binary

from ..errors import ConfigurationError
from . import sqlite
from .parts import named_token
from .transactions import MYSQL


@dataclass(frozen=True, slots=True)
class Over:
    """An index or a constraint over a column.

    Attributes:
        name: Its name; None where it has none.
        what: What it is, in words.
        is_constraint: Whether it is dropped as a constraint.
        alone: Whether it is a constraint over this column and no other one.
    """

    name: str | None
    what: str
    is_constraint: bool
    alone: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.name!r}" if self.name else f"a {self.what} without a name"


class FoundTable:
    """A table as it is in the database.

    Args:
        connection: On the database.
        name: Its name.
        schema: Its schema, or None.

    Raises:
        ConfigurationError: there is none.
    """

    def __init__(self, connection: Connection, name: str, schema: str | None) -> None:
        schemas = connection.get_execution_options().get("schema_translate_map") or {}
        self.name: Final = name
        self.schema: Final = schemas.get(schema, schema)
        self._connection: Final = connection
        self._inspector: Final = inspect(connection)
        if not self._inspector.has_table(name, self.schema):
            raise ConfigurationError(f"there is no table {name!r} in the database")
        self.columns: Final = {str(each["name"]): each for each in self._inspector.get_columns(name, self.schema)}
        self.key: Final = tuple(self._inspector.get_pk_constraint(name, self.schema).get("constrained_columns") or ())

    def is_binary(self, column: str) -> bool:
        """Say whether a column holds bytes."""
        return is_binary(self.columns[column]["type"])

    def over(self, column: str) -> list[Over]:
        """Return the indexes and constraints over a column, without keys."""
        found = [*self._indexes(column), *self._unique(column), *self._checks(column)]
        return list({(each.name or each): each for each in found}.values())

    def keys(self, column: str) -> list[str]:
        """Return which keys a column is part of, in words: those of this table and of others."""
        found = ["the primary key"] if column in self.key else []
        for each in self._inspector.get_foreign_keys(self.name, self.schema):
            if column in each["constrained_columns"]:
                found.append(f"the foreign key {each['name'] or 'to ' + str(each['referred_table'])!r}")
        return found

    def made_of(self, column: str) -> list[str]:
        """Return the generated columns that the database makes of a column."""
        computed = {name: each["computed"]["sqltext"] for name, each in self.columns.items() if "computed" in each}
        return [name for name, sql in computed.items() if mentions(str(sql), column)]

    def _indexes(self, column: str) -> list[Over]:
        if self._connection.dialect.name == "sqlite":
            found = sqlite.statements(self._connection, self.name, self.schema, "index")
            return [
                Over(name, "index", False) for name, sql in found.items() if mentions(sql.partition("(")[2], column)
            ]
        return [
            Over(each["name"], "index", False)
            for each in self._inspector.get_indexes(self.name, self.schema)
            if "duplicates_constraint" not in each and _is_over(each, column)
        ]

    def _unique(self, column: str) -> list[Over]:
        if self._connection.dialect.name in MYSQL:
            return []  # they are its indexes
        return [
            Over(each["name"], "unique constraint", True, alone=each["column_names"] == [column])
            for each in self._inspector.get_unique_constraints(self.name, self.schema)
            if column in each["column_names"]
        ]

    def _checks(self, column: str) -> list[Over]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what cannot be read
            checks = self._inspector.get_check_constraints(self.name, self.schema)
        others = [name for name in self.columns if name != column]
        return [
            Over(
                each["name"], "check constraint", True, alone=not any(mentions(each["sqltext"], one) for one in others)
            )
            for each in checks
            if mentions(each["sqltext"], column)
        ]


def is_binary(kind: TypeEngine[Any]) -> bool:
    """Say whether a type's values are bytes."""
    return isinstance(kind, _Binary)


def mentions(sql: str, name: str) -> bool:
    """Say whether SQL names a column: better once too often than not."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE) is not None


def _is_over(index: Any, column: str) -> bool:
    names = [named_token(name) or (name,) for name in index["column_names"] if name]
    if any(name[0] == column for name in names):
        return True
    options = index.get("dialect_options") or {}
    more = (*(index.get("expressions") or ()), *(options.get("postgresql_include") or ()))
    return any(mentions(str(text), column) for text in (*more, options.get("postgresql_where") or ""))
