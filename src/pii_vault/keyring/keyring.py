"""The keyring: tenant name to keyset, held for a bounded time.

The promise: no keyset is handed out later than its time to live and grace after the moment at which the last
successful `Decrypt` was *sent* to the customer's KMS, on the monotonic or the wall clock, whichever says so first. The
grace is for outages: as soon as the KMS has refused, or anything else than an outage is wrong, the keyset is gone.

A miss asks the key store and the KMS once, however many threads and coroutines wait for it, and what the KMS has failed
with is its answer for a moment more. Ahead of a keyset's end one caller fetches the next one while the others go on.
Without a time to live every scope asks for itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from weakref import WeakSet

from ..blind_index import Slot, SlotRecord, contents
from ..errors import ConfigurationError, KeyStoreBusyError, KeyStoreError, KmsUnavailableError
from ..hierarchy import Kek
from ..keys import OPENING_FOR_REENCRYPTION, KekRecord, TenantRecord
from ..keystore import KeyStore
from ..kms import KmsProvider
from ..metering import Metering
from ..sealing import Keyset, no_active_key
from ..telemetry import Lookup, Reason, Telemetry
from .adoptions import Adoptions
from .crew import Crew
from .fetching import Fetching
from .loading import Loader, behind_primary
from .memory import Memory
from .notices import Notices
from .terms import KEPT_TENANTS, Clock, Terms
from .unknown import Unknown

_log: Final = logging.getLogger(__name__)


class Keyring:
    """The process-wide cache of keysets.

    Args:
        store: Where the wrapped keys are.
        kms: Who can unwrap a KEK.
        terms: How long keysets are used of tenants that have no terms of their own.
        size: How many tenants' keysets are kept; the least recently used one goes first.
        clock: The two clocks.
        telemetry: Who is told what happens.

    Attributes:
        clock: The two clocks.
        fetching: Who fetches and who waits, for `coroutines`.
        crew: Threads that fetch for them.
        adoptions: How far the adoption of plaintext columns is.
    """

    def __init__(
        self,
        store: KeyStore,
        kms: KmsProvider,
        *,
        terms: Terms | None = None,
        size: int = KEPT_TENANTS,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        if size < 1:
            raise ConfigurationError("a keyring needs a size of 1 or more")
        self.clock: Final = clock or Clock()
        self._size: Final = size
        self._store: Final = store
        self._telemetry: Final = telemetry or Telemetry()
        self._metering: Final = Metering(store, self.clock.monotonic)
        self._loader: Final = Loader(store, kms, self._metering, self.clock, terms or Terms(), size)
        self._notices: Final = Notices(store, self.clock.monotonic)
        self._memory: Final = Memory(size, self.clock, self._telemetry)
        self.fetching: Final = Fetching(self._memory, self._loader, self._notices, size, self.clock, self._telemetry)
        self.adoptions: Final = Adoptions(store, self.clock.monotonic)
        self._begin()
        _keyrings.add(self)

    # What is in memory. Asks nobody.

    def cached(self, tenant: str) -> Keyset | None:
        """Return a tenant's keyset if it is in memory and fresh."""
        with self._memory.lock:
            keyset = self._memory.get(tenant)
        if keyset is not None:
            self._telemetry.looked_up(Lookup.HIT)
        return keyset

    def fresh(self, keyset: Keyset) -> bool:
        """Say whether a keyset may still be used."""
        return self._memory.fresh(keyset)

    def is_due(self, keyset: Keyset) -> bool:
        """Say whether it is time for `renewed` in place of a fresh keyset, or for `catch_up`."""
        now = self.clock.monotonic()
        return now >= keyset.refresh_at or now >= self._notices.due_at

    def takes_plaintext(self, context: str) -> bool:
        """Say whether a plaintext may be read now in place of a value of a context; count it, if so."""
        known = self.adoptions.known(context)
        if known is None or not known.falls_back(datetime.fromtimestamp(self.clock.wall(), UTC)):
            return False
        self._telemetry.fell_back(context)
        return True

    def is_behind(self) -> bool:
        """Say whether it is time for `catch_up`."""
        return self.clock.monotonic() >= self._notices.due_at

    # What may ask the key store and the KMS.

    def get(self, tenant: str) -> Keyset:
        """Return a tenant's keyset, from memory while it is fresh.

        Raises:
            TenantNotFoundError, TenantSuspendedError, KeyRecordError, KeyStateError, KeyStoreError, KmsError
        """
        return self.cached(tenant) or self._load_once(tenant)

    def renewed(self, keyset: Keyset) -> Keyset:
        """Return what to go on with in place of a fresh keyset that may be due: another one, or the same.

        One caller fetches another one. The others go on with the same meanwhile, and so does everybody when the KMS or
        the key store cannot be reached; neither makes it live any longer.

        Raises:
            PiiVaultError: something else is wrong, above all: the KMS has refused. The keyset is gone then.
        """
        turn = self.fetching.turn(keyset)
        if isinstance(turn, Keyset):
            return turn
        return self.fetching.renew(keyset, turn) or self._load_once(keyset.tenant)

    def newer(self, keyset: Keyset, version: int) -> Keyset:
        """Return a keyset loaded after this one, because a header named a version that this one does not hold.

        Another process may have rotated a moment ago, so the first look is never too early. What was looked for in vain
        is not looked for again at once, and the same keyset returned.

        Raises:
            KeyStoreBehindError: it may be missing only because the key store's replica was asked.
            KmsUnavailableError: it may be missing only because nobody could be asked.
        """
        tenant, newer, began = keyset.tenant, keyset, self.clock.monotonic()
        with self._memory.lock:
            behind = self._unknown.answer(tenant, version)
        if behind is None:
            newer = self._load_once(tenant, version)
            if version in newer.versions:
                return newer
            if newer.asked_at < began:  # in an outage, what was there before
                raise KmsUnavailableError(
                    f"data key version {version} of tenant {tenant!r} is newer than what is in memory, and nobody can "
                    "be asked for it now",
                    hint="the KMS or the key store cannot be reached; try again",
                )
            behind = version > max(newer.versions, default=0) and self._store.is_replica()
            with self._memory.lock:
                self._unknown.add(tenant, version, behind)
        if behind:
            raise behind_primary(tenant, version)
        return newer

    def for_reencryption(self, tenant: str) -> Keyset:
        """Fetch a keyset that opens with compromised keys too; nobody else gets it, and evictions reach it.

        Raises:
            TenantNotFoundError, TenantSuspendedError, KeyRecordError, KeyStoreError, KmsError
        """
        return self.fetching.load(tenant, OPENING_FOR_REENCRYPTION)

    def unwrap_kek(self, tenant: TenantRecord, record: KekRecord) -> Kek:
        """Unwrap a KEK by a live call to the customer's KMS, and check its commitment."""
        return self._loader.unwrap_kek(tenant, record)

    def _load_once(self, tenant: str, version: int | None = None) -> Keyset:
        """Load a tenant's keyset, or wait for the one who does; with a version, one that holds it if there is one."""
        fetching, joined = self.fetching, 0
        while True:
            if fetching.asks_always(tenant):
                keyset: Keyset | None = fetching.load(tenant)
                joined = 0
            else:
                boarded = fetching.board(tenant, version)
                if isinstance(boarded, Keyset):
                    return boarded
                flight, mine = boarded
                keyset = fetching.lead(tenant, flight) if mine else flight.wait()
                joined += not mine
            if keyset is not None and fetching.serves(keyset, version, joined):
                return keyset

    def terms_of(self, tenant: TenantRecord) -> Terms:
        """Return for how long a tenant's keysets are used here: by its own terms, or by the vault's.

        Raises:
            KeyRecordError: its own cannot be kept.
        """
        return self._loader.terms_of(tenant)

    def longest_use(self, tenant: TenantRecord) -> float:
        """Return for how many seconds a process may use a tenant's keyset after it has fetched it."""
        return self._loader.longest_use(tenant)

    # What makes keysets go.

    def saw(self, keyset: Keyset, version: int) -> None:
        """Remember that a value of this version was opened: it was active once, so no older one may be again.

        Key records can be rolled back by whoever can write them. The values that were sealed meanwhile tell.
        """
        if version > keyset.active:
            self._loader.saw(keyset.identity.tenant_uid, version)

    def catch_up(self) -> None:
        """Forget what other processes want to be forgotten, if it is time to look; the key store is asked for it."""
        tenants = self._notices.read()
        if tenants is None:
            _log.warning("the key store was restored from a backup: all tenants' keys are fetched anew")
            with self._memory.lock:
                self.fetching.cancel_all()
                self._memory.evict_all(Reason.RESTORED)
        elif tenants:
            self._evict(tenants, Reason.ELSEWHERE)

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keysets in this process, those of open scopes too: the next use asks the KMS."""
        self._evict([tenant], Reason.ASKED)

    def evict_everywhere(self, tenant: str) -> None:
        """Forget them in this process now, and in every other one when it looks: within `NOTICE_SECONDS` of use.

        Raises:
            TenantNotFoundError: nobody has this name.
            KeyStoreError: the key store cannot be written, so other processes do not notice.
        """
        self.evict(tenant)
        self._notices.heard(self._store.evict(tenant))

    def _evict(self, tenants: list[str], reason: Reason) -> None:
        with self._memory.lock:
            for tenant in tenants:
                self.fetching.cancel(tenant)
            self._memory.evict(tenants, reason)

    # What stands in sealed values, and is searched.

    def declare(self, keyset: Keyset, context: str, slots: Sequence[Slot | None]) -> bool:
        """Write down what values of a column hold in their slots, before the first of them is sealed with a keyset.

        Where it cannot be written just now, the next statement tries again: a SQLite file may be locked by the very
        transaction that is about to seal.

        Returns:
            Whether it stands there.

        Raises:
            BlindIndexError: they may not be sealed so; nothing is written down then.
            KeyStoreError: it cannot be written down.
        """
        keyset.check_slots(context, slots)
        unknown = [
            number
            for number, slot in enumerate(slots)
            if (known := keyset.slots.get((context, number))) is None
            or (slot is None and known.ready_at is None and not known.holds(None))
        ]
        if unknown:
            try:
                found = self._store.declare_slots(keyset.tenant, context, [contents(slot) for slot in slots])
            except KeyStoreBusyError:
                return False
            keyset.slots.update({(context, each.number): each for each in found})
        return True

    def found_ready(self, keyset: Keyset, slot: SlotRecord) -> None:
        """Write down that all values of a column have their token in a slot, if the key store can be written now.

        All processes hear of it: whoever would write values without that token no longer may.
        """
        try:
            self._notices.heard(self._store.set_ready(keyset.tenant, slot))
        except KeyStoreError:
            return  # who looks next looks for himself
        keyset.now_ready(slot)

    def found_missing(self, keyset: Keyset, slot: SlotRecord) -> None:
        """Take back that all values have it."""
        keyset.slots[slot.context, slot.number] = replace(slot, ready_at=None, settled=False)
        self._store.unset_ready(keyset.tenant, slot.context, slot.number)

    # Uses of data keys.

    def provide(self, keyset: Keyset, need: int = 0) -> None:
        """Make sure that `need` more values may be sealed with a keyset; the key store is asked where that is due.

        Raises:
            KeyStateError: the tenant has no active key.
            KeyLimitError: they may not.
        """
        if not keyset.active:
            if need:
                raise no_active_key(keyset.tenant)
            return
        self._metering.provide(keyset.tenant, keyset.identity, keyset.allowance, need)

    def next_iv(self, keyset: Keyset) -> bytes:
        """Count one value as sealed and return its IV, asking the key store for more uses if none is left.

        Raises:
            KeyStateError: the tenant has no active key.
            KeyLimitError: no more may be sealed.
        """
        while (iv := next(keyset.allowance.ivs, None)) is None:
            self.provide(keyset, 1)
        return iv

    def settle(self) -> None:
        """Let the key store count what was sealed without having been counted, if it can be written now."""
        self._metering.settle()

    def _begin(self) -> None:
        self.crew = Crew()
        self._unknown = Unknown(self._size, self.clock.monotonic)

    def _reset(self) -> None:
        """Drop locks, keysets and allowances: a forked child has neither threads of its parent nor what that spends."""
        self._memory.reset()
        self._loader.reset()
        self._notices.reset()
        self._metering.reset()
        self._memory.count_anew(self._metering)
        self.fetching.reset()
        self._begin()


_keyrings: Final[WeakSet[Keyring]] = WeakSet()


def _after_fork() -> None:
    for keyring in list(_keyrings):
        keyring._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
