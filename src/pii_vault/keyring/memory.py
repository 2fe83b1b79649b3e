"""The keysets that this process holds, and what makes it let go of them. Asks nobody.

`lock` guards everything here and in `fetching`, which decides together with it; a method says when it has to be held.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Final
from weakref import WeakSet

from cachetools import LRUCache, TLRUCache

from ..metering import Metering
from ..sealing import Keyset
from ..telemetry import Holder, Reason, Telemetry
from .terms import RECHECK_SECONDS, Clock


class Memory(Holder):
    """Keysets by tenant, each until its end.

    Args:
        size: How many are kept; the least recently used one goes first, and whoever still uses it goes on with it.
        clock: The two clocks.
        telemetry: Who is told what is let go of.

    Attributes:
        lock: Held for moments only, never during I/O.
        era: How many evictions there were.
    """

    def __init__(self, size: int, clock: Clock, telemetry: Telemetry) -> None:
        self._size: Final = size
        self._clock: Final = clock
        self._telemetry: Final = telemetry
        self._live: WeakSet[Keyset] = WeakSet()
        self.reset()
        telemetry.watch(self)

    def reset(self) -> None:
        """Start empty, with another lock."""
        self.lock = threading.Lock()
        self.era = 0
        self._all_evicted = 0
        self._evicted: LRUCache[str, int] = LRUCache(self._size)
        self._live = WeakSet(list(self._live))
        self._cache = _Cache(self._size, ttu=lambda _tenant, keyset, _now: keyset.deadline, timer=self._clock.monotonic)
        self._cache.telemetry = self._telemetry

    def count_anew(self, metering: Metering) -> None:
        """Let keysets that are in use count with allowances of this process: after a fork they are the parent's."""
        for keyset in self._live:
            keyset.count_with(metering.allowance(keyset.identity, keyset.active))

    def fresh(self, keyset: Keyset) -> bool:
        """Say whether a keyset may be used before somebody is asked: both clocks must agree.

        The answer spares the hot path the wall clock for `RECHECK_SECONDS`.
        """
        now = self._clock.monotonic()
        if now < keyset.good_until and self._clock.wall() < keyset.wall_good_until:
            keyset.checked_until = min(keyset.good_until, now + RECHECK_SECONDS)
            if now < keyset.good_until:  # it may have been evicted between these lines
                return True
        keyset.checked_until = 0.0
        return False

    def lasts(self, keyset: Keyset) -> bool:
        """Say whether a keyset may be used in an outage: its deadline has not come on either clock."""
        return self._clock.monotonic() < keyset.deadline and self._clock.wall() < keyset.wall_deadline

    def in_outage(self, tenant: str) -> Keyset | None:
        """Return the keyset that may be used for a tenant while nobody can be asked; the lock is held."""
        keyset = self._cache.get(tenant)
        return keyset if keyset is not None and self.lasts(keyset) else None

    def get(self, tenant: str) -> Keyset | None:
        """Return a tenant's keyset if it is here and fresh; the lock is held."""
        keyset = self._cache.get(tenant)
        return keyset if keyset is not None and self.fresh(keyset) else None

    def keep(self, keyset: Keyset) -> None:
        """Keep a keyset for those who ask for its tenant; the lock is held."""
        self._cache[keyset.tenant] = keyset

    def handed_out(self, keyset: Keyset, era: int) -> None:
        """Know of a keyset that was asked for in an era, so that an eviction reaches whoever uses it.

        It has expired already if its tenant was evicted since: it may have been asked for before whatever made somebody
        say so. The lock is held.
        """
        self._live.add(keyset)
        if max(self._evicted.get(keyset.tenant, 0), self._all_evicted) > era:
            keyset.expire()

    def forget(self, tenants: Collection[str], reason: Reason) -> None:
        """Make tenants' keysets useless for everybody who holds them; the lock is held."""
        gone = set(tenants)
        self._telemetry.evicted(reason, sum(self._cache.pop(tenant, None) is not None for tenant in gone))
        for keyset in list(self._live):
            if keyset.tenant in gone:
                keyset.expire()

    def evict(self, tenants: Collection[str], reason: Reason) -> None:
        """Make tenants' keysets useless, those too that are being fetched; the lock is held."""
        self.era += 1
        for tenant in tenants:
            self._evicted[tenant] = self.era
        self.forget(tenants, reason)

    def evict_all(self, reason: Reason) -> None:
        """Make all keysets useless, those too that are being fetched; the lock is held."""
        self.era += 1
        self._all_evicted = self.era
        self.forget({keyset.tenant for keyset in self._live}, reason)

    def held(self) -> tuple[int, float]:
        """Return how many keysets are fresh, and how many seconds ago the oldest one was asked for."""
        now = self._clock.monotonic()
        with self.lock:
            ages = [now - keyset.asked_at for keyset in self._cache.values() if now < keyset.deadline]
        return len(ages), max(ages, default=0.0)


class _Cache(TLRUCache[str, Keyset]):
    telemetry: Telemetry

    def popitem(self) -> tuple[str, Keyset]:
        """Make room."""
        self.telemetry.evicted(Reason.FULL)
        return super().popitem()
