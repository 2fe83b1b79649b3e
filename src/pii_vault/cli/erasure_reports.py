"""What `tenant erase` prints as JSON, and writes as its report. The names are promised, as those in `reports` are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..lifecycle import evidence


@dataclass(frozen=True)
class ErasedKey:
    """A key that was destroyed, or would be.

    Attributes:
        kind: `kek` for a key-encryption key, `data` or `index`.
        version: Its version, or generation, from 1.
        state_before: The state that it was in before the erasure, as `key list` names states.
        destroyed_at: When it was destroyed, by this or before; null while it only would be.
        commitment: By which its record in a backup is told, 64 hexadecimal digits. It gives nothing of the key away.
    """

    kind: str
    version: int
    state_before: str
    destroyed_at: datetime | None
    commitment: str

    @classmethod
    def of(cls, found: evidence.ErasedKey) -> ErasedKey:
        """Return the document about a key."""
        return cls(found.kind, found.version, str(found.state_before), found.destroyed_at, found.commitment)


@dataclass(frozen=True)
class InvolvedKmsKey:
    """A KMS key that opens backups of the tenant's keys.

    Attributes:
        kms_key_arn: Its full ARN.
        owner: Whose it is: `customer`, `ours` (in the account of the platform's KMS key) or `platform`.
        other_tenants: Other tenants whose keys lie under it now.
        backups_from: Backups of the key store from then on open with it.
        backups_to: Backups up to then; null while nothing is erased, for that under which the keys lie.
        deleted_at: When it is to be deleted, or was, if this command has had that scheduled; null if not.
        advice: What has to become of it before backups open no more, one sentence or two.
    """

    kms_key_arn: str
    owner: str
    other_tenants: list[str]
    backups_from: datetime
    backups_to: datetime | None
    deleted_at: datetime | None
    advice: str

    @classmethod
    def of(cls, found: evidence.InvolvedKey) -> InvolvedKmsKey:
        """Return the document about a KMS key."""
        from ..lifecycle.evidence import advice

        key = found.key
        others = list(found.others)
        return cls(key.arn, str(found.owner), others, key.since, key.until, found.deleted_at, advice(found))


@dataclass(frozen=True)
class RemainingValues:
    """What is left of the tenant in a column of the application.

    Attributes:
        table: The table, with its schema if it has one.
        column: The column's name in the database.
        values: How many sealed values of the tenant there are, which nothing opens.
        with_tokens: How many of them carry search tokens.
    """

    table: str
    column: str
    values: int
    with_tokens: int


@dataclass(frozen=True)
class Erased:
    """What an erasure came to, or would come to.

    Attributes:
        tenant: The tenant's name.
        uid: Its uid, 32 hexadecimal digits: `pii-vault:tenant` in the KMS encryption context.
        application: The application's uid, 32 hexadecimal digits: `pii-vault:app` there.
        keyset_id: 8 hexadecimal digits, as in the headers of its sealed values.
        dry_run: Whether it only would be done.
        made: Whether this call did it; false when the keys were destroyed already, or only would be.
        erased_at: When the keys were destroyed; null while they only would be.
        actor: Who asked; null likewise.
        reason: Why; null likewise, and when nobody said so.
        keys: All keys that the tenant ever had: key-encryption keys, data keys, index keys.
        kms_keys: The KMS keys that backups of them open with, as they came into use.
        audit_entry: The place of the entry in the tenant's audit log that tells of it; null while it only would be.
        audit_head: The MAC of that entry; null likewise.
        anchor: The line to give to `audit verify --anchor`, which then proves that entry; null likewise.
        eviction: The number by which all processes were asked to forget the keys; null likewise.
        held_until: From when on no process uses the keys any more, even one that has not looked; null likewise.
        looked_into_tables: Whether the application's tables were looked into.
        remains: What is left there, by column; empty when nobody looked.
        key_deletion_failure: Why the KMS key's deletion could not be scheduled, although it was asked for, one
            sentence; null otherwise. The keys are destroyed nevertheless.
        meaning: What all of it means, also for backups and tokens, in sentences.
    """

    tenant: str
    uid: str
    application: str
    keyset_id: str
    dry_run: bool
    made: bool
    erased_at: datetime | None
    actor: str | None
    reason: str | None
    keys: list[ErasedKey]
    kms_keys: list[InvolvedKmsKey]
    audit_entry: int | None
    audit_head: str | None
    anchor: str | None
    eviction: int | None
    held_until: datetime | None
    looked_into_tables: bool
    remains: list[RemainingValues]
    key_deletion_failure: str | None
    meaning: list[str]

    @classmethod
    def of(cls, found: evidence.Erasure, *, dry_run: bool) -> Erased:
        """Return the report on an erasure."""
        from pydantic import TypeAdapter

        from ..audit.reading import Anchor
        from ..lifecycle.evidence import meaning

        identity, anchor = found.tenant.identity, found.anchor
        return cls(
            tenant=found.tenant.name,
            uid=identity.tenant_uid.hex(),
            application=identity.app_uid.hex(),
            keyset_id=f"{identity.keyset_id:08x}",
            dry_run=dry_run,
            made=found.made,
            erased_at=found.at,
            actor=found.actor,
            reason=found.reason or None,
            keys=[ErasedKey.of(each) for each in found.keys],
            kms_keys=[InvolvedKmsKey.of(each) for each in found.kms_keys],
            audit_entry=anchor.seq if anchor is not None else None,
            audit_head=anchor.head if anchor is not None else None,
            anchor=TypeAdapter(Anchor).dump_json(anchor).decode() if anchor is not None else None,
            eviction=found.eviction,
            held_until=found.held_until,
            looked_into_tables=found.remains is not None,
            remains=[RemainingValues(**asdict(each)) for each in found.remains or ()],
            key_deletion_failure=found.key_deletion_failure,
            meaning=meaning(found),
        )
