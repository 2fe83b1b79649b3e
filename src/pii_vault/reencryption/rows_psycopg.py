"""The same on PostgreSQL through psycopg: a batch is written by one UPDATE that joins the table to arrays.

Arrays are sent as PostgreSQL keeps them. psycopg would write them as text, element by element, and that takes longer
than the UPDATE itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final

from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Update,
    bindparam,
    cast,
    event,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.types import NullType, UserDefinedType

from .rows import Change, Rows
from .targets import Target

_BYTEA: Final = 17

_AS_SENT: Final[dict[int, Callable[[Any], bytes]]] = {
    20: struct.Struct(">q").pack,
    21: struct.Struct(">h").pack,
    23: struct.Struct(">i").pack,
    2950: attrgetter("bytes"),
}
"""How keys are sent, by type: bigint, smallint, integer, uuid. Of other types psycopg makes the array."""

_READ_AS_BYTES: Final = frozenset((*_AS_SENT, 16, _BYTEA, 25, 1042, 1043, 1082, 1114, 1184, 1700))
"""Types of keys that psycopg can read in their binary form, boolean, bytea, text, character, varchar, date, timestamp
with and without time zone and numeric as well. Of others it would return bytes."""

_HEAD: Final = struct.Struct(">iiIii")
"""Of an array: dimensions, whether there are NULLs, the elements' type, how many there are, the first one's number."""

_LENGTH: Final = struct.Struct(">i").pack


class BinaryArray:
    """An array in PostgreSQL's binary form.

    Args:
        element: The type of its elements, by its number.
        elements: They, each in its binary form.
    """

    __slots__ = ("sent",)

    def __init__(self, element: int, elements: Sequence[bytes]) -> None:
        lengths = map(_LENGTH, map(len, elements))
        head = _HEAD.pack(1, 0, element, len(elements), 1)
        self.sent: Final = head + b"".join(chain.from_iterable(zip(lengths, elements, strict=True)))


class _BinaryArrayDumper(Dumper):
    format = Format.BINARY  # of which type it is, the statement says

    def dump(self, obj: BinaryArray) -> bytes:
        return obj.sent


class _ArrayOf(UserDefinedType[Any]):
    """An array of a type that is known by PostgreSQL's name for it."""

    cache_ok = True

    def __init__(self, element: str) -> None:
        self.element = element

    def get_col_spec(self, **_kw: Any) -> str:
        return f"{self.element}[]"


class PsycopgRows(Rows):
    """The rows of one table, through psycopg."""

    side_by_side = True

    def __init__(self, engine: Engine, target: Target, mine: ColumnElement[bool] | None = None) -> None:
        # Each statement is a transaction of its own, and there is nothing to wait for around it.
        super().__init__(engine.execution_options(isolation_level="AUTOCOMMIT"), target, mine)
        self._key_types: list[tuple[int, str]] = []
        self._statements: dict[tuple[str, ...], Update] = {}

    def _fetch(self, query: Select[Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            if not self._key_types:
                self._key_types = self._look_up_key_types(connection)
            if all(oid in _READ_AS_BYTES for oid, _ in self._key_types):
                event.listen(connection, "before_cursor_execute", _read_as_bytes)
            with connection.execute(query) as result:
                cursor: Any = result.cursor
                return list(cursor.fetchall())  # as they come: there are no types that would take them up once more

    def _as_bytes(self, column: Sequence[Any]) -> Sequence[Any]:
        return column  # psycopg gives bytes, and nothing else stands in a bytea

    def _look_up_key_types(self, connection: Connection) -> list[tuple[int, str]]:
        cursor: Any = connection.execute(select(*self._key).limit(0)).cursor
        oids = [each.type_code for each in cursor.description]
        names = connection.execute(select(*(func.format_type(literal(oid), -1) for oid in oids))).one()
        return list(zip(oids, names, strict=True))

    def _update(self, connection: Connection, change: Change) -> int:
        driver: Any = connection.connection.driver_connection
        driver.adapters.register_dumper(BinaryArray, _BinaryArrayDumper)
        if change.names not in self._statements:
            self._statements[change.names] = self._statement(change.names)
        keys = zip(self._key_types, zip(*change.keys, strict=True), strict=True)
        arrays: dict[str, Any] = {f"key_{i}": _sent(oid, each) for i, ((oid, _), each) in enumerate(keys)}
        for when, columns in (("before", change.before), ("after", change.after)):
            arrays |= {f"{when}_{i}": BinaryArray(_BYTEA, each) for i, each in enumerate(columns)}
        return max(connection.execute(self._statements[change.names], arrays).rowcount, 0)

    def _statement(self, names: tuple[str, ...]) -> Update:
        key = {f"key_{i}": element for i, (_, element) in enumerate(self._key_types)}
        before, after = ({f"{when}_{i}": "bytea" for i in range(len(names))} for when in ("before", "after"))
        arrays = key | before | after
        sent = [cast(bindparam(name, type_=NullType()), _ArrayOf(element)) for name, element in arrays.items()]
        columns = [Column(name, NullType()) for name in arrays]
        called = "new" if self._table.name != "new" else "newer"  # a statement cannot call two things the same
        new = func.unnest(*sent).table_valued(*columns).render_derived(called).c
        same = [column == new[name] for column, name in zip(self._key, key, strict=True)]
        same += [self._sealed[column] == new[name] for column, name in zip(names, before, strict=True)]
        return update(self._table).where(*same).values(dict(zip(names, (new[name] for name in after), strict=True)))


def _sent(oid: int, values: Sequence[Any]) -> Any:
    as_sent = _AS_SENT.get(oid)
    return list(values) if as_sent is None else BinaryArray(oid, [as_sent(value) for value in values])


def _read_as_bytes(_connection: Any, cursor: Any, _sql: str, _parameters: Any, _context: Any, _many: bool) -> None:
    cursor.format = Format.BINARY
