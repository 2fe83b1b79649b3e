"""pydantic-encryption with AWS KMS. It knows one KMS key for everybody, so here all tenants have the first one's."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from . import Place


class PydanticAws:
    def __init__(self, place: Place) -> None:
        os.environ |= {
            "ENCRYPTION_METHOD": "aws",
            "AWS_KMS_KEY_ARN": next(iter(place.keys.values())),
            "AWS_KMS_REGION": os.environ["AWS_REGION"],
            "AWS_KMS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
            "AWS_KMS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        # Its asynchronous half needs aioboto3, which no recent boto3 can be installed beside. It is not used here.
        sys.modules.setdefault("aioboto3", types.ModuleType("aioboto3"))
        from pydantic_encryption.adapters.encryption.aws import AWSAdapter

        self._adapter: Any = AWSAdapter

    def next_version(self) -> None:
        """Each value has a new key anyway."""

    def seal(self, tenant: str, text: str) -> bytes:
        return bytes(self._adapter.encrypt(text))

    def open(self, tenant: str, sealed: bytes) -> str:
        return str(self._adapter.decrypt(sealed))
