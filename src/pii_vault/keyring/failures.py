"""What the KMS has failed with lately, by tenant: answered from memory, so that nobody queues up for a failure.

This is the circuit breaker of each tenant: open for a moment after a failure, and longer after each one that follows.
The caller holds a lock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from ..errors import KmsDeniedError, KmsError
from .terms import FAILED_SECONDS, FAILED_SECONDS_AT_MOST, REFUSED_SECONDS


@dataclass(frozen=True, slots=True)
class _Failure:
    error: KmsError
    pause: float
    until: float


class Failures:
    """The last failure of each tenant's KMS, until it answers.

    Args:
        size: For how many tenants; the least recently used one goes first.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, size: int, monotonic: Callable[[], float]) -> None:
        self._monotonic: Final = monotonic
        self._last: Final[LRUCache[str, _Failure]] = LRUCache(size)

    def add(self, tenant: str, error: KmsError, ttl: float) -> None:
        """Remember a failure, for no longer than the tenant's time to live."""
        before = self._last.get(tenant)
        if isinstance(error, KmsDeniedError):
            pause = REFUSED_SECONDS
        elif before is None or isinstance(before.error, KmsDeniedError):
            pause = FAILED_SECONDS
        else:
            pause = min(2 * before.pause, FAILED_SECONDS_AT_MOST)
        pause = min(pause, ttl)
        self._last[tenant] = _Failure(error, pause, self._monotonic() + pause)

    def forget(self, tenant: str) -> None:
        """Forget a tenant's failure: its KMS has answered, or is to be asked at once."""
        self._last.pop(tenant, None)

    def answer(self, tenant: str) -> KmsError | None:
        """Return the error to answer with instead of asking a tenant's KMS, if it is too early for that."""
        last = self._last.get(tenant)
        return copy.copy(last.error) if last is not None and self._monotonic() < last.until else None

    def is_in_doubt(self, tenant: str) -> bool:
        """Say whether nothing was heard of a tenant's KMS the last time."""
        last = self._last.get(tenant)
        return last is not None and not isinstance(last.error, KmsDeniedError)

    def pause(self, tenant: str) -> float:
        """Return the seconds after which a tenant's KMS is to be asked again; 0 if it has not failed."""
        last = self._last.get(tenant)
        return last.pause if last is not None else 0.0
