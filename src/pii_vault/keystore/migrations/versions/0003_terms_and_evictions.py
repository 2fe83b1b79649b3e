"""The key store learns how long each tenant's keys are held, and how to ask all processes to forget them.

This file is frozen: databases have run it. It says everything itself and imports nothing that can change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Tenants have no terms of their own yet, and none was evicted."""
    for name in ("ttl_seconds", "grace_seconds"):
        bounds = sa.CheckConstraint(f"{name} BETWEEN 0 AND 43200", name=op.f(f"ck_pii_vault_policies_{name}"))
        op.add_column("pii_vault_policies", sa.Column(name, sa.Integer, bounds))
    op.add_column("pii_vault_application", sa.Column("evictions", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("pii_vault_tenants", sa.Column("evicted", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index(op.f("ix_pii_vault_tenants_evicted"), "pii_vault_tenants", ["evicted"])


def downgrade() -> None:
    """Refuse: a key store that loses its tables loses every key, and with them all data."""
    raise NotImplementedError("a key store is not downgraded; restore a backup instead")
