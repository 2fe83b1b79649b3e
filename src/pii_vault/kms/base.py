"""What the rest of the project asks of a KMS: generate, unwrap, rewrap, describe.

A provider translates every failure into one of the five `KmsError` classes and never falls back to another
key. It keeps no plaintext: what it returns is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class KmsKey:
    """The address of one customer's KMS key, and how to be allowed to use it.

    Attributes:
        arn: The full key ARN. Never an alias, never a bare key id: both can be pointed elsewhere.
        role_arn: The role in the customer's account to assume first, or None.
        external_id: The ExternalId agreed with the customer for that role, or None.
        replica_regions: Where else a multi-Region key lies, in the order in which an unwrap tries them while the
            region of `arn` is unavailable. Regions and no ARNs: what is asked there is the same key, or nothing.
    """

    arn: str
    role_arn: str | None = None
    external_id: str | None = None
    replica_regions: tuple[str, ...] = ()

    @property
    def alone(self) -> KmsKey:
        """The same key without its replicas: what two addresses are compared by."""
        return replace(self, replica_regions=())

    @property
    def replicas(self) -> tuple[KmsKey, ...]:
        """The addresses of the replicas: the ARN with another region, reached by the same role."""
        service, _, key = self.arn.partition(":kms:")
        rest = key.partition(":")[2]
        return tuple(replace(self.alone, arn=f"{service}:kms:{region}:{rest}") for region in self.replica_regions)


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
        is_multi_region: Whether it is one of related keys in several regions.
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
    is_multi_region: bool = False


MIN_ROTATION_DAYS: Final = 90
MAX_ROTATION_DAYS: Final = 2560
"""How often a KMS key can be told to rotate by itself (AWS: EnableKeyRotation, RotationPeriodInDays)."""


@dataclass(frozen=True, slots=True)
class KmsRotationStatus:
    """Whether and when a KMS key rotates by itself.

    Attributes:
        period: How often, or None when it does not.
        next_at: When next, UTC, if the KMS says so.
    """

    period: timedelta | None
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KmsRotation:
    """One rotation of a KMS key that is done. It changes no data key.

    Attributes:
        at: When, UTC.
        kind: ``automatic`` or ``on-demand``.
        key_material_id: The material that the KMS key wraps with from then on, if the KMS says so.
    """

    at: datetime
    kind: str
    key_material_id: str | None = None


@dataclass(frozen=True, slots=True)
class KmsRotationHistory:
    """The rotations of a KMS key, or why they are not to be seen.

    Attributes:
        rotations: Oldest first.
        unseen_because: None when these are all; otherwise one sentence: the KMS does not show them to us.
    """

    rotations: tuple[KmsRotation, ...]
    unseen_because: str | None = None


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


class KmsRotationOwner(Protocol):
    """Who may say how often a KMS key rotates. The library's own role need not be allowed to, and should not."""

    def set_rotation_period(self, arn: str, days: int) -> None:
        """Let a KMS key rotate by itself every so many days, 90 to 2560."""
        ...

    def own_rotation_status(self, arn: str) -> KmsRotationStatus:
        """Return whether and when the KMS key rotates, as its owner sees it."""
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

    def rotation_status(self, key: KmsKey) -> KmsRotationStatus:
        """Return whether and when the KMS rotates this key by itself."""
        ...

    def rotation_history(self, key: KmsKey) -> KmsRotationHistory:
        """Return the rotations of this key that are done; that we may not see them is an answer, and no error."""
        ...

    def check_role(self, key: KmsKey) -> None:
        """Refuse a role that can also be assumed without the ExternalId agreed with the customer.

        Then anybody who may assume roles for us could be told to assume this one, for another customer.

        Raises:
            KmsConfigurationError: it can. A key without a role, or a role without an ExternalId, is not asked about.
        """
        ...


class Ruling(StrEnum):
    """What a KMS says to a request that is made only to see whether it is allowed."""

    ALLOWED = "allowed"
    """Whoever asks may do it; nothing else is said of whether it would work."""

    DENIED = "denied"
    """Whoever asks is not authorised."""

    DONE = "done"
    """It was done although it was only to be tried, so this KMS knows no dry run. What came of it is thrown away."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A request that is made only to see whether it is allowed.

    Attributes:
        action: The action as policies name it, without ``kms:``: ``GenerateDataKey``, ``EnableKey`` …
        context: The encryption context that it is tried with; empty for none.
        blob: A key that the KMS key has wrapped, for the actions that need one.
        blob_context: The encryption context that it was wrapped under.
    """

    action: str
    context: Mapping[str, str] = field(default_factory=dict)
    blob: bytes = field(default=b"", repr=False)
    blob_context: Mapping[str, str] = field(default_factory=dict)


class KmsProber(Protocol):
    """Who asks a KMS what a key's policies allow, as the identity that uses the key. Nothing is changed by it.

    Both methods raise a `KmsError` where the answer says nothing about permission.
    """

    @property
    def clock_offset(self) -> float | None:
        """By how many seconds the KMS's clock was ahead of ours at the last answer; None before the first."""
        ...

    def probe(self, key: KmsKey, trial: Trial) -> Ruling:
        """Say whether a request is allowed.

        Raises:
            KmsDeniedError: it did not come to that, because the role could not be assumed, or the key is of no use.
        """
        ...

    def probe_role(self, key: KmsKey) -> Ruling:
        """Say whether the role may be assumed, with the ExternalId of `key` or without one. No KMS is asked."""
        ...
