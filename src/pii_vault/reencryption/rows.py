"""Read rows in order of their primary key, and write those that nobody has changed since: on any database.

Keys and sealed bytes pass as the driver gives and takes them. No type of the application's takes part, and nothing of
its ORM: no event, no ``onupdate``, no version counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    MetaData,
    Select,
    Table,
    bindparam,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.types import NullType

from .targets import Target

Key = tuple[Any, ...]
"""A row's primary key, as the driver gives it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a table, in order of its primary key.

    Attributes:
        after: The key that it begins after; None for the first row.
        upto: The key that it ends with; None for the last row.
    """

    after: Key | None = None
    upto: Key | None = None


WHOLE: Final = Span()


@dataclass(frozen=True, slots=True)
class Read:
    """Rows that were read.

    Attributes:
        keys: Their primary keys, in order.
        columns: For each sealed column, what they hold: bytes, or None.
    """

    keys: Sequence[Key]
    columns: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """Rows that are changed in the same columns.

    Attributes:
        names: The columns.
        keys: The rows' primary keys.
        before: For each column, what the rows held when they were read.
        after: For each column, what they are to hold.
    """

    names: tuple[str, ...]
    keys: Sequence[Key]
    before: Sequence[Sequence[bytes]]
    after: Sequence[Sequence[bytes]]

    def part(self, rows: slice) -> Change:
        """Return some of the rows."""
        before, after = ([each[rows] for each in columns] for columns in (self.before, self.after))
        return Change(self.names, self.keys[rows], before, after)


class Rows:
    """The rows of one table.

    Args:
        engine: On the application's database.
        target: The table.
        mine: The condition that a row can hold what is looked for, if an index may help with it.
    """

    side_by_side = False
    """Whether rows can be read while others are written."""

    def __init__(self, engine: Engine, target: Target, mine: ColumnElement[bool] | None = None) -> None:
        self._engine: Final = engine
        # Plain columns by name: what is read and written here is sealed.
        self._sealed: Final = {name: Column(name, NullType()) for name in target.kinds}
        self._key: Final = [Column(each.name, NullType()) for each in target.key]
        # A table of its own: an engine's schema map is followed only for a Table.
        columns: list[Column[Any]] = [*self._key, *self._sealed.values()]
        self._table: Final = Table(target.table.name, MetaData(), *columns, schema=target.table.schema)

        self._mine: Final = () if mine is None else (mine,)

    def end(self, span: Span, rows: int) -> Key | None:
        """Return the key with which so many rows of a piece end; None when it has fewer.

        With both ends known a database finds the rows between them in the index of the primary key. It cannot know how
        many of these meet a condition on their headers, and would else look through the whole table for each batch.
        """
        query: Any = select(*self._key).where(*self._mine, *self._within(span)).order_by(*self._key)
        found = self._fetch(query.offset(rows - 1).limit(1))
        return tuple(found[0]) if found else None

    def read(self, which: ColumnElement[bool] | None, span: Span, limit: int) -> Read:
        """Return the first rows of a piece of the table, those that meet a condition if there is one."""
        chosen = () if which is None else (which,)
        query: Any = select(self._table).where(*chosen, *self._mine, *self._within(span))
        rows = self._fetch(query.order_by(*self._key).limit(limit))
        size = len(self._key)
        columns = list(zip(*rows, strict=True)) or [()] * (size + len(self._sealed))
        return Read(list(zip(*columns[:size], strict=True)), [self._as_bytes(each) for each in columns[size:]])

    def ends(self, which: ColumnElement[bool], rows: int) -> list[Key]:
        """Return the keys that divide the rows that meet a condition into pieces of so many."""
        numbered = func.row_number().over(order_by=self._key).label("pii_vault_number")
        inner = select(*self._key, numbered).where(which, *self._mine).subquery()
        query: Any = select(*(inner.c[each.name] for each in self._key)).where(inner.c.pii_vault_number % rows == 0)
        return [tuple(each) for each in self._fetch(query.order_by(inner.c.pii_vault_number))]

    def write(self, change: Change) -> int:
        """Write rows, in one transaction, where they still hold what was read; return how many."""
        with self._engine.begin() as connection:
            return self._update(connection, change)

    def _within(self, span: Span) -> list[ColumnElement[bool]]:
        limits: list[ColumnElement[bool]] = []
        first, whole = self._key[0], self._key[0] if len(self._key) == 1 else tuple_(*self._key)
        if span.after is not None:
            limits.append(whole > _literal(span.after))
        if span.upto is not None:
            limits.append(whole <= _literal(span.upto))
        if len(self._key) > 1:  # some databases use an index for this only
            limits += [first >= _literal(span.after[:1])] if span.after is not None else []
            limits += [first <= _literal(span.upto[:1])] if span.upto is not None else []
        return limits

    def _fetch(self, query: Select[Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def _as_bytes(self, column: Sequence[Any]) -> Sequence[Any]:
        """Return what a column holds as bytes. SQLite keeps text where somebody wrote text: none of that is sealed."""
        return [bytes(each) if isinstance(each, bytes | bytearray | memoryview) else None for each in column]

    def _update(self, connection: Connection, change: Change) -> int:
        places = range(len(change.names))
        key = [each == bindparam(f"key_{i}", type_=NullType()) for i, each in enumerate(self._key)]
        same = [self._sealed[change.names[i]] == bindparam(f"before_{i}", type_=LargeBinary) for i in places]
        new = {change.names[i]: bindparam(f"after_{i}", type_=LargeBinary) for i in places}
        names = [f"key_{i}" for i in range(len(key))] + [f"{when}_{i}" for when in ("before", "after") for i in places]
        values = zip(*zip(*change.keys, strict=True), *change.before, *change.after, strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in values]
        result = connection.execute(update(self._table).where(*key, *same).values(new), rows)
        return max(result.rowcount, 0)


def _literal(key: Key) -> Any:
    values = [literal(value, NullType()) for value in key]
    return values[0] if len(values) == 1 else tuple_(*values)


def rows_of(engine: Engine, target: Target, mine: ColumnElement[bool] | None = None) -> Rows:
    """Return the rows of a table, in the fastest way that its database and driver have."""
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg" and not engine.dialect.is_async:
        from .rows_psycopg import PsycopgRows

        return PsycopgRows(engine, target, mine)
    return Rows(engine, target, mine)
