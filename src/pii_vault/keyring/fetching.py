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
    PiiVaultError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from ..sealing import Keyset
from ..telemetry import Lookup, Reason, Telemetry
from .failures import Failures
from .flight import Flight
from .loading import Loader
from .memory import Memory
from .notices import Notices
from .places import Places
from .terms import AGAIN_SECONDS, WAIT_SECONDS, Clock

_REFUSALS: Final = (KmsDeniedError, TenantSuspendedError, TenantNotFoundError)
_OUTAGES: Final = (KmsUnavailableError, KmsCredentialsError, KeyStoreError)
"""What a grace is for: nobody has said anything about the tenant's keys."""

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

    def lead(self, tenant: str, flight: Flight, *, ahead: bool = False) -> Keyset:
        """Ask for a keyset for all who wait. It has expired already if the tenant was evicted meanwhile: ask again.

        Args:
            tenant: The tenant.
            flight: What `board` or `turn` has returned.
            ahead: Whether there is a keyset to go on with; then nobody waits for a place.
        """
        try:
            with self._memory.lock:
                in_doubt = self._failures.is_in_doubt(tenant)
            with self._places.one(tenant, 0 if ahead else WAIT_SECONDS, in_doubt=in_doubt):
                flight.keyset = keyset = self._load(tenant, ahead=ahead)
        except Exception as error:
            # A copy holds no frames.
            flight.error = copy.copy(error) if isinstance(error, PiiVaultError) else error
            raise
        finally:
            self._land(tenant, flight)
        return keyset

    def renew(self, keyset: Keyset, flight: Flight) -> Keyset | None:
        """Ask for a keyset in place of one that is due, for all who wait for the flight.

        Returns:
            What to go on with: another one, the same in an outage, or None when the tenant was evicted meanwhile.

        Raises:
            PiiVaultError: it is no outage, or the keyset has come to its end meanwhile.
        """
        try:
            another = self.lead(keyset.tenant, flight, ahead=True)
        except _OUTAGES as error:
            if not self._memory.fresh(keyset):
                raise
            self._go_on(keyset, error)
            return keyset
        except PiiVaultError:
            with self._memory.lock:
                self._memory.forget((keyset.tenant,), Reason.INVALID)
            raise
        return another if self._memory.fresh(another) else None

    def give_up(self, tenant: str, flight: Flight, error: Exception) -> None:
        """Let those who wait for a flight know that nobody leads it."""
        flight.error = error
        self._land(tenant, flight)

    def load(self, tenant: str) -> Keyset:
        """Ask for a keyset for one who does not share it. It may have expired already, as from `lead`."""
        self._telemetry.looked_up(Lookup.FETCH)
        return self._load(tenant, ahead=False)

    def cancel(self, tenant: str) -> None:
        """Let nobody join what is under way for a tenant, and let its KMS be asked at once; the lock is held."""
        self._flights.pop(tenant, None)
        self._failures.forget(tenant)

    def cancel_all(self) -> None:
        """Let nobody join what is under way; the lock is held."""
        self._flights.clear()

    def _load(self, tenant: str, *, ahead: bool) -> Keyset:
        with self._memory.lock:
            era = self._memory.era
        self._notices.begin()
        try:
            with self._telemetry.fetching(ahead=ahead):
                keyset = self._loader.load(tenant)
        except _REFUSALS:
            with self._memory.lock:
                self._memory.forget((tenant,), Reason.REFUSED)
            raise
        with self._memory.lock:
            self._memory.handed_out(keyset, era)
        return keyset

    def _land(self, tenant: str, flight: Flight) -> None:
        """Keep what came of a flight, unless it was cancelled, and let those who wait for it go on."""
        terms = self._loader.terms(tenant)
        with self._memory.lock:
            if self._flights.get(tenant) is flight:
                del self._flights[tenant]
                if (
                    isinstance(flight.error, KmsError) and flight.error.code
                ):  # what the KMS said, not what we did not ask
                    self._failures.add(tenant, flight.error, terms.ttl)
                elif flight.keyset is not None:
                    self._failures.forget(tenant)
                    if terms.ttl:
                        self._memory.keep(flight.keyset)
        flight.land()

    def _go_on(self, keyset: Keyset, error: PiiVaultError) -> None:
        """Say once that a keyset is used because nobody could be asked, and ask less and less often."""
        now = self._clock.monotonic()
        with self._memory.lock:
            keyset.refresh_at = max(keyset.refresh_at, now + self._failures.pause(keyset.tenant))
        if not keyset.overdue:
            keyset.overdue = True
            left = keyset.deadline - now
            self._telemetry.went_on(keyset.identity.tenant_uid.hex(), left)
            _log.warning("the keys of tenant %r are used for %.0f s more at most: %s", keyset.tenant, left, error)
