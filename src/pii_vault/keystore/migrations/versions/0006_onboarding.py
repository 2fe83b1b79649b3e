"""The key store learns what is arranged with customers, who has PII encryption, and where KMS keys have replicas.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_CHANGED = (
    "OLD.tenant_name <> NEW.tenant_name OR OLD.tenant_uid <> NEW.tenant_uid OR OLD.keyset_id <> NEW.keyset_id "
    "OR OLD.external_id <> NEW.external_id"
)
_RULE = "an onboarding keeps the identity and the ExternalId that were handed over"

_POSTGRESQL = (
    f"""
CREATE FUNCTION pii_vault_onboardings_forward_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'pii_vault: onboardings are never deleted' USING ERRCODE = '23514';
  ELSIF {_CHANGED} THEN
    RAISE EXCEPTION 'pii_vault: {_RULE}' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END $$""",
    "CREATE TRIGGER pii_vault_onboardings_forward_only BEFORE UPDATE OR DELETE ON pii_vault_onboardings "
    "FOR EACH ROW EXECUTE FUNCTION pii_vault_onboardings_forward_only()",
    "CREATE TRIGGER pii_vault_onboardings_forward_only_truncate BEFORE TRUNCATE ON pii_vault_onboardings "
    "FOR EACH STATEMENT EXECUTE FUNCTION pii_vault_onboardings_forward_only()",
)

_SQLITE = (
    "CREATE TRIGGER pii_vault_onboardings_update BEFORE UPDATE ON pii_vault_onboardings FOR EACH ROW "
    f"WHEN {_CHANGED} BEGIN SELECT RAISE(ABORT, 'pii_vault: {_RULE}'); END",
    "CREATE TRIGGER pii_vault_onboardings_delete BEFORE DELETE ON pii_vault_onboardings FOR EACH ROW "
    "BEGIN SELECT RAISE(ABORT, 'pii_vault: onboardings are never deleted'); END",
    "CREATE TRIGGER pii_vault_onboardings_replace BEFORE INSERT ON pii_vault_onboardings FOR EACH ROW "
    "WHEN EXISTS (SELECT 1 FROM pii_vault_onboardings WHERE tenant_name = NEW.tenant_name) "
    "BEGIN SELECT RAISE(ABORT, 'pii_vault: onboardings are never replaced'); END",
)


def upgrade() -> None:
    """Add the columns and the table. Tenants that are there have PII encryption; no KMS key has replicas yet."""
    op.add_column(
        "pii_vault_policies", sa.Column("pii_encryption", sa.Boolean, nullable=False, server_default=sa.true())
    )
    op.add_column("pii_vault_keks", sa.Column("replica_regions", sa.String(255)))
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "pii_vault_onboardings",
        sa.Column("tenant_name", sa.String(255), nullable=False),
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("keyset_id", sa.BigInteger, nullable=False),
        sa.Column("external_id", sa.String(1224), nullable=False),
        sa.Column("way", sa.String(16), nullable=False),
        sa.Column("direct", sa.Boolean, nullable=False),
        sa.Column("kms_partition", sa.String(16), nullable=False),
        sa.Column("kms_account", sa.String(32), nullable=False),
        sa.Column("kms_region", sa.String(64), nullable=False),
        sa.Column("kms_key_arn", sa.String(2048)),
        sa.Column("runtime_role", sa.String(2048), nullable=False),
        sa.Column("rotation_role", sa.String(2048), nullable=False),
        sa.Column("provisioning_role", sa.String(2048)),
        sa.Column("rotation_days", sa.Integer, nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("begun_at", instant, nullable=False),
        sa.Column("begun_by", sa.String(255), nullable=False),
        sa.Column("step_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant_name", name=op.f("pk_pii_vault_onboardings")),
        sa.UniqueConstraint("tenant_uid", name=op.f("uq_pii_vault_onboardings_tenant_uid")),
        sa.UniqueConstraint("keyset_id", name=op.f("uq_pii_vault_onboardings_keyset_id")),
        sa.CheckConstraint("length(tenant_name) > 0", name=op.f("ck_pii_vault_onboardings_tenant_name")),
        sa.CheckConstraint("length(tenant_uid) = 16", name=op.f("ck_pii_vault_onboardings_uid_bytes")),
        sa.CheckConstraint("keyset_id BETWEEN 0 AND 4294967295", name=op.f("ck_pii_vault_onboardings_keyset_id")),
        sa.CheckConstraint("way IN ('shared', 'created')", name=op.f("ck_pii_vault_onboardings_way")),
        sa.CheckConstraint("rotation_days BETWEEN 90 AND 2560", name=op.f("ck_pii_vault_onboardings_rotation_days")),
        sa.CheckConstraint(
            "step IN ('begun', 'handed_over', 'made', 'proven', 'registered')",
            name=op.f("ck_pii_vault_onboardings_step"),
        ),
    )
    for statement in _POSTGRESQL if op.get_bind().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")
