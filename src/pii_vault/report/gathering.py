"""Gather a report's facts: from the key store, the audit log, the application's tables and the customer's KMS.

Nothing is changed. The customer's KMS sees what `key validate` asks, and one more question about its key; the
platform's sees what verifying the audit log takes.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from .._version import __version__
from ..audit.reading import AuditLog
from ..cost import MONTH_DAYS, Load, estimate
from ..errors import ConfigurationError, KeyRecordError, KmsDeniedError, PiiVaultError
from ..keyring import UNCACHED_SECONDS, kms_key
from ..keys import KeyRecord
from ..keystore import Snapshot
from ..kms import KmsKeyDescription
from ..lifecycle.parts import Parts
from ..lifecycle.validation import validate
from .facts import (
    Answer,
    BoundFacts,
    CallFacts,
    CheckFacts,
    ColumnFacts,
    KmsKeyFacts,
    Report,
    RewrapFacts,
    RotationFacts,
    VersionFacts,
)
from .findings import Found, findings, not_known, not_looked_at, summary, verdict
from .logged import logged
from .stored import Tables, stored, under_version

KMS_SECONDS: Final = 300.0
"""For how long a change in AWS KMS may not be known everywhere in it. Disabling a key is usually known within seconds;
for grants, tags and aliases AWS names up to 5 minutes (AWS KMS developer guide, "Eventual consistency")."""

LATE: Final = timedelta(days=1)
"""From when on a rotation is overdue: who rotates looks once a day."""


def report(
    parts: Parts,
    log: AuditLog,
    tenant: str,
    *,
    tables: Tables | None = None,
    processes: int | None = None,
    ask_kms: bool = True,
) -> Report:
    """Gather the facts about a tenant.

    Args:
        parts: What a vault works with.
        log: The audit log.
        tenant: The tenant's name; it may be suspended or erased.
        tables: The application's tables, to count values in; None to count none.
        processes: How many processes the application runs as; None if nobody says so.
        ask_kms: Whether the customer's KMS is asked.

    Raises:
        TenantNotFoundError: nobody has this name.
        KeyStoreError, KeyRecordError: its records cannot be read.
    """
    snapshot = parts.store.load(tenant, even_erased=True)
    columns, failure = _columns(parts, tenant, tables, snapshot.erased)
    key, checks = _asked(parts, snapshot, ask_kms=ask_kms and not snapshot.erased)
    audit, rewraps = logged(log, snapshot)
    now = parts.now()
    rotation, bound = _rotation(snapshot, now), _bound(parts, snapshot)
    found = Found(
        tenant=snapshot.tenant,
        erased=snapshot.erased,
        now=now,
        kms_key=key,
        checks=checks,
        versions=_versions(snapshot, columns),
        columns=columns,
        not_counted=failure,
        rotation=rotation,
        bound=bound,
        audit=audit,
        adoptions=tuple(parts.store.adoptions()),
        processes=processes,
    )
    return _told(parts, snapshot, found, rewraps)


def _told(parts: Parts, snapshot: Snapshot, found: Found, rewraps: tuple[RewrapFacts, ...] | None) -> Report:
    """Say what was found, with what it means."""
    noted = findings(found)
    missed = not_looked_at(found)
    word = verdict(noted, missed)
    identity = snapshot.tenant.identity
    return Report(
        tenant=snapshot.tenant.name,
        uid=identity.tenant_uid.hex(),
        application=identity.app_uid.hex(),
        keyset_id=f"{identity.keyset_id:08x}",
        made_at=found.now,
        made_by=parts.ledger.actor,
        release=__version__,
        verdict=str(word),
        summary=summary(word, noted),
        findings=noted,
        not_looked_at=missed,
        not_known=not_known(found),
        registered_at=snapshot.tenant.created_at,
        suspended=snapshot.tenant.suspended,
        erased=found.erased,
        kms_key=found.kms_key,
        checks=found.checks,
        versions=found.versions,
        rewraps=rewraps,
        columns=found.columns,
        rotation=found.rotation,
        bound=found.bound,
        kms_calls=_calls(found.processes, found.rotation, found.bound),
        audit=found.audit,
    )


def _columns(
    parts: Parts, tenant: str, tables: Tables | None, erased: bool
) -> tuple[tuple[ColumnFacts, ...] | None, str | None]:
    """Return what is stored, or None and why it could not be counted; None twice when nobody wants it counted."""
    if tables is None:
        return None, None
    try:
        return stored(parts.store, tenant, tables, erased=erased), None
    except ConfigurationError as error:
        return None, str(error)


def _asked(parts: Parts, snapshot: Snapshot, *, ask_kms: bool) -> tuple[KmsKeyFacts, tuple[CheckFacts, ...]]:
    """Ask the customer's KMS about its key, and make every check on it and on the data key."""
    if not ask_kms:
        return _key(parts, snapshot, Answer.NOT_ASKED), ()
    try:
        said = parts.kms.describe(kms_key(snapshot.tenant, snapshot.kek))
    except KmsDeniedError as error:
        key = _key(parts, snapshot, Answer.REFUSED, failure=str(error))
    except PiiVaultError as error:
        # Each check would wait for the same answer.
        return _key(parts, snapshot, Answer.FAILED, failure=str(error)), ()
    else:
        key = replace(_key(parts, snapshot, Answer.ANSWERED, said), rotations=_rotations(parts, snapshot))
    try:
        outcomes = validate(parts, snapshot.tenant.name)
    except PiiVaultError as error:
        return key, (CheckFacts("active-key", False, str(error)),)
    return key, tuple(CheckFacts(each.check, each.passed, each.finding) for each in outcomes)


def _key(
    parts: Parts,
    snapshot: Snapshot,
    answer: Answer,
    said: KmsKeyDescription | None = None,
    failure: str | None = None,
) -> KmsKeyFacts:
    kek, policy = snapshot.kek, snapshot.tenant.policy
    return KmsKeyFacts(
        arn=kek.kms_key_arn,
        account=policy.kms_account,
        region=policy.kms_region,
        ours=parts.is_platform_key(kek.kms_key_arn),
        role_arn=kek.role_arn,
        has_external_id=kek.external_id is not None,
        kek_generation=kek.generation,
        wrapped_with=kek.kms_key_material_id,
        answer=str(answer),
        failure=failure,
        state=said.state if said is not None else None,
        newest_material=said.key_material_id if said is not None else None,
        made_at=said.created_at if said is not None else None,
        deleted_at=said.deleted_at if said is not None else None,
        rotations=None,
        replica_regions=kek.replica_regions,
    )


def _rotations(parts: Parts, snapshot: Snapshot) -> tuple[datetime, ...] | None:
    """Return when the KMS has rotated its key; None if it does not tell us."""
    try:
        found = parts.kms.rotation_history(kms_key(snapshot.tenant, snapshot.kek))
    except PiiVaultError:
        return None
    return tuple(each.at for each in found.rotations) if found.unseen_because is None else None


def _versions(snapshot: Snapshot, columns: tuple[ColumnFacts, ...] | None) -> tuple[VersionFacts, ...]:
    return tuple(_version(key, columns) for key in reversed(snapshot.data_keys))


def _version(key: KeyRecord, columns: tuple[ColumnFacts, ...] | None) -> VersionFacts:
    return VersionFacts(
        version=key.version,
        state=str(key.state),
        reason=key.reason,
        made_by=key.created_by,
        made_at=key.created_at,
        active_at=key.activated_at,
        deactivated_at=key.deactivated_at,
        destroyed_at=key.destroyed_at,
        uses=key.reserved,
        kms_key_arn=key.kms_key_arn,
        values=under_version(columns, key.version) if columns is not None else None,
    )


def _rotation(snapshot: Snapshot, now: datetime) -> RotationFacts:
    active, policy = snapshot.active, snapshot.tenant.policy
    due = active.due_at if active is not None else None
    since = active.activated_at if active is not None else None
    return RotationFacts(
        next_at=due,
        # Read off the key rather than asked for: this is what holds for it.
        period_days=round((due - since) / timedelta(days=1)) if due is not None and since is not None else None,
        follows_kms=policy.follows_kms,
        agreed=policy.follows_kms or policy.rotation_days is not None,
        overdue=due is not None and now - due > LATE,
    )


def _bound(parts: Parts, snapshot: Snapshot) -> BoundFacts | None:
    if snapshot.erased:
        return None
    try:
        terms = parts.keyring.terms_of(snapshot.tenant)
    except KeyRecordError:
        return None  # verification of the audit log says what was changed
    return BoundFacts(
        ttl_seconds=terms.ttl,
        held_seconds=terms.ttl or UNCACHED_SECONDS,
        grace_seconds=terms.grace,
        kms_seconds=KMS_SECONDS,
        most_seconds=terms.lifetime + KMS_SECONDS,
        agreed=snapshot.tenant.policy.ttl_seconds is not None,
    )


def _calls(processes: int | None, rotation: RotationFacts, bound: BoundFacts | None) -> CallFacts | None:
    if processes is None or bound is None or not bound.ttl_seconds:
        return None
    load = Load(tenants=1, processes=processes, rotation_days=rotation.period_days or None)
    found = estimate(load, bound.ttl_seconds)
    return CallFacts(processes, round(found.requests / MONTH_DAYS), round(found.most_requests / MONTH_DAYS))
