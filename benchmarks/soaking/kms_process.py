"""The KMS in a process of its own, with what torments it: HTTP out, time stamps where changes are made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from benchmarks.soaking.chaos import Chaos
from benchmarks.soaking.checker import Episode
from benchmarks.soaking.child import GONE
from benchmarks.soaking.plan import ROLES, Plan
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.kms import KmsKey

Requests = Counter[tuple[str, str]]
"""HTTP requests by operation and outcome."""

_SETTLED: Final = 10.0
"""After so many seconds no request is without an outcome."""


@dataclass(frozen=True)
class Address:
    """How the KMS is reached, and the keys in it."""

    environment: Mapping[str, str]
    platform_key: str
    keys: Sequence[KmsKey]


@dataclass(frozen=True)
class Torment:
    """What was done in a run, and how often the KMS was asked meanwhile."""

    episodes: Sequence[Episode]
    requests: Requests


def serve(plan: Plan, watched: MutableSequence[int], control: Connection) -> None:
    """Be the KMS, until the other end of `control` is gone."""
    with StrictKms() as kms, suppress(*GONE):
        keys = [_key(kms, tenant) for tenant in range(plan.tenants)]
        control.send(Address(kms.environment(), kms.platform_key(), keys))
        control.recv()  # go
        _count(kms, Counter(), 0.0)  # what it took to get ready
        control.send(_run(plan, kms, keys, watched, control))
        control.recv()  # for as long as anybody may need it


def _key(kms: StrictKms, tenant: int) -> KmsKey:
    if tenant % ROLES == 0:
        return kms.customer_key()
    arn = kms.create_key()
    # The policy names our own user, who comes from another account and has a policy of its own as well.
    kms.allow(arn, VENDOR)
    return KmsKey(arn)


def _run(
    plan: Plan, kms: StrictKms, keys: Sequence[KmsKey], watched: MutableSequence[int], control: Connection
) -> Torment:
    requests: Requests = Counter()
    chaos = Chaos(plan, kms, [key.arn for key in keys], watched)
    chaos.start()
    try:
        while not control.poll(1.0):
            _count(kms, requests, _SETTLED)
        control.recv()  # stop
    finally:
        episodes = chaos.stop()
    _count(kms, requests, 0.0)
    return Torment(episodes, requests)


def _count(kms: StrictKms, requests: Requests, age: float) -> None:
    """Move requests of this age from the KMS's list, which would grow without end, to a count."""
    until, calls = time.time() - age, kms.calls
    old = 0
    while old < len(calls) and calls[old].time <= until:
        old += 1
    requests.update((call.operation, call.outcome) for call in calls[:old])
    del calls[:old]
