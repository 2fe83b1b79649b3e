"""Make keys: a KEK, a data or index key, the proof that such a key was made ACTIVE. Nothing is stored here.

Every key's bytes come from a live call to the customer's KMS (`GenerateDataKey`): the customer's consent and its audit
trail stand at every new key.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ..context import kms_context
from ..envelope import MAX_VERSION
from ..errors import KeyStateError
from ..hierarchy import Kek
from ..keyring import kms_key
from ..keys import ALGORITHM, KEK_PURPOSE, KekRecord, KeyRecord, KeyState, Purpose, Secret, TenantRecord
from ..keystore import Snapshot
from ..kms import KmsKey
from .parts import Parts, Reason


def new_kek(parts: Parts, tenant: TenantRecord, key: KmsKey, generation: int) -> tuple[KekRecord, Kek]:
    """Make a KEK under a KMS key, and unwrap it again by a call of its own: what cannot be opened is never stored."""
    generated = parts.kms.generate(key, kms_context(tenant.identity, KEK_PURPOSE, generation))
    record = KekRecord(
        generation=generation,
        state=KeyState.ACTIVE,
        algorithm=ALGORITHM,
        kms_key_arn=key.arn,
        role_arn=key.role_arn,
        external_id=key.external_id,
        kms_key_material_id=generated.wrapped.key_material_id,
        wrapped=generated.wrapped.blob,
        commitment=Kek(tenant.identity, generation, Secret(generated.plaintext)).commitment,
        created_at=parts.now(),
        replica_regions=key.replica_regions,
    )
    return record, parts.keyring.unwrap_kek(tenant, record)


def new_key(parts: Parts, snapshot: Snapshot, kek: Kek, reason: Reason) -> KeyRecord:
    """Make the next data key of a tenant, PRE_ACTIVE, with the version behind the highest that there ever was.

    Raises:
        KeyStateError: the tenant has used up all 65535 versions.
    """
    previous = max((key.version for key in snapshot.data_keys), default=None)
    if previous == MAX_VERSION:
        raise KeyStateError(f"tenant {snapshot.tenant.name!r} has used up all {MAX_VERSION} data-key versions")
    return _new_key(parts, snapshot.tenant, kms_key(snapshot.tenant, snapshot.kek), kek, reason, Purpose.DATA, previous)


def first_index_key(parts: Parts, tenant: TenantRecord, address: KmsKey, kek: Kek) -> KeyRecord:
    """Make the first index key of a tenant, as it is once ACTIVE; it has no day on which it is due.

    It is opened once again before it counts: what cannot be opened is never stored.
    """
    record = new_index_key(parts, tenant, address, kek, Reason.INITIAL, None)
    kek.unwrap(record)
    return _activated(kek, record, epoch=1, now=parts.now(), due_at=None)


def new_index_key(
    parts: Parts, tenant: TenantRecord, address: KmsKey, kek: Kek, reason: Reason, previous: int | None
) -> KeyRecord:
    """Make an index key of a tenant, PRE_ACTIVE, behind the generation that there was before, if any."""
    return _new_key(parts, tenant, address, kek, reason, Purpose.INDEX, previous)


def activated_index_key(snapshot: Snapshot, kek: Kek, record: KeyRecord, now: datetime) -> KeyRecord:
    """Return a PRE_ACTIVE index key as it is once ACTIVE; it has no day on which its successor is due."""
    epoch = max(key.epoch for key in snapshot.keys if key.purpose is Purpose.INDEX) + 1
    return _activated(kek, record, epoch=epoch, now=now, due_at=None)


def _new_key(
    parts: Parts,
    tenant: TenantRecord,
    address: KmsKey,
    kek: Kek,
    reason: Reason,
    purpose: Purpose,
    previous: int | None,
) -> KeyRecord:
    version = 1 if previous is None else previous + 1
    generated = parts.kms.generate(address, kms_context(tenant.identity, purpose, version))
    iv, encrypted, commitment = kek.wrap(purpose, version, Secret(generated.plaintext))
    return KeyRecord(
        purpose=purpose,
        version=version,
        state=KeyState.PRE_ACTIVE,
        kek_generation=kek.generation,
        algorithm=ALGORITHM,
        encrypted_key=encrypted,
        iv=iv,
        commitment=commitment,
        epoch=0,
        activation_mac=b"",
        created_at=parts.now(),
        activated_at=None,
        reason=reason,
        created_by=parts.ledger.actor,
        kms_key_arn=generated.wrapped.key_arn,
        kms_key_material_id=generated.wrapped.key_material_id,
        previous_version=previous,
    )


def activated(snapshot: Snapshot, kek: Kek, record: KeyRecord, *, now: datetime, period: timedelta) -> KeyRecord:
    """Return a PRE_ACTIVE record as it is once ACTIVE: with its proof, and the day on which its successor is due."""
    epoch = max((key.epoch for key in snapshot.data_keys), default=0) + 1
    return _activated(kek, record, epoch=epoch, now=now, due_at=now + period)


def _activated(kek: Kek, record: KeyRecord, *, epoch: int, now: datetime, due_at: datetime | None) -> KeyRecord:
    return replace(
        record,
        state=KeyState.ACTIVE,
        epoch=epoch,
        activation_mac=kek.activation_mac(record.purpose, record.version, epoch, record.commitment),
        activated_at=now,
        due_at=due_at,
    )


def period(parts: Parts, snapshot: Snapshot) -> timedelta:
    """Return a tenant's rotation period: its own, that of its KMS key if it follows that, or the vault's."""
    policy = snapshot.tenant.policy
    if policy.follows_kms:
        followed = parts.kms.rotation_period(kms_key(snapshot.tenant, snapshot.kek))
        if followed is not None:
            return followed
    return timedelta(days=policy.rotation_days or parts.rotation_days)
