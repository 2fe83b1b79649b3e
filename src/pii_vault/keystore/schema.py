"""The key store's tables, with the constraints that make a wrong state impossible.

The database itself refuses a second ACTIVE key of one tenant and purpose, a reused version, a state that moves
backwards, a changed or deleted key record, a use count that falls, a changed or deleted audit entry. Code checks the
same, but the database outlives the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    event,
    text,
    true,
)

from ..keys import TRANSITIONS, KeyState
from ..stages import Stage
from .onboarding_record import OnboardingStep, Way

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision in `migrations/versions`, oldest first."""

REVISION: Final = REVISIONS[-1]
"""The newest one; `create_all` makes the same tables at once and stamps it."""

DIALECTS: Final = frozenset(("postgresql", "sqlite"))


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC; databases without a time zone type store it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive instant; drop the zone where the database has none."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

_STATES = ", ".join(f"'{state}'" for state in KeyState)
_STAGES = ", ".join(f"'{stage}'" for stage in Stage)
_STEPS = ", ".join(f"'{step}'" for step in OnboardingStep)
_WAYS = ", ".join(f"'{way}'" for way in Way)

revision = Table(
    "pii_vault_revision",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="pii_vault_revision_pkc"),
)
"""Alembic's version table, under a name that cannot meet the application's own."""

application = Table(
    "pii_vault_application",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("uid", LargeBinary(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("evictions", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("length(uid) = 16", name="uid_bytes"),
)
"""Who the application is, and how often a tenant's keys were to be forgotten."""

tenants = Table(
    "pii_vault_tenants",
    metadata,
    Column("uid", LargeBinary(16), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("keyset_id", BigInteger, nullable=False, unique=True),
    Column("suspended", Boolean, nullable=False, default=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("evicted", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("length(uid) = 16", name="uid_bytes"),
    CheckConstraint("length(name) > 0", name="name"),
    CheckConstraint("keyset_id BETWEEN 0 AND 4294967295", name="keyset_id"),
)

policies = Table(
    "pii_vault_policies",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), primary_key=True),
    Column("kms_account", String(32), nullable=False),
    Column("kms_region", String(64), nullable=False),
    Column("rotation_days", Integer),
    Column("follows_kms", Boolean, nullable=False),
    Column("ttl_seconds", Integer, CheckConstraint("ttl_seconds BETWEEN 0 AND 43200", name="ttl_seconds")),
    Column("grace_seconds", Integer, CheckConstraint("grace_seconds BETWEEN 0 AND 43200", name="grace_seconds")),
    Column("pii_encryption", Boolean, nullable=False, server_default=true()),
    CheckConstraint("rotation_days BETWEEN 1 AND 3650", name="rotation_days"),
)
"""What is expected of a tenant's KMS key, how often its data key is rotated, how long its keys are held, and whether
PII encryption is on for it. (A process of an earlier release knows nothing of that, and adds tenants that have it.)"""

keks = Table(
    "pii_vault_keks",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("algorithm", SmallInteger, nullable=False),
    Column("kms_key_arn", String(2048), nullable=False),
    Column("role_arn", String(2048)),
    Column("external_id", String(1224)),
    Column("kms_key_material_id", String(128)),
    Column("wrapped", LargeBinary(6144), nullable=False),
    Column("commitment", LargeBinary(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("replica_regions", String(255)),
    PrimaryKeyConstraint("tenant_uid", "generation"),
    CheckConstraint("generation >= 1", name="generation"),
    CheckConstraint(f"state IN ({_STATES})", name="state"),
    CheckConstraint("length(commitment) = 32", name="commitment_bytes"),
    CheckConstraint("(state = 'destroyed') = (length(wrapped) = 0)", name="wrapped"),
)

keys = Table(
    "pii_vault_keys",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("kek_generation", Integer, nullable=False),
    Column("algorithm", SmallInteger, nullable=False),
    Column("encrypted_key", LargeBinary(48), nullable=False),
    Column("iv", LargeBinary(12), nullable=False),
    Column("commitment", LargeBinary(32), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("activation_mac", LargeBinary(32), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("kms_key_arn", String(2048), nullable=False),
    Column("kms_key_material_id", String(128)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("activated_at", UtcDateTime),
    Column("deactivated_at", UtcDateTime),
    Column("destroyed_at", UtcDateTime),
    Column("previous_version", Integer),
    Column("due_at", UtcDateTime),
    PrimaryKeyConstraint("tenant_uid", "purpose", "version"),
    CheckConstraint("purpose IN ('data', 'index')", name="purpose"),
    CheckConstraint("version BETWEEN 1 AND CASE WHEN purpose = 'data' THEN 65535 ELSE 255 END", name="version"),
    CheckConstraint(f"state IN ({_STATES})", name="state"),
    CheckConstraint("length(iv) = 12", name="iv_bytes"),
    CheckConstraint("length(commitment) = 32", name="commitment_bytes"),
    CheckConstraint("length(encrypted_key) = CASE WHEN state = 'destroyed' THEN 0 ELSE 48 END", name="encrypted_key"),
    CheckConstraint("state <> 'active' OR (length(activation_mac) = 32 AND epoch >= 1)", name="activation"),
)

key_use = Table(
    "pii_vault_key_use",
    metadata,
    Column("tenant_uid", LargeBinary(16), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_uid", "purpose", "version"),
    ForeignKeyConstraint(("tenant_uid", "purpose", "version"), (keys.c.tenant_uid, keys.c.purpose, keys.c.version)),
    CheckConstraint("reserved BETWEEN 0 AND 4294967296", name="reserved"),
)
"""How many values processes have asked to seal with a key. Apart from the key records, which stay still meanwhile."""

audit_keys = Table(
    "pii_vault_audit_keys",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("kms_key_arn", String(2048), nullable=False),
    Column("wrapped", LargeBinary(6144), nullable=False),
    Column("commitment", LargeBinary(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("length(commitment) = 32", name="commitment_bytes"),
)

audit_chains = Table(
    "pii_vault_audit_chains",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), primary_key=True),
    Column("kms_key_arn", String(2048), nullable=False),
    Column("root", LargeBinary(6144), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head", LargeBinary(32), nullable=False),
    Column("sealed_key", LargeBinary(60), nullable=False),
    CheckConstraint("seq >= 1", name="seq"),
    CheckConstraint("length(head) = 32", name="head_bytes"),
    CheckConstraint("length(sealed_key) = 60", name="sealed_key_bytes"),
)
"""The end of each tenant's chain: what the next entry is joined to."""

audit = Table(
    "pii_vault_audit",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("entry", Text, nullable=False),
    Column("mac", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("tenant_uid", "seq"),
    CheckConstraint("seq >= 1", name="seq"),
    CheckConstraint("length(mac) = 32", name="mac_bytes"),
)

index_slots = Table(
    "pii_vault_index_slots",
    metadata,
    Column("tenant_uid", LargeBinary(16), ForeignKey(tenants.c.uid), nullable=False),
    Column("context", String(255), nullable=False),
    Column("number", SmallInteger, nullable=False),
    Column("index_name", String(255), nullable=False),
    Column("form", String(255), nullable=False),
    Column("ready_at", UtcDateTime),
    Column("settled", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant_uid", "context", "number"),
    CheckConstraint("number BETWEEN 0 AND 14", name="number"),
)
"""What stands in the slots of a tenant's sealed values, and since when no value lacks its token there."""

adoptions = Table(
    "pii_vault_adoptions",
    metadata,
    Column("context", String(255), nullable=False),
    Column("number", Integer, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("table_name", String(255), nullable=False),
    Column("plaintext", String(255), nullable=False),
    Column("sealed", String(255), nullable=False),
    Column("fallback_until", UtcDateTime),
    Column("rows", BigInteger),
    Column("made_at", UtcDateTime, nullable=False),
    Column("made_by", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    PrimaryKeyConstraint("context", "number"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(f"stage IN ({_STAGES})", name="stage"),
)
"""How plaintext columns became sealed ones: the steps of each, of which the last one says where it stands."""

onboardings = Table(
    "pii_vault_onboardings",
    metadata,
    Column("tenant_name", String(255), primary_key=True),
    Column("tenant_uid", LargeBinary(16), nullable=False, unique=True),
    Column("keyset_id", BigInteger, nullable=False, unique=True),
    Column("external_id", String(1224), nullable=False),
    Column("way", String(16), nullable=False),
    Column("direct", Boolean, nullable=False),
    Column("kms_partition", String(16), nullable=False),
    Column("kms_account", String(32), nullable=False),
    Column("kms_region", String(64), nullable=False),
    Column("kms_key_arn", String(2048)),
    Column("runtime_role", String(2048), nullable=False),
    Column("rotation_role", String(2048), nullable=False),
    Column("provisioning_role", String(2048)),
    Column("rotation_days", Integer, nullable=False),
    Column("step", String(16), nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    Column("begun_by", String(255), nullable=False),
    Column("step_at", UtcDateTime, nullable=False),
    CheckConstraint("length(tenant_name) > 0", name="tenant_name"),
    CheckConstraint("length(tenant_uid) = 16", name="uid_bytes"),
    CheckConstraint("keyset_id BETWEEN 0 AND 4294967295", name="keyset_id"),
    CheckConstraint(f"way IN ({_WAYS})", name="way"),
    CheckConstraint("rotation_days BETWEEN 90 AND 2560", name="rotation_days"),
    CheckConstraint(f"step IN ({_STEPS})", name="step"),
)
"""What is arranged with customers before their first keys exist. What documents were handed over with stays."""

evicted = Index("ix_pii_vault_tenants_evicted", tenants.c.evicted)

one_active_key = Index(
    "uq_pii_vault_keys_one_active",
    keys.c.tenant_uid,
    keys.c.purpose,
    unique=True,
    postgresql_where=text("state = 'active'"),
    sqlite_where=text("state = 'active'"),
)

one_active_kek = Index(
    "uq_pii_vault_keks_one_active",
    keks.c.tenant_uid,
    unique=True,
    postgresql_where=text("state = 'active'"),
    sqlite_where=text("state = 'active'"),
)

_FIXED = {
    "keys": ("tenant_uid", "purpose", "version", "commitment", "created_at", "reason", "created_by"),
    "keks": ("tenant_uid", "generation", "algorithm", "commitment", "created_at"),
    "key_use": ("tenant_uid", "purpose", "version"),
    "audit_keys": ("id", "commitment", "created_at"),
    "audit_chains": ("tenant_uid", "kms_key_arn", "root"),
    "onboardings": ("tenant_name", "tenant_uid", "keyset_id", "external_id"),
}
"""Columns that nothing legitimate ever changes. (A re-wrap changes the wrapped bytes and the KMS key's address.)"""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the triggers of one table refuse: SQL conditions, and the rule that they stand for."""

    what: str
    key: tuple[str, ...]
    illegal_insert: str | None
    insert_rule: str
    illegal_update: str
    update_rule: str


def _illegal_move(state: str = "state") -> str:
    legal = " OR ".join(
        f"(OLD.{state} = '{before}' AND NEW.{state} = '{after}')"
        for before, afters in TRANSITIONS.items()
        for after in sorted(afters)
    )
    return f"(OLD.{state} <> NEW.{state} AND NOT ({legal}))"


def _changed(table: str) -> str:
    return " OR ".join(f"OLD.{column} <> NEW.{column}" for column in _FIXED[table])


_RULES: Final = {
    "keys": _Rules(
        "key records",
        ("tenant_uid", "purpose", "version"),
        "NEW.state <> 'pre_active'",
        "a new key record is pre_active",
        f"{_illegal_move()} OR {_changed('keys')} OR "
        "COALESCE(OLD.previous_version, 0) <> COALESCE(NEW.previous_version, 0)",
        "key records only move forward",
    ),
    "keks": _Rules(
        "key records",
        ("tenant_uid", "generation"),
        "NEW.state <> 'active'",
        "a new KEK record is active",
        f"{_illegal_move()} OR {_changed('keks')}",
        "key records only move forward",
    ),
    "key_use": _Rules(
        "use counts",
        ("tenant_uid", "purpose", "version"),
        None,
        "",
        f"OLD.reserved > NEW.reserved OR {_changed('key_use')}",
        "use counts only grow",
    ),
    "audit_keys": _Rules(
        "audit keys", ("id",), None, "", _changed("audit_keys"), "an audit key is not changed, only re-wrapped"
    ),
    "audit_chains": _Rules(
        "audit chains",
        ("tenant_uid",),
        "NEW.seq <> 1",
        "an audit chain begins with its first entry",
        f"NEW.seq <> OLD.seq + 1 OR {_changed('audit_chains')}",
        "an audit chain only grows",
    ),
    "audit": _Rules(
        "audit entries",
        ("tenant_uid", "seq"),
        None,
        "",
        "OLD.seq = OLD.seq",
        "audit entries are never changed",
    ),
    "adoptions": _Rules(
        "steps of adoptions",
        ("context", "number"),
        None,
        "",
        "OLD.number = OLD.number",
        "steps of adoptions are never changed",
    ),
    "onboardings": _Rules(
        "onboardings",
        ("tenant_name",),
        None,
        "",
        _changed("onboardings"),
        "an onboarding keeps the identity and the ExternalId that were handed over",
    ),
}


def trigger_statements(dialect: str) -> list[str]:
    """Return the statements that let key records move forward only, use counts grow and audit entries stay."""
    make = _postgresql if dialect == "postgresql" else _sqlite
    return [statement for table, rules in _RULES.items() for statement in make(table, rules)]


def _exists(table: str, rules: _Rules) -> str:
    key = " AND ".join(f"{column} = NEW.{column}" for column in rules.key)
    return f"EXISTS (SELECT 1 FROM pii_vault_{table} WHERE {key})"  # noqa: S608 - our own names


def _postgresql(table: str, rules: _Rules) -> list[str]:
    name = f"pii_vault_{table}_forward_only"
    insert = ""
    if rules.illegal_insert is not None:
        insert = f"""
  ELSIF TG_OP = 'INSERT' THEN
    IF {rules.illegal_insert} THEN
      RAISE EXCEPTION 'pii_vault: {rules.insert_rule}' USING ERRCODE = '23514';
    END IF;"""
    operations = "UPDATE OR DELETE" if rules.illegal_insert is None else "INSERT OR UPDATE OR DELETE"
    return [
        f"""
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'pii_vault: {rules.what} are never deleted' USING ERRCODE = '23514';{insert}
  ELSIF {rules.illegal_update} THEN
    RAISE EXCEPTION 'pii_vault: {rules.update_rule}' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END $$""",
        f"CREATE TRIGGER {name} BEFORE {operations} ON pii_vault_{table} FOR EACH ROW EXECUTE FUNCTION {name}()",
        f"CREATE TRIGGER {name}_truncate BEFORE TRUNCATE ON pii_vault_{table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {name}()",
    ]


def _sqlite(table: str, rules: _Rules) -> list[str]:
    def trigger(operation: str, condition: str | None, rule: str, name: str | None = None) -> str:
        when = f"WHEN {condition} " if condition else ""
        return (
            f"CREATE TRIGGER pii_vault_{table}_{name or operation.lower()} BEFORE {operation} ON pii_vault_{table} "
            f"FOR EACH ROW {when}BEGIN SELECT RAISE(ABORT, 'pii_vault: {rule}'); END"
        )

    made = [trigger("INSERT", rules.illegal_insert, rules.insert_rule)] if rules.illegal_insert else []
    return [
        *made,
        trigger("UPDATE", rules.illegal_update, rules.update_rule),
        trigger("DELETE", None, f"{rules.what} are never deleted"),
        # INSERT OR REPLACE deletes what is there without asking the trigger for that.
        trigger("INSERT", _exists(table, rules), f"{rules.what} are never replaced", "replace"),
    ]


def _listen() -> None:
    for dialect in sorted(DIALECTS):
        for statement in trigger_statements(dialect):
            # DDL() interpolates with %: the statements hold none that is not doubled here.
            ddl: Any = DDL(statement.replace("%", "%%")).execute_if(dialect=dialect)  # type: ignore[no-untyped-call]
            event.listen(metadata, "after_create", ddl)


_listen()
