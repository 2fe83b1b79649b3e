"""What happened to a tenant's KMS key and to ours under it, in one list; and how often the KMS key rotates.

Three things are easily taken for one another. A *rotation of the KMS key* gives it new material: no data key changes,
and what older material has wrapped opens. A *data-key version* is our own rotation. A *re-wrap* puts the key-encryption
key under another KMS key, or under newer material of the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from ..audit.facts import Event
from ..audit.reading import entries
from ..errors import ConfigurationError
from ..keyring import kms_key
from ..keystore import Snapshot
from ..kms import KmsRotationHistory, KmsRotationOwner, KmsRotationStatus
from ..kms.base import MAX_ROTATION_DAYS, MIN_ROTATION_DAYS
from .parts import Parts, Reason


class What(StrEnum):
    """What happened."""

    KMS_ROTATED = "kms key rotated"
    WRAPPED = "wrapped"
    REWRAPPED = "re-wrapped"
    REPLACED = "new kek"
    DATA_KEY = "data key made"


_WRAPPINGS: Final = {
    Event.TENANT_ADDED: (What.WRAPPED, "The key-encryption key was made, and wrapped by this KMS key."),
    Event.KEK_REWRAPPED: (
        What.REWRAPPED,
        "The same key-encryption key is wrapped by this KMS key. No data key changed.",
    ),
    Event.KEK_REPLACED: (What.REPLACED, "A new key-encryption key wraps the same data keys."),
}

_WHY: Final = {
    Reason.INITIAL: "the first one",
    Reason.SCHEDULED: "it was due",
    Reason.FORCED: "somebody asked for it",
    Reason.COMPROMISED: "the one before may have leaked",
    Reason.KMS_ROTATION: "the KMS key was rotated, and the tenant follows it",
    Reason.LIMIT: "the one before was used as often as it may",
}


@dataclass(frozen=True, slots=True)
class Happened:
    """One line of the history.

    Attributes:
        at: When, UTC.
        what: What.
        meaning: What it means, one sentence.
        kind: Of a rotation of the KMS key ``automatic`` or ``on-demand``; of a data key why it was made; or an empty
            text.
        version: The data-key version, or the generation of the key-encryption key; None for the KMS key's rotation.
        kms_key_arn: The KMS key.
        kms_key_material_id: Which material of it, if the KMS says so.
    """

    at: datetime
    what: What
    meaning: str
    kind: str
    version: int | None
    kms_key_arn: str
    kms_key_material_id: str | None


@dataclass(frozen=True, slots=True)
class KmsHistory:
    """What happened to a tenant's KMS key and to the keys under it.

    Attributes:
        lines: By time, oldest first.
        unseen_because: Why the KMS key's own rotations are not among them; None when they are.
    """

    lines: tuple[Happened, ...]
    unseen_because: str | None


@dataclass(frozen=True, slots=True)
class KmsRotationFound:
    """How a tenant's KMS key rotates.

    Attributes:
        kms_key_arn: The KMS key.
        status: Whether and when it rotates by itself.
        last_at: When it was rotated last, UTC; None if never, or if that is not to be seen.
        unseen_because: Why that is not to be seen, or None.
        changed: Whether this call has said how often.
    """

    kms_key_arn: str
    status: KmsRotationStatus
    last_at: datetime | None
    unseen_because: str | None
    changed: bool = False


def history(parts: Parts, name: str) -> KmsHistory:
    """Return what happened to a tenant's KMS key and to the keys under it.

    The KMS is asked once for the present KMS key's rotations. What the audit log says is taken from it unverified.

    Raises:
        TenantNotFoundError, TenantErasedError, KeyStoreError
        KmsError: the KMS does not answer. That it does not show the rotations is no error.
    """
    snapshot = parts.store.load(name)
    arn = snapshot.kek.kms_key_arn
    asked = parts.kms.rotation_history(kms_key(snapshot.tenant, snapshot.kek))
    lines = [*_rotations(arn, asked), *_wrappings(parts, snapshot), *_data_keys(snapshot)]
    return KmsHistory(
        tuple(sorted(lines, key=lambda each: (each.at, list(What).index(each.what)))), asked.unseen_because
    )


def rotation(parts: Parts, name: str) -> KmsRotationFound:
    """Return how a tenant's KMS key rotates; asks its KMS twice.

    Raises:
        TenantNotFoundError, TenantErasedError, KeyStoreError
        KmsError: the KMS does not say how often.
    """
    snapshot = parts.store.load(name)
    key = kms_key(snapshot.tenant, snapshot.kek)
    return _found(key.arn, parts.kms.rotation_status(key), parts.kms.rotation_history(key))


def set_rotation_period(parts: Parts, name: str, days: int, owner: KmsRotationOwner) -> KmsRotationFound:
    """Let a tenant's KMS key rotate every so many days, and read that back; our own role need not be allowed to.

    Args:
        parts: What it is done with.
        name: The tenant.
        days: 90 to 2560.
        owner: Who may say so: the customer, or who has a role of the customer's for it.

    Raises:
        ConfigurationError: the period is not one that a KMS key can have; nobody is asked.
        KmsError: the KMS refuses, does not answer, or does not say afterwards what it was told.
    """
    if not MIN_ROTATION_DAYS <= days <= MAX_ROTATION_DAYS:
        raise ConfigurationError(
            f"a KMS key rotates every {MIN_ROTATION_DAYS} to {MAX_ROTATION_DAYS} days, not every {days}",
            hint="the period of our own data keys is another matter: pii-vault tenant set --rotation-days",
        )
    snapshot = parts.store.load(name)
    key = kms_key(snapshot.tenant, snapshot.kek)
    parts.kms.validate_key(key)
    owner.set_rotation_period(key.arn, days)
    return _found(key.arn, owner.own_rotation_status(key.arn), parts.kms.rotation_history(key), changed=True)


def _found(arn: str, status: KmsRotationStatus, seen: KmsRotationHistory, *, changed: bool = False) -> KmsRotationFound:
    last = seen.rotations[-1].at if seen.rotations else None
    return KmsRotationFound(arn, status, last, seen.unseen_because, changed)


def _rotations(arn: str, seen: KmsRotationHistory) -> Iterator[Happened]:
    meaning = "The KMS key has new material. No data key changed, and what older material has wrapped opens."
    for each in seen.rotations:
        yield Happened(each.at, What.KMS_ROTATED, meaning, each.kind, None, arn, each.key_material_id)


def _data_keys(snapshot: Snapshot) -> Iterator[Happened]:
    for key in snapshot.data_keys:
        why = _WHY.get(Reason(key.reason), key.reason) if key.reason in list(Reason) else key.reason
        meaning = f"Our own data key, version {key.version}: {why}. What was sealed before opens as ever."
        yield Happened(
            key.created_at, What.DATA_KEY, meaning, key.reason, key.version, key.kms_key_arn, key.kms_key_material_id
        )


def _wrappings(parts: Parts, snapshot: Snapshot) -> Iterator[Happened]:
    for entry in entries(parts.store, snapshot.tenant.name):
        if entry.event not in _WRAPPINGS:
            continue
        what, meaning = _WRAPPINGS[Event(entry.event)]
        kek: dict[str, Any] = entry.details["keks"][-1]
        yield Happened(
            entry.at, what, meaning, "", kek["generation"], kek["kms_key_arn"], kek.get("kms_key_material_id")
        )
