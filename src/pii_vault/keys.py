"""Keys as values: their states, their stored records, and the secret bytes that must never be shown.

No I/O, no clock, no cryptography. What a state allows stands here once, and the key store's triggers and the
lifecycle both follow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, NoReturn

from .context import Identity
from .errors import KeyRecordError, KeyStateError

ALGORITHM: Final = 1
"""Key records, algorithm 1: AES-256-GCM under the KEK's `wrap` subkey, SP 800-108 derivations, HMAC-SHA256."""


class KeyState(StrEnum):
    """The states of SP 800-57 part 1, section 7; a key moves forward only.

    `suspended` is missing on purpose: it is reversible and belongs to a tenant or to the customer's KMS key.
    """

    PRE_ACTIVE = "pre_active"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"

    def check_transition(self, after: KeyState) -> None:
        """Raise unless a key in this state may move to `after`.

        Raises:
            KeyStateError: the move would go backwards or skip a state.
        """
        if after not in TRANSITIONS[self]:
            raise KeyStateError(f"a key that is {self} cannot become {after}")


TRANSITIONS: Final[dict[KeyState, frozenset[KeyState]]] = {
    KeyState.PRE_ACTIVE: frozenset((KeyState.ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED)),
    KeyState.ACTIVE: frozenset((KeyState.DEACTIVATED, KeyState.COMPROMISED)),
    KeyState.DEACTIVATED: frozenset((KeyState.COMPROMISED, KeyState.DESTROYED)),
    KeyState.COMPROMISED: frozenset((KeyState.DESTROYED,)),
    KeyState.DESTROYED: frozenset(),
}

OPENING: Final = frozenset((KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED))
"""States whose keys a process loads: a pre-active key may become active in another process at any moment."""


OPENING_FOR_REENCRYPTION: Final = OPENING | {KeyState.COMPROMISED}
"""States whose keys the re-encryption job loads, and nothing else does: what they sealed is to be sealed anew."""


class Purpose(StrEnum):
    """What a key is for. The words are under key records' authentication tags: frozen."""

    DATA = "data"
    INDEX = "index"


KEK_PURPOSE: Final = "kek"

USE_LIMIT: Final = 2**32
"""How many values one data key may seal with random IVs (SP 800-38D, section 8.3), counted over all its columns."""

USE_ROTATE: Final = 2**31
"""From how many on a data key is due for rotation."""

USE_WARN: Final = 2**30
"""From how many on somebody is told."""


class Secret:
    """32 key bytes that do not show themselves.

    Python cannot wipe memory reliably; this keeps the bytes out of logs, tracebacks, pickles and copies.
    """

    __slots__ = ("_bytes",)

    def __init__(self, key: bytes) -> None:
        self._bytes = bytes(key)

    def reveal(self) -> bytes:
        """Return the bytes, for the call of a primitive and nothing else."""
        return self._bytes

    def __repr__(self) -> str:
        return f"<Secret of {len(self._bytes)} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is neither pickled nor copied")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("keys are compared by their commitments, in constant time")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Policy:
    """What is agreed about a tenant: its KMS key's place, how often its data key is rotated, how long keys are held.

    Attributes:
        kms_account: The account that the KMS key must belong to.
        kms_region: The region that it must be in.
        rotation_days: The rotation period, 1 to 3650 days; None for the vault's default.
        follows_kms: Whether the period is that of the KMS key, and a rotation there makes a new data key here.
        ttl_seconds: How long its keys are held without another word of the KMS; None for the vault's terms.
        grace_seconds: How long beyond that while the KMS cannot be reached; None likewise.
        pii_encryption: Whether PII encryption is on: a feature that a tenant has or has not. Off, its values are
            neither sealed nor opened.
    """

    kms_account: str
    kms_region: str
    rotation_days: int | None = None
    follows_kms: bool = False
    ttl_seconds: int | None = None
    grace_seconds: int | None = None
    pii_encryption: bool = True

    @classmethod
    def for_key(cls, arn: str) -> Policy:
        """Return the policy that expects the account and the region of this KMS key."""
        return cls("", "").expecting(arn)

    def expecting(self, arn: str) -> Policy:
        """Return this policy with the account and the region of another KMS key."""
        region, account = _place(arn)
        return replace(self, kms_account=account, kms_region=region)

    def check(self, arn: str) -> None:
        """Raise unless a KMS key's address lies in the expected account and region.

        Raises:
            KeyRecordError: it does not; the KMS is not asked then.
        """
        if _place(arn) != (self.kms_region, self.kms_account):
            raise KeyRecordError(
                f"KMS key {arn} is not in account {self.kms_account}, region {self.kms_region}, as it should be",
                hint="the key store was changed by something other than pii_vault; to move a tenant, re-wrap it",
            )


def _place(arn: str) -> tuple[str, str]:
    """Return region and account of a KMS key's ARN (arn:partition:kms:region:account:key/id)."""
    parts = arn.split(":")
    return (parts[3], parts[4]) if len(parts) == 6 else ("", "")


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A registered tenant.

    Attributes:
        identity: Application uid, tenant uid and keyset id.
        name: The changeable name that the application uses.
        suspended: True while the tenant must neither seal nor open.
        created_at: When it was registered, UTC.
        policy: What is agreed about it.
    """

    identity: Identity
    name: str
    suspended: bool
    created_at: datetime
    policy: Policy


@dataclass(frozen=True, slots=True)
class KekRecord:
    """A tenant's KEK as stored: wrapped by the customer's KMS key.

    Attributes:
        generation: From 1.
        state: ACTIVE, DEACTIVATED or DESTROYED.
        algorithm: Which constructions the KEK is used with (`ALGORITHM`).
        kms_key_arn: The full ARN of the KMS key that wraps it.
        role_arn: The role to assume for that KMS key, or None.
        external_id: The ExternalId for that role, or None.
        kms_key_material_id: Which material of the KMS key, if the KMS says so.
        wrapped: At most 6,144 bytes.
        commitment: 32 bytes.
        created_at: UTC.
        replica_regions: Where else a multi-Region KMS key lies, in the order in which an unwrap tries them.
    """

    generation: int
    state: KeyState
    algorithm: int
    kms_key_arn: str
    role_arn: str | None
    external_id: str | None
    kms_key_material_id: str | None
    wrapped: bytes
    commitment: bytes
    created_at: datetime
    replica_regions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A data or index key as stored: wrapped by the KEK, with where it came from.

    Attributes:
        purpose: DATA or INDEX.
        version: From 1; at most 65535 (data) or 255 (index).
        state: Where it stands in its life.
        kek_generation: Which KEK wraps it.
        algorithm: `ALGORITHM`.
        encrypted_key: 48 bytes: 32 encrypted key bytes and the tag; empty once destroyed.
        iv: 12 bytes, its own.
        commitment: 32 bytes.
        epoch: How many activations this tenant and purpose had, this one included; 0 before activation.
        activation_mac: 32 bytes over the activation; empty before activation.
        created_at: UTC.
        activated_at: UTC, or None.
        reason: Why it was made: initial, scheduled, forced, compromised, kms-rotation or limit.
        created_by: Who asked for it.
        kms_key_arn: The KMS key that generated it.
        kms_key_material_id: Which material of that KMS key, if the KMS says so.
        deactivated_at: UTC, or None.
        destroyed_at: UTC, or None.
        previous_version: The version before it, or None for the first.
        due_at: When it is to be rotated, UTC; None before it is active.
        reserved: How many values processes have asked to seal with it. It grows all the time, so it does not count
            when two records are compared.
    """

    purpose: Purpose
    version: int
    state: KeyState
    kek_generation: int
    algorithm: int
    encrypted_key: bytes
    iv: bytes
    commitment: bytes
    epoch: int
    activation_mac: bytes
    created_at: datetime
    activated_at: datetime | None
    reason: str
    created_by: str
    kms_key_arn: str
    kms_key_material_id: str | None
    deactivated_at: datetime | None = None
    destroyed_at: datetime | None = None
    previous_version: int | None = None
    due_at: datetime | None = None
    reserved: int = field(default=0, compare=False)
