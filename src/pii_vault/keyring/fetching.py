"""Who fetches a keyset, who waits for it and who goes on meanwhile; and what is done about what the KMS says.

Decisions are made under the memory's lock and ask nobody; what asks says so. Threads (`keyring`) and coroutines
(`coroutines`) make the same decisions here and only wait in different ways.
"""

from __future__ import annotations

import copy
import logging
from typing import Final

from ..errors import (
    KeyStoreError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
    PiiEncryptionDisabledError,
    PiiVaultError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from ..keys import OPENING, KeyState
from ..sealing import Keyset
from ..telemetry import Lookup, Reason, Telemetry
from .failures import Failures
from .flight import Flight
from .loading import Loader
from .memory import Memory
from .notices import Notices
from .places import Places
from .terms import AGAIN_SECONDS, WAIT_SECONDS, Clock

_REFUSALS: Final = (KmsDeniedError, TenantSuspendedError, PiiEncryptionDisabledError, TenantNotFoundError)
_log: Final = logging.getLogger(__name__)


class Fetching:
    """The fetches of keysets that are under way, at most one for each tenant.

    Args:
        memory: Where keysets are kept.
        loader: Who asks the key store and the KMS.
        notices: Who must know where evictions stand before the first keyset is fetched.
        size: Of how many tenants failures are remembered.
        clock: The two clocks.
        telemetry: Who is told.
    """

    def __init__(
        self, memory: Memory, loader: Loader, notices: Notices, size: int, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._memory: Final = memory
        self._loader: Final = loader
        self._notices: Final = notices
        self._size: Final = size
        self._clock: Final = clock
        self._telemetry: Final = telemetry
        self.reset()

    def reset(self) -> None:
        """Forget what is under way: a forked child has none of the threads that do it."""
        self._flights: dict[str, Flight] = {}
        self._failures = Failures(self._size, self._clock.monotonic)
        self._places = Places()

    def asks_always(self, tenant: str) -> bool:
        """Say whether every scope of a tenant asks the KMS."""
        return not self._loader.terms(tenant).ttl

    def board(self, tenant: str, version: int | None = None) -> Keyset | tuple[Flight, bool]:
        """Return a tenant's keyset, or the flight that fetches it and whether the caller is to `lead` it.

        Args:
            tenant: The tenant.
            version: What the keyset is to hold, if it is wanted for that.

        Raises:
            KmsError: the KMS has failed a moment ago.
        """
        with self._memory.lock:
            keyset = self._memory.get(tenant)
            if keyset is not None and (version is None or version in keyset.versions):
                return keyset
            failure = self._failures.answer(tenant)
            mine = Flight(tenant)
            flight = self._flights.setdefault(tenant, mine) if failure is None else mine
        if failure is not None:
            self._telemetry.looked_up(Lookup.REMEMBERED_FAILURE)
            raise failure
        self._telemetry.looked_up(Lookup.FETCH if flight is mine else Lookup.WAIT)
        return flight, flight is mine

    def turn(self, keyset: Keyset) -> Keyset | Flight:
        """Return what to go on with in place of a fresh keyset, or the flight with which to `renew` it."""
        tenant = keyset.tenant
        with self._memory.lock:
            newest = self._memory.get(tenant)
            if newest is not None and newest.deadline > keyset.deadline:
                return newest
            now = self._clock.monotonic()
            if now < keyset.refresh_at or tenant in self._flights:
                return keyset
            keyset.refresh_at = now + AGAIN_SECONDS
            mine = self._flights[tenant] = Flight(tenant)
            return mine

    def serves(self, keyset: Keyset, version: int | None, joined: int) -> bool:
        """Say whether a keyset will do that was just loaded.

        Args:
            keyset: The keyset.
            version: What it is to hold, if it is wanted for that.
            joined: Of how many flights of others the caller has waited for; 0 if it has loaded the keyset itself.
        """
        if not self._memory.fresh(keyset):
            return False
        if not joined:
            return True
        if self.asks_always(keyset.tenant):
            return False
        # The first one that was joined may have read the key store before the version was there.
        return version is None or version in keyset.versions or joined > 1

    def lead(self, tenant: str, flight: Flight, *, instead_of: Keyset | None = None) -> Keyset:
        """Ask for a keyset for all who wait. It has expired already if the tenant was evicted meanwhile: ask again.

        In an outage it is the one that was there before, as long as that lasts.

        Args:
            tenant: The tenant.
            flight: What `board` or `turn` has returned.
            instead_of: A keyset that is fresh and due, if this is done ahead. Then nobody waits for a place.

        Raises:
            PiiVaultError: it is no outage, and what was there before is gone; or nothing is there to go on with.
        """
        try:
            try:
                with self._memory.lock:
                    in_doubt = self._failures.is_in_doubt(tenant)
                ahead = instead_of is not None
                with self._places.one(tenant, 0 if ahead else WAIT_SECONDS, in_doubt=in_doubt):
                    keyset = self._load(tenant, ahead=ahead)
                self._arrived(tenant, flight, keyset)
            except Exception as error:
                before = self._failed(tenant, flight, error, instead_of)
                if before is None:
                    raise
                keyset = before
            flight.keyset = keyset
            return keyset
        finally:
            self._land(tenant, flight)

    def renew(self, keyset: Keyset, flight: Flight) -> Keyset | None:
        """Ask for a keyset in place of one that is due, as `lead` does; None when the tenant was evicted meanwhile."""
        another = self.lead(keyset.tenant, flight, instead_of=keyset)
        return another if self._memory.fresh(another) else None

    def give_up(self, tenant: str, flight: Flight, error: Exception) -> None:
        """Let those who wait for a flight know that nobody leads it."""
        flight.error = error
        self._land(tenant, flight)

    def load(self, tenant: str, opening: frozenset[KeyState] = OPENING) -> Keyset:
        """Ask for a keyset for one who does not share it. It may have expired already, as from `lead`."""
        self._telemetry.looked_up(Lookup.FETCH)
        return self._load(tenant, ahead=False, opening=opening)

    def cancel(self, tenant: str) -> None:
        """Let nobody join what is under way for a tenant, and let its KMS be asked at once; the lock is held."""
        self._flights.pop(tenant, None)
        self._failures.forget(tenant)

    def cancel_all(self) -> None:
        """Let nobody join what is under way; the lock is held."""
        self._flights.clear()

    def _load(self, tenant: str, *, ahead: bool, opening: frozenset[KeyState] = OPENING) -> Keyset:
        with self._memory.lock:
            era = self._memory.era
        self._notices.begin()
        try:
            with self._telemetry.fetching(ahead=ahead):
                keyset = self._loader.load(tenant, opening)
        except _REFUSALS:
            with self._memory.lock:
                self._memory.forget((tenant,), Reason.REFUSED)
            raise
        with self._memory.lock:
            self._memory.handed_out(keyset, era)
        return keyset

    def _land(self, tenant: str, flight: Flight) -> None:
        with self._memory.lock:
            if self._flights.get(tenant) is flight:
                del self._flights[tenant]
        flight.land()

    def _arrived(self, tenant: str, flight: Flight, keyset: Keyset) -> None:
        """Keep a keyset, unless its flight was cancelled."""
        shared = not self.asks_always(tenant)
        with self._memory.lock:
            if self._flights.get(tenant) is flight:
                self._failures.forget(tenant)
                if shared:
                    self._memory.keep(keyset)

    def _failed(self, tenant: str, flight: Flight, error: Exception, instead_of: Keyset | None) -> Keyset | None:
        """Remember why a flight brought nothing; return what to go on with nevertheless, if there is something."""
        ttl = self._loader.terms(tenant).ttl
        with self._memory.lock:
            # What the KMS said, not what we did not ask.
            if self._flights.get(tenant) is flight and isinstance(error, KmsError) and error.code:
                self._failures.add(tenant, error, ttl)
            before = None
            if _is_outage(error):
                here = instead_of is not None and self._memory.lasts(instead_of)
                before = instead_of if here else self._memory.in_outage(tenant)
            elif isinstance(error, PiiVaultError):
                self._memory.forget((tenant,), Reason.INVALID)
        if before is not None:
            self._go_on(before, error)
        else:
            # A copy holds no frames.
            flight.error = copy.copy(error) if isinstance(error, PiiVaultError) else error
        return before

    def _go_on(self, keyset: Keyset, error: Exception) -> None:
        """Let a keyset be used because nobody could be asked, say so once, and ask less and less often."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        with self._memory.lock:
            pause = self._failures.pause(keyset.tenant)
            keyset.refresh_at = max(keyset.refresh_at, now + pause)
            # Long enough for others to go on while one of them asks again.
            keyset.extend(pause + WAIT_SECONDS, now, wall)
        if not keyset.overdue:
            keyset.overdue = True
            left = keyset.deadline - now
            self._telemetry.went_on(keyset.identity.tenant_uid.hex(), left)
            _log.warning("the keys of tenant %r are used for %.0f s more at most: %s", keyset.tenant, left, error)


def _is_outage(error: Exception) -> bool:
    """Say whether nobody has said anything about the tenant's keys: what a grace is for."""
    if isinstance(error, KmsUnavailableError):
        return error.is_outage
    return isinstance(error, KmsCredentialsError | KeyStoreError)
