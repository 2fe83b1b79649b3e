"""The indexes over tokens that a SQLite database has. SQLAlchemy does not read indexes over expressions from there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Index, text
from sqlalchemy.schema import CreateIndex

from .parts import Part, is_token, token_in

_NAME: Final = r'(?:"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|[^\s"`\[(]+)'
_CREATE: Final = re.compile(
    rf"\s*CREATE\s+(UNIQUE\s+)?INDEX\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:{_NAME}\.)?{_NAME}\s+ON\s+{_NAME}\s*\((.*)",
    re.IGNORECASE | re.DOTALL,
)
_WORD: Final = re.compile(rf"{_NAME}")
_QUOTES: Final = '"`[]'


@dataclass(frozen=True, slots=True)
class Found:
    """An index, as its ``CREATE INDEX`` says.

    Attributes:
        unique: Whether it is unique.
        over: What it is over, in one spelling.
        rest: What stands behind that, such as a condition.
        parts: What it is over; None when it has no token, or something that is neither column nor token.
    """

    unique: bool
    over: tuple[str, ...]
    rest: str
    parts: tuple[Part, ...] | None

    def same(self, other: Found) -> bool:
        """Tell whether two say the same."""
        return (self.unique, self.over, self.rest) == (other.unique, other.over, other.rest)


def indexes(connection: Connection, table: str, schema: str | None) -> dict[str, Found]:
    """Return the indexes of a table by name, without those that a constraint has made."""
    return {name: read(sql) for name, sql in statements(connection, table, schema, "index").items()}


def statements(connection: Connection, table: str, schema: str | None, kind: str) -> dict[str, str]:
    """Return the statements that make a table's indexes or triggers, by name."""
    quote = connection.dialect.identifier_preparer.quote
    source = f"{quote(schema)}.sqlite_master" if schema else "sqlite_master"
    query = text(f"SELECT name, sql FROM {source} WHERE type = :kind AND sql IS NOT NULL AND tbl_name = :name")  # noqa: S608
    rows = connection.execute(query, {"name": table, "kind": kind})
    return {str(name): str(sql) for name, sql in rows}


def declared(index: Index, dialect: Any) -> Found:
    """Return a model's index as the database would have it."""
    return read(str(CreateIndex(index).compile(dialect=dialect)))


def read(sql: str) -> Found:
    """Read a ``CREATE INDEX``."""
    match = _CREATE.match(sql)
    if match is None:
        return Found(False, (sql,), "", None)
    over, rest = _split(match[2])
    parts = [_part(each) for each in over]
    known = tuple(each for each in parts if each is not None)
    complete = len(known) == len(parts) and any(map(is_token, known))
    return Found(bool(match[1]), tuple(map(_plain, over)), _plain(rest), known if complete else None)


def _split(sql: str) -> tuple[list[str], str]:
    """Split what follows the opening parenthesis into what stands between commas, and what follows the closing one."""
    found, depth, start = [], 0, 0
    for at, character in _outside_quotes(sql):
        if character == "(":
            depth += 1
        elif (character == "," and not depth) or (character == ")" and not depth):
            found.append(sql[start:at].strip())
            start = at + 1
            if character == ")":
                break
        elif character == ")":
            depth -= 1
    return found, sql[start:].strip()


def _outside_quotes(sql: str) -> Iterator[tuple[int, str]]:
    closing = ""
    for at, character in enumerate(sql):
        if closing:
            closing = "" if character == closing else closing
        elif character in "\"'`[":
            closing = "]" if character == "[" else character
        else:
            yield at, character


def _part(sql: str) -> Part | None:
    return token_in(sql) or (sql.strip(_QUOTES) if _WORD.fullmatch(sql) else None)


def _plain(sql: str) -> str:
    return re.sub(r'[\s"`\[\]]', "", sql).lower()
