"""Keep values unique while an index key is being replaced.

The database's unique index compares tokens of one generation of index keys. While two live, a row with the other one's
token of the same value would go unnoticed. So each statement that writes such a column looks for one: an INSERT before
it is executed, an UPDATE afterwards, when the row that it has changed has the new token itself. Two transactions at
once can miss each other; the replacement finds what they leave when it seals the rows anew: the unique index
refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, LargeBinary, MetaData, Table, func, literal, select

from ..blind_index import Slot
from ..envelope import TOKEN_BYTES
from ..errors import DuplicateValueError
from ..scope import Scope
from ..sealing import Keyset
from . import generated
from .readiness import of_tenant
from .tokens import number


def written(binds: Mapping[str, Any], tenant_column: str | None) -> dict[str, Any]:
    """Return the types of the parameters that write a column with a unique index, by the parameters' names."""
    return {name: bind.type for name, bind in binds.items() if _unique_slots(bind.type, tenant_column)}


def check(
    connection: Connection,
    scope: Scope,
    types: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    others: int,
    tenant_column: str | None,
    schemas: Any,
) -> DuplicateValueError | None:
    """Return the error for a value that more rows have than may; None if there is none.

    Args:
        connection: What the statement is executed on.
        scope: Whose values they are.
        types: From `written`.
        rows: The parameters, as the application gave them.
        others: How many rows may have a value: 0 before it is inserted, 1 after it was written.
        tenant_column: The name of the column that says whose row it is, or None.
        schemas: The statement's ``schema_translate_map``.
    """
    keyset = scope.renew()
    for name, kind in types.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        for slot in _unique_slots(kind, tenant_column):
            for value in values:
                tokens, whose = _tokens(keyset, slot, value), (tenant_column, scope.tenant)
                if _found(connection, kind.home, slot, tokens, whose, schemas) > others:
                    return DuplicateValueError(
                        f"another row has a value that is written to {kind.context!r}, which is unique; two index keys "
                        f"of tenant {scope.tenant!r} live, so the database may not see it",
                    )
    return None


def _unique_slots(kind: Any, tenant_column: str | None) -> list[Slot]:
    """Return the slots of a type in which no two values of a tenant may be the same."""
    home = getattr(kind, "home", None)
    if home is None:
        return []
    return [each for each in kind.slots if each is not None and (each.unique or _is_unique(home, each, tenant_column))]


def _is_unique(home: tuple[Table, str], slot: Slot, tenant_column: str | None) -> bool:
    """Say whether the model has a unique index over a token alone, or over the tenant and the token, of all rows."""
    table, column = home
    mine = generated.name_of(column, slot)
    for index in table.indexes:
        parts = set(generated.parts_of(index))
        of_all_rows = not any(option.endswith("_where") for option in index.dialect_kwargs)
        if index.unique and of_all_rows and mine in parts and parts - {mine} <= {tenant_column or mine}:
            return True
    return False


def _tokens(keyset: Keyset, slot: Slot, value: Any) -> list[bytes]:
    """Return a value's tokens of every live generation: the statement may have been sealed with an earlier keyset."""
    message = slot.form.message(value)
    return [keyset.token(slot.index, slot.form, message, each) for each in sorted(keyset.index_generations)]


def _found(
    connection: Connection,
    home: tuple[Table, str],
    slot: Slot,
    tokens: list[bytes],
    whose: tuple[str | None, str],
    schemas: Any,
) -> int:
    owner, name = home
    on_mariadb = connection.dialect.name in generated.DIALECTS
    held = generated.generated_in(owner, name, slot) if on_mariadb else None
    stored = Column(name, LargeBinary) if held is None else held
    token: ColumnElement[bytes] = stored
    if held is None:  # with its offsets written out, as the index has them
        token = func.substr(stored, number(slot.start), number(TOKEN_BYTES), type_=LargeBinary)
    columns: list[Column[Any]] = [stored]
    conditions: list[ColumnElement[bool]] = [token.in_(tokens)]
    tenant = of_tenant(owner, *whose)
    if tenant is not None:  # an index may begin with it
        columns.append(tenant[0])
        conditions.append(tenant[1])
    # A table of its own: the schema is translated only for a Table.
    mine = Table(owner.name, MetaData(), *columns, schema=owner.schema)
    rows = select(literal(1).label("one")).select_from(mine).where(*conditions).limit(2)
    count = select(func.count()).select_from(rows.subquery())
    return int(connection.scalar(count, execution_options={"schema_translate_map": schemas}) or 0)
