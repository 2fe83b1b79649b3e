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

from ..keys import KekRecord, KeyRecord, KeyState, TenantRecord
from ..keystore import Snapshot


class Event(StrEnum):
    """What can happen to a tenant and its keys."""

    CHAIN_BEGUN = "chain.begun"
    TENANT_ADDED = "tenant.added"
    TENANT_CHANGED = "tenant.changed"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    TENANT_ERASED = "tenant.erased"
    KEY_CREATED = "key.created"
    KEY_ACTIVATED = "key.activated"
    KEY_WITHDRAWN = "key.withdrawn"
    KEY_DEACTIVATED = "key.deactivated"
    KEY_COMPROMISED = "key.compromised"
    KEY_DESTROYED = "key.destroyed"
    KMS_REFUSED = "kms.refused"
    KMS_DELETION_SCHEDULED = "kms.deletion_scheduled"
    KEK_REWRAPPED = "kek.rewrapped"
    KEK_REPLACED = "kek.replaced"
    COLUMN_ADOPTION = "column.adoption"


def facts(
    *,
    tenant: TenantRecord | None = None,
    keks: Iterable[KekRecord] = (),
    keys: Iterable[KeyRecord] = (),
    **more: dict[str, Any],
) -> dict[str, Any]:
    """Return what an entry says about records, and whatever else it says: a document that `json` can hold."""
    document: dict[str, Any] = {**more}
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


class Replay:
    """What the tables ought to say, from the details of a log's entries in order.

    Args:
        details: What `facts` returned for each entry.
    """

    def __init__(self, details: Iterable[dict[str, Any]]) -> None:
        self._tenant: dict[str, Any] = {}
        self._keks: dict[int, dict[str, Any]] = {}
        self._keys: dict[tuple[str, int], dict[str, Any]] = {}
        for each in details:
            self._tenant = each.get("tenant", self._tenant)
            self._keks |= {kek["generation"]: kek for kek in each.get("keks", ())}
            self._keys |= {(key["purpose"], key["version"]): key for key in each.get("keys", ())}

    def differences(self, snapshot: Snapshot) -> list[str]:
        """Return what the records say and the log does not, or the reverse, one sentence each."""
        found = _differences("the tenant", self._tenant, _tenant(snapshot.tenant))
        which = "the last KEK" if snapshot.erased else "the active KEK"
        found += _differences(which, self._last_kek(), _kek(snapshot.kek))
        stored = {(str(key.purpose), key.version): _key(key) for key in snapshot.keys}
        for purpose, version in sorted(self._keys.keys() | stored.keys()):
            what = f"{purpose} key version {version}"
            found += _differences(what, self._keys.get((purpose, version), {}), stored.get((purpose, version), {}))
        return found

    def _last_kek(self) -> dict[str, Any]:
        """Return the ACTIVE KEK; of a tenant that was erased the newest one."""
        active = [kek for kek in self._keks.values() if kek["state"] == KeyState.ACTIVE]
        newest = [self._keks[max(self._keks)]] if self._keks else [{}]
        return (active or newest)[-1]


def _differences(what: str, logged: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    if not stored:
        return [f"{what} is in the log and not in the key store"]
    if not logged:
        return [f"{what} is in the key store and not in the log"]
    # What only one side says counts too: facts that came with a later release are left out where they are not set.
    names = [name for name in {**stored, **logged} if logged.get(name) != stored.get(name)]
    return [f"{what}: {name} is {stored.get(name)}, the log says {logged.get(name)}" for name in names]


def _tenant(tenant: TenantRecord) -> dict[str, Any]:
    policy = tenant.policy
    # An entry of an earlier release has not these, and must be the same text for ever.
    later = {
        "ttl_seconds": policy.ttl_seconds,
        "grace_seconds": policy.grace_seconds,
        "pii_encryption": None if policy.pii_encryption else False,  # an entry that does not say so means: on
    }
    return {
        "name": tenant.name,
        "keyset": f"{tenant.identity.keyset_id:08x}",
        "suspended": tenant.suspended,
        "created_at": _instant(tenant.created_at),
        "kms_account": policy.kms_account,
        "kms_region": policy.kms_region,
        "rotation_days": policy.rotation_days,
        "follows_kms": policy.follows_kms,
        **{name: value for name, value in later.items() if value is not None},
    }


def _kek(kek: KekRecord) -> dict[str, Any]:
    return {
        "generation": kek.generation,
        "state": str(kek.state),
        "algorithm": kek.algorithm,
        "commitment": kek.commitment.hex(),
        "kms_key_arn": kek.kms_key_arn,
        "role_arn": kek.role_arn,
        "external_id": kek.external_id,
        "created_at": _instant(kek.created_at),
        "kms_key_material_id": kek.kms_key_material_id,
        **({"replica_regions": list(kek.replica_regions)} if kek.replica_regions else {}),
    }


def _key(key: KeyRecord) -> dict[str, Any]:
    return {
        "purpose": str(key.purpose),
        "version": key.version,
        "state": str(key.state),
        "kek_generation": key.kek_generation,
        "algorithm": key.algorithm,
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
