"""Count how often data keys are used, ahead of their use: pieces of 2^32 uses, reserved in the key store.

The promise: all processes together seal no more values with a data key than the key store has counted, and it counts no
more than 2^32. The one exception has a bound and is made up for: while the key store cannot be written (it is down, or
it is SQLite and the application's own transaction is writing), a process may go on for `OVERRUN` uses, which it reports
as soon as it can. Only a process that dies before that leaves them uncounted. A key that is due because it was used too
often allows no such exception.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from .allowance import LARGEST, Allowance
from .context import Identity
from .errors import KeyLimitError, KeyStoreError
from .keys import USE_LIMIT, USE_ROTATE, USE_WARN
from .keystore import KeyStore

OVERRUN: Final = LARGEST
"""How many uses a process may owe."""

AGAIN_SECONDS: Final = 1.0
"""How long a process that has enough for now waits before it asks a key store again that could not be written."""

_log: Final = logging.getLogger(__name__)


class Metering:
    """What this process may still do with the data keys of all tenants.

    Args:
        store: Where uses are counted.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, store: KeyStore, monotonic: Callable[[], float]) -> None:
        self._store: Final = store
        self._monotonic: Final = monotonic
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Forget every allowance: a forked child must not spend what its parent spends too."""
        self._lock = threading.Lock()
        self._allowances: dict[tuple[bytes, int], Allowance] = {}
        self._warned: set[tuple[bytes, int]] = set()

    def allowance(self, identity: Identity, version: int, counted: int = 0) -> Allowance:
        """Return this process's allowance of a data key: one, however often the key is loaded.

        Args:
            identity: Whose key it is.
            version: Which one.
            counted: How often it was used, as its record says.
        """
        with self._lock:
            found = self._allowances.setdefault((identity.tenant_uid, version), Allowance(version))
        found.counted = max(found.counted, counted)
        return found

    def provide(self, tenant: str, identity: Identity, allowance: Allowance, need: int) -> None:
        """Make sure that `need` more values may be sealed; with 0 only ask for more where that is due.

        Raises:
            KeyLimitError: they may not: the key was used too often, or its use cannot be counted now.
        """
        if allowance.enough(need):
            return
        with allowance.lock:
            if allowance.enough(need):
                return
            spare = allowance.left >= need
            if spare and self._monotonic() < allowance.tried_until:
                return
            try:
                self._reserve(tenant, identity, allowance, need)
                return
            except (KeyLimitError, KeyStoreError) as error:
                allowance.tried_until = self._monotonic() + AGAIN_SECONDS
                if not spare:
                    if isinstance(error, KeyLimitError):
                        raise
                    self._overrun(tenant, allowance, need)

    def settle(self) -> None:
        """Report what is owed, if the key store can be written."""
        with self._lock:
            owing = [(uid, each) for (uid, _), each in self._allowances.items() if each.owed]
        for uid, allowance in owing:
            with allowance.lock:
                try:
                    self._store.reserve(uid, allowance.version, allowance.owed)
                except (KeyLimitError, KeyStoreError):
                    continue
                allowance.owed = 0

    def _reserve(self, tenant: str, identity: Identity, allowance: Allowance, need: int) -> None:
        count = allowance.size(need)
        patient = allowance.counted >= USE_ROTATE  # nothing goes uncounted then
        try:
            total = self._store.reserve(identity.tenant_uid, allowance.version, count + allowance.owed, patient=patient)
        except KeyLimitError:
            if not need:
                raise
            # The last uses of a key are given one by one.
            count = need
            total = self._store.reserve(identity.tenant_uid, allowance.version, count + allowance.owed, patient=patient)
        allowance.owed, allowance.counted = 0, total
        allowance.grant(count)
        key = (identity.tenant_uid, allowance.version)
        if total >= USE_WARN and key not in self._warned:
            self._warned.add(key)
            _log.warning(
                "data key version %d of tenant %r was used %d times of %d; it is to be rotated at %d",
                allowance.version,
                tenant,
                total,
                USE_LIMIT,
                USE_ROTATE,
            )

    def _overrun(self, tenant: str, allowance: Allowance, need: int) -> None:
        count = allowance.size(need)
        if allowance.counted >= USE_ROTATE or allowance.owed + count > OVERRUN:
            raise KeyLimitError(
                f"the use of data key version {allowance.version} of tenant {tenant!r} cannot be counted: "
                f"the key store cannot be written, and {allowance.owed} values were sealed without it",
                hint="let the key store be written; on SQLite, commit, or give the key store a file of its own",
            )
        allowance.grant(count)
        allowance.owed += count


_all: Final[WeakSet[Metering]] = WeakSet()


@atexit.register
def _settle_all() -> None:
    for metering in list(_all):
        metering.settle()
