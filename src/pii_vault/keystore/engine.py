"""The key store's own engine."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL, Engine, StaticPool, create_engine, make_url

from ..errors import ConfigurationError
from .schema import DIALECTS

OWN_STATEMENTS: Final = "pii_vault_own_statements"
"""The execution option that marks the key store's statements: on an engine that is attached too, they need no keys."""

SCHEMA_NAMES: Final = "a name of 1 to 63 letters, digits, _ and -, that begins with a letter and not with pg_"
"""Which schemas a key store can have: PostgreSQL would cut a longer name, and keeps pg_ for itself."""

_SCHEMA_NAME: Final = re.compile(r"(?!pg_)[A-Za-z][A-Za-z0-9_-]{0,62}")


def open_engine(database: str | URL) -> Engine:
    """Make an engine for the key store from a URL.

    Raises:
        ConfigurationError: the URL names an asynchronous driver.
    """
    url = make_url(database)
    if url.get_dialect().is_async:
        raise ConfigurationError(
            f"the key store needs a synchronous driver, {url.drivername} is asynchronous",
            hint="give the vault a URL such as postgresql+psycopg://; the application's engine may be asynchronous",
        )
    if url.get_backend_name() != "sqlite":
        # Looked at before it is used: one from before the database was restarted is no failure of the key store.
        return create_engine(url, pool_size=2, max_overflow=8, pool_pre_ping=True)
    if url.database in (None, "", ":memory:"):
        # Every connection to such a database would be an empty database of its own.
        return create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    return create_engine(url)


def can_be_schema(name: str) -> bool:
    """Say whether a key store can have a schema of this name."""
    return _SCHEMA_NAME.fullmatch(name) is not None


def own_engine(engine: Engine, schema: str | None) -> Engine:
    """Return an engine with the same connections, for the key store's statements.

    The schema stands in each statement, before the table's name. The connection's search path is left as it is: it may
    be the application's, and a pool between us and the database may give it to somebody else.

    Args:
        engine: The application's, or one of our own.
        schema: The schema with the key store's tables; None for where the connection's search path leads.

    Raises:
        ConfigurationError: the database is of another kind, or cannot have such a schema.
    """
    if engine.dialect.name not in DIALECTS:
        raise ConfigurationError(
            f"the key store needs PostgreSQL or SQLite, not {engine.dialect.name}",
            hint="give the vault a database of its own; the application's may be of any kind",
        )
    if schema is not None and engine.dialect.name != "postgresql":
        raise ConfigurationError(
            "only on PostgreSQL a key store can have a schema of its own",
            hint="leave the schema out; on SQLite give the key store a file of its own",
        )
    if schema is not None and not can_be_schema(schema):
        raise ConfigurationError("the key store's schema has a name that cannot be used", hint=SCHEMA_NAMES)
    # Also in place of a map that the application has set for tables of its own.
    schema_map = None if schema is None else {None: schema}
    return engine.execution_options(**{OWN_STATEMENTS: True, "schema_translate_map": schema_map})
