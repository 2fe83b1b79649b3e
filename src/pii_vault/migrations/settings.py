"""What a migration does not say itself: the vault, and whose rows are whose. Both are in ``env.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alembic.runtime.migration import MigrationContext

from ..errors import ConfigurationError
from ..keyring import Keyring
from ..orm.attachment import attached
from ..vault import Vault

if TYPE_CHECKING:
    from alembic.operations import Operations

OPTION: Final = "pii_vault"
"""The argument of ``context.configure``."""


def vault_of(operations: Operations, given: Any, name: str) -> Vault:
    """Return the vault that an operation was given, or that ``env.py`` has named.

    Raises:
        ConfigurationError: neither is there.
    """
    vault = given if given is not None else operations.migration_context.opts.get(OPTION)
    if isinstance(vault, Vault):
        return vault
    raise ConfigurationError(
        f"op.{name} needs the vault", hint=f"name it in env.py: context.configure(…, {OPTION}=vault)"
    )


def attached_tenant_column(context: MigrationContext) -> str | None:
    """Return the tenant column for which the migration's engine is attached to a vault, or None."""
    attachment = attached(context.dialect)
    return attachment.tenant_column if attachment is not None else None


def keyring_of(vault: Vault) -> Keyring:
    """Return a vault's keyring: a scope that is not entered asks nobody for anything."""
    return vault.tenant("").keyring


def refuse_sql(operations: Operations, name: str, instead: str) -> None:
    """Refuse to write values into a file of SQL.

    Raises:
        ConfigurationError: SQL is to be written.
    """
    if operations.migration_context.as_sql:
        raise ConfigurationError(f"op.{name} moves values, which cannot be written as SQL", hint=instead)
