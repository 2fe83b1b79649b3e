"""The application's Alembic environment. What is particular to pii_vault are three arguments."""

import warnings

from alembic import context
from sqlalchemy.exc import SAWarning

from pii_vault.migrations import include_object, render_item

# On SQLite, SQLAlchemy cannot read an index over an expression. We make those anew ourselves.
warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index", SAWarning)

given = context.config.attributes
with given["engine"].connect() as connection:
    context.configure(
        connection=connection,
        version_table=given["version_table"],
        include_object=include_object,
        render_item=render_item,
        pii_vault=given["vault"],
    )
    with context.begin_transaction():
        context.run_migrations()
