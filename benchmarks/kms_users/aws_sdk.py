"""The AWS Encryption SDK: without its cache, as its first example has it, and with a cache for each tenant."""

from __future__ import annotations

from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import CommitmentPolicy
from peers.aws_encryption_sdk import functions

from . import Place


def provider(arn: str) -> Any:
    return aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=[arn])


class Uncached:
    def __init__(self, place: Place) -> None:
        self._client = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        )
        self._of = {name: provider(arn) for name, arn in place.keys.items()}

    def next_version(self) -> None:
        """Each value has a new key anyway."""

    def seal(self, tenant: str, text: str) -> bytes:
        return bytes(self._client.encrypt(source=text, key_provider=self._of[tenant])[0])

    def open(self, tenant: str, sealed: bytes) -> str:
        return str(self._client.decrypt(source=sealed, key_provider=self._of[tenant])[0], "utf-8")


class Cached:
    def __init__(self, place: Place) -> None:
        self._providers = {name: provider(arn) for name, arn in place.keys.items()}
        self.next_version()

    def next_version(self) -> None:
        """A new cache has a new data key."""
        self._of = {name: functions(each, context={"tenant": name}) for name, each in self._providers.items()}

    def seal(self, tenant: str, text: str) -> bytes:
        return bytes(self._of[tenant][0](text))

    def open(self, tenant: str, sealed: bytes) -> str:
        return str(self._of[tenant][1](sealed))
