"""Move a column's values into a new column, and give it the old one's place.

Everything that can be refused is refused first: nothing is changed then. After that the new column is added and filled
beside the application's own writes, each batch committed; in the end the table is locked, every value is compared, and
the columns change places. What is there already is found by looking, so a migration that was ended in any way is run
again and goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from alembic.operations import Operations
from sqlalchemy import Column, Connection
from sqlalchemy.types import SchemaType

from ..backfill.filling import BATCH, Filling
from ..backfill.rows import Place, Rows
from ..backfill.sides import Sealed, Side
from ..backfill.whose import Owners
from ..errors import BackfillError, ConfigurationError
from ..vault import Vault
from .settings import attached_tenant_column
from .swapping import Swap, swap
from .tables import FoundTable, Over
from .transactions import alone, committed, transaction

_log = logging.getLogger("pii_vault.migrations")

_TELL_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Work:
    """What an operation was told.

    Attributes:
        name: The operation's.
        table: The table's name.
        schema: Its schema, or None.
        tenant_column: The column that says whose row it is; None for what the engine is attached with.
        vault: Holds the keys.
        drops: The names of indexes and constraints that go with the column.
        nullable: Whether there may be NULL in the end; None for what was there before.
        batch: How many rows at a time.
    """

    name: str
    table: str
    schema: str | None
    tenant_column: str | None
    vault: Vault
    drops: Sequence[str] = ()
    nullable: bool | None = None
    batch: int = BATCH


class Move:
    """A column that takes another one's place, with its values.

    Args:
        operations: Alembic's.
        work: What is to be done.
    """

    def __init__(self, operations: Operations, work: Work) -> None:
        self._operations: Final = operations
        self._work: Final = work
        self._connection: Final[Connection] = operations.get_bind()
        self.found: Final = FoundTable(self._connection, work.table, work.schema)
        if not self.found.key:
            raise ConfigurationError(
                f"op.{work.name}: table {work.table!r} has no primary key, so its rows cannot be gone through",
                hint="give it one first",
            )
        column, only = self._tenant_column(), None
        if column is None:
            only = work.vault.default_tenant
            if only is None:
                raise ConfigurationError(
                    f"op.{work.name}: nobody says whose rows those of {work.table!r} are",
                    hint="name the column: tenant_column='tenant_id', or attach env.py's engine: "
                    "vault.attach(engine, tenant_column='tenant_id')",
                )
        self._place: Final = Place(work.table, work.schema, self.found.key, column)
        self._owners: Final = Owners(work.vault.tenant, work.vault.tenants(), only)

    def is_sealed(self, sealed: Sealed) -> bool | None:
        """Say whether a column's values are sealed for it already; None where it is empty."""
        return self._filling(sealed, sealed).are_sealed(self._inside)

    def do(self, source: Side, target: Side, final: Column[Any]) -> None:
        """Fill the new column, and give it its place.

        Args:
            source: The column that goes.
            target: The column that comes, under the name that it has meanwhile.
            final: What it is in the end.

        Raises:
            ConfigurationError: it cannot be done as it was said; nothing is changed.
            BackfillError: some rows cannot be moved; names them. The old column is as it was.
            PiiVaultError: a tenant's keys are not to be had; nothing is changed.
        """
        drops = self._over(source.name)
        final.nullable = self._nullable(source)
        filling = self._filling(source, target)
        self._owners.ask(self._owners.concerned(self._connection, filling.rows, self._place))
        with committed(self._operations, self._work.name):
            connection = self._operations.get_bind()
            if target.name not in self.found.columns:
                self._add(target.name, final)
            self._fill(filling, source, partial(transaction, connection))
        with alone(self._operations, self._work.name, self._work.table, self._work.schema) as batches:
            count = filling.finish(batches)
            swap(self._operations, Swap(self._work.table, self._work.schema, source.name, target.name, final, drops))
        _log.info("%s.%s: %d values are moved, and compared", self._place.name, final.name, count)

    def _filling(self, source: Side, target: Side) -> Filling:
        return Filling(self._connection.dialect, self._place, source, target, self._owners, self._work.batch)

    def _inside(self) -> AbstractContextManager[Connection]:
        """Return the transaction that the migration is in."""
        return nullcontext(self._connection)

    def _fill(
        self, filling: Filling, source: Side, transactions: Callable[[], AbstractContextManager[Connection]]
    ) -> None:
        done, told = 0, time.monotonic()
        for written in filling.fill(transactions):
            done += written
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                _log.info("%s.%s: %d values are moved", self._place.name, source.name, done)

    def _add(self, name: str, final: Column[Any]) -> None:
        if isinstance(final.type, SchemaType):  # an enumeration of PostgreSQL's
            final.type.create(self._operations.get_bind(), checkfirst=True)
        added: Column[Any] = Column(name, final.type, nullable=True, comment=final.comment)
        self._operations.add_column(self._work.table, added, schema=self._work.schema)

    def _tenant_column(self) -> str | None:
        column = self._work.tenant_column or attached_tenant_column(self._operations.migration_context)
        if column is not None and column not in self.found.columns:
            raise ConfigurationError(
                f"op.{self._work.name}: table {self._work.table!r} has no column {column!r} for whose rows these are",
                hint="name the one that does: tenant_column=",
            )
        return column

    def _over(self, column: str) -> list[Over]:
        """Return what is over a column and goes with it; refuse the rest."""
        work, where = self._work, f"{self._place.name}.{column}"
        keys = self.found.keys(column)
        if keys or column == self._place.tenant_column:
            raise ConfigurationError(
                f"op.{work.name}: {where} is part of {', '.join(keys) or 'what says whose rows these are'}",
                hint="a sealed value is no key: give the table another one first",
            )
        made = self.found.made_of(column)
        if made:
            raise ConfigurationError(
                f"op.{work.name}: the database makes {', '.join(map(repr, made))} of {where}",
                hint="drop what is made of it first; op.drop_blind_index does so for the columns that hold tokens",
            )
        over = self.found.over(column)
        kept = [each for each in over if not (each.name in work.drops or (each.name is None and each.alone))]
        if kept:
            raise ConfigurationError(
                f"op.{work.name}: over {where} there is {', '.join(map(str, kept))}, which cannot stay as the column "
                "goes",
                hint=f"say that it goes too: drops={[each.name for each in kept if each.name]!r}; what finds sealed "
                "values is op.create_blind_index, after it",
            )
        return over

    def _nullable(self, source: Side) -> bool:
        nullable = self._work.nullable
        if nullable is None:
            nullable = bool(self.found.columns[source.name]["nullable"])
        if nullable:
            return True
        rows = Rows(self._connection.dialect, self._place, source, source)
        count = rows.count(self._connection, ~rows.any)
        if count:
            raise BackfillError(
                f"op.{self._work.name}: {count:,} rows of {self._place.name} have NULL in {source.name!r}, and the "
                "column is to have none",
                hint="fill them first, or say nullable=True; nothing is changed",
            )
        return False
