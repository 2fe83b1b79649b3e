"""What `coverage` prints as JSON. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..reencryption.coverage import Coverage, Looked, Stored


@dataclass(frozen=True)
class CoveredTable:
    """How much of a table was looked at.

    Attributes:
        table: The table, with its schema if it has one.
        sampled_share: 1 for all of it. Less: so much of its pages was looked at, and its counts are estimates.
    """

    table: str
    sampled_share: float

    @classmethod
    def of(cls, found: Looked) -> CoveredTable:
        """Return the document about a table."""
        return cls(found.table, found.share)


@dataclass(frozen=True)
class CoveredValues:
    """How many values of a column are in one state.

    Attributes:
        table: The table, with its schema if it has one.
        column: The column's name in the database.
        tenant: Whose key sealed them; null where that is not known, and for what is not sealed.
        keyset_id: 8 hexadecimal digits, as in their headers; null for what is not sealed, and where a column has more
            than 100 unknown keysets.
        version: The data-key version that sealed them; null likewise.
        state: The state of that data key: `pre_active`, `active`, `deactivated`, `compromised` or `destroyed`. Or what
            they are instead: `unknown_version` (the key store has no such version of the tenant's key),
            `unknown_keyset` (no tenant has this keyset), `plaintext` (never sealed), `malformed` (begins as a sealed
            value and is none), `unsupported` (of a format that this release does not know) or `null`.
        count: How many.
        problem: Whether the application cannot read them.
    """

    table: str
    column: str
    tenant: str | None
    keyset_id: str | None
    version: int | None
    state: str
    count: int
    problem: bool

    @classmethod
    def of(cls, found: Stored) -> CoveredValues:
        """Return the document about values."""
        return cls(
            table=found.table,
            column=found.column,
            tenant=found.tenant,
            keyset_id=f"{found.keyset_id:08x}" if found.keyset_id is not None else None,
            version=found.version,
            state=str(found.state),
            count=found.count,
            problem=found.is_problem,
        )


@dataclass(frozen=True)
class Covered:
    """Which data keys stored values were sealed with.

    Attributes:
        tenant: The tenant that was named; null for everything that is stored.
        estimated: Whether counts are estimates. A key that sealed little can be missing then.
        complete: Whether the application can read all that was found.
        tables: The tables that were looked into.
        values: The counts, by table and column, then by tenant and version.
    """

    tenant: str | None
    estimated: bool
    complete: bool
    tables: list[CoveredTable]
    values: list[CoveredValues]

    @classmethod
    def of(cls, tenant: str | None, found: Coverage) -> Covered:
        """Return the report."""
        return cls(
            tenant=tenant,
            estimated=found.estimated,
            complete=not found.problems,
            tables=[CoveredTable.of(each) for each in found.tables],
            values=[CoveredValues.of(each) for each in found.stored],
        )
