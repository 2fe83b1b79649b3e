"""Systems that call a KMS, each as an application would use it for tenants that own a KMS key each.

An object lives in a process of its own: one that seals under one key version after another, and a cold one that opens.
What has to outlast the process is in `folder`. All of them reach the KMS by AWS's own environment variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

USERS = {
    "pii_vault": "ours:Ours",
    "Tink envelope": "tinks:Envelope",
    "Tink keyset": "tinks:KeysetInKms",
    "aws-encryption-sdk": "aws_sdk:Uncached",
    "aws-encryption-sdk, cached": "aws_sdk:Cached",
    "asherah": "asherahs:Asherah",
    "pydantic-encryption": "pydantic_aws:PydanticAws",
}


@dataclass(frozen=True)
class Place:
    """Where state is kept, and whose KMS key is whose."""

    folder: Path
    keys: dict[str, str]


class KmsUser(Protocol):
    """What one process does."""

    def next_version(self) -> None:
        """Take a new key into use for every tenant, if there is such a thing."""

    def seal(self, tenant: str, text: str) -> bytes: ...

    def open(self, tenant: str, sealed: bytes) -> str: ...


def make(name: str, place: Place) -> KmsUser:
    """Make one.

    Raises:
        ImportError: what it needs is not installed.
    """
    module, _, kind = USERS[name].partition(":")
    made: KmsUser = getattr(import_module(f"{__name__}.{module}"), kind)(place)
    return made
