"""What the database has of an adoption, and where that is not what its stage says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, MetaData, Table, case, func, inspect, select
from sqlalchemy.types import NullType, TypeEngine

from ..errors import ConfigurationError
from ..stages import Stage
from .columns import Pair
from .guard import Guard, Mode

GUARDED: Final = {
    Stage.ADDED: Mode.EMPTIES_SEALED,
    Stage.FILLED: Mode.EMPTIES_SEALED,
    Stage.VERIFIED: Mode.EMPTIES_SEALED,
    Stage.SWITCHED: Mode.REFUSES,
    Stage.RETIRED: Mode.EMPTIES_PLAINTEXT,
}
"""What the guard does at which stage. At the others there is none."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows hold what.

    Attributes:
        plaintext: Rows with a plaintext.
        sealed: Rows with a sealed value.
        plaintext_only: Rows with a plaintext and no sealed value.
        sealed_only: Rows with a sealed value and no plaintext.
    """

    plaintext: int
    sealed: int
    plaintext_only: int
    sealed_only: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What the database has of an adoption.

    Attributes:
        key: The names of the primary key's columns.
        plain_type: The plaintext column's type, as the database says; None where the column is gone.
        plaintext_nullable: Whether it may be NULL.
        has_sealed: Whether there is the sealed column.
        sealed_nullable: Whether it may be NULL.
        guard: What the guard does; None where there is none, or another one.
        counts: What rows hold; None where one of the columns is gone, or nobody has counted.
    """

    key: tuple[str, ...]
    plain_type: TypeEngine[Any] | None
    plaintext_nullable: bool
    has_sealed: bool
    sealed_nullable: bool
    guard: Mode | None
    counts: Counts | None

    @property
    def has_plaintext(self) -> bool:
        """Whether there is the plaintext column."""
        return self.plain_type is not None

    def drift(self, pair: Pair, stage: Stage) -> Iterator[str]:
        """Yield what is not as the stage says, one sentence each."""
        if not self.has_sealed and stage is not Stage.NONE:
            yield f"the sealed column {pair.sealed!r} is gone"
        if not self.has_plaintext and stage is not Stage.EMPTIED:
            yield f"the plaintext column {pair.plaintext!r} is gone"
        wanted = GUARDED.get(stage)
        if self.guard is not wanted:
            rather = f"it {wanted}" if wanted is not None else "there is none"
            yield f"the guard {_said(self.guard)}, and at this stage {rather}"
        if wanted is Mode.EMPTIES_SEALED and not self.sealed_nullable:
            yield f"the sealed column {pair.sealed!r} may not be NULL, so nobody can write {pair.plaintext!r} alone"
        if wanted is Mode.EMPTIES_PLAINTEXT and not self.plaintext_nullable:
            yield f"the plaintext column {pair.plaintext!r} may not be NULL, so nobody can write {pair.sealed!r} alone"
        if self.counts is not None:
            yield from self._strays(pair, stage, self.counts)

    def _strays(self, pair: Pair, stage: Stage, counts: Counts) -> Iterator[str]:
        if counts.plaintext and stage is Stage.EMPTIED:
            yield f"{counts.plaintext:,} rows hold a plaintext again"
            return
        if counts.plaintext_only and stage in (Stage.FILLED, Stage.VERIFIED):
            yield f"{counts.plaintext_only:,} rows were written by somebody who writes {pair.plaintext!r} alone"
        if counts.plaintext_only and stage.sealed_counts:
            yield f"{counts.plaintext_only:,} rows hold {pair.plaintext!r} and no {pair.sealed!r}"
        if counts.sealed_only and stage not in (Stage.NONE, Stage.RETIRED, Stage.EMPTIED):
            yield f"{counts.sealed_only:,} rows hold {pair.sealed!r} and no {pair.plaintext!r}"


def look(connection: Connection, pair: Pair, *, count: bool = True) -> Observed:
    """Look at what the database has.

    Args:
        connection: On the application's database.
        pair: The columns.
        count: Whether rows are counted: it takes a look at each.

    Raises:
        ConfigurationError: there is no such table, or it has no primary key.
    """
    inspector = inspect(connection)
    if not inspector.has_table(pair.table, pair.schema):
        raise ConfigurationError(f"there is no table {pair.table_name!r} in the database")
    key = tuple(inspector.get_pk_constraint(pair.table, pair.schema).get("constrained_columns") or ())
    if not key:
        raise ConfigurationError(
            f"table {pair.table_name!r} has no primary key, so its rows cannot be gone through one after the other",
            hint="give it one",
        )
    columns = {str(each["name"]): each for each in inspector.get_columns(pair.table, pair.schema)}
    plain, sealed = columns.get(pair.plaintext), columns.get(pair.sealed)
    both = plain is not None and sealed is not None
    return Observed(
        key,
        plain["type"] if plain is not None else None,
        bool(plain["nullable"]) if plain is not None else True,
        sealed is not None,
        bool(sealed["nullable"]) if sealed is not None else True,
        Guard(connection.dialect, pair, key).found(connection),
        _counted(connection, pair) if both and count else None,
    )


def _counted(connection: Connection, pair: Pair) -> Counts:
    plain: Column[Any] = Column(pair.plaintext, NullType())
    sealed: Column[Any] = Column(pair.sealed, NullType())
    table = Table(pair.table, MetaData(), plain, sealed, schema=pair.schema)
    conditions = (
        plain.is_not(None),
        sealed.is_not(None),
        plain.is_not(None) & sealed.is_(None),
        plain.is_(None) & sealed.is_not(None),
    )
    query = select(*(func.count(case((each, 1))) for each in conditions)).select_from(table)
    return Counts(*map(int, connection.execute(query).one()))


def _said(mode: Mode | None) -> str:
    return str(mode) if mode is not None else "is missing, or is not ours"
