"""Reading: one tenant's records as they stand together, and lines about all tenants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, exists, or_, select

from ..blind_index import SlotRecord
from ..chain import ChainRecord
from ..errors import KeyRecordError, TenantNotFoundError
from ..keys import USE_ROTATE, KekRecord, KeyRecord, KeyState, Purpose, TenantRecord
from . import rows
from .schema import audit_chains, index_slots, keks, key_use, keys, policies, tenants

_MORE_READS: Final = 10
"""How often a tenant is read again whose KEK was replaced between two statements of a read."""


@dataclass(frozen=True, slots=True)
class TenantSummary:
    """One line about a tenant.

    Attributes:
        uid: 16 bytes; in hex it is ``pii-vault:tenant`` in the KMS encryption context.
        name: Its name.
        suspended: Whether it is suspended.
        erased: Whether all its keys are destroyed.
        pii_encryption: Whether PII encryption is on for it.
        keyset_id: As in the headers of its sealed values.
        version: Its ACTIVE data-key version, or None.
        kms_key_arn: The KMS key that wraps its KEK, or None.
        created_at: When it was registered, UTC.
        due_at: When its data key is to be rotated, UTC, or None.
        reserved: How many values processes have asked to seal with its ACTIVE data key, or None.
    """

    uid: bytes
    name: str
    suspended: bool
    erased: bool
    pii_encryption: bool
    keyset_id: int
    version: int | None
    kms_key_arn: str | None
    created_at: datetime
    due_at: datetime | None
    reserved: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One tenant's records as they stood in one transaction.

    Attributes:
        tenant: Who it is.
        kek: The ACTIVE KEK; of a tenant that was erased the last one, DESTROYED.
        keys: All data and index keys, by purpose and version.
        chain: The end of its audit chain; None until something is recorded.
        slots: What is known of the slots of its sealed values.
    """

    tenant: TenantRecord
    kek: KekRecord
    keys: tuple[KeyRecord, ...]
    chain: ChainRecord | None
    slots: tuple[SlotRecord, ...] = ()

    @property
    def erased(self) -> bool:
        """Whether all keys are destroyed, for good."""
        return self.kek.state is KeyState.DESTROYED

    @property
    def data_keys(self) -> tuple[KeyRecord, ...]:
        """The data keys, by version."""
        return tuple(key for key in self.keys if key.purpose is Purpose.DATA)

    @property
    def active(self) -> KeyRecord | None:
        """The ACTIVE data key as the table says, without a look at its proof."""
        return next((key for key in self.data_keys if key.state is KeyState.ACTIVE), None)

    @property
    def pending(self) -> KeyRecord | None:
        """The newest data key that waits for its activation."""
        return next((key for key in reversed(self.data_keys) if key.state is KeyState.PRE_ACTIVE), None)


KeyStates = Mapping[int, tuple[str, Mapping[int, KeyState]]]
"""Tenants by keyset id: the name, and the states of the data keys by version."""


_ACTIVE_KEK: Final = (keks.c.tenant_uid == tenants.c.uid) & (keks.c.state == KeyState.ACTIVE)

_any_kek: Final = keks.alias("any_kek")

_ERASED: Final = exists().where(_any_kek.c.tenant_uid == tenants.c.uid) & ~exists().where(
    _any_kek.c.tenant_uid == tenants.c.uid, _any_kek.c.state != KeyState.DESTROYED
)
"""Whether a tenant had a KEK and has none any more: only an erasure leaves none behind."""

_ACTIVE_KEY: Final = (
    (keys.c.tenant_uid == tenants.c.uid) & (keys.c.purpose == Purpose.DATA) & (keys.c.state == KeyState.ACTIVE)
)

_USE: Final = (
    (key_use.c.tenant_uid == keys.c.tenant_uid)
    & (key_use.c.purpose == keys.c.purpose)
    & (key_use.c.version == keys.c.version)
)

_WHOLE: Final[Select[Any]] = (
    select(tenants, policies, keks, audit_chains)
    .outerjoin_from(tenants, policies, policies.c.tenant_uid == tenants.c.uid)
    .outerjoin(keks, _ACTIVE_KEK)
    .outerjoin(audit_chains, audit_chains.c.tenant_uid == tenants.c.uid)
)

_KEYS: Final[Select[Any]] = (
    select(keys, key_use.c.reserved, audit_chains.c.seq)
    .outerjoin_from(keys, key_use, _USE)
    .outerjoin(audit_chains, audit_chains.c.tenant_uid == keys.c.tenant_uid)
    .order_by(keys.c.purpose, keys.c.version)
)


_SLOTS: Final[Select[Any]] = select(index_slots).order_by(index_slots.c.context, index_slots.c.number)


def snapshot(connection: Connection, name: str, app_uid: bytes) -> Snapshot:
    """Return one tenant's records, read with three statements; also those of a tenant that was erased.

    Raises:
        TenantNotFoundError: nobody has this name.
        KeyRecordError: the tenant has no KEK or no policy.
    """
    read, together = _read(connection, name, app_uid)
    for _ in range(_MORE_READS):
        # Each statement sees what is committed by then; every change moves the tenant's audit chain.
        if together:
            break
        read, together = _read(connection, name, app_uid)
    return read


def tenant_uid(connection: Connection, name: str) -> bytes:
    """Return a tenant's uid.

    Raises:
        TenantNotFoundError: nobody has this name.
    """
    row = connection.execute(select(tenants.c.uid, tenants.c.name).where(tenants.c.name == name)).one_or_none()
    # Compared again here, byte for byte: a database may fold case or trailing spaces.
    if row is None or row.name != name:
        raise _unknown(name)
    return bytes(row.uid)


def names(connection: Connection, *, even_erased: bool) -> list[str]:
    """Return the names of all tenants, in order, or of those that are not erased."""
    query = select(tenants.c.name).order_by(tenants.c.name)
    return list(connection.scalars(query if even_erased else query.where(~_ERASED)))


def summaries(connection: Connection) -> list[TenantSummary]:
    """Return one line about each tenant, by name."""
    query = (
        select(
            tenants.c.uid,
            tenants.c.name,
            tenants.c.suspended,
            _ERASED,
            policies.c.pii_encryption,
            tenants.c.keyset_id,
            keys.c.version,
            keks.c.kms_key_arn,
            tenants.c.created_at,
            keys.c.due_at,
            key_use.c.reserved,
        )
        .outerjoin_from(tenants, policies, policies.c.tenant_uid == tenants.c.uid)
        .outerjoin(keks, _ACTIVE_KEK)
        .outerjoin(keys, _ACTIVE_KEY)
        .outerjoin(key_use, _USE)
        .order_by(tenants.c.name)
    )
    return [
        TenantSummary(bytes(uid), name, suspended, bool(erased), bool(is_on), *rest)
        for uid, name, suspended, erased, is_on, *rest in connection.execute(query)
    ]


def key_states(connection: Connection, name: str | None) -> KeyStates:
    """Return the states of all tenants' data keys, or of one tenant's.

    Raises:
        TenantNotFoundError: nobody has this name.
    """
    data_key = (keys.c.tenant_uid == tenants.c.uid) & (keys.c.purpose == Purpose.DATA)
    query = select(tenants.c.keyset_id, tenants.c.name, keys.c.version, keys.c.state)
    query = query.outerjoin_from(tenants, keys, data_key)
    if name is not None:
        query = query.where(tenants.c.uid == tenant_uid(connection, name))
    found: dict[int, tuple[str, dict[int, KeyState]]] = {}
    for keyset_id, tenant, version, state in connection.execute(query):
        _, states = found.setdefault(keyset_id, (tenant, {}))
        if version is not None:
            states[version] = KeyState(state)
    return found


def owners(connection: Connection, kms_key_arn: str) -> list[str]:
    """Return the names of the tenants whose KEK lies under a KMS key, in order."""
    query = select(tenants.c.name).join_from(tenants, keks, _ACTIVE_KEK).where(keks.c.kms_key_arn == kms_key_arn)
    return list(connection.scalars(query.order_by(tenants.c.name)))


def to_look_at(connection: Connection, due_before: datetime) -> list[str]:
    """Return the names of the tenants, in order, whose keys may need something done.

    That is: the data key is due before an instant or was used too often, or there is none, or one waits for its
    activation, or the period is the KMS's and has to be asked for. Nothing is due for a tenant that was erased.
    """
    settled = exists().where(
        _ACTIVE_KEY, keys.c.due_at > due_before, exists().where(_USE, key_use.c.reserved < USE_ROTATE)
    )
    pending = exists().where(keys.c.tenant_uid == tenants.c.uid, keys.c.state == KeyState.PRE_ACTIVE)
    query = (
        select(tenants.c.name)
        .outerjoin_from(tenants, policies, policies.c.tenant_uid == tenants.c.uid)
        .where(or_(~settled, pending, policies.c.follows_kms), ~_ERASED)
        .order_by(tenants.c.name)
    )
    return list(connection.scalars(query))


def _read(connection: Connection, name: str, app_uid: bytes) -> tuple[Snapshot, bool]:
    row = connection.execute(_WHOLE.where(tenants.c.name == name)).one_or_none()
    # Compared again here, byte for byte: a database may fold case or trailing spaces.
    if row is None or row._mapping[tenants.c.name] != name:
        raise _unknown(name)
    if row._mapping[policies.c.tenant_uid] is None:
        raise _lacks(name, "policy")
    active = row._mapping[keks.c.generation] is not None
    kek = rows.kek_record(row) if active else _last_kek(connection, name)
    found = connection.execute(_KEYS.where(keys.c.tenant_uid == row._mapping[tenants.c.uid])).all()
    slots = connection.execute(_SLOTS.where(index_slots.c.tenant_uid == row._mapping[tenants.c.uid])).all()
    read = Snapshot(
        rows.tenant_record(row, app_uid),
        kek,
        tuple(rows.key_record(each) for each in found),
        rows.chain_record(row),
        tuple(rows.slot_record(each) for each in slots),
    )
    return read, {each._mapping[audit_chains.c.seq] for each in found} <= {row._mapping[audit_chains.c.seq]}


def _last_kek(connection: Connection, name: str) -> KekRecord:
    """Return the last KEK of a tenant that was erased; whoever else has no ACTIVE one was not changed by us."""
    last = select(keks).join(tenants, keks.c.tenant_uid == tenants.c.uid).where(tenants.c.name == name, _ERASED)
    row = connection.execute(last.order_by(keks.c.generation.desc()).limit(1)).one_or_none()
    if row is None:
        raise _lacks(name, "key-encryption key")
    return rows.kek_record(row)


def _lacks(name: str, what: str) -> KeyRecordError:
    return KeyRecordError(
        f"tenant {name!r} has no {what}",
        hint="the key store was changed by something other than pii_vault: restore it from a backup",
    )


def _unknown(name: str) -> TenantNotFoundError:
    return TenantNotFoundError(
        f"no tenant {name!r} is registered", hint="register it with Vault.add_tenant or `pii-vault tenant add`"
    )
