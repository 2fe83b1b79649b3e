"""The key store learns the life of keys: rotation policies, use counts and the audit log.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNKNOWN_USE = 2147483648
"""What a key that was used before uses were counted starts from: 2^31, at which a key is due for rotation."""

_DAYS = 365

_KEYS_CHANGED = """(OLD.state <> NEW.state AND NOT ((OLD.state = 'pre_active' AND NEW.state = 'active')
  OR (OLD.state = 'pre_active' AND NEW.state = 'compromised')
  OR (OLD.state = 'pre_active' AND NEW.state = 'destroyed')
  OR (OLD.state = 'active' AND NEW.state = 'compromised')
  OR (OLD.state = 'active' AND NEW.state = 'deactivated')
  OR (OLD.state = 'deactivated' AND NEW.state = 'compromised')
  OR (OLD.state = 'deactivated' AND NEW.state = 'destroyed')
  OR (OLD.state = 'compromised' AND NEW.state = 'destroyed')))
  OR OLD.tenant_uid <> NEW.tenant_uid
  OR OLD.purpose <> NEW.purpose
  OR OLD.version <> NEW.version
  OR OLD.commitment <> NEW.commitment
  OR OLD.created_at <> NEW.created_at
  OR OLD.reason <> NEW.reason
  OR OLD.created_by <> NEW.created_by
  OR COALESCE(OLD.previous_version, 0) <> COALESCE(NEW.previous_version, 0)"""

_USE_CHANGED = """OLD.reserved > NEW.reserved OR OLD.tenant_uid <> NEW.tenant_uid OR OLD.purpose <> NEW.purpose
  OR OLD.version <> NEW.version"""

_AUDIT_KEY_CHANGED = """OLD.id <> NEW.id OR OLD.commitment <> NEW.commitment OR OLD.created_at <> NEW.created_at"""

_CHAIN_CHANGED = """NEW.seq <> OLD.seq + 1 OR OLD.tenant_uid <> NEW.tenant_uid OR OLD.kms_key_arn <> NEW.kms_key_arn
  OR OLD.root <> NEW.root"""


def upgrade() -> None:
    """Add what the life of keys needs, and fill it for the tenants and keys that are there."""
    _add_columns()
    _create_policies()
    _create_key_use()
    _create_audit()
    # Before the new triggers, which would refuse it.
    _fill(op.get_bind())
    _create_triggers()


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")


def _add_columns() -> None:
    op.add_column("pii_vault_keys", sa.Column("previous_version", sa.Integer))
    op.add_column("pii_vault_keys", sa.Column("due_at", sa.DateTime(timezone=True)))


def _create_policies() -> None:
    op.create_table(
        "pii_vault_policies",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("kms_account", sa.String(32), nullable=False),
        sa.Column("kms_region", sa.String(64), nullable=False),
        sa.Column("rotation_days", sa.Integer),
        sa.Column("follows_kms", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", name=op.f("pk_pii_vault_policies")),
        sa.CheckConstraint("rotation_days BETWEEN 1 AND 3650", name=op.f("ck_pii_vault_policies_rotation_days")),
        sa.ForeignKeyConstraint(
            ["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_policies_tenant_uid")
        ),
    )


def _create_key_use() -> None:
    op.create_table(
        "pii_vault_key_use",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", "purpose", "version", name=op.f("pk_pii_vault_key_use")),
        sa.CheckConstraint("reserved BETWEEN 0 AND 4294967296", name=op.f("ck_pii_vault_key_use_reserved")),
        sa.ForeignKeyConstraint(
            ["tenant_uid", "purpose", "version"],
            ["pii_vault_keys.tenant_uid", "pii_vault_keys.purpose", "pii_vault_keys.version"],
            name=op.f("fk_pii_vault_key_use_tenant_uid"),
        ),
    )


def _create_audit() -> None:
    op.create_table(
        "pii_vault_audit_keys",
        sa.Column("id", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("kms_key_arn", sa.String(2048), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(6144), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pii_vault_audit_keys")),
        sa.CheckConstraint("id = 1", name=op.f("ck_pii_vault_audit_keys_one_row")),
        sa.CheckConstraint("length(commitment) = 32", name=op.f("ck_pii_vault_audit_keys_commitment_bytes")),
    )
    op.create_table(
        "pii_vault_audit_chains",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("kms_key_arn", sa.String(2048), nullable=False),
        sa.Column("root", sa.LargeBinary(6144), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("head", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(60), nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", name=op.f("pk_pii_vault_audit_chains")),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_pii_vault_audit_chains_seq")),
        sa.CheckConstraint("length(head) = 32", name=op.f("ck_pii_vault_audit_chains_head_bytes")),
        sa.CheckConstraint("length(sealed_key) = 60", name=op.f("ck_pii_vault_audit_chains_sealed_key_bytes")),
        sa.ForeignKeyConstraint(
            ["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_audit_chains_tenant_uid")
        ),
    )
    op.create_table(
        "pii_vault_audit",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("mac", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", "seq", name=op.f("pk_pii_vault_audit")),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_pii_vault_audit_seq")),
        sa.CheckConstraint("length(mac) = 32", name=op.f("ck_pii_vault_audit_mac_bytes")),
        sa.ForeignKeyConstraint(["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_audit_tenant_uid")),
    )


def _create_triggers() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(_function("keys", "key records", _KEYS_CHANGED, "key records only move forward", replace=True))
        _postgresql("key_use", "use counts", _USE_CHANGED, "use counts only grow")
        _postgresql("audit_keys", "audit keys", _AUDIT_KEY_CHANGED, "an audit key is not changed, only re-wrapped")
        _postgresql("audit_chains", "audit chains", _CHAIN_CHANGED, "an audit chain only grows", insert=True)
        _postgresql("audit", "audit entries", "OLD.seq = OLD.seq", "audit entries are never changed")
    else:
        op.execute("DROP TRIGGER pii_vault_keys_update")
        _sqlite_trigger("keys", "UPDATE", _KEYS_CHANGED, "key records only move forward")
        key = ("tenant_uid", "purpose", "version")
        _sqlite("key_use", key, "use counts", _USE_CHANGED, "use counts only grow")
        _sqlite("audit_keys", ("id",), "audit keys", _AUDIT_KEY_CHANGED, "an audit key is not changed, only re-wrapped")
        _sqlite_trigger("audit_chains", "INSERT", "NEW.seq <> 1", "an audit chain begins with its first entry")
        _sqlite("audit_chains", ("tenant_uid",), "audit chains", _CHAIN_CHANGED, "an audit chain only grows")
        _sqlite("audit", ("tenant_uid", "seq"), "audit entries", "OLD.seq = OLD.seq", "audit entries are never changed")


_INSERT_RULES = {
    "keys": ("NEW.state <> 'pre_active'", "a new key record is pre_active"),
    "audit_chains": ("NEW.seq <> 1", "an audit chain begins with its first entry"),
}


def _function(table: str, what: str, illegal_update: str, rule: str, *, replace: bool = False) -> str:
    insert = ""
    if table in _INSERT_RULES:
        condition, insert_rule = _INSERT_RULES[table]
        insert = f"""
  ELSIF TG_OP = 'INSERT' THEN
    IF {condition} THEN
      RAISE EXCEPTION 'pii_vault: {insert_rule}' USING ERRCODE = '23514';
    END IF;"""
    create = "CREATE OR REPLACE FUNCTION" if replace else "CREATE FUNCTION"
    return f"""
{create} pii_vault_{table}_forward_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'pii_vault: {what} are never deleted' USING ERRCODE = '23514';{insert}
  ELSIF {illegal_update} THEN
    RAISE EXCEPTION 'pii_vault: {rule}' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END $$"""


def _postgresql(table: str, what: str, illegal_update: str, rule: str, *, insert: bool = False) -> None:
    name = f"pii_vault_{table}_forward_only"
    op.execute(_function(table, what, illegal_update, rule))
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {'INSERT OR ' if insert else ''}UPDATE OR DELETE ON pii_vault_{table} "
        f"FOR EACH ROW EXECUTE FUNCTION {name}()"
    )
    op.execute(
        f"CREATE TRIGGER {name}_truncate BEFORE TRUNCATE ON pii_vault_{table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {name}()"
    )


def _sqlite(table: str, key: tuple[str, ...], what: str, illegal_update: str, rule: str) -> None:
    exists = " AND ".join(f"{column} = NEW.{column}" for column in key)
    _sqlite_trigger(table, "UPDATE", illegal_update, rule)
    _sqlite_trigger(table, "DELETE", None, f"{what} are never deleted")
    replaced = f"EXISTS (SELECT 1 FROM pii_vault_{table} WHERE {exists})"  # noqa: S608 - our own names
    _sqlite_trigger(table, "INSERT", replaced, f"{what} are never replaced", "replace")


def _sqlite_trigger(table: str, operation: str, condition: str | None, rule: str, name: str | None = None) -> None:
    when = f"WHEN {condition} " if condition else ""
    op.execute(
        f"CREATE TRIGGER pii_vault_{table}_{name or operation.lower()} BEFORE {operation} ON pii_vault_{table} "
        f"FOR EACH ROW {when}BEGIN SELECT RAISE(ABORT, 'pii_vault: {rule}'); END"
    )


def _fill(connection: sa.Connection) -> None:
    """Give every tenant a policy from its KMS key's address, and every key what is known of it."""
    connection.execute(
        sa.text(
            "INSERT INTO pii_vault_key_use (tenant_uid, purpose, version, reserved) "
            "SELECT tenant_uid, purpose, version, CAST(:unknown AS BIGINT) FROM pii_vault_keys"
        ).bindparams(unknown=_UNKNOWN_USE)
    )
    connection.execute(sa.text("UPDATE pii_vault_keys SET previous_version = version - 1 WHERE version > 1"))
    if connection.dialect.name == "postgresql":
        due = f"activated_at + interval '{_DAYS} days'"
    else:
        due = f"strftime('%Y-%m-%d %H:%M:%f', activated_at, '+{_DAYS} days') || '000'"
    connection.execute(sa.text(f"UPDATE pii_vault_keys SET due_at = {due} WHERE state = 'active'"))  # noqa: S608
    rows = connection.execute(sa.text("SELECT tenant_uid, kms_key_arn FROM pii_vault_keks WHERE state = 'active'"))
    for tenant_uid, arn in rows.all():
        region, account = arn.split(":")[3:5]
        connection.execute(
            sa.text(
                "INSERT INTO pii_vault_policies (tenant_uid, kms_account, kms_region, follows_kms) "
                "VALUES (:uid, :account, :region, :follows)"
            ).bindparams(uid=tenant_uid, account=account, region=region, follows=False)
        )
