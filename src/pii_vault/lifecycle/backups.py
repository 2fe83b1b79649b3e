"""With which KMS keys backups of the key store open: read off the records and the audit log, and no KMS is asked.

A backup holds a tenant's keys under the KEK of its day, and that under the KMS key of its day. So whoever has a backup
and may use that KMS key has the keys, whatever was destroyed in the live key store since. Whether a KMS key still
lives, its owner knows; it is not asked here, since a customer who has shut its key does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..audit import reading
from ..audit.reading import LogEntry
from ..errors import AuditError, PiiVaultError
from ..keys import KeyState
from ..keystore import KeyStore, Snapshot


@dataclass(frozen=True, slots=True)
class BackupKey:
    """A KMS key that opens backups.

    Attributes:
        arn: Its full ARN.
        role_arn: The role that was assumed for it, if any.
        since: Backups from then on open with it, UTC.
        until: Backups up to then, UTC; None for those that are made now, too.
    """

    arn: str
    role_arn: str | None
    since: datetime
    until: datetime | None


def backup_keys(store: KeyStore, snapshot: Snapshot, since: datetime | None = None) -> tuple[BackupKey, ...]:
    """Return the KMS keys that backups of a tenant's keys open with, in the order in which they came into use.

    Args:
        store: The key store.
        snapshot: The tenant's records.
        since: Leave out those that open only backups from before.

    Raises:
        AuditError: the audit log does not say, because it was changed.
    """
    entries = reading.entries(store, snapshot.tenant.name)
    kek = snapshot.kek
    wrapped: list[BackupKey] = []
    with understood(snapshot.tenant.name):
        for entry in entries:
            for each in entry.details.get("keks", ()):
                _follow(wrapped, each, entry)
        if not wrapped:
            wrapped = [BackupKey(kek.kms_key_arn, kek.role_arn, kek.created_at, None)]
        # A log that was begun later than the tenant knows no earlier KMS key; a key that was made under one does.
        made = [BackupKey(key.kms_key_arn, None, key.created_at, key.created_at) for key in snapshot.keys]
        merged = _merged((*wrapped, *made))
        return tuple(each for each in merged if since is None or each.until is None or each.until >= since)


@contextmanager
def understood(tenant: str) -> Iterator[None]:
    """Turn what reading an entry's details raises, if they are not what was written, into our error."""
    try:
        yield
    except PiiVaultError:  # some are ValueErrors too
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        raise AuditError(
            f"the audit log of tenant {tenant!r} was changed", hint=f"pii-vault audit verify {tenant} shows everything"
        ) from None


def _follow(wrapped: list[BackupKey], kek: dict[str, Any], entry: LogEntry) -> None:
    """Add what an entry says about a KEK: it lies under another KMS key from now on, or is gone."""
    at = entry.at if wrapped else datetime.fromisoformat(kek["created_at"])
    if wrapped and wrapped[-1].until is None:
        last = wrapped[-1]
        wrapped[-1] = BackupKey(last.arn, last.role_arn, last.since, at)
    if kek["state"] == KeyState.ACTIVE:
        wrapped.append(BackupKey(str(kek["kms_key_arn"]), kek["role_arn"], at, None))


def _merged(found: Iterable[BackupKey]) -> list[BackupKey]:
    by_arn: dict[str, BackupKey] = {}
    for each in found:
        known = by_arn.get(each.arn, each)
        until = None if None in (known.until, each.until) else max(filter(None, (known.until, each.until)))
        role_arn = known.role_arn or each.role_arn
        by_arn[each.arn] = BackupKey(each.arn, role_arn, min(known.since, each.since), until)
    return sorted(by_arn.values(), key=lambda each: each.since)
