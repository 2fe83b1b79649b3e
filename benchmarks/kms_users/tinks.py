"""Tink in its two ways: a data key of its own for each value, and a keyset that is kept encrypted by the KMS."""

from __future__ import annotations

import io
from typing import Any

import tink
from tink import aead, cleartext_keyset_handle
from tink.integration import awskms
from tink.proto import tink_pb2

from . import Place

AAD = b"people.email"
TEMPLATE = aead.aead_key_templates.AES256_GCM


def remote(arn: str) -> Any:
    """The KMS key, through a client that is made once."""
    return awskms.AwsKmsClient(f"aws-kms://{arn}", "").get_aead(f"aws-kms://{arn}")


class Envelope:
    def __init__(self, place: Place) -> None:
        aead.register()
        self._of = {name: aead.KmsEnvelopeAead(TEMPLATE, remote(arn)) for name, arn in place.keys.items()}

    def next_version(self) -> None:
        """Each value has a new key anyway."""

    def seal(self, tenant: str, text: str) -> bytes:
        return bytes(self._of[tenant].encrypt(text.encode(), AAD))

    def open(self, tenant: str, sealed: bytes) -> str:
        return str(self._of[tenant].decrypt(sealed, AAD), "utf-8")


class KeysetInKms:
    """What an application has to add itself: where keysets are kept, and who makes new keys in them."""

    def __init__(self, place: Place) -> None:
        aead.register()
        self._remote = {name: remote(arn) for name, arn in place.keys.items()}
        self._folder = place.folder
        self._of: dict[str, Any] = {}
        self._keysets: dict[str, tink_pb2.Keyset] = {}

    def next_version(self) -> None:
        for name, master in self._remote.items():
            keyset = self._keysets.setdefault(name, tink_pb2.Keyset())
            out = io.BytesIO()
            cleartext_keyset_handle.write(tink.BinaryKeysetWriter(out), tink.new_keyset_handle(TEMPLATE))
            made = tink_pb2.Keyset.FromString(out.getvalue())
            keyset.key.extend(made.key)
            keyset.primary_key_id = made.primary_key_id
            handle = cleartext_keyset_handle.read(tink.BinaryKeysetReader(keyset.SerializeToString()))
            with (self._folder / name).open("wb") as file:
                handle.write(tink.BinaryKeysetWriter(file), master)
            self._of[name] = handle.primitive(aead.Aead)

    def seal(self, tenant: str, text: str) -> bytes:
        if not self._of:
            self.next_version()
        return bytes(self._of[tenant].encrypt(text.encode(), AAD))

    def open(self, tenant: str, sealed: bytes) -> str:
        if tenant not in self._of:
            stored = tink.BinaryKeysetReader((self._folder / tenant).read_bytes())
            handle = tink.read_keyset_handle(stored, self._remote[tenant])
            self._of[tenant] = handle.primitive(aead.Aead)
        return str(self._of[tenant].decrypt(sealed, AAD), "utf-8")
