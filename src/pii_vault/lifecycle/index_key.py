"""Replace a tenant's index key, in steps with time between them: two of them live meanwhile, and never three.

A query looks for the tokens of every index key that its process holds. So the next one is stored first, PRE_ACTIVE, and
makes no token until every process holds it; then it makes all tokens, and its predecessor is still looked for until no
row has a token of it; then that is destroyed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..audit.facts import Event
from ..envelope import MAX_GENERATION
from ..errors import KeyStateError
from ..keyring import kms_key
from ..keys import KeyRecord, KeyState, Purpose
from ..keystore import Snapshot
from . import issue, rotation
from .ending import DRAIN
from .parts import Parts, Reason, decided
from .refusals import refusals_logged


@dataclass(frozen=True, slots=True)
class IndexKeys:
    """A tenant's index keys that live.

    Attributes:
        active: The one that makes tokens.
        pending: The one that will, stored so that every process comes to hold it; or None.
        previous: The one whose tokens are still looked for; or None.
    """

    active: KeyRecord
    pending: KeyRecord | None
    previous: KeyRecord | None

    @staticmethod
    def of(snapshot: Snapshot) -> IndexKeys:
        """Return those of a tenant.

        Raises:
            KeyStateError: it has none.
        """
        states = {key.state: key for key in snapshot.keys if key.purpose is Purpose.INDEX}
        active = states.get(KeyState.ACTIVE)
        if active is None:
            raise lacking(snapshot.tenant.name)
        return IndexKeys(active, states.get(KeyState.PRE_ACTIVE), states.get(KeyState.DEACTIVATED))


def lacking(tenant: str) -> KeyStateError:
    """Return the error that says that a tenant has no index key."""
    return KeyStateError(
        f"tenant {tenant!r} has no index key", hint=f"it gets one when it is rotated: pii-vault key rotate {tenant}"
    )


def known_at(parts: Parts, snapshot: Snapshot, pending: KeyRecord) -> datetime:
    """Return from when on every process holds a key that was stored: none uses an older keyset any longer."""
    return pending.created_at + timedelta(seconds=parts.keyring.longest_use(snapshot.tenant))


def drained_at(previous: KeyRecord) -> datetime:
    """Return from when on nobody can be writing tokens of a key any longer, nor commit what has them."""
    return (previous.deactivated_at or previous.created_at) + DRAIN


def prepare(parts: Parts, name: str, reason: str) -> KeyRecord:
    """Store the next index key, PRE_ACTIVE, or find the one that waits.

    Raises:
        KeyStateError: one is being replaced, or all 255 generations are used up.
        KmsError: the KMS refuses or does not answer; nothing is stored then.
    """

    def attempt() -> KeyRecord:
        snapshot = rotation.usable(parts, name)
        keys = IndexKeys.of(snapshot)
        if keys.pending is not None:
            return keys.pending
        if keys.previous is not None:
            raise KeyStateError(f"an index key of tenant {name!r} is being replaced: finish that first")
        highest = max(key.version for key in snapshot.keys if key.purpose is Purpose.INDEX)
        if highest == MAX_GENERATION:
            raise KeyStateError(f"tenant {name!r} has used up all {MAX_GENERATION} generations of index keys")
        kek = parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek)
        address = kms_key(snapshot.tenant, snapshot.kek)
        record = issue.new_index_key(parts, snapshot.tenant, address, kek, Reason.FORCED, highest)
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            change.add_key(record)
            change.evict()
            page.write(change, Event.KEY_CREATED, reason=reason, keys=[record])
        parts.keyring.evict(name)
        return record

    with refusals_logged(parts, name):
        return decided(name, attempt)


def activate(parts: Parts, name: str, reason: str) -> KeyRecord:
    """Let the key that waits make all tokens from now on; tokens of its predecessor are still looked for.

    Raises:
        KeyStateError: none waits, or not every process holds it yet.
        KeyRecordError: what waits cannot be opened.
    """

    def attempt() -> KeyRecord:
        snapshot = rotation.usable(parts, name)
        keys = IndexKeys.of(snapshot)
        if keys.pending is None:
            raise KeyStateError(f"no index key of tenant {name!r} waits for its activation")
        known, now = known_at(parts, snapshot, keys.pending), parts.now()
        if now < known:
            raise KeyStateError(
                f"a process may not hold index key {keys.pending.version} of tenant {name!r} yet",
                hint=f"go on after {known:%Y-%m-%d %H:%M:%S} UTC",
            )
        kek = parts.keyring.unwrap_kek(snapshot.tenant, snapshot.kek)
        kek.unwrap(keys.pending)
        after = issue.activated_index_key(snapshot, kek, keys.pending, now)
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            ended = change.deactivate(keys.active, now)
            change.activate(after)
            change.evict()
            page.write(change, Event.KEY_ACTIVATED, reason=reason, keys=[ended, after])
        parts.keyring.evict(name)
        return after

    with refusals_logged(parts, name):
        return decided(name, attempt)


def retire(parts: Parts, name: str, reason: str) -> KeyRecord:
    """Destroy the predecessor, once no row has a token of it; from then on one key lives.

    The caller has counted the rows, after `drained_at`.

    Raises:
        KeyStateError: there is none, or somebody may still be writing tokens of it.
    """

    def attempt() -> KeyRecord:
        snapshot = parts.store.load(name)
        previous = IndexKeys.of(snapshot).previous
        if previous is None:
            raise KeyStateError(f"no index key of tenant {name!r} is being replaced")
        now = parts.now()
        if now < drained_at(previous):
            raise KeyStateError(
                f"a process may still be writing tokens of index key {previous.version} of tenant {name!r}",
                hint=f"go on after {drained_at(previous):%Y-%m-%d %H:%M} UTC",
            )
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            gone = change.destroy(previous, now)
            change.evict()
            page.write(change, Event.KEY_DESTROYED, reason=reason, keys=[gone])
        parts.keyring.evict(name)
        return gone

    return decided(name, attempt)
