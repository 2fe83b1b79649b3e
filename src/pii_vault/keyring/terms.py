"""How long keys are used, and how long anybody waits for them: the numbers behind the promise to customers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigurationError, KeyRecordError
from ..keys import TenantRecord

MOST_SECONDS: Final = 43_200.0
"""The most that time to live and grace may come to. A key is destroyed a day after it was taken out of use, and the
next one is stored a day ahead of its use: by then no process may still use the one, or not know the other."""

UNCACHED_SECONDS: Final = 60.0
"""With a time to live of 0 every scope asks the KMS, and lasts this long at most."""

EARLY: Final = (0.80, 0.95)
"""Between which parts of the time to live a keyset is fetched anew, ahead of its end. Where in between is left to
chance, so that keysets that were fetched together are not fetched together again."""

AGAIN_SECONDS: Final = 1.0
"""How long one attempt to do so lasts for the others, who go on meanwhile with what they have."""

WAIT_SECONDS: Final = 20.0
"""How long anybody waits for a keyset that somebody else is fetching, or for leave to fetch one."""

AT_ONCE: Final = 20
"""How many keysets are fetched at once: what the KMS does not answer for one customer takes one of these places."""

IN_DOUBT_AT_ONCE: Final = 5
"""How many of these places may be taken for customers whose KMS did not answer the last time. However many they are,
the other places are left to those whose KMS does."""

REFUSED_SECONDS: Final = 5.0
"""How long a refusal by the KMS is answered from memory: a customer that lets us in again waits no longer than that.

It is never longer than the time to live, and neither are the next two."""

FAILED_SECONDS: Final = 1.0
"""How long any other failure of the KMS is. Whoever asks for a tenant whose KMS does not answer is told so at once
then, and keeps no thread that others could use. Twice as long after each failure that follows, up to the next one."""

FAILED_SECONDS_AT_MOST: Final = 16.0
"""How long it may take, at most, until a KMS that answers again is asked again."""

NOTICE_SECONDS: Final = 5.0
"""How often a process that is in use asks the key store whether keys are to be forgotten. No KMS is asked for that."""

LOOK_AGAIN_SECONDS: Final = 1.0
"""How often it does so before a read is refused because an adoption is not so far: somebody may just have taken the
step that the read waits for."""

KEPT_TENANTS: Final = 10_000
"""How many tenants' keysets a process keeps; the least recently used one goes first."""

UNKNOWN_SECONDS: Final = 5.0
"""How long a version that was not there is believed not to be there."""

UNKNOWN_VERSIONS: Final = 16
"""How many such versions of one tenant are looked for in that time."""

RECHECK_SECONDS: Final = 0.05
"""How often, while values stream, the wall clock is looked at beside the monotonic one.

A process that goes on after its machine was suspended may therefore use its keys for that long, in running time.
"""


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the keyring reads the time: both clocks, in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Terms:
    """For how long a keyset is used, counted from sending the `Decrypt` that it came of.

    Attributes:
        ttl: Seconds for which it is used without another word of the KMS; 0 asks the KMS in every scope.
        grace: Seconds for which it is used beyond that while the KMS, or the key store, cannot be reached.

    Raises:
        ConfigurationError: they are too long, or contradict each other.
    """

    ttl: float = 300.0
    grace: float = 0.0

    def __post_init__(self) -> None:
        if self.ttl < 0 or self.grace < 0 or self.ttl + self.grace > MOST_SECONDS:
            raise ConfigurationError(
                f"a ttl of {self.ttl:g} s with a grace of {self.grace:g} s: each is 0 or more, both together at most "
                f"{MOST_SECONDS:g} s"
            )
        if self.grace and not self.ttl:
            raise ConfigurationError(
                "with a ttl of 0 every scope asks the KMS, so a grace cannot be granted",
                hint="set a ttl, however short, or a grace of 0",
            )

    def of(self, tenant: TenantRecord) -> Terms:
        """Return a tenant's own terms, or these when it has none.

        Raises:
            KeyRecordError: its own cannot be kept.
        """
        ttl, grace = tenant.policy.ttl_seconds, tenant.policy.grace_seconds
        if ttl is None:
            return self
        try:
            return Terms(ttl, grace or 0)
        except ConfigurationError as error:
            raise KeyRecordError(
                f"tenant {tenant.name!r} has {error.args[0]}",
                hint="the key store was changed by something other than pii_vault: `pii-vault audit verify`",
            ) from None

    @property
    def unasked(self) -> float:
        """Return the seconds for which a keyset is used before somebody has to be asked again."""
        return self.ttl or UNCACHED_SECONDS

    @property
    def lifetime(self) -> float:
        """Return the seconds after which a keyset is not used any more, whatever the network does."""
        return self.unasked + self.grace

    def early(self) -> float:
        """Return the seconds after which a keyset is to be fetched anew, a little different each time."""
        return self.ttl * random.uniform(*EARLY) if self.ttl else float("inf")  # noqa: S311 - spreads load, no secret
