"""Queries on the key store: each method is one short transaction of its own, never the application's.

A rolled-back application transaction must not leave rows sealed under a key that no table holds, so keys are stored,
and committed, before anything is sealed with them. Everything here is public or wrapped: a reader of these tables
without the customer's KMS learns names, addresses and dates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from typing import Final
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Pool, StaticPool, false, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ..blind_index import NOTHING, SlotRecord
from ..chain import Entry
from ..errors import KeyLimitError, KeyStoreBusyError, KeyStoreError, TenantErasedError
from ..keys import USE_LIMIT, Purpose, TenantRecord
from ..stages import AdoptionRecord
from . import rows, schema
from .adoption_steps import add_step, last_steps, steps
from .change import Change, SupersededError
from .engine import own_engine
from .impatience import impatient
from .onboardings import Onboardings
from .rows import AuditKeyRecord
from .schema import application, audit, audit_keys, key_use, tenants
from .schema_change import schema_change
from .snapshot import (
    KeyStates,
    Snapshot,
    TenantSummary,
    key_states,
    names,
    owners,
    snapshot,
    summaries,
    tenant_uid,
    to_look_at,
)

_HINTS: Final = {
    "SQLITE_BUSY": "somebody else is writing to the file: try again",
    "SQLITE_READONLY": "this user may not write to the file, or to its folder",
    "SQLITE_CANTOPEN": "check that the folder exists and that this user may write to it",
    "InsufficientPrivilege": "this database role may not do that: docs/security.md says what it needs",
}


_TABLES_MAY_BE_MISSING: Final = frozenset(("SQLITE_ERROR", "UndefinedTable", "ProgrammingError"))


_MORE_WRITES: Final = 3
"""How often something is written down again that another process was faster with."""


class KeyStore:
    """The tables behind one application's vault.

    Args:
        engine: A synchronous engine on PostgreSQL or SQLite; the application's database or another.
        schema: The schema that the tables lie in, on PostgreSQL; None for where the engine's search path leads.
    """

    def __init__(self, engine: Engine, schema: str | None = None) -> None:
        self._engine = own_engine(engine, schema)
        self._schema = schema
        self._app_uid: bytes | None = None
        self._fits = False
        self._parents_pools: list[Pool] = []
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<KeyStore {self._engine.url.render_as_string(hide_password=True)}>"

    @property
    def place(self) -> tuple[Engine, str | None]:
        """Where it is: an engine on its database, and PostgreSQL's schema that it has for itself, or None."""
        return self._engine, self._schema

    def create_all(self, app_uid: Callable[[], bytes], now: datetime) -> None:
        """Create the tables where they are missing, stamp their revision and give the application its uid.

        Safe to call at every start and from several processes at once.
        """
        with self._translated(), schema_change(self._engine, self._schema) as connection:
            if not self._has_tables(connection):
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
                found = connection.scalar(select(application.c.uid))
            if found is None:
                raise KeyStoreError("the key store has no application uid", hint="run Vault.create_all()")
            self._app_uid = bytes(found)
        return self._app_uid

    def names(self, *, even_erased: bool = False) -> list[str]:
        """Return the names of all tenants that are not erased, in order; or of all."""
        with self._transaction() as connection:
            return names(connection, even_erased=even_erased)

    def summaries(self) -> list[TenantSummary]:
        """Return one line about each tenant, by name."""
        with self._transaction() as connection:
            return summaries(connection)

    def key_states(self, name: str | None = None) -> KeyStates:
        """Return the states of all tenants' data keys, or of one tenant's. Nothing else about them is read.

        Raises:
            TenantNotFoundError: nobody has this name.
        """
        with self._transaction() as connection:
            return key_states(connection, name)

    def owners(self, kms_key_arn: str) -> list[str]:
        """Return the names of the tenants whose KEK lies under a KMS key, in order."""
        with self._transaction() as connection:
            return owners(connection, kms_key_arn)

    def to_look_at(self, due_before: datetime) -> list[str]:
        """Return the names of the tenants, in order, whose keys may need something done."""
        with self._transaction() as connection:
            return to_look_at(connection, due_before)

    def load(self, name: str, *, even_erased: bool = False) -> Snapshot:
        """Return one tenant's records.

        Raises:
            TenantNotFoundError: nobody has this name.
            TenantErasedError: its keys are destroyed, and the caller does not ask for what is left.
            KeyRecordError: the tenant has no KEK.
        """
        uid = self.app_uid()
        with self._transaction() as connection:
            found = snapshot(connection, name, uid)
        if found.erased and not even_erased:
            raise TenantErasedError(
                f"tenant {name!r} is erased: its keys are destroyed, and nothing opens what they sealed",
                hint="its name is not used again: if the customer comes back, register it under another one",
            )
        return found

    @contextmanager
    def new_tenant(self, tenant: TenantRecord) -> Iterator[Change]:
        """Register a tenant, with all that the block stores about it: all or nothing.

        Raises:
            sqlalchemy.exc.IntegrityError: the name or the keyset id is taken.
        """
        with self._transaction() as connection:
            change = Change(connection, tenant.identity.tenant_uid)
            change.add_tenant(tenant)
            yield change

    @contextmanager
    def change(self, decided_on: Snapshot) -> Iterator[Change]:
        """Give a block the transaction in which it changes a tenant's records: all or nothing, one process at a time.

        Raises:
            SupersededError: the records are no longer those that the change was decided on; nothing was changed.
        """
        tenant = decided_on.tenant
        uid = tenant.identity.tenant_uid
        try:
            with self._transaction() as connection:
                change = Change(connection, uid)
                change.lock()
                if snapshot(connection, tenant.name, tenant.identity.app_uid) != decided_on:
                    raise SupersededError
                yield change
        except IntegrityError:
            raise KeyStoreError(
                f"the key store refuses a change of tenant {tenant.name!r}",
                hint="it was changed by something other than pii_vault: run `pii-vault audit verify`",
            ) from None

    def evict(self, name: str) -> int:
        """Ask all processes to forget a tenant's keys; return the number of this eviction.

        Raises:
            TenantNotFoundError: nobody has this name.
            KeyStoreError: the key store cannot be written.
        """
        with self._transaction() as connection:
            change = Change(connection, tenant_uid(connection, name))
            change.lock()
            return change.evict()

    def declare_slots(self, name: str, context: str, slots: Sequence[tuple[str, str]]) -> list[SlotRecord]:
        """Write down, once, what values that are about to be sealed hold in their slots; return what is known then.

        What a slot holds never changes. Only where it is not searched, and values are now sealed with nothing in it, is
        it given up: it holds nothing from then on, for good.

        Args:
            name: The tenant's name.
            context: The column's context id.
            slots: By number, the index's name and the text of the form; `NOTHING` for an empty place.

        Raises:
            KeyStoreBusyError: it cannot be written just now.
            KeyStoreError: it cannot be written.
        """
        self._check_apart()
        for _ in range(_MORE_WRITES):
            try:
                with self._transaction() as connection, impatient(connection):
                    change = Change(connection, tenant_uid(connection, name))
                    known = change.slots(context)
                    for number, (index, form) in enumerate(slots):
                        record = known.get(number)
                        given_up = record is not None and (index, form) == NOTHING and record.ready_at is None
                        if record is None or (given_up and record.form):
                            known[number] = SlotRecord(context, number, index, form)
                            change.set_slot(known[number], new=record is None)
                    return list(known.values())
            except IntegrityError:
                continue  # another process was first: what it has written counts
        raise KeyStoreError(f"the slots of {context!r} cannot be written down", hint="look at the database's own log")

    def set_ready(self, name: str, slot: SlotRecord) -> int:
        """Write down that all of a tenant's values have their token in a slot; return the number of the eviction.

        Processes that do not know the slot are to hear of it, so the tenant's keys are forgotten everywhere.

        Raises:
            KeyStoreError: the key store cannot be written now, or the slot holds something else.
        """
        self._check_apart()
        with self._transaction() as connection, impatient(connection):
            change = Change(connection, tenant_uid(connection, name))
            change.lock()
            known = change.slots(slot.context).get(slot.number)
            if known is not None and (known.index, known.form) != (slot.index, slot.form):
                raise KeyStoreError(f"slot {slot.number} of {slot.context!r} holds other tokens")
            change.set_slot(slot, new=known is None)
            return change.evict()

    def unset_ready(self, name: str, context: str, number: int) -> bool:
        """Take back that all of a tenant's values have their token in a slot; return False if nobody said so."""
        with self._transaction() as connection:
            change = Change(connection, tenant_uid(connection, name))
            change.lock()
            known = change.slots(context).get(number)
            if known is None or known.ready_at is None:
                return False
            change.set_slot(replace(known, ready_at=None, settled=False), new=False)
            change.evict()
            return True

    def _check_apart(self) -> None:
        """Refuse to commit on the one connection that there is, which may be in a transaction of the application's."""
        pool = self._engine.pool
        # Not by taking the connection: giving it back would roll back what the application has written.
        if isinstance(pool, StaticPool) and getattr(pool.connection.dbapi_connection, "in_transaction", True):
            raise KeyStoreBusyError("the key store's only connection is in a transaction", hint="commit it first")

    def evicted(self, after: int | None) -> tuple[int, list[str]]:
        """Return the number of the last eviction, and the names of the tenants evicted after a number.

        Nobody else sees a database in memory: there is nothing to hear of, and the one connection may be in a
        transaction of the application's.

        Args:
            after: The number, or None to learn only where the numbers stand.
        """
        if isinstance(self._engine.pool, StaticPool):
            return after or 0, []
        later = tenants.c.evicted > after if after is not None else false()
        query = (
            select(application.c.evictions, tenants.c.name)
            .outerjoin_from(application, tenants, later)
            .order_by(tenants.c.name)
        )
        # Whoever writes to a SQLite file may be the caller, who would wait for himself.
        with self._transaction() as connection, nullcontext() if after is None else impatient(connection):
            found = connection.execute(query).all()
        if not found:
            raise KeyStoreError("the key store has no application uid", hint="run Vault.create_all()")
        return found[0].evictions, [name for _, name in found if name is not None]

    def is_replica(self) -> bool:
        """Say whether the database that answers now is a replica, which may be behind its primary."""
        if self._engine.dialect.name != "postgresql":
            return False
        with self._transaction() as connection:
            return bool(connection.scalar(text("SELECT pg_is_in_recovery()")))

    def reserve(self, tenant_uid: bytes, version: int, count: int, *, patient: bool = False) -> int:
        """Count `count` values as sealed with a data key, before they are; return how many are now counted.

        One statement, and no other transaction waits for it long: processes together cannot pass the limit.

        Args:
            tenant_uid: Whose key it is.
            version: Which one.
            count: How many values.
            patient: Whether to wait, on SQLite, for whoever is writing. It may be the caller's own transaction, which
                would wait for itself.

        Raises:
            KeyLimitError: the key would be used more often than `USE_LIMIT` times; nothing is counted.
            KeyStoreError: the key store cannot be written now.
        """
        mine = (
            key_use.c.tenant_uid == tenant_uid,
            key_use.c.purpose == Purpose.DATA,
            key_use.c.version == version,
            key_use.c.reserved + count <= USE_LIMIT,
        )
        statement = update(key_use).where(*mine).values(reserved=key_use.c.reserved + count)
        try:
            with self._transaction() as connection, nullcontext() if patient else impatient(connection):
                total = connection.scalar(statement.returning(key_use.c.reserved))
        except IntegrityError:
            raise KeyStoreError("the key store refuses to count uses", hint="look at its triggers") from None
        if total is None:
            raise KeyLimitError(
                f"data key version {version} has sealed as many values as it may: {USE_LIMIT}",
                hint="rotate the tenant: pii-vault key rotate TENANT",
            )
        return int(total)

    # The audit log.

    def audit_key(self) -> AuditKeyRecord | None:
        """Return the application's audit key, wrapped, or None when there is none yet."""
        with self._transaction() as connection:
            row = connection.execute(select(audit_keys)).one_or_none()
        if row is None:
            return None
        return AuditKeyRecord(row.kms_key_arn, bytes(row.wrapped), bytes(row.commitment), row.created_at)

    def add_audit_key(self, record: AuditKeyRecord) -> AuditKeyRecord:
        """Store the application's audit key, once; return the one that is stored: another process may be faster."""
        try:
            with self._transaction() as connection:
                connection.execute(
                    insert(audit_keys).values(
                        id=1,
                        kms_key_arn=record.kms_key_arn,
                        wrapped=record.wrapped,
                        commitment=record.commitment,
                        created_at=record.created_at,
                    )
                )
        except IntegrityError:
            pass
        stored = self.audit_key()
        if stored is None:
            raise KeyStoreError("the audit key could not be stored", hint="look at the database's own log")
        return stored

    def entries(self, tenant_uid: bytes, after: int = 0, limit: int | None = None) -> list[Entry]:
        """Return a tenant's audit entries behind a place, in order."""
        query = select(audit.c.seq, audit.c.entry, audit.c.mac).where(
            audit.c.tenant_uid == tenant_uid, audit.c.seq > after
        )
        with self._transaction() as connection:
            return [rows.entry(row) for row in connection.execute(query.order_by(audit.c.seq).limit(limit))]

    # How plaintext columns became sealed ones.

    def adoptions(self) -> list[AdoptionRecord]:
        """Return the last step of each adoption, by context."""
        with self._transaction() as connection:
            return last_steps(connection)

    def adoption_steps(self, context: str) -> list[AdoptionRecord]:
        """Return all steps of an adoption, in order."""
        with self._transaction() as connection:
            return steps(connection, context)

    def add_adoption_step(self, step: AdoptionRecord) -> None:
        """Store a step.

        Raises:
            KeyStoreError: another process has stored one of this number.
        """
        try:
            with self._transaction() as connection:
                add_step(connection, step)
        except IntegrityError:
            raise KeyStoreError(
                f"somebody else has just taken a step with the adoption of {step.context!r}",
                hint="look where it stands now: pii-vault adopt status",
            ) from None

    @property
    def onboardings(self) -> Onboardings:
        """What is arranged with customers before their first keys exist."""
        return Onboardings(self._transaction)

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
            failure = getattr(error.orig, "sqlite_errorname", type(error.orig).__name__)
        except SQLAlchemyError as error:
            failure = type(error).__name__
        if failure is not None:
            raise self._unusable(failure)

    def _unusable(self, failure: str) -> KeyStoreError:
        hint = _HINTS.get(failure, "check that the database can be reached")
        if failure == "SQLITE_BUSY":
            return KeyStoreBusyError(f"the key store failed with {failure}", hint=hint)
        if failure not in _TABLES_MAY_BE_MISSING:  # a database that does not answer is not to be waited for twice
            return KeyStoreError(f"the key store failed with {failure}", hint=hint)
        try:
            with self._engine.connect() as connection:
                if not self._has_tables(connection):
                    hint = "run `pii-vault db upgrade`, or Vault.create_all()"
                    if connection.dialect.name == "postgresql" and self._schema is None:
                        hint += "; or, if the key store has a schema of its own, name it"
        except SQLAlchemyError:
            pass
        return KeyStoreError(f"the key store failed with {failure}", hint=hint)

    def _has_tables(self, connection: Connection) -> bool:
        return inspect(connection).has_table(schema.revision.name, schema=self._schema)

    def _forget_connections(self) -> None:
        """Open connections of our own: in a forked child, those in the pool are still the parent's."""
        pool = self._engine.pool
        if isinstance(pool, StaticPool):
            return  # a database in memory: its only connection is all of it, and the child has a copy
        # Kept, because a driver may say good-bye to the server, in the parent's name, when a connection is collected.
        self._parents_pools.append(pool)
        self._engine.dispose(close=False)


_stores: Final[WeakSet[KeyStore]] = WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._forget_connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
