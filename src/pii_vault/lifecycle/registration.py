"""Register tenants, and change what is agreed about them: rotation period, suspension."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from .. import primitives
from ..audit.facts import Event
from ..context import Identity
from ..errors import ConfigurationError, KeyStoreError, TenantExistsError, TenantNotFoundError
from ..keys import Policy, TenantRecord
from ..keystore import Snapshot, SupersededError
from ..kms import KmsKey
from . import issue, rotation
from .parts import Parts, Reason
from .rotation import ATTEMPTS, busy


def add_tenant(parts: Parts, name: str, key: KmsKey) -> TenantRecord:
    """Register a tenant, with a KEK and a first data key from its KMS.

    Processes that register the same tenant at once end with one tenant and one key; one that was killed half-way is
    finished by the next. Registering again with the same KMS key changes nothing.

    Raises:
        TenantExistsError: the name is registered with another KMS key.
        KeyValidationError: the KMS key or the new key did not pass a check.
        KmsError: the KMS does not generate, or does not unwrap what it generated.
    """
    parts.kms.validate_key(key)
    for _ in range(ATTEMPTS):
        known = _registered(parts, name, key)
        if known is None:
            try:
                known = _register(parts, name, key)
            except IntegrityError:
                continue  # the name or the keyset id was taken meanwhile
        if not any(key.epoch for key in known.data_keys):
            rotation.rotate(parts, name, Reason.INITIAL, instead_of=0)
        return known.tenant
    raise KeyStoreError(f"tenant {name!r} could not be stored", hint="look at the database's own log")


def set_suspended(parts: Parts, name: str, suspended: bool, reason: str) -> bool:
    """Suspend a tenant, or resume it; return False when it was so already.

    Other processes notice when their keys expire, at the latest.
    """
    event = Event.TENANT_SUSPENDED if suspended else Event.TENANT_RESUMED
    for _ in range(ATTEMPTS):
        snapshot = parts.store.load(name)
        if snapshot.tenant.suspended is suspended:
            return False
        page = parts.ledger.page(snapshot.tenant, snapshot)
        try:
            with parts.store.change(snapshot) as change:
                change.set_suspended(suspended)
                page.write(change, event, reason=reason, tenant=replace(snapshot.tenant, suspended=suspended))
        except SupersededError:
            continue
        parts.keyring.evict(name)
        return True
    raise busy(name)


def set_rotation(parts: Parts, name: str, *, days: int | None, follows_kms: bool) -> TenantRecord:
    """Say how often a tenant's data key is rotated; the ACTIVE key's due date moves with it.

    Args:
        parts: What it is done with.
        name: The tenant.
        days: 1 to 3650, or None for the vault's default.
        follows_kms: Whether the period is that of the customer's KMS key, and a rotation there makes a new key here.
    """
    if days is not None and not 1 <= days <= 3650:
        raise ConfigurationError("a rotation period is 1 to 3650 days")
    for _ in range(ATTEMPTS):
        snapshot = parts.store.load(name)
        policy = replace(snapshot.tenant.policy, rotation_days=days, follows_kms=follows_kms)
        if policy == snapshot.tenant.policy:
            return snapshot.tenant
        changed = replace(snapshot, tenant=replace(snapshot.tenant, policy=policy))
        period = issue.period(parts, changed)
        try:
            _store_policy(parts, snapshot, changed, period)
        except SupersededError:
            continue
        return changed.tenant
    raise busy(name)


def _store_policy(parts: Parts, before: Snapshot, after: Snapshot, period: timedelta) -> None:
    page = parts.ledger.page(before.tenant, before)
    with parts.store.change(before) as change:
        change.set_policy(after.tenant.policy)
        keys = []
        if before.active is not None and before.active.activated_at is not None:
            keys = [replace(before.active, due_at=before.active.activated_at + period)]
            change.set_due(before.active, before.active.activated_at + period)
        page.write(change, Event.TENANT_CHANGED, tenant=after.tenant, keys=keys)


def _registered(parts: Parts, name: str, key: KmsKey) -> Snapshot | None:
    try:
        snapshot = parts.store.load(name)
    except TenantNotFoundError:
        return None
    kek = snapshot.kek
    if KmsKey(kek.kms_key_arn, kek.role_arn, kek.external_id) != key:
        raise TenantExistsError(
            f"tenant {name!r} is registered already, with another KMS key or role",
            hint="moving a tenant to another KMS key is a re-wrap, not a registration: pii-vault rewrap",
        )
    return snapshot


def _register(parts: Parts, name: str, key: KmsKey) -> Snapshot:
    identity = Identity(parts.store.app_uid(), primitives.random_uid(), primitives.random_u32())
    tenant = TenantRecord(identity, name, suspended=False, created_at=parts.now(), policy=Policy.for_key(key.arn))
    record, _ = issue.new_kek(parts, tenant, key, generation=1)
    page = parts.ledger.page(tenant)
    with parts.store.new_tenant(tenant) as change:
        change.add_kek(record)
        page.write(change, Event.TENANT_ADDED, tenant=tenant, keks=[record])
    return parts.store.load(name)
