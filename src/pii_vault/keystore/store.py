"""Queries on the key store: each method is one short transaction of its own, never the application's.

A rolled-back application transaction must not leave rows sealed under a key that no table holds, so keys are stored,
and committed, before anything is sealed with them. Everything here is public or wrapped: a reader of these tables
without the customer's KMS learns names, addresses and dates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ..context import Identity
from ..errors import ConfigurationError, KeyRecordError, KeyStoreError, TenantNotFoundError
from ..keys import KekRecord, KeyRecord, KeyState, Purpose, TenantRecord
from . import schema
from .change import schema_change
from .schema import application, keks, keys, tenants

_KEY_COLUMNS: Final = (
    "purpose",
    "version",
    "state",
    "kek_generation",
    "algorithm",
    "encrypted_key",
    "iv",
    "commitment",
    "epoch",
    "activation_mac",
    "created_at",
    "activated_at",
    "reason",
    "created_by",
    "kms_key_arn",
    "kms_key_material_id",
)
_KEK_COLUMNS: Final = (
    "generation",
    "state",
    "algorithm",
    "kms_key_arn",
    "role_arn",
    "external_id",
    "kms_key_material_id",
    "wrapped",
    "commitment",
    "created_at",
)


OWN_STATEMENTS: Final = "pii_vault_own_statements"
"""The execution option that marks the key store's statements: on an engine that is attached too, they need no keys."""


@dataclass(frozen=True, slots=True)
class TenantSummary:
    """One line about a tenant.

    Attributes:
        uid: 16 bytes; in hex it is ``pii-vault:tenant`` in the KMS encryption context.
        name: Its name.
        suspended: Whether it is suspended.
        keyset_id: As in the headers of its sealed values.
        version: Its ACTIVE data-key version, or None.
        kms_key_arn: The KMS key that wraps its KEK, or None.
        created_at: When it was registered, UTC.
    """

    uid: bytes
    name: str
    suspended: bool
    keyset_id: int
    version: int | None
    kms_key_arn: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One tenant's records as they stood in one transaction."""

    tenant: TenantRecord
    kek: KekRecord
    keys: tuple[KeyRecord, ...]


class KeyStore:
    """The tables behind one application's vault.

    Args:
        engine: A synchronous engine on PostgreSQL or SQLite; the application's database or another.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.dialect.name not in schema.DIALECTS:
            raise ConfigurationError(
                f"the key store needs PostgreSQL or SQLite, not {engine.dialect.name}",
                hint="give the vault a database of its own; the application's may be of any kind",
            )
        self._engine = engine.execution_options(**{OWN_STATEMENTS: True})
        self._app_uid: bytes | None = None
        self._fits = False

    def __repr__(self) -> str:
        return f"<KeyStore {self._engine.url.render_as_string(hide_password=True)}>"

    def create_all(self, app_uid: Callable[[], bytes], now: datetime) -> None:
        """Create the tables where they are missing, stamp their revision and give the application its uid.

        Safe to call at every start and from several processes at once.
        """
        with self._translated(), schema_change(self._engine) as connection:
            if not inspect(connection).has_table(schema.revision.name):
                schema.metadata.create_all(connection)
            if connection.scalar(select(schema.revision.c.version_num)) is None:
                connection.execute(insert(schema.revision).values(version_num=schema.REVISION))
        self.ensure_application(app_uid, now)

    def ensure_application(self, app_uid: Callable[[], bytes], now: datetime) -> None:
        """Give the application its immutable uid, once."""
        with self._transaction() as connection:
            if connection.scalar(select(application.c.uid)) is not None:
                return
        try:
            with self._transaction() as connection:
                connection.execute(insert(application).values(id=1, uid=app_uid(), created_at=now))
        except IntegrityError:
            pass  # another process was first: its uid is the one

    def app_uid(self) -> bytes:
        """Return the application uid, 16 bytes.

        Raises:
            KeyStoreError: the key store was not initialised.
        """
        if self._app_uid is None:
            with self._transaction() as connection:
                self._app_uid = _app_uid(connection)
        return self._app_uid

    def tenants(self) -> list[TenantRecord]:
        """Return all tenants, by name."""
        with self._transaction() as connection:
            uid = _app_uid(connection)
            rows = connection.execute(select(tenants).order_by(tenants.c.name)).all()
        return [_tenant(row, uid) for row in rows]

    def summaries(self) -> list[TenantSummary]:
        """Return one line about each tenant, by name."""
        kek = (keks.c.tenant_uid == tenants.c.uid) & (keks.c.state == KeyState.ACTIVE)
        key = (keys.c.tenant_uid == tenants.c.uid) & (keys.c.state == KeyState.ACTIVE)
        query = (
            select(
                tenants.c.uid,
                tenants.c.name,
                tenants.c.suspended,
                tenants.c.keyset_id,
                keys.c.version,
                keks.c.kms_key_arn,
                tenants.c.created_at,
            )
            .outerjoin_from(tenants, keks, kek)
            .outerjoin(keys, key & (keys.c.purpose == Purpose.DATA))
            .order_by(tenants.c.name)
        )
        with self._transaction() as connection:
            return [TenantSummary(bytes(uid), *rest) for uid, *rest in connection.execute(query)]

    def load(self, name: str) -> Snapshot:
        """Return one tenant's records.

        Raises:
            TenantNotFoundError: nobody has this name.
            KeyRecordError: the tenant has no KEK.
        """
        with self._transaction() as connection:
            return _load(connection, name)

    def insert_tenant(self, tenant: TenantRecord, kek: KekRecord, first: KeyRecord) -> None:
        """Store a tenant with its KEK and its first, ACTIVE key: all or nothing.

        Raises:
            sqlalchemy.exc.IntegrityError: the name or the keyset id is taken.
        """
        with self._transaction() as connection:
            connection.execute(
                insert(tenants).values(
                    uid=tenant.identity.tenant_uid,
                    name=tenant.name,
                    keyset_id=tenant.identity.keyset_id,
                    suspended=tenant.suspended,
                    created_at=tenant.created_at,
                )
            )
            connection.execute(insert(keks).values(tenant_uid=tenant.identity.tenant_uid, **_values(kek, _KEK_COLUMNS)))
            _insert_key(connection, tenant, first)
            _activate(connection, tenant, first)

    def supersede(self, snapshot: Snapshot, successor: KeyRecord) -> bool:
        """Add a key and make it ACTIVE in place of the snapshot's, in one transaction.

        Returns:
            False, with nothing changed, when the tenant's keys are no longer those of the snapshot: somebody else
            was faster, and the caller decides again from what is there now.
        """
        tenant = snapshot.tenant
        with self._transaction() as connection:
            # A write that changes nothing takes the row lock on PostgreSQL and the write lock on SQLite.
            mine = tenants.c.uid == tenant.identity.tenant_uid
            connection.execute(update(tenants).where(mine).values(suspended=tenants.c.suspended))
            if _load(connection, tenant.name) != snapshot:
                return False
            for before in snapshot.keys:
                if before.purpose is successor.purpose and before.state is KeyState.ACTIVE:
                    _deactivate(connection, tenant, before, successor.created_at)
            _insert_key(connection, tenant, successor)
            _activate(connection, tenant, successor)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._translated(), self._engine.begin() as connection:
            self._check_revision(connection)
            yield connection

    def _check_revision(self, connection: Connection) -> None:
        """Refuse tables of another release, once: a process that runs goes on while a later release upgrades them."""
        if self._fits:
            return
        found = connection.scalar(select(schema.revision.c.version_num))
        if found is None:
            raise KeyStoreError("the key store has no schema revision", hint="run `pii-vault db upgrade`")
        if found != schema.REVISION:
            older = found in schema.REVISIONS
            raise KeyStoreError(
                f"the key store has schema revision {found}, this release of pii_vault needs {schema.REVISION}",
                hint="run `pii-vault db upgrade`" if older else "the tables are of a newer release: upgrade pii_vault",
            )
        self._fits = True

    @contextmanager
    def _translated(self) -> Iterator[None]:
        failure: str | None = None
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            # Not chained and not quoted: driver errors carry parameters.
            failure = type(error.orig).__name__
        except SQLAlchemyError as error:
            failure = type(error).__name__
        if failure is not None:
            raise self._unusable(failure)

    def _unusable(self, failure: str) -> KeyStoreError:
        hint = "check that the database can be reached"
        try:
            with self._engine.connect() as connection:
                if not inspect(connection).has_table(schema.revision.name):
                    hint = "run `pii-vault db upgrade`, or Vault.create_all()"
        except SQLAlchemyError:
            pass
        return KeyStoreError(f"the key store failed with {failure}", hint=hint)


def _load(connection: Connection, name: str) -> Snapshot:
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    # Compared again here, byte for byte: a database may fold case or trailing spaces.
    if row is None or row.name != name:
        raise TenantNotFoundError(
            f"no tenant {name!r} is registered", hint="register it with Vault.add_tenant or `pii-vault tenant add`"
        )
    kek = connection.execute(
        select(keks).where(keks.c.tenant_uid == row.uid, keks.c.state == KeyState.ACTIVE)
    ).one_or_none()
    if kek is None:
        raise KeyRecordError(f"tenant {name!r} has no key-encryption key")
    found = connection.execute(
        select(keys).where(keys.c.tenant_uid == row.uid).order_by(keys.c.purpose, keys.c.version)
    ).all()
    return Snapshot(_tenant(row, _app_uid(connection)), _kek(kek), tuple(_key(each) for each in found))


def _app_uid(connection: Connection) -> bytes:
    uid = connection.scalar(select(application.c.uid))
    if uid is None:
        raise KeyStoreError("the key store has no application uid", hint="run Vault.create_all()")
    return bytes(uid)


def _insert_key(connection: Connection, tenant: TenantRecord, record: KeyRecord) -> None:
    new = replace(record, state=KeyState.PRE_ACTIVE, activated_at=None)
    connection.execute(insert(keys).values(tenant_uid=tenant.identity.tenant_uid, **_values(new, _KEY_COLUMNS)))


def _activate(connection: Connection, tenant: TenantRecord, record: KeyRecord) -> None:
    _move(connection, tenant, record, KeyState.PRE_ACTIVE, KeyState.ACTIVE, activated_at=record.activated_at)


def _deactivate(connection: Connection, tenant: TenantRecord, record: KeyRecord, now: datetime) -> None:
    _move(connection, tenant, record, KeyState.ACTIVE, KeyState.DEACTIVATED, deactivated_at=now)


def _move(
    connection: Connection,
    tenant: TenantRecord,
    record: KeyRecord,
    before: KeyState,
    after: KeyState,
    **when: datetime | None,
) -> None:
    before.check_transition(after)
    result = connection.execute(
        update(keys)
        .where(
            keys.c.tenant_uid == tenant.identity.tenant_uid,
            keys.c.purpose == record.purpose,
            keys.c.version == record.version,
            keys.c.state == before,
        )
        .values(state=after, **when)
    )
    if result.rowcount != 1:
        raise KeyStoreError(f"{record.purpose} key version {record.version} is no longer {before}")


def _values(record: Any, columns: Sequence[str]) -> dict[str, Any]:
    return {column: getattr(record, column) for column in columns}


def _tenant(row: Row[Any], app_uid: bytes) -> TenantRecord:
    identity = Identity(app_uid, bytes(row.uid), row.keyset_id)
    return TenantRecord(identity, row.name, row.suspended, row.created_at)


def _kek(row: Row[Any]) -> KekRecord:
    values = {column: getattr(row, column) for column in _KEK_COLUMNS}
    values |= {"state": KeyState(row.state), "wrapped": bytes(row.wrapped), "commitment": bytes(row.commitment)}
    return KekRecord(**values)


def _key(row: Row[Any]) -> KeyRecord:
    values = {column: getattr(row, column) for column in _KEY_COLUMNS}
    values |= {"purpose": Purpose(row.purpose), "state": KeyState(row.state)}
    values |= {name: bytes(values[name]) for name in ("encrypted_key", "iv", "commitment", "activation_mac")}
    return KeyRecord(**values)
