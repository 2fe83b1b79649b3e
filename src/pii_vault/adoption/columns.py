"""Which plaintext column becomes which sealed one: as the application's models say it, or as earlier steps have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import MetaData, Table
from sqlalchemy.types import TypeEngine

from ..errors import AdoptionError, ConfigurationError
from ..orm.encrypted_type import EncryptedType
from ..stages import AdoptionRecord, Stage


@dataclass(frozen=True, slots=True)
class Pair:
    """A plaintext column and the sealed column beside it.

    Attributes:
        context: The context id that values are sealed for: the name of the adoption.
        table: The table's name.
        schema: Its schema, or None.
        plaintext: The plaintext column's name in the database.
        sealed: The sealed column's name in the database.
        kind: The sealed column's type; None where the models no longer know it.
        plain_type: The plaintext column's type; None likewise.
    """

    context: str
    table: str
    schema: str | None
    plaintext: str
    sealed: str
    kind: EncryptedType[Any] | None
    plain_type: TypeEngine[Any] | None

    @property
    def table_name(self) -> str:
        """The table's name, with its schema if it has one."""
        return f"{self.schema}.{self.table}" if self.schema else self.table

    @property
    def name(self) -> str:
        """The plaintext column's name, with its table's."""
        return f"{self.table_name}.{self.plaintext}"


def declared(metadata: MetaData) -> list[Pair]:
    """Return the pairs that models declare with ``adopting``.

    Raises:
        ConfigurationError: a column adopts one that there is not, or that is sealed itself.
    """
    pairs = [_pair(table, column) for table in metadata.sorted_tables for column in table.columns if _adopts(column)]
    for number, pair in enumerate(pairs):
        if pair.name in (other.name for other in pairs[:number]):
            raise ConfigurationError(f"two columns adopt {pair.name}", hint="one takes its place")
    return pairs


def pair_of(context: str, metadata: MetaData, steps: Iterable[AdoptionRecord]) -> Pair:
    """Return the pair of an adoption: as the models declare it, or as its last step named it.

    Args:
        context: The context id; or the plaintext column as ``table.column``.
        metadata: The application's tables.
        steps: The last steps of all adoptions.

    Raises:
        AdoptionError: neither knows it.
        ConfigurationError: the models declare it wrongly, or with other columns than it was begun with.
    """
    known, steps = declared(metadata), list(steps)
    for pair in known:
        if context in (pair.context, pair.name):
            _require_the_same(pair, steps)
            return pair
    for step in steps:
        if context in (step.context, f"{step.table}.{step.plaintext}") and step.stage is not Stage.NONE:
            return _remembered(step, metadata)
    names = sorted({pair.context for pair in known} | {step.context for step in steps})
    raise AdoptionError(
        f"no column adopts {context!r}",
        hint=f"those that are known: {', '.join(names)}"
        if names
        else "declare it: mapped_column(EncryptedString().adopting('email'))",
    )


def _require_the_same(pair: Pair, steps: Iterable[AdoptionRecord]) -> None:
    """Refuse other columns than those that the steps were taken with: what these hold, nobody knows."""
    for step in steps:
        if step.context == pair.context and step.stage is not Stage.NONE:
            begun = step.table, step.plaintext, step.sealed
            if begun != (pair.table_name, pair.plaintext, pair.sealed):
                raise ConfigurationError(
                    f"{pair.table_name}.{pair.sealed} adopts {pair.plaintext!r}, and the adoption of {pair.context!r} "
                    f"was begun with {step.sealed!r} and {step.plaintext!r} of {step.table}",
                    hint="declare those; or take the adoption back to its beginning with them first",
                )


def _adopts(column: Any) -> bool:
    return isinstance(column.type, EncryptedType) and column.type.adopts is not None


def _pair(table: Table, column: Any) -> Pair:
    kind: EncryptedType[Any] = column.type
    assert kind.adopts is not None
    plaintext = _named(table, kind.adopts)
    if plaintext is None:
        raise ConfigurationError(
            f"{table.fullname}.{column.name} adopts {kind.adopts!r}, and the table has no such column",
            hint="name the plaintext column as the database does",
        )
    if isinstance(plaintext.type, EncryptedType):
        raise ConfigurationError(f"{table.fullname}.{column.name} adopts {kind.adopts!r}, which is sealed itself")
    return Pair(str(kind.context), table.name, table.schema, kind.adopts, column.name, kind, plaintext.type)


def _remembered(step: AdoptionRecord, metadata: MetaData) -> Pair:
    table = metadata.tables.get(step.table)
    sealed = _named(table, step.sealed) if table is not None else None
    kind = sealed.type if sealed is not None and isinstance(sealed.type, EncryptedType) else None
    if kind is not None and kind.context != step.context:
        raise ConfigurationError(
            f"{step.table}.{step.sealed} has the context {kind.context!r}, and its values are sealed for "
            f"{step.context!r}",
            hint=f"give it context={step.context!r}, or nothing of it can be opened",
        )
    plaintext = _named(table, step.plaintext) if table is not None else None
    schema, _, name = step.table.rpartition(".")
    if table is not None:
        name, schema = table.name, table.schema or ""
    plain_type = plaintext.type if plaintext is not None else None
    return Pair(step.context, name, schema or None, step.plaintext, step.sealed, kind, plain_type)


def _named(table: Table, name: str) -> Any:
    return next((each for each in table.columns if each.name == name), None)
