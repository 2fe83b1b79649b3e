"""What an answer of AWS KMS must hold before anything uses it: the key that was asked for, and 32 bytes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from ..errors import KmsCorruptError
from .aws_arn import KeyAddress
from .base import KmsKeyDescription, WrappedKey

KEY_BYTES: Final = 32
_MAX_BLOB: Final = 6144
_DEFAULT_DAYS: Final = 365

Answer = dict[str, object]


def check_blob(blob: bytes, operation: str, address: KeyAddress) -> None:
    """Refuse a blob that KMS cannot have made, before any call."""
    if not 1 <= len(blob) <= _MAX_BLOB:
        raise unexpected(f"a wrapped key has 1 to {_MAX_BLOB} bytes, this one {len(blob)}", operation, address)


def check_key(answer: Answer, name: str, operation: str, address: KeyAddress, *, exactly: bool = False) -> None:
    """Refuse an answer whose field `name` is not the key that was asked for; with `exactly`, in that very region."""
    answered = answer.get(name)
    is_same = answered == address.arn if exactly else isinstance(answered, str) and address.is_same_key(answered)
    if not is_same:
        # Emptied first: the frames of this error must not hold a plaintext key.
        answer.clear()
        raise unexpected("the answer names another KMS key", operation, address)


def plaintext(answer: Answer, operation: str, address: KeyAddress) -> bytes:
    """Return the plaintext key of an answer."""
    found = answer.get("Plaintext")
    if isinstance(found, bytes) and len(found) == KEY_BYTES:
        return found
    del found
    answer.clear()
    raise unexpected(f"the answer holds no key of {KEY_BYTES} bytes", operation, address)


def wrapped(answer: Answer, operation: str, address: KeyAddress, *, material: str) -> WrappedKey:
    """Return the wrapped key of an answer; the field `material` holds its material id, if any."""
    check_key(answer, "KeyId", operation, address)
    blob, material_id = answer.get("CiphertextBlob"), answer.get(material)
    if not isinstance(blob, bytes) or not 1 <= len(blob) <= _MAX_BLOB:
        answer.clear()
        raise unexpected("the answer holds no wrapped key", operation, address)
    return WrappedKey(blob, str(answer["KeyId"]), material_id if isinstance(material_id, str) else None)


def description(answer: Answer, address: KeyAddress) -> KmsKeyDescription:
    """Return the description in an answer of DescribeKey."""
    found = answer.get("KeyMetadata")
    metadata: Answer = dict(found) if isinstance(found, Mapping) else {}
    check_key(metadata, "Arn", "DescribeKey", address)
    created, deleted = metadata.get("CreationDate"), metadata.get("DeletionDate")
    return KmsKeyDescription(
        arn=str(metadata["Arn"]),
        account=address.account,
        region=address.region,
        state=str(metadata.get("KeyState", "")),
        usage=str(metadata.get("KeyUsage", "")),
        spec=str(metadata.get("KeySpec", "")),
        created_at=created if isinstance(created, datetime) else None,
        key_material_id=material if isinstance(material := metadata.get("CurrentKeyMaterialId"), str) else None,
        deleted_at=deleted.astimezone(UTC) if isinstance(deleted, datetime) else None,
        is_multi_region=metadata.get("MultiRegion") is True,
    )


def rotation_period(answer: Answer, address: KeyAddress) -> timedelta | None:
    """Return the period in an answer of GetKeyRotationStatus, or None when the key does not rotate by itself."""
    enabled, days = answer.get("KeyRotationEnabled"), answer.get("RotationPeriodInDays", _DEFAULT_DAYS)
    if not isinstance(enabled, bool) or not isinstance(days, int) or days < 1:
        raise unexpected("the answer does not say whether the key rotates", "GetKeyRotationStatus", address)
    return timedelta(days=days) if enabled else None


def unexpected(reason: str, operation: str, address: KeyAddress) -> KmsCorruptError:
    """Return the error for an answer that KMS does not give."""
    return KmsCorruptError(
        f"{operation} with KMS key {address.arn}: {reason}",
        code="UnexpectedAnswer",
        operation=operation,
        hint="the record or the endpoint is not what it should be; do not retry",
    )
