"""What the rest of the project asks of a KMS: generate, unwrap, rewrap, describe.

A provider translates every failure into one of the five `KmsError` classes and never falls back to another
key. It keeps no plaintext: what it returns is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class KmsKey:
    """The address of one customer's KMS key, and how to be allowed to use it.

    Attributes:
        arn: The full key ARN. Never an alias, never a bare key id: both can be pointed elsewhere.
        role_arn: The role in the customer's account to assume first, or None.
        external_id: The ExternalId agreed with the customer for that role, or None.
    """

    arn: str
    role_arn: str | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key encrypted by the KMS: at most 6,144 bytes, with what the KMS says it used.

    Attributes:
        blob: The ciphertext.
        key_arn: The ARN of the KMS key that wrapped it, as answered by the KMS.
        key_material_id: Which material of that KMS key (it changes with the KMS key's own rotation), or None.
    """

    blob: bytes
    key_arn: str
    key_material_id: str | None = None


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """32 fresh random bytes from the KMS, and the same wrapped. The plaintext is never shown."""

    plaintext: bytes = field(repr=False)
    wrapped: WrappedKey

    def __reduce__(self) -> str:
        raise TypeError("a plaintext key is not pickled")


@dataclass(frozen=True, slots=True)
class KmsKeyDescription:
    """What the KMS says about a key.

    Attributes:
        arn: The full key ARN.
        account: The owning account.
        region: The region, or ``local``.
        state: The KMS's own word: ``Enabled``, ``Disabled``, ``PendingDeletion`` …
        usage: ``ENCRYPT_DECRYPT`` for a key that we can use.
        spec: ``SYMMETRIC_DEFAULT`` for a key that we can use.
        created_at: When it was made, if the KMS says so.
        key_material_id: Which material it wraps with now, if the KMS says so; it changes when the KMS key is rotated.
        deleted_at: When it will be deleted, if its owner has said so.
    """

    arn: str
    account: str
    region: str
    state: str
    usage: str
    spec: str
    created_at: datetime | None = None
    key_material_id: str | None = None
    deleted_at: datetime | None = None


@runtime_checkable
class KmsProvider(Protocol):
    """A KMS that holds customers' keys.

    Every method can raise `KmsDeniedError`, `KmsUnavailableError`, `KmsCorruptError`, `KmsConfigurationError`
    and `KmsCredentialsError`. Every method is called from any thread, never from an event loop.
    """

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        """Make 32 random bytes in the KMS and return them with the same wrapped under `key` and `context`."""
        ...

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext of `blob`, which was wrapped under exactly this `key` and `context`."""
        ...

    def rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Wrap the same plaintext under `destination`, inside the KMS; the context stays."""
        ...

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        """Return what the KMS says about `key`; it proves that the key exists and that we may look at it."""
        ...

    def validate_key(self, key: KmsKey) -> None:
        """Refuse an address that this provider cannot mean, before any call.

        Raises:
            KmsConfigurationError: an alias, another provider's address, a role in another account.
        """
        ...


class KmsKeyOwner(Protocol):
    """Who owns KMS keys, and so may end them. The library's own role need not be allowed to, and should not."""

    def schedule_key_deletion(self, arn: str, pending_days: int) -> datetime:
        """Let a key be deleted after 7 to 30 days; it is of no use from now on. Return when, UTC."""
        ...


@runtime_checkable
class KmsLifecycle(KmsProvider, Protocol):
    """A KMS that also answers what the lifecycle of keys asks."""

    def check_unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `unwrap` would raise for want of permission or because of the key's state.

        No plaintext leaves the KMS.
        """
        ...

    def check_rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `rewrap` would raise for want of permission or because of a key's state; nothing is wrapped."""
        ...

    def rotation_period(self, key: KmsKey) -> timedelta | None:
        """Return how often the KMS rotates this key by itself, or None when it does not."""
        ...

    def check_role(self, key: KmsKey) -> None:
        """Refuse a role that can also be assumed without the ExternalId agreed with the customer.

        Then anybody who may assume roles for us could be told to assume this one, for another customer.

        Raises:
            KmsConfigurationError: it can. A key without a role, or a role without an ExternalId, is not asked about.
        """
        ...
