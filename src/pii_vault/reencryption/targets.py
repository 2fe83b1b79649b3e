"""What is to be sealed anew: the tables with encrypted columns, and when a value there is not sealed as wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, MetaData, Table, or_

from ..envelope import Header
from ..errors import ConfigurationError
from ..orm.encrypted_type import EncryptedType
from ..orm.readiness import lacking, under_older


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that could not be sealed anew. It stays as it is.

    Attributes:
        column: ``table.column``.
        key: The row's primary key, as text.
        why: What is wrong, without the value.
    """

    column: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Target:
    """A table with encrypted columns that are to be sealed anew.

    Attributes:
        table: The table.
        key: Its primary key's columns.
        kinds: The columns' types, by their names in the database.
    """

    table: Table
    key: tuple[Column[Any], ...]
    kinds: dict[str, EncryptedType[Any]]

    @property
    def name(self) -> str:
        """Its name, with its schema if it has one."""
        return self.table.fullname


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a value is to be sealed with; one that is not is sealed anew.

    Attributes:
        generations: Of index keys: its tokens, if its column declares any.
        version: Of data keys, or a later one: what somebody has sealed with a newer key meanwhile is never sealed back.
            None for any.
    """

    generations: frozenset[int]
    version: int | None = None

    def lacks(self, stored: Any, kind: EncryptedType[Any]) -> ColumnElement[bool]:
        """Return the condition that a stored value of a column is not."""
        conditions: list[ColumnElement[bool]] = []
        if kind.slots:
            conditions.append(lacking(stored, len(kind.slots), self.generations))
        if self.version is not None:
            conditions.append(under_older(stored, self.version))
        return or_(*conditions)

    def is_lacking(self, header: Header, kind: EncryptedType[Any]) -> bool:
        """Say the same of one that was read."""
        if self.version is not None and header.version < self.version:
            return True
        tokens = len(kind.slots)
        return tokens > 0 and not (header.tokens >= tokens and header.index_generation in self.generations)


def encrypted_tables(metadata: MetaData) -> list[Target]:
    """Return the tables with encrypted columns.

    Raises:
        ConfigurationError: there is none, or one of them has no primary key.
    """
    return _targets(metadata, lambda _kind: True, "the metadata holds no encrypted column")


def searched_tables(metadata: MetaData) -> list[Target]:
    """Return the tables whose columns declare tokens, with these columns.

    Raises:
        ConfigurationError: there is none, or one of them has no primary key.
    """
    nothing = "no encrypted column of the metadata declares an index or tokens"
    return _targets(metadata, lambda kind: bool(kind.slots), nothing)


def _targets(metadata: MetaData, takes: Callable[[EncryptedType[Any]], bool], nothing: str) -> list[Target]:
    found = []
    for each in metadata.sorted_tables:
        encrypted = {mine.name: mine.type for mine in each.columns if isinstance(mine.type, EncryptedType)}
        kinds = {name: kind for name, kind in encrypted.items() if takes(kind)}
        if kinds:
            found.append(Target(each, tuple(each.primary_key.columns), kinds))
    if not found:
        raise ConfigurationError(nothing, hint="name the declarative base or the MetaData of the application's models")
    for target in found:
        if not target.key:
            raise ConfigurationError(
                f"table {target.name!r} has no primary key, so its rows cannot be gone through one after the other",
                hint="give it one, or write its rows anew yourself",
            )
    return found
