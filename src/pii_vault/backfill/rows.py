"""Read two columns of a table side by side, in order of the primary key, and write one where the other still stands.

What is read is compared by the database when it is written (compare and swap), so what somebody writes meanwhile is
never lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    MetaData,
    Table,
    bindparam,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.types import NullType

from .sides import Side, Taken

Key = tuple[Any, ...]
"""A row's primary key, as the driver gives it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the columns are.

    Attributes:
        table: The table's name.
        schema: Its schema, or None.
        key: The names of its primary key's columns.
        tenant_column: The name of the column that says whose row it is; None where all rows are one tenant's.
    """

    table: str
    schema: str | None
    key: tuple[str, ...]
    tenant_column: str | None

    @property
    def name(self) -> str:
        """The table's name, with its schema if it has one."""
        return f"{self.schema}.{self.table}" if self.schema else self.table


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read. It shows its key and no value: a traceback shows the locals of every frame.

    Attributes:
        key: Its primary key.
        owner: What its tenant column holds; None where there is none.
        source: What the column holds that is read.
        exact: The same, in the form in which it is compared.
        target: What the column holds that is written.
    """

    key: Key
    owner: Any
    source: Any = field(repr=False)
    exact: Any = field(repr=False)
    target: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Read:
    """Rows that were read, in order of their keys.

    Attributes:
        rows: They.
        take: Makes a value of what stands in the column that is read.
        take_target: Likewise of the column that is written.
    """

    rows: Sequence[Row]
    take: Taken
    take_target: Taken


class Change:
    """Rows and what is to stand in them. It shows neither.

    Args:
        rows: The rows.
        values: What is to be bound for them.
    """

    __slots__ = ("rows", "values")

    def __init__(self, rows: Sequence[Row] = (), values: Sequence[Any] = ()) -> None:
        self.rows: Final = list(rows)
        self.values: Final = list(values)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Row, value: Any) -> None:
        """Add a row."""
        self.rows.append(row)
        self.values.append(value)

    def part(self, places: slice) -> Change:
        """Return some of the rows."""
        return Change(self.rows[places], self.values[places])


class Rows:
    """The rows of one table.

    Args:
        dialect: Of its database.
        place: Where they are.
        source: The column that is read.
        target: The column that is written.
    """

    def __init__(self, dialect: Dialect, place: Place, source: Side, target: Side) -> None:
        self._dialect: Final = dialect
        self._source: Final = source
        self._target: Final = target
        names = dict.fromkeys((*place.key, *([place.tenant_column] if place.tenant_column is not None else ())))
        plain: dict[str, Column[Any]] = {name: Column(name, NullType()) for name in names}
        self._key: Final = [plain[name] for name in place.key]
        self._owner: Final = plain[place.tenant_column] if place.tenant_column is not None else None
        # A table of its own: a connection's schema map is followed only for a Table.
        self._read: Final[Column[Any]] = Column(source.name, source.selected)
        self._new: Final[Column[Any]] = self._read if target is source else Column(target.name, target.selected)
        sides = dict.fromkeys((self._read, self._new))
        self._table: Final = Table(place.table, MetaData(), *plain.values(), *sides, schema=place.schema)

        self.any: Final[ColumnElement[bool]] = self._read.is_not(None)
        self.written: Final[ColumnElement[bool]] = self._new.is_not(None)
        self.both: Final[ColumnElement[bool]] = self.any & self.written
        self.stray: Final[ColumnElement[bool]] = self._read.is_(None) & self.written
        self.left: Final[ColumnElement[bool]] = self.any & self._new.is_(None)
        self._exact: Final = source.exact(dialect, self._read)
        self._update: Final = self._written()

    def read(
        self, connection: Connection, which: ColumnElement[bool], after: Key | None, upto: Key | None, limit: int
    ) -> Read:
        """Return the first rows behind a key, and up to another one, that meet a condition."""
        owner: Any = self._owner if self._owner is not None else literal(None, NullType())
        columns: list[Any] = [*self._key, owner, self._read, self._exact, self._new]
        query: Any = select(*(each.label(f"pii_vault_{number}") for number, each in enumerate(columns)))
        result = connection.execute(query.where(which, *self._between(after, upto)).order_by(*self._key).limit(limit))
        size = len(self._key)
        types: list[Any] = [each[1] for each in result.cursor.description] if result.cursor is not None else []
        rows = [Row(tuple(each[:size]), *each[size:]) for each in result]
        take, take_target = (
            side.reader(self._dialect, types[place] if types else None)
            for side, place in ((self._source, size + 1), (self._target, size + 3))
        )
        return Read(rows, take, take_target)

    def write(self, connection: Connection, change: Change, *, again: bool) -> int:
        """Write rows that still hold what was read; return how many.

        Args:
            connection: In a transaction.
            change: The rows, and what is to stand in them.
            again: Whether something else may stand there already.
        """
        parameters = [
            {**{f"key_{i}": each for i, each in enumerate(row.key)}, "exact": row.exact, "new": value}
            for row, value in zip(change.rows, change.values, strict=True)
        ]
        statement = self._update if again else self._update.where(self._new.is_(None))
        return max(connection.execute(statement, parameters).rowcount, 0)

    def clear(self, connection: Connection) -> None:
        """Write NULL where NULL is read by now."""
        connection.execute(update(self._table).where(self.stray).values({self._target.name: None}))

    def count(self, connection: Connection, which: ColumnElement[bool]) -> int:
        """Return how many rows meet a condition."""
        return int(connection.scalar(select(func.count()).select_from(self._table).where(which)) or 0)

    def wipe(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Write NULL into the column that is read, in rows that hold in both what was read; return in how many."""
        parameters = [
            {**{f"key_{i}": each for i, each in enumerate(row.key)}, "exact": row.exact, "found": row.target}
            for row in rows
        ]
        found = bindparam("found", type_=self._target.selected)
        statement = update(self._table).where(*self._mine(), self._new == found).values({self._read.name: None})
        return max(connection.execute(statement, parameters).rowcount, 0)

    def some(self, connection: Connection, which: ColumnElement[bool], limit: int) -> list[Key]:
        """Return the keys of the first rows that meet a condition."""
        query: Any = select(*self._key).where(which).order_by(*self._key).limit(limit)
        return [tuple(each) for each in connection.execute(query)]

    def owners(self, connection: Connection) -> list[tuple[Any, int]]:
        """Return whose rows hold values, and how many."""
        if self._owner is None:
            return [(None, self.count(connection, self.any))]
        query = select(self._owner, func.count()).where(self.any).group_by(self._owner)
        return [(owner, int(count)) for owner, count in connection.execute(query)]

    def keys(self, connection: Connection, owner: Any, limit: int) -> list[Key]:
        """Return the keys of an owner's first rows that hold values."""
        assert self._owner is not None
        whose = self._owner.is_(None) if owner is None else self._owner == literal(owner, NullType())
        query: Any = select(*self._key).where(self.any, whose).order_by(*self._key).limit(limit)
        return [tuple(each) for each in connection.execute(query)]

    def _written(self) -> Any:
        new = bindparam("new", type_=self._target.bound)
        # Under the name alone: the column here has the type that it is read with.
        return update(self._table).where(*self._mine()).values({self._target.name: new})

    def _mine(self) -> list[ColumnElement[bool]]:
        """Return the conditions that it is a row that was read, and holds in the column that is read what it did."""
        key = [each == bindparam(f"key_{i}", type_=NullType()) for i, each in enumerate(self._key)]
        return [*key, self._exact == bindparam("exact", type_=self._exact.type)]

    def _between(self, after: Key | None, upto: Key | None) -> list[ColumnElement[bool]]:
        whole: Any = self._key[0] if len(self._key) == 1 else tuple_(*self._key)
        limits: list[ColumnElement[bool]] = []
        if after is not None:
            limits.append(whole > _literal(after))
        if upto is not None:
            limits.append(whole <= _literal(upto))
        if len(self._key) > 1:  # some databases use an index for this only
            limits += [self._key[0] >= _literal(after[:1])] if after is not None else []
            limits += [self._key[0] <= _literal(upto[:1])] if upto is not None else []
        return limits


def _literal(key: Key) -> Any:
    values = [literal(value, NullType()) for value in key]
    return values[0] if len(values) == 1 else tuple_(*values)
