"""Read off headers in SQL whose keys sealed stored values. No value is opened, and none leaves the database.

The rules of the format stand in `envelope`, and SQL repeats two of them: which first bytes there are, and how long a
value has to be. The rest is read off the 10 bytes of the header, which is what values are grouped by.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    LargeBinary,
    MetaData,
    Select,
    Table,
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    select,
    tablesample,
    union_all,
)

from ..envelope import HEADER_BYTES, MAX_TOKENS, OVERHEAD_BYTES, SUITE_COLUMN, SUITE_ROW, TOKEN_BYTES, parse
from ..errors import ConfigurationError, FormatError
from ..orm.encrypted_type import EncryptedType
from ..orm.header_parts import FIRST, HEADER, KEY, KEYSET, TOKENS, part

_SUITES: Final = [bytes((each,)) for each in (SUITE_COLUMN, SUITE_ROW)]
_NO_TEXT: Final = b"\xf8"
"""From this byte on none begins text (docs/format.md, section 4)."""

_LONGEST: Final = OVERHEAD_BYTES + MAX_TOKENS * TOKEN_BYTES

Key = tuple[int, int]
"""Keyset id and version."""


class Other(StrEnum):
    """What stored values are that no data key of the key store has sealed.

    `plaintext` was never sealed; `malformed` begins as a sealed value and is none; `unsupported` is of a format that
    this release does not know.
    """

    NULL = "null"
    PLAINTEXT = "plaintext"
    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_KEYSET = "unknown_keyset"


# One byte each: a header has ten.
_MARKS: Final = {Other.PLAINTEXT: b"p", Other.MALFORMED: b"m", Other.UNSUPPORTED: b"u"}
_MARKED: Final = {mark: other for other, mark in _MARKS.items()}


def sealed_tables(metadata: MetaData) -> list[Table]:
    """Return the tables with encrypted columns; of each only these, as the plain bytes that the database holds.

    Raises:
        ConfigurationError: the metadata holds no encrypted column.
    """
    found = []
    for each in metadata.tables.values():
        names = [mine.name for mine in each.columns if isinstance(mine.type, EncryptedType)]
        if names:
            # Tables of their own, and no table(): an engine's schema map is followed only for a Table.
            columns = [Column(name, LargeBinary) for name in names]
            found.append(Table(each.name, MetaData(), *columns, schema=each.schema))
    if not found:
        raise ConfigurationError(
            "the metadata holds no encrypted column, so nothing can be counted",
            hint="name the declarative base or the MetaData of the application's models",
        )
    return found


def under_key(stored: ColumnElement[bytes], key: Key) -> ColumnElement[bool]:
    """Return the condition that stored bytes name a data key."""
    return part(stored, KEY) == literal(key[0].to_bytes(4, "big") + key[1].to_bytes(2, "big"), LargeBinary)


def of_keyset(stored: ColumnElement[bytes], keyset_id: int) -> ColumnElement[bool]:
    """Return the condition that stored bytes begin as a sealed value and name a keyset."""
    return and_(_begins_sealed(stored), part(stored, KEYSET) == literal(keyset_id.to_bytes(4, "big"), LargeBinary))


def has_tokens(stored: ColumnElement[bytes]) -> ColumnElement[bool]:
    """Return the condition that stored bytes carry search tokens."""
    return part(stored, TOKENS) != literal(b"\0", LargeBinary)


def grouped(
    table: Table, keyset_id: int | None, percent: float, seed: int, only: ColumnElement[bool] | None = None
) -> Any:
    """Return one query that counts the values of all columns of a table.

    Its rows are a column's place, what its values have in common (`read_group`), and how many they are.

    Args:
        table: Of `sealed_tables`.
        keyset_id: Count only what a tenant's keys have sealed; None for everything.
        percent: How much of the table's pages to look at; a sample is possible on PostgreSQL only.
        seed: Which sample: all columns are looked at on the same pages.
        only: In which rows; None for all.
    """
    queries = []
    for place, each in enumerate(table.columns):
        source: FromClause = table
        if percent < 100:
            source = tablesample(table, func.system(percent), seed=literal(seed))
        stored = source.columns[each.key]
        what: Select[Any] = select(_group(stored).label("what"))
        if keyset_id is not None:
            what = what.where(of_keyset(stored, keyset_id))
        if only is not None:
            what = what.where(only)
        # Grouped by a name: PostgreSQL would not see that an expression with parameters is the same one twice.
        inner = what.subquery()
        chosen = select(literal_column(str(place)).label("place"), inner.c.what, func.count().label("count"))
        queries.append(chosen.group_by(inner.c.what))
    return union_all(*queries) if len(queries) > 1 else queries[0]


def read_group(what: bytes | None) -> Key | Other:
    """Return which key sealed a group of values, or what else they are."""
    if what is None:
        return Other.NULL
    if len(what) < HEADER_BYTES:
        return _MARKED[what]
    try:
        header = parse(what.ljust(_LONGEST, b"\0"))
    except FormatError:
        return Other.MALFORMED
    return header.keyset_id, header.version


def _group(stored: ColumnElement[bytes]) -> ColumnElement[Any]:
    """Return the header of what can be a sealed value, and else one mark for all: there is no group for each text."""
    least = case(
        {bytes((count,)): OVERHEAD_BYTES + count * TOKEN_BYTES for count in range(MAX_TOKENS + 1)},
        value=part(stored, TOKENS),
    )
    begins = _begins_sealed(stored)
    marks = {other: literal(mark, LargeBinary) for other, mark in _MARKS.items()}
    # On SQLite text is below all bytes, so that it is plaintext whatever it begins with.
    return case(
        (stored.is_(None), null()),
        (and_(begins, func.length(stored) >= least), part(stored, HEADER)),
        (begins, marks[Other.MALFORMED]),
        (part(stored, FIRST) >= _NO_TEXT, marks[Other.UNSUPPORTED]),
        else_=marks[Other.PLAINTEXT],
    )


def _begins_sealed(stored: ColumnElement[bytes]) -> ColumnElement[bool]:
    return part(stored, FIRST).in_(_SUITES)
