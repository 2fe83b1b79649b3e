"""The keyring: tenant name to keyset, cached for a bounded time.

The promise: no keyset is handed out later than its time to live and grace after the moment at which the last
successful `Decrypt` was *sent* to the customer's KMS, on the monotonic or the wall clock, whichever says so first. The
grace is for outages: as soon as the KMS has refused, or anything else than an outage is wrong, the keyset is gone.

A miss asks the key store and the KMS once, however many threads wait for it, and what the KMS has failed with is its
answer for a moment more. Ahead of a keyset's end one caller fetches the next one while the others go on. Without a time
to live every scope asks for itself.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

from cachetools import TLRUCache, TTLCache

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
from .flight import Flight
from .loading import Loader
from .terms import (
    AGAIN_SECONDS,
    AT_ONCE,
    RECHECK_SECONDS,
    UNKNOWN_SECONDS,
    UNKNOWN_VERSIONS,
    WAIT_SECONDS,
    Clock,
    Terms,
)

_REFUSALS: Final = (KmsDeniedError, TenantSuspendedError, TenantNotFoundError)
_OUTAGES: Final = (KmsUnavailableError, KmsCredentialsError, KeyStoreError)
"""What a grace is for: nobody has said anything about the tenant's keys."""

_log: Final = logging.getLogger(__name__)


class Keyring:
    """The process-wide cache of keysets.

    Args:
        store: Where the wrapped keys are.
        kms: Who can unwrap a KEK.
        terms: How long a keyset is used.
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
        self._terms: Final = terms or Terms()
        self._size: Final = size
        self.clock: Final = clock or Clock()
        self._live: WeakSet[Keyset] = WeakSet()
        self._metering: Final = Metering(store, self.clock.monotonic)
        self._loader: Final = Loader(store, kms, self._metering, self.clock, self._terms)
        self._reset()
        _forked_with(self)

    def get(self, tenant: str) -> Keyset:
        """Return a tenant's keyset, from memory while it is fresh.

        Raises:
            TenantNotFoundError, TenantSuspendedError, KeyRecordError, KeyStateError, KeyStoreError, KmsError
        """
        return self.cached(tenant) or self._load_once(tenant)

    def cached(self, tenant: str) -> Keyset | None:
        """Return a tenant's keyset if it is in memory and fresh; never I/O."""
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
        """Say whether it is time to fetch another keyset in place of a fresh one; then call `renewed`."""
        return self.clock.monotonic() >= keyset.refresh_at

    def renewed(self, keyset: Keyset) -> Keyset:
        """Return what to go on with in place of a fresh keyset that is due: another one, or the same.

        One caller fetches another one. The others go on with the same meanwhile, and so does everybody when the KMS or
        the key store cannot be reached; neither makes it live any longer.

        Raises:
            PiiVaultError: something else is wrong, above all: the KMS has refused. The keyset is gone then.
        """
        tenant = keyset.tenant
        with self._lock:
            newest = self._cache.get(tenant)
            if newest is not None and newest.deadline > keyset.deadline and self.fresh(newest):
                return newest
            now = self.clock.monotonic()
            if now < keyset.refresh_at:
                return keyset
            keyset.refresh_at = now + AGAIN_SECONDS
            if tenant in self._flights:
                return keyset
            mine = self._flights[tenant] = Flight(tenant)
        try:
            another = self._lead(tenant, mine, patience=0.0)
        except _OUTAGES as error:
            if not self.fresh(keyset):
                raise
            self._go_on(keyset, error)
            return keyset
        except PiiVaultError:
            with self._lock:
                self._forget(tenant)
            raise
        return another if self.fresh(another) else self._load_once(tenant)

    def newer(self, keyset: Keyset, version: int) -> Keyset:
        """Return a keyset loaded after this one, because a header named a version that this one does not hold.

        Another process may have rotated a moment ago, so the first look is never too early. What was looked for in vain
        is not looked for again at once, and the same keyset returned: forged versions must not become a storm of calls.
        """
        with self._lock:
            unknown = self._unknown.setdefault(
                keyset.tenant, TTLCache(UNKNOWN_VERSIONS, UNKNOWN_SECONDS, timer=self.clock.monotonic)
            )
            unknown.expire()
            if version in unknown or len(unknown) == UNKNOWN_VERSIONS:
                return keyset
        newer = self._load_once(keyset.tenant, version)
        if version not in newer.versions:
            with self._lock:
                unknown[version] = True
        return newer

    def saw(self, keyset: Keyset, version: int) -> None:
        """Remember that a value of this version was opened: it was active once, so no older one may be again.

        Key records can be rolled back by whoever can write them. The values that were sealed meanwhile tell.
        """
        if version > keyset.active:
            self._loader.saw(keyset.identity.tenant_uid, version)

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keysets in this process, those of open scopes too: the next use asks the KMS."""
        with self._lock:
            # What is being loaded may have been asked for before whatever made the caller say this.
            self._flights.pop(tenant, None)
            self._failures.pop(tenant, None)
            self._forget(tenant)

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

    def _forget(self, tenant: str) -> None:
        """Make a tenant's keysets useless; the lock is held."""
        self._cache.pop(tenant, None)
        for keyset in list(self._live):
            if keyset.tenant == tenant:
                keyset.expire()

    def _load_once(self, tenant: str, version: int | None = None) -> Keyset:
        """Load a tenant's keyset, or wait for the one who does; with a version, one that holds it if there is one."""
        if not self._terms.ttl:
            return self._load(tenant)
        joined = 0
        while True:
            with self._lock:
                keyset = self._cache.get(tenant)
                if keyset is not None and self.fresh(keyset) and (version is None or version in keyset.versions):
                    return keyset
                failure = self._failures.get(tenant)
                if failure is not None:
                    raise copy.copy(failure)
                mine = Flight(tenant)
                flight = self._flights.setdefault(tenant, mine)
            if flight is mine:
                keyset = self._lead(tenant, mine, WAIT_SECONDS)
                if self.fresh(keyset):
                    return keyset
                continue
            keyset = flight.wait()
            joined += 1
            # The first one that was joined may have read the key store before the version was there.
            if (
                keyset is not None
                and self.fresh(keyset)
                and (version is None or version in keyset.versions or joined > 1)
            ):
                return keyset

    def _lead(self, tenant: str, flight: Flight, patience: float) -> Keyset:
        """Load a keyset for all who wait. It has expired already if the tenant was evicted meanwhile: ask again."""
        try:
            with self._place(tenant, patience):
                flight.keyset = keyset = self._load(tenant)
        except PiiVaultError as error:
            flight.error = copy.copy(error)  # a copy holds no frames
            raise
        finally:
            with self._lock:
                self._landed(tenant, flight)
            flight.land()
        return keyset

    def _landed(self, tenant: str, flight: Flight) -> None:
        """Keep what came of a load, unless the tenant was evicted meanwhile; the lock is held."""
        valid = self._flights.get(tenant) is flight
        if valid:
            del self._flights[tenant]
            if isinstance(flight.error, KmsError) and flight.error.code:  # what the KMS said, not what we did not ask
                self._failures[tenant] = flight.error
        if flight.keyset is not None:
            if valid:
                self._cache[tenant] = flight.keyset
            else:
                flight.keyset.expire()

    def _load(self, tenant: str) -> Keyset:
        try:
            keyset = self._loader.load(tenant)
        except _REFUSALS:
            with self._lock:
                self._forget(tenant)
            raise
        with self._lock:
            self._live.add(keyset)
        return keyset

    @contextmanager
    def _place(self, tenant: str, patience: float) -> Iterator[None]:
        """Take one of the places for those who fetch keysets, so that few tenants cannot take all threads."""
        places = self._places
        if not places.acquire(timeout=patience):
            raise KmsUnavailableError(
                f"the keys of tenant {tenant!r} were not fetched: {AT_ONCE} others are being fetched already",
                hint="the KMS or the key store is slow; try again",
            )
        try:
            yield
        finally:
            places.release()

    def _go_on(self, keyset: Keyset, error: PiiVaultError) -> None:
        """Say once that a keyset is used because nobody could be asked."""
        if not keyset.overdue:
            keyset.overdue = True
            left = keyset.deadline - self.clock.monotonic()
            _log.warning("the keys of tenant %r are used for %.0f s more at most: %s", keyset.tenant, left, error)

    def _reset(self) -> None:
        """Drop locks, keysets and allowances: a forked child has neither threads of its parent nor what that spends."""
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._loader.reset()
        self._live = WeakSet(list(self._live))
        self._metering.reset()
        for keyset in self._live:
            keyset.count_with(self._metering.allowance(keyset.identity, keyset.active))
        self._flights: dict[str, Flight] = {}
        terms = self._terms
        self._failures: TLRUCache[str, KmsError] = TLRUCache(
            self._size,
            ttu=lambda _tenant, error, now: now + terms.remembered(refused=isinstance(error, KmsDeniedError)),
            timer=self.clock.monotonic,
        )
        self._unknown: dict[str, TTLCache[int, bool]] = {}
        self._cache: TLRUCache[str, Keyset] = TLRUCache(
            self._size, ttu=lambda _tenant, keyset, _now: keyset.deadline, timer=self.clock.monotonic
        )


_keyrings: WeakSet[Keyring] = WeakSet()


def _forked_with(keyring: Keyring) -> None:
    _keyrings.add(keyring)


def _after_fork() -> None:
    for keyring in list(_keyrings):
        keyring._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
