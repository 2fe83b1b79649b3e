"""What a worker of `reencrypt` does: it opens the application's vault for itself, and seals a part of a table anew."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from .application import metadata_of

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

    from ..config import Settings
    from ..reencryption.crews import Part, PartDone
    from ..vault import Vault

_lock: Final = threading.Lock()


@dataclass(frozen=True)
class ApplicationTask:
    """Does a part in a process of its own.

    Attributes:
        metadata: Where the application's tables are, ``module:name``.
        tenant_column: The column that says whose row it is, or None.
        settings: From which a vault is made. None on another machine: there its own environment says it, so that no
            password goes over a network.
    """

    metadata: str
    tenant_column: str | None
    settings: Settings | None = None

    def __call__(self, part: Part) -> PartDone:
        """Do it."""
        with _lock:  # threads of one process share a vault
            vault, engine, tables = _opened(self)
        return vault.reencrypt_part(part, metadata=tables, engine=engine)


@cache
def _opened(task: ApplicationTask) -> tuple[Vault, Engine, MetaData]:
    from ..config import load

    settings = task.settings or load()
    vault, engine, tables = settings.make_vault(), settings.make_application_engine(), metadata_of(task.metadata)
    vault.attach(engine, tenant_column=task.tenant_column)
    return vault, engine, tables
