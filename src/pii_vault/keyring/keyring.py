"""The keyring: tenant name to keyset, cached for a bounded time.

The promise: no keyset is handed out later than its time to live and grace after the moment at which the last
successful `Decrypt` was *sent* to the customer's KMS, on the monotonic or the wall clock, whichever says so first. The
grace is for outages: as soon as the KMS has refused, or anything else than an outage is wrong, the keyset is gone.

A miss asks the key store and the KMS once, however many threads and coroutines wait for it, and what the KMS has failed
with is its answer for a moment more. Ahead of a keyset's end one caller fetches the next one while the others go on.
Without a time to live every scope asks for itself. Coroutines do the same without a thread each: `coroutines`.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Collection
from typing import Final
from weakref import WeakSet

from cachetools import LRUCache, TLRUCache, TTLCache

from ..errors import (
    ConfigurationError,
    KeyStoreError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
    PiiVaultError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from ..hierarchy import Kek
from ..keys import KekRecord, TenantRecord
from ..keystore import KeyStore
from ..kms import KmsProvider
from ..metering import Metering
from ..sealing import Keyset, no_active_key
from .crew import Crew
from .failures import Failures
from .flight import Flight
from .loading import Loader
from .notices import Notices
from .places import Places
from .terms import AGAIN_SECONDS, RECHECK_SECONDS, UNKNOWN_SECONDS, UNKNOWN_VERSIONS, WAIT_SECONDS, Clock, Terms

_REFUSALS: Final = (KmsDeniedError, TenantSuspendedError, TenantNotFoundError)
_OUTAGES: Final = (KmsUnavailableError, KmsCredentialsError, KeyStoreError)
"""What a grace is for: nobody has said anything about the tenant's keys."""

_log: Final = logging.getLogger(__name__)


class Keyring:
    """The process-wide cache of keysets.

    Args:
        store: Where the wrapped keys are.
        kms: Who can unwrap a KEK.
        terms: How long keysets are used of tenants that have no terms of their own.
        size: How many tenants' keysets are kept; the least recently used one goes first.
        clock: The two clocks.
    """

    def __init__(
        self,
        store: KeyStore,
        kms: KmsProvider,
        *,
        terms: Terms | None = None,
        size: int = 10_000,
        clock: Clock | None = None,
    ) -> None:
        if size < 1:
            raise ConfigurationError("a keyring needs a size of 1 or more")
        self._size: Final = size
        self.clock: Final = clock or Clock()
        self._store: Final = store
        self._live: WeakSet[Keyset] = WeakSet()
        self._metering: Final = Metering(store, self.clock.monotonic)
        self._loader: Final = Loader(store, kms, self._metering, self.clock, terms or Terms(), size)
        self._notices: Final = Notices(store, self.clock.monotonic)
        self._reset()
        _keyrings.add(self)

    # What is in memory. Never I/O.

    def cached(self, tenant: str) -> Keyset | None:
        """Return a tenant's keyset if it is in memory and fresh."""
        with self._lock:
            keyset = self._cache.get(tenant)
        return keyset if keyset is not None and self.fresh(keyset) else None

    def fresh(self, keyset: Keyset) -> bool:
        """Say whether a keyset may still be used: both clocks must agree.

        The answer spares the hot path the wall clock for `RECHECK_SECONDS`.
        """
        now = self.clock.monotonic()
        if now < keyset.deadline and self.clock.wall() < keyset.wall_deadline:
            keyset.checked_until = min(keyset.deadline, now + RECHECK_SECONDS)
            return True
        keyset.checked_until = 0.0
        return False

    def is_due(self, keyset: Keyset) -> bool:
        """Say whether it is time for `renewed` in place of a fresh keyset, or for `catch_up`."""
        now = self.clock.monotonic()
        return now >= keyset.refresh_at or now >= self._notices.due_at

    def is_behind(self) -> bool:
        """Say whether it is time for `catch_up`."""
        return self.clock.monotonic() >= self._notices.due_at

    # Fetching.

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
        turn = self.turn(keyset)
        return turn if isinstance(turn, Keyset) else self.renew(keyset, turn)

    def turn(self, keyset: Keyset) -> Keyset | Flight:
        """Return the keyset to go on with, or the flight with which the caller is to `renew` it. Never I/O."""
        tenant = keyset.tenant
        with self._lock:
            newest = self._cache.get(tenant)
            if newest is not None and newest.deadline > keyset.deadline and self.fresh(newest):
                return newest
            now = self.clock.monotonic()
            if now < keyset.refresh_at or tenant in self._flights:
                return keyset
            keyset.refresh_at = now + AGAIN_SECONDS
            mine = self._flights[tenant] = Flight(tenant)
            return mine

    def renew(self, keyset: Keyset, flight: Flight) -> Keyset:
        """Fetch a keyset in place of one that is due, as `renewed` does, for all who wait for the flight."""
        try:
            another = self.lead(keyset.tenant, flight, patience=0.0)
        except _OUTAGES as error:
            if not self.fresh(keyset):
                raise
            self._go_on(keyset, error)
            return keyset
        except PiiVaultError:
            with self._lock:
                self._forget({keyset.tenant})
            raise
        return another if self.fresh(another) else self._load_once(keyset.tenant)

    def newer(self, keyset: Keyset, version: int) -> Keyset:
        """Return a keyset loaded after this one, because a header named a version that this one does not hold.

        Another process may have rotated a moment ago, so the first look is never too early. What was looked for in vain
        is not looked for again at once, and the same keyset returned: forged versions must not become a storm of calls.
        """
        with self._lock:
            unknown = self._unknown.get(keyset.tenant)
            if unknown is None:
                unknown = TTLCache(UNKNOWN_VERSIONS, UNKNOWN_SECONDS, timer=self.clock.monotonic)
                self._unknown[keyset.tenant] = unknown
            unknown.expire()
            if version in unknown or len(unknown) == UNKNOWN_VERSIONS:
                return keyset
        newer = self._load_once(keyset.tenant, version)
        if version not in newer.versions:
            with self._lock:
                unknown[version] = True
        return newer

    def board(self, tenant: str, version: int | None = None) -> Keyset | tuple[Flight, bool]:
        """Return a tenant's keyset, or the flight that fetches it and whether the caller is to `lead` it. Never I/O.

        Args:
            tenant: The tenant.
            version: What the keyset is to hold, if it is wanted for that.

        Raises:
            KmsError: the KMS has failed a moment ago.
        """
        with self._lock:
            keyset = self._cache.get(tenant)
            if keyset is not None and self.fresh(keyset) and (version is None or version in keyset.versions):
                return keyset
            failure = self._failures.answer(tenant)
            if failure is not None:
                raise failure
            mine = Flight(tenant)
            flight = self._flights.setdefault(tenant, mine)
        return flight, flight is mine

    def lead(self, tenant: str, flight: Flight, patience: float) -> Keyset:
        """Load a keyset for all who wait. It has expired already if the tenant was evicted meanwhile: ask again."""
        try:
            with self._lock:
                in_doubt = self._failures.is_in_doubt(tenant)
            with self._places.one(tenant, patience, in_doubt=in_doubt):
                flight.keyset = keyset = self.load(tenant)
        except Exception as error:
            # A copy holds no frames.
            flight.error = copy.copy(error) if isinstance(error, PiiVaultError) else error
            raise
        finally:
            with self._lock:
                self._landed(tenant, flight)
            flight.land()
        return keyset

    def serves(self, keyset: Keyset, version: int | None, joined: int) -> bool:
        """Say whether a keyset will do that was just loaded.

        Args:
            keyset: The keyset.
            version: What it is to hold, if it is wanted for that.
            joined: Of how many flights of others the caller has waited for; 0 if it has loaded the keyset itself.
        """
        if not self.fresh(keyset):
            return False
        if not joined:
            return True
        if self.asks_always(keyset.tenant):
            return False
        # The first one that was joined may have read the key store before the version was there.
        return version is None or version in keyset.versions or joined > 1

    def give_up(self, tenant: str, flight: Flight, error: Exception) -> None:
        """Let those who wait for a flight know that nobody leads it."""
        flight.error = error
        with self._lock:
            self._landed(tenant, flight)
        flight.land()

    def asks_always(self, tenant: str) -> bool:
        """Say whether every scope of a tenant asks the KMS."""
        return not self._loader.terms(tenant).ttl

    def load(self, tenant: str) -> Keyset:
        """Load a keyset, for one who does not share it. It has expired already if the tenant was evicted meanwhile."""
        with self._lock:
            begun = self._evictions
        self._notices.begin()
        try:
            keyset = self._loader.load(tenant)
        except _REFUSALS:
            with self._lock:
                self._forget({tenant})
            raise
        with self._lock:
            self._live.add(keyset)
            # It may have been asked for before whatever made somebody evict the tenant.
            if max(self._evicted.get(tenant, 0), self._evicted_all) > begun:
                keyset.expire()
        return keyset

    # Forgetting.

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
            self._evict_all()
        elif tenants:
            self._evict(tenants)

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keysets in this process, those of open scopes too: the next use asks the KMS."""
        self._evict((tenant,))

    def evict_everywhere(self, tenant: str) -> None:
        """Forget them in this process now, and in every other one when it looks: within `NOTICE_SECONDS` of use.

        Raises:
            TenantNotFoundError: nobody has this name.
            KeyStoreError: the key store cannot be written, so other processes do not notice.
        """
        self._evict((tenant,))
        self._notices.heard(self._store.evict(tenant))

    def _evict(self, tenants: Collection[str]) -> None:
        with self._lock:
            self._evictions += 1
            for tenant in tenants:
                self._evicted[tenant] = self._evictions
                self._flights.pop(tenant, None)
                self._failures.forget(tenant)
            self._forget(set(tenants))

    def _evict_all(self) -> None:
        with self._lock:
            self._evictions += 1
            self._evicted_all = self._evictions
            self._flights.clear()
            self._forget({keyset.tenant for keyset in self._live})

    def _forget(self, tenants: set[str]) -> None:
        """Make tenants' keysets useless; the lock is held."""
        for tenant in tenants:
            self._cache.pop(tenant, None)
        for keyset in list(self._live):
            if keyset.tenant in tenants:
                keyset.expire()

    # Counting uses, and keys for the lifecycle.

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

    def unwrap_kek(self, tenant: TenantRecord, record: KekRecord) -> Kek:
        """Unwrap a KEK by a live call to the customer's KMS, and check its commitment."""
        return self._loader.unwrap_kek(tenant, record)

    def _load_once(self, tenant: str, version: int | None = None) -> Keyset:
        """Load a tenant's keyset, or wait for the one who does; with a version, one that holds it if there is one."""
        joined = 0
        while True:
            if self.asks_always(tenant):
                keyset: Keyset | None = self.load(tenant)
            else:
                boarded = self.board(tenant, version)
                if isinstance(boarded, Keyset):
                    return boarded
                flight, mine = boarded
                keyset = self.lead(tenant, flight, WAIT_SECONDS) if mine else flight.wait()
                joined += not mine
            if keyset is not None and self.serves(keyset, version, joined):
                return keyset

    def _landed(self, tenant: str, flight: Flight) -> None:
        """Keep what came of a load, unless the tenant was evicted meanwhile; the lock is held."""
        valid = self._flights.get(tenant) is flight
        if valid:
            del self._flights[tenant]
            if isinstance(flight.error, KmsError) and flight.error.code:  # what the KMS said, not what we did not ask
                self._failures.add(tenant, flight.error, self._loader.terms(tenant).ttl)
        if flight.keyset is not None:
            if valid:
                self._failures.forget(tenant)
                if not self.asks_always(tenant):
                    self._cache[tenant] = flight.keyset
            else:
                flight.keyset.expire()

    def _go_on(self, keyset: Keyset, error: PiiVaultError) -> None:
        """Say once that a keyset is used because nobody could be asked, and ask less and less often."""
        now = self.clock.monotonic()
        with self._lock:
            keyset.refresh_at = max(keyset.refresh_at, now + self._failures.pause(keyset.tenant))
        if not keyset.overdue:
            keyset.overdue = True
            left = keyset.deadline - now
            _log.warning("the keys of tenant %r are used for %.0f s more at most: %s", keyset.tenant, left, error)

    def _reset(self) -> None:
        """Drop locks, keysets and allowances: a forked child has neither threads of its parent nor what that spends."""
        self._lock = threading.Lock()
        self._places = Places()
        self.crew = Crew()
        self._loader.reset()
        self._notices.reset()
        self._live = WeakSet(list(self._live))
        self._metering.reset()
        for keyset in self._live:
            keyset.count_with(self._metering.allowance(keyset.identity, keyset.active))
        self._flights: dict[str, Flight] = {}
        self._evictions = 0
        self._evicted_all = 0
        self._evicted: LRUCache[str, int] = LRUCache(self._size)
        self._failures = Failures(self._size, self.clock.monotonic)
        self._unknown: LRUCache[str, TTLCache[int, bool]] = LRUCache(self._size)
        self._cache: TLRUCache[str, Keyset] = TLRUCache(
            self._size, ttu=lambda _tenant, keyset, _now: keyset.deadline, timer=self.clock.monotonic
        )


_keyrings: Final[WeakSet[Keyring]] = WeakSet()


def _after_fork() -> None:
    for keyring in list(_keyrings):
        keyring._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
