"""Alembic's entry for whoever runs `alembic` itself, to write the next revision. Users run `pii-vault db upgrade`.

It configures no logging: the application's stays as it is.
"""

from alembic import context
from sqlalchemy import NullPool, engine_from_config

from pii_vault.keystore import upgrade

if context.is_offline_mode():
    context.configure(dialect_name=context.get_x_argument(as_dictionary=True)["dialect"], **upgrade.options())
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = engine_from_config(context.config.get_section(context.config.config_ini_section, {}), poolclass=NullPool)
    with engine.begin() as connection:
        context.configure(connection=connection, **upgrade.options())
        context.run_migrations()
