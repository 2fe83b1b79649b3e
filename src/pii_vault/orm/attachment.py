"""What `Vault.attach` leaves on an engine: how a column type finds out that it is in good hands.

A type has only a dialect when it makes its processors. An attached engine's dialect compiles statements with the
checked compiler, and that compiler class carries the attachment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Dialect

from ..errors import ConfigurationError
from ..keyring import Keyring
from ..scope import Scope, current

_ATTRIBUTE: Final = "pii_vault_attachment"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One vault's hold on one engine.

    Attributes:
        keyring: The vault's keyring.
        default: The scope of an application's only tenant, or None.
        tenant_column: The name of the column that says whose row it is, or None.
    """

    keyring: Keyring
    default: Scope | None
    tenant_column: str | None

    def scope(self) -> Scope | None:
        """Return the scope in force: the ambient one, else the default."""
        return current.get() or self.default


def attached(dialect: Dialect) -> Attachment | None:
    """Return the attachment of a dialect, or None."""
    return getattr(dialect.statement_compiler, _ATTRIBUTE, None)


def required(dialect: Dialect) -> Attachment:
    """Return the attachment of a dialect.

    Raises:
        ConfigurationError: its engine is not attached: statements on it would go unchecked.
    """
    attachment = attached(dialect)
    if attachment is None:
        raise ConfigurationError(
            "an encrypted column is used through an engine that is not attached to a vault",
            hint="call vault.attach(engine) once, right after create_engine",
        )
    return attachment
