"""What is told of an erasure, and can be told again at any time: read off the records and the audit log.

Nothing here is remembered apart from them, so a report that got lost is made again, and says the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from ..audit import reading
from ..audit.facts import Event
from ..audit.reading import Anchor, LogEntry
from ..errors import AuditError
from ..keyring.terms import NOTICE_SECONDS
from ..keys import KEK_PURPOSE, KeyState, TenantRecord
from ..keystore import Snapshot
from .backups import BackupKey, backup_keys, understood
from .parts import Parts


class Owner(StrEnum):
    """Whose a KMS key is, by its account."""

    CUSTOMER = "customer"
    OURS = "ours"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class ErasedKey:
    """A key of a tenant that was erased.

    Attributes:
        kind: ``kek``, ``data`` or ``index``.
        version: Its version, or generation.
        state_before: The state that it was in before the erasure.
        destroyed_at: When it was destroyed, by the erasure or before, UTC; None while it only would be.
        commitment: By which its record in a backup is told, 32 bytes in hexadecimal. It gives nothing of the key away.
    """

    kind: str
    version: int
    state_before: KeyState
    destroyed_at: datetime | None
    commitment: str


@dataclass(frozen=True, slots=True)
class InvolvedKey:
    """A KMS key that opens backups of a tenant's keys.

    Attributes:
        key: Which, and backups of which time.
        owner: Whose it is.
        others: Other tenants whose keys lie under it now.
        deleted_at: When it will be deleted, or was, as far as the audit log says; None if it does not.
    """

    key: BackupKey
    owner: Owner
    others: tuple[str, ...]
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a tenant in a column of the application: sealed values, which nothing opens any more.

    Attributes:
        table: The table, with its schema if it has one.
        column: The column's name in the database.
        values: How many there are.
        with_tokens: How many of them carry search tokens.
    """

    table: str
    column: str
    values: int
    with_tokens: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure came to, or would come to.

    Attributes:
        tenant: Whose keys they are.
        made: Whether this call destroyed them; False when they were destroyed already, or only would be.
        at: When they were destroyed, UTC; None while they only would be.
        actor: Who asked; None likewise.
        reason: Why; None likewise.
        keys: All keys that the tenant ever had.
        kms_keys: The KMS keys that backups open with.
        anchor: The audit entry that tells of it, for `AuditLog.verify`; None likewise.
        eviction: The number by which all processes were asked to forget the keys; None likewise.
        held_seconds: For how long a process may use keys that it has fetched, if it never looks.
        remains: What is left in the application's tables; None when nobody looked.
        key_deletion_failure: Why the KMS key's deletion could not be scheduled, although it was asked for; or None.
    """

    tenant: TenantRecord
    made: bool
    at: datetime | None
    actor: str | None
    reason: str | None
    keys: tuple[ErasedKey, ...]
    kms_keys: tuple[InvolvedKey, ...]
    anchor: Anchor | None
    eviction: int | None
    held_seconds: int
    remains: tuple[Remains, ...] | None
    key_deletion_failure: str | None

    @property
    def held_until(self) -> datetime | None:
        """From when on no process uses the keys any more, whatever happens; UTC."""
        return self.at + timedelta(seconds=self.held_seconds) if self.at is not None else None


def evidence(
    parts: Parts,
    snapshot: Snapshot,
    *,
    made: bool,
    remains: tuple[Remains, ...] | None,
    key_deletion_failure: str | None = None,
) -> Erasure:
    """Return what is told of an erasure; of a tenant that is not erased, what an erasure would come to.

    Raises:
        AuditError: the audit log does not tell of it.
    """
    entries = reading.entries(parts.store, snapshot.tenant.name)
    entry = _erased_by(snapshot, entries) if snapshot.erased else None
    with understood(snapshot.tenant.name):
        noted: dict[str, Any] = entry.details["erasure"] if entry is not None else {}
        before = entries if entry is None else entries[: entry.seq - 1]
        return Erasure(
            tenant=snapshot.tenant,
            made=made,
            at=entry.at if entry is not None else None,
            actor=entry.actor if entry is not None else None,
            reason=entry.reason if entry is not None else None,
            keys=(*_keks(snapshot, before, entry), *_keys(snapshot, before)),
            kms_keys=_involved(parts, snapshot, entries),
            anchor=_anchor(parts, snapshot, entry) if entry is not None else None,
            eviction=int(noted["eviction"]) if noted else None,
            held_seconds=int(noted["held_seconds"]) if noted else held_seconds(parts, snapshot),
            remains=remains,
            key_deletion_failure=key_deletion_failure,
        )


def held_seconds(parts: Parts, snapshot: Snapshot) -> int:
    """Return for how many seconds a process may use a tenant's keys that it has fetched."""
    return math.ceil(parts.keyring.longest_use(snapshot.tenant))


def owner_of(parts: Parts, arn: str) -> Owner:
    """Tell whose a KMS key is: the platform's own, of the same account as that, or of another."""
    if parts.is_platform_key(arn):
        return Owner.PLATFORM
    same = _account(arn) == _account(parts.ledger.platform_key.arn)
    return Owner.OURS if same else Owner.CUSTOMER


def _account(arn: str) -> tuple[str, ...]:
    """Return partition and account of a KMS key's ARN (arn:partition:kms:region:account:key/id)."""
    return tuple(arn.split(":")[1:5:3])


def _erased_by(snapshot: Snapshot, entries: Iterable[LogEntry]) -> LogEntry:
    found = [entry for entry in entries if entry.event == Event.TENANT_ERASED]
    if not found:
        name = snapshot.tenant.name
        raise AuditError(
            f"the keys of tenant {name!r} are destroyed, and its audit log does not say by whom",
            hint=f"pii-vault audit verify {name} shows everything",
        )
    return found[-1]


def _anchor(parts: Parts, snapshot: Snapshot, entry: LogEntry) -> Anchor:
    (stored,) = parts.store.entries(snapshot.tenant.identity.tenant_uid, after=entry.seq - 1, limit=1)
    return reading.anchor_at(snapshot, stored, entry.at)


def _keks(snapshot: Snapshot, before: Iterable[LogEntry], entry: LogEntry | None) -> list[ErasedKey]:
    last = snapshot.kek
    found = {last.generation: ErasedKey(KEK_PURPOSE, last.generation, last.state, None, last.commitment.hex())}
    for each in before:
        for kek in each.details.get("keks", ()):
            state = KeyState(kek["state"])
            gone = each.at if state is KeyState.DESTROYED else None
            found[kek["generation"]] = ErasedKey(KEK_PURPOSE, kek["generation"], state, gone, kek["commitment"])
    if entry is not None:
        found[last.generation] = replace(found[last.generation], destroyed_at=entry.at)
    return [found[generation] for generation in sorted(found)]


def _keys(snapshot: Snapshot, before: Iterable[LogEntry]) -> list[ErasedKey]:
    states = {(str(key.purpose), key.version): key.state for key in snapshot.keys}
    if snapshot.erased:
        said = [key for each in before for key in each.details.get("keys", ())]
        states |= {(key["purpose"], key["version"]): KeyState(key["state"]) for key in said}
    return [
        ErasedKey(
            str(key.purpose),
            key.version,
            states[str(key.purpose), key.version],
            key.destroyed_at,
            key.commitment.hex(),
        )
        for key in snapshot.keys
    ]


def _involved(parts: Parts, snapshot: Snapshot, entries: Iterable[LogEntry]) -> tuple[InvolvedKey, ...]:
    deleted: dict[str, datetime] = {}
    for entry in entries:
        if entry.event == Event.KMS_DELETION_SCHEDULED:
            said = entry.details["kms_key"]
            deleted[said["arn"]] = datetime.fromisoformat(said["deleted_at"])
    name = snapshot.tenant.name
    return tuple(
        InvolvedKey(
            each,
            owner_of(parts, each.arn),
            tuple(other for other in parts.store.owners(each.arn) if other != name),
            deleted.get(each.arn),
        )
        for each in backup_keys(parts.store, snapshot)
    )


_LIVE: Final = (
    "All keys are destroyed in the live key store. What they sealed opens for nobody who has only that and the "
    "application's tables."
)
_BACKUPS: Final = (
    "Backups of the key store from before hold the wrapped keys; so do the database's own log, its replicas and its "
    "files until they are written over. Whoever has one of those opens it as long as the KMS key of its day lives."
)
_TOKENS: Final = (
    "Search tokens that are left in the application's rows stay comparable with each other: who reads them sees which "
    "values were equal, and how often each occurs. The index key is destroyed in the live key store, so nobody makes "
    "a token of a guess with that; a backup of the key store confirms guesses as long as its KMS key lives."
)
_NOT_LOOKED: Final = "Nobody looked into the application's tables: --metadata counts what is left there."


def meaning(found: Erasure) -> list[str]:
    """Return what an erasure means, in sentences for a person."""
    said = [_LIVE, _processes(found)] if found.at is not None else []
    return [*said, _BACKUPS, *map(advice, found.kms_keys), _TOKENS, *_left(found)]


def _processes(found: Erasure) -> str:
    whose = "by the tenant's own terms"
    if found.tenant.policy.ttl_seconds is None:
        whose = "if its ttl and grace are not longer than those that the erasure was made with"
    return (
        f"A process that is in use forgets the keys within {NOTICE_SECONDS:g} seconds, and none uses them after "
        f"{found.held_until:%Y-%m-%d %H:%M:%S} UTC, {whose}. What was written until then is unreadable too."
    )


def advice(involved: InvolvedKey) -> str:
    """Return what has to become of a KMS key before backups open no more."""
    key = involved.key
    until = f"to {key.until:%Y-%m-%d}" if key.until is not None else "on"
    which = f"KMS key {key.arn} opens backups from {key.since:%Y-%m-%d} {until}"
    if involved.deleted_at is not None:
        day = f"{involved.deleted_at:%Y-%m-%d %H:%M} UTC"
        return f"{which}. It opens nothing now, and is to be deleted at {day}; until then its owner can take that back."
    if involved.owner is Owner.PLATFORM:
        return f"{which}. It is the platform's and stays: these backups have to go."
    if involved.others:
        names = ", ".join(involved.others)
        return f"{which}. Other tenants' keys lie under it too ({names}): these have to move first, or the backups go."
    if involved.owner is Owner.OURS:
        return f"{which}. It is our own and has to be deleted: nobody else's keys lie under it."
    return (
        f"{which}. It is the customer's, in account {key.arn.split(':')[4]}, and only the customer can delete it: "
        f"aws kms schedule-key-deletion --key-id {key.arn} --pending-window-in-days 7"
    )


def _left(found: Erasure) -> list[str]:
    if found.remains is None:
        return [_NOT_LOOKED]
    values = sum(each.values for each in found.remains)
    if not values:
        return ["No value of the tenant is left in the application's tables that were looked into."]
    tokens = sum(each.with_tokens for each in found.remains)
    return [
        f"{values:,} values of the tenant are left in the application's tables, {tokens:,} of them with search tokens. "
        "Nothing opens them; delete their rows, and the tokens are gone too."
    ]
