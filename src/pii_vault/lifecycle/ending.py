"""End the use of data keys: let them open only, open for re-encryption only, or nothing at all.

These only restrict, so none of them asks the customer's KMS: they must work after it has been shut to us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ..audit.facts import Event
from ..errors import KeyStateError
from ..keys import TRANSITIONS, KeyRecord, KeyState
from ..keystore import Change, Snapshot
from .backups import BackupKey, backup_keys
from .parts import Parts, decided

DRAIN: Final = timedelta(days=1)
"""How long a key has to be out of use before it is destroyed: longer than any process goes on sealing with it, and any
transaction that has done so stays open."""

Rows = Callable[[Snapshot, KeyRecord], Mapping[str, int]]
"""Counts the values that were sealed with a key, by column; columns without any are left out."""


@dataclass(frozen=True, slots=True)
class Destruction:
    """What the destruction of a data key came to.

    Attributes:
        key: Its record afterwards.
        backup_keys: The KMS keys that backups of the key store which hold it open with.
        promise: What holds from now on, also against backups.
    """

    key: KeyRecord
    backup_keys: tuple[BackupKey, ...]
    promise: str


def deactivate(parts: Parts, name: str, reason: str) -> KeyRecord:
    """Let a tenant's ACTIVE data key open only. Nothing is sealed for the tenant until it is rotated.

    Other processes follow when they look at the key store next, within seconds.

    Raises:
        KeyStateError: the tenant has no ACTIVE key.
    """

    def attempt() -> KeyRecord:
        snapshot = parts.store.load(name)
        if snapshot.active is None:
            raise KeyStateError(f"tenant {name!r} has no active data key")
        active = snapshot.active
        return _end(parts, snapshot, Event.KEY_DEACTIVATED, reason, lambda change, now: change.deactivate(active, now))

    return decided(name, attempt)


def compromise(parts: Parts, name: str, version: int, reason: str) -> KeyRecord:
    """Let a data key open for re-encryption only: what it sealed is not to be trusted, and is read by nobody else.

    Other processes follow when they look at the key store next, within seconds. If the key is ACTIVE, nothing is sealed
    for the tenant until it is rotated.

    Raises:
        KeyStateError: there is no such version, or it is compromised or destroyed already.
    """

    def attempt() -> KeyRecord:
        snapshot = parts.store.load(name)
        record = _movable(snapshot, version, KeyState.COMPROMISED)
        return _end(parts, snapshot, Event.KEY_COMPROMISED, reason, lambda change, now: change.compromise(record, now))

    return decided(name, attempt)


def destroy(parts: Parts, name: str, version: int, reason: str, rows: Rows, *, dry_run: bool = False) -> Destruction:
    """Drop a data key's wrapped bytes from the key store, once nothing that it sealed is left. The record stays.

    Backups of the key store keep the wrapped bytes, and open them as long as the KMS key lives.

    Args:
        parts: What it is done with.
        name: The tenant.
        version: The data key's version.
        reason: Why.
        rows: Counts what the key has sealed.
        dry_run: Make every check, and change nothing.

    Raises:
        KeyStateError: there is no such version, it is in use or was until lately, or values are left.
    """

    def attempt() -> Destruction:
        snapshot = parts.store.load(name)
        record = _movable(snapshot, version, KeyState.DESTROYED)
        _check_drained(name, record, parts.now())
        left = rows(snapshot, record)
        if left:
            total = sum(left.values())
            values = "value" if total == 1 else "values"
            counts = ", ".join(f"{count:,} in {column}" for column, count in sorted(left.items()))
            raise KeyStateError(
                f"data key version {version} of tenant {name!r} still holds {total:,} {values}: {counts}",
                hint="re-encrypt them with the active version first",
            )
        opened = backup_keys(parts.store, snapshot, since=record.created_at)
        if not dry_run:
            record = _end(parts, snapshot, Event.KEY_DESTROYED, reason, lambda change, now: change.destroy(record, now))
        return Destruction(record, opened, _promise(parts, opened))

    return decided(name, attempt)


def _promise(parts: Parts, opened: tuple[BackupKey, ...]) -> str:
    # Every survivor lies under the KEK that lives, so this key did too until just now: nothing is gone for good yet.
    arns = [each.arn for each in opened]
    which = f"KMS key {arns[0]} until that is" if len(arns) == 1 else f"KMS keys {', '.join(arns)} until these are"
    said = (
        f"This holds for the live key store only. Backups of it from before have the data key, and open with {which} "
        "deleted. A new key-encryption key under another KMS key (rewrap --to --new-kek), and then the deletion of "
        "every KMS key named here, end that."
    )
    if any(parts.is_platform_key(arn) for arn in arns):
        said += " The platform's KMS key lives on for other tenants: backups open with it until they are gone."
    return said


def _movable(snapshot: Snapshot, version: int, after: KeyState) -> KeyRecord:
    name = snapshot.tenant.name
    record = next((key for key in snapshot.data_keys if key.version == version), None)
    if record is None:
        raise KeyStateError(
            f"tenant {name!r} has no data key version {version}",
            hint=f"pii-vault key list {name} shows those that it has",
        )
    if after not in TRANSITIONS[record.state]:
        hint = "rotate the tenant first" if record.state is KeyState.ACTIVE else None
        raise KeyStateError(
            f"data key version {version} of tenant {name!r} is {record.state} and cannot become {after}", hint=hint
        )
    return record


def _check_drained(name: str, record: KeyRecord, now: datetime) -> None:
    """Refuse a key that a process somewhere may still be sealing with.

    Raises:
        KeyStateError: it was taken out of use too lately.
    """
    ended = record.deactivated_at
    if ended is not None and now < ended + DRAIN:
        raise KeyStateError(
            f"data key version {record.version} of tenant {name!r} was taken out of use at {ended:%Y-%m-%d %H:%M} UTC, "
            "and a process may still be sealing with it",
            hint=f"destroy it after {ended + DRAIN:%Y-%m-%d %H:%M} UTC",
        )


def _end(
    parts: Parts, snapshot: Snapshot, event: Event, reason: str, step: Callable[[Change, datetime], KeyRecord]
) -> KeyRecord:
    page = parts.ledger.page(snapshot.tenant, snapshot)
    with parts.store.change(snapshot) as change:
        after = step(change, parts.now())
        change.evict()
        page.write(change, event, reason=reason, keys=[after])
    parts.keyring.evict(snapshot.tenant.name)
    return after
