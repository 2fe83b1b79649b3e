"""What other processes ask this one to forget: read from the key store now and then, with one small query.

The key store numbers evictions, and commits them in that order. So whoever knows the last number that it has seen
misses none; and a number that has gone backwards means a key store that was restored, after which nothing in memory is
to be trusted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from ..errors import KeyStoreError
from ..keystore import KeyStore
from .terms import NOTICE_SECONDS

_PART: Final = 0.2
"""How much of its time a process may spend on a key store that does not answer this question."""

_log: Final = logging.getLogger(__name__)


class Notices:
    """The evictions that this process has not heard of yet.

    Args:
        store: Where they are numbered.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, store: KeyStore, monotonic: Callable[[], float]) -> None:
        self._store: Final = store
        self._monotonic: Final = monotonic
        self._seen: int | None = None
        self._failures = 0
        self.due_at = 0.0
        self.reset()

    def reset(self) -> None:
        """Take another lock, and ask again soon: a forked child was not told what its parent was."""
        self._lock = threading.Lock()
        self.due_at = float("-inf")

    def begin(self) -> None:
        """Find out where the numbers stand, before the first keyset is fetched.

        Raises:
            KeyStoreError: the key store cannot be read.
        """
        if self._seen is None:
            seen, _ = self._store.evicted(None)
            with self._lock:
                self._seen = seen if self._seen is None else self._seen
                self.due_at = self._monotonic() + NOTICE_SECONDS

    def heard(self, number: int) -> None:
        """Remember the number of an eviction that this process has made itself."""
        with self._lock:
            if self._seen == number - 1:
                self._seen = number

    def read(self) -> list[str] | None:
        """Return the tenants to forget; None for all of them. One caller asks, for the others it is not due then.

        A key store that cannot be asked is sat out: the keysets in memory have their own end.
        """
        with self._lock:
            begun = self._monotonic()
            seen = self._seen
            if seen is None or begun < self.due_at:
                return []
            self.due_at = begun + NOTICE_SECONDS
        try:
            number, tenants = self._store.evicted(seen)
        except KeyStoreError as error:
            self._could_not(error, begun)
            return []
        with self._lock:
            self._failures = 0
            if number < seen:
                self._seen = number
                return None
            self._seen = max(number, self._seen or 0)
        return tenants

    def _could_not(self, error: KeyStoreError, begun: float) -> None:
        now = self._monotonic()
        with self._lock:
            self._failures += 1
            again = self._failures == 2  # a SQLite file that somebody else writes to can be read the next time
            self.due_at = max(self.due_at, now + (now - begun) / _PART)
        if again:
            _log.warning("whether tenants' keys are to be forgotten cannot be asked for now: %s", error)
