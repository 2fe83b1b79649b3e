"""Re-wrap: put a tenant's KEK under another KMS key, or under newer material of the same. No row is touched.

Two ways, and they do not promise the same:

- **Re-encrypted in the KMS**: one `ReEncrypt`; no plaintext leaves the KMS. The KEK stays what it is, so what it once
  wrapped, also in a backup and under data keys that were destroyed since, it goes on opening.
- **A new KEK**: generated under the new KMS key; it wraps the surviving data keys here, in this process. The old KEK is
  gone from the key store, and from its backups as soon as nobody can use the old KMS key any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .. import primitives
from ..audit.facts import Event
from ..context import kms_context
from ..errors import KeyRecordError, KeyValidationError, KmsCorruptError
from ..hierarchy import Kek
from ..keyring import kms_key
from ..keys import KEK_PURPOSE, KekRecord, KeyRecord, KeyState, TenantRecord
from ..keystore import Snapshot
from ..kms import KmsKey, KmsKeyDescription
from . import issue
from .parts import Parts, decided
from .refusals import refusals_logged
from .registration import check_owner
from .replicas import check_replicas
from .validation import check_kms_key


class Way(StrEnum):
    """How a KEK came under its KMS key."""

    RE_ENCRYPTED = "re-encrypted"
    NEW_KEK = "new kek"
    UNCHANGED = "unchanged"


_SAME_KEK: Final = "The same key-encryption key is wrapped anew. "
_NEW_KEK: Final = "The key-encryption key is new, the data keys are the same. "
_LEAKED: Final = " Against a data key that leaked, only a rotation and the re-encryption of its rows help."
_UNTIL_DELETED: Final = "Backups of the key store open with the old KMS key until that is deleted; "
_AS_BEFORE: Final = "Backups of the key store open as before, with the KMS key, which is the same; "

_PROMISES: Final = {
    (Way.RE_ENCRYPTED, True): _SAME_KEK
    + _UNTIL_DELETED
    + "as long as this key-encryption key lives, it opens what they have of destroyed data keys.",
    (Way.RE_ENCRYPTED, False): _SAME_KEK + _AS_BEFORE + "so does what they have of destroyed data keys.",
    (Way.NEW_KEK, True): _NEW_KEK
    + _UNTIL_DELETED
    + "from then on they open nothing, and destroyed data keys are gone for good."
    + _LEAKED,
    (Way.NEW_KEK, False): _NEW_KEK
    + _AS_BEFORE
    + "so does what they have of destroyed data keys. A leaked key-encryption key opens nothing stored from now on."
    + _LEAKED,
}

_NOTHING: Final = "Nothing was to be done: the key-encryption key lies under this KMS key's present material."
_PLATFORM: Final = (
    " The old KMS key is the platform's and lives on for other tenants: backups open with it until they are gone."
)


@dataclass(frozen=True, slots=True)
class Rewrap:
    """What a re-wrap came to.

    Attributes:
        tenant: Whose KEK it is.
        way: How it was done, or would be.
        generation: The KEK's generation now.
        kms_key_arn: The KMS key that wraps it now.
        kms_key_material_id: Which material of that, if the KMS says so.
        previous_arn: The KMS key that wrapped it before.
        promise: What holds from now on, also against backups.
    """

    tenant: str
    way: Way
    generation: int
    kms_key_arn: str
    kms_key_material_id: str | None
    previous_arn: str
    promise: str


def rewrap(
    parts: Parts,
    name: str,
    to: KmsKey | None = None,
    *,
    new_kek: bool = False,
    shared_key: bool = False,
    reason: str = "",
    dry_run: bool = False,
    describe: Callable[[KmsKey], KmsKeyDescription] | None = None,
) -> Rewrap:
    """Put a tenant's KEK under a KMS key.

    Args:
        parts: What it is done with.
        name: The tenant; it may be suspended.
        to: The KMS key; None for the present one, whose newer material is then used.
        new_kek: Make a new KEK instead of re-encrypting the present one.
        shared_key: Whether another tenant may have the same KMS key.
        reason: Why, for the audit log.
        dry_run: Make the checks, and change nothing.
        describe: Asks a KMS about a key; None for the parts' own.

    Raises:
        ConfigurationError: the KMS key is another tenant's, or not one that can be meant.
        KeyValidationError: the new KMS key, or the new wrapping, did not pass a check; the old one stays.
        KmsError: a KMS refuses or does not answer; the old wrapping stays.
    """

    def attempt() -> Rewrap:
        snapshot = parts.store.load(name)
        source = kms_key(snapshot.tenant, snapshot.kek)
        # Under the same KMS key its replicas stay; another one has those that are named with it.
        destination = source if to is None or to == source.alone else to
        if destination != source:
            parts.kms.validate_key(destination)
            if not shared_key:
                check_owner(parts, name, destination)
            parts.kms.check_role(destination)
            check_replicas(parts, name, destination)
        material = check_kms_key(describe or parts.kms.describe, name, destination).key_material_id
        is_newest = material is not None and material == snapshot.kek.kms_key_material_id
        if destination == source and is_newest and not new_kek:
            return _outcome(parts, snapshot, snapshot.kek, Way.UNCHANGED)
        if dry_run:
            after = _planned(parts, snapshot, destination, material, new_kek)
        else:
            after = (_with_new_kek if new_kek else _re_encrypted)(parts, snapshot, destination, reason)
        return _outcome(parts, snapshot, after, Way.NEW_KEK if new_kek else Way.RE_ENCRYPTED)

    with nullcontext() if dry_run else refusals_logged(parts, name):
        return decided(name, attempt)


def _planned(parts: Parts, snapshot: Snapshot, destination: KmsKey, material: str | None, new_kek: bool) -> KekRecord:
    """Return what the KEK's record would say, after the KMS has said that it would do it. Nothing is changed."""
    tenant, before = snapshot.tenant, snapshot.kek
    source, context = kms_key(tenant, before), kms_context(tenant.identity, KEK_PURPOSE, before.generation)
    if new_kek:
        parts.kms.check_unwrap(source, before.wrapped, context)
    else:
        parts.kms.check_rewrap(source, destination, before.wrapped, context)
    return replace(
        before,
        generation=before.generation + new_kek,
        kms_key_arn=destination.arn,
        kms_key_material_id=material,
    )


def _re_encrypted(parts: Parts, snapshot: Snapshot, destination: KmsKey, reason: str) -> KekRecord:
    tenant, before = snapshot.tenant, snapshot.kek
    context = kms_context(tenant.identity, KEK_PURPOSE, before.generation)
    wrapped = parts.kms.rewrap(kms_key(tenant, before), destination, before.wrapped, context)
    _prove(parts, tenant, destination, wrapped.blob, context)
    after = replace(
        before,
        kms_key_arn=destination.arn,
        role_arn=destination.role_arn,
        external_id=destination.external_id,
        kms_key_material_id=wrapped.key_material_id,
        wrapped=wrapped.blob,
        replica_regions=destination.replica_regions,
    )
    moved = _moved(tenant, destination)
    page = parts.ledger.page(tenant, snapshot)
    with parts.store.change(snapshot) as change:
        change.rewrap_kek(before, after)
        change.set_policy(moved.policy)
        page.write(change, Event.KEK_REWRAPPED, reason=reason, tenant=moved, keks=[after])
    return after


def _prove(parts: Parts, tenant: TenantRecord, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
    """Open a new wrapping before it counts: with its own key, for its own identity, and inside the KMS."""
    try:
        parts.kms.rewrap(key, key, blob, context)
    except KmsCorruptError as error:
        code = error.code
    else:
        return
    raise KeyValidationError(
        f"tenant {tenant.name!r}: what was wrapped by KMS key {key.arn} does not open with it ({code})",
        check="kms-new-wrapping",
        hint="the old wrapping stays; find out what answers for this KMS",
    )


def _with_new_kek(parts: Parts, snapshot: Snapshot, destination: KmsKey, reason: str) -> KekRecord:
    before = snapshot.kek
    moved = _moved(snapshot.tenant, destination)
    old = parts.keyring.unwrap_kek(snapshot.tenant, before)
    after, new = issue.new_kek(parts, moved, destination, generation=before.generation + 1)
    survivors = [_under(new, old, key) for key in snapshot.keys if key.state is not KeyState.DESTROYED]
    page = parts.ledger.page(moved, snapshot)
    with parts.store.change(snapshot) as change:
        gone = change.destroy_kek(before)
        change.add_kek(after)
        change.rewrap_keys(survivors)
        change.set_policy(moved.policy)
        page.write(change, Event.KEK_REPLACED, reason=reason, tenant=moved, keks=[gone, after], keys=survivors)
    return after


def _under(new: Kek, old: Kek, record: KeyRecord) -> KeyRecord:
    """Return a key's record as another KEK wraps it, opened once again before it counts."""
    key = old.unwrap(record)
    iv, encrypted, commitment = new.wrap(record.purpose, record.version, key)
    after = replace(record, kek_generation=new.generation, iv=iv, encrypted_key=encrypted, activation_mac=b"")
    if commitment != record.commitment or not primitives.equal(new.unwrap(after).reveal(), key.reveal()):
        raise KeyRecordError(f"{record.purpose} key version {record.version} is not the same under the new KEK")
    if record.state is not KeyState.ACTIVE:
        return after  # without the proof that it had: nothing makes it active again
    old.check_activation(record)
    return replace(
        after, activation_mac=new.activation_mac(record.purpose, record.version, record.epoch, record.commitment)
    )


def _moved(tenant: TenantRecord, destination: KmsKey) -> TenantRecord:
    return replace(tenant, policy=tenant.policy.expecting(destination.arn))


def _outcome(parts: Parts, snapshot: Snapshot, after: KekRecord, way: Way) -> Rewrap:
    previous = snapshot.kek.kms_key_arn
    return Rewrap(
        snapshot.tenant.name,
        way,
        after.generation,
        after.kms_key_arn,
        after.kms_key_material_id,
        previous,
        _promise(way, moved=previous != after.kms_key_arn, from_platform=parts.is_platform_key(previous)),
    )


def _promise(way: Way, *, moved: bool, from_platform: bool) -> str:
    if way is Way.UNCHANGED:
        return _NOTHING
    return _PROMISES[way, moved] + (_PLATFORM if moved and from_platform else "")
