"""Re-wrap many tenants: those under one KMS key, or all; several at a time, no faster than is wished.

Each tenant is a change of its own, so whoever stops half-way loses nothing, and the same call goes on where it stopped:
what is done already is not done again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigurationError, PiiVaultError
from ..keystore import TenantSummary
from ..kms import KmsKey, KmsKeyDescription
from .parts import Parts
from .rewrap import Way, rewrap

WORKERS: Final = 4
RATE: Final = 50.0
"""Tenants a second. Each costs two requests to the KMS, whose quota serves everything else too."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of one tenant.

    Attributes:
        tenant: Its name.
        way: How it was done, or would be; None when it failed.
        kms_key_arn: The KMS key that wraps its KEK now.
        promise: What holds from now on, also against backups; None when it failed.
        failure: Why it failed, or None; the old wrapping stays then.
    """

    tenant: str
    way: Way | None
    kms_key_arn: str
    promise: str | None = None
    failure: str | None = None


def rewrap_all(
    parts: Parts,
    to: KmsKey | None = None,
    *,
    under: str | None = None,
    new_kek: bool = False,
    shared_key: bool = False,
    reason: str = "",
    rate: float = RATE,
    workers: int = WORKERS,
    dry_run: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Moved]:
    """Re-wrap every tenant that is not erased, or those whose KEK lies under one KMS key; report each.

    Args:
        parts: What it is done with.
        to: The KMS key to put them under; None for each one's present key, whose newer material is then used.
        under: The full ARN of the KMS key that they lie under now; None for any. Needed with `to`.
        new_kek: Make new KEKs instead of re-encrypting the present ones.
        shared_key: Whether several tenants may have that KMS key; the platform's they may.
        reason: Why, for the audit log.
        rate: How many tenants a second, at most.
        workers: How many at a time; one on SQLite, which has one writer.
        dry_run: Make the checks, and change nothing.
        progress: Told how many tenants are done, of how many.

    Raises:
        ConfigurationError: `to` without `under`, which would put all customers under one key; or several tenants would
            have it, and `shared_key` does not say that they may.
    """
    if to is not None and under is None:
        raise ConfigurationError(
            "to put all tenants under one KMS key would take every customer's key away",
            hint="say which KMS key they are to leave: under, --from ARN",
        )
    if rate <= 0 or workers < 1:
        raise ConfigurationError("a rate is above 0 tenants a second, and there is at least 1 worker")
    tenants = [each for each in parts.store.summaries() if under in (None, each.kms_key_arn) and not each.erased]
    if to is not None and tenants and not shared_key:
        _check_shared(parts, to, tenants)
    pace = _Pace(rate)
    describe = _Once(parts.kms.describe)

    def one(tenant: TenantSummary) -> Moved:
        pace.wait()
        try:
            done = rewrap(
                parts,
                tenant.name,
                to,
                new_kek=new_kek,
                shared_key=shared_key,
                reason=reason,
                dry_run=dry_run,
                describe=describe,
            )
        except PiiVaultError as error:
            return Moved(tenant.name, None, tenant.kms_key_arn or "", failure=str(error))
        return Moved(tenant.name, done.way, done.kms_key_arn, done.promise)

    return _together(one, tenants, workers, progress)


def _together(
    one: Callable[[TenantSummary], Moved],
    tenants: list[TenantSummary],
    workers: int,
    progress: Callable[[int, int], object],
) -> list[Moved]:
    progress(0, len(tenants))
    futures: list[Future[Moved]] = []
    try:
        with _pool(workers) as pool:
            futures += (pool.submit(one, each) for each in tenants)
            for done, _ in enumerate(as_completed(futures), 1):
                progress(done, len(tenants))
    except BaseException:
        # Those count too that were under way: they were finished.
        progress(sum(future.done() and not future.cancelled() for future in futures), len(tenants))
        raise
    return [future.result() for future in futures]


def _check_shared(parts: Parts, to: KmsKey, tenants: list[TenantSummary]) -> None:
    """Refuse a KMS key that several tenants would have: one answers for one customer. The platform's is for all.

    Raises:
        ConfigurationError: several would have it.
    """
    if parts.is_platform_key(to.arn):
        return
    names = [*parts.store.owners(to.arn), *(each.name for each in tenants)]
    if len(names) > 1:
        raise ConfigurationError(
            f"KMS key {to.arn} would be that of {len(names)} tenants, {names[0]!r} and {names[1]!r} among them",
            hint="a KMS key answers for one customer; if all are the same one's, say so: shared_key, --shared-key",
        )


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool to a block; however that ends, what is under way is finished, and nothing else begun."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pii-vault-rewrap")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Once:
    """Asks about each KMS key once: thousands of tenants can lie under one."""

    def __init__(self, describe: Callable[[KmsKey], KmsKeyDescription]) -> None:
        self._describe: Final = describe
        self._locks: Final[dict[KmsKey, threading.Lock]] = {}
        self._known: Final[dict[KmsKey, KmsKeyDescription]] = {}

    def __call__(self, key: KmsKey) -> KmsKeyDescription:
        """Return what the KMS says about a key, or said when it was asked first."""
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._known:
                self._known[key] = self._describe(key)
            return self._known[key]


class _Pace:
    """Lets callers pass one after another, so many a second, however many there are."""

    def __init__(self, rate: float) -> None:
        self._gap: Final = 1 / rate
        self._lock: Final = threading.Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait for one's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._gap
        time.sleep(turn - now)
