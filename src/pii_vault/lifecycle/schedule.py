"""Rotate whatever is due: called every so often by cron, a systemd timer or a Kubernetes CronJob.

Nothing here waits or remembers: what is due stands in the key store, so it may be called as often as one likes, on
several machines at once, and after having missed a day. A version that will be due soon is stored one call ahead,
PRE_ACTIVE, so that every process has it in memory by the time that it seals.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from ..errors import KmsDeniedError, PiiVaultError, TenantErasedError
from ..keyring import kms_key
from ..keys import USE_ROTATE, KeyRecord
from ..keystore import Snapshot
from . import registration, rotation
from .parts import Parts, Reason, decided
from .refusals import refusals_logged

AHEAD: Final = timedelta(days=1)
"""How long before it is due a version is stored. Not below the time for which processes keep keys in memory."""


class Step(StrEnum):
    """What was done about a tenant."""

    ROTATED = "rotated"
    PREPARED = "prepared"
    NOT_DUE = "not due"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Due:
    """What came of a look at one tenant.

    Attributes:
        tenant: Its name.
        step: What was done, or would be.
        reason: Why: a `Reason`, or why nothing was done.
        version: The version that seals now, or 0.
        due_at: When that is due, UTC, or None.
        denied: Whether the customer's KMS refused.
    """

    tenant: str
    step: Step
    reason: str
    version: int
    due_at: datetime | None
    denied: bool = False


def rotate_due(
    parts: Parts,
    *,
    ahead: timedelta = AHEAD,
    dry_run: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Due]:
    """Rotate every tenant that is due, and store the next version of those that will be soon.

    A tenant that fails does not keep the others waiting for another day: it is reported, and the rest is done.

    Args:
        parts: What it is done with.
        ahead: How long before a version is due the next one is stored.
        dry_run: Say what would be done, and do nothing; a KMS key whose rotation is followed is looked at.
        progress: Told how many tenants are done, of how many.
    """
    names = parts.store.to_look_at(parts.now() + ahead)
    found = []
    for done, name in enumerate(names):
        progress(done, len(names))
        found.append(_looked_at(parts, name, ahead, dry_run))
    progress(len(names), len(names))
    return found


def denied_together(found: list[Due]) -> bool:
    """Tell whether so many customers refuse at once that the reason is more probably ours."""
    denied = sum(each.denied for each in found)
    return denied >= 3 and 2 * denied > len(found)


def _looked_at(parts: Parts, name: str, ahead: timedelta, dry_run: bool) -> Due:
    try:
        with nullcontext() if dry_run else refusals_logged(parts, name):
            return decided(name, lambda: _look_at(parts, name, ahead, dry_run))
    except TenantErasedError:  # since the names were read
        return Due(name, Step.SKIPPED, "erased", 0, None)
    except PiiVaultError as error:
        return Due(name, Step.FAILED, str(error), 0, None, denied=isinstance(error, KmsDeniedError))


def _look_at(parts: Parts, name: str, ahead: timedelta, dry_run: bool) -> Due:
    snapshot = parts.store.load(name)
    active = snapshot.active
    if snapshot.tenant.suspended:
        return _due(snapshot, Step.SKIPPED, "suspended")
    was_active = any(key.epoch for key in snapshot.data_keys)
    if was_active and not snapshot.tenant.policy.pii_encryption:
        return _due(snapshot, Step.SKIPPED, "PII encryption is off")
    if active is None and was_active:
        # Somebody took it out of use, and only somebody may put another one in its place.
        return _due(snapshot, Step.SKIPPED, "no active key: rotate it by hand")
    if snapshot.tenant.policy.follows_kms:
        if dry_run:
            due_at = registration.due(parts, snapshot)
            keys = tuple(replace(key, due_at=due_at) if key == active else key for key in snapshot.keys)
            snapshot = replace(snapshot, keys=keys)
        elif registration.keep_due(parts, snapshot, decided_on=snapshot):
            snapshot = parts.store.load(name)
    reason = _reason_now(parts, snapshot)
    if reason is not None:
        if not dry_run:
            made = rotation.rotate(parts, name, reason, instead_of=active.version if active is not None else 0)
            return Due(name, Step.ROTATED, made.reason, made.version, made.due_at)
        return _due(snapshot, Step.ROTATED, reason)
    if snapshot.pending is None and _is_due(snapshot.active, parts.now() + ahead):
        if not dry_run:
            rotation.prepare(parts, snapshot, Reason.SCHEDULED)
        return _due(snapshot, Step.PREPARED, Reason.SCHEDULED)
    return _due(snapshot, Step.NOT_DUE, "")


def _reason_now(parts: Parts, snapshot: Snapshot) -> Reason | None:
    """Return why a tenant is rotated now, or None; the gravest reason first."""
    active, pending = snapshot.active, snapshot.pending
    if active is None:
        return Reason.INITIAL
    if pending is not None and pending.reason != Reason.SCHEDULED:
        return Reason(pending.reason)  # a rotation was begun and not ended
    if active.reserved >= USE_ROTATE:
        return Reason.LIMIT
    if _is_due(active, parts.now()):
        return Reason.SCHEDULED
    if snapshot.tenant.policy.follows_kms and _has_new_material(parts, snapshot, active):
        return Reason.KMS_ROTATION
    return None


def _is_due(active: KeyRecord | None, when: datetime) -> bool:
    return active is not None and active.due_at is not None and active.due_at <= when


def _has_new_material(parts: Parts, snapshot: Snapshot, active: KeyRecord) -> bool:
    """Tell whether the KMS key was rotated since the data key was made. A KMS that names no material does not tell."""
    described = parts.kms.describe(kms_key(snapshot.tenant, snapshot.kek))
    # A data key that was made before the tenant moved knows the material of another KMS key.
    same_key = active.kms_key_arn == snapshot.kek.kms_key_arn
    known = active.kms_key_material_id if same_key else snapshot.kek.kms_key_material_id
    return described.key_material_id not in (None, known)


def _due(snapshot: Snapshot, step: Step, reason: str) -> Due:
    active = snapshot.active
    return Due(
        snapshot.tenant.name,
        step,
        reason,
        active.version if active is not None else 0,
        active.due_at if active is not None else None,
    )
