"""What autogenerate makes of a column that has become an encrypted one, or a plain one: operations that move values.

Alembic sees a change of type, which no database could make. What it finds to do about indexes and constraints over the
plaintext is done by the operation, which knows when; on the way back they are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op, renderers
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Column, LargeBinary, MetaData, Table, TypeDecorator, select

from ..backfill.plain_types import encrypted_type
from ..envelope import parse
from ..errors import FormatError
from ..orm.encrypted_type import EncryptedType
from .columns import ColumnOp, DecryptColumnOp, EncryptColumnOp
from .settings import attached_tenant_column
from .tables import is_binary

_LOOKED_AT = 100
"""How many values of a column are looked at to tell whether they are sealed."""

_CREATES = (ops.CreateIndexOp, ops.CreateUniqueConstraintOp)
_DROPS = (ops.DropIndexOp, ops.DropConstraintOp)


@dataclass(slots=True)
class Changes:
    """Columns whose values have to be moved.

    Attributes:
        opened: What is to be done before tables are changed otherwise.
        sealed: What is to be done after that.
        columns: Which columns they are: schema, table and name.
    """

    opened: list[MigrateOperation] = field(default_factory=list)
    sealed: list[MigrateOperation] = field(default_factory=list)
    columns: set[tuple[str | None, str, str]] = field(default_factory=set)

    def touch(self, schema: str | None, table: str, columns: set[str]) -> bool:
        """Say whether one of some columns is among them."""
        return any((schema, table, column) in self.columns for column in columns)


class _PlainOverOp(MigrateOperation):
    """An index or a constraint over a plaintext column: made after the column has been opened, and nothing before."""

    def __init__(self, creation: Any, *, is_made: bool) -> None:
        self.creation = creation
        self.is_made = is_made

    def reverse(self) -> MigrateOperation:
        """Return the same, for the other way."""
        return _PlainOverOp(self.creation, is_made=not self.is_made)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        made: tuple[Any, ...] = (self.creation if self.is_made else self.creation.reverse()).to_diff_tuple()
        return made


@renderers.dispatch_for(_PlainOverOp)
def _render_plain_over(autogen_context: AutogenContext, operation: _PlainOverOp) -> list[str]:
    if not operation.is_made:
        return []
    creation = operation.creation
    if isinstance(creation, ops.CreateIndexOp):
        creation.if_not_exists = True
    elif autogen_context.opts.get("render_as_batch"):
        creation = ops.ModifyTableOps(creation.table_name, [creation], schema=creation.schema)
    return render_op(autogen_context, creation)


def taken(autogen_context: AutogenContext, operations: list[MigrateOperation]) -> Changes:
    """Take changes of type that move values out of what Alembic has found, and return what is to be done instead."""
    changes = Changes()
    for each in operations:
        if isinstance(each, ops.ModifyTableOps):
            for alter in [inner for inner in each.ops if isinstance(inner, ops.AlterColumnOp)]:
                moved = _moved(autogen_context, alter)
                if moved is not None:
                    each.ops.remove(alter)
                    changes.columns.add((alter.schema, alter.table_name, alter.column_name))
                    _place(changes, moved, each.ops)
    return changes


def _moved(autogen_context: AutogenContext, alter: ops.AlterColumnOp) -> ColumnOp | None:
    before, after = alter.existing_type, alter.modify_type
    if before is None or after is None:
        return None
    more: dict[str, Any] = {
        "nullable": alter.modify_nullable,
        "existing_nullable": alter.existing_nullable,
        "tenant_column": _tenant_column(autogen_context, alter),
        "schema": alter.schema,
    }
    if isinstance(after, EncryptedType):
        return (
            None if is_binary(before) else EncryptColumnOp(alter.table_name, alter.column_name, after, before, **more)
        )
    kind = encrypted_type(after) if is_binary(before) and not _is_bytes(after) else None
    tokens = _tokens(autogen_context, alter) if kind is not None else None
    if kind is None or tokens is None:
        return None
    opened = DecryptColumnOp(alter.table_name, alter.column_name, kind, after, **more)
    opened.lost_tokens = tokens
    return opened


def _place(changes: Changes, moved: ColumnOp, others: list[MigrateOperation]) -> None:
    """Put an operation where it belongs, with what is over the plaintext."""
    is_sealed = isinstance(moved, EncryptColumnOp)
    over = list(_over(moved.column_name, others, _DROPS if is_sealed else _CREATES))
    for each, _ in over:
        others.remove(each)
    names = tuple(str(name) for _, creation in over if (name := _name(creation)))
    beside = [_PlainOverOp(creation, is_made=not is_sealed) for _, creation in over]
    if is_sealed:
        moved.drops = names
        changes.sealed += [*beside, moved]
    else:
        moved.made = names
        changes.opened += [moved, *beside]


def _over(column: str, operations: list[MigrateOperation], kinds: Any) -> Iterator[tuple[MigrateOperation, Any]]:
    """Yield operations about what is over a column, and how it is created."""
    for each in operations:
        if not isinstance(each, kinds):
            continue
        creation: Any = each.reverse() if isinstance(each, _DROPS) else each
        if column in {getattr(one, "name", one) for one in getattr(creation, "columns", ())}:
            yield each, creation


def _name(creation: Any) -> Any:
    return creation.index_name if isinstance(creation, ops.CreateIndexOp) else creation.constraint_name


def _tenant_column(autogen_context: AutogenContext, alter: ops.AlterColumnOp) -> str | None:
    column = attached_tenant_column(autogen_context.migration_context)
    table = next(
        (
            each
            for each in autogen_context.sorted_tables
            if (each.schema, each.name) == (alter.schema, alter.table_name)
        ),
        None,
    )
    return column if table is not None and column in {each.name for each in table.columns} else None


def _is_bytes(kind: Any) -> bool:
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return is_binary(kind)


def _tokens(autogen_context: AutogenContext, alter: ops.AlterColumnOp) -> int | None:
    """Return how many tokens a column's values have, 0 where it is empty; None where it is not a sealed one."""
    connection = autogen_context.connection
    assert connection is not None
    column: Column[bytes] = Column(alter.column_name, LargeBinary)
    table = Table(alter.table_name, MetaData(), column, schema=alter.schema)
    tokens = 0
    for value in connection.scalars(select(table.c[alter.column_name]).where(column.is_not(None)).limit(_LOOKED_AT)):
        try:
            tokens = max(tokens, parse(bytes(value)).tokens)
        except (FormatError, TypeError):  # on SQLite there can be text among bytes
            return None
    return tokens
