"""Clients for KMS, one for each identity, kept until their credentials near their end. Knows no boto3."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from ..errors import KmsCredentialsError, KmsError, KmsUnavailableError

_REFRESH_MARGIN: Final = 300.0
_REFRESH_RETRY: Final = 30.0

ClientT = TypeVar("ClientT")


@dataclass(frozen=True, slots=True)
class ClientKey:
    """Everything that makes one client differ from another; nothing may be left out, or tenants share rights.

    Attributes:
        region: The key's region.
        role_arn: The role to assume, or None for our own credentials.
        external_id: The ExternalId to assume it with, or None.
    """

    region: str
    role_arn: str | None
    external_id: str | None


@dataclass(frozen=True, slots=True)
class Lease(Generic[ClientT]):
    """A client and how long its credentials are good, in seconds of the wall clock.

    Attributes:
        client: The client.
        refresh_at: From here on a new one is tried, while this one still serves.
        expires_at: From here on it is not used.
    """

    client: ClientT
    refresh_at: float = math.inf
    expires_at: float = math.inf

    @classmethod
    def until(cls, client: ClientT, now: float, expires_at: float) -> Lease[ClientT]:
        """Return a lease that is renewed five minutes before its end, or at two thirds of a short one."""
        margin = min(_REFRESH_MARGIN, max(0.0, expires_at - now) / 3)
        return cls(client, expires_at - margin, expires_at)


@dataclass(slots=True)
class _Slot(Generic[ClientT]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    lease: Lease[ClientT] | None = None
    failure: KmsError | None = None
    turns: int = 0


class ClientCache(Generic[ClientT]):
    """A bounded cache of leases; one thread makes a client while the others of the same identity wait for it.

    Args:
        capacity: How many clients to keep; the one used longest ago goes first.
        clock: Seconds of the wall clock, which STS's expiry refers to and which goes on while a machine
            sleeps.
    """

    def __init__(self, *, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: OrderedDict[ClientKey, _Slot[ClientT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, key: ClientKey, make: Callable[[], Lease[ClientT]]) -> ClientT:
        """Return the client of this identity, made or renewed by `make` if need be.

        Args:
            key: The identity.
            make: Makes a lease; may raise a `KmsError`. It is called without any lock that another identity
                needs.
        """
        slot = self._slot(key)
        lease, now = slot.lease, self._clock()
        if lease is None or now >= lease.expires_at:
            return self._replace(slot, make)
        if now >= lease.refresh_at and slot.lock.acquire(blocking=False):
            try:
                return self._renew(slot, lease, make)
            finally:
                slot.lock.release()
        return lease.client

    def drop(self, key: ClientKey) -> None:
        """Forget the client of this identity, for example because its credentials were refused."""
        with self._lock:
            self._slots.pop(key, None)

    def _slot(self, key: ClientKey) -> _Slot[ClientT]:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._capacity:
                self._slots.popitem(last=False)
        return slot

    def _replace(self, slot: _Slot[ClientT], make: Callable[[], Lease[ClientT]]) -> ClientT:
        turn = slot.turns
        with slot.lock:
            if slot.lease is not None and self._clock() < slot.lease.expires_at:
                return slot.lease.client
            # Whoever waited for a leader that failed shares the failure: sixty threads behind a dead endpoint
            # would otherwise wait for sixty timeouts, one after the other.
            if slot.turns != turn and slot.failure is not None:
                raise copy.copy(slot.failure)
            return _fill(slot, make).client

    def _renew(self, slot: _Slot[ClientT], lease: Lease[ClientT], make: Callable[[], Lease[ClientT]]) -> ClientT:
        if slot.lease is not lease and slot.lease is not None:
            return slot.lease.client
        try:
            return _fill(slot, make).client
        except (KmsUnavailableError, KmsCredentialsError):
            # STS is out of reach while the credentials in hand are still good; a refusal is not caught here.
            retry = min(self._clock() + _REFRESH_RETRY, lease.expires_at)
            slot.lease = Lease(lease.client, retry, lease.expires_at)
            return lease.client


def _fill(slot: _Slot[ClientT], make: Callable[[], Lease[ClientT]]) -> Lease[ClientT]:
    try:
        made = make()
    except KmsError as error:
        # A copy has no traceback, whose frames would keep the failed call alive.
        slot.lease, slot.failure = None, copy.copy(error)
        raise
    finally:
        slot.turns += 1
    slot.lease, slot.failure = made, None
    return made
