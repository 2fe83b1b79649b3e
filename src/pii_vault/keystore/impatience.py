"""Writing to a SQLite file that somebody else may be writing to: perhaps the caller, who would wait for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from ..errors import KeyStoreBusyError


@contextmanager
def impatient(connection: Connection) -> Iterator[None]:
    """Let SQLite refuse to write at once where somebody else is writing, for the length of a block."""
    if connection.dialect.name != "sqlite":
        yield
        return
    if getattr(connection.connection.dbapi_connection, "in_transaction", False):
        # A database in memory has one connection for all. To commit here would commit what somebody else is writing.
        raise KeyStoreBusyError("the key store's only connection is in a transaction", hint="commit it first")
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience:d}")
