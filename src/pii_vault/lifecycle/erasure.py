"""Erase a tenant: destroy every wrapped key that it has, at once and for good, so that nothing it sealed opens again.

One transaction destroys all or nothing. The customer's KMS is not asked: it works after that was shut to us. What it
does not reach, backups for one, the report names (`evidence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..audit import reading
from ..audit.facts import Event
from ..errors import ConfigurationError, KmsError
from ..keyring import kms_key
from ..keys import KeyRecord, KeyState
from ..keystore import Change, Snapshot
from ..kms import KmsKey, KmsKeyOwner
from .evidence import Erasure, Owner, Remains, evidence, held_seconds, owner_of
from .parts import Parts, decided

DAYS: Final = (7, 30)
"""For how many days at least, and at most, a KMS key can be kept from its deletion."""


@dataclass(frozen=True, slots=True)
class KeyDeletion:
    """The wish to have a tenant's KMS key deleted, where it is ours.

    Attributes:
        owner: Who may do that.
        days: After how many days it is gone.
    """

    owner: KmsKeyOwner
    days: int


def erase(
    parts: Parts,
    name: str,
    reason: str,
    *,
    remains: Callable[[Snapshot], tuple[Remains, ...]] | None = None,
    key_deletion: KeyDeletion | None = None,
    dry_run: bool = False,
) -> Erasure:
    """Destroy all wrapped keys of a tenant. Done again, it changes nothing and tells the same.

    Args:
        parts: What it is done with.
        name: The tenant.
        reason: Why.
        remains: Counts what is left of the tenant in the application's tables; None if nobody looks.
        key_deletion: Have its KMS key deleted too. When that fails, the report says so, and the keys are destroyed.
        dry_run: Make the checks and tell what would be destroyed; change nothing.

    Raises:
        ConfigurationError: the KMS key is not ours to delete; nothing is destroyed.
        AuditError: the audit log was changed, so that nothing true can be told; nothing is destroyed.
    """

    def attempt() -> bool:
        snapshot = parts.store.load(name, even_erased=True)
        if key_deletion is not None:
            _check_ours(parts, snapshot, key_deletion.days)
        evidence(parts, snapshot, made=False, remains=None)  # what could not be told is not done
        if snapshot.erased or dry_run:
            return False
        _destroy_all(parts, snapshot, reason)
        return True

    made = decided(name, attempt)
    failure = None
    if key_deletion is not None and not dry_run:
        failure = _end_kms_key(parts, name, key_deletion, reason)
    snapshot = parts.store.load(name, even_erased=True)
    left = remains(snapshot) if remains is not None else None
    return evidence(parts, snapshot, made=made, remains=left, key_deletion_failure=failure)


def _destroy_all(parts: Parts, snapshot: Snapshot, reason: str) -> None:
    page = parts.ledger.page(snapshot.tenant, snapshot)
    with parts.store.change(snapshot) as change:
        now = parts.now()
        kek = change.destroy_kek(snapshot.kek)
        keys = [_destroyed(change, key, now) for key in snapshot.keys if key.state is not KeyState.DESTROYED]
        change.check_nothing_wrapped()
        noted = {"eviction": change.evict(), "held_seconds": held_seconds(parts, snapshot)}
        page.write(
            change,
            Event.TENANT_ERASED,
            reason=reason,
            tenant=snapshot.tenant,
            keks=[kek],
            keys=keys,
            erasure=noted,
        )
    parts.keyring.evict(snapshot.tenant.name)


def _destroyed(change: Change, key: KeyRecord, now: datetime) -> KeyRecord:
    if key.state is KeyState.ACTIVE:
        key = change.deactivate(key, now)
    return change.destroy(key, now)


def _check_ours(parts: Parts, snapshot: Snapshot, days: int) -> None:
    """Refuse to have a KMS key deleted that is not ours, or that somebody else needs.

    Raises:
        ConfigurationError: it is so.
        KeyRecordError: it is not where the tenant's has to be.
    """
    name, arn = snapshot.tenant.name, kms_key(snapshot.tenant, snapshot.kek).arn
    least, most = DAYS
    if not least <= days <= most:
        raise ConfigurationError(f"a KMS key is deleted after {least} to {most} days, not {days}")
    owner = owner_of(parts, arn)
    if owner is Owner.PLATFORM:
        raise ConfigurationError(
            f"the keys of tenant {name!r} lie under the platform's KMS key {arn}, which is not deleted",
            hint="the audit log and other tenants' keys need it: erase without it, and let old backups go",
        )
    if owner is Owner.CUSTOMER:
        raise ConfigurationError(
            f"KMS key {arn} of tenant {name!r} is the customer's, and only the customer can delete it",
            hint="erase without it, and ask the customer for: aws kms schedule-key-deletion "
            f"--key-id {arn} --pending-window-in-days {days}",
        )
    others = [each for each in parts.store.owners(arn) if each != name]
    if others:
        raise ConfigurationError(
            f"the keys of tenant {others[0]!r} lie under KMS key {arn} too, so it is not deleted",
            hint="erase without it, or re-wrap the others first",
        )


def _end_kms_key(parts: Parts, name: str, wish: KeyDeletion, reason: str) -> str | None:
    """Have the KMS key deleted and write it down; return why that failed, or None."""
    snapshot = parts.store.load(name, even_erased=True)
    key = kms_key(snapshot.tenant, snapshot.kek)
    try:
        deleted_at = wish.owner.schedule_key_deletion(key.arn, wish.days)
    except KmsError as error:
        pending_until = _pending_until(parts, key)
        if pending_until is None:
            return str(error)
        deleted_at = pending_until
    said = {"kms_key": {"arn": key.arn, "deleted_at": deleted_at.isoformat(timespec="microseconds")}}

    def attempt() -> None:
        snapshot = parts.store.load(name, even_erased=True)
        if said in [entry.details for entry in reading.entries(parts.store, name)]:
            return
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            page.write(change, Event.KMS_DELETION_SCHEDULED, reason=reason, **said)

    decided(name, attempt)
    return None


def _pending_until(parts: Parts, key: KmsKey) -> datetime | None:
    """Return when a KMS key will be deleted; None if that is not to be, or the KMS does not say."""
    try:
        return parts.kms.describe(key).deleted_at
    except KmsError:
        return None
