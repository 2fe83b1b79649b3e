"""Examine a tenant: its customer's KMS key, its keys, and our own side, one finding a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import KeyRecordError, KeyStateError, KeyStoreError, PiiVaultError
from ..keyring import Terms, kms_key
from ..keystore import Snapshot
from ..lifecycle import validation
from ..lifecycle.parts import Parts
from ..lifecycle.validation import Outcome
from . import own_side
from .application import Application, examine
from .contexts import Contexts
from .findings import Finding, Group, Verdict, failure
from .patience import Patience
from .probes import Probing

_ASKED_OTHERWISE: Final = frozenset(("kms-key-exists", "kms-key-enabled", "kms-key-usage", "kms-key-owner", "kms-role"))
"""The checks before a key's use that the probes make too, and ask again."""


def diagnose(
    parts: Parts,
    tenant: str,
    application: Application,
    *,
    patience: Patience | None = None,
) -> list[Finding]:
    """Make every check on a tenant and on our own side; change nothing.

    Args:
        parts: The vault's.
        tenant: The tenant's name.
        application: What the application has shown of itself.
        patience: For how long the KMS is asked again; by default not at all.

    Raises:
        TenantNotFoundError, TenantErasedError: there is nobody to examine.
        KeyStoreError: the key store cannot be asked.
    """
    store = own_side.key_store(parts.store)
    snapshot: Snapshot | None = None
    offset: float | None = None
    found: list[Finding] = []
    try:
        snapshot = parts.store.load(tenant)
    except KeyStoreError as error:
        if store.verdict is Verdict.PASSED:
            raise
        # Of another release: what can be said without it is said.
        found.append(failure(Group.WORKS, "key-records", error))
    if snapshot is not None:
        asked, offset = _of_the_kms(parts, snapshot, patience or Patience())
        outcomes = _of_the_keys(parts, tenant)
        found += [*asked, *outcomes]
    found += [store, own_side.clock(offset, parts.store)]
    if snapshot is not None:
        found += [*own_side.in_use(snapshot.tenant), *own_side.terms(snapshot.tenant, _terms(parts, snapshot))]
    found += own_side.process()
    found += examine(application, parts.store)
    return sorted(found, key=lambda each: list(Group).index(each.group))


def _of_the_kms(parts: Parts, snapshot: Snapshot, patience: Patience) -> tuple[list[Finding], float | None]:
    """Ask the customer's KMS; return by how much its clock is ahead, too."""
    tenant, kek = snapshot.tenant, snapshot.kek
    try:
        key = kms_key(tenant, kek)
        parts.kms.validate_key(key)
    except PiiVaultError as error:  # the key store was changed, or another KMS is configured: nobody is asked
        return [failure(Group.WORKS, "kms-address", error)], None
    contexts = Contexts.of(tenant.name, tenant.identity, kek.generation)
    probing = Probing(parts.kms, key, contexts, kek.wrapped, is_ours=parts.is_platform_key(key.arn))
    return probing.findings(patience), probing.clock_offset


def _of_the_keys(parts: Parts, tenant: str) -> Iterator[Finding]:
    """Make the checks that a key has to pass before it is used."""
    try:
        outcomes = validation.validate(parts, tenant)
    except (KeyStateError, KeyStoreError) as error:
        yield failure(Group.WORKS, "data-key", error)
        return
    for each in outcomes:
        if each.check not in _ASKED_OTHERWISE:
            yield _of_outcome(each)


def _of_outcome(outcome: Outcome) -> Finding:
    group = Group.DENIED if outcome.check == "kms-wrong-context" else Group.WORKS
    if outcome.error is not None:
        return failure(group, outcome.check, outcome.error)
    verdict = Verdict.PASSED if outcome.passed else Verdict.NOT_MADE
    return Finding(group, outcome.check, verdict, outcome.finding)


def _terms(parts: Parts, snapshot: Snapshot) -> Terms | KeyRecordError:
    try:
        return parts.keyring.terms_of(snapshot.tenant)
    except KeyRecordError as error:
        return error
