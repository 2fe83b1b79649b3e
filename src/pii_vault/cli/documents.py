"""What commands print as JSON where it is not what the library returns: plain values, no bytes. The names are promised.

docs/json.md describes every document, and its schemas are made from these classes and the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..keys import KeyRecord
    from ..keystore import Snapshot, TenantSummary


@dataclass(frozen=True)
class Revision:
    """`db current`.

    Attributes:
        revision: The revision of the key store's tables, or null when there are none.
    """

    revision: str | None


@dataclass(frozen=True)
class Tenant:
    """One tenant of `tenant list`.

    Attributes:
        name: Its name.
        uid: Its uid, 32 hexadecimal digits: ``pii-vault:tenant`` in the KMS encryption context.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        suspended: Whether it neither seals nor opens.
        version: Its active data-key version, or null.
        kms_key_arn: The KMS key that wraps its key-encryption key.
        created_at: When it was registered.
        due_at: When its data key is to be rotated, or null.
        reserved: How many values may have been sealed with its active data key, or null.
    """

    name: str
    uid: str
    keyset_id: str
    suspended: bool
    version: int | None
    kms_key_arn: str | None
    created_at: datetime
    due_at: datetime | None
    reserved: int | None

    @classmethod
    def of(cls, found: TenantSummary) -> Tenant:
        """Return the document about a tenant."""
        return cls(
            found.name,
            found.uid.hex(),
            f"{found.keyset_id:08x}",
            found.suspended,
            found.version,
            found.kms_key_arn,
            found.created_at,
            found.due_at,
            found.reserved,
        )


@dataclass(frozen=True)
class TenantDetails:
    """`tenant show`.

    Attributes:
        name: Its name.
        uid: Its uid, 32 hexadecimal digits.
        application: The application's uid, 32 hexadecimal digits.
        keyset_id: 8 hexadecimal digits.
        suspended: Whether it neither seals nor opens.
        created_at: When it was registered.
        version: Its active data-key version, or null.
        due_at: When that is to be rotated, or null.
        reserved: How many values may have been sealed with it, or null.
        versions: How many data-key versions there were.
        rotation_days: Its rotation period, or null for the default.
        follows_kms: Whether its rotation follows that of its KMS key.
        kms_key_arn: The KMS key that wraps its key-encryption key.
        kms_key_material_id: Which material of that, or null.
        kms_account: The account that the KMS key must belong to.
        kms_region: The region that it must be in.
        role_arn: The role that is assumed, or null.
        kek_generation: The generation of its key-encryption key.
        audit_entries: How many entries its audit log has.
    """

    name: str
    uid: str
    application: str
    keyset_id: str
    suspended: bool
    created_at: datetime
    version: int | None
    due_at: datetime | None
    reserved: int | None
    versions: int
    rotation_days: int | None
    follows_kms: bool
    kms_key_arn: str
    kms_key_material_id: str | None
    kms_account: str
    kms_region: str
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
            created_at=tenant.created_at,
            version=active.version if active is not None else None,
            due_at=active.due_at if active is not None else None,
            reserved=active.reserved if active is not None else None,
            versions=len(found.data_keys),
            rotation_days=tenant.policy.rotation_days,
            follows_kms=tenant.policy.follows_kms,
            kms_key_arn=kek.kms_key_arn,
            kms_key_material_id=kek.kms_key_material_id,
            kms_account=tenant.policy.kms_account,
            kms_region=tenant.policy.kms_region,
            role_arn=kek.role_arn,
            kek_generation=kek.generation,
            audit_entries=found.chain.seq if found.chain is not None else 0,
        )


@dataclass(frozen=True)
class Key:
    """One data key of `key list`; what `key deactivate`, `compromise` and `destroy` return.

    Attributes:
        version: From 1.
        state: pre_active, active, deactivated, compromised or destroyed.
        reason: Why it was made: initial, scheduled, forced, compromised, kms-rotation or limit.
        created_by: Who asked for it.
        created_at: When it was made.
        activated_at: When it became active, or null.
        deactivated_at: When it ceased to be, or null.
        destroyed_at: When its wrapped bytes were dropped, or null.
        due_at: When it was or is to be rotated, or null.
        previous_version: The version before it, or null.
        reserved: How many values may have been sealed with it.
        kek_generation: The key-encryption key that wraps it.
        kms_key_arn: The KMS key that generated it.
        kms_key_material_id: Which material of that, or null.
    """

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
    reserved: int
    kek_generation: int
    kms_key_arn: str
    kms_key_material_id: str | None

    @classmethod
    def of(cls, found: KeyRecord) -> Key:
        """Return the document about a data key."""
        return cls(
            found.version,
            str(found.state),
            found.reason,
            found.created_by,
            found.created_at,
            found.activated_at,
            found.deactivated_at,
            found.destroyed_at,
            found.due_at,
            found.previous_version,
            found.reserved,
            found.kek_generation,
            found.kms_key_arn,
            found.kms_key_material_id,
        )
