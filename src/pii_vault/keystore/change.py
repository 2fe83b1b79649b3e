"""What one transaction may change about one tenant: each method one fact, the caller's block all of them or none.

Keys only move along `TRANSITIONS`, and each move names the state that it comes from, so that a change that was decided
on older facts fails instead of overwriting newer ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from ..blind_index import SlotRecord
from ..chain import ChainRecord, Entry
from ..errors import KeyStoreError
from ..keys import KekRecord, KeyRecord, KeyState, Policy, TenantRecord
from .rows import CHAIN_COLUMNS, KEY_COLUMNS, POLICY_COLUMNS, entry, kek_values, slot_record, values
from .schema import application, audit, audit_chains, index_slots, keks, key_use, keys, policies, tenants


class SupersededError(Exception):
    """The tenant's records are no longer those that a change was decided on: read them and decide again."""


class Change:
    """One transaction on one tenant's records, from `KeyStore.change` or `KeyStore.new_tenant`."""

    def __init__(self, connection: Connection, tenant_uid: bytes) -> None:
        self._connection = connection
        self._uid = tenant_uid

    # The tenant.

    def lock(self) -> None:
        """Let nobody else change the tenant until the transaction ends."""
        # A write that changes nothing takes the row lock on PostgreSQL and the write lock on SQLite.
        mine = tenants.c.uid == self._uid
        self._connection.execute(update(tenants).where(mine).values(evicted=tenants.c.evicted))

    def evict(self) -> int:
        """Ask all processes to forget the tenant's keys; return the number of this eviction.

        The row that numbers evictions is locked from here to the end of the transaction, so that they are committed in
        the order of their numbers. The tenant was locked before: two who evict do not wait for each other for ever.
        """
        counted = update(application).values(evictions=application.c.evictions + 1)
        number: int = self._connection.execute(counted.returning(application.c.evictions)).scalar_one()
        self._connection.execute(update(tenants).where(tenants.c.uid == self._uid).values(evicted=number))
        return number

    def add_tenant(self, tenant: TenantRecord) -> None:
        """Register the tenant."""
        self._connection.execute(
            insert(tenants).values(
                uid=self._uid,
                name=tenant.name,
                keyset_id=tenant.identity.keyset_id,
                suspended=tenant.suspended,
                created_at=tenant.created_at,
            )
        )
        self._connection.execute(insert(policies).values(tenant_uid=self._uid, **values(tenant.policy, POLICY_COLUMNS)))

    def set_suspended(self, suspended: bool) -> None:
        """Suspend or resume the tenant."""
        self._connection.execute(update(tenants).where(tenants.c.uid == self._uid).values(suspended=suspended))

    def set_policy(self, policy: Policy) -> None:
        """Replace what is expected of the tenant's KMS key."""
        mine = policies.c.tenant_uid == self._uid
        self._connection.execute(update(policies).where(mine).values(**values(policy, POLICY_COLUMNS)))

    # Its KEK.

    def add_kek(self, record: KekRecord) -> None:
        """Store an ACTIVE KEK."""
        self._connection.execute(insert(keks).values(tenant_uid=self._uid, **kek_values(record)))

    def rewrap_kek(self, before: KekRecord, after: KekRecord) -> None:
        """Store the same KEK as another KMS key, or other material of the same, wrapped it."""
        changed = ("kms_key_arn", "role_arn", "external_id", "kms_key_material_id", "wrapped", "replica_regions")
        # Only over the very bytes that were re-wrapped.
        unchanged = keks.c.wrapped == before.wrapped
        new = kek_values(after)
        self._update_kek(before, unchanged, **{column: new[column] for column in changed})

    def set_replica_regions(self, before: KekRecord, after: KekRecord) -> None:
        """Store where the KMS key of the same KEK has replicas."""
        unchanged = keks.c.wrapped == before.wrapped
        self._update_kek(before, unchanged, replica_regions=kek_values(after)["replica_regions"])

    def destroy_kek(self, record: KekRecord) -> KekRecord:
        """Drop the wrapped bytes of an ACTIVE KEK; the row stays. Return it as it is afterwards."""
        self._update_kek(record, keks.c.state == KeyState.ACTIVE, state=KeyState.DEACTIVATED)
        self._update_kek(record, keks.c.state == KeyState.DEACTIVATED, state=KeyState.DESTROYED, wrapped=b"")
        return replace(record, state=KeyState.DESTROYED, wrapped=b"")

    def check_nothing_wrapped(self) -> None:
        """Raise if any wrapped key of the tenant is left, in whatever record.

        Raises:
            KeyStoreError: there is one that the tenant's records do not tell of.
        """
        for table, wrapped in ((keks, keks.c.wrapped), (keys, keys.c.encrypted_key)):
            mine = select(func.count()).where(table.c.tenant_uid == self._uid, func.length(wrapped) > 0)
            if self._connection.scalar(mine):
                raise KeyStoreError(
                    "the key store holds a wrapped key of the tenant that none of its records explains",
                    hint="it was changed by something other than pii_vault: run `pii-vault audit verify`",
                )

    def _update_kek(self, record: KekRecord, condition: Any, **changed: Any) -> None:
        mine = (keks.c.tenant_uid == self._uid) & (keks.c.generation == record.generation)
        if self._connection.execute(update(keks).where(mine, condition).values(**changed)).rowcount != 1:
            raise KeyStoreError(f"KEK generation {record.generation} is no longer what it was")

    # Its keys.

    def add_key(self, record: KeyRecord) -> None:
        """Store a new key, PRE_ACTIVE."""
        new = replace(record, state=KeyState.PRE_ACTIVE, epoch=0, activation_mac=b"", activated_at=None, due_at=None)
        self._connection.execute(insert(keys).values(tenant_uid=self._uid, **values(new, KEY_COLUMNS)))
        self._connection.execute(
            insert(key_use).values(tenant_uid=self._uid, purpose=new.purpose, version=new.version, reserved=0)
        )

    def add_active_key(self, record: KeyRecord) -> None:
        """Store a new key and make it ACTIVE at once, where the tenant has none of its purpose yet."""
        self.add_key(record)
        self.activate(record)

    def activate(self, record: KeyRecord) -> None:
        """Make a PRE_ACTIVE key ACTIVE with the record's proof; its predecessor was deactivated before."""
        proof = ("epoch", "activation_mac", "activated_at", "due_at")
        self._move(record, KeyState.PRE_ACTIVE, KeyState.ACTIVE, **values(record, proof))

    def deactivate(self, record: KeyRecord, now: datetime) -> KeyRecord:
        """Let an ACTIVE key open only. Return it as it is afterwards."""
        return self._end(record, KeyState.DEACTIVATED, deactivated_at=now)

    def compromise(self, record: KeyRecord, now: datetime) -> KeyRecord:
        """Let a key open for re-encryption only. Return it as it is afterwards."""
        return self._end(record, KeyState.COMPROMISED, deactivated_at=record.deactivated_at or now)

    def destroy(self, record: KeyRecord, now: datetime) -> KeyRecord:
        """Drop the wrapped bytes of a key; the row stays. Return it as it is afterwards."""
        return self._end(record, KeyState.DESTROYED, destroyed_at=now, encrypted_key=b"")

    def set_due(self, record: KeyRecord, due_at: datetime) -> KeyRecord:
        """Say when the ACTIVE key is to be rotated. Return it as it is afterwards."""
        self._connection.execute(update(keys).where(*self._mine(record)).values(due_at=due_at))
        return replace(record, due_at=due_at)

    def rewrap_keys(self, records: Iterable[KeyRecord]) -> None:
        """Store the same keys as another KEK wrapped them."""
        changed = ("kek_generation", "encrypted_key", "iv", "activation_mac")
        parameters = [
            {f"new_{column}": value for column, value in values(record, changed).items()}
            | {"mine_purpose": record.purpose, "mine_version": record.version}
            for record in records
        ]
        if parameters:
            statement = (
                update(keys)
                .where(
                    keys.c.tenant_uid == self._uid,
                    keys.c.purpose == bindparam("mine_purpose"),
                    keys.c.version == bindparam("mine_version"),
                )
                .values({column: bindparam(f"new_{column}") for column in changed})
            )
            self._connection.execute(statement, parameters)

    def _end(self, record: KeyRecord, after: KeyState, **changed: Any) -> KeyRecord:
        self._move(record, record.state, after, **changed)
        return replace(record, state=after, **changed)

    def _move(self, record: KeyRecord, before: KeyState, after: KeyState, **changed: Any) -> None:
        before.check_transition(after)
        where = (*self._mine(record), keys.c.state == before)
        if self._connection.execute(update(keys).where(*where).values(state=after, **changed)).rowcount != 1:
            raise KeyStoreError(f"{record.purpose} key version {record.version} is no longer {before}")

    def _mine(self, record: KeyRecord) -> tuple[Any, ...]:
        return keys.c.tenant_uid == self._uid, keys.c.purpose == record.purpose, keys.c.version == record.version

    # What stands in sealed values.

    def slots(self, context: str) -> dict[int, SlotRecord]:
        """Return what is known of a column's slots."""
        mine = (index_slots.c.tenant_uid == self._uid, index_slots.c.context == context)
        found = self._connection.execute(select(index_slots).where(*mine))
        return {each.number: slot_record(each) for each in found}

    def set_slot(self, slot: SlotRecord, *, new: bool) -> None:
        """Store what is known of a slot: of a new one, or in place of what was known."""
        row = {"index_name": slot.index, **values(slot, ("form", "ready_at", "settled"))}
        mine = {"tenant_uid": self._uid, "context": slot.context, "number": slot.number}
        if new:
            self._connection.execute(insert(index_slots).values(**mine, **row))
        else:
            this = (index_slots.c[name] == value for name, value in mine.items())
            self._connection.execute(update(index_slots).where(*this).values(**row))

    # Its audit chain.

    def entry(self, seq: int) -> Entry:
        """Return an entry of the tenant's audit chain."""
        mine = (audit.c.tenant_uid == self._uid) & (audit.c.seq == seq)
        return entry(self._connection.execute(select(audit.c.seq, audit.c.entry, audit.c.mac).where(mine)).one())

    def append(self, chain: ChainRecord, added: Entry) -> None:
        """Add an entry to the tenant's audit chain, with the chain's new end."""
        row = {"tenant_uid": self._uid, **values(chain, CHAIN_COLUMNS)}
        if added.seq == 1:
            self._connection.execute(insert(audit_chains).values(row))
        else:
            mine = (audit_chains.c.tenant_uid == self._uid) & (audit_chains.c.seq == added.seq - 1)
            moved = update(audit_chains).where(mine).values(**values(chain, ("seq", "head", "sealed_key")))
            if self._connection.execute(moved).rowcount != 1:
                raise KeyStoreError("the audit chain is no longer what it was")
        self._connection.execute(
            insert(audit).values(tenant_uid=self._uid, seq=added.seq, entry=added.text, mac=added.mac)
        )
