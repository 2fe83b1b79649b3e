"""pydantic-encryption: its column type over Fernet. With AWS KMS it makes one call a value: see kms_calls.py."""

from __future__ import annotations

import importlib
import os
from typing import Any

from . import Peer, from_type

DISTRIBUTION = "pydantic-encryption"


def peers() -> list[Peer]:
    from cryptography.fernet import Fernet

    # Its settings are read from the environment when it is imported.
    os.environ.setdefault("ENCRYPTION_METHOD", "fernet")
    os.environ.setdefault("ENCRYPTION_KEY", Fernet.generate_key().decode())
    module: Any = importlib.import_module("pydantic_encryption.integrations.sqlalchemy")
    return [from_type("pydantic-encryption", module.SQLAlchemyEncryptedValue)]
