"""What the keyring does for coroutines: they wait for keysets as threads do, but without a thread each.

Who leads is decided on the event loop, before anything is waited for: 500 coroutines that want one tenant take one
thread, for the one of them that leads. A coroutine that is cancelled leaves; what it has begun goes on for the others.
"""

from __future__ import annotations

import asyncio

from ..errors import PiiVaultError
from ..sealing import Keyset
from .flight import Flight
from .keyring import Keyring


async def get(keyring: Keyring, tenant: str) -> Keyset:
    """Return a tenant's keyset, as `Keyring.get` does."""
    return keyring.cached(tenant) or await _load_once(keyring, tenant)


def renewed(keyring: Keyring, keyset: Keyset) -> Keyset:
    """Return what to go on with in place of a fresh keyset that may be due, and let another one be fetched meanwhile.

    Nobody waits for that. What it meets is known to the next one who asks.
    """
    turn = keyring.fetching.turn(keyset)
    if isinstance(turn, Keyset):
        return turn
    _send(keyring, keyset.tenant, turn, instead_of=keyset)
    return keyset


async def _load_once(keyring: Keyring, tenant: str) -> Keyset:
    fetching, joined = keyring.fetching, 0
    while True:
        if fetching.asks_always(tenant):
            keyset: Keyset | None = await asyncio.wrap_future(keyring.crew.submit(fetching.load, tenant))
            joined = 0
        else:
            boarded = fetching.board(tenant)
            if isinstance(boarded, Keyset):
                return boarded
            flight, mine = boarded
            if mine:
                _send(keyring, tenant, flight)
            keyset = await flight.waited()
            joined += not mine
        if keyset is not None and fetching.serves(keyset, None, joined):
            return keyset


def _send(keyring: Keyring, tenant: str, flight: Flight, instead_of: Keyset | None = None) -> None:
    """Let a thread lead a flight, ahead of a keyset's end or because there is none."""
    try:
        keyring.crew.submit(_lead, keyring, tenant, flight, instead_of)
    except RuntimeError as error:  # the interpreter ends: whoever waits is not to wait for it
        keyring.fetching.give_up(tenant, flight, error)


def _lead(keyring: Keyring, tenant: str, flight: Flight, instead_of: Keyset | None) -> None:
    try:
        if instead_of is None:
            keyring.fetching.lead(tenant, flight)
        else:
            keyring.fetching.renew(instead_of, flight)
    except PiiVaultError:
        pass  # the flight tells those who wait for it, and the keyring remembers it for those who come
