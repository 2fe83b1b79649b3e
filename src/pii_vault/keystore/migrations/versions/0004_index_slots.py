"""The key store learns what stands in the slots of sealed values, and where no value lacks its blind-index token.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Nothing was sealed with tokens yet."""
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "pii_vault_index_slots",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("context", sa.String(255), nullable=False),
        sa.Column("number", sa.SmallInteger, nullable=False),
        sa.Column("index_name", sa.String(255), nullable=False),
        sa.Column("form", sa.String(255), nullable=False),
        sa.Column("ready_at", instant),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", "context", "number", name=op.f("pk_pii_vault_index_slots")),
        sa.ForeignKeyConstraint(
            ["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_index_slots_tenant_uid")
        ),
        sa.CheckConstraint("number BETWEEN 0 AND 14", name=op.f("ck_pii_vault_index_slots_number")),
    )


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")
