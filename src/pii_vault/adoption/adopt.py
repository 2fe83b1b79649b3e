"""The adoption of one column: where it stands, its next step, and the one back.

The key store keeps each step that was taken; that is what is meant to be. The application's database is what is. The
two are compared before each step. A step is written down after it was done, where it refuses or allows something more;
and before, where processes go by it that have to stop something first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, MetaData

from ..audit.facts import Event
from ..backfill.whose import Owners
from ..errors import AdoptionError, ConfigurationError, KeyStoreError, PiiVaultError
from ..keyring.terms import NOTICE_SECONDS
from ..lifecycle.parts import Parts, decided
from ..reencryption.pacing import Pace
from ..scope import Scope
from ..stages import AdoptionRecord, Stage, following, preceding
from .columns import Pair, declared, pair_of
from .guard import Mode
from .looking import GUARDED, Observed, look
from .moves import Moves, Progress, looking

QUIET_SECONDS: Final = 10.0
"""For how long it is watched whether somebody still writes one column alone, before that is refused."""

_LONGEST_FALLBACK_DAYS: Final = 90

_NOTICED: Final = NOTICE_SECONDS + 0.5
"""After so many seconds every process that is in use has learned of a step."""


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
        self._number = 0  # of the last step, as far as is known here

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

        A step that was ended half-way is taken back by itself first. Where the guard was not what it should be before
        the switch, it leads to the beginning.

        Args:
            reason: Why, for the audit log.
            pace: How fast rows are written.
            progress: Told how far it is.

        Raises:
            AdoptionError: there is no step back, or the database is not so far.
        """
        status = self.status(count=False)
        moves, found = self._moves(status, pace, progress), status.observed.guard
        if status.stage is Stage.NONE:
            if found is None:
                raise AdoptionError(
                    f"the adoption of {self.pair.name} has not begun", hint="there is nothing to take back"
                )
            moves.unguard()
            return self._taken(status, Stage.NONE, None, reason, moves)
        if status.stage is Stage.SWITCHED:
            return self._back_to_plaintext(status, reason, moves)
        if status.stage in (Stage.VERIFIED, Stage.FILLED) and found is not Mode.EMPTIES_SEALED:
            return self._back_to_its_guard(status, moves)
        stage, rows = preceding(status.stage) or Stage.NONE, None
        if stage is Stage.NONE:
            return self._back_to_none(status, reason, moves)
        if status.stage is Stage.RETIRED:
            rows = self._back_to_both(moves)
        else:
            self._require_plaintext(status.observed)
            if stage is Stage.RETIRED:
                self._check_nullable(status.observed)
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
            if until.tzinfo is None:
                raise ConfigurationError("the instant has no time zone", hint="datetime(…, tzinfo=UTC)")
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
            self._add(status, moves)
            return None
        self._require_plaintext(status.observed)
        if stage is Stage.FILLED:
            moves.ask()
            return moves.fill()
        if stage is Stage.VERIFIED:
            moves.refuse_strays()
            moves.ask()
            return moves.compare(mends=True)
        if stage is Stage.SWITCHED:
            return self._switch(moves, quiet)
        if stage is Stage.RETIRED:
            return self._retire(status, moves)
        return self._empty(moves, quiet)

    def _add(self, status: Status, moves: Moves) -> None:
        self._check_columns(status.observed)
        moves.refuse_strays()
        sealed_before = moves.count().sealed > 0
        if sealed_before:
            moves.ask()
        moves.guard(Mode.EMPTIES_SEALED)
        if sealed_before:  # there was no guard then, so they may be old; and a read that falls back believes them
            moves.mend()

    def _switch(self, moves: Moves, quiet: float) -> int:
        moves.refuse_strays()
        moves.ask()
        moves.fill()
        who = f"somebody who writes {self.pair.plaintext!r} alone"
        moves.watch(quiet, lambda counts: counts.plaintext_only, who)
        moves.guard(Mode.REFUSES)
        # From here on nobody writes the one alone. What was written past the guard since the last time is found now.
        rows = moves.compare(mends=True)
        moves.refuse_strays()
        moves.refuse_unsealed()
        return rows

    def _retire(self, status: Status, moves: Moves) -> int:
        self._check_nullable(status.observed)
        moves.refuse_unsealed()
        moves.ask()
        rows = moves.compare(mends=False)
        moves.guard(Mode.EMPTIES_PLAINTEXT)
        return rows

    def _empty(self, moves: Moves, quiet: float) -> int:
        moves.refuse_unsealed()
        moves.ask()
        moves.guard(Mode.EMPTIES_PLAINTEXT)  # again, where somebody was stopped who had just taken it away
        rows = moves.empty()
        moves.watch(quiet, lambda counts: counts.plaintext, f"somebody who still writes {self.pair.plaintext!r}")
        moves.unguard()
        return rows

    # Back.

    def _back_to_plaintext(self, status: Status, reason: str, moves: Moves) -> AdoptionRecord:
        """Let the plaintext count again: first nobody reads the sealed column any longer, then others may empty it."""
        self._require_plaintext(status.observed)
        if status.observed.guard is not Mode.REFUSES:  # a retirement that was ended half-way, or no guard
            self._back_to_both(moves)
            return list(status.steps)[-1]
        moves.refuse_strays()
        step = self._taken(status, Stage.VERIFIED, None, reason, moves)
        moves.pause(_NOTICED)
        moves.guard(Mode.EMPTIES_SEALED)
        return step

    def _back_to_its_guard(self, status: Status, moves: Moves) -> AdoptionRecord:
        """End a switch, or the way back from it, that was ended half-way; or begin anew where there was no guard."""
        self._require_plaintext(status.observed)
        if status.observed.guard is not Mode.REFUSES:
            return self._begin_anew(status, moves)
        if len(status.steps) > 1 and status.steps[-2].stage is Stage.SWITCHED:
            moves.pause(_NOTICED)  # nobody knows for how long it was waited
        moves.guard(Mode.EMPTIES_SEALED)
        return list(status.steps)[-1]

    def _back_to_none(self, status: Status, reason: str, moves: Moves) -> AdoptionRecord:
        step = self._taken(status, Stage.NONE, None, reason, moves)
        if status.fallback_until is not None:  # who falls back relies on the guard
            moves.pause(_NOTICED)
        moves.unguard()
        return step

    def _back_to_both(self, moves: Moves) -> int:
        moves.ask(refill=True)
        moves.guard(Mode.REFILLS)
        rows = moves.refill()
        moves.guard(Mode.REFUSES)
        moves.refuse_strays()
        moves.refuse_unsealed()
        moves.compare(mends=False)
        return rows

    # What has to be so.

    def _guard_again(self, status: Status, stage: Stage, moves: Moves) -> None:
        """Put the guard back where it should be and is not; what was written without it is looked at anew."""
        wanted, found = GUARDED.get(status.stage), status.observed.guard
        if wanted is None or found in (wanted, GUARDED.get(stage)):
            return
        if wanted is Mode.EMPTIES_SEALED:
            if found is Mode.REFUSES:  # which lets nobody do more
                moves.guard(wanted)
                return
            self._begin_anew(status, moves)
            raise AdoptionError(
                f"the guard of {self.pair.name} was not there, and rows may have been written without it: its adoption "
                "is taken back to its beginning",
                hint="take the next step: it puts the guard there again, and each value is looked at anew",
            )
        moves.guard(wanted)
        if found not in (None, Mode.EMPTIES_SEALED):  # a way back that was ended half-way
            return
        raise AdoptionError(
            f"the guard of {self.pair.name} was not there, and is again; rows may have been written without it",
            hint="take the step again: it compares the two columns first, and names what is not the same",
        )

    def _begin_anew(self, status: Status, moves: Moves) -> AdoptionRecord:
        """Take it back to its beginning. Nothing reads the sealed column then, whatever was written without a guard."""
        why = "the guard was not what it should be"
        return self._taken(status, Stage.NONE, None, why, moves, told=status.fallback_until is not None)

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
            number=self._number + 1,
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
        try:
            parts.store.add_adoption_step(step)
        except KeyStoreError:
            self._yield_to_others(moves)
            raise
        self._number = step.number
        return step

    def _yield_to_others(self, moves: Moves) -> None:
        """Let the guard do what the step says that somebody else has taken meanwhile, in place of ours."""
        with suppress(PiiVaultError):
            steps = self._parts.store.adoption_steps(self.pair.context)
            wanted = GUARDED.get(steps[-1].stage) if len(steps) > self._number else None
            if wanted is not None:
                self._number = len(steps)
                moves.guard(wanted)

    def _require_nobody_else(self) -> None:
        if len(self._parts.store.adoption_steps(self.pair.context)) != self._number:
            raise KeyStoreError(
                f"somebody else has just taken a step with the adoption of {self.pair.context!r}",
                hint="look where it stands now: pii-vault adopt status",
            )

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
        self._number = len(status.steps)
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
            self._require_nobody_else,
        )


def adoptions(parts: Parts, metadata: MetaData) -> list[str]:
    """Return the names of all adoptions: those that models declare, and those that were begun."""
    begun = [step.context for step in parts.store.adoptions() if step.stage is not Stage.NONE]
    return sorted({*(pair.context for pair in declared(metadata)), *begun})
