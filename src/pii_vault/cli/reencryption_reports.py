"""What `reencrypt` prints as JSON. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .index_reports import RowProblem

if TYPE_CHECKING:
    from ..reencryption.reencrypt import Reencryption


@dataclass(frozen=True)
class ForeignValues:
    """How many values of a column stand in rows of a tenant for whom they were not sealed.

    Attributes:
        column: The column, `table.column`.
        count: How many.
    """

    column: str
    count: int


@dataclass(frozen=True)
class Reencrypted:
    """What re-encrypting a tenant's values came to.

    Attributes:
        tenant: The tenant's name.
        dry_run: Whether rows were counted only, and none was written.
        suspended: Whether the tenant is suspended, so that nothing was done.
        version: The data-key version that seals now; null when it failed.
        rows_left: How many rows still hold a value of an older version, or one without its tokens; null when it failed.
        seconds: After a dry run, about how long the rest would take, reckoned from rows that were read and opened; null
            otherwise.
        drained_at: From when on nobody can be sealing with an older version any longer; null when it failed.
        complete: Whether nothing is left, counted after that; false when it failed.
        problems: Values that could not be sealed anew; empty after a dry run.
        foreign: Values in the tenant's rows that were not sealed for it, by column; they are left alone. Empty without
            `--tenant-column`.
        astray: Values of older versions that were sealed for the tenant and stand in other tenants' rows, by column;
            they are left alone. Empty without `--tenant-column`.
        failure: Why it failed, one sentence; null otherwise.
    """

    tenant: str
    dry_run: bool
    suspended: bool
    version: int | None
    rows_left: int | None
    seconds: float | None
    drained_at: datetime | None
    complete: bool
    problems: list[RowProblem]
    foreign: list[ForeignValues]
    astray: list[ForeignValues]
    failure: str | None

    @classmethod
    def of(cls, done: Reencryption, dry_run: bool) -> Reencrypted:
        """Return the report on a tenant."""
        return cls(
            tenant=done.tenant,
            dry_run=dry_run,
            suspended=False,
            version=done.version,
            rows_left=done.left,
            seconds=None if done.seconds is None else round(done.seconds, 1),
            drained_at=done.drained_at,
            complete=done.complete,
            problems=[RowProblem.of(each) for each in done.problems],
            foreign=[ForeignValues(column, count) for column, count in done.foreign.items()],
            astray=[ForeignValues(column, count) for column, count in done.astray.items()],
            failure=None,
        )

    @classmethod
    def not_looked_at(cls, tenant: str, *, dry_run: bool, suspended: bool, failure: str | None) -> Reencrypted:
        """Return the report on a tenant for which nothing was done."""
        return cls(tenant, dry_run, suspended, None, None, None, None, False, [], [], [], failure)

    @property
    def is_bad(self) -> bool:
        """Whether somebody has to look at it: running it again does not help by itself."""
        return bool(self.problems or self.foreign or self.astray or self.failure)
