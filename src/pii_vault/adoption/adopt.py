"""The adoption of one column: where it stands, its next step, and the one back.

The key store keeps each step that was taken; that is what is meant to be. The application's database is what is. The
two are compared before each step, and a step is written down after it was done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, MetaData

from ..audit.facts import Event
from ..backfill.whose import Owners
from ..errors import AdoptionError, ConfigurationError
from ..keyring.terms import NOTICE_SECONDS
from ..lifecycle.parts import Parts, decided
from ..reencryption.pacing import Pace
from ..scope import Scope
from ..stages import AdoptionRecord, Stage, following, preceding
from .columns import Pair, declared, pair_of
from .guard import Mode
from .looking import GUARDED, Counts, Observed, look
from .moves import Moves, Progress, looking

QUIET_SECONDS: Final = 10.0
"""For how long it is watched whether somebody still writes one column alone, before that is refused."""

_LONGEST_FALLBACK_DAYS: Final = 90


@dataclass(frozen=True, slots=True)
class Status:
    """Where an adoption stands, and what the database has of it.

    Attributes:
        pair: The columns.
        stage: The stage.
        steps: All steps that were taken, in order.
        observed: What the database has.
        drift: What is not as the stage says, one sentence each.
    """

    pair: Pair
    stage: Stage
    steps: tuple[AdoptionRecord, ...]
    observed: Observed
    drift: tuple[str, ...]

    @property
    def fallback_until(self) -> datetime | None:
        """Until when reads may take the plaintext where no value was sealed yet, UTC; None for never."""
        return self.steps[-1].fallback_until if self.steps else None


class Adoption:
    """The adoption of one plaintext column.

    Args:
        parts: What a vault works with.
        scopes: Returns a tenant's scope.
        only: The tenant of all rows, where no column says whose they are.
        engine: On the application's database.
        metadata: The application's tables.
        context: The context id of the sealed column, or the plaintext column as ``table.column``.
        tenant_column: The column that says whose row it is, or None.

    Raises:
        AdoptionError: nobody knows such a column.
        ConfigurationError: the models declare it wrongly.
    """

    def __init__(
        self,
        parts: Parts,
        scopes: Callable[[str], Scope],
        only: str | None,
        engine: Engine,
        metadata: MetaData,
        context: str,
        tenant_column: str | None,
    ) -> None:
        self._parts: Final = parts
        self._scopes: Final = scopes
        self._engine: Final = engine
        self.pair: Final = pair_of(context, metadata, parts.store.adoptions())
        self._tenant_column: Final = tenant_column
        self._only: Final = only if tenant_column is None else None

    def status(self, *, count: bool = True) -> Status:
        """Say where it stands, and what of that is not so in the database. Changes nothing.

        Args:
            count: Whether rows are counted, too.
        """
        steps = tuple(self._parts.store.adoption_steps(self.pair.context))
        stage = steps[-1].stage if steps else Stage.NONE
        with looking(self._engine) as connection:
            observed = look(connection, self.pair, count=count)
        return Status(self.pair, stage, steps, observed, tuple(observed.drift(self.pair, stage)))

    def next(
        self,
        *,
        reason: str = "",
        pace: Pace | None = None,
        quiet: float = QUIET_SECONDS,
        progress: Progress = lambda what, done, total: None,
    ) -> AdoptionRecord:
        """Take the next step, and return it. Ended in any way, it is taken again.

        Args:
            reason: Why, for the audit log.
            pace: How fast rows are written.
            quiet: For how many seconds it is watched whether somebody still writes as before.
            progress: Told how far it is.

        Raises:
            AdoptionError: the database is not so far; says what is in the way.
            BackfillError: some values cannot be sealed; names the rows. The others are.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason.
        """
        status = self.status(count=False)
        stage = following(status.stage)
        if stage is None:
            raise AdoptionError(
                f"the adoption of {self.pair.name} is at its last stage, {status.stage}",
                hint=f"drop the column {self.pair.plaintext!r} in a migration"
                if status.observed.has_plaintext
                else "nothing is left to do",
            )
        moves = self._moves(status, pace, progress)
        self._guard_again(status, stage, moves)
        rows = self._forward(stage, status, moves, quiet)
        return self._taken(status, stage, rows, reason, moves)

    def rollback(
        self,
        *,
        reason: str = "",
        pace: Pace | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> AdoptionRecord:
        """Take one step back, and return where that leads. No value is lost.

        Args:
            reason: Why, for the audit log.
            pace: How fast rows are written.
            progress: Told how far it is.

        Raises:
            AdoptionError: there is no step back, or the database is not so far.
        """
        status = self.status(count=False)
        stage = preceding(status.stage)
        if stage is None:
            raise AdoptionError(f"the adoption of {self.pair.name} has not begun", hint="there is nothing to take back")
        moves = self._moves(status, pace, progress)
        if status.stage is Stage.SWITCHED:
            # First nobody reads the sealed column any longer, and then others may empty it.
            step = self._taken(status, stage, None, reason, moves)
            time.sleep(NOTICE_SECONDS + 0.5)
            moves.guard(GUARDED[stage])
            return step
        rows = None
        if stage is Stage.NONE:
            moves.unguard()
        elif status.stage is Stage.RETIRED:
            rows = self._back_to_both(moves)
        else:
            self._require_plaintext(status.observed)
            moves.guard(GUARDED[stage])
        return self._taken(status, stage, rows, reason, moves)

    def allow_fallback(self, until: datetime | None, *, reason: str = "") -> AdoptionRecord:
        """Let reads take the plaintext where no value was sealed yet, until an instant. Audited for each tenant.

        Args:
            until: An instant in UTC, in at most 90 days; None to end it now: within 5 seconds everywhere.
            reason: Why, for the audit log.

        Raises:
            AdoptionError: the adoption has not begun, or needs none any longer.
            ConfigurationError: the column does not declare it, or it is for too long.
        """
        status = self.status(count=False)
        if until is not None:
            if self.pair.kind is None or not self.pair.kind.falls_back:
                raise ConfigurationError(
                    f"the model does not declare that {self.pair.sealed!r} falls back",
                    hint=f"EncryptedString().adopting({self.pair.plaintext!r}, falls_back=True)",
                )
            if not 0 < (until - self._parts.now()).total_seconds() <= _LONGEST_FALLBACK_DAYS * 86_400:
                raise ConfigurationError(f"a fallback ends within {_LONGEST_FALLBACK_DAYS} days, and not in the past")
            if GUARDED.get(status.stage) is not Mode.EMPTIES_SEALED or status.drift:
                raise AdoptionError(
                    f"the adoption of {self.pair.name} is at the stage {status.stage}, where nothing is to fall back "
                    "to: " + "; ".join(status.drift or ("the guard is not there, or no longer needed",)),
                    hint="pii-vault adopt status",
                )
        moves = self._moves(status, None, lambda what, done, total: None)
        return self._taken(status, status.stage, None, reason, moves, fallback=until, told=True)

    # Forward.

    def _forward(self, stage: Stage, status: Status, moves: Moves, quiet: float) -> int | None:
        if stage is Stage.ADDED:
            self._check_columns(status.observed)
            self._refuse(moves.count().sealed_only, f"hold {self.pair.sealed!r} and no {self.pair.plaintext!r}")
            moves.guard(Mode.EMPTIES_SEALED)
            return None
        self._require_plaintext(status.observed)
        if stage is Stage.FILLED:
            moves.ask()
            return moves.fill()
        if stage is Stage.VERIFIED:
            moves.ask()
            return moves.compare()
        if stage is Stage.SWITCHED:
            return self._switch(moves, quiet)
        if stage is Stage.RETIRED:
            self._check_nullable(status.observed)
            self._refuse(moves.count().plaintext_only, f"hold {self.pair.plaintext!r} and no {self.pair.sealed!r}")
            moves.guard(Mode.EMPTIES_PLAINTEXT)
            return None
        return self._empty(moves, quiet)

    def _switch(self, moves: Moves, quiet: float) -> int:
        moves.ask()
        rows = moves.fill()
        who = f"somebody who writes {self.pair.plaintext!r} alone"
        moves.watch(quiet, lambda counts: counts.plaintext_only, who)
        moves.guard(Mode.REFUSES)
        rows += moves.fill()
        counts = moves.count()
        self._refuse(counts.plaintext_only + counts.sealed_only, "hold only one of the two")
        return rows

    def _empty(self, moves: Moves, quiet: float) -> int:
        self._refuse(moves.count().plaintext_only, f"hold {self.pair.plaintext!r} and no {self.pair.sealed!r}")
        rows = moves.empty()
        moves.watch(quiet, lambda counts: counts.plaintext, f"somebody who still writes {self.pair.plaintext!r}")
        moves.unguard()
        return rows

    def _back_to_both(self, moves: Moves) -> int:
        moves.guard(Mode.REFILLS)
        rows = moves.refill()
        counts: Counts = moves.count()
        self._refuse(counts.plaintext_only + counts.sealed_only, "hold only one of the two")
        moves.guard(Mode.REFUSES)
        return rows

    # What has to be so.

    def _guard_again(self, status: Status, stage: Stage, moves: Moves) -> None:
        """Put the guard back where it should be and is not; what was written without it is looked at anew."""
        wanted, found = GUARDED.get(status.stage), status.observed.guard
        if wanted is None or found in (wanted, GUARDED.get(stage)):
            return
        moves.guard(wanted)
        if wanted is Mode.EMPTIES_SEALED:
            if status.stage is not Stage.ADDED:
                self._taken(status, Stage.ADDED, None, "the guard was not what it should be", moves)
            raise AdoptionError(
                f"the guard of {self.pair.name} was not there, and is again; the adoption is at the stage added, since "
                "rows may have been written without it",
                hint="take the next step: each value is filled and compared anew",
            )
        raise AdoptionError(
            f"the guard of {self.pair.name} was not there, and is again; rows may have been written without it",
            hint="look at what they hold: pii-vault adopt status; and take the step again",
        )

    def _require_plaintext(self, observed: Observed) -> None:
        if not (observed.has_plaintext and observed.has_sealed):
            gone = self.pair.plaintext if not observed.has_plaintext else self.pair.sealed
            raise AdoptionError(
                f"{self.pair.table_name} has no column {gone!r}", hint="bring it back in a migration: nullable"
            )

    def _check_columns(self, observed: Observed) -> None:
        pair = self.pair
        if not observed.has_sealed:
            raise AdoptionError(
                f"{pair.table_name} has no column {pair.sealed!r} yet",
                hint="add it in a migration: `alembic revision --autogenerate` writes it, with its indexes",
            )
        self._require_plaintext(observed)
        if not observed.sealed_nullable:
            raise AdoptionError(
                f"{pair.table_name}.{pair.sealed} may not be NULL, and it is until its rows are filled",
                hint="make it nullable in a migration, until the adoption is finished",
            )
        if pair.plaintext in observed.key:
            raise ConfigurationError(f"{pair.name} is part of the primary key", hint="a sealed value is no key")

    def _check_nullable(self, observed: Observed) -> None:
        if not observed.plaintext_nullable:
            raise AdoptionError(
                f"{self.pair.name} may not be NULL, and from the stage retired on nobody needs to write it",
                hint=f"make it nullable in a migration: op.alter_column({self.pair.table!r}, {self.pair.plaintext!r}, "
                "nullable=True)",
            )

    def _refuse(self, rows: int, what: str) -> None:
        if rows:
            raise AdoptionError(
                f"{rows:,} rows of {self.pair.table_name} {what}", hint="find out who has written them, and mend them"
            )

    # What was done is written down.

    def _taken(
        self,
        status: Status,
        stage: Stage,
        rows: int | None,
        reason: str,
        moves: Moves,
        *,
        fallback: datetime | None = None,
        told: bool = False,
    ) -> AdoptionRecord:
        pair, parts = self.pair, self._parts
        if not told:  # a fallback that was allowed goes on until the switch, or its end
            fallback = status.fallback_until if GUARDED.get(stage) is Mode.EMPTIES_SEALED else None
        step = AdoptionRecord(
            context=pair.context,
            number=len(status.steps) + 1,
            stage=stage,
            table=pair.table_name,
            plaintext=pair.plaintext,
            sealed=pair.sealed,
            fallback_until=fallback,
            rows=rows,
            made_at=parts.now(),
            made_by=parts.ledger.actor,
            reason=reason,
        )
        if told or Stage.SWITCHED in (stage, status.stage) or Stage.EMPTIED in (stage, status.stage):
            for tenant in moves.tenants():
                self._tell(tenant, step)
        parts.store.add_adoption_step(step)
        return step

    def _tell(self, tenant: str, step: AdoptionRecord) -> None:
        """Write a step into a tenant's audit log, before it holds: what the log lacks is worse than what it repeats."""
        details: dict[str, str | int] = {"context": step.context, "stage": str(step.stage), "step": step.number}
        if step.fallback_until is not None:
            details["fallback_until"] = step.fallback_until.isoformat(timespec="seconds")

        def attempt() -> None:
            snapshot = self._parts.store.load(tenant)
            page = self._parts.ledger.page(snapshot.tenant, snapshot)
            with self._parts.store.change(snapshot) as change:
                page.write(change, Event.COLUMN_ADOPTION, reason=step.reason, adoption=details)

        decided(tenant, attempt)

    def _moves(self, status: Status, pace: Pace | None, progress: Progress) -> Moves:
        if self._tenant_column is None and self._only is None:
            raise ConfigurationError(
                f"nobody says whose rows those of {self.pair.table_name} are",
                hint="name the column that does: tenant_column='tenant_id', --tenant-column tenant_id",
            )
        owners = Owners(self._scopes, self._parts.store.names(), self._only)
        return Moves(
            self._engine,
            self.pair,
            status.observed,
            owners,
            self._tenant_column,
            self._parts.keyring,
            pace or Pace(),
            progress,
        )


def adoptions(parts: Parts, metadata: MetaData) -> list[str]:
    """Return the names of all adoptions: those that models declare, and those that were begun."""
    begun = [step.context for step in parts.store.adoptions() if step.stage is not Stage.NONE]
    return sorted({*(pair.context for pair in declared(metadata)), *begun})
