"""Arrangements with a customer that tests go through: two ways, a role or none, a key or none."""

from __future__ import annotations

from typing import Any, Final

from pii_vault.keystore import Way
from pii_vault.onboarding.arrangement import Arrangement, Ours

CUSTOMER: Final = "111122223333"
VENDOR_ACCOUNT: Final = "999900001111"
REGION: Final = "eu-west-1"
KEY: Final = f"arn:aws:kms:{REGION}:{CUSTOMER}:key/0a1b2c3d-0000-4000-8000-00000000c0de"
OURS: Final = Ours(
    f"arn:aws:iam::{VENDOR_ACCOUNT}:role/pii-runtime",
    f"arn:aws:iam::{VENDOR_ACCOUNT}:role/pii-rotation",
    f"arn:aws:iam::{VENDOR_ACCOUNT}:role/pii-provisioning",
)


def arrangement(**changes: Any) -> Arrangement:
    """What is arranged with the customer "acme": by default its own new key, through a role."""
    given: dict[str, Any] = {
        "tenant": "acme",
        "app_uid": bytes(range(16)),
        "tenant_uid": bytes(range(16, 32)),
        "keyset_id": 0xC0FFEE,
        "way": Way.SHARED,
        "account": CUSTOMER,
        "region": REGION,
        "external_id": "q7mZ0u3xT5kPzL2yWn8sVb4e",
        "ours": OURS,
    }
    return Arrangement(**{**given, **changes})


EVERY_WAY: Final = {
    "a new key, through a role": arrangement(),
    "a key that exists, through a role": arrangement(key_arn=KEY),
    "a new key, directly": arrangement(direct=True),
    "a key that exists, directly": arrangement(direct=True, key_arn=KEY),
    "a key that we make, through a role": arrangement(way=Way.CREATED),
    "a key that we make, directly": arrangement(way=Way.CREATED, direct=True),
    "a key that we made, directly": arrangement(way=Way.CREATED, direct=True, key_arn=KEY),
}
