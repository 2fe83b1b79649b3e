"""Places for those who fetch keysets, so that a few customers' KMS cannot hold up all threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..errors import KmsUnavailableError
from .terms import AT_ONCE, IN_DOUBT_AT_ONCE


class Places:
    """`AT_ONCE` places, of which those whose KMS did not answer the last time get `IN_DOUBT_AT_ONCE` at most."""

    def __init__(self) -> None:
        self._all: Final = threading.BoundedSemaphore(AT_ONCE)
        self._in_doubt: Final = threading.BoundedSemaphore(IN_DOUBT_AT_ONCE)

    @contextmanager
    def one(self, tenant: str, patience: float, *, in_doubt: bool) -> Iterator[None]:
        """Take a place for the length of a block.

        Args:
            tenant: For whom.
            patience: How many seconds to wait for it. Whoever is in doubt does not wait.
            in_doubt: Whether the tenant's KMS did not answer the last time.

        Raises:
            KmsUnavailableError: none is free.
        """
        if not in_doubt:
            with self._taken(self._all, tenant, patience, AT_ONCE):
                yield
            return
        with self._taken(self._in_doubt, tenant, 0, IN_DOUBT_AT_ONCE), self._taken(self._all, tenant, 0, AT_ONCE):
            yield

    @contextmanager
    def _taken(self, places: threading.BoundedSemaphore, tenant: str, patience: float, number: int) -> Iterator[None]:
        if not places.acquire(timeout=patience):
            raise KmsUnavailableError(
                f"the keys of tenant {tenant!r} were not fetched: {number} others are being fetched already",
                hint="the KMS or the key store is slow; try again",
            )
        try:
            yield
        finally:
            places.release()
