"""Sealed columns beside the plaintext ones, as autogenerate writes them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("customers", sa.Column("email_sealed", sa.LargeBinary(), nullable=True))
    op.create_blind_index("ix_customers_email_sealed_blind", "customers", "email_sealed", slot=0)
    op.add_column("notes", sa.Column("body_sealed", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.drop_column("notes", "body_sealed")
    op.drop_blind_index("ix_customers_email_sealed_blind", "customers", "email_sealed", slot=0)
    op.drop_column("customers", "email_sealed")
