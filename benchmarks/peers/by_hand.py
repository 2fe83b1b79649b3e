"""The TypeDecorator that a team writes itself in an afternoon: AES-256-GCM, one key from the settings, no context."""

from __future__ import annotations

import os
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import LargeBinary, TypeDecorator

from . import Peer, from_type

DISTRIBUTION = "cryptography"


class EncryptedText(TypeDecorator[str]):
    impl = LargeBinary
    cache_ok = True

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self.key = key
        self._aes = AESGCM(key)

    def process_bind_param(self, value: str | None, _dialect: Any) -> bytes | None:
        if value is None:
            return None
        iv = os.urandom(12)
        return iv + self._aes.encrypt(iv, value.encode(), None)

    def process_result_value(self, value: bytes | None, _dialect: Any) -> str | None:
        if value is None:
            return None
        return self._aes.decrypt(value[:12], value[12:], None).decode()


def peers() -> list[Peer]:
    key = os.urandom(32)
    return [from_type("hand-written TypeDecorator", lambda: EncryptedText(key))]
