"""What a report says: plain values, no key, wrapped or not, no stored value. The page and the JSON are made of these.

The names are promised, as those in `cli.documents` are: docs/json.md describes them from the lines here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Verdict(StrEnum):
    """What all facts together come to."""

    AS_PROMISED = "as_promised"
    """Everything was looked at, and nothing is wrong."""

    NOT_ALL_LOOKED_AT = "not_all_looked_at"
    """Nothing is wrong with what was looked at."""

    NOT_AS_PROMISED = "not_as_promised"
    """Something is wrong."""


class Answer(StrEnum):
    """What came of asking the customer's KMS about its key."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    NOT_ASKED = "not_asked"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a reader must not miss.

    Attributes:
        kind: One word for it: `check`, `kms`, `kms_key`, `audit`, `stored`, `not_counted`, `compromised_key`,
            `rotation`, `adoption`, `fallback`, `suspended`, `disabled`, `erased`, `provider_key` or `development`.
        problem: Whether it breaks a promise. If not, it is worth knowing.
        text: What it is, in words.
        way_out: What to do about it; empty when there is nothing to do.
    """

    kind: str
    problem: bool
    text: str
    way_out: str


@dataclass(frozen=True, slots=True)
class KmsKeyFacts:
    """The KMS key, and what its KMS said of it.

    Attributes:
        arn: Its full ARN; of an erased tenant, of the last one.
        account: The account that it must belong to.
        region: The region that it must be in.
        ours: Whether it is the provider's own, which serves tenants that have brought none.
        role_arn: The role in that account that is assumed to use it; null when none is.
        has_external_id: Whether that role is assumed with an ExternalId. The id itself is not shown.
        kek_generation: The generation of the key-encryption key that it wraps, from 1.
        wrapped_with: Which material of the KMS key wraps it; null when the KMS does not say.
        answer: Whether the KMS was asked for this report, and how it answered: `answered`, `refused`, `failed` or
            `not_asked`.
        failure: What it said if it did not answer; null otherwise.
        state: The KMS's own word: `Enabled`, `Disabled`, `PendingDeletion` …; null when it did not answer.
        newest_material: Which material it wraps with now; null when the KMS does not say.
        made_at: When the KMS key was made; null when the KMS does not say.
        deleted_at: When it will be deleted; null when that is not planned, or the KMS does not say.
        rotations: When the KMS has rotated the key by itself or on demand; null when that is not known.
        replica_regions: Where it has replicas that unwrap while its own region is unavailable, in the order in which
            they are tried.
    """

    arn: str
    account: str
    region: str
    ours: bool
    role_arn: str | None
    has_external_id: bool
    kek_generation: int
    wrapped_with: str | None
    answer: str
    failure: str | None
    state: str | None
    newest_material: str | None
    made_at: datetime | None
    deleted_at: datetime | None
    rotations: tuple[datetime, ...] | None
    replica_regions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A data-key version.

    Attributes:
        version: From 1.
        state: `pre_active`, `active`, `deactivated`, `compromised` or `destroyed`.
        reason: Why it was made: `initial`, `scheduled`, `forced`, `compromised`, `kms-rotation` or `limit`.
        made_by: Who asked for it.
        made_at: When it was made.
        active_at: When it became active; null when it never did.
        deactivated_at: When it was taken out of use; null when it was not.
        destroyed_at: When it was dropped from the live key store; null when it is there.
        uses: How many values may have been sealed with it, never too low.
        kms_key_arn: The KMS key that generated it.
        values: How many stored values it seals now; null when they were not counted.
    """

    version: int
    state: str
    reason: str
    made_by: str
    made_at: datetime
    active_at: datetime | None
    deactivated_at: datetime | None
    destroyed_at: datetime | None
    uses: int
    kms_key_arn: str
    values: int | None


@dataclass(frozen=True, slots=True)
class RewrapFacts:
    """A re-wrap, as the audit log tells it.

    Attributes:
        at: When.
        by: Who asked for it.
        reason: Why; may be empty.
        new_kek: Whether a new key-encryption key was made; if not, the present one was re-encrypted inside the KMS.
        kms_key_arn: The KMS key that it lies under since; null when the entry does not say.
    """

    at: datetime
    by: str
    reason: str
    new_kek: bool
    kms_key_arn: str | None


@dataclass(frozen=True, slots=True)
class Share:
    """How many values of a column are in one state.

    Attributes:
        version: The data-key version that sealed them; null for what none of the tenant's keys has sealed.
        state: The state of that data key; or `unknown_version`, `foreign` (under keys that are not the tenant's),
            `plaintext`, `malformed`, `unsupported` or `null`.
        count: How many.
        problem: Whether they are a breach of the promise.
    """

    version: int | None
    state: str
    count: int
    problem: bool


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """An encrypted column, and which data keys seal its values.

    Attributes:
        table: The table, with its schema if it has one.
        column: The column's name in the database.
        own_rows: Whether only rows of the tenant were looked at. If not, nobody said whose rows they are, and what no
            key has sealed may be another customer's.
        shares: The counts, by version; empty when nothing is stored.
    """

    table: str
    column: str
    own_rows: bool
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class RotationFacts:
    """When the data key is replaced.

    Attributes:
        next_at: When the active data key is to be replaced; null when none is active.
        period_days: How long a data key seals, in days; null likewise.
        follows_kms: Whether that is the period of the KMS key, and a rotation there makes a new data key.
        agreed: Whether the period was agreed for this tenant. If not, it is the provider's default.
        overdue: Whether that day has passed by more than a day.
    """

    next_at: datetime | None
    period_days: int | None
    follows_kms: bool
    agreed: bool
    overdue: bool


@dataclass(frozen=True, slots=True)
class CallFacts:
    """How many requests a day go to the customer's KMS: reckoned, not counted.

    Attributes:
        processes: How many processes are reckoned with, each using the tenant all day.
        per_day: Requests a day, at most so many on average.
        most_per_day: The same, with keys fetched anew as early as they may be.
    """

    processes: int
    per_day: int
    most_per_day: int


@dataclass(frozen=True, slots=True)
class BoundFacts:
    """For how long data stays readable after the customer has revoked its KMS key.

    Attributes:
        ttl_seconds: For how long keys are held without another word of the KMS; 0 when every scope asks.
        held_seconds: The same, or for how long a scope lasts at most where every scope asks.
        grace_seconds: For how long beyond that, while the KMS cannot be reached.
        kms_seconds: For how long the KMS itself may take until a change is known everywhere in it.
        most_seconds: All of it together.
        agreed: Whether the terms were agreed for this tenant, and are in the key store. If not, they are the settings
            of whoever made the report, and every process of the application has its own.
    """

    ttl_seconds: float
    held_seconds: float
    grace_seconds: float
    kms_seconds: float
    most_seconds: float
    agreed: bool


@dataclass(frozen=True, slots=True)
class EventFacts:
    """An entry of the audit log.

    Attributes:
        entry: Its place, from 1.
        at: When it was written.
        by: Who asked.
        event: What happened.
        reason: Why; may be empty.
    """

    entry: int
    at: datetime
    by: str
    event: str
    reason: str


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """The audit log, and whether it is what was written.

    Attributes:
        entries: How many entries there are.
        head: The MAC of the last one, 64 hexadecimal digits; null when there is none.
        verified: Whether the log is what was written, and the key store what it says; null when it was not verified.
        problems: What is wrong, one sentence each; or why it was not verified.
        last: The last ten entries, the newest first.
    """

    entries: int
    head: str | None
    verified: bool | None
    problems: tuple[str, ...]
    last: tuple[EventFacts, ...]


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """A check on the KMS key and the data key, made for this report.

    Attributes:
        check: Its name.
        passed: Whether it passed; null when it could not be made because an earlier one failed.
        finding: What it found, in words.
    """

    check: str
    passed: bool | None
    finding: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told to a customer about the protection of its data.

    Attributes:
        tenant: The tenant's name.
        uid: Its uid, 32 hexadecimal digits: `pii-vault:tenant` in the KMS encryption context.
        application: The application's uid, 32 hexadecimal digits: `pii-vault:app` there.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        made_at: When the report was made.
        made_by: Who made it.
        release: The release of pii_vault that made it.
        verdict: `as_promised`, `not_all_looked_at` or `not_as_promised`.
        summary: The verdict in words.
        findings: What must not be missed, problems first.
        not_looked_at: What this report does not tell because nobody asked for it, or it could not be asked.
        not_known: What no report can tell.
        registered_at: When the tenant was registered.
        suspended: Whether it neither seals nor opens.
        erased: Whether its keys are destroyed, for good.
        kms_key: The KMS key.
        checks: The checks on it and on the data key; empty when they were not made.
        versions: The data-key versions, the newest first.
        rewraps: The re-wraps, the newest first; null when the audit log cannot be read.
        columns: The encrypted columns; null when they were not counted.
        rotation: When the data key is replaced.
        bound: The bound on revocation; null for an erased tenant, and when it cannot be told.
        kms_calls: The requests to the KMS; null when they were not reckoned.
        audit: The audit log.
    """

    tenant: str
    uid: str
    application: str
    keyset_id: str
    made_at: datetime
    made_by: str
    release: str
    verdict: str
    summary: str
    findings: tuple[Finding, ...]
    not_looked_at: tuple[str, ...]
    not_known: tuple[str, ...]
    registered_at: datetime
    suspended: bool
    erased: bool
    kms_key: KmsKeyFacts
    checks: tuple[CheckFacts, ...]
    versions: tuple[VersionFacts, ...]
    rewraps: tuple[RewrapFacts, ...] | None
    columns: tuple[ColumnFacts, ...] | None
    rotation: RotationFacts
    bound: BoundFacts | None
    kms_calls: CallFacts | None
    audit: AuditFacts
