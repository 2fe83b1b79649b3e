"""What AWS says about the rotation of a KMS key: how often, when next, and when it was.

Rotations are shown within the key's own account only, so to us only with a role there that is allowed to look. That
they are not shown is an answer, and no error: who asks for a report gets all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ..errors import KmsConfigurationError, KmsDeniedError
from .aws_answers import Answer, rotation_period, unexpected
from .aws_arn import KeyAddress
from .base import KmsRotation, KmsRotationHistory, KmsRotationStatus

_KINDS: Final = {"AUTOMATIC": "automatic", "ON_DEMAND": "on-demand"}
_MOST_PAGES: Final = 100
_NOT_SHOWN: Final = {"UnsupportedOperationException", "UnknownOperationException"}


def rotation_status(address: KeyAddress, ask: Callable[[], Answer]) -> KmsRotationStatus:
    """Return what GetKeyRotationStatus says.

    Args:
        address: The key.
        ask: Makes the call.
    """
    try:
        answer = ask()
    except KmsConfigurationError as error:
        # Imported material and custom key stores: AWS has no automatic rotation for them.
        if error.code == "UnsupportedOperationException":
            return KmsRotationStatus(None)
        raise
    period, following = rotation_period(answer, address), answer.get("NextRotationDate")
    if period is None or not isinstance(following, datetime):
        return KmsRotationStatus(period)
    return KmsRotationStatus(period, following.astimezone(UTC))


def rotation_history(address: KeyAddress, ask: Callable[[dict[str, str]], Answer]) -> KmsRotationHistory:
    """Return what ListKeyRotations says, page after page.

    Args:
        address: The key.
        ask: Makes the call for one page, with more parameters.
    """
    found: list[KmsRotation] = []
    more: dict[str, str] = {}
    try:
        for _ in range(_MOST_PAGES):
            answer = ask(more)
            found += _rotations(answer, address)
            marker = answer.get("NextMarker")
            if answer.get("Truncated") is not True or not isinstance(marker, str):
                return KmsRotationHistory(tuple(sorted(found, key=lambda each: each.at)))
            more = {"Marker": marker}
    except KmsDeniedError as error:
        return _unseen(
            f"AWS shows them only within the key's own account, and to who has kms:ListKeyRotations ({error.code})"
        )
    except KmsConfigurationError as error:
        if error.code not in _NOT_SHOWN:
            raise
        return _unseen(f"the KMS has none to show for this kind of key ({error.code})")
    raise unexpected(f"more than {_MOST_PAGES} pages", "ListKeyRotations", address)


def _unseen(because: str) -> KmsRotationHistory:
    return KmsRotationHistory((), because)


def _rotations(answer: Answer, address: KeyAddress) -> list[KmsRotation]:
    listed: Any = answer.get("Rotations")
    if not isinstance(listed, list):
        raise unexpected("the answer lists no rotations", "ListKeyRotations", address)
    found = []
    for each in listed:
        rotation: Mapping[str, Any] = each if isinstance(each, Mapping) else {}
        key = rotation.get("KeyId")
        if not isinstance(key, str) or not (key == address.key_id or address.is_same_key(key)):
            raise unexpected("the answer names another KMS key", "ListKeyRotations", address)
        at, material = rotation.get("RotationDate"), rotation.get("KeyMaterialId")
        if isinstance(at, datetime):  # material that waits for its rotation has none
            kind = _KINDS.get(str(rotation.get("RotationType")), str(rotation.get("RotationType"))[:20])
            found.append(KmsRotation(at.astimezone(UTC), kind, material if isinstance(material, str) else None))
    return found
