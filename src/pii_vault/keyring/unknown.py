"""Versions that were looked for in vain: forged headers must not become a storm of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cachetools import LRUCache, TTLCache

from .terms import UNKNOWN_SECONDS, UNKNOWN_VERSIONS


class Unknown:
    """The versions of each tenant that were not there a moment ago. The caller holds a lock.

    Args:
        size: Of how many tenants; the least recently used one goes first.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, size: int, monotonic: Callable[[], float]) -> None:
        self._monotonic: Final = monotonic
        self._versions: Final[LRUCache[str, TTLCache[int, bool]]] = LRUCache(size)

    def add(self, tenant: str, version: int, behind: bool) -> None:
        """Remember that a version is not there, and whether that is only because a replica was asked."""
        self._of(tenant)[version] = behind

    def answer(self, tenant: str, version: int) -> bool | None:
        """Return what was remembered of a version, or None if it is to be looked for.

        It is not looked for when too many others were not there.
        """
        found = self._of(tenant)
        found.expire()
        return found.get(version, False if len(found) == UNKNOWN_VERSIONS else None)

    def _of(self, tenant: str) -> TTLCache[int, bool]:
        found = self._versions.get(tenant)
        if found is None:
            found = self._versions[tenant] = TTLCache(UNKNOWN_VERSIONS, UNKNOWN_SECONDS, timer=self._monotonic)
        return found
