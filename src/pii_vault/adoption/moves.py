"""What is done to the application's table in a step of an adoption: the guard is changed, rows are filled and compared.

Each does nothing where it was done already, so that a step that was ended in any way is simply taken again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType

from ..backfill.filling import Filling
from ..backfill.plain_types import reading_type
from ..backfill.rows import Place, Rows
from ..backfill.sides import Plain, Sealed
from ..backfill.whose import Owners, listed
from ..errors import AdoptionError, ConfigurationError
from ..keyring import Keyring
from ..reencryption.failures import named
from ..reencryption.pacing import Pace, Pacing
from ..reencryption.retrying import with_retries
from .columns import Pair
from .guard import Guard, Mode
from .looking import Counts, Observed, look

Progress = Callable[[str, int, int], object]
"""Told what is done, how many rows of it are, and of how many."""

_LOCK_TIMEOUT: Final = "2s"
"""For so long writers wait behind us for a lock that others hold; then it is tried again."""


class Moves:
    """The steps on one pair of columns.

    Args:
        engine: On the application's database.
        pair: The columns.
        observed: What the database has of them.
        owners: Tells whose row it is.
        tenant_column: The column that says so; None where all rows are one tenant's.
        keyring: Of the vault.
        pace: How fast rows are written.
        progress: Told how far it is.
    """

    def __init__(
        self,
        engine: Engine,
        pair: Pair,
        observed: Observed,
        owners: Owners,
        tenant_column: str | None,
        keyring: Keyring,
        pace: Pace,
        progress: Progress,
    ) -> None:
        self._engine: Final = engine
        self._pair: Final = pair
        self._observed: Final = observed
        self._owners: Final = owners
        self._place: Final = Place(pair.table, pair.schema, observed.key, tenant_column)
        self._keyring: Final = keyring
        self._pace: Final = pace
        self._pacing: Final = Pacing(engine, pace)
        self._progress: Final = progress
        self._guard: Final = Guard(engine.dialect, pair, observed.key)

    # The guard.

    def guard(self, mode: Mode) -> None:
        """Let the guard do something, and wait until nobody writes who does not meet it."""
        self._change(partial(self._guard.install, mode=mode))
        if self._engine.dialect.name == "postgresql":
            # Who has written before may not have met it. Who writes from now on does.
            self._change(self._wait_for_writers)

    def unguard(self) -> None:
        """Take the guard away."""
        self._change(self._guard.remove)

    def _wait_for_writers(self, connection: Connection) -> None:
        table = connection.dialect.identifier_preparer
        schema = f"{table.quote(self._pair.schema)}." if self._pair.schema else ""
        connection.exec_driver_sql(f"LOCK TABLE {schema}{table.quote(self._pair.table)} IN SHARE MODE")

    def _change(self, do: Callable[[Connection], object]) -> None:
        def once() -> None:
            with self._engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                elif connection.dialect.name == "sqlite":
                    # Python's driver begins no transaction before DDL: each statement would be committed by itself.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                do(connection)

        try:
            with_retries(once)
        except DBAPIError as error:
            failure = named(error)
        else:
            return
        raise ConfigurationError(
            f"the guard of {self._pair.name} cannot be changed: {failure}",
            hint="its table's owner may create triggers, while no transaction holds the table for long; what is done "
            "stays, and the same step goes on from there",
        )

    # Rows.

    def ask(self) -> list[str]:
        """Make sure that the keys of all tenants with plaintexts are to be had; return the tenants.

        Raises:
            BackfillError: some rows are nobody's; names them.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason.
        """
        with self._engine.connect() as connection:
            tenants = self._owners.concerned(connection, self._sealing().rows, self._place)
        self._owners.ask(tenants)
        return tenants

    def tenants(self) -> list[str]:
        """Return the tenants with values in either column."""
        found: set[str] = set()
        for side in self._sides():
            rows = Rows(self._engine.dialect, self._place, side, side)
            with looking(self._engine) as connection:
                found |= {
                    name for owner, count in rows.owners(connection) if count and (name := self._owners.tenant(owner))
                }
        return sorted(found)

    def fill(self) -> int:
        """Seal the plaintext of each row that has no sealed value; return of how many."""
        return self._filled(self._sealing(), self.count().plaintext_only)

    def refill(self) -> int:
        """Write the plaintext of each row that has only a sealed value; return of how many."""
        return self._filled(self._opening(), self.count().sealed_only)

    def compare(self) -> int:
        """Open each sealed value and compare it with its plaintext; return how many there are.

        Raises:
            AdoptionError: some were not the same, and are sealed anew; names the rows.
        """
        total, done, different = self.count().plaintext, 0, list[str]()
        for found in self._sealing().compare(self._engine.begin):
            done += found.rows
            different.extend(found.different)
            self._progress(self._pair.name, done, max(done, total))
        if different:
            key = ", ".join(self._place.key)
            raise AdoptionError(
                f"{len(different):,} sealed values of {self._pair.name} were not what the plaintext is, and are sealed "
                f"anew: {listed([f'{key} = {each}' for each in different])}",
                hint="somebody writes past the guard: find out who, and take this step again",
            )
        return done

    def empty(self) -> int:
        """Write NULL over each plaintext that has a sealed value; return over how many."""
        total, done = self.count().plaintext, 0
        for written in self._sealing().wipe(self._engine.begin):
            done += written
            self._progress(self._pair.name, done, max(done, total))
            self._pacing.wrote(written)
        return done

    def count(self) -> Counts:
        """Return how many rows hold what, now."""
        with self._engine.connect() as connection:
            counts = look(connection, self._pair).counts
        if counts is None:
            raise AdoptionError(f"one of the columns of {self._pair.name} is gone", hint="pii-vault adopt status")
        return counts

    def watch(self, seconds: float, left: Callable[[Counts], int], who: str) -> None:
        """Wait for a while, and make sure that nobody has written meanwhile who should not.

        Args:
            seconds: How long.
            left: Says in how many rows that is to be seen.
            who: Who that is, in words.

        Raises:
            AdoptionError: somebody has; says in how many rows.
        """
        before = left(self.count())
        time.sleep(seconds)
        rows = max(before, left(self.count()))
        if rows:
            raise AdoptionError(
                f"{rows:,} rows of {self._pair.table_name} were written just now by {who}",
                hint="replace every process of that kind first, and take this step again; nothing is lost meanwhile",
            )

    def _filled(self, filling: Filling, total: int) -> int:
        done = 0
        self._progress(self._pair.name, 0, total)
        for written in filling.fill(self._engine.begin):
            done += written
            self._progress(self._pair.name, done, max(done, total))
            self._pacing.wrote(written)
        return done

    def _sides(self) -> list[Plain]:
        there = {self._pair.plaintext: self._observed.has_plaintext, self._pair.sealed: self._observed.has_sealed}
        return [Plain(name, NullType()) for name, found in there.items() if found]

    def _sealing(self) -> Filling:
        return Filling(self._engine.dialect, self._place, self._plain(), self._sealed(), self._owners, self._pace.rows)

    def _opening(self) -> Filling:
        return Filling(self._engine.dialect, self._place, self._sealed(), self._plain(), self._owners, self._pace.rows)

    def _sealed(self) -> Sealed:
        kind = self._pair.kind
        if kind is None:
            raise ConfigurationError(
                f"the models know no sealed column {self._pair.sealed!r} of {self._pair.table_name}",
                hint="name the models that do: --metadata",
            )
        return Sealed(self._pair.sealed, kind.bound_to(self._pair.context), self._keyring)

    def _plain(self) -> Plain:
        kind: Any = self._pair.kind
        stored = self._pair.plain_type or self._observed.plain_type
        if stored is None or kind is None:
            raise AdoptionError(f"there is no plaintext column {self._pair.name}", hint="pii-vault adopt status")
        return Plain(self._pair.plaintext, self._pair.plain_type or reading_type(kind, stored))


@contextmanager
def looking(engine: Engine) -> Iterator[Connection]:
    """Give a connection that only looks.

    Raises:
        ConfigurationError: the database cannot be reached, or does not let this user look.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        failure = named(error)
    else:
        return
    raise ConfigurationError(
        f"the application's database cannot be looked into: {failure}", hint="SELECT on its tables is needed"
    )
