"""Tink: AES256_GCM from a keyset in memory. Its envelope mode makes one KMS call a value: see kms_calls.py."""

from __future__ import annotations

import tink
from tink import aead

from . import Peer, from_functions

DISTRIBUTION = "tink"
AAD = b"people.email"


def peers() -> list[Peer]:
    aead.register()
    keyset = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    primitive = keyset.primitive(aead.Aead)
    encrypt, decrypt = primitive.encrypt, primitive.decrypt
    return [
        from_functions(
            "Tink keyset", lambda text: encrypt(text.encode(), AAD), lambda value: decrypt(value, AAD).decode()
        )
    ]
