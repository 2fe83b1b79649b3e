"""The plaintext columns go, when `adopt` has emptied them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.drop_index("ix_customers_email", "customers")
    with op.batch_alter_table("customers") as customers:
        customers.drop_column("email")
    with op.batch_alter_table("notes") as notes:
        notes.drop_column("body")
    # Where batch mode makes the table anew (SQLite), an index over an expression is lost with the old one.
    op.create_blind_index("ix_customers_email_sealed_blind", "customers", "email_sealed", slot=0, if_not_exists=True)


def downgrade() -> None:
    op.add_column("notes", sa.Column("body", sa.Text))
    op.add_column("customers", sa.Column("email", sa.String(100)))
    op.create_index("ix_customers_email", "customers", ["email"])
