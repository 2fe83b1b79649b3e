"""The key store learns in which slots all of a tenant's values have their blind-index token.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Nothing was searched yet, so no slot is known to be ready."""
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "pii_vault_ready_slots",
        sa.Column("tenant_uid", sa.LargeBinary(16), nullable=False),
        sa.Column("context", sa.String(255), nullable=False),
        sa.Column("number", sa.SmallInteger, nullable=False),
        sa.Column("index_name", sa.String(255), nullable=False),
        sa.Column("form", sa.String(255), nullable=False),
        sa.Column("since", instant, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant_uid", "context", "number", name=op.f("pk_pii_vault_ready_slots")),
        sa.ForeignKeyConstraint(
            ["tenant_uid"], ["pii_vault_tenants.uid"], name=op.f("fk_pii_vault_ready_slots_tenant_uid")
        ),
        sa.CheckConstraint("number BETWEEN 0 AND 14", name=op.f("ck_pii_vault_ready_slots_number")),
    )


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")
