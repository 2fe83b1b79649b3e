"""How many requests to the KMS an application makes, reckoned from its size and from how long it keeps keys.

Pure. The keyring asks once for each tenant, process and time to live, and only where the tenant is used. So what comes
out is an upper bound: it takes every tenant for one that is used in every process all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .errors import ConfigurationError
from .keyring.terms import AT_ONCE, EARLY, Terms
from .kms.pricing import dollars

MONTH_DAYS: Final = 30
DAY_SECONDS: Final = 86_400

CHOICES: Final = (60.0, 300.0, 900.0, 3_600.0)
"""Times to live to compare, in seconds."""

PER_ROTATION: Final = 5
"""Requests of one rotation on schedule: the data key is made a day ahead, the KMS key is looked at, and the
key-encryption key unwrapped for either and for a last check."""

ANSWER_SECONDS: Final = 0.01
"""The quickest answer of the KMS that is reckoned with. At a start a process cannot ask faster than it is answered."""


@dataclass(frozen=True, slots=True)
class Load:
    """How large an application is, and what it does.

    Attributes:
        tenants: How many tenants are in use.
        processes: How many processes use each of them.
        rotation_days: How often each tenant's data key is rotated; None for never.
        starts_per_day: How often a day all processes start anew, as with a deployment.
        scopes_per_second: How many scopes are opened, over all processes; it counts only without a time to live.
    """

    tenants: int
    processes: int
    rotation_days: int | None = None
    starts_per_day: float = 0.0
    scopes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a time to live comes to.

    Attributes:
        ttl: The time to live, in seconds.
        requests: Requests in a month of 30 days, each tenant being used in each process all the time.
        most_requests: The same, if every keyset is fetched anew as early as it may be.
        cold_start_requests: Requests that follow a start of all processes, once every tenant has been used.
        cold_start_rate: How many of them may come in one second.
    """

    ttl: float
    requests: float
    most_requests: float
    cold_start_requests: float
    cold_start_rate: float

    @property
    def rate(self) -> float:
        """Return the requests a second, on average."""
        return self.requests / (MONTH_DAYS * DAY_SECONDS)

    @property
    def most_rate(self) -> float:
        """Return the requests a second at most, on average over a month."""
        return self.most_requests / (MONTH_DAYS * DAY_SECONDS)

    @property
    def price(self) -> float:
        """Return the dollars a month."""
        return dollars(self.requests)

    @property
    def most_price(self) -> float:
        """Return the dollars a month at most."""
        return dollars(self.most_requests)


def estimate(load: Load, ttl: float) -> Estimate:
    """Reckon what a time to live comes to.

    Raises:
        ConfigurationError: no keyring keeps keys for so long, or there is no time to live and nobody said how many
            scopes are opened.
    """
    Terms(ttl)
    rotations = load.tenants * MONTH_DAYS / load.rotation_days if load.rotation_days else 0.0
    rotating = rotations * PER_ROTATION
    # A version that is stored a day ahead is known everywhere before it is used. One made by hand is asked for.
    most_rotating = rotating + rotations * load.processes
    if not ttl:
        scopes = _scopes(load)
        asked = scopes * MONTH_DAYS * DAY_SECONDS
        return Estimate(ttl, asked + rotating, asked + most_rotating, 0.0, scopes)
    each = load.tenants * load.processes
    soonest, latest = EARLY
    starting = each * load.starts_per_day * MONTH_DAYS
    renewing = each * MONTH_DAYS * DAY_SECONDS / ttl
    return Estimate(
        ttl=ttl,
        requests=renewing / ((soonest + latest) / 2) + starting + rotating,
        most_requests=renewing / soonest + starting + most_rotating,
        cold_start_requests=each,
        cold_start_rate=min(each, load.processes * AT_ONCE / ANSWER_SECONDS),
    )


def compared(load: Load, ttl: float) -> list[Estimate]:
    """Return the estimates for a time to live and for others beside it, the shortest first.

    Raises:
        ConfigurationError: as `estimate`.
    """
    others = {ttl, *CHOICES} | ({0.0} if load.scopes_per_second is not None else set())
    return [estimate(load, each) for each in sorted(others)]


def _scopes(load: Load) -> float:
    if load.scopes_per_second is None:
        raise ConfigurationError(
            "without a time to live every scope asks the KMS, and nobody said how many there are",
            hint="say how many scopes are opened a second",
        )
    return load.scopes_per_second
