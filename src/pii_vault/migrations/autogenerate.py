"""What autogenerate writes for indexes over tokens: ``op.create_blind_index`` and ``op.drop_blind_index``.

Alembic's own comparison finds them on PostgreSQL and, with `include_object`, on MariaDB; here its operations become
ours. On SQLite it finds none, and they are compared here. All drops come first and all creations last: so a column can
be dropped or made by the same migration, and they are outside of ``op.batch_alter_table``, which would make an index
over the column itself of one over its token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from alembic import util
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, ops
from sqlalchemy import Column, Index, Table

from ..orm.tokens import TokenOf
from . import column_changes, sqlite
from .column_changes import Changes
from .filters import is_generated
from .operations import CreateBlindIndexOp, DropBlindIndexOp, render_create
from .parts import is_token, parts_of

_KEEPS_INDEXES: Final = (ops.AddColumnOp, ops.CreateIndexOp, ops.DropIndexOp)
"""What a batch does on SQLite without making the table anew."""


@dataclass(slots=True)
class _Sorted:
    """Operations by when they have to happen."""

    first: list[MigrateOperation] = field(default_factory=list)
    between: list[MigrateOperation] = field(default_factory=list)
    last: list[MigrateOperation] = field(default_factory=list)


class _AgainOp(CreateBlindIndexOp):
    """Creates an index again that SQLite loses when a batch makes its table anew.

    One stands before that and one after it, so that there is a later one on the way back too; only that one is written.
    """

    is_later = False

    @classmethod
    def of(cls, operation: CreateBlindIndexOp, *, is_later: bool) -> _AgainOp:
        """Return an operation that creates the same index, if it is not there."""
        made = cls(
            operation.index_name,
            operation.table_name,
            operation.parts,
            unique=operation.unique,
            schema=operation.schema,
            if_not_exists=True,
            **operation.kw,
        )
        made.is_later = is_later
        return made

    def reverse(self) -> MigrateOperation:
        """Return the same, for the other way."""
        return self.of(self, is_later=not self.is_later)


@renderers.dispatch_for(_AgainOp)
def _render_again(autogen_context: AutogenContext, operation: _AgainOp) -> str | list[str]:
    return render_create(autogen_context, operation) if operation.is_later else []


def _compare(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Any) -> None:
    found = _Sorted()
    changes = column_changes.taken(autogen_context, upgrade_ops.ops)
    for operation in upgrade_ops.ops:
        if isinstance(operation, ops.ModifyTableOps):
            operation.ops[:] = _without_ours(operation.ops, found)
            if operation.is_empty():
                continue
        elif isinstance(operation, ops.DropTableOp):
            _forget_generated(operation)
        found.between.append(operation)
    if autogen_context.dialect is not None and autogen_context.dialect.name == "sqlite":
        _OnSqlite(autogen_context, found).compare(schemas)
    for operation in (*found.first, *found.last):
        _let_be_done_again(operation, changes)
    upgrade_ops.ops[:] = [*found.first, *changes.opened, *found.between, *changes.sealed, *found.last]


def _let_be_done_again(operation: MigrateOperation, changes: Changes) -> None:
    """Let an index beside values that are moved be there already, or no longer, when a migration is run again."""
    if not isinstance(operation, CreateBlindIndexOp | DropBlindIndexOp):
        return
    columns = {str(part[0]) for part in operation.parts if is_token(part)}
    if not changes.touch(operation.schema, operation.table_name, columns):
        return
    if isinstance(operation, CreateBlindIndexOp):
        operation.if_not_exists = True
    else:
        operation.if_exists = True


def _without_ours(operations: list[MigrateOperation], found: _Sorted) -> list[MigrateOperation]:
    """Sort the operations that are about indexes over tokens, in our own words; return the others."""
    others = []
    for operation in operations:
        if isinstance(operation, ops.CreateIndexOp) and (created := _creation(operation)):
            found.last.append(created)
        elif isinstance(operation, ops.DropIndexOp) and (dropped := _drop(operation)):
            found.first.append(dropped)
        else:
            others.append(operation)
    return others


def _creation(operation: ops.CreateIndexOp) -> CreateBlindIndexOp | None:
    """Return our word for the creation of an index, or None where it has no token, or more than columns and tokens."""
    parts = parts_of(operation.columns)
    if parts is None or operation.index_name is None:
        return None
    return CreateBlindIndexOp(
        operation.index_name,
        operation.table_name,
        parts,
        unique=bool(operation.unique),
        schema=operation.schema,
        if_not_exists=operation.if_not_exists,
        **operation.kw,
    )


def _drop(operation: ops.DropIndexOp) -> MigrateOperation | None:
    created = _creation(operation.reverse())
    return created and created.reverse()


def _forget_generated(operation: ops.DropTableOp) -> None:
    """Leave the generated columns out of the table that a downgrade would make; its indexes bring them."""
    made = operation._reverse
    if made is not None:
        made.columns = [each for each in made.columns if not (isinstance(each, Column) and is_generated(each))]


class _OnSqlite:
    """Compares the models' indexes over tokens with those of a SQLite database."""

    def __init__(self, autogen_context: AutogenContext, found: _Sorted) -> None:
        assert autogen_context.connection is not None
        self._context: Final = autogen_context
        self._connection: Final = autogen_context.connection
        self._found: Final = found

    def compare(self, schemas: Any) -> None:
        """Sort what is different in the tables of these schemas."""
        tables = {(each.schema, each.name): each for each in self._context.sorted_tables}
        there = {(schema, name) for schema in schemas for name in self._context.inspector.get_table_names(schema)}
        for operation in list(self._found.between):
            if isinstance(operation, ops.CreateTableOp):
                for index in _over_tokens(tables.get((operation.schema, operation.table_name))):
                    self._create(index)
            elif isinstance(operation, ops.DropTableOp):
                for name, each in sqlite.indexes(self._connection, operation.table_name, operation.schema).items():
                    self._drop(name, each, operation.table_name, operation.schema)
        for place, table in tables.items():
            filtered = {"schema_name": table.schema}
            if (
                place in there
                and self._context.run_name_filters(table.name, "table", filtered)  # type: ignore[arg-type]
                and self._context.run_object_filters(table, table.name, "table", False, None)
            ):
                self._compare_table(table)

    def _compare_table(self, table: Table) -> None:
        have = sqlite.indexes(self._connection, table.name, table.schema)
        declared = {str(each.name) for each in table.indexes}
        for name, found in have.items():
            if name not in declared:
                self._drop(name, found, table.name, table.schema)
        is_made_anew = self._is_made_anew(table)
        for index in _over_tokens(table):
            name = str(index.name)
            if name not in have:
                self._create(index)
            elif not sqlite.declared(index, self._connection.dialect).same(have[name]):
                if self._is_included(index, reflected=False):
                    self._drop(name, have[name], table.name, table.schema)
                    self._create(index)
            elif is_made_anew and (created := _creation(ops.CreateIndexOp.from_index(index))):
                self._found.first.append(_AgainOp.of(created, is_later=False))
                self._found.last.append(_AgainOp.of(created, is_later=True))

    def _create(self, index: Index) -> None:
        if self._is_included(index, reflected=False):
            plain = ops.CreateIndexOp.from_index(index)
            self._found.last.append(_creation(plain) or plain)

    def _drop(self, name: str, found: sqlite.Found, table: str, schema: str | None) -> None:
        if found.parts is None:
            return
        created = CreateBlindIndexOp(name, table, found.parts, unique=found.unique, schema=schema)
        if self._is_included(created.to_index(), reflected=True):
            self._found.first.append(created.reverse())

    def _is_included(self, index: Index, *, reflected: bool) -> bool:
        return self._context.run_object_filters(index, index.name, "index", reflected, None)

    def _is_made_anew(self, table: Table) -> bool:
        if not self._context.opts.get("render_as_batch"):
            return False
        return any(
            not isinstance(inner, _KEEPS_INDEXES)
            for each in self._found.between
            if isinstance(each, ops.ModifyTableOps) and (each.table_name, each.schema) == (table.name, table.schema)
            for inner in each.ops
        )


def _over_tokens(table: Table | None) -> Iterator[Index]:
    indexes = table.indexes if table is not None else ()
    found = [each for each in indexes if any(isinstance(part, TokenOf) for part in each.expressions)]
    yield from sorted(found, key=lambda each: str(each.name))


def _register() -> None:
    # Alembic has priorities since 1.18, and without one ours would come first; before, it comes in order.
    priority = getattr(util, "DispatchPriority", None)
    more: Any = {"priority": priority.LAST} if priority is not None else {}
    comparators.dispatch_for("schema", **more)(_compare)


_register()
