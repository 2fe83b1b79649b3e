"""What is stored of a tenant, column by column: under which of its data keys, and what is there besides.

Values are counted by their headers, inside the application's database. What another tenant's keys have sealed is not
told: neither whose it is, nor how much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Engine, MetaData, Table, column

from ..errors import ConfigurationError
from ..keys import KeyState
from ..keystore import KeyStore
from ..reencryption.coverage import Stored, coverage
from ..reencryption.headers import Other, sealed_tables
from .facts import ColumnFacts, Share

FOREIGN: Final = "foreign"
"""Under keys that are not the tenant's, in a row that is."""

_UNOWNED: Final = frozenset((Other.PLAINTEXT, Other.MALFORMED, Other.UNSUPPORTED, Other.UNKNOWN_KEYSET))


@dataclass(frozen=True, slots=True)
class Tables:
    """The application's tables, as far as a report looks into them.

    Attributes:
        engine: On the application's database.
        metadata: The tables.
        tenant_column: The column that says whose row it is; its values are the tenants' names. None if none does.
        progress: Told how many tables are done, of how many.
    """

    engine: Engine
    metadata: MetaData
    tenant_column: str | None = None
    progress: Callable[[int, int], object] = lambda done, total: None


def tables_of(
    engine: Engine | None,
    metadata: MetaData | None,
    tenant_column: str | None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tables | None:
    """Return the application's tables; None when nobody names any.

    Raises:
        ConfigurationError: only a part is named, or no table with encrypted columns has the tenant column.
    """
    if engine is not None and metadata is not None:
        sealed = [metadata.tables[each.fullname] for each in sealed_tables(metadata)]
        if tenant_column is not None and not any(tenant_column in _names(each) for each in sealed):
            raise ConfigurationError(
                f"no table with encrypted columns has a column {tenant_column!r}",
                hint="name the column that says whose row it is, or none",
            )
        return Tables(engine, metadata, tenant_column, progress)
    if engine is not None or metadata is not None or tenant_column is not None:
        raise ConfigurationError("metadata and engine belong together", hint="name both, or none")
    return None


def stored(store: KeyStore, tenant: str, tables: Tables, *, erased: bool = False) -> tuple[ColumnFacts, ...]:
    """Count the values of each encrypted column.

    Args:
        store: The key store, which knows the keys' states.
        tenant: The tenant's name.
        tables: The application's tables.
        erased: Whether the tenant is erased: that nobody can read its values is meant then.

    Raises:
        ConfigurationError: the metadata holds no encrypted column, or a table of it cannot be read.
    """
    only = _own_rows(tables, tenant)
    counted = coverage(store, tables.engine, tables.metadata, only=only, progress=tables.progress).stored
    found = []
    for table in sealed_tables(tables.metadata):
        own = table.fullname in only
        for each in table.columns:
            here = [one for one in counted if (one.table, one.column) == (table.fullname, each.name)]
            found.append(ColumnFacts(table.fullname, each.name, own, _shares(here, tenant, own, erased)))
    return tuple(found)


def under_version(columns: tuple[ColumnFacts, ...], version: int) -> int:
    """Return how many values a data-key version seals, over all columns."""
    return sum(share.count for each in columns for share in each.shares if share.version == version)


def _own_rows(tables: Tables, tenant: str) -> dict[str, ColumnElement[bool]]:
    """Return the conditions that rows are a tenant's, for the tables that say so."""
    name = tables.tenant_column
    if name is None:
        return {}
    return {
        table.fullname: column(name, each.type) == tenant
        for table in tables.metadata.tables.values()
        for each in table.columns
        if each.name == name
    }


def _names(table: Table) -> list[str]:
    return [each.name for each in table.columns]


def _shares(found: list[Stored], tenant: str, own: bool, erased: bool) -> tuple[Share, ...]:
    tally: Counter[tuple[int | None, str, bool]] = Counter()
    for each in found:
        if each.tenant == tenant:
            meant = erased and each.state is KeyState.DESTROYED
            tally[each.version, str(each.state), each.is_problem and not meant] += each.count
        elif each.state is Other.NULL:
            tally[None, str(each.state), False] += each.count
        elif own or each.state in _UNOWNED:
            sealed = each.tenant is not None or each.state is Other.UNKNOWN_KEYSET
            tally[None, FOREIGN if sealed else str(each.state), True] += each.count
    ordered = sorted(tally.items(), key=lambda each: (each[0][0] is None, each[0][0] or 0, each[0][1]))
    return tuple(Share(version, state, count, problem) for (version, state, problem), count in ordered)
