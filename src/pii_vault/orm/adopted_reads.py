"""A sealed column that takes over a plaintext one is read when all of its values are there, and not before.

Until the stage *switched* a value can be missing: a row was not filled yet, or somebody changed its plaintext alone. A
search would leave such rows out, and ``IS NULL`` would find them, without an error. So a statement that reads the
column is refused until then, for whatever it reads it.

A column that is declared with ``falls_back=True`` may be selected before. Where its value is NULL the plaintext of the
same row is delivered, marked by a first byte that begins no sealed value; whether that is allowed is looked at when it
happens. Conditions on it, and searches, are refused all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnClause, CompoundSelect, Enum, ScalarSelect, Select, String, TypeDecorator
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import AliasedReturnsRows, SelectStatementGrouping

from ..envelope import PLAINTEXT_MARK
from ..errors import AdoptionError, ConfigurationError
from ..keyring import Keyring
from ..stages import AdoptionRecord, Stage
from .encrypted_type import EncryptedType
from .pairs import adopted_column, base_table
from .readiness import off_the_loop

_MARKED: Final = {
    "postgresql": "convert_to('{mark}' || {plaintext}, 'UTF8')",
    "sqlite": "CAST('{mark}' || {plaintext} AS BLOB)",
    "mariadb": "CAST(CONCAT('{mark}', CONVERT({plaintext} USING utf8mb4)) AS BINARY)",
    "mysql": "CAST(CONCAT('{mark}', CONVERT({plaintext} USING utf8mb4)) AS BINARY)",
}
"""The bytes of a marked plaintext, in UTF-8. They are NULL where it is."""


class AdoptedRead(NamedTuple):
    """What a statement reads of a column that adopts another one.

    Attributes:
        context: The column's context id.
        column: Its name, for messages.
        plaintext: The name of the column that it adopts.
        falls_back: Whether the plaintext is delivered where there is no value.
    """

    context: str
    column: str
    plaintext: str
    falls_back: bool


def read_of(kind: Any, *, falls_back: bool) -> Iterator[AdoptedRead]:
    """Yield what reading a value of a type is, if it adopts a column."""
    if isinstance(kind, EncryptedType) and kind.adopts is not None:
        yield AdoptedRead(str(kind.context), kind.column_name(), kind.adopts, falls_back)


def require(keyring: Keyring, reads: Iterable[AdoptedRead]) -> None:
    """Refuse a statement that reads a column whose values may not all be there.

    Where an adoption is not so far as far as this process knows, it looks once more: another one may just have
    switched.

    Raises:
        AdoptionError: they may not.
        KeyStoreError: nobody can say, since the key store was never reached.
    """
    adoptions = keyring.adoptions
    if adoptions.is_due():
        off_the_loop(adoptions.look)
    if not all(_is_certain(keyring, each) for each in reads) and adoptions.may_look_again():
        off_the_loop(adoptions.look_again)
    for each in sorted(reads):
        stage = _stage(adoptions.known(each.context))
        if not stage.sealed_counts and not (each.falls_back and stage is not Stage.NONE):
            raise AdoptionError(
                f"{each.column} is read, and the adoption of {each.plaintext!r} is at the stage {stage.value!r}: until "
                "'switched' values can be missing in it",
                hint="`pii-vault adopt status` says how far it is; read the plaintext column until then, and map the "
                "sealed one with deferred=True, so that it is not loaded with the others",
            )


def _is_certain(keyring: Keyring, read: AdoptedRead) -> bool:
    known = keyring.adoptions.known(read.context)
    if known is None or known.stage.sealed_counts:
        return known is not None
    return read.falls_back and known.falls_back(datetime.fromtimestamp(keyring.clock.wall(), UTC))


def _stage(known: AdoptionRecord | None) -> Stage:
    return Stage.NONE if known is None else known.stage


def plaintext_beside(column: Any) -> Any:
    """Return the plaintext column that a selected sealed one falls back to; None where it does not.

    A subquery's column does not: what is selected inside has fallen back there already.

    Raises:
        ConfigurationError: there is no such column, or its values are not its text.
    """
    kind: Any = column.type
    source: Any = column.table if isinstance(column, ColumnClause) else None
    if not getattr(kind, "falls_back", False) or base_table(source) is None:
        return None
    found = adopted_column(kind, source.columns)
    if not isinstance(found.type, String) or isinstance(found.type, Enum | TypeDecorator):
        raise ConfigurationError(
            f"{kind.column_name()} falls back to {kind.adopts!r}, a {type(found.type).__name__} and not plain text",
            hint="leave out falls_back, and read the plaintext column until the switch",
        )
    return found


def has_fallen_back(column: Any) -> bool:
    """Say whether a selected column's values come from a SELECT or RETURNING, which has seen to it.

    Those of a text's result, or of a function's, come as they are.
    """
    if isinstance(column, ScalarSelect):
        return True
    source = getattr(column, "table", None)
    while isinstance(source, AliasedReturnsRows | SelectStatementGrouping):
        source = source.element
    return isinstance(source, Select | CompoundSelect | UpdateBase)


def marked(dialect: str, plaintext: str) -> str:
    """Return the SQL for a plaintext as it is delivered in place of a sealed value.

    Raises:
        ConfigurationError: it is not known for this database.
    """
    template = _MARKED.get(dialect)
    if template is None:
        raise ConfigurationError(f"falls_back is not known for {dialect}", hint="leave it out of adopting()")
    return template.format(mark=PLAINTEXT_MARK.decode(), plaintext=plaintext)
