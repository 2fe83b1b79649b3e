"""The application's Alembic environment. What is particular to pii_vault are three arguments."""

from alembic import context

from pii_vault.migrations import include_object, render_item

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
