"""Look at our own side: the key store, the terms that a customer gets, the clock, and this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from .. import primitives
from ..errors import KeyRecordError
from ..keyring import Terms
from ..keys import TenantRecord
from ..keystore import KeyStore
from .findings import Finding, Group, Verdict, failure

_OURS: Final = Group.OURS

LONG_TTL: Final = 3600
"""From how many seconds on a time to live is longer than most customers expect."""

SKEW_WARNING: Final = 30.0
"""From how many seconds on a clock is worth setting."""

SKEW_REFUSED: Final = 300.0
"""From how many seconds on AWS refuses signatures (Signature Version 4: a request is good for five minutes)."""


def key_store(store: KeyStore) -> Finding:
    """Compare the key store's tables and triggers with what this release needs.

    Raises:
        KeyStoreError: the database cannot be asked.
    """
    from ..keystore.upgrade import check

    status = check(*store.place)
    if status.problems:
        finding = "; ".join(status.problems)
        return Finding(_OURS, "key-store", Verdict.FAILED, finding, "run `pii-vault db upgrade` with this release")
    return Finding(_OURS, "key-store", Verdict.PASSED, f"the key store is as revision {status.revision} has it")


def in_use(tenant: TenantRecord) -> Iterator[Finding]:
    """Say it if the tenant is suspended: then nothing is sealed or opened, whatever the KMS allows."""
    if tenant.suspended:
        finding = f"tenant {tenant.name!r} is suspended, so nothing is sealed or opened for it"
        yield Finding(_OURS, "tenant", Verdict.WARNING, finding, f"`pii-vault tenant resume {tenant.name}`")


def terms(tenant: TenantRecord, vaults: Terms | KeyRecordError) -> Iterator[Finding]:
    """Say within what time a revocation works, and what is unusual about the terms that it comes of.

    Args:
        tenant: The tenant.
        vaults: The terms in force for it, or why there are none.
    """
    if isinstance(vaults, KeyRecordError):
        yield failure(_OURS, "terms", vaults)
        return
    whose = "its own" if tenant.policy.ttl_seconds is not None else "this vault's"
    bound = (
        f"keys are forgotten {vaults.lifetime:g} s after the KMS was last asked, at the latest, by {whose} terms: ttl "
        f"{vaults.ttl:g} s, grace {vaults.grace:g} s; AWS takes a few seconds more for a policy, up to 5 min for "
        "grants and tags"
    )
    yield Finding(_OURS, "terms", Verdict.INFO, bound)
    set_it = f"`pii-vault tenant set {tenant.name}`, or the settings ttl and grace"
    if vaults.grace > 0:
        finding = f"for {vaults.grace:g} s after its time to live a key is used on while the KMS cannot be reached"
        yield Finding(_OURS, "grace", Verdict.WARNING, finding, f"grace 0, if the customer has not agreed: {set_it}")
    if vaults.ttl > LONG_TTL:
        finding = f"a revocation may take {vaults.ttl:g} s to be noticed"
        yield Finding(_OURS, "ttl", Verdict.WARNING, finding, f"a ttl of 300 s, say: {set_it}")
    if vaults.ttl == 0:
        finding = "with a ttl of 0 every scope asks the KMS: `pii-vault kms cost` says what that comes to"
        yield Finding(_OURS, "ttl", Verdict.INFO, finding)


def clock(offset: float | None, store: KeyStore) -> Finding:
    """Compare this machine's clock with the KMS's, or else with the key store's database.

    Args:
        offset: By how many seconds the KMS's clock is ahead; None if it has not said so.
        store: The key store.
    """
    if offset is not None:
        return _clock(offset, "the KMS's")
    engine, _ = store.place
    if engine.dialect.name != "postgresql":
        finding = "neither the KMS nor the database has a clock other than this machine's"
        return Finding(_OURS, "clock", Verdict.NOT_CHECKED, finding)
    try:
        return _clock(_database_offset(engine), "the key store's database")
    except SQLAlchemyError as error:
        finding = f"the key store's database did not tell the time: {type(error).__name__}"
        return Finding(_OURS, "clock", Verdict.NOT_MADE, finding)


def _database_offset(engine: Engine) -> float:
    with engine.connect() as connection:
        began = time.time()
        theirs = connection.scalar(select(func.clock_timestamp()))
        ours = (began + time.time()) / 2
    assert isinstance(theirs, datetime)
    return (theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)).timestamp() - ours


def _clock(offset: float, whose: str) -> Finding:
    which = "behind" if offset > 0 else "ahead of"
    finding = f"this machine's clock is {abs(offset):.0f} s {which} {whose}"
    change = "let NTP set this machine's clock: keys expire by it, and signatures are made with it"
    if abs(offset) >= SKEW_REFUSED:
        return Finding(_OURS, "clock", Verdict.FAILED, f"{finding}: AWS refuses such signatures", change)
    if abs(offset) >= SKEW_WARNING:
        return Finding(_OURS, "clock", Verdict.WARNING, finding, change)
    return Finding(_OURS, "clock", Verdict.PASSED, f"this machine's clock agrees with {whose}, to {abs(offset):.0f} s")


def process() -> Iterator[Finding]:
    """Say what does this process's cryptography, and whether it leaves its memory behind when it crashes."""
    yield Finding(_OURS, "cryptography", Verdict.INFO, primitives.library())
    try:
        import resource
    except ImportError:  # not on Windows
        yield Finding(_OURS, "core-dumps", Verdict.NOT_CHECKED, "this system does not say whether it writes core dumps")
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    if soft == 0:
        yield Finding(_OURS, "core-dumps", Verdict.PASSED, "this process writes no core dump")
        return
    finding = "this process may write a core dump when it crashes, and a dump holds keys"
    yield Finding(_OURS, "core-dumps", Verdict.INFO, finding, "`ulimit -c 0`, or LimitCORE=0 in the unit of systemd")
