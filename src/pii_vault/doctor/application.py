"""Look at the application: its engine and its sessions, the columns that hold sealed values, and what is in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Engine, Inspector, MetaData, Table, inspect
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.types import TypeEngine

from ..envelope import OVERHEAD_BYTES, TOKEN_BYTES
from ..errors import ConfigurationError, PiiVaultError
from ..keystore import KeyStore
from ..orm.attachment import Attachment, attached
from ..orm.encrypted_type import EncryptedType
from ..orm.session import session_attachment
from ..reencryption.coverage import Coverage, Stored, coverage
from ..reencryption.headers import Other
from .findings import Finding, Group, Verdict

_OURS: Final = Group.OURS

_UNREADABLE: Final = {
    Other.PLAINTEXT: "never sealed",
    Other.MALFORMED: "cut off or overwritten",
    Other.UNSUPPORTED: "of an unknown format",
    Other.UNKNOWN_VERSION: "under data keys that the key store does not have",
    Other.UNKNOWN_KEYSET: "of keysets that no tenant has",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Application:
    """What the application has shown us of itself; None is not checked, and that is said.

    Attributes:
        metadata: Its tables.
        engine: On its database, an `Engine` or an `AsyncEngine`.
        sessions: What makes its sessions: whatever `Vault.attach` takes.
    """

    metadata: MetaData | None = None
    engine: Any = None
    sessions: Any = None


def examine(application: Application, store: KeyStore) -> Iterator[Finding]:
    """Make every check on the application that can be made.

    Args:
        application: What it has shown.
        store: The key store, which knows whose keys have sealed what.

    Raises:
        ConfigurationError: the engine or the sessions are something else.
    """
    engine = _engine_of(application.engine) if application.engine is not None else None
    attachment = attached(engine.dialect) if engine is not None else None
    if engine is None:
        yield _not_named("engine", "the application's engine was", "--engine app.db:engine")
    else:
        yield from _engine(engine, attachment)
    if application.sessions is None:
        yield _not_named("sessions", "the application's session maker was", "--session app.db:Session")
    else:
        yield _sessions(application.sessions, attachment)
    tables = _sealed(application.metadata)
    if application.metadata is None:
        yield _not_named("columns", "the application's models were", "--metadata app.models:Base")
        return
    if not tables:
        hint = "name the declarative base or the MetaData of the application's models"
        yield Finding(_OURS, "columns", Verdict.FAILED, "the metadata holds no encrypted column", hint)
        return
    yield _tenant_columns(tables, attachment)
    if engine is None:
        yield _not_named("column-types", "without the application's engine, columns were", "--engine app.db:engine")
        yield _not_named("plaintext", "without the application's engine, values were", "--engine app.db:engine")
        return
    yield from _reaching(engine, lambda own: list(_stored(own, tables, application.metadata, store)))


# The engine.


def _engine_of(target: Any) -> Engine:
    engine = getattr(target, "sync_engine", target)
    if not isinstance(engine, Engine):
        raise ConfigurationError(
            f"a {type(target).__name__} is no engine", hint="name what create_engine or create_async_engine returned"
        )
    return engine


def _engine(engine: Engine, attachment: Attachment | None) -> Iterator[Finding]:
    if attachment is not None:
        yield Finding(_OURS, "engine", Verdict.PASSED, "the engine is attached, so its statements are checked")
    else:
        finding = "the engine is not attached: encrypted columns cannot be used through it, nor is anything checked"
        yield Finding(_OURS, "engine", Verdict.FAILED, finding, "vault.attach(engine), right after it is made")
    if engine.hide_parameters:
        yield Finding(_OURS, "hide-parameters", Verdict.PASSED, "errors and logs do not show parameters")
    else:
        finding = "errors and logs show the parameters of statements, those of plain columns in clear"
        yield Finding(_OURS, "hide-parameters", Verdict.FAILED, finding, "create_engine(…, hide_parameters=True)")
    # With `echo` an engine has a logger of its own kind, which answers for both.
    if engine.logger.isEnabledFor(logging.DEBUG):
        finding = "the engine logs each row that it reads, with opened values"
        change = "no echo='debug', and the logger sqlalchemy.engine at INFO or above"
        yield Finding(_OURS, "engine-log", Verdict.FAILED, finding, change)
    else:
        yield Finding(_OURS, "engine-log", Verdict.PASSED, "the engine logs no rows")
    yield _pool(engine)


def _pool(engine: Engine) -> Finding:
    # There is no public way to ask a pool.
    pings, recycles = getattr(engine.pool, "_pre_ping", False), getattr(engine.pool, "_recycle", -1)
    if engine.dialect.name == "sqlite" or pings or recycles > 0:
        return Finding(_OURS, "pool", Verdict.INFO, f"connections come from a {type(engine.pool).__name__}")
    finding = "a connection that the server or a firewall has closed is noticed only by the statement that fails on it"
    return Finding(_OURS, "pool", Verdict.INFO, finding, "create_engine(…, pool_pre_ping=True)")


# The sessions.


def _sessions(target: Any, engines: Attachment | None) -> Finding:
    found = session_attachment(target)
    if found is None:
        finding = "the session maker is not attached: rows of another tenant are not refused before they are written"
        return Finding(_OURS, "sessions", Verdict.FAILED, finding, "vault.attach(engine, Session, tenant_column=…)")
    if engines is not None and found != engines:
        finding = "the engine and the sessions are attached to two vaults, or for two tenant columns"
        return Finding(_OURS, "sessions", Verdict.FAILED, finding, "attach both in one call of vault.attach")
    bound = getattr(target, "kw", {}).get("bind")
    if bound is not None and attached(_engine_of(bound).dialect) is None:
        finding = "the session maker is attached, and the engine that it is bound to is not"
        return Finding(_OURS, "sessions", Verdict.FAILED, finding, "vault.attach(engine, Session, tenant_column=…)")
    return Finding(_OURS, "sessions", Verdict.PASSED, "the sessions are attached, so each serves one tenant at a time")


# The tables.


def _sealed(metadata: MetaData | None) -> dict[Table, list[str]]:
    """Return the encrypted columns of each table that has any."""
    found: dict[Table, list[str]] = {}
    for table in metadata.sorted_tables if metadata is not None else ():
        names = [each.name for each in table.columns if isinstance(each.type, EncryptedType)]
        if names:
            found[table] = names
    return found


def _tenant_columns(tables: dict[Table, list[str]], attachment: Attachment | None) -> Finding:
    if attachment is None:
        return _not_named("tenant-column", "without an attached engine, tenant columns were", "vault.attach(engine)")
    if attachment.tenant_column is None:
        if attachment.default is not None:
            finding = f"no tenant column is named, because every row is tenant {attachment.default.tenant!r}'s"
            return Finding(_OURS, "tenant-column", Verdict.PASSED, finding)
        finding = "no tenant column is named, so nobody compares whose row is written with who is in scope"
        change = "vault.attach(engine, Session, tenant_column=…)"
        return Finding(_OURS, "tenant-column", Verdict.WARNING, finding, change)
    missing = [table.fullname for table in tables if not _has(table, attachment.tenant_column)]
    if missing:
        finding = f"no column {attachment.tenant_column!r} says whose rows they are in {', '.join(missing)}"
        change = "give these tables the column, or check there yourself whose row is written"
        return Finding(_OURS, "tenant-column", Verdict.FAILED, finding, change)
    finding = f"each table with encrypted columns has the tenant column {attachment.tenant_column!r}"
    return Finding(_OURS, "tenant-column", Verdict.PASSED, finding)


def _has(table: Table, column: str) -> bool:
    return any(each.name == column for each in table.columns)


def _stored(engine: Engine, tables: dict[Table, list[str]], metadata: Any, store: KeyStore) -> Iterator[Finding]:
    columns = list(_column_types(engine, tables))
    yield from columns
    if any(each.verdict is Verdict.NOT_MADE for each in columns):
        yield Finding(_OURS, "plaintext", Verdict.NOT_MADE, "values were not counted: the database did not answer")
        return
    try:
        found = coverage(store, engine, metadata, estimate=True)
    except PiiVaultError as error:
        yield Finding(_OURS, "plaintext", Verdict.NOT_MADE, str(error.args[0]), error.hint)
        return
    yield from _values(found)


def _values(found: Coverage) -> Iterator[Finding]:
    unreadable = [each for each in found.problems if each.state in _UNREADABLE]
    closed = [each for each in found.problems if each.state not in _UNREADABLE]
    looked = "looked at a part of each larger table: `pii-vault coverage` counts all" if found.estimated else ""
    if unreadable:
        said = "; ".join(f"{each.count:,} in {_place(each)} {_why(each)}" for each in unreadable[:5])
        more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        change = "`pii-vault coverage` tells all; seal what was never sealed (docs/migrations.md, docs/adoption.md)"
        yield Finding(_OURS, "plaintext", Verdict.FAILED, f"values that nobody can open: {said}{more}", change)
    else:
        finding = "every value in an encrypted column is sealed by a key of the key store"
        yield Finding(_OURS, "plaintext", Verdict.PASSED, f"{finding} ({looked})" if looked else finding)
    if closed:
        places = ", ".join(f"{each.count:,} in {_place(each)}" for each in closed[:5])
        finding = f"values under compromised or destroyed data keys: {places}"
        yield Finding(_OURS, "closed-values", Verdict.WARNING, finding, "`pii-vault reencrypt` opens compromised ones")


def _place(each: Stored) -> str:
    return f"{each.table}.{each.column}"


def _why(each: Stored) -> str:
    return _UNREADABLE[Other(each.state)]


# What the database makes of the columns.


def _column_types(engine: Engine, tables: dict[Table, list[str]]) -> Iterator[Finding]:
    wrong, narrow, missing = [], [], []
    try:
        inspector = inspect(engine)
        for table, names in tables.items():
            real = _real_types(inspector, engine, table)
            for name in names:
                place = f"{table.fullname}.{name}"
                if name not in real:
                    missing.append(place)
                elif not _holds_bytes(real[name]):
                    wrong.append(f"{place} is {real[name]}")
                elif (reason := _too_narrow(engine, real[name], table.columns[_key(table, name)].type)) is not None:
                    narrow.append(f"{place} {reason}")
    except Exception as error:  # noqa: BLE001 - asyncpg's come as they are with SQLAlchemy 2.0
        finding = f"the columns cannot be looked at: {type(error).__name__}"
        yield Finding(_OURS, "column-types", Verdict.NOT_MADE, finding)
        return
    if missing:
        finding = f"the database does not have {', '.join(missing)}"
        yield Finding(_OURS, "columns", Verdict.FAILED, finding, "migrate the database, or name the right engine")
    # SQLite stores bytes as they are whatever a column is declared as.
    severity = Verdict.WARNING if engine.dialect.name == "sqlite" else Verdict.FAILED
    if wrong or narrow:
        parts = [f"{each}, which is not for bytes" for each in wrong] + narrow
        change = "change the type to BYTEA, BLOB or LONGBLOB in a migration: docs/migrations.md"
        yield Finding(_OURS, "column-types", severity, "; ".join(parts), change)
    elif not missing:
        yield Finding(_OURS, "column-types", Verdict.PASSED, "every encrypted column is for bytes of any length")


def _real_types(inspector: Inspector, engine: Engine, table: Table) -> dict[str, TypeEngine[Any]]:
    schemas = engine.get_execution_options().get("schema_translate_map") or {}
    try:
        columns = inspector.get_columns(table.name, schema=schemas.get(table.schema, table.schema))
    except NoSuchTableError:
        return {}
    return {each["name"]: each["type"] for each in columns}


def _key(table: Table, name: str) -> str:
    return next(each.key for each in table.columns if each.name == name)


def _holds_bytes(real: TypeEngine[Any]) -> bool:
    try:
        return real.python_type is bytes
    except NotImplementedError:  # a type that SQLAlchemy does not know
        return False


def _too_narrow(engine: Engine, real: TypeEngine[Any], kind: Any) -> str | None:
    """Say how much room a column has, where it may be too little for what it is to hold."""
    length = getattr(real, "length", None)
    if length is None and engine.dialect.name in ("mysql", "mariadb"):
        length = _LIMITS.get(type(real).__name__)
    if length is None:
        return None
    room = length - OVERHEAD_BYTES - TOKEN_BYTES * len(kind.slots)
    if room <= 0:
        return f"is {real}: no sealed value fits, which has more than {length - room} bytes"
    return f"is {real}: no value of more than {room} bytes fits, sealed"


_LIMITS: Final = {"TINYBLOB": 255, "BLOB": 65_535}
"""How many bytes MySQL's and MariaDB's types hold that end early. Elsewhere a BLOB does not."""


# An engine that is asynchronous.


def _reaching(engine: Engine, work: Callable[[Engine], T]) -> T:
    """Do synchronous work on an engine, also on an asynchronous one: in an event loop and on connections of its own."""
    if not engine.dialect.is_async:
        return work(engine)
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from sqlalchemy.util.concurrency import greenlet_spawn

    # A pool's connections belong to the loop that opened them, and the application may be running one.
    own = Engine(engine.pool.recreate(), engine.dialect, engine.url)

    async def run() -> T:
        try:
            return await greenlet_spawn(work, own)
        finally:
            await greenlet_spawn(own.dispose)

    with ThreadPoolExecutor(1) as worker:
        return worker.submit(lambda: asyncio.run(run())).result()


def _not_named(check: str, what: str, how: str) -> Finding:
    return Finding(_OURS, check, Verdict.NOT_CHECKED, f"{what} not looked at", f"name it: {how}")
