"""sqlalchemy-utils: `StringEncryptedType` with each of its two authenticated engines."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import String
from sqlalchemy_utils import StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesGcmEngine, FernetEngine

from . import Peer, from_type

DISTRIBUTION = "sqlalchemy-utils"


def peers() -> list[Peer]:
    key = secrets.token_urlsafe(32)

    def typed(engine: Any) -> Any:
        return lambda: StringEncryptedType(String, key, engine)

    return [
        from_type("sqlalchemy-utils AesGcm", typed(AesGcmEngine)),
        from_type("sqlalchemy-utils Fernet", typed(FernetEngine)),
    ]
