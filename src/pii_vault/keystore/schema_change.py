"""Changes of the schema: one transaction, one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine

_LOCK: Final = 7309453671
"""PostgreSQL's advisory lock of this project; any number would do, but never another one again."""


@contextmanager
def schema_change(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that nobody else's schema change runs beside: a second one waits."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        elif not getattr(connection.connection.dbapi_connection, "in_transaction", False):
            # Python's driver begins no transaction before DDL: each statement would be committed on its own.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
