"""Before a statement searches a column, make sure that no value is missed because it has no token.

A column that gains an index later holds values that were sealed without. So a slot is looked at once for each tenant,
in the application's own table: the headers tell how many tokens a value has, and of which generation. If none is
missing, the key store remembers it; from then on processes that do not know the slot are refused to write. One of them
may have written meanwhile, or in a transaction that was still open: after a day the slot is looked at once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    func,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.util import concurrency

from ..blind_index import SlotRecord
from ..errors import BlindIndexError, IndexNotReadyError
from ..scope import Scope, in_greenlet
from ..sealing import Keyset, other_tokens
from .header_parts import GENERATION, KEYSET, TOKENS, VERSION, part
from .search import Searched

ResultT = TypeVar("ResultT")

SETTLED_AFTER: Final = timedelta(days=1)
"""Longer than any process goes on sealing as it did, and any transaction in which it has done so stays open."""


def require(
    connection: Connection,
    scope: Scope,
    searched: frozenset[Searched],
    tenant_column: str | None,
    *,
    compares_tokens: bool,
    lasting: bool,
    schemas: Mapping[str | None, str | None] | None,
) -> None:
    """Refuse a statement whose answer could lack rows, or count one value as two.

    Args:
        connection: What the statement is executed on: the look sees what it will see.
        scope: Whose values are searched.
        searched: The slots that the statement relies on.
        tenant_column: The name of the column that says whose row it is, or None.
        compares_tokens: Whether it compares tokens with each other.
        lasting: Whether what is seen now stays when the transaction is rolled back. If not, nothing is remembered.
        schemas: The statement's ``schema_translate_map``.

    Raises:
        IndexNotReadyError: some values have no token.
        BlindIndexError: the tokens there are made in another way, or of two generations of index keys.
    """
    keyset = scope.keyset or scope.renew()
    if compares_tokens and len(keyset.index_generations) > 1:
        raise BlindIndexError(
            f"the index key of tenant {scope.tenant!r} is being replaced, and until that is done equal values can have "
            "different tokens: columns are not compared with each other, nor grouped",
            hint=f"go on with `pii-vault index rotate {scope.tenant}`; searching for values works meanwhile",
        )
    if keyset.searched.issuperset(searched):
        return
    for each in searched:
        if each in keyset.searched:
            continue
        found = _found(scope, keyset, each)
        if found is not None:
            lacking = Lacking(each, keyset, scope.tenant, tenant_column)
            _look(connection, scope, keyset, found, lacking, {"schema_translate_map": schemas, "compiled_cache": None})
            if not lasting:
                continue
            off_the_loop(partial(scope.keyring.found_ready, keyset, found))
        keyset.searched.add(each)


def _found(scope: Scope, keyset: Keyset, searched: Searched) -> SlotRecord | None:
    """Return what is found if no value lacks its token, or None where that is known already."""
    slot, context = searched.slot, searched.context
    known = keyset.slots.get((context, slot.number))
    if known is not None and not known.holds(slot):
        raise other_tokens(known, slot)
    now = datetime.now(UTC)
    since = known.ready_at if known is not None else None
    if known is not None and since is not None and (known.settled or now < since + SETTLED_AFTER):
        return None
    return SlotRecord(context, slot.number, slot.index, slot.form.text, since or now, since is not None)


def _look(
    connection: Connection, scope: Scope, keyset: Keyset, slot: SlotRecord, lacking: Lacking, options: dict[str, Any]
) -> None:
    if connection.execute(lacking.any(), execution_options=options).first() is None:
        return
    if slot.settled or (slot.context, slot.number) in keyset.doubted:  # it was ready until now
        off_the_loop(partial(scope.keyring.found_missing, keyset, slot))
    missing, total = map(int, connection.execute(lacking.counts(), execution_options=options).one())
    raise not_ready(scope.tenant, lacking.searched, missing, total)


class Lacking:
    """Queries for the values that have no token in a slot, of a tenant and a generation that lives."""

    def __init__(self, searched: Searched, keyset: Keyset, tenant: str, tenant_column: str | None) -> None:
        self.searched = searched
        home, name = searched.home
        # A plain column by name: what is compared is a header's bytes, not a value.
        stored = Column(name, LargeBinary)
        columns: list[Any] = [stored]
        mine = [owned(stored, keyset)]
        whose = of_tenant(home, tenant_column, tenant)
        if whose is not None:  # where there is an index on it, that is used
            columns.append(whose[0])
            mine.append(whose[1])
        self._mine: ColumnElement[bool] = and_(*mine)
        self._lacks = lacking(stored, searched.slot.number + 1, keyset.index_generations)
        # A table of its own: the schema is translated only for a Table.
        self._table = Table(home.name, MetaData(), *columns, schema=home.schema)

    def any(self) -> Any:
        """Return a query that finds a row if there is one."""
        return select(literal(1)).select_from(self._table).where(self._mine, self._lacks).limit(1)

    def counts(self) -> Any:
        """Return a query for how many values have no token, and how many there are."""
        total = select(func.count()).select_from(self._table).where(self._mine)
        return select(total.where(self._lacks).scalar_subquery(), total.scalar_subquery())


def owned(stored: ColumnElement[bytes], keyset: Keyset) -> ColumnElement[bool]:
    """Return the condition that a stored value was sealed for a tenant."""
    return part(stored, KEYSET) == keyset.identity.keyset_bytes


def of_tenant(home: Any, tenant_column: str | None, tenant: str) -> tuple[Column[str], ColumnElement[bool]] | None:
    """Return a table's tenant column, for a table of one's own, and the condition that a row is a tenant's, or None."""
    owner = next((each for each in home.columns if each.name == tenant_column), None)
    if owner is None or not isinstance(owner.type, String):
        return None
    column: Column[str] = Column(owner.name, String)
    # A row may have been written without saying whose it is. A search finds it, and so must this.
    return column, or_(column == tenant, column.is_(None)) if owner.nullable else column == tenant


def lacking(stored: ColumnElement[bytes], tokens: int, generations: Iterable[int]) -> ColumnElement[bool]:
    """Return the condition that a stored value has fewer tokens than so many, or of other index keys than these."""
    live = [bytes((each,)) for each in sorted(generations)]
    return not_(and_(part(stored, TOKENS) >= bytes((tokens,)), part(stored, GENERATION).in_(live)))


def under_older(stored: ColumnElement[bytes], version: int) -> ColumnElement[bool]:
    """Return the condition that a stored value was sealed with a data-key version before this one."""
    return part(stored, VERSION) < version.to_bytes(2, "big")


def not_ready(tenant: str, searched: Searched, missing: int, total: int) -> IndexNotReadyError:
    """Return the error that says how far an index is."""
    what = (
        f"token {searched.slot.label!r} of {searched.context!r}"
        if searched.slot.label
        else f"the index of {searched.context!r}"
    )
    have = total - missing
    return IndexNotReadyError(
        f"{what} is not complete for tenant {tenant!r}: {have:,} of {total:,} values have their token, and a query "
        f"would miss the other {missing:,}",
        missing=missing,
        total=total,
        hint=f"seal them anew: pii-vault index build {tenant}",
    )


def off_the_loop(write: Callable[[], ResultT]) -> ResultT:
    """Write to the key store, in a thread where there is an event loop."""
    if in_greenlet():
        result: ResultT = concurrency.await_only(asyncio.to_thread(write))
        return result
    return write()
