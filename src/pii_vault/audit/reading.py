"""Read the audit log: what it says, whether it is what was written, and whether the key store is what it says.

Verification asks the platform's KMS for each chain's first key, which nobody needs for writing: who writes the log need
not be able to verify it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ..chain import ChainRecord, Entry, walk
from ..context import kms_context
from ..errors import AuditError, KeyRecordError, KmsCorruptError
from ..keys import Secret
from ..keystore import KeyStore, Snapshot
from ..kms import KmsProvider
from .facts import Replay
from .ledger import ROOT_PURPOSE, Ledger

ANCHOR_FORMAT: Final = 1

_NO_LOG: Final = "there is no audit log: it begins with the tenant's next change"
_END_GONE: Final = "the end of the audit log is gone: nothing can be added"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a tenant's audit log.

    Attributes:
        seq: Its place, from 1.
        at: When it was written, UTC.
        actor: Who asked.
        event: What happened: an `Event`.
        reason: Why, or an empty string.
        details: The records as they were afterwards.
    """

    seq: int
    at: datetime
    actor: str
    event: str
    reason: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Anchor:
    """The end of a tenant's audit log at one time, to be kept where the key store's writers cannot reach it.

    Attributes:
        format: 1.
        application: The application uid, hexadecimal.
        tenant: The tenant's name.
        tenant_uid: Its uid, hexadecimal.
        seq: How many entries there were.
        head: The MAC of the last one, hexadecimal.
        version: The highest data-key version that there was.
        at: When the anchor was made, UTC.
    """

    format: int
    application: str
    tenant: str
    tenant_uid: str
    seq: int
    head: str
    version: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Verification:
    """What the verification of a tenant's audit log found.

    Attributes:
        tenant: The tenant's name.
        entries: How many entries there are.
        first_bad: The place of the first entry that is not what was written there, or None.
        problems: What is wrong, one sentence each; empty when all is in order.
    """

    tenant: str
    entries: int
    first_bad: int | None
    problems: tuple[str, ...]


def entries(store: KeyStore, tenant: str, *, after: int = 0, limit: int | None = None) -> list[LogEntry]:
    """Return what a tenant's log says, in order. It is not verified, and no KMS is asked.

    Args:
        store: Where it is kept.
        tenant: The tenant's name.
        after: The place behind which to begin; 0 begins at the first entry.
        limit: How many at most; None for all.
    """
    uid = store.load(tenant, even_erased=True).tenant.identity.tenant_uid
    return [_read(entry) for entry in store.entries(uid, after, limit)]


def anchor_at(snapshot: Snapshot, entry: Entry, at: datetime) -> Anchor:
    """Return the anchor that an entry is, of a log that was not verified here."""
    identity = snapshot.tenant.identity
    return Anchor(
        ANCHOR_FORMAT,
        identity.app_uid.hex(),
        snapshot.tenant.name,
        identity.tenant_uid.hex(),
        entry.seq,
        entry.mac.hex(),
        _highest(snapshot),
        at,
    )


class AuditLog:
    """The audit log of one key store.

    Args:
        store: Where it is kept.
        kms: The KMS that holds the platform's key.
        ledger: Who writes it: it knows the platform's key and the audit key.
    """

    def __init__(self, store: KeyStore, kms: KmsProvider, ledger: Ledger) -> None:
        self._store: Final = store
        self._kms: Final = kms
        self._ledger: Final = ledger

    def entries(self, tenant: str, *, after: int = 0, limit: int | None = None) -> list[LogEntry]:
        """Return what a tenant's log says, in order: as `entries`."""
        return entries(self._store, tenant, after=after, limit=limit)

    def verify(self, tenant: str, anchor: Anchor | None = None) -> Verification:
        """Check that a tenant's log is what was written, and that the key store is what the log says.

        Args:
            tenant: The tenant's name.
            anchor: An earlier end of the log. Only it shows that the log's newest entries were taken away, and the key
                store put back to match.

        Raises:
            ConfigurationError: no platform key is configured.
            KmsError: the platform's KMS does not unwrap the chain's first key.
        """
        try:
            snapshot = self._store.load(tenant, even_erased=True)
        except KeyRecordError as error:
            return Verification(tenant, 0, None, (str(error),))
        chain = snapshot.chain
        entries = self._store.entries(snapshot.tenant.identity.tenant_uid)
        if chain is None:
            problem = _END_GONE if entries else _NO_LOG
            return Verification(tenant, len(entries), None, (problem,))
        behind = entries[chain.seq :]
        # What was added since the records were read is not theirs.
        entries = entries[: chain.seq]
        bad, problems = self._check_chain(snapshot, chain, entries)
        if bad is None and behind and not self._was_added(tenant, behind[-1]):
            bad = chain.seq + 1
            problems.append(f"entry {bad} lies behind the end of the chain: it was put in, or the end was put back")
        if bad is None:
            problems += Replay(json.loads(entry.text)["details"] for entry in entries).differences(snapshot)
        if anchor is not None:
            problems += _check_anchor(anchor, snapshot, entries)
        return Verification(tenant, len(entries), bad, tuple(problems))

    def anchor(self, tenant: str) -> Anchor:
        """Return the end of a tenant's log, after it was verified.

        Raises:
            AuditError: it did not pass.
        """
        found = self.verify(tenant)
        if found.problems:
            raise AuditError(
                f"the audit log of tenant {tenant!r} is not in order: {found.problems[0]}",
                hint=f"pii-vault audit verify {tenant} shows everything",
            )
        snapshot = self._store.load(tenant, even_erased=True)
        (last,) = self._store.entries(snapshot.tenant.identity.tenant_uid, after=found.entries - 1, limit=1)
        return anchor_at(snapshot, last, self._ledger.now())

    def _was_added(self, tenant: str, last: Entry) -> bool:
        """Tell whether the chain has come to an entry by now: an entry and the end behind it are stored together."""
        chain = self._store.load(tenant, even_erased=True).chain
        return chain is not None and last.seq <= chain.seq

    def _check_chain(
        self, snapshot: Snapshot, chain: ChainRecord, entries: list[Entry]
    ) -> tuple[int | None, list[str]]:
        identity = snapshot.tenant.identity
        platform = self._ledger.platform_key
        if chain.kms_key_arn != platform.arn:
            return 1, [f"the chain's first key is under KMS key {chain.kms_key_arn}, not the platform's"]
        context = kms_context(identity, ROOT_PURPOSE, 1)
        try:
            root = Secret(self._kms.unwrap(platform, chain.root, context))
        except KmsCorruptError:
            return 1, ["the chain's first key is not the one of this tenant: it was changed, or the tenant's keyset id"]
        walked = walk(identity, root, entries)
        if walked.first_bad is not None:
            return walked.first_bad, [f"entry {walked.first_bad} is not what was written there"]
        if len(entries) < chain.seq:
            return len(entries) + 1, [f"entries {len(entries) + 1} to {chain.seq} are missing"]
        if not self._ledger.continues(identity, chain, walked):
            return None, ["the end of the chain does not fit its last entry: nothing can be added"]
        return None, []


def _read(entry: Entry) -> LogEntry:
    try:
        said = json.loads(entry.text)
        at = datetime.fromisoformat(said["at"])
        words = (said["actor"], said["event"], said["reason"])
        if all(isinstance(word, str) for word in words) and isinstance(said["details"], dict):
            return LogEntry(entry.seq, at, *words, said["details"])
    except (ValueError, TypeError, KeyError):
        pass
    raise AuditError(
        f"entry {entry.seq} says nothing: it was changed", hint="`pii-vault audit verify` shows everything"
    )


def _highest(snapshot: Snapshot) -> int:
    return max((key.version for key in snapshot.data_keys), default=0)


def _check_anchor(anchor: Anchor, snapshot: Snapshot, entries: list[Entry]) -> list[str]:
    identity = snapshot.tenant.identity
    if (anchor.application, anchor.tenant_uid) != (identity.app_uid.hex(), identity.tenant_uid.hex()):
        return [f"the anchor is of another tenant or application: {anchor.tenant!r}"]
    when = f"the anchor of {anchor.at:%Y-%m-%d %H:%M} UTC"
    problems = []
    if anchor.seq > len(entries):
        problems.append(f"the log ends at entry {len(entries)}, {when} knows {anchor.seq}: it was cut off")
    elif entries[anchor.seq - 1].mac.hex() != anchor.head:
        problems.append(f"entry {anchor.seq} is not the one that {when} knows: the log was written anew")
    if _highest(snapshot) < anchor.version:
        problems.append(
            f"the newest data key is version {_highest(snapshot)}, {when} knows {anchor.version}: "
            "the key table was rolled back"
        )
    return problems
