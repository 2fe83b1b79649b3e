"""One load of a tenant's keyset that is under way, for all who wait for it: threads and coroutines."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import Future
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
        self._done: Final[Future[None]] = Future()
        # A coroutine that is cancelled while it waits would cancel a future that has not begun, and with it the others.
        self._done.set_running_or_notify_cancel()
        self.keyset: Keyset | None = None
        self.error: Exception | None = None

    def land(self) -> None:
        """Let those who wait go on."""
        self._done.set_result(None)

    def wait(self) -> Keyset | None:
        """Wait for the load; return its keyset, or None when whoever made it was interrupted.

        Raises:
            KmsUnavailableError: it takes too long.
            PiiVaultError: it failed.
        """
        try:
            self._done.result(WAIT_SECONDS)
        except TimeoutError:
            raise self._late() from None
        return self._outcome()

    async def waited(self) -> Keyset | None:
        """Wait as `wait` does, without a thread."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._done), WAIT_SECONDS)
        except TimeoutError:
            raise self._late() from None
        return self._outcome()

    def _outcome(self) -> Keyset | None:
        if isinstance(self.error, PiiVaultError):
            raise copy.copy(self.error)
        if self.error is not None:
            raise self.error
        return self.keyset

    def _late(self) -> KmsUnavailableError:
        return KmsUnavailableError(
            f"the keys of tenant {self._tenant!r} are still being fetched after {WAIT_SECONDS:g} s",
            hint="the KMS or the key store is slow; try again",
        )
