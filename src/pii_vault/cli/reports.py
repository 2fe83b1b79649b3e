"""What commands print as JSON about what they did or found. The names are promised.

Words are in lower case with underscores, and what is not there is null, never 0 or an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..audit.reading import LogEntry, Verification
    from ..cost import Estimate, Load
    from ..lifecycle.rewrap import Rewrap
    from ..lifecycle.rewrap_all import Moved
    from ..lifecycle.rotation import Rotation
    from ..lifecycle.schedule import Due
    from ..lifecycle.validation import Outcome


@dataclass(frozen=True)
class Check:
    """What one check of a key found.

    Attributes:
        check: The check's name: docs/key-lifecycle.md lists them.
        passed: Whether it passed; null when it could not be made because an earlier one failed.
        finding: What it found, one sentence.
    """

    check: str
    passed: bool | None
    finding: str

    @classmethod
    def of(cls, found: Outcome) -> Check:
        """Return the report on a check."""
        return cls(found.check, found.passed, found.finding)


@dataclass(frozen=True)
class Rotated:
    """What a rotation came to.

    Attributes:
        tenant: The tenant's name.
        version: The data-key version that seals now.
        previous_version: The version that sealed before; null when none was active.
        reason: Why the version was made: `initial`, `scheduled`, `forced`, `compromised`, `kms-rotation` or `limit`.
        made: Whether this call made it; false when somebody else rotated meanwhile.
        due_at: When it is to be rotated itself.
    """

    tenant: str
    version: int
    previous_version: int | None
    reason: str
    made: bool
    due_at: datetime | None

    @classmethod
    def of(cls, done: Rotation) -> Rotated:
        """Return the report on a rotation."""
        return cls(done.tenant, done.version, done.previous or None, done.reason, done.made, done.due_at)


@dataclass(frozen=True)
class Evicted:
    """Whose keys are forgotten.

    Attributes:
        tenant: The tenant's name.
        within_seconds: How long it may take until every process that is in use has noticed.
    """

    tenant: str
    within_seconds: int


@dataclass(frozen=True)
class DueTenant:
    """What came of a look at one tenant.

    Attributes:
        tenant: The tenant's name.
        step: What was done, or would be: `rotated`, `prepared` (the next version is stored and waits for its day),
            `not_due`, `skipped` or `failed`.
        dry_run: Whether it only would be done.
        reason: Why it is rotated or prepared: `initial`, `scheduled`, `compromised`, `forced`, `kms-rotation` or
            `limit`; null otherwise.
        problem: Why it was skipped or failed, one sentence; null otherwise.
        denied: Whether the customer's KMS refused.
        version: The data-key version that seals now; null when none is active or the tenant failed.
        due_at: When that is due; null when none is active or the tenant failed.
    """

    tenant: str
    step: str
    dry_run: bool
    reason: str | None
    problem: str | None
    denied: bool
    version: int | None
    due_at: datetime | None

    @classmethod
    def of(cls, found: Due, dry_run: bool) -> DueTenant:
        """Return the report on a tenant."""
        from ..lifecycle.schedule import Step

        rotates = found.step in (Step.ROTATED, Step.PREPARED)
        return cls(
            tenant=found.tenant,
            step=_word(found.step),
            dry_run=dry_run,
            reason=str(found.reason) if rotates else None,
            problem=found.reason or None if not rotates else None,
            denied=found.denied,
            version=found.version or None,
            due_at=found.due_at,
        )


@dataclass(frozen=True)
class Rewrapped:
    """What a re-wrap came to.

    Attributes:
        tenant: The tenant's name.
        way: How it was done, or would be: `re_encrypted` inside the KMS, `new_kek` for a new key-encryption key, or
            `unchanged` when nothing was to be done.
        dry_run: Whether it only would be done.
        kek_generation: The generation of the key-encryption key afterwards.
        kms_key_arn: The KMS key that wraps it now.
        kms_key_material_id: Which material of that KMS key; null when the KMS does not say.
        previous_kms_key_arn: The KMS key that wrapped it before.
        promise: What holds from now on, also against backups, in words.
    """

    tenant: str
    way: str
    dry_run: bool
    kek_generation: int
    kms_key_arn: str
    kms_key_material_id: str | None
    previous_kms_key_arn: str
    promise: str

    @classmethod
    def of(cls, done: Rewrap, dry_run: bool) -> Rewrapped:
        """Return the report on a re-wrap."""
        return cls(
            tenant=done.tenant,
            way=_word(done.way),
            dry_run=dry_run,
            kek_generation=done.generation,
            kms_key_arn=done.kms_key_arn,
            kms_key_material_id=done.kms_key_material_id,
            previous_kms_key_arn=done.previous_arn,
            promise=done.promise,
        )


@dataclass(frozen=True)
class RewrappedTenant:
    """What came of one tenant of many.

    Attributes:
        tenant: The tenant's name.
        way: How it was done, or would be: `re_encrypted`, `new_kek` or `unchanged`; null when it failed.
        dry_run: Whether it only would be done.
        kms_key_arn: The KMS key that wraps its key-encryption key now; null when there is none.
        promise: What holds from now on, also against backups, in words; null when it failed.
        failure: Why it failed, one sentence, and the old wrapping stays; null when it did not.
    """

    tenant: str
    way: str | None
    dry_run: bool
    kms_key_arn: str | None
    promise: str | None
    failure: str | None

    @classmethod
    def of(cls, found: Moved, dry_run: bool) -> RewrappedTenant:
        """Return the report on a tenant."""
        way = _word(found.way) if found.way is not None else None
        return cls(found.tenant, way, dry_run, found.kms_key_arn or None, found.promise, found.failure)


@dataclass(frozen=True)
class Entry:
    """One entry of a tenant's audit log. It is not verified.

    Attributes:
        seq: Its place, from 1.
        at: When it was written.
        actor: Who asked.
        event: What happened: docs/format.md, section 9, lists the events.
        reason: Why; null when nobody said so.
        details: The records that it touched, as they were afterwards: see *Details of an entry*.
    """

    seq: int
    at: datetime
    actor: str
    event: str
    reason: str | None
    details: dict[str, Any]

    @classmethod
    def of(cls, found: LogEntry) -> Entry:
        """Return the report on an entry."""
        return cls(found.seq, found.at, found.actor, found.event, found.reason or None, found.details)


@dataclass(frozen=True)
class Verified:
    """What the verification of a tenant's audit log found.

    Attributes:
        tenant: The tenant's name.
        entries: How many entries the log has.
        first_bad: The place of the first entry that is not what was written there; null when there is none.
        problems: What is wrong, one sentence each; empty when all is in order.
    """

    tenant: str
    entries: int
    first_bad: int | None
    problems: list[str]

    @classmethod
    def of(cls, found: Verification) -> Verified:
        """Return the report on a verification."""
        return cls(found.tenant, found.entries, found.first_bad, list(found.problems))


@dataclass(frozen=True)
class Cost:
    """What requests to the KMS come to with one time to live.

    Attributes:
        ttl: The time to live, in seconds.
        chosen: Whether it is the one that was asked about; the others stand beside it to be compared.
        tenants: How many tenants are reckoned with, each in use in each process all the time.
        processes: How many processes.
        rotation_days: How often each tenant is rotated; null for never.
        starts_per_day: How often a day all processes start anew.
        scopes_per_second: How many scopes are opened, over all processes; null when nobody said so.
        requests_per_month: Requests in a month of 30 days.
        most_requests_per_month: The same, with keys fetched anew as early as they may be.
        requests_per_second: Requests a second, on average.
        most_requests_per_second: The same, with keys fetched anew as early as they may be.
        cold_start_requests: Requests that follow a start of all processes; 0 without a time to live.
        cold_start_requests_per_second: How many may come in one second then.
        dollars_per_month: Their price. What KMS keys cost their owners is not in it.
        most_dollars_per_month: The same, with keys fetched anew as early as they may be.
        region: The region whose quota is compared; null for the lowest of all.
        quota_per_second: How many requests a second AWS answers one account there, unless it was told otherwise.
        quota_share: Which part of that is used on average; 1 is all of it.
        cold_start_quota_share: Which part may be used at a start of all processes.
    """

    ttl: float
    chosen: bool
    tenants: int
    processes: int
    rotation_days: int | None
    starts_per_day: float
    scopes_per_second: float | None
    requests_per_month: int
    most_requests_per_month: int
    requests_per_second: float
    most_requests_per_second: float
    cold_start_requests: int
    cold_start_requests_per_second: float
    dollars_per_month: float
    most_dollars_per_month: float
    region: str | None
    quota_per_second: int
    quota_share: float
    cold_start_quota_share: float

    @classmethod
    def of(cls, found: Estimate, load: Load, region: str | None, *, chosen: bool) -> Cost:
        """Return the report on an estimate."""
        from ..kms.pricing import quota

        return cls(
            ttl=found.ttl,
            chosen=chosen,
            tenants=load.tenants,
            processes=load.processes,
            rotation_days=load.rotation_days,
            starts_per_day=load.starts_per_day,
            scopes_per_second=load.scopes_per_second,
            requests_per_month=round(found.requests),
            most_requests_per_month=round(found.most_requests),
            requests_per_second=round(found.rate, 3),
            most_requests_per_second=round(found.most_rate, 3),
            cold_start_requests=round(found.cold_start_requests),
            cold_start_requests_per_second=round(found.cold_start_rate, 3),
            dollars_per_month=round(found.price, 2),
            most_dollars_per_month=round(found.most_price, 2),
            region=region,
            quota_per_second=quota(region),
            quota_share=round(found.rate / quota(region), 4),
            cold_start_quota_share=round(found.cold_start_rate / quota(region), 4),
        )


def kinds() -> dict[str, Any]:
    """Return the type of the document that each command prints with ``--json``; `audit anchor` always does."""
    from ..audit.reading import Anchor
    from ..report.facts import Report
    from .adoption_reports import AdoptionFound
    from .coverage_reports import Covered
    from .doctor_reports import Examined
    from .documents import (
        DestroyedKey,
        Key,
        KmsEvents,
        KmsRotationPeriod,
        Revision,
        SchemaStatus,
        SealedValue,
        Tenant,
        TenantDetails,
    )
    from .erasure_reports import Erased
    from .index_reports import IndexDropped, IndexesBuilt, IndexesFound, IndexRotated, TokenPlan
    from .onboarding_reports import OnboardingFound
    from .reencryption_reports import Reencrypted

    return {
        "db upgrade": Revision,
        "db current": Revision,
        "db check": SchemaStatus,
        "onboard": OnboardingFound,
        "tenant add": TenantDetails,
        "tenant list": list[Tenant],
        "tenant show": TenantDetails,
        "tenant set": TenantDetails,
        "tenant suspend": TenantDetails,
        "tenant resume": TenantDetails,
        "tenant erase": Erased,
        "key list": list[Key],
        "key validate": list[Check],
        "key rotate": Rotated,
        "key evict": Evicted,
        "key deactivate": Key,
        "key compromise": Key,
        "key destroy": DestroyedKey,
        "doctor": list[Examined],
        "index status": list[IndexesFound],
        "index build": list[IndexesBuilt],
        "index rotate": IndexRotated,
        "index drop": IndexDropped,
        "index plan": TokenPlan,
        "rotate --due": list[DueTenant],
        "rewrap": Rewrapped,
        "rewrap --all": list[RewrappedTenant],
        "reencrypt": list[Reencrypted],
        "coverage": Covered,
        "report": Report,
        "adopt status": list[AdoptionFound],
        "adopt next": AdoptionFound,
        "adopt rollback": AdoptionFound,
        "adopt fallback": AdoptionFound,
        "audit log": list[Entry],
        "audit verify": list[Verified],
        "audit anchor": Anchor,
        "kms cost": list[Cost],
        "kms history": KmsEvents,
        "kms rotation": KmsRotationPeriod,
        "inspect": SealedValue,
    }


def _word(text: str) -> str:
    return str(text).replace(" ", "_").replace("-", "_")
