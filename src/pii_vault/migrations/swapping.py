"""Put a filled column in the place of another one: the last step, while nobody else writes to the table.

It is one statement or one transaction, so the table is never seen without the column, or with both of them under names
that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alembic.operations import Operations
from sqlalchemy import Column, Connection
from sqlalchemy.schema import CreateColumn

from . import sqlite
from .tables import Over
from .transactions import MYSQL, quoted_table


@dataclass(frozen=True, slots=True)
class Swap:
    """What is put where.

    Attributes:
        table: The table's name.
        schema: Its schema, or None.
        goes: The column that is dropped.
        comes: The column that takes its place.
        column: What that one is then.
        drops: Indexes and constraints that go with the column.
    """

    table: str
    schema: str | None
    goes: str
    comes: str
    column: Column[Any]
    drops: Sequence[Over]


def swap(operations: Operations, what: Swap) -> None:
    """Drop a column and give another one its place."""
    dialect = operations.get_bind().dialect.name
    if dialect in MYSQL:
        _in_one_statement(operations, what)
    elif dialect == "sqlite":
        _on_sqlite(operations, what)
    else:
        _step_by_step(operations, what)


def _step_by_step(operations: Operations, what: Swap) -> None:
    for each in what.drops:
        if not each.name:  # it goes with its only column
            continue
        if each.is_constraint:
            operations.drop_constraint(each.name, what.table, schema=what.schema)
        else:
            operations.drop_index(each.name, what.table, schema=what.schema)
    operations.drop_column(what.table, what.goes, schema=what.schema)
    operations.alter_column(what.table, what.comes, new_column_name=what.column.name, schema=what.schema)
    if not what.column.nullable:
        operations.alter_column(what.table, what.column.name, nullable=False, schema=what.schema)


def _in_one_statement(operations: Operations, what: Swap) -> None:
    connection = operations.get_bind()
    quote = connection.dialect.identifier_preparer.quote
    named = [(each.name, "CONSTRAINT" if each.is_constraint else "INDEX") for each in what.drops if each.name]
    parts = [f"DROP {kind} {quote(name)}" for name, kind in named]
    defined = CreateColumn(what.column).compile(dialect=connection.dialect)
    # FORCE: without it the table's pages would keep what the dropped column held.
    parts += [f"DROP COLUMN {quote(what.goes)}", f"CHANGE COLUMN {quote(what.comes)} {defined}", "FORCE"]
    table = quoted_table(operations, what.table, what.schema)
    _execute(connection, f"ALTER TABLE {table} {', '.join(parts)}")


def _on_sqlite(operations: Operations, what: Swap) -> None:
    connection = operations.get_bind()
    table = quoted_table(operations, what.table, what.schema)
    quote = connection.dialect.identifier_preparer.quote
    if not what.column.nullable or any(each.is_constraint for each in what.drops):
        _made_anew(operations, what)
        return
    for each in what.drops:
        schema = f"{quote(what.schema)}." if what.schema else ""
        _execute(connection, f"DROP INDEX {schema}{quote(str(each.name))}")
    _execute(connection, f"ALTER TABLE {table} DROP COLUMN {quote(what.goes)}")
    _execute(connection, f"ALTER TABLE {table} RENAME COLUMN {quote(what.comes)} TO {quote(what.column.name)}")


def _made_anew(operations: Operations, what: Swap) -> None:
    """Let Alembic make the table anew, and bring back what it does not know of: triggers and indexes over tokens."""
    connection = operations.get_bind()
    dropped = {each.name for each in what.drops}
    for each in what.drops:
        if not each.is_constraint:
            operations.drop_index(str(each.name), what.table, schema=what.schema)
    kept = {kind: sqlite.statements(connection, what.table, what.schema, kind) for kind in ("index", "trigger")}
    with operations.batch_alter_table(what.table, schema=what.schema, recreate="always") as batch:
        for each in what.drops:
            if each.is_constraint and each.name:
                batch.drop_constraint(each.name)
        batch.drop_column(what.goes)
        batch.alter_column(what.comes, new_column_name=what.column.name, nullable=what.column.nullable)
    for kind, statements in kept.items():
        there = sqlite.statements(connection, what.table, what.schema, kind)
        for name, sql in statements.items():
            if name not in there and name not in dropped:
                _execute(connection, sql)


def _execute(connection: Connection, sql: str) -> None:
    connection.exec_driver_sql(
        sql.replace("%", "%%") if connection.dialect.paramstyle in {"format", "pyformat"} else sql
    )
