"""The keyring: tenant name to keyset, cached for a bounded time.

The promise: no keyset is handed out later than its time to live after the moment at which the last successful
`Decrypt` was *sent* to the customer's KMS, on the monotonic or the wall clock, whichever says so first. A miss asks the
key store and the KMS once, however many threads wait for it, and a failure is never answered from the cache. Without a
time to live every scope asks for itself.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from cachetools import TLRUCache, TTLCache

from .context import kms_context
from .errors import (
    ConfigurationError,
    KeyRecordError,
    KmsDeniedError,
    KmsUnavailableError,
    PiiVaultError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from .hierarchy import Kek, active_record, ended, unwrap_all
from .keys import KEK_PURPOSE, KekRecord, Purpose, Secret, TenantRecord
from .keystore import KeyStore, Snapshot
from .kms import KmsKey, KmsProvider
from .metering import Metering
from .sealing import NO_VERSION, Keyset, no_active_key

UNCACHED_SECONDS: Final = 60.0
"""With a time to live of 0 every scope asks the KMS, and lasts this long at most."""

UNKNOWN_SECONDS: Final = 5.0
"""How long a version that was not there is believed not to be there."""

UNKNOWN_VERSIONS: Final = 16
"""How many such versions of one tenant are looked for in that time."""

RECHECK_SECONDS: Final = 0.05
"""How often, while values stream, the wall clock is looked at beside the monotonic one.

A process that goes on after its machine was suspended may therefore use its keys for that long, in running time.
"""


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the keyring reads the time: both clocks, in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


def kms_key(tenant: TenantRecord, record: KekRecord) -> KmsKey:
    """Return the address of the KMS key that wraps a KEK, after it was compared with what is expected of the tenant's.

    Raises:
        KeyRecordError: it lies in another account or region: somebody changed the record.
    """
    tenant.policy.check(record.kms_key_arn)
    return KmsKey(record.kms_key_arn, record.role_arn, record.external_id)


class _Flight:
    """One load of a tenant's keyset that is under way, for all who wait for it."""

    def __init__(self) -> None:
        self.done: Final = threading.Event()
        self.keyset: Keyset | None = None
        self.error: PiiVaultError | None = None


class Keyring:
    """The process-wide cache of keysets.

    Args:
        store: Where the wrapped keys are.
        kms: Who can unwrap a KEK.
        ttl: Seconds that a keyset lives; 0 asks the KMS in every scope.
        size: How many tenants' keysets are kept; the least recently used one goes first.
        clock: The two clocks.
    """

    def __init__(
        self, store: KeyStore, kms: KmsProvider, *, ttl: float = 300.0, size: int = 10_000, clock: Clock | None = None
    ) -> None:
        if ttl < 0 or size < 1:
            raise ConfigurationError("a keyring needs a ttl of 0 seconds or more and a size of 1 or more")
        self._store: Final = store
        self._kms: Final = kms
        self._ttl: Final = ttl
        self._size: Final = size
        self.clock: Final = clock or Clock()
        self._highest: Final[dict[bytes, int]] = {}
        self._live: WeakSet[Keyset] = WeakSet()
        self._metering: Final = Metering(store, self.clock.monotonic)
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
            uid = keyset.identity.tenant_uid
            with self._lock:
                self._highest[uid] = max(version, self._highest.get(uid, 0))

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keysets in this process, those of open scopes too: the next use asks the KMS."""
        with self._lock:
            self._cache.pop(tenant, None)
            # What is being loaded may have been asked for before whatever made the caller say this.
            self._flights.pop(tenant, None)
            for keyset in list(self._live):
                if keyset.tenant == tenant:
                    keyset.expire()

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
        key = kms_key(tenant, record)
        self._kms.validate_key(key)
        context = kms_context(tenant.identity, KEK_PURPOSE, record.generation)
        kek = Kek(tenant.identity, record.generation, Secret(self._kms.unwrap(key, record.wrapped, context)))
        kek.check_commitment(record.commitment)
        return kek

    @property
    def _lifetime(self) -> float:
        return self._ttl or UNCACHED_SECONDS

    def _load_once(self, tenant: str, version: int | None = None) -> Keyset:
        """Load a tenant's keyset, or wait for the one who does; with a version, one that holds it if there is one."""
        if not self._ttl:
            return self._load(tenant)
        joined = 0
        while True:
            with self._lock:
                keyset = self._cache.get(tenant)
                if keyset is not None and self.fresh(keyset) and (version is None or version in keyset.versions):
                    return keyset
                mine = _Flight()
                flight = self._flights.setdefault(tenant, mine)
            if flight is mine:
                return self._lead(tenant, mine)
            flight.done.wait()
            joined += 1
            if flight.error is not None:
                raise copy.copy(flight.error)
            keyset = flight.keyset
            # The first one that was joined may have read the key store before the version was there.
            if keyset is not None and (version is None or version in keyset.versions or joined > 1):
                return keyset

    def _lead(self, tenant: str, flight: _Flight) -> Keyset:
        try:
            flight.keyset = keyset = self._load(tenant)
        except PiiVaultError as error:
            # Those who wait share it, lest each waits for a timeout of its own; a copy holds no frames.
            flight.error = copy.copy(error)
            raise
        finally:
            with self._lock:
                if self._flights.get(tenant) is flight:
                    del self._flights[tenant]
                    if flight.keyset is not None:
                        self._cache[tenant] = flight.keyset
            flight.done.set()
        return keyset

    def _load(self, tenant: str) -> Keyset:
        # The clocks are read before the KMS is asked: the bound counts from sending the request.
        sent, sent_wall = self.clock.monotonic(), self.clock.wall()
        try:
            keyset = self._unwrap(self._store.load(tenant), sent, sent_wall)
        except (KmsDeniedError, TenantSuspendedError, TenantNotFoundError):
            self.evict(tenant)
            raise
        if not self.fresh(keyset):
            raise KmsUnavailableError(
                f"the keys of tenant {tenant!r} took longer than the {self._lifetime:g} s for which they may be used",
                hint="try again; if it stays so, give the vault a longer ttl",
            )
        with self._lock:
            self._live.add(keyset)
        return keyset

    def _unwrap(self, snapshot: Snapshot, sent: float, sent_wall: float) -> Keyset:
        tenant = snapshot.tenant
        if tenant.suspended:
            raise TenantSuspendedError(f"tenant {tenant.name!r} is suspended", hint="resume it first")
        kek = self.unwrap_kek(tenant, snapshot.kek)
        record = active_record(kek, snapshot.keys, Purpose.DATA)
        # Without an active key there is nothing to seal with; what was sealed before opens as ever.
        active = record.version if record is not None else NO_VERSION
        if record is not None:
            self._never_backwards(tenant, active)
        return Keyset(
            tenant.name,
            tenant.identity,
            active,
            unwrap_all(kek, snapshot.keys, Purpose.DATA),
            ended=ended(snapshot.keys, Purpose.DATA),
            deadline=sent + self._lifetime,
            wall_deadline=sent_wall + self._lifetime,
            allowance=self._metering.allowance(tenant.identity, active, record.reserved if record is not None else 0),
        )

    def _never_backwards(self, tenant: TenantRecord, version: int) -> None:
        uid = tenant.identity.tenant_uid
        with self._lock:
            highest = self._highest.get(uid, 0)
            if version < highest:
                raise KeyRecordError(
                    f"tenant {tenant.name!r} had data key version {highest} active, and now has {version}",
                    hint="the key store was rolled back; restore it, then restart",
                )
            self._highest[uid] = version

    def _reset(self) -> None:
        """Drop locks, keysets and allowances: a forked child has neither threads of its parent nor what that spends."""
        self._lock = threading.Lock()
        self._live = WeakSet(list(self._live))
        self._metering.reset()
        for keyset in self._live:
            keyset.count_with(self._metering.allowance(keyset.identity, keyset.active))
        self._flights: dict[str, _Flight] = {}
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
