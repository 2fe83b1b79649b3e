"""The transactions of a migration that moves values: those of its batches, and the one in which nobody else writes.

All of them are the migration's own connection's, so that what ``env.py`` has set there holds: a search path, a schema
map, a role.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final

from alembic.operations import Operations
from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.exc import SQLAlchemyError

from ..backfill.filling import Transaction
from ..errors import ConfigurationError

MYSQL: Final = ("mysql", "mariadb")


@contextmanager
def committed(operations: Operations, name: str) -> Iterator[None]:
    """Commit what the migration has done before, and let each statement inside be committed by itself.

    Raises:
        ConfigurationError: the transaction is not the migration's own.
    """
    block = operations.migration_context.autocommit_block()
    try:
        block.__enter__()
    except AssertionError:
        raise ConfigurationError(
            f"op.{name} commits what the migration has done before, and the transaction is not the migration's",
            hint="in env.py, connect with engine.connect() and use context.begin_transaction()",
        ) from None
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # a connection that was lost would say so, and nothing else
            block.__exit__(type(error), error, error.__traceback__)
        raise
    block.__exit__(None, None, None)


@contextmanager
def transaction(connection: Connection, begin: str = "BEGIN") -> Iterator[Connection]:
    """Begin a transaction on a connection that commits each statement by itself."""
    connection.exec_driver_sql(begin)
    try:
        yield connection
    except BaseException:
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


@contextmanager
def alone(operations: Operations, name: str, table: str, schema: str | None) -> Iterator[Transaction]:
    """Be the only one who writes to a table, until what is done inside has come to stay; yield what a batch is done in.

    On PostgreSQL that is when the migration's own transaction ends, so its revision stands with it.
    """
    connection = operations.get_bind()
    quoted = quoted_table(operations, table, schema)
    dialect = connection.dialect.name
    if dialect == "postgresql":
        if connection.get_isolation_level() == "AUTOCOMMIT":
            raise ConfigurationError(
                f"op.{name} needs a transaction, and env.py's connection commits each statement by itself",
                hint="leave out isolation_level='AUTOCOMMIT' there",
            )
        connection.exec_driver_sql(f"LOCK TABLE {quoted} IN ACCESS EXCLUSIVE MODE")
        yield partial(_savepoint, connection)
        return
    with committed(operations, name):
        connection = operations.get_bind()
        if dialect in MYSQL:
            connection.exec_driver_sql(f"LOCK TABLES {quoted} WRITE")
            try:
                yield lambda: nullcontext(connection)  # to begin a transaction would unlock them
            finally:
                with suppress(SQLAlchemyError):
                    connection.exec_driver_sql("UNLOCK TABLES")
        else:
            with _foreign_keys_off(connection), transaction(connection, "BEGIN IMMEDIATE"):
                yield partial(_savepoint, connection)


@contextmanager
def _savepoint(connection: Connection) -> Iterator[Connection]:
    """Let a batch fail inside a transaction without ending it."""
    with connection.begin_nested():
        yield connection


def quoted_table(operations: Operations, table: str, schema: str | None) -> str:
    """Return a table's name as SQL has it, for the schema that the connection puts in the place of this one."""
    schemas: Any = {}
    if not operations.migration_context.as_sql:
        schemas = operations.get_bind().get_execution_options().get("schema_translate_map") or {}
    there = Table(table, MetaData(), schema=schemas.get(schema, schema))
    return operations.impl.dialect.identifier_preparer.format_table(there)


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Keep SQLite from deleting what refers to a table that is made anew. No transaction may be open."""
    if not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        yield
        return
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
