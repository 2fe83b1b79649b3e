"""Register tenants, and change what is agreed about them: rotation period, terms, suspension, PII encryption."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy.exc import IntegrityError

from .. import primitives
from ..audit.facts import Event
from ..context import Identity
from ..errors import ConfigurationError, KeyStoreError, TenantExistsError, TenantNotFoundError
from ..keyring import Terms
from ..keys import Policy, TenantRecord
from ..keystore import Snapshot
from ..kms import KmsKey
from . import issue, replicas, rotation
from .parts import ATTEMPTS, Parts, Reason, decided

MAX_DAYS = 3650
"""The longest rotation period."""


def add_tenant(
    parts: Parts,
    name: str,
    key: KmsKey,
    policy: Policy,
    *,
    shared_key: bool = False,
    identity: Identity | None = None,
) -> TenantRecord:
    """Register a tenant, with a KEK, an index key and a first data key from its KMS.

    Processes that register the same tenant at once end with one tenant and one key; one that was killed half-way is
    finished by the next. Registering again with the same KMS key changes nothing.

    Args:
        parts: What it is done with.
        name: The tenant.
        key: Its KMS key, or the platform's.
        policy: What is expected of the KMS key, and how often the data key is rotated.
        shared_key: Whether another tenant may have the same KMS key.
        identity: Whose keys they are, where policies name that already; None for a fresh one.

    Raises:
        TenantExistsError: the name is registered with another KMS key.
        ConfigurationError: the KMS key is another tenant's.
        KeyValidationError: the KMS key or the new key did not pass a check.
        KmsError: the KMS does not generate, or does not unwrap what it generated.
    """
    check_period(policy)
    parts.kms.validate_key(key)
    for _ in range(ATTEMPTS):
        known = _registered(parts, name, key)
        if known is None:
            if not shared_key:
                check_owner(parts, name, key)
            try:
                known = _register(parts, name, key, policy, identity)
            except IntegrityError:
                continue  # the name or the keyset id was taken meanwhile
        if not any(key.epoch for key in known.data_keys):
            rotation.rotate(parts, name, Reason.INITIAL, instead_of=0)
        return known.tenant
    raise KeyStoreError(f"tenant {name!r} could not be stored", hint="look at the database's own log")


def check_owner(parts: Parts, name: str, key: KmsKey) -> None:
    """Refuse a KMS key that is another tenant's: whoever registers its address would get at its consent.

    The platform's own key serves every tenant that has none.

    Raises:
        ConfigurationError: it is another tenant's.
    """
    if parts.is_platform_key(key.arn):
        return
    others = [each for each in parts.store.owners(key.arn) if each != name]
    if others:
        raise ConfigurationError(
            f"KMS key {key.arn} is that of tenant {others[0]!r}, and would be that of {name!r} too",
            hint="a KMS key answers for one customer; if both are the same one's, say so: shared_key, --shared-key",
        )


def check_period(policy: Policy) -> None:
    """Refuse a rotation period that is too short or too long."""
    if policy.rotation_days is not None and not 1 <= policy.rotation_days <= MAX_DAYS:
        raise ConfigurationError(f"a rotation period is 1 to {MAX_DAYS} days")


def set_suspended(parts: Parts, name: str, suspended: bool, reason: str) -> bool:
    """Suspend a tenant, or resume it; return False when it was so already.

    Other processes notice when they look at the key store next, within seconds.
    """

    def attempt() -> bool:
        snapshot = parts.store.load(name)
        if snapshot.tenant.suspended is suspended:
            return False
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            change.set_suspended(suspended)
            change.evict()
            event = Event.TENANT_SUSPENDED if suspended else Event.TENANT_RESUMED
            page.write(change, event, reason=reason, tenant=replace(snapshot.tenant, suspended=suspended))
        parts.keyring.evict(name)
        return True

    return decided(name, attempt)


def set_pii_encryption(parts: Parts, name: str, is_on: bool, reason: str) -> bool:
    """Turn PII encryption on or off for a tenant; return False when it was so already.

    No key and no value changes. Other processes notice when they look at the key store next, within seconds.
    """

    def attempt() -> bool:
        snapshot = parts.store.load(name)
        policy = snapshot.tenant.policy
        if policy.pii_encryption is is_on:
            return False
        changed = replace(snapshot.tenant, policy=replace(policy, pii_encryption=is_on))
        page = parts.ledger.page(changed, snapshot)
        with parts.store.change(snapshot) as change:
            change.set_policy(changed.policy)
            change.evict()
            page.write(change, Event.TENANT_CHANGED, reason=reason, tenant=changed)
        parts.keyring.evict(name)
        return True

    return decided(name, attempt)


def set_rotation(parts: Parts, name: str, *, days: int | None, follows_kms: bool) -> TenantRecord:
    """Say how often a tenant's data key is rotated; the ACTIVE key's due date moves with it.

    Args:
        parts: What it is done with.
        name: The tenant.
        days: 1 to 3650, or None for the vault's default.
        follows_kms: Whether the period is that of the customer's KMS key, and a rotation there makes a new key here.
    """

    def attempt() -> TenantRecord:
        snapshot = parts.store.load(name)
        policy = replace(snapshot.tenant.policy, rotation_days=days, follows_kms=follows_kms)
        check_period(policy)
        changed = replace(snapshot.tenant, policy=policy)
        keep_due(parts, replace(snapshot, tenant=changed), decided_on=snapshot)
        return changed

    return decided(name, attempt)


def set_terms(parts: Parts, name: str, *, ttl: int | None, grace: int) -> TenantRecord:
    """Say for how long a tenant's keys are held in memory, and let all processes fetch them anew.

    Args:
        parts: What it is done with.
        name: The tenant.
        ttl: Seconds, or None for the vault's own terms.
        grace: Seconds.

    Raises:
        ConfigurationError: they are too long, or contradict each other.
    """
    if ttl is None and grace:
        raise ConfigurationError("a grace is granted together with a ttl", hint="name both")
    if ttl is not None:
        Terms(ttl, grace)

    def attempt() -> TenantRecord:
        snapshot = parts.store.load(name)
        policy = replace(snapshot.tenant.policy, ttl_seconds=ttl, grace_seconds=None if ttl is None else grace)
        changed = replace(snapshot.tenant, policy=policy)
        if changed == snapshot.tenant:
            return changed
        page = parts.ledger.page(changed, snapshot)
        with parts.store.change(snapshot) as change:
            change.set_policy(policy)
            change.evict()
            page.write(change, Event.TENANT_CHANGED, tenant=changed)
        parts.keyring.evict(name)
        return changed

    return decided(name, attempt)


def keep_due(parts: Parts, wanted: Snapshot, *, decided_on: Snapshot) -> bool:
    """Store a tenant's policy, and the ACTIVE key's due date that follows from it; return False if both are so already.

    Raises:
        SupersededError: somebody else changed the tenant meanwhile.
    """
    active, due_at = wanted.active, due(parts, wanted)
    if wanted == decided_on and (active is None or due_at == active.due_at):
        return False
    page = parts.ledger.page(wanted.tenant, decided_on)
    with parts.store.change(decided_on) as change:
        change.set_policy(wanted.tenant.policy)
        keys = [change.set_due(active, due_at)] if active is not None and due_at is not None else []
        page.write(change, Event.TENANT_CHANGED, tenant=wanted.tenant, keys=keys)
    return True


def due(parts: Parts, wanted: Snapshot) -> datetime | None:
    """Return when the ACTIVE key is due by the tenant's policy; None if there is no such key."""
    active = wanted.active
    if active is None or active.activated_at is None:
        return active.due_at if active is not None else None
    return active.activated_at + issue.period(parts, wanted)


def _registered(parts: Parts, name: str, key: KmsKey) -> Snapshot | None:
    try:
        snapshot = parts.store.load(name)
    except TenantNotFoundError:
        return None
    kek = snapshot.kek
    if KmsKey(kek.kms_key_arn, kek.role_arn, kek.external_id) != key.alone:
        raise TenantExistsError(
            f"tenant {name!r} is registered already, with another KMS key or role",
            hint="moving a tenant to another KMS key is a re-wrap, not a registration: pii-vault rewrap",
        )
    return snapshot


def _register(parts: Parts, name: str, key: KmsKey, policy: Policy, identity: Identity | None) -> Snapshot:
    parts.kms.check_role(key)
    replicas.check_replicas(parts, name, key)
    if identity is None:
        identity = Identity(parts.store.app_uid(), primitives.random_uid(), primitives.random_u32())
    tenant = TenantRecord(identity, name, suspended=False, created_at=parts.now(), policy=policy.expecting(key.arn))
    record, kek = issue.new_kek(parts, tenant, key, generation=1)
    index_key = issue.first_index_key(parts, tenant, key, kek)
    page = parts.ledger.page(tenant)
    with parts.store.new_tenant(tenant) as change:
        change.add_kek(record)
        change.add_active_key(index_key)
        page.write(change, Event.TENANT_ADDED, tenant=tenant, keks=[record], keys=[index_key])
    return parts.store.load(name)
