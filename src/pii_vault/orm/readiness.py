"""Before a statement searches a column, make sure that no value is missed because it has no token.

A column that gains an index later holds values that were sealed without. So a slot is looked at once for each tenant,
in the application's own table: the headers tell how many tokens a value has, and of which generation. If none is
missing, the key store remembers it; from then on processes that do not know the slot are refused to write. One of them
may have written meanwhile, or in a transaction that was still open: after a day the slot is looked at once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, LargeBinary, String, and_, column, func, literal, not_, select, table
from sqlalchemy.util import concurrency

from ..blind_index import ReadySlot
from ..errors import BlindIndexError, IndexNotReadyError
from ..scope import Scope, in_greenlet
from ..sealing import Keyset
from .search import Searched

SETTLED_AFTER: Final = timedelta(days=1)
"""Longer than any process goes on sealing as it did, and any transaction in which it has done so stays open."""

_KEYSET: Final = (2, 4)
_GENERATION: Final = (9, 1)
_TOKENS: Final = (10, 1)
"""Where these stand in a header and how long they are, counted from 1 as SQL does (docs/format.md, section 1)."""


def require(
    connection: Connection,
    scope: Scope,
    searched: Iterable[Searched],
    tenant_column: str | None,
    *,
    compares_tokens: bool,
    schemas: Any = None,
) -> None:
    """Refuse a statement whose answer could lack rows, or count one value as two.

    Args:
        connection: What the statement is executed on: the look sees what it will see.
        scope: Whose values are searched.
        searched: The slots that the statement relies on.
        tenant_column: The name of the column that says whose row it is, or None.
        compares_tokens: Whether it compares tokens with each other.
        schemas: The statement's ``schema_translate_map``: the look goes where it goes.

    Raises:
        IndexNotReadyError: some values have no token.
        BlindIndexError: the tokens there are made in another way, or of two generations of index keys.
    """
    keyset = scope.renew()
    if compares_tokens and len(keyset.index_generations) > 1:
        raise BlindIndexError(
            f"the index key of tenant {scope.tenant!r} is being replaced, and until that is done equal values can have "
            "different tokens: columns are not compared with each other, nor grouped",
            hint=f"go on with `pii-vault index rotate {scope.tenant}`; searching for values works meanwhile",
        )
    for each in searched:
        if each not in keyset.searched:
            _require_one(connection, scope, keyset, each, tenant_column, schemas)
            keyset.searched.add(each)


def _require_one(
    connection: Connection,
    scope: Scope,
    keyset: Keyset,
    searched: Searched,
    tenant_column: str | None,
    schemas: Any,
) -> None:
    slot, context = searched.slot, searched.context
    known = keyset.ready.get((context, slot.number))
    if known is not None and (known.index, known.form) != (slot.index, slot.form.text):
        raise BlindIndexError(
            f"slot {slot.number} of {context!r} holds tokens made as {known.form!r} of the index {known.index!r}, and "
            f"{slot.form.text!r} of {slot.index!r} is declared now: nothing would be found",
            hint="give what changed a slot of its own: BlindIndex(slot=…)",
        )
    now = datetime.now(UTC)
    if known is not None and (known.settled or now < known.since + SETTLED_AFTER):
        return
    lacking = Lacking(searched, keyset, scope.tenant, tenant_column)
    found = ReadySlot(
        context, slot.number, slot.index, slot.form.text, known.since if known else now, known is not None
    )
    if connection.execute(lacking.any(), execution_options=in_schemas(schemas)).first() is None:
        _off_the_loop(lambda: scope.keyring.found_ready(keyset, found))
        return
    if known is not None:
        _off_the_loop(lambda: scope.keyring.found_missing(keyset, found))
    missing, total = lacking.counted(connection, schemas)
    raise not_ready(scope.tenant, searched, missing, total)


class Lacking:
    """Queries for the values that have no token in a slot, of a tenant and a generation that lives."""

    def __init__(self, searched: Searched, keyset: Keyset, tenant: str, tenant_column: str | None) -> None:
        home, name = searched.home
        # A plain column by name: what is compared is a header's bytes, not a value.
        stored = column(name, LargeBinary)
        columns: list[Any] = [stored]
        mine = [owned(stored, keyset)]
        owner = home.columns.get(tenant_column) if tenant_column is not None else None
        if owner is not None and isinstance(owner.type, String):  # where there is an index on it, that is used
            columns.append(column(owner.name, String))
            mine.append(columns[-1] == tenant)
        self._mine: ColumnElement[bool] = and_(*mine)
        self._lacks = lacking(stored, searched.slot.number + 1, keyset.index_generations)
        self._table = table(home.name, *columns, schema=home.schema)

    def any(self) -> Any:
        """Return a query that finds a row if there is one."""
        return select(literal(1)).select_from(self._table).where(self._mine, self._lacks).limit(1)

    def counted(self, connection: Connection, schemas: Any = None) -> tuple[int, int]:
        """Count how many values have no token, and how many there are."""
        total = select(func.count()).select_from(self._table).where(self._mine)
        missing = total.where(self._lacks)
        both = select(missing.scalar_subquery(), total.scalar_subquery())
        row = connection.execute(both, execution_options=in_schemas(schemas)).one()
        return row[0], row[1]


def in_schemas(schemas: Any) -> dict[str, Any]:
    """Return the execution options of a query that is to go to the schemas that a statement goes to."""
    return {"schema_translate_map": schemas} if schemas else {}


def owned(stored: ColumnElement[bytes], keyset: Keyset) -> ColumnElement[bool]:
    """Return the condition that a stored value was sealed for a tenant."""
    return _part(stored, _KEYSET) == keyset.identity.keyset_bytes


def lacking(stored: ColumnElement[bytes], tokens: int, generations: Iterable[int]) -> ColumnElement[bool]:
    """Return the condition that a stored value has fewer tokens than so many, or of other index keys than these."""
    live = [bytes((each,)) for each in sorted(generations)]
    return not_(and_(_part(stored, _TOKENS) >= bytes((tokens,)), _part(stored, _GENERATION).in_(live)))


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


def _part(stored: ColumnElement[bytes], place: tuple[int, int]) -> ColumnElement[bytes]:
    return func.substr(stored, *place, type_=LargeBinary)


def _off_the_loop(write: Callable[[], None]) -> None:
    if in_greenlet():
        concurrency.await_only(asyncio.to_thread(write))
    else:
        write()
