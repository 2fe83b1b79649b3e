"""What an audit entry says about records: enough to find every later change of theirs that no entry explains.

An entry's details hold the new facts about what it touched, never a key, wrapped or not, and nothing about the people
whose data is sealed. Replayed in order they give what the tables must say now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from ..keys import KekRecord, KeyRecord, TenantRecord


class Event(StrEnum):
    """What can happen to a tenant and its keys."""

    CHAIN_BEGUN = "chain.begun"
    TENANT_ADDED = "tenant.added"
    TENANT_CHANGED = "tenant.changed"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    KEY_CREATED = "key.created"
    KEY_ACTIVATED = "key.activated"
    KEY_DUE = "key.due"
    KEY_WITHDRAWN = "key.withdrawn"
    KEY_DEACTIVATED = "key.deactivated"
    KEY_COMPROMISED = "key.compromised"
    KEY_DESTROYED = "key.destroyed"
    KEK_REWRAPPED = "kek.rewrapped"
    KEK_REPLACED = "kek.replaced"


def facts(
    *, tenant: TenantRecord | None = None, keks: Iterable[KekRecord] = (), keys: Iterable[KeyRecord] = ()
) -> dict[str, Any]:
    """Return what an entry says about records: a document that `json` can hold."""
    document: dict[str, Any] = {}
    if tenant is not None:
        document["tenant"] = _tenant(tenant)
    if found := [_kek(kek) for kek in keks]:
        document["keks"] = found
    if found := [_key(key) for key in keys]:
        document["keys"] = found
    return document


def canonical(document: dict[str, Any]) -> str:
    """Return a document as the one JSON text that it has: sorted, without blanks, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _tenant(tenant: TenantRecord) -> dict[str, Any]:
    return {
        "name": tenant.name,
        "keyset": f"{tenant.identity.keyset_id:08x}",
        "suspended": tenant.suspended,
        "kms_account": tenant.policy.kms_account,
        "kms_region": tenant.policy.kms_region,
        "rotation_days": tenant.policy.rotation_days,
        "follows_kms": tenant.policy.follows_kms,
    }


def _kek(kek: KekRecord) -> dict[str, Any]:
    return {
        "generation": kek.generation,
        "state": str(kek.state),
        "commitment": kek.commitment.hex(),
        "kms_key_arn": kek.kms_key_arn,
        "role_arn": kek.role_arn,
        "kms_key_material_id": kek.kms_key_material_id,
    }


def _key(key: KeyRecord) -> dict[str, Any]:
    return {
        "purpose": str(key.purpose),
        "version": key.version,
        "state": str(key.state),
        "kek_generation": key.kek_generation,
        "commitment": key.commitment.hex(),
        "epoch": key.epoch,
        "previous_version": key.previous_version,
        "reason": key.reason,
        "created_by": key.created_by,
        "created_at": _instant(key.created_at),
        "activated_at": _instant(key.activated_at),
        "deactivated_at": _instant(key.deactivated_at),
        "destroyed_at": _instant(key.destroyed_at),
        "due_at": _instant(key.due_at),
        "kms_key_arn": key.kms_key_arn,
        "kms_key_material_id": key.kms_key_material_id,
    }


def _instant(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="microseconds")
