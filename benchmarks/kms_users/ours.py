"""pii_vault: a key-encryption key for each tenant, which one call unwraps, whatever it wraps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, MetaData, Table, create_engine

from pii_vault import EncryptedString, Vault
from pii_vault.kms.aws import AwsKms

from . import Place

PLATFORM = "platform"


class Ours:
    def __init__(self, place: Place) -> None:
        self._tenants = [name for name in place.keys if name != PLATFORM]
        url = f"sqlite:///{place.folder}/keys.sqlite3"
        self._vault = Vault(url, kms=AwsKms(), platform_key=place.keys[PLATFORM], ttl=36_000)
        if not (place.folder / "keys.sqlite3").exists():
            self._vault.create_all()
            for name in self._tenants:
                self._vault.add_tenant(name, key=place.keys[name])
        engine = create_engine("sqlite://")
        self._vault.attach(engine)
        column = Table("people", MetaData(), Column("email", EncryptedString())).c.email
        kind: Any = column.type.dialect_impl(engine.dialect)
        self._seal, self._open = kind.bind_processor(engine.dialect), kind.result_processor(engine.dialect, None)

    def next_version(self) -> None:
        for name in self._tenants:
            self._vault.rotate(name)

    def seal(self, tenant: str, text: str) -> bytes:
        with self._vault.tenant(tenant):
            return bytes(self._seal(text))

    def open(self, tenant: str, sealed: bytes) -> str:
        with self._vault.tenant(tenant):
            return str(self._open(sealed))
