"""Seal stored values anew, online: a batch of rows after the other, in order of the primary key.

A row is written only over the very bytes that were read (compare and swap), so nothing that somebody writes meanwhile
is lost. Each batch is a transaction of its own, and which rows are left is read off their headers, so a run that was
ended in any way is simply started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import compress, pairwise
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, Engine, LargeBinary, MetaData, Table, and_, func, or_, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from ..errors import ConfigurationError
from ..orm.attachment import attached
from ..orm.engine import warm
from ..orm.readiness import of_tenant, owned
from ..scope import Scope
from ..telemetry import telemetry
from .ahead import one_ahead
from .coverage import counted
from .crews import Part
from .failures import named, way_out
from .moving import Moving
from .pacing import BATCH, Pace
from .retrying import with_retries
from .rows import WHOLE, Change, Key, Read, Span, rows_of
from .targets import Problem, Target, Wanted

T = TypeVar("T")

_PASSES: Final = 10
"""How often a table is gone through: rows that others have changed meanwhile are left to the next time."""

_FARTHEST: Final = 32
"""Through how many batches' rows one batch looks at most, while it finds little."""

_NAMED: Final = 1_000
"""How many problems of a table are named at most."""


class Resealing:
    """Seals anew what is not sealed as wanted, in one table for the tenant in scope.

    Args:
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        target: The table.
        wanted: What values are to be sealed with.
        batch: How many rows at a time.
        span: Which piece of the table.
    """

    def __init__(
        self,
        engine: Engine,
        scope: Scope,
        target: Target,
        wanted: Wanted,
        batch: int = BATCH,
        span: Span = WHOLE,
    ) -> None:
        self._engine: Final = engine
        self._scope: Final = scope
        self._target: Final = target
        self._wanted: Final = wanted
        self._batch: Final = batch
        self._span: Final = span
        # A value that stands in another tenant's row gets its tokens there, but no new key: somebody has to look at it.
        mine = whose_rows(engine, target, scope.tenant) if wanted.version is not None else None
        self._rows: Final = rows_of(engine, target, mine)
        self._moving: Final = {name: Moving(engine.dialect, scope, kind, wanted) for name, kind in target.kinds.items()}
        self._problems: Final[dict[tuple[str, str], Problem]] = {}
        keyset = scope.renew()
        stored = {name: Column(name, LargeBinary) for name in target.kinds}
        lacking = [
            and_(owned(stored[name], keyset), wanted.lacks(stored[name], kind)) for name, kind in target.kinds.items()
        ]
        self._left: Final = or_(*lacking)

    def declare(self) -> None:
        """Write down what the columns' slots hold, before anything is sealed: counting writes nothing."""
        keyset = self._scope.renew()
        for kind in self._target.kinds.values():
            self._scope.keyring.declare(keyset, str(kind.context), kind.slots)

    def count(self) -> int:
        """Return how many rows are left.

        Raises:
            ConfigurationError: the table cannot be read.
        """
        home = self._target.table
        table = Table(home.name, MetaData(), schema=home.schema)
        query = select(func.count()).select_from(table).where(self._left)
        return int(counted(self._engine, self._target.name, query)[0])

    @property
    def table(self) -> str:
        """The table's name."""
        return self._target.name

    @property
    def problems(self) -> list[Problem]:
        """Values that could not be sealed anew, up to 1,000 of them."""
        return list(self._problems.values())

    def parts(self, pace: Pace, rows: int) -> list[Part]:
        """Cut what is left into parts of so many rows.

        Raises:
            ConfigurationError: the table cannot be read.
        """
        ends = self._guarded(lambda: with_retries(partial(self._rows.ends, self._left, rows)))
        spans = [Span(after, upto) for after, upto in pairwise([None, *ends, None])]
        return [Part(self._scope.tenant, self.table, span, self._wanted, pace) for span in spans]

    def run(self) -> Generator[int]:
        """Go through the table until nothing is left but rows with problems; yield how many rows are written each time.

        Raises:
            ConfigurationError: the table cannot be read, or not be written. What was written stays.
        """
        steps = self._steps()
        while (written := self._guarded(partial(next, steps, None))) is not None:
            yield written

    def _guarded(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except DBAPIError as error:
            failure = named(error)
        # Not chained: driver errors carry parameters.
        raise ConfigurationError(
            f"rows of table {self._target.name!r} cannot be sealed anew: {failure}",
            hint=way_out(failure),
        )

    def _steps(self) -> Iterator[int]:
        """Go through the piece, again while anything was found that could be written.

        While a batch is written the next one is read and sealed, where the driver can do that.
        """
        found = True
        for _ in range(_PASSES):
            if not found:
                return
            found = False
            batches = self._batches()
            for changes in one_ahead(batches) if self._rows.side_by_side else batches:
                found = found or bool(changes)
                written = sum(map(self._write, changes))
                telemetry().resealed(self.table, written)
                yield written

    def seconds(self) -> float:
        """Return about how long a row takes, reckoned from some that are read and opened, and not written.

        Sealing is taken to cost what opening does, and writing what reading does. 0 where nothing is left.
        """
        began = time.perf_counter()
        span: Span | None = self._span
        while span is not None:
            read, span = self._guarded(partial(self._few, span, self._batch))
            if read.keys:
                for moving, stored in zip(self._moving.values(), read.columns, strict=True):
                    moving.open_all(stored)
                return 2 * (time.perf_counter() - began) / len(read.keys)
        return 0.0

    def _batches(self) -> Iterator[list[Change]]:
        """Yield what is to be written, batch by batch.

        Where most rows are left they are read as they come. Where little is, one batch looks through more rows.
        """
        span: Span | None = self._span
        size, most = self._batch, False
        while span is not None:
            read, following = self._all(span) if most else self._few(span, size)
            changes = self._changes(read) if read.keys else []
            if read.keys:
                yield changes
            found = sum(len(each.keys) for each in changes)
            most = 2 * found >= self._batch
            size = size if 2 * found >= size else min(2 * size, _FARTHEST * self._batch)
            span, size = following, self._batch if most else size

    def _all(self, span: Span) -> tuple[Read, Span | None]:
        """Read the next rows, left or not; return what of the piece follows, or None."""
        read = with_retries(partial(self._rows.read, None, span, self._batch))
        return read, Span(read.keys[-1], span.upto) if len(read.keys) == self._batch else None

    def _few(self, span: Span, size: int) -> tuple[Read, Span | None]:
        """Read rows that are left, of the next so many; likewise."""
        end = with_retries(partial(self._rows.end, span, size))
        piece = Span(span.after, span.upto if end is None else end)
        read = with_retries(partial(self._rows.read, self._left, piece, self._batch))
        after = read.keys[-1] if len(read.keys) == self._batch else end
        return read, None if after is None else Span(after, span.upto)

    def _changes(self, read: Read) -> list[Change]:
        """Return what is to be written of some rows, those together of which the same columns change."""
        warm(self._scope, len(read.keys) * len(read.columns))
        after = [
            moving.moved(stored, partial(self._failed, name, read.keys))
            for (name, moving), stored in zip(self._moving.items(), read.columns, strict=True)
        ]
        if not any(None in each for each in after):  # as a rule
            return [Change(tuple(self._moving), read.keys, read.columns, after)]
        rows: dict[tuple[bool, ...], list[int]] = {}
        for place, row in enumerate(zip(*after, strict=True)):
            rows.setdefault(tuple([each is not None for each in row]), []).append(place)
        return [self._change(read, after, which, places) for which, places in rows.items() if any(which)]

    def _change(
        self, read: Read, after: Sequence[Sequence[Any]], which: Sequence[bool], places: Sequence[int]
    ) -> Change:
        def taken(columns: Sequence[Sequence[Any]]) -> list[list[Any]]:
            return [[column[place] for place in places] for column in compress(columns, which)]

        names = tuple(compress(self._moving, which))
        return Change(names, [read.keys[place] for place in places], taken(read.columns), taken(after))

    def _failed(self, name: str, keys: Sequence[Key], place: int, why: str) -> None:
        key = ", ".join(map(str, keys[place]))
        if len(self._problems) < _NAMED:
            self._problems[name, key] = Problem(f"{self._target.name}.{name}", key, why)

    def _write(self, change: Change) -> int:
        try:
            # What was written before an answer got lost is not written again: its bytes are no longer those before.
            return with_retries(partial(self._rows.write, change))
        except IntegrityError as error:
            refusal = named(error)
        count = len(change.keys)
        if count > 1:  # one of them clashes: which one is found out by halves
            return sum(self._write(change.part(half)) for half in (slice(count // 2), slice(count // 2, None)))
        unique = [name for name in change.names if any(slot and slot.unique for slot in self._target.kinds[name].slots)]
        for name in unique or change.names:
            why = (
                "another row has the same value, and the index is unique" if unique else f"the database said {refusal}"
            )
            self._failed(name, change.keys, 0, why)
        return 0


def whose_rows(engine: Engine, target: Target, tenant: str) -> ColumnElement[bool] | None:
    """Return the condition that a row is a tenant's, where its table says so: what stands elsewhere stays as it is."""
    attachment = attached(engine.dialect)
    whose = of_tenant(target.table, attachment.tenant_column if attachment is not None else None, tenant)
    return None if whose is None else whose[1]
