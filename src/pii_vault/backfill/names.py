"""Names of what we add to an application's tables: short enough for every database, and always the same."""

from __future__ import annotations

import hashlib
from typing import Final

_LONGEST: Final = 63
"""A name of PostgreSQL's, in bytes; MariaDB takes one character more."""


def own_name(what: str, *parts: str) -> str:
    """Return a name of ours: ``pii_vault_sealed_email``."""
    whole = "_".join(parts)
    name = f"pii_vault_{what}_{whole}"
    if len(name.encode()) <= _LONGEST:
        return name
    return f"pii_vault_{what}_{hashlib.sha256(whole.encode()).hexdigest()[:32]}"
