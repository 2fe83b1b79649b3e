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
from . import schema
from .schema_change import schema_change
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


def upgrade(engine: Engine) -> str:
    """Bring the schema to this release and give the application its uid. Doing it again changes nothing.

    All in one transaction; a second process that upgrades at once waits, and then finds nothing to do.

    Returns:
        The revision.

    Raises:
        KeyStoreError: the schema is of a newer release, or the database failed.
    """
    store = KeyStore(engine)
    with _translated(), schema_change(engine) as connection:
        _refuse_newer(_revision(connection))
        _run(connection)
    store.ensure_application(primitives.random_uid, datetime.now(UTC))
    return schema.REVISION


def current(engine: Engine) -> str | None:
    """Return the revision of the database's schema, or None when it has none."""
    with _translated(), engine.connect() as connection:
        return _revision(connection)


def check(engine: Engine) -> Status:
    """Compare the database with what this release needs; changes nothing."""
    with _translated(), engine.connect() as connection:
        found = _revision(connection)
        return Status(found, schema.REVISION, tuple(_problems(connection, found)))


def options() -> dict[str, Any]:
    """Return what a migration context needs to know, for this module and for `migrations/env.py`."""
    names = frozenset(schema.metadata.tables)

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name is None
        return (name if kind == "table" else parents.get("table_name")) in names

    return {
        "target_metadata": schema.metadata,
        "version_table": schema.revision.name,
        "include_name": ours,
        "transaction_per_migration": False,
    }


def _run(connection: Connection) -> None:
    from alembic.operations import Operations

    script = _script()

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return script._upgrade_revs(schema.REVISION, revision)

    context = _context(connection, fn=steps, script=script)
    with Operations.context(context):
        context.run_migrations()


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(MIGRATIONS))


def _context(connection: Connection, **more: Any) -> MigrationContext:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection, opts=options() | more)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(schema.revision.name):
        return None
    found: str | None = connection.scalar(select(schema.revision.c.version_num))
    return found


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in schema.REVISIONS:
        raise KeyStoreError(
            f"the key store has schema revision {found}, this release of pii_vault knows {schema.REVISION}",
            hint="the tables are of a newer release: upgrade pii_vault",
        )


def _problems(connection: Connection, found: str | None) -> Iterator[str]:
    if found is None:
        yield "the database has no key store"
        return
    if found not in schema.REVISIONS:
        yield "the key store's tables are of a newer release of pii_vault"
        return
    if found != schema.REVISION:
        yield "the key store's tables are of an older release of pii_vault"
        return
    from alembic.autogenerate import compare_metadata

    for difference in compare_metadata(_context(connection), schema.metadata):
        yield f"the tables differ from this release: {_named(difference)}"
    missing = _expected_triggers(connection) - _triggers(connection)
    for name in sorted(missing):
        yield f"the trigger {name} is missing, so key records could be changed or deleted"
    if connection.scalar(select(schema.application.c.uid)) is None:
        yield "the application has no uid"


def _named(difference: Any) -> str:
    """Name a difference that alembic found; the objects in it print at length."""
    if isinstance(difference, list):
        return _named(difference[0])
    operation, *parts = difference
    names = [part if isinstance(part, str) else getattr(part, "name", None) for part in parts]
    return f"{operation} {'.'.join(name for name in names if name)}"


def _expected_triggers(connection: Connection) -> set[str]:
    statements = schema.trigger_statements(connection.dialect.name)
    return {name for statement in statements for name in re.findall(r"CREATE TRIGGER (\w+)", statement)}


def _triggers(connection: Connection) -> set[str]:
    if connection.dialect.name == "postgresql":
        found = text("SELECT tgname FROM pg_trigger WHERE tgenabled <> 'D' AND NOT tgisinternal")
    else:
        found = text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    return set(connection.scalars(found))


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
