"""Re-encrypt: move every value of a tenant to its ACTIVE data key, online, so that older keys have nothing left.

Rows are sealed anew as everything here is (`resealing`). Whether nothing is left is honest only when nobody can be
sealing with an older key any more: a process holds its keys for a while, and a transaction that has used them may be
open still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Engine, LargeBinary, MetaData, Table, and_, case, func, not_, select

from ..errors import ConfigurationError, KeyStateError
from ..lifecycle.ending import DRAIN
from ..lifecycle.parts import Parts
from ..orm.readiness import owned
from ..scope import Scope
from ..sealing import Keyset
from ..telemetry import telemetry
from .coverage import counted
from .crews import Crew, Part, PartDone
from .pacing import Pace, Pacing
from .resealing import Resealing, whose_rows
from .running import Progress, reseal
from .targets import Problem, Target, Wanted, encrypted_tables


@dataclass(frozen=True, slots=True)
class Reencryption:
    """What a run of re-encryption came to.

    Attributes:
        tenant: Whose values.
        version: The data-key version that they are sealed with now.
        left: How many rows still hold a value of an older version.
        problems: Values that could not be sealed anew; they stay as they are.
        foreign: How many values in the tenant's rows were not sealed for it, by ``table.column``. They are not touched:
            sealed anew they would become its own. Counted where the table has a tenant column.
        astray: How many values that were sealed for the tenant stand in other tenants' rows and are left there, by
            ``table.column``. Counted likewise.
        drained_at: From when on nobody can be sealing with an older version any longer, UTC.
        complete: Whether nothing is left, counted after that.
        seconds: After a dry run, about how long the rest would take, reckoned from a batch that was read and opened.
    """

    tenant: str
    version: int
    left: int
    problems: tuple[Problem, ...]
    foreign: Mapping[str, int]
    astray: Mapping[str, int]
    drained_at: datetime
    complete: bool
    seconds: float | None = None


def reencrypt(
    parts: Parts,
    engine: Engine,
    scope: Scope,
    metadata: MetaData,
    progress: Progress,
    pace: Pace,
    crew: Crew | None = None,
    *,
    dry_run: bool = False,
) -> Reencryption:
    """Seal every value of the tenant in scope with its ACTIVE data key, in all tables that have encrypted columns.

    Args:
        parts: What the key store is read with.
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        metadata: The application's tables.
        progress: Told a table, how many of its rows are done, and of how many.
        pace: How fast.
        crew: Who does it; None for this thread.
        dry_run: Count, and write nothing.

    Raises:
        ConfigurationError: there is no encrypted column, or a table cannot be read or written.
        KeyStateError: the tenant has no ACTIVE data key.
    """
    targets = encrypted_tables(metadata)
    active = parts.store.load(scope.tenant).active
    if active is None or active.activated_at is None:
        raise KeyStateError(
            f"tenant {scope.tenant!r} has no active data key, so there is nothing to seal with",
            hint=f"make one: pii-vault key rotate {scope.tenant}",
        )
    keyset = scope.renew()
    if keyset.active < active.version:  # fetched before it was rotated
        parts.keyring.evict(scope.tenant)
        keyset = scope.renew()
    wanted = Wanted(keyset.index_generations, active.version)
    problems = () if dry_run else tuple(reseal(engine, scope, targets, wanted, progress, pace, crew))
    counted_at = parts.now()
    jobs = [Resealing(engine, scope, target, wanted, pace.rows) for target in targets]
    counts = [job.count() for job in jobs]
    left = sum(counts)
    seconds = _seconds(jobs, counts, pace, crew) if dry_run else None
    drained_at = active.activated_at + DRAIN
    complete = not left and counted_at >= drained_at
    foreign = _misplaced(engine, keyset, targets, wanted, ours=True)
    astray = _misplaced(engine, keyset, targets, wanted, ours=False) if left else {}
    return Reencryption(scope.tenant, active.version, left, problems, foreign, astray, drained_at, complete, seconds)


def reencrypt_part(engine: Engine, scope: Scope, metadata: MetaData, part: Part) -> PartDone:
    """Do a part of such a run, for the tenant in scope, wherever it was cut.

    Raises:
        ConfigurationError: the metadata has no such table, or it cannot be read or written; or the key store here does
            not know yet which key the values are to have.
    """
    target = next((each for each in encrypted_tables(metadata) if each.name == part.table), None)
    if target is None:
        raise ConfigurationError(
            f"the metadata has no table {part.table!r} with encrypted columns",
            hint="every worker needs the models that the work was cut with",
        )
    keyset = scope.renew()
    if keyset.active < (part.wanted.version or 0):
        raise ConfigurationError(
            f"the key store that this worker reads has no data key version {part.wanted.version} for this tenant",
            hint="every worker needs the key store that the work was cut with, and no replica that lags",
        )
    job = Resealing(engine, scope, target, part.wanted, part.pace.rows, part.span)
    pacing, written = Pacing(engine, part.pace), 0
    with telemetry().resealing(part.table, keyset.identity.tenant_uid.hex()), closing(job.run()) as steps:
        for rows in steps:
            written += rows
            pacing.wrote(rows)
    return PartDone(part.table, written, tuple(job.problems))


def _seconds(jobs: Sequence[Resealing], counts: Sequence[int], pace: Pace, crew: Crew | None) -> float:
    seconds = sum(job.seconds() * count for job, count in zip(jobs, counts, strict=True) if count)
    seconds /= 1 if crew is None else crew.size
    return seconds if pace.rate is None else max(seconds, sum(counts) / pace.rate)


def _misplaced(
    engine: Engine, keyset: Keyset, targets: Sequence[Target], wanted: Wanted, *, ours: bool
) -> dict[str, int]:
    """Count values that were not sealed for the tenant in whose rows they stand, by column.

    Args:
        engine: On the application's database.
        keyset: The tenant's.
        targets: The tables; those that do not say whose rows they hold are left out.
        wanted: What its values are to be sealed with.
        ours: Whether to look for others' values in the tenant's rows, or for its own, that are left, in others'.
    """
    found: dict[str, int] = {}
    for target in targets:
        mine = whose_rows(engine, target, keyset.tenant)
        if mine is None:
            continue
        strange = []
        for name, kind in target.kinds.items():
            stored = Column(name, LargeBinary)
            its = owned(stored, keyset)
            # Not the opposite of a condition: on SQLite a part of no bytes is NULL.
            theirs = case((stored.is_(None), 0), (its, 0), else_=1)
            left = case((and_(its, wanted.lacks(stored, kind)), 1), else_=0)
            strange.append(func.sum(theirs if ours else left))
        table = Table(target.table.name, MetaData(), schema=target.table.schema)
        query: Any = select(*strange).select_from(table).where(mine if ours else not_(mine))
        counts = zip(target.kinds, counted(engine, target.name, query), strict=True)
        found |= {f"{target.name}.{name}": int(count) for name, count in counts if count}
    return found
