"""How often calls that failed may be tried again: a token bucket for each caller that AWS counts by itself.

AWS limits requests for each account and region of the caller, and we call as each customer's role. So a customer whose
KMS is throttled or silent spends its own bucket, and then gets one attempt a call, which is what makes an overload end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

from .aws_clients import ClientKey

AT_ONCE: Final = 10
"""How many calls may be tried again in a row."""

EVERY_SECONDS: Final = 1.0
"""In how many seconds the right to one more comes back."""


class RetryBudget:
    """The buckets of those callers that lately had a reason to try again; all others' are full.

    Args:
        callers: How many are remembered; the one used longest ago goes first.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, callers: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic: Final = monotonic
        self._lock: Final = threading.Lock()
        self._filling_since: Final[LRUCache[ClientKey, float]] = LRUCache(callers)
        """Since when a bucket has been filling up: one number says how much is in it."""

    def take(self, caller: ClientKey) -> bool:
        """Take the right to try a call again, if there is one."""
        now = self._monotonic()
        with self._lock:
            full = now - AT_ONCE * EVERY_SECONDS
            since = max(self._filling_since.get(caller, full), full)
            if now - since < EVERY_SECONDS:
                return False
            self._filling_since[caller] = since + EVERY_SECONDS
        return True
