"""The key store learns how far the adoption of plaintext columns is, and how it came there.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_POSTGRESQL = (
    """
CREATE FUNCTION pii_vault_adoptions_forward_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'pii_vault: steps of adoptions are never deleted' USING ERRCODE = '23514';
  ELSIF OLD.number = OLD.number THEN
    RAISE EXCEPTION 'pii_vault: steps of adoptions are never changed' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END $$""",
    "CREATE TRIGGER pii_vault_adoptions_forward_only BEFORE UPDATE OR DELETE ON pii_vault_adoptions "
    "FOR EACH ROW EXECUTE FUNCTION pii_vault_adoptions_forward_only()",
    "CREATE TRIGGER pii_vault_adoptions_forward_only_truncate BEFORE TRUNCATE ON pii_vault_adoptions "
    "FOR EACH STATEMENT EXECUTE FUNCTION pii_vault_adoptions_forward_only()",
)

_SQLITE = (
    "CREATE TRIGGER pii_vault_adoptions_update BEFORE UPDATE ON pii_vault_adoptions FOR EACH ROW "
    "WHEN OLD.number = OLD.number BEGIN SELECT RAISE(ABORT, 'pii_vault: steps of adoptions are never changed'); END",
    "CREATE TRIGGER pii_vault_adoptions_delete BEFORE DELETE ON pii_vault_adoptions FOR EACH ROW "
    "BEGIN SELECT RAISE(ABORT, 'pii_vault: steps of adoptions are never deleted'); END",
    "CREATE TRIGGER pii_vault_adoptions_replace BEFORE INSERT ON pii_vault_adoptions FOR EACH ROW "
    "WHEN EXISTS (SELECT 1 FROM pii_vault_adoptions WHERE context = NEW.context AND number = NEW.number) "
    "BEGIN SELECT RAISE(ABORT, 'pii_vault: steps of adoptions are never replaced'); END",
)


def upgrade() -> None:
    """Add the table. Nothing was adopted yet."""
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "pii_vault_adoptions",
        sa.Column("context", sa.String(255), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("table_name", sa.String(255), nullable=False),
        sa.Column("plaintext", sa.String(255), nullable=False),
        sa.Column("sealed", sa.String(255), nullable=False),
        sa.Column("fallback_until", instant),
        sa.Column("rows", sa.BigInteger),
        sa.Column("made_at", instant, nullable=False),
        sa.Column("made_by", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("context", "number", name=op.f("pk_pii_vault_adoptions")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_pii_vault_adoptions_number")),
        sa.CheckConstraint(
            "stage IN ('none', 'added', 'filled', 'verified', 'switched', 'retired', 'emptied')",
            name=op.f("ck_pii_vault_adoptions_stage"),
        ),
    )
    for statement in _POSTGRESQL if op.get_bind().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")
