"""Fill one column of a table from another one, online: a batch of rows after the other, in order of the primary key.

A row is written only where the column that is read still holds what was read. Which rows are left is seen in the table:
those with a value in the one column and NULL in the other. So a run that was ended in any way is simply started again.
In the end, when nobody else writes, every value is read once more and compared; whatever was changed meanwhile is
written anew.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Dialect
from sqlalchemy.exc import DBAPIError, PendingRollbackError, StatementError

from ..errors import BackfillError, ConfigurationError, EncodingError, OpenError, PiiVaultError
from ..orm.engine import warm
from ..reencryption.retrying import with_retries
from ..scope import Scope
from ..telemetry import telemetry
from .rows import Change, Key, Place, Read, Row, Rows
from .sides import Sealed, Side
from .whose import Owners, listed, named

T = TypeVar("T")

BATCH: Final = 1_000
"""How many rows are read, sealed and written together."""

_PASSES: Final = 10
"""How often a table is gone through: rows that others have changed meanwhile are left to the next time."""

_MOST_PROBLEMS: Final = 1_000

_REFUSALS: Final = (StatementError, ValueError, TypeError, OverflowError)
"""Of the database, of its driver, or of a type that takes no such value."""

Transaction = Callable[[], AbstractContextManager[Connection]]
"""Begins a transaction, and commits it in the end."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What a batch of rows came to.

    Attributes:
        rows: How many rows with a value were compared.
        different: The primary keys of those that had another one in the other column.
        written: How many were written.
    """

    rows: int
    different: tuple[str, ...]
    written: int


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Rows by what was found in them; those that belong to nobody are in none of these."""

    same: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    """Nothing is in the column that is written, or the same in an older form."""
    different: list[Row] = field(default_factory=list)


class Filling:
    """Fills a column.

    Args:
        dialect: Of the database.
        place: Where the columns are.
        source: The column that is read.
        target: The column that is written, NULL where nothing was.
        owners: Tells whose row it is.
        batch: How many rows at a time.
    """

    def __init__(
        self, dialect: Dialect, place: Place, source: Side, target: Side, owners: Owners, batch: int = BATCH
    ) -> None:
        self.rows: Final = Rows(dialect, place, source, target)
        self._place: Final = place
        self._source: Final = source
        self._target: Final = target
        self._owners: Final = owners
        self._batch: Final = batch
        self._encode: Final = next(each for each in (target, source) if isinstance(each, Sealed)).kind.encoding().encode
        self._declared: Final[set[str]] = set()
        self._problems: Final[dict[str, str]] = {}

    def fill(self, transaction: Transaction) -> Iterator[int]:
        """Go through the table until no row is left; yield how many rows are written each time.

        Raises:
            BackfillError: values of some rows cannot be moved; names the rows. The others are written.
            ConfigurationError: the table cannot be read or written. What was written stays.
        """
        found = True
        for _ in range(_PASSES):
            if not found:
                break
            found = False
            for read in self._reads(transaction, self.rows.left):
                new = self._moved(read)
                found = found or len(new) > 0
                written = self._write(transaction, new, again=False)
                telemetry().resealed(self._place.name, written)
                yield written
        self._refuse_problems()

    def compare(self, transaction: Transaction, *, mends: bool, both: bool = False) -> Iterator[Compared]:
        """Go through the table once and compare the two values of each row, beside others' writes.

        Args:
            transaction: Begins one.
            mends: Whether the one column is written anew, where it is empty or holds something else.
            both: Whether to look only at rows with a value in both columns.

        Raises:
            BackfillError: a value cannot be moved; names the rows. The others were compared.
            ConfigurationError: the table cannot be read or written.
        """
        for read in self._reads(transaction, self.rows.both if both else self.rows.any):
            # Both values of a row were read by one statement, and are always written by one: none is half written.
            found, written = self._sorted(read), 0
            wrong = [*found.missing, *found.different]
            if mends and wrong:
                moved = self._moved(Read(wrong, read.take, read.take_target))
                written = self._write(transaction, moved, again=True)
            yield Compared(len(read.rows), tuple(map(_where, found.different)), written)
        self._refuse_problems()

    def wipe(self, transaction: Transaction) -> Iterator[Compared]:
        """Write NULL into the column that is read, where the other one was opened and holds the same.

        A row that somebody writes meanwhile is looked at again.

        Raises:
            BackfillError: rows belong to nobody whose keys there are; names them. The others were written.
            ConfigurationError: the table cannot be read or written.
        """
        for _ in range(_PASSES):
            changed = False
            for read in self._reads(transaction, self.rows.both):
                found = self._sorted(read)
                mine = [*found.same, *found.missing]
                written = self._in(transaction, partial(self.rows.wipe, rows=mine)) if mine else 0
                changed = changed or written < len(mine)
                yield Compared(len(read.rows), tuple(map(_where, found.different)), written)
            if not changed:
                break
        self._refuse_problems()

    def finish(self, transaction: Transaction) -> int:
        """Compare every row's two values, and mend what others have changed; return how many values there are.

        Nobody else may write to the table until what follows is committed.

        Raises:
            BackfillError: a value cannot be moved, or does not come back as it was; names the rows.
            ConfigurationError: the table cannot be read or written.
        """
        self._in(transaction, self.rows.clear)
        after: Key | None = None
        for read in self._reads(transaction, self.rows.any):
            changed = self._different(read)
            if changed:
                wrong = Read(changed, read.take, read.take_target)
                self._write(transaction, self._moved(wrong), again=True)
                again = self._read(transaction, self.rows.any, after, read.rows[-1].key, len(read.rows))
                for row in self._different(again):
                    self._failed(row, "what was written does not come back as it was")
            after = read.rows[-1].key
        self._refuse_problems()
        counts = [
            self._in(transaction, partial(self.rows.count, which=each)) for each in (self.rows.any, self.rows.written)
        ]
        if counts[0] != counts[1]:
            raise BackfillError(
                f"{self._name}: {counts[0]:,} rows hold a value, and {counts[1]:,} were written",
                hint="somebody else writes to the table: stop them, and run it again",
            )
        return counts[0]

    def are_sealed(self, transaction: Transaction, limit: int = 20) -> bool | None:
        """Say whether the column that is read holds values that were sealed for it; None where it is empty.

        Raises:
            BackfillError: some were, and some were not.
        """
        read = self._read(transaction, self.rows.any, None, None, limit)
        opened: list[bool] = []

        def look(_: Scope, rows: list[Row]) -> None:
            for row in rows:
                with suppress(OpenError):
                    read.take(row.source)
                    opened.append(True)
                    continue
                opened.append(False)

        self._by_tenant([row for row in read.rows if self._owners.tenant(row.owner) is not None], look)
        if any(opened) and not all(opened):
            raise BackfillError(
                f"{self._name} holds values that were sealed for it beside others",
                hint="find out which rows were written past the vault, and correct them first",
            )
        return any(opened) if opened else None

    @property
    def _name(self) -> str:
        return f"{self._place.name}.{self._source.name}"

    def _reads(self, transaction: Transaction, which: ColumnElement[bool]) -> Iterator[Read]:
        after: Key | None = None
        while (read := self._read(transaction, which, after, None, self._batch)).rows:
            yield read
            after = read.rows[-1].key

    def _read(
        self, transaction: Transaction, which: ColumnElement[bool], after: Key | None, upto: Key | None, limit: int
    ) -> Read:
        return self._in(transaction, lambda connection: self.rows.read(connection, which, after, upto, limit))

    def _moved(self, read: Read) -> Change:
        """Return rows with what is to be written there; those that cannot be moved are taken note of."""
        moved = Change()

        def move(scope: Scope, rows: list[Row]) -> None:
            if isinstance(self._target, Sealed):
                self._declare(scope, self._target)
                warm(scope, len(rows))
            for row in rows:
                new = self._new(row, read)
                if new is not None:
                    moved.add(row, new)

        self._by_tenant(read.rows, move)
        return moved

    def _different(self, read: Read) -> list[Row]:
        """Return the rows whose two values are not the same."""
        different: list[Row] = []

        def compare(_: Scope, rows: list[Row]) -> None:
            for row in rows:
                if row.target is None or not self._target.is_current(row.target) or not self._is_same(row, read):
                    different.append(row)

        self._by_tenant(read.rows, compare)
        return different

    def _sorted(self, read: Read) -> _Sorted:
        found = _Sorted()

        def sort(_: Scope, rows: list[Row]) -> None:
            for row in rows:
                if row.target is None:
                    found.missing.append(row)
                elif not self._is_same(row, read) and not self._is_equal(row, read):
                    found.different.append(row)
                else:
                    (found.same if self._target.is_current(row.target) else found.missing).append(row)

        self._by_tenant(read.rows, sort)
        return found

    def _is_equal(self, row: Row, read: Read) -> bool:
        """Say whether two values are one that a plain column keeps in another form: 1.1 as 1.10, an instant as UTC."""
        try:
            value = read.take(row.source)
            return isinstance(value, Decimal | datetime | time) and bool(value == read.take_target(row.target))
        except OpenError:
            return False
        except PiiVaultError:
            raise
        except Exception:  # noqa: BLE001 - it could hold the value
            return False

    def _is_same(self, row: Row, read: Read) -> bool:
        try:
            number, expected = self._encode(read.take(row.source))
            value = read.take_target(row.target)
            other, found = self._encode(value)
            if number == other and hmac.compare_digest(expected, found):
                return True
            # A plain column need not keep what only a sealed one does: the zeros of 1.10, the offset of an instant.
            return not isinstance(self._target, Sealed) and bool(value == read.take(row.source))
        except (EncodingError, OpenError):
            return False
        except PiiVaultError:
            raise
        except Exception:  # noqa: BLE001 - it could hold the value; it is moved anew, and then named
            return False

    def _by_tenant(self, rows: Sequence[Row], do: Callable[[Scope, list[Row]], object]) -> None:
        """Do something with rows, tenant by tenant, inside the tenant's scope."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            tenant = self._owners.tenant(row.owner)
            if tenant is None:
                self._failed(row, "it belongs to nobody whose keys there are")
            else:
                groups.setdefault(tenant, []).append(row)
        for tenant, mine in groups.items():
            try:
                with self._owners.scopes(tenant) as scope:
                    do(scope, mine)
            except PiiVaultError as error:
                failure = named(tenant, error)
            else:
                continue
            raise failure

    def _declare(self, scope: Scope, target: Sealed) -> None:
        """Write down what the slots hold, before anything is sealed."""
        slots = target.kind.slots
        if not slots or scope.tenant in self._declared:
            return
        if scope.keyring.declare(scope.renew(), str(target.kind.context), slots):
            self._declared.add(scope.tenant)

    def _new(self, row: Row, read: Read) -> Any:
        """Return what is to be written in a row; None where that cannot be said."""
        try:
            new = self._target.write(read.take(row.source))
        except (EncodingError, OpenError) as error:
            why = str(error.args[0])
        except PiiVaultError:
            raise
        except Exception as error:  # noqa: BLE001 - it could hold the value
            why = f"it cannot be read as the type says ({type(error).__name__})"
        else:
            if new is not None:
                return new
            why = "it is read as None, which is stored as NULL"
        self._failed(row, why)
        return None

    def _failed(self, row: Row, why: str) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems[_where(row)] = why

    def _refuse_problems(self) -> None:
        if self._problems:
            key = ", ".join(self._place.key)
            each = [f"row with {key} = {where}: {why}" for where, why in self._problems.items()]
            raise BackfillError(
                f"not every value of {self._name} could be moved: {listed(each)}",
                hint="correct these rows and run it again: it goes on where it was, and nothing is dropped before",
            )

    def _write(self, transaction: Transaction, change: Change, *, again: bool) -> int:
        if not len(change):
            return 0
        try:
            return self._retried(transaction, lambda connection: self.rows.write(connection, change, again=again))
        except _REFUSALS as error:
            whole = isinstance(error, DBAPIError) and not _is_about_values(error)
            refusal = type(getattr(error, "orig", error)).__name__
        if whole:
            raise self._unable(refusal)
        half = len(change) // 2
        if half:  # which one it is, is found out by halves
            parts = (change.part(slice(half)), change.part(slice(half, None)))
            return sum(self._write(transaction, part, again=again) for part in parts)
        self._failed(change.rows[0], f"the database does not take it ({refusal})")
        return 0

    def _in(self, transaction: Transaction, do: Callable[[Connection], T]) -> T:
        try:
            return self._retried(transaction, do)
        except DBAPIError as error:
            failure = type(error.orig).__name__
        # Not chained: driver errors carry parameters.
        raise self._unable(failure)

    def _retried(self, transaction: Transaction, do: Callable[[Connection], T]) -> T:
        def once() -> T:
            with transaction() as connection:
                return do(connection)

        with suppress(PendingRollbackError):  # what was set on the connection is lost with it, so there is no other one
            return with_retries(once)
        raise self._unable("the connection was lost")

    def _unable(self, failure: str) -> ConfigurationError:
        return ConfigurationError(
            f"rows of table {self._place.name!r} cannot be read or written: {failure}",
            hint="what is done stays; running it again goes on from there",
        )


def _where(row: Row) -> str:
    return ", ".join(map(str, row.key))


def _is_about_values(error: DBAPIError) -> bool:
    """Say whether a value is what a database refuses."""
    return type(error).__name__ in {"DataError", "IntegrityError"}
