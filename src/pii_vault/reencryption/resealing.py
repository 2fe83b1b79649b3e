"""Seal stored values anew, online: a batch of rows after the other, in order of the primary key.

A row is written only over the very bytes that were read (compare and swap), so nothing that somebody writes meanwhile
is lost. Each batch is a transaction of its own, and which rows are left is read off their headers, so a run that was
ended in any way is simply started again. Nothing of the ORM takes part: no event, no ``onupdate``, no version counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Engine,
    LargeBinary,
    MetaData,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from ..envelope import Header, parse
from ..errors import ConfigurationError, OpenError
from ..orm.encrypted_type import EncryptedType
from ..orm.engine import warm
from ..orm.readiness import lacking, owned, under_older
from ..scope import Scope
from .coverage import counted
from .retrying import with_retries

BATCH: Final = 500
"""How many rows are read, sealed and written together."""

_PASSES: Final = 10
"""How often a table is gone through: rows that others have changed meanwhile are left to the next time."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that could not be sealed anew. It stays as it is.

    Attributes:
        column: ``table.column``.
        key: The row's primary key, as text.
        why: What is wrong, without the value.
    """

    column: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Target:
    """A table with encrypted columns that are to be sealed anew.

    Attributes:
        table: The table.
        key: Its primary key's columns.
        kinds: The columns' types, by their names in the database.
    """

    table: Table
    key: tuple[Column[Any], ...]
    kinds: dict[str, EncryptedType[Any]]

    @property
    def name(self) -> str:
        """Its name, with its schema if it has one."""
        return self.table.fullname


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a value is to be sealed with; one that is not is sealed anew.

    Attributes:
        generations: Of index keys: its tokens, if its column declares any.
        version: Of data keys, or a later one: what somebody has sealed with a newer key meanwhile is never sealed back.
            None for any.
    """

    generations: frozenset[int]
    version: int | None = None

    def lacks(self, stored: Any, kind: EncryptedType[Any]) -> ColumnElement[bool]:
        """Return the condition that a stored value of a column is not."""
        conditions: list[ColumnElement[bool]] = []
        if kind.slots:
            conditions.append(lacking(stored, len(kind.slots), self.generations))
        if self.version is not None:
            conditions.append(under_older(stored, self.version))
        return or_(*conditions)

    def is_lacking(self, header: Header, kind: EncryptedType[Any]) -> bool:
        """Say the same of one that was read."""
        if self.version is not None and header.version < self.version:
            return True
        tokens = len(kind.slots)
        return tokens > 0 and not (header.tokens >= tokens and header.index_generation in self.generations)


def encrypted_tables(metadata: MetaData) -> list[Target]:
    """Return the tables with encrypted columns.

    Raises:
        ConfigurationError: there is none, or one of them has no primary key.
    """
    return _targets(metadata, lambda _kind: True, "the metadata holds no encrypted column")


def searched_tables(metadata: MetaData) -> list[Target]:
    """Return the tables whose columns declare tokens, with these columns.

    Raises:
        ConfigurationError: there is none, or one of them has no primary key.
    """
    nothing = "no encrypted column of the metadata declares an index or tokens"
    return _targets(metadata, lambda kind: bool(kind.slots), nothing)


def _targets(metadata: MetaData, takes: Callable[[EncryptedType[Any]], bool], nothing: str) -> list[Target]:
    found = []
    for each in metadata.sorted_tables:
        encrypted = {mine.name: mine.type for mine in each.columns if isinstance(mine.type, EncryptedType)}
        kinds = {name: kind for name, kind in encrypted.items() if takes(kind)}
        if kinds:
            found.append(Target(each, tuple(each.primary_key.columns), kinds))
    if not found:
        raise ConfigurationError(nothing, hint="name the declarative base or the MetaData of the application's models")
    for target in found:
        if not target.key:
            raise ConfigurationError(
                f"table {target.name!r} has no primary key, so its rows cannot be gone through one after the other",
                hint="give it one, or write its rows anew yourself",
            )
    return found


class Resealing:
    """Seals anew what is not sealed as wanted, in one table for the tenant in scope.

    Args:
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        target: The table.
        wanted: What values are to be sealed with.
        batch: How many rows at a time.
    """

    def __init__(self, engine: Engine, scope: Scope, target: Target, wanted: Wanted, batch: int = BATCH) -> None:
        self._engine: Final = engine
        self._scope: Final = scope
        self._target: Final = target
        self._wanted: Final = wanted
        self._batch: Final = batch
        self._opens: Final = {name: kind.result_processor(engine.dialect, None) for name, kind in target.kinds.items()}
        self._seals: Final = {name: kind.bind_processor(engine.dialect) for name, kind in target.kinds.items()}
        # Plain columns by name: what is read and written here is sealed.
        self._stored: Final = {name: Column(name, LargeBinary) for name in target.kinds}
        self._key: Final = [Column(each.name, each.type) for each in target.key]
        columns = (*self._key, *self._stored.values())
        # A table of its own: an engine's schema map is followed only for a Table.
        self._table: Final = Table(target.table.name, MetaData(), *columns, schema=target.table.schema)
        self._problems: Final[dict[tuple[str, str], Problem]] = {}
        keyset = scope.renew()
        mine = [
            and_(owned(self._stored[name], keyset), wanted.lacks(self._stored[name], kind))
            for name, kind in target.kinds.items()
        ]
        self._left: Final = or_(*mine)
        self._keyset_id: Final = keyset.identity.keyset_id

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
        query = select(func.count()).select_from(self._table).where(self._left)
        return int(counted(self._engine, self._target.name, query)[0])

    def run(self, progress: Callable[[int], object]) -> list[Problem]:
        """Go through the table until nothing is left but rows with problems; return these.

        Args:
            progress: Told how many rows were written since it was told last.

        Raises:
            ConfigurationError: the table cannot be read, or not be written. What was written stays.
        """
        try:
            for _ in range(_PASSES):
                if not self._pass(progress):
                    break
            return list(self._problems.values())
        except DBAPIError as error:
            failure = type(error.orig).__name__
        # Not chained: driver errors carry parameters.
        raise ConfigurationError(
            f"rows of table {self._target.name!r} cannot be sealed anew: {failure}",
            hint="SELECT and UPDATE on it are needed; what is done stays, and doing it again goes on from there",
        )

    def _pass(self, progress: Callable[[int], object]) -> bool:
        """Go through the table once; return whether anything was found that could be written."""
        found, last = False, None
        while True:
            rows = with_retries(partial(self._read, last))
            if not rows:
                return found
            last = tuple(rows[-1][: len(self._key)])
            changes = list(self._changes(rows))
            written = self._write(changes)
            found = found or bool(changes)
            progress(written)

    def _read(self, last: tuple[Any, ...] | None) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(self._next(last)).all()

    def _next(self, last: tuple[Any, ...] | None) -> Any:
        query = select(*self._key, *self._stored.values()).where(self._left).order_by(*self._key).limit(self._batch)
        if last is None:
            return query
        if len(last) == 1:
            return query.where(self._key[0] > last[0])
        return query.where(tuple_(*self._key) > tuple_(*last))

    def _changes(self, rows: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yield for each row its key and, of each column that is sealed anew, the bytes before and after."""
        warm(self._scope, len(rows) * len(self._stored))
        for row in rows:
            change: dict[str, Any] = {}
            for name, before in zip(self._stored, row[len(self._key) :], strict=True):
                if before is None or not self._is_left(name, bytes(before)):
                    continue
                after = self._resealed(name, bytes(before), row)
                if after is not None:
                    change |= {f"before_{name}": bytes(before), f"after_{name}": after}
            if change:
                yield change | {f"key_{i}": value for i, value in enumerate(row[: len(self._key)])}

    def _is_left(self, name: str, sealed: bytes) -> bool:
        try:
            header = parse(sealed)
        except OpenError:
            return int.from_bytes(sealed[1:5], "big") == self._keyset_id
        if header.keyset_id != self._keyset_id:
            return False  # another tenant's row: never touched here
        return self._wanted.is_lacking(header, self._target.kinds[name])

    def _resealed(self, name: str, before: bytes, row: Any) -> bytes | None:
        failure = ""
        try:
            sealed: bytes = self._seals[name](self._opens[name](before))
            return sealed
        except OpenError as error:
            failure = error.args[0]
        self._problem(name, row[: len(self._key)], failure)
        return None

    def _problem(self, name: str, key: Sequence[Any], why: str) -> None:
        text = ", ".join(map(str, key))
        self._problems[name, text] = Problem(f"{self._target.name}.{name}", text, why)

    def _write(self, changes: list[dict[str, Any]]) -> int:
        if not changes:
            return 0
        try:
            # What was written before an answer got lost is not written again: its bytes are no longer those before.
            return with_retries(partial(self._update, changes))
        except IntegrityError as error:
            refusal = type(error.orig).__name__
        if len(changes) > 1:  # one of them clashes: which one is found out one by one
            return sum(self._write([change]) for change in changes)
        (change,) = changes
        key = [change[f"key_{i}"] for i in range(len(self._key))]
        changed = [name for name in self._target.kinds if f"after_{name}" in change]
        unique = [name for name in changed if any(slot and slot.unique for slot in self._target.kinds[name].slots)]
        for name in unique or changed:
            why = (
                "another row has the same value, and the index is unique" if unique else f"the database said {refusal}"
            )
            self._problem(name, key, why)
        return 0

    def _update(self, changes: list[dict[str, Any]]) -> int:
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for change in changes:
            changed = tuple(name for name in self._stored if f"after_{name}" in change)
            by_columns.setdefault(changed, []).append(change)
        written = 0
        with self._engine.begin() as connection:
            for changed, rows in by_columns.items():
                same = [self._stored[name] == bindparam(f"before_{name}", type_=LargeBinary) for name in changed]
                key = [each == bindparam(f"key_{i}", type_=each.type) for i, each in enumerate(self._key)]
                new = {name: bindparam(f"after_{name}", type_=LargeBinary) for name in changed}
                result = connection.execute(update(self._table).where(*key, *same).values(new), rows)
                written += max(result.rowcount, 0)
        return written


def reseal(
    engine: Engine,
    scope: Scope,
    targets: Sequence[Target],
    wanted: Wanted,
    progress: Progress,
    batch: int = BATCH,
) -> list[Problem]:
    """Seal anew what is not sealed as wanted, in all tables, for the tenant in scope.

    Args:
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        targets: The tables.
        wanted: What values are to be sealed with.
        progress: Told how many rows are done, of how many.
        batch: How many rows at a time.
    """
    jobs = [Resealing(engine, scope, target, wanted, batch) for target in targets]
    for job in jobs:
        job.declare()
    total, done = sum(job.count() for job in jobs), 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    progress(0, total)
    return [problem for job in jobs for problem in job.run(more)]
