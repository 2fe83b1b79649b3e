"""asherah: a session of one partition, its key hierarchy in memory, its master key fixed."""

from __future__ import annotations

import secrets

import asherah

from . import Peer, from_functions

DISTRIBUTION = "asherah"


def peers() -> list[Peer]:
    settings = {
        "ServiceName": "bench",
        "ProductID": "bench",
        "Metastore": "memory",
        "KMS": "static",
        "StaticMasterKeyHex": secrets.token_hex(32),
    }
    session = asherah.SessionFactory(settings).get_session("acme")
    encrypt, decrypt = session.encrypt_text, session.decrypt_text
    return [
        from_functions("asherah", lambda text: encrypt(text).encode(), lambda value: decrypt(value.decode())),
    ]
