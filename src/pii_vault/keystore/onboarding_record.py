"""What is kept about a customer's onboarding: the identity that documents name, and how far it is. No SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Way(StrEnum):
    """Who makes the KMS key."""

    SHARED = "shared"
    """The customer makes it and shares its ARN."""

    CREATED = "created"
    """We make it, in the customer's account, through a role that the customer lends us for it."""


class OnboardingStep(StrEnum):
    """How far an onboarding is."""

    BEGUN = "begun"
    """The identity is made and stored; nothing was handed over yet."""

    HANDED_OVER = "handed_over"
    """The customer has the documents."""

    MADE = "made"
    """The KMS key is there."""

    PROVEN = "proven"
    """What must work works, and what must be denied is denied."""

    REGISTERED = "registered"
    """The tenant is registered, under the identity that was handed over."""


@dataclass(frozen=True, slots=True)
class OnboardingRecord:
    """An onboarding as stored.

    Attributes:
        tenant_name: The tenant's name, 1 to 255 characters.
        tenant_uid: 16 bytes, which the tenant is registered with. Never changed.
        keyset_id: 32 bits, likewise.
        external_id: The ExternalId that we made for this tenant. Never changed.
        way: Who makes the KMS key.
        direct: Whether our own roles use the KMS key, and none in the customer's account is assumed.
        kms_partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
        kms_account: The customer's account, 12 digits.
        kms_region: The region of the KMS key.
        kms_key_arn: The KMS key, or None until it is known.
        runtime_role: The ARN of our own role that unwraps keys.
        rotation_role: That of whoever rotates and re-wraps.
        provisioning_role: That of whoever makes customers' keys, or None.
        rotation_days: How often AWS shall rotate the KMS key, 90 to 2560 days.
        step: How far it is.
        begun_at: UTC.
        begun_by: Who has begun it.
        step_at: Since when it is so far, UTC.
    """

    tenant_name: str
    tenant_uid: bytes
    keyset_id: int
    external_id: str
    way: Way
    direct: bool
    kms_partition: str
    kms_account: str
    kms_region: str
    kms_key_arn: str | None
    runtime_role: str
    rotation_role: str
    provisioning_role: str | None
    rotation_days: int
    step: OnboardingStep
    begun_at: datetime
    begun_by: str
    step_at: datetime
