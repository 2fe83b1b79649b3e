"""One load of a tenant's keyset that is under way, for all who wait for it."""

from __future__ import annotations

import copy
import threading
from typing import Final

from ..errors import KmsUnavailableError, PiiVaultError
from ..sealing import Keyset
from .terms import WAIT_SECONDS


class Flight:
    """A load that one caller makes and others wait for.

    Attributes:
        keyset: What came of it, or None.
        error: Why nothing did. Those who wait share it, lest each waits for a timeout of its own.
    """

    def __init__(self, tenant: str) -> None:
        self._tenant: Final = tenant
        self._done: Final = threading.Event()
        self.keyset: Keyset | None = None
        self.error: PiiVaultError | None = None

    def land(self) -> None:
        """Let those who wait go on."""
        self._done.set()

    def wait(self) -> Keyset | None:
        """Wait for the load; return its keyset, or None when whoever made it died of something else.

        Raises:
            KmsUnavailableError: it takes too long.
            PiiVaultError: it failed.
        """
        if not self._done.wait(WAIT_SECONDS):
            raise KmsUnavailableError(
                f"the keys of tenant {self._tenant!r} are still being fetched after {WAIT_SECONDS:g} s",
                hint="the KMS or the key store is slow; try again",
            )
        if self.error is not None:
            raise copy.copy(self.error)
        return self.keyset
