"""Rotate: give a tenant a new data key. Rows are not touched; what is sealed from now on is sealed with the new one.

Two transactions, and a crash between them loses nothing: the first stores the new version, PRE_ACTIVE; the second,
after every check has passed, makes it ACTIVE in place of its predecessor. Whoever comes next finishes what is
unfinished. Two who rotate the same version at once make one new version: the slower one finds it made.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ..audit.facts import Event
from ..errors import KeyRecordError, KeyValidationError
from ..hierarchy import Kek
from ..keyring import check_in_use, kms_key
from ..keys import KeyRecord, KeyState, Purpose
from ..keystore import Snapshot, SupersededError
from . import issue
from .parts import Parts, Reason, decided
from .refusals import refusals_logged
from .validation import Examination


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation came to.

    Attributes:
        tenant: Whose key it is.
        version: The version that seals now.
        previous: The version that sealed before, or 0.
        reason: Why it was made.
        made: False when somebody else made it meanwhile.
        due_at: When it is to be rotated itself, UTC.
    """

    tenant: str
    version: int
    previous: int
    reason: str
    made: bool
    due_at: datetime | None


def rotate(parts: Parts, name: str, reason: Reason, *, instead_of: int | None = None) -> Rotation:
    """Make a new data-key version ACTIVE.

    Args:
        parts: What it is done with.
        name: The tenant.
        reason: Why.
        instead_of: The version that is to be replaced, 0 if none is ACTIVE; None for whichever is ACTIVE now. When
            another one is ACTIVE by then, somebody else was faster and nothing is done.

    Raises:
        TenantNotFoundError, TenantSuspendedError, PiiEncryptionDisabledError, KeyStoreError
        KeyStateError: the tenant has used up all 65535 versions.
        KeyValidationError, KeyRecordError: the new version did not pass a check; it is withdrawn.
        KmsError: the KMS refuses or does not answer; the present version stays ACTIVE.
    """
    replaced = instead_of

    def attempt() -> Rotation:
        nonlocal replaced
        snapshot = usable(parts, name)
        active = snapshot.active
        if replaced is None:
            replaced = _version(active)
        if active is not None and active.version != replaced:
            return _outcome(name, active, replaced, active.reason, made=False)
        pending, kek = prepare(parts, snapshot, reason)
        return activate(parts, name, pending, reason, kek)

    with refusals_logged(parts, name):
        return decided(name, attempt)


def prepare(parts: Parts, snapshot: Snapshot, reason: Reason) -> tuple[KeyRecord, Kek | None]:
    """Store the next version, PRE_ACTIVE, or find the one that waits; return it, and the KEK if it was unwrapped.

    Raises:
        SupersededError: somebody else changed the tenant meanwhile.
    """
    waiting = snapshot.pending
    if waiting is not None and (reason is not Reason.COMPROMISED or waiting.reason == Reason.COMPROMISED):
        return waiting, None
    kek = parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek)
    record = issue.new_key(parts, snapshot, kek, reason)
    page = parts.ledger.page(snapshot.tenant, snapshot)
    with parts.store.change(snapshot) as change:
        if waiting is not None:
            # Made before the leak was suspected: what has leaked may be what it was made with.
            gone = change.destroy(waiting, record.created_at)
            page.write(change, Event.KEY_WITHDRAWN, reason=reason, keys=[gone])
        change.add_key(record)
        page.write(change, Event.KEY_CREATED, reason=reason, keys=[record])
    return record, kek


def activate(parts: Parts, name: str, record: KeyRecord, reason: Reason, kek: Kek | None = None) -> Rotation:
    """Make a stored PRE_ACTIVE version ACTIVE once every check has passed.

    Args:
        parts: What it is done with.
        name: The tenant.
        record: The version as it was stored, or found stored.
        reason: Why it takes over now.
        kek: The tenant's KEK if this operation has just unwrapped it by a live call.

    Raises:
        SupersededError: somebody else changed the tenant meanwhile.
        KeyValidationError, KeyRecordError: a check failed; the version is withdrawn.
        KmsError: the KMS refuses or does not answer; the version stays PRE_ACTIVE, for the next attempt.
    """
    snapshot = usable(parts, name)
    stored = next((key for key in snapshot.data_keys if key.version == record.version), None)
    if stored is None or stored.state is not KeyState.PRE_ACTIVE or stored.kek_generation != record.kek_generation:
        # Made ACTIVE or withdrawn by somebody else, or wrapped by another KEK, which this operation has not unwrapped.
        raise SupersededError
    if kek is None:
        # Before the version is looked at: what is wrong with its KEK, or with the customer's consent, is not its fault.
        kek = parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek)
    try:
        kek = Examination(parts, snapshot, record, kek).require()
    except (KeyValidationError, KeyRecordError) as error:
        _withdraw(parts, snapshot, stored, error)
        raise
    now, before = parts.now(), snapshot.active
    index_keys = _index_key_of_an_older_tenant(parts, snapshot, kek)
    after = issue.activated(snapshot, kek, record, now=now, period=issue.period(parts, snapshot))
    page = parts.ledger.page(snapshot.tenant, snapshot)
    with parts.store.change(snapshot) as change:
        ended = [change.deactivate(before, now)] if before is not None else []
        change.activate(after)
        for index_key in index_keys:
            change.add_active_key(index_key)
        page.write(change, Event.KEY_ACTIVATED, reason=reason, keys=[*ended, after, *index_keys])
    parts.keyring.evict(name)
    return _outcome(name, after, _version(before), reason, made=True)


def _index_key_of_an_older_tenant(parts: Parts, snapshot: Snapshot, kek: Kek) -> list[KeyRecord]:
    """Make the index key that tenants have from the beginning, for one that was registered by an earlier release."""
    if any(key.purpose is Purpose.INDEX for key in snapshot.keys):
        return []
    return [issue.first_index_key(parts, snapshot.tenant, kms_key(snapshot.tenant, snapshot.kek), kek)]


def usable(parts: Parts, name: str) -> Snapshot:
    """Return the records of a tenant whose keys may be used.

    One for which PII encryption is not on gets its first data key all the same: its KMS is proven to work when it is
    registered, and turning it on asks nobody.
    """
    snapshot = parts.store.load(name)
    if snapshot.tenant.suspended or any(key.epoch for key in snapshot.data_keys):
        check_in_use(snapshot.tenant)
    return snapshot


def _withdraw(parts: Parts, snapshot: Snapshot, record: KeyRecord, error: KeyValidationError | KeyRecordError) -> None:
    """Take a version that did not pass out of the way, unless the fault lies with the KMS key and not with it."""
    if isinstance(error, KeyValidationError) and error.check.startswith("kms-"):
        return
    page = parts.ledger.page(snapshot.tenant, snapshot)
    # Somebody else may be at it: then it is theirs to withdraw.
    with suppress(SupersededError), parts.store.change(snapshot) as change:
        gone = change.destroy(record, parts.now())
        page.write(change, Event.KEY_WITHDRAWN, reason=type(error).__name__, keys=[gone])


def _version(active: KeyRecord | None) -> int:
    return active.version if active is not None else 0


def _outcome(name: str, active: KeyRecord, previous: int, reason: str, *, made: bool) -> Rotation:
    return Rotation(name, active.version, previous, reason, made, active.due_at)
