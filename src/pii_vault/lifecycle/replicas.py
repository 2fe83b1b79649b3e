"""The replicas of a tenant's multi-Region KMS key: which regions an unwrap falls back to, checked before it has to.

Replicas have the same key material, so no key and no record changes. Each has a policy of its own, which must let us
unwrap there too: that is the customer's to say, and what a refusal there means is what it means anywhere.
"""

from __future__ import annotations

from dataclasses import replace

from ..audit.facts import Event
from ..errors import KeyValidationError
from ..keyring import kms_key
from ..keys import KekRecord
from ..kms import KmsKey
from .parts import Parts, decided
from .validation import check_kms_key


def set_replica_regions(parts: Parts, name: str, regions: tuple[str, ...], reason: str) -> KekRecord:
    """Say where a tenant's KMS key has replicas; none with an empty tuple. Other processes notice within seconds.

    Args:
        parts: What it is done with.
        name: The tenant.
        regions: The regions, in the order in which an unwrap tries them.
        reason: Why, for the audit log.

    Raises:
        KmsConfigurationError: the KMS key is not a multi-Region key, or a region is named twice or is none.
        KeyValidationError: what answers in a region is not an enabled replica of the KMS key.
        KmsError: a region's KMS refuses to describe it, or does not answer.
    """

    def attempt() -> KekRecord:
        snapshot = parts.store.load(name)
        before = snapshot.kek
        if before.replica_regions == regions:
            return before
        check_replicas(parts, name, replace(kms_key(snapshot.tenant, before), replica_regions=regions))
        after = replace(before, replica_regions=regions)
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            change.set_replica_regions(before, after)
            change.evict()
            page.write(change, Event.TENANT_CHANGED, reason=reason, keks=[after])
        parts.keyring.evict(name)
        return after

    return decided(name, attempt)


def check_replicas(parts: Parts, name: str, key: KmsKey) -> None:
    """Refuse regions in which a KMS key has no replica that could serve. Asks each region once; without any, nobody.

    Raises:
        KmsConfigurationError: the address can have no such replicas.
        KeyValidationError: what answers is not an enabled multi-Region key of this very ARN.
        KmsError: a region's KMS refuses to describe it, or does not answer.
    """
    parts.kms.validate_key(key)
    for replica in key.replicas:
        described = check_kms_key(parts.kms.describe, name, replica)
        if described.arn != replica.arn or not described.is_multi_region:
            raise KeyValidationError(
                f"tenant {name!r}: {replica.arn} is not a replica of KMS key {key.arn}",
                check="kms-replica",
                hint="its owner makes one there: aws kms replicate-key",
            )
