"""The AWS Encryption SDK: data keys are cached, messages are committed to their key and, for speed, not signed.

The master key is a raw one in memory: what a KMS adds is counted by kms_calls.py.
"""

from __future__ import annotations

import os
from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import Algorithm, CommitmentPolicy, EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider

from . import Peer, from_functions

DISTRIBUTION = "aws-encryption-sdk"
CONTEXT = {"column": "people.email"}


class InMemory(RawMasterKeyProvider):
    provider_id = "bench"

    def __init__(self, **_more: Any) -> None:
        super().__init__()
        self._key = WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=os.urandom(32),
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        )

    def _get_raw_key(self, _key_id: bytes) -> WrappingKey:
        return self._key


def functions(keys: Any, *, per_key: int = 2**32, context: dict[str, str] | None = None) -> tuple[Any, Any]:
    """Return what seals and what opens, both through one cache of data keys."""
    client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    manager = aws_encryption_sdk.CachingCryptoMaterialsManager(
        master_key_provider=keys,
        cache=aws_encryption_sdk.LocalCryptoMaterialsCache(1_000),
        max_age=3_600.0,
        max_messages_encrypted=per_key,
    )
    algorithm = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY

    def seal(text: str) -> bytes:
        sealed, _ = client.encrypt(
            source=text, materials_manager=manager, algorithm=algorithm, encryption_context=context or CONTEXT
        )
        return bytes(sealed)

    def open_(value: bytes) -> str:
        text, _ = client.decrypt(source=value, materials_manager=manager)
        return str(text, "utf-8")

    return seal, open_


def peers() -> list[Peer]:
    keys = InMemory()
    keys.add_master_key(b"bench")
    seal, open_ = functions(keys)
    return [from_functions("aws-encryption-sdk", seal, open_, slow=True)]
