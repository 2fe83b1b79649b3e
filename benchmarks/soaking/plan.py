"""What one run does, and the numbers that all of its processes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ATTEMPTS: Final = 1
CONNECT_TIMEOUT: Final = 1.0
READ_TIMEOUT: Final = 1.2
"""How the library is set up here: it asks once and listens for little more than a second, so that a KMS that does not
answer keeps nobody long. The bound does not depend on it."""

ROWS_AT_FIRST: Final = 12
"""How many rows a tenant has before the run."""

ROLES: Final = 10
"""Every so many tenants' key is used through a role in the customer's account: each client costs 20 ms in each process,
and a role changes nothing about when a key is let go of."""


@dataclass(frozen=True)
class Plan:
    """The options.

    Attributes:
        seconds: How long the workers work.
        processes: Worker processes.
        threads: Threads in each.
        tenants: Tenants, each with a KMS key of its own.
        ttl: The vault's time to live.
        grace: Its grace.
        pause: What a thread waits between two visits, on average.
        seed: Of the order in which things go wrong.
        sqlite: Whether the database is a file.
    """

    seconds: float
    processes: int
    threads: int
    tenants: int
    ttl: float
    grace: float
    pause: float
    seed: int
    sqlite: bool

    @property
    def bound(self) -> float:
        """What is promised: seconds after which no value is sealed or opened any more."""
        return self.ttl + self.grace


def tenant_name(number: int) -> str:
    return f"tenant-{number:05}"
