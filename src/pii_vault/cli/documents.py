"""What commands print as JSON about what is there: plain values, no bytes. The names are promised.

docs/json.md describes every document. Its tables and the schemas in docs/schemas are made from these classes, from
those in `reports` and from the library's own: an attribute's line here is the member's meaning there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..keys import KeyRecord
    from ..keystore import Snapshot, TenantSummary
    from ..keystore.upgrade import Status
    from ..lifecycle.ending import Destruction
    from ..lifecycle.kms_history import Happened, KmsHistory, KmsRotationFound


@dataclass(frozen=True)
class Revision:
    """Where the key store's tables stand.

    Attributes:
        revision: The revision of the key store's tables; null when there are none.
    """

    revision: str | None


@dataclass(frozen=True)
class SchemaStatus:
    """What a comparison of the key store's schema with this release's came to.

    Attributes:
        revision: The revision of the key store's tables; null when there are none.
        expected: The revision that this release needs.
        problems: What is wrong, one sentence each; empty when the key store is in order.
    """

    revision: str | None
    expected: str
    problems: list[str]

    @classmethod
    def of(cls, found: Status) -> SchemaStatus:
        """Return the document about a schema."""
        return cls(found.revision, found.expected, list(found.problems))


@dataclass(frozen=True)
class Tenant:
    """One line about a tenant.

    Attributes:
        name: Its name.
        uid: Its uid, 32 hexadecimal digits: `pii-vault:tenant` in the KMS encryption context.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        suspended: Whether it neither seals nor opens.
        pii_encryption: Whether PII encryption is on for it; off, it neither seals nor opens.
        erased: Whether its keys are destroyed, for good.
        created_at: When it was registered.
        key_version: The data-key version that it seals with; null when none is active.
        due_at: When that key is to be rotated; null when none is active.
        uses: How many values may have been sealed with that key, never too low; null when none is active.
        kms_key_arn: The KMS key that wraps its key-encryption key; null when there is none.
    """

    name: str
    uid: str
    keyset_id: str
    suspended: bool
    pii_encryption: bool
    erased: bool
    created_at: datetime
    key_version: int | None
    due_at: datetime | None
    uses: int | None
    kms_key_arn: str | None

    @classmethod
    def of(cls, found: TenantSummary) -> Tenant:
        """Return the document about a tenant."""
        return cls(
            name=found.name,
            uid=found.uid.hex(),
            keyset_id=f"{found.keyset_id:08x}",
            suspended=found.suspended,
            pii_encryption=found.pii_encryption,
            erased=found.erased,
            created_at=found.created_at,
            key_version=found.version,
            due_at=found.due_at,
            uses=found.reserved,
            kms_key_arn=found.kms_key_arn,
        )


@dataclass(frozen=True)
class TenantDetails:
    """All that the key store knows about a tenant, without its keys.

    Attributes:
        name: Its name.
        uid: Its uid, 32 hexadecimal digits: `pii-vault:tenant` in the KMS encryption context.
        application: The application's uid, 32 hexadecimal digits: `pii-vault:app` there.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        suspended: Whether it neither seals nor opens.
        pii_encryption: Whether PII encryption is on for it; off, it neither seals nor opens.
        erased: Whether its keys are destroyed, for good.
        created_at: When it was registered.
        key_version: The data-key version that it seals with; null when none is active.
        key_versions: How many data-key versions there were so far.
        due_at: When the active data key is to be rotated; null when none is active.
        uses: How many values may have been sealed with the active data key, never too low; null when none is active.
        rotation_days: Its rotation period in days; null for the default of whoever rotates.
        follows_kms: Whether it is rotated as often as its KMS key is, and whenever that was.
        ttl_seconds: For how long its keys are held without another word of its KMS; null for the default of whoever
            holds them.
        grace_seconds: For how long beyond that while its KMS cannot be reached; null likewise.
        kms_key_arn: The KMS key that wraps its key-encryption key; of an erased tenant, that wrapped the last one.
        kms_key_material_id: Which material of that KMS key; null when the KMS does not say.
        kms_account: The account that the KMS key must belong to.
        kms_region: The region that it must be in.
        replica_regions: Where else a multi-Region KMS key unwraps, in the order in which that is tried.
        role_arn: The role that is assumed to use it; null when none is.
        kek_generation: The generation of its key-encryption key, from 1.
        audit_entries: How many entries its audit log has.
    """

    name: str
    uid: str
    application: str
    keyset_id: str
    suspended: bool
    pii_encryption: bool
    erased: bool
    created_at: datetime
    key_version: int | None
    key_versions: int
    due_at: datetime | None
    uses: int | None
    rotation_days: int | None
    follows_kms: bool
    ttl_seconds: int | None
    grace_seconds: int | None
    kms_key_arn: str
    kms_key_material_id: str | None
    kms_account: str
    kms_region: str
    replica_regions: list[str]
    role_arn: str | None
    kek_generation: int
    audit_entries: int

    @classmethod
    def of(cls, found: Snapshot) -> TenantDetails:
        """Return the document about a tenant."""
        tenant, kek, active = found.tenant, found.kek, found.active
        return cls(
            name=tenant.name,
            uid=tenant.identity.tenant_uid.hex(),
            application=tenant.identity.app_uid.hex(),
            keyset_id=f"{tenant.identity.keyset_id:08x}",
            suspended=tenant.suspended,
            pii_encryption=tenant.policy.pii_encryption,
            erased=found.erased,
            created_at=tenant.created_at,
            key_version=active.version if active is not None else None,
            key_versions=len(found.data_keys),
            due_at=active.due_at if active is not None else None,
            uses=active.reserved if active is not None else None,
            rotation_days=tenant.policy.rotation_days,
            follows_kms=tenant.policy.follows_kms,
            ttl_seconds=tenant.policy.ttl_seconds,
            grace_seconds=tenant.policy.grace_seconds,
            kms_key_arn=kek.kms_key_arn,
            kms_key_material_id=kek.kms_key_material_id,
            kms_account=tenant.policy.kms_account,
            kms_region=tenant.policy.kms_region,
            replica_regions=list(kek.replica_regions),
            role_arn=kek.role_arn,
            kek_generation=kek.generation,
            audit_entries=found.chain.seq if found.chain is not None else 0,
        )


@dataclass(frozen=True)
class KmsEvent:
    """Something that happened to a tenant's KMS key, or to ours under it.

    Attributes:
        at: When it happened.
        what: `kms_key_rotated`, `wrapped`, `re_wrapped`, `new_kek` or `data_key_made`.
        meaning: What it means, one sentence.
        kind: Of a rotation of the KMS key `automatic` or `on-demand`, of a data key why it was made, else empty.
        version: The data-key version, or the generation of the key-encryption key; null for the KMS key's rotation.
        kms_key_arn: The KMS key.
        kms_key_material_id: Which material of it; null when the KMS does not say.
    """

    at: datetime
    what: str
    meaning: str
    kind: str
    version: int | None
    kms_key_arn: str
    kms_key_material_id: str | None

    @classmethod
    def of(cls, found: Happened) -> KmsEvent:
        """Return the document about one line."""
        return cls(
            found.at,
            found.what.replace(" ", "_").replace("-", "_"),
            found.meaning,
            found.kind,
            found.version,
            found.kms_key_arn,
            found.kms_key_material_id,
        )


@dataclass(frozen=True)
class KmsEvents:
    """The rotations of a tenant's KMS key, and ours beside them.

    Attributes:
        tenant: The tenant's name.
        events: What happened, oldest first.
        rotations_unseen_because: Why the KMS key's own rotations are not among them; null when they are.
    """

    tenant: str
    events: list[KmsEvent]
    rotations_unseen_because: str | None

    @classmethod
    def of(cls, tenant: str, found: KmsHistory) -> KmsEvents:
        """Return the document about a history."""
        return cls(tenant, [KmsEvent.of(each) for each in found.lines], found.unseen_because)


@dataclass(frozen=True)
class KmsRotationPeriod:
    """How often a tenant's KMS key rotates by itself.

    Attributes:
        tenant: The tenant's name.
        kms_key_arn: The KMS key.
        rotation_days: How often it rotates by itself, in days; null when it does not.
        next_at: When it does next; null when the KMS does not say.
        last_at: When it was rotated last; null when it never was, or when that is not to be seen.
        last_unseen_because: Why that is not to be seen; null when it is.
        changed: Whether this call has said how often.
    """

    tenant: str
    kms_key_arn: str
    rotation_days: int | None
    next_at: datetime | None
    last_at: datetime | None
    last_unseen_because: str | None
    changed: bool

    @classmethod
    def of(cls, tenant: str, found: KmsRotationFound) -> KmsRotationPeriod:
        """Return the document about a KMS key's rotation."""
        period = found.status.period
        return cls(
            tenant,
            found.kms_key_arn,
            period.days if period is not None else None,
            found.status.next_at,
            found.last_at,
            found.unseen_because,
            found.changed,
        )


@dataclass(frozen=True)
class Key:
    """A data key, without the key.

    Attributes:
        tenant: The tenant's name.
        version: Its version, from 1.
        state: `pre_active`, `active`, `deactivated`, `compromised` or `destroyed`.
        reason: Why it was made: `initial`, `scheduled`, `forced`, `compromised`, `kms-rotation` or `limit`.
        created_by: Who asked for it.
        created_at: When it was made.
        activated_at: When it became active; null when it never did.
        deactivated_at: When it was taken out of use; null when it was not.
        destroyed_at: When it was dropped from the live key store; null when it is there.
        due_at: When it is to be rotated, or was to be; null before it is active.
        previous_version: The version before it; null for the first.
        uses: How many values may have been sealed with it, never too low.
        kek_generation: The generation of the key-encryption key that wraps it.
        kms_key_arn: The KMS key that generated it.
        kms_key_material_id: Which material of that KMS key; null when the KMS does not say.
    """

    tenant: str
    version: int
    state: str
    reason: str
    created_by: str
    created_at: datetime
    activated_at: datetime | None
    deactivated_at: datetime | None
    destroyed_at: datetime | None
    due_at: datetime | None
    previous_version: int | None
    uses: int
    kek_generation: int
    kms_key_arn: str
    kms_key_material_id: str | None

    @classmethod
    def of(cls, tenant: str, found: KeyRecord) -> Key:
        """Return the document about a tenant's data key."""
        return cls(
            tenant=tenant,
            version=found.version,
            state=str(found.state),
            reason=found.reason,
            created_by=found.created_by,
            created_at=found.created_at,
            activated_at=found.activated_at,
            deactivated_at=found.deactivated_at,
            destroyed_at=found.destroyed_at,
            due_at=found.due_at,
            previous_version=found.previous_version,
            uses=found.reserved,
            kek_generation=found.kek_generation,
            kms_key_arn=found.kms_key_arn,
            kms_key_material_id=found.kms_key_material_id,
        )


@dataclass(frozen=True)
class DestroyedKey(Key):
    """A data key that was destroyed, or would be.

    Attributes:
        dry_run: Whether it only would be destroyed.
        promise: What holds from now on, also against backups, in words.
        backup_kms_keys: The KMS keys that backups of the key store which hold it open with.
    """

    dry_run: bool
    promise: str
    backup_kms_keys: list[str]

    @classmethod
    def told(cls, tenant: str, found: Destruction, *, dry_run: bool) -> DestroyedKey:
        """Return the report on a destruction."""
        return cls(
            **vars(Key.of(tenant, found.key)),
            dry_run=dry_run,
            promise=found.promise,
            backup_kms_keys=[each.arn for each in found.backup_keys],
        )


@dataclass(frozen=True)
class SealedValue:
    """What the header of a sealed value says, and the sizes of its parts.

    Attributes:
        format: 1.
        suite: The first byte, in hexadecimal: `0xfa` or `0xfb`.
        algorithm: `AES-256-GCM`.
        bound_to: What it is bound to: `tenant`, `column` and, with the suite `0xfb`, `row`.
        keyset_id: Whose keys sealed it, 8 hexadecimal digits.
        key_version: The data-key version that sealed it.
        codec: How the plaintext encodes the value; null for a codec that this release does not know.
        codec_id: The number of that codec.
        index_generation: The generation of the index key; null when there are no tokens.
        tokens: How many blind-index tokens it has.
        token_bytes: How many bytes these take.
        plaintext_bytes: How many bytes the encoded plaintext has.
        stored_bytes: How many bytes the whole value has.
    """

    format: int
    suite: str
    algorithm: str
    bound_to: list[str]
    keyset_id: str
    key_version: int
    codec: str | None
    codec_id: int
    index_generation: int | None
    tokens: int
    token_bytes: int
    plaintext_bytes: int
    stored_bytes: int
