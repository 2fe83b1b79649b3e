"""The key store's schema: bring it to this release, say where it stands. Imports alembic only when it runs.

Alembic's process-wide `alembic.context` is left alone and its logging is not configured, so that an application may
call `upgrade` from its own migration environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from .. import primitives
from ..errors import KeyStoreError
from . import schema as tables
from .engine import own_engine
from .schema_change import enter, schema_change
from .store import KeyStore

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

MIGRATIONS: Final = Path(__file__).with_name("migrations")
"""Alembic's script location; it lies in the wheel."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a key store's schema stands.

    Attributes:
        revision: What the database has, or None.
        expected: What this release needs.
        problems: What is wrong, one sentence each; empty when the key store can be used.
    """

    revision: str | None
    expected: str
    problems: tuple[str, ...]


def upgrade(engine: Engine, schema: str | None = None) -> str:
    """Bring the schema to this release and give the application its uid. Doing it again changes nothing.

    All in one transaction; a second process that upgrades at once waits, and then finds nothing to do.

    Args:
        engine: On the key store's database.
        schema: PostgreSQL's schema that the key store has for itself, made where it is missing; None for where the
            engine's search path leads.

    Returns:
        The revision.

    Raises:
        KeyStoreError: the tables are of a newer release, the database failed, or the schema may not be made or used.
        ConfigurationError: the database cannot have such a schema.
    """
    store = KeyStore(engine, schema)
    with _translated(), schema_change(own_engine(engine, schema), schema) as connection:
        _refuse_newer(_revision(connection, schema))
        _run(connection)
    store.ensure_application(primitives.random_uid, datetime.now(UTC))
    return tables.REVISION


def current(engine: Engine, schema: str | None = None) -> str | None:
    """Return the revision of the key store's tables, or None when there are none. Arguments are as for `upgrade`."""
    with _looking(engine, schema) as connection:
        return _revision(connection, schema)


def check(engine: Engine, schema: str | None = None) -> Status:
    """Compare the tables with what this release needs; changes nothing. Arguments are as for `upgrade`."""
    with _looking(engine, schema) as connection:
        found = _revision(connection, schema)
        return Status(found, tables.REVISION, tuple(_problems(connection, schema, found)))


def options() -> dict[str, Any]:
    """Return what a migration context needs to know, for this module and for `migrations/env.py`."""
    names = frozenset(tables.metadata.tables)

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name is None
        return (name if kind == "table" else parents.get("table_name")) in names

    return {
        "target_metadata": tables.metadata,
        "version_table": tables.revision.name,
        "include_name": ours,
        "transaction_per_migration": False,
    }


@contextmanager
def _looking(engine: Engine, schema: str | None) -> Iterator[Connection]:
    """Give a connection that finds the tables; a schema that is missing has none."""
    with _translated(), own_engine(engine, schema).connect() as connection:
        enter(connection, schema)
        yield connection


def _run(connection: Connection) -> None:
    from alembic.operations import Operations

    script = _script()

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return script._upgrade_revs(tables.REVISION, revision)

    context = _context(connection, fn=steps, script=script)
    with Operations.context(context):
        context.run_migrations()


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(MIGRATIONS))


def _context(connection: Connection, **more: Any) -> MigrationContext:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection, opts=options() | more)


def _revision(connection: Connection, schema: str | None) -> str | None:
    if not inspect(connection).has_table(tables.revision.name, schema=schema):
        return None
    found: str | None = connection.scalar(select(tables.revision.c.version_num))
    return found


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in tables.REVISIONS:
        raise KeyStoreError(
            f"the key store has schema revision {found}, this release of pii_vault knows {tables.REVISION}",
            hint="the tables are of a newer release: upgrade pii_vault",
        )


def _problems(connection: Connection, schema: str | None, found: str | None) -> Iterator[str]:
    if found is None:
        yield f"the {'database' if schema is None else f'schema {schema!r}'} has no key store"
        return
    if found not in tables.REVISIONS:
        yield "the key store's tables are of a newer release of pii_vault"
        return
    if found != tables.REVISION:
        yield "the key store's tables are of an older release of pii_vault"
        return
    from alembic.autogenerate import compare_metadata

    for difference in compare_metadata(_context(connection), tables.metadata):
        yield f"the tables differ from this release: {_named(difference)}"
    missing = _expected_triggers(connection) - _triggers(connection)
    for name, _ in sorted(missing):
        yield f"the trigger {name} is missing, so key records could be changed or deleted"
    if connection.scalar(select(tables.application.c.uid)) is None:
        yield "the application has no uid"


def _named(difference: Any) -> str:
    """Name a difference that alembic found; the objects in it print at length."""
    if isinstance(difference, list):
        return _named(difference[0])
    operation, *parts = difference
    names = [part if isinstance(part, str) else getattr(part, "name", None) for part in parts]
    return f"{operation} {'.'.join(name for name in names if name)}"


def _expected_triggers(connection: Connection) -> set[tuple[str, str]]:
    """Return names of triggers, each with its table's."""
    statements = tables.trigger_statements(connection.dialect.name)
    made = re.compile(r"CREATE TRIGGER (\w+) BEFORE [\w ]+? ON (\w+)")
    return {found for statement in statements for found in made.findall(statement)}


def _triggers(connection: Connection) -> set[tuple[str, str]]:
    if connection.dialect.name == "postgresql":
        # Visible is what a name without a schema means here: another key store may lie beside this one.
        found = text(
            "SELECT tgname, relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
            "WHERE tgenabled IN ('O', 'A') AND NOT tgisinternal AND pg_table_is_visible(tgrelid)"
        )
    else:
        found = text("SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'")
    return {(name, table) for name, table in connection.execute(found)}


@contextmanager
def _translated() -> Iterator[None]:
    failure: str | None = None
    try:
        yield
    except DBAPIError as error:
        # Not chained and not quoted: driver errors carry parameters.
        failure = type(error.orig).__name__
    if failure is not None:
        raise KeyStoreError(
            f"the key store's database failed with {failure}",
            hint="check that it can be reached and that this user may create tables",
        )
