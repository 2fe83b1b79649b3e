"""The key store as of the first release: tenants, KEKs, keys, and what keeps their records from moving backwards.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATES = "state IN ('pre_active', 'active', 'deactivated', 'compromised', 'destroyed')"

_MOVED = """(OLD.state <> NEW.state AND NOT ((OLD.state = 'pre_active' AND NEW.state = 'active')
  OR (OLD.state = 'pre_active' AND NEW.state = 'compromised')
  OR (OLD.state = 'pre_active' AND NEW.state = 'destroyed')
  OR (OLD.state = 'active' AND NEW.state = 'compromised')
  OR (OLD.state = 'active' AND NEW.state = 'deactivated')
  OR (OLD.state = 'deactivated' AND NEW.state = 'compromised')
  OR (OLD.state = 'deactivated' AND NEW.state = 'destroyed')
  OR (OLD.state = 'compromised' AND NEW.state = 'destroyed')))"""

_KEY_CHANGED = f"""{_MOVED}
  OR OLD.tenant_uid <> NEW.tenant_uid
  OR OLD.purpose <> NEW.purpose
  OR OLD.version <> NEW.version
  OR OLD.commitment <> NEW.commitment
  OR OLD.created_at <> NEW.created_at
  OR OLD.reason <> NEW.reason
  OR OLD.created_by <> NEW.created_by"""

_KEK_CHANGED = f"""{_MOVED}
  OR OLD.tenant_uid <> NEW.tenant_uid
  OR OLD.generation <> NEW.generation
  OR OLD.algorithm <> NEW.algorithm
  OR OLD.commitment <> NEW.commitment
  OR OLD.created_at <> NEW.created_at"""


def upgrade() -> None:
    """Create the tables, their indexes and their triggers."""
    _create_application()
    _create_tenants()
    _create_keks()
    _create_keys()
    if op.get_context().dialect.name == "postgresql":
        _postgresql_triggers("keys", "NEW.state <> 'pre_active'", "a new key record is pre_active", _KEY_CHANGED)
        _postgresql_triggers("keks", "NEW.state <> 'active'", "a new KEK record is active", _KEK_CHANGED)
    else:
        _sqlite_triggers("keys", "NEW.state <> 'pre_active'", "a new key record is pre_active", _KEY_CHANGED)
        _sqlite_triggers("keks", "NEW.state <> 'active'", "a new KEK record is active", _KEK_CHANGED)


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")


def _create_application() -> None:
    op.create_table(
        "pii_vault_application",
        sa.Column("id", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("uid", sa.LargeBinary(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pii_vault_application")),
        sa.CheckConstraint("id = 1", name=op.f("ck_pii_vault_application_one_row")),
        sa.CheckConstraint("length(uid) = 16", name=op.f("ck_pii_vault_application_uid_bytes")),
    )


def _create_tenants() -> None:
    op.create_table(
        "pii_vault_tenants",
        sa.Column("uid", sa.LargeBinary(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("keyset_id", sa.BigInteger, nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_pii_vault_tenants")),
        sa.CheckConstraint("length(uid) = 16", name=op.f("ck_pii_vault_tenants_uid_bytes")),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_pii_vault_tenants_name")),
        sa.CheckConstraint("keyset_id BETWEEN 0 AND 4294967295", name=op.f("ck_pii_vault_tenants_keyset_id")),
        sa.UniqueConstraint("name", name=op.f("uq_pii_vault_tenants_name")),
        sa.UniqueConstraint("keyset_id", name=op.f("uq_pii_vault_tenants_keyset_id")),
    )


def _create_keks() -> None:
    op.create_table(
        "pii_vault_keks",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("algorithm", sa.SmallInteger, nullable=False),
        sa.Column("kms_key_arn", sa.String(2048), nullable=False),
        sa.Column("role_arn", sa.String(2048)),
        sa.Column("external_id", sa.String(1224)),
        sa.Column("kms_key_material_id", sa.String(128)),
        sa.Column("wrapped", sa.LargeBinary(6144), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", "generation", name=op.f("pk_pii_vault_keks")),
        sa.CheckConstraint("generation >= 1", name=op.f("ck_pii_vault_keks_generation")),
        sa.CheckConstraint(_STATES, name=op.f("ck_pii_vault_keks_state")),
        sa.CheckConstraint("length(commitment) = 32", name=op.f("ck_pii_vault_keks_commitment_bytes")),
        sa.CheckConstraint("(state = 'destroyed') = (length(wrapped) = 0)", name=op.f("ck_pii_vault_keks_wrapped")),
        sa.ForeignKeyConstraint(["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_keks_tenant_uid")),
    )
    op.create_index(
        "uq_pii_vault_keks_one_active",
        "pii_vault_keks",
        ["tenant_uid"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
        sqlite_where=sa.text("state = 'active'"),
    )


def _create_keys() -> None:
    op.create_table(
        "pii_vault_keys",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("kek_generation", sa.Integer, nullable=False),
        sa.Column("algorithm", sa.SmallInteger, nullable=False),
        sa.Column("encrypted_key", sa.LargeBinary(48), nullable=False),
        sa.Column("iv", sa.LargeBinary(12), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("activation_mac", sa.LargeBinary(32), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("kms_key_arn", sa.String(2048), nullable=False),
        sa.Column("kms_key_material_id", sa.String(128)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True)),
        sa.Column("deactivated_at", sa.DateTime(timezone=True)),
        sa.Column("destroyed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("tenant_uid", "purpose", "version", name=op.f("pk_pii_vault_keys")),
        sa.CheckConstraint("purpose IN ('data', 'index')", name=op.f("ck_pii_vault_keys_purpose")),
        sa.CheckConstraint(
            "version BETWEEN 1 AND CASE WHEN purpose = 'data' THEN 65535 ELSE 255 END",
            name=op.f("ck_pii_vault_keys_version"),
        ),
        sa.CheckConstraint(_STATES, name=op.f("ck_pii_vault_keys_state")),
        sa.CheckConstraint("length(iv) = 12", name=op.f("ck_pii_vault_keys_iv_bytes")),
        sa.CheckConstraint("length(commitment) = 32", name=op.f("ck_pii_vault_keys_commitment_bytes")),
        sa.CheckConstraint(
            "length(encrypted_key) = CASE WHEN state = 'destroyed' THEN 0 ELSE 48 END",
            name=op.f("ck_pii_vault_keys_encrypted_key"),
        ),
        sa.CheckConstraint(
            "state <> 'active' OR (length(activation_mac) = 32 AND epoch >= 1)",
            name=op.f("ck_pii_vault_keys_activation"),
        ),
        sa.ForeignKeyConstraint(["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_keys_tenant_uid")),
    )
    op.create_index(
        "uq_pii_vault_keys_one_active",
        "pii_vault_keys",
        ["tenant_uid", "purpose"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
        sqlite_where=sa.text("state = 'active'"),
    )


_EXISTS = {
    "keys": "EXISTS (SELECT 1 FROM pii_vault_keys WHERE tenant_uid = NEW.tenant_uid AND purpose = NEW.purpose "
    "AND version = NEW.version)",
    "keks": "EXISTS (SELECT 1 FROM pii_vault_keks WHERE tenant_uid = NEW.tenant_uid AND generation = NEW.generation)",
}


def _postgresql_triggers(table: str, illegal_insert: str, insert_rule: str, illegal_update: str) -> None:
    name = f"pii_vault_{table}_forward_only"
    op.execute(
        f"""
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'pii_vault: key records are never deleted' USING ERRCODE = '23514';
  ELSIF TG_OP = 'INSERT' THEN
    IF {illegal_insert} THEN
      RAISE EXCEPTION 'pii_vault: {insert_rule}' USING ERRCODE = '23514';
    END IF;
  ELSIF {illegal_update} THEN
    RAISE EXCEPTION 'pii_vault: key records only move forward' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END $$"""
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OR DELETE ON pii_vault_{table} "
        f"FOR EACH ROW EXECUTE FUNCTION {name}()"
    )
    op.execute(
        f"CREATE TRIGGER {name}_truncate BEFORE TRUNCATE ON pii_vault_{table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {name}()"
    )


def _sqlite_triggers(table: str, illegal_insert: str, insert_rule: str, illegal_update: str) -> None:
    _sqlite_trigger(table, "INSERT", f"WHEN {illegal_insert} ", insert_rule)
    _sqlite_trigger(table, "UPDATE", f"WHEN {illegal_update} ", "key records only move forward")
    _sqlite_trigger(table, "DELETE", "", "key records are never deleted")
    _sqlite_trigger(table, "INSERT", f"WHEN {_EXISTS[table]} ", "key records are never replaced", "replace")


def _sqlite_trigger(table: str, operation: str, condition: str, rule: str, name: str | None = None) -> None:
    op.execute(
        f"CREATE TRIGGER pii_vault_{table}_{name or operation.lower()} BEFORE {operation} ON pii_vault_{table} "
        f"FOR EACH ROW {condition}BEGIN SELECT RAISE(ABORT, 'pii_vault: {rule}'); END"
    )
