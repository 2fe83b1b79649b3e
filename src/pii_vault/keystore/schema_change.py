"""Changes of the schema: one transaction, one process at a time, in the schema that the key store has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, text

from ..errors import ConfigurationError, KeyStoreError

_LOCK: Final = 7309453671
"""PostgreSQL's advisory lock of this project; any number would do, but never another one again."""

_USABLE: Final = text("SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = :name")
_CREATABLE: Final = text("SELECT has_database_privilege(current_database(), 'CREATE')")


@contextmanager
def schema_change(engine: Engine, schema: str | None) -> Iterator[Connection]:
    """Give a connection in a transaction that nobody else's schema change runs beside: a second one waits.

    Names without a schema are of the key store's, which is made where it is missing.

    Raises:
        KeyStoreError: the schema is missing or closed to this role, which may not create it.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        elif not getattr(connection.connection.dbapi_connection, "in_transaction", False):
            # Python's driver begins no transaction before DDL: each statement would be committed on its own.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if schema is not None and not enter(connection, schema):
            _create(connection, schema)
            enter(connection, schema)
        yield connection


def enter(connection: Connection, schema: str | None) -> bool:
    """Let names without a schema be of `schema` until the transaction ends; False where there is no such schema.

    Migrations and triggers name tables without one. Nothing else is searched: not what lies beside it either.

    Raises:
        KeyStoreError: this role may not use the schema.
        ConfigurationError: the connection keeps no transaction.
    """
    if schema is None:
        return True
    usable = connection.scalar(_USABLE, {"name": schema})
    if usable is None:
        return False
    if not usable:
        raise KeyStoreError(
            f"this database role may not use the schema {schema!r}",
            hint=f"GRANT USAGE ON SCHEMA {_quoted(connection, schema)}; docs/security.md says what else it needs",
        )
    connection.exec_driver_sql(f"SET LOCAL search_path TO {_quoted(connection, schema)}")
    if connection.exec_driver_sql("SELECT current_schema()").scalar() != schema:
        # It went with its own statement, and the next ones would be about tables somewhere else.
        raise ConfigurationError(
            "the key store's engine keeps no transaction", hint="leave out isolation_level='AUTOCOMMIT' there"
        )
    return True


def _create(connection: Connection, schema: str) -> None:
    quoted = _quoted(connection, schema)
    if not connection.scalar(_CREATABLE):
        raise KeyStoreError(
            f"the database has no schema {schema!r}, and this role may not create one",
            hint=f"let whoever owns the database say: CREATE SCHEMA {quoted} AUTHORIZATION and this role's name",
        )
    connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")


def _quoted(connection: Connection, schema: str) -> str:
    quoted: str = connection.dialect.identifier_preparer.quote_identifier(schema)
    return quoted
