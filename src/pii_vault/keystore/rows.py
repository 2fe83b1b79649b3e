"""Database rows to records and back. Drivers give bytes in their own types; records hold `bytes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import LargeBinary, Row, Table

from ..blind_index import SlotRecord
from ..chain import ChainRecord, Entry
from ..context import Identity
from ..keys import KekRecord, KeyRecord, KeyState, Policy, Purpose, TenantRecord
from ..stages import AdoptionRecord, Stage
from .schema import audit, audit_chains, keks, key_use, keys, policies, tenants

KEY_COLUMNS: Final = (
    "purpose",
    "version",
    "state",
    "kek_generation",
    "algorithm",
    "encrypted_key",
    "iv",
    "commitment",
    "epoch",
    "activation_mac",
    "created_at",
    "activated_at",
    "reason",
    "created_by",
    "kms_key_arn",
    "kms_key_material_id",
    "deactivated_at",
    "destroyed_at",
    "previous_version",
    "due_at",
)
KEK_COLUMNS: Final = (
    "generation",
    "state",
    "algorithm",
    "kms_key_arn",
    "role_arn",
    "external_id",
    "kms_key_material_id",
    "wrapped",
    "commitment",
    "created_at",
)
POLICY_COLUMNS: Final = (
    "kms_account",
    "kms_region",
    "rotation_days",
    "follows_kms",
    "ttl_seconds",
    "grace_seconds",
    "pii_encryption",
)
CHAIN_COLUMNS: Final = ("kms_key_arn", "root", "seq", "head", "sealed_key")


@dataclass(frozen=True, slots=True)
class AuditKeyRecord:
    """The application's audit key as stored: wrapped by the platform's KMS key.

    Attributes:
        kms_key_arn: The full ARN of that KMS key.
        wrapped: At most 6,144 bytes.
        commitment: 32 bytes.
        created_at: UTC.
    """

    kms_key_arn: str
    wrapped: bytes
    commitment: bytes
    created_at: datetime


def kek_values(record: KekRecord) -> dict[str, Any]:
    """Return a KEK's attributes as a statement's parameters."""
    return values(record, KEK_COLUMNS) | {"replica_regions": ",".join(record.replica_regions) or None}


def values(record: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Return a record's attributes as a statement's parameters."""
    return {column: getattr(record, column) for column in columns}


def tenant_record(row: Row[Any], app_uid: bytes) -> TenantRecord:
    """Return a tenant from a row of the tenants joined with the policies."""
    found = row._mapping
    identity = Identity(app_uid, bytes(found[tenants.c.uid]), found[tenants.c.keyset_id])
    return TenantRecord(
        identity,
        found[tenants.c.name],
        found[tenants.c.suspended],
        found[tenants.c.created_at],
        Policy(**_values(row, policies, POLICY_COLUMNS)),
    )


def kek_record(row: Row[Any]) -> KekRecord:
    """Return a KEK from a row that holds one."""
    made = _values(row, keks, KEK_COLUMNS)
    made["state"] = KeyState(made["state"])
    regions = row._mapping[keks.c.replica_regions]
    return KekRecord(**made, replica_regions=tuple(regions.split(",")) if regions else ())


def key_record(row: Row[Any]) -> KeyRecord:
    """Return a key from a row of the keys joined with their use."""
    made = _values(row, keys, KEY_COLUMNS)
    made["purpose"], made["state"] = Purpose(made["purpose"]), KeyState(made["state"])
    return KeyRecord(**made, reserved=row._mapping[key_use.c.reserved] or 0)


def chain_record(row: Row[Any]) -> ChainRecord | None:
    """Return the end of an audit chain from a row that may hold one."""
    if row._mapping[audit_chains.c.seq] is None:
        return None
    return ChainRecord(**_values(row, audit_chains, CHAIN_COLUMNS))


def slot_record(row: Any) -> SlotRecord:
    """Return what is known of a slot from a row."""
    return SlotRecord(row.context, row.number, row.index_name, row.form, row.ready_at, row.settled)


def adoption_record(row: Any) -> AdoptionRecord:
    """Return a step of an adoption from a row."""
    return AdoptionRecord(
        row.context,
        row.number,
        Stage(row.stage),
        row.table_name,
        row.plaintext,
        row.sealed,
        row.fallback_until,
        row._mapping["rows"],
        row.made_at,
        row.made_by,
        row.reason,
    )


def entry(row: Any) -> Entry:
    """Return an audit entry from a row."""
    found = row._mapping
    return Entry(found[audit.c.seq], found[audit.c.entry], bytes(found[audit.c.mac]))


def _values(row: Row[Any], table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """Return the columns of one table in a row, also of a row that joins several with columns of one name."""
    found = row._mapping
    return {
        column: bytes(found[table.c[column]])
        if isinstance(table.c[column].type, LargeBinary)
        else found[table.c[column]]
        for column in columns
    }
