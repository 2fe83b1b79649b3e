"""advanced-alchemy: `EncryptedString`, which is Fernet over a key from the settings."""

from __future__ import annotations

import secrets

from advanced_alchemy.types import EncryptedText

from . import Peer, from_type

DISTRIBUTION = "advanced-alchemy"


def peers() -> list[Peer]:
    key = secrets.token_hex(32)
    return [from_type("advanced-alchemy", lambda: EncryptedText(key=key))]
