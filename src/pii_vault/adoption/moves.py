"""What is done to the application's table in a step of an adoption: the guard is changed, rows are filled and compared.

Each does nothing where it was done already, so that a step that was ended in any way is simply taken again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType

from ..backfill.filling import Compared, Filling
from ..backfill.plain_types import reading_type
from ..backfill.rows import Place, Rows
from ..backfill.sides import Plain, Sealed
from ..backfill.whose import NAMED, Owners, listed
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

_LOCK_SECONDS: Final = 2
"""For so long others wait behind us for a lock that somebody holds; then it is tried again."""

_LOOK_SECONDS: Final = 0.2

_PATIENCE: Final = 60.0
"""For so long transactions are waited for that have written already. Nobody waits behind us meanwhile."""

_WRITERS: Final = text(
    "SELECT virtualtransaction, pid FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' "
    "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND relation IN (SELECT to_regclass(:of)::oid UNION SELECT relid FROM pg_partition_tree(to_regclass(:of)))"
)
"""Who has written to a table, or to its partitions, in a transaction that is still open; a prepared one too."""


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
        still: Called before the guard is changed; raises where somebody else has taken a step meanwhile.
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
        still: Callable[[], object],
    ) -> None:
        self._engine: Final = engine
        self._pair: Final = pair
        self._observed: Final = observed
        self._owners: Final = owners
        self._place: Final = Place(pair.table, pair.schema, observed.key, tenant_column)
        self._keyring: Final = keyring
        self._pace: Final = pace
        self._progress: Final = progress
        self._still: Final = still
        self._done = (0, 0)
        self._pacing: Final = Pacing(engine, pace, self._tell)
        self._guard: Final = Guard(engine.dialect, pair, observed.key)

    # The guard.

    def guard(self, mode: Mode) -> None:
        """Let the guard do something, and wait until nobody writes who does not meet it."""
        self._change(partial(self._guard.install, mode=mode))
        if self._engine.dialect.name == "postgresql":
            # Who has written before may not have met it. Who writes from now on does.
            self._wait_for_writers()

    def unguard(self) -> None:
        """Take the guard away."""
        self._change(self._guard.remove)

    def _wait_for_writers(self) -> None:
        """Wait until every transaction has ended that has written to the table by now. Nobody waits behind us."""
        with looking(self._engine) as connection:
            left = self._writers(connection)
        until = time.monotonic() + _PATIENCE
        while left:
            if time.monotonic() > until:
                processes = ", ".join(sorted({str(pid) for _, pid in left}))
                raise AdoptionError(
                    f"transactions that have written to {self._pair.table_name} have been open for more than "
                    f"{_PATIENCE:.0f} seconds: {processes}",
                    hint="these are their processes (pg_stat_activity.pid); end them, and take this step again",
                )
            self.pause(_LOOK_SECONDS)
            with looking(self._engine) as connection:
                left &= self._writers(connection)

    def _writers(self, connection: Connection) -> set[tuple[str, int | None]]:
        found = connection.execute(_WRITERS, {"of": self._guard.table})
        return {(str(each.virtualtransaction), each.pid) for each in found}

    def _change(self, do: Callable[[Connection], object]) -> None:
        def once() -> None:
            self._still()
            with self._engine.begin() as connection, _briefly(connection):
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

    def pause(self, seconds: float) -> None:
        """Wait, and go on telling how far it is, so that somebody can stop it."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
            self._tell()

    def _tell(self, done: int | None = None, total: int = 0) -> None:
        if done is not None:
            self._done = done, max(done, total)
        self._progress(self._pair.name, *self._done)

    # Rows.

    def ask(self, *, refill: bool = False) -> None:
        """Make sure that the keys of all tenants are to be had whose values are to be moved.

        Args:
            refill: Whether what is sealed is to be moved, and not what is plaintext.

        Raises:
            BackfillError: some rows are nobody's; names them.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason.
        """
        with looking(self._engine) as connection:
            filling = self._opening() if refill else self._sealing()
            tenants = self._owners.concerned(connection, filling.rows, self._place)
        self._owners.ask(tenants)

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

    def mend(self) -> None:
        """Seal anew what is not what the plaintext is, in rows that have both: it was written without a guard."""
        self._compared(self._sealing().compare(self._engine.begin, mends=True, both=True), self.count().plaintext)

    def compare(self, *, mends: bool) -> int:
        """Open each sealed value and compare it with its plaintext; return how many there are.

        Args:
            mends: Whether values are sealed where there are none, or others.

        Raises:
            AdoptionError: some were not the same; names the rows.
        """
        found = self._sealing().compare(self._engine.begin, mends=mends)
        done, different = self._compared(found, self.count().plaintext)
        self._refuse_different(different, mended=mends)
        return done

    def empty(self) -> int:
        """Write NULL over each plaintext whose sealed value holds the same; return over how many.

        Raises:
            AdoptionError: some do not hold the same; names the rows. They are left.
        """
        total, done, different = self.count().plaintext, 0, dict[str, None]()
        self._tell(0, total)
        for found in self._sealing().wipe(self._engine.begin):
            done += found.written
            different.update(dict.fromkeys(found.different))
            self._tell(done, total)
            self._pacing.wrote(found.written)
        self._refuse_different(list(different), mended=False)
        return done

    def refuse_strays(self) -> None:
        """Refuse rows that hold a sealed value and no plaintext.

        Raises:
            AdoptionError: there are some; names them.
        """
        self._refuse(self._sealing(), self._pair.sealed, self._pair.plaintext)

    def refuse_unsealed(self) -> None:
        """Refuse rows that hold a plaintext and no sealed value.

        Raises:
            AdoptionError: there are some; names them.
        """
        self._refuse(self._opening(), self._pair.plaintext, self._pair.sealed)

    def _refuse(self, filling: Filling, there: str, missing: str) -> None:
        rows = filling.rows
        with looking(self._engine) as connection:
            keys, count = rows.some(connection, rows.stray, NAMED), rows.count(connection, rows.stray)
        if count:
            which = "; ".join(", ".join(map(str, key)) for key in keys)
            more = "; …" if count > len(keys) else ""
            raise AdoptionError(
                f"{count:,} rows of {self._pair.table_name} hold {there!r} and no {missing!r}: "
                f"{', '.join(self._place.key)} = {which}{more}",
                hint="find out who has written them, and mend them",
            )

    def _compared(self, batches: Iterable[Compared], total: int) -> tuple[int, list[str]]:
        done, different = 0, list[str]()
        self._tell(0, total)
        for found in batches:
            done += found.rows
            different.extend(found.different)
            self._tell(done, total)
            self._pacing.wrote(found.written)
        return done, different

    def _refuse_different(self, different: list[str], *, mended: bool) -> None:
        if not different:
            return
        verb, and_mended, hint = (
            ("were", ", and are sealed anew", "somebody writes past the guard, or not the same into both: find out who")
            if mended
            else (
                "are",
                "",
                "they count, and may be the wrong ones: find out who writes them, and write both as is right",
            )
        )
        rows = listed([f"{', '.join(self._place.key)} = {each}" for each in different])
        raise AdoptionError(
            f"{len(different):,} sealed values of {self._pair.name} {verb} not what the plaintext is{and_mended}: "
            f"{rows}",
            hint=f"{hint}, and take this step again",
        )

    def count(self) -> Counts:
        """Return how many rows hold what, now."""
        with looking(self._engine) as connection:
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
        self.pause(seconds)
        rows = max(before, left(self.count()))
        if rows:
            raise AdoptionError(
                f"{rows:,} rows of {self._pair.table_name} were written just now by {who}",
                hint="replace every process of that kind first, and take this step again; nothing is lost meanwhile",
            )

    def _filled(self, filling: Filling, total: int) -> int:
        done = 0
        self._tell(0, total)
        for written in filling.fill(self._engine.begin):
            done += written
            self._tell(done, total)
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
        kind: Any = self._sealed().kind
        stored = self._pair.plain_type or self._observed.plain_type
        if stored is None:
            raise AdoptionError(f"there is no plaintext column {self._pair.name}", hint="pii-vault adopt status")
        return Plain(self._pair.plaintext, self._pair.plain_type or reading_type(kind, stored))


@contextmanager
def _briefly(connection: Connection) -> Iterator[None]:
    """Let the guard be changed in a block: whole, and without others waiting behind us for long."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
    if dialect == "sqlite" and not getattr(connection.connection.dbapi_connection, "in_transaction", False):
        # Python's driver begins no transaction before DDL: each statement would be committed by itself.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if dialect not in ("mysql", "mariadb"):
        yield
        return
    # By default it waits for a day, and whoever comes to the table after us does, even to read.
    before = connection.exec_driver_sql("SELECT @@SESSION.lock_wait_timeout").scalar()
    connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_SECONDS}")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {before}")


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
