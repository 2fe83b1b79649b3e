"""What AWS asks for requests to KMS, and how many it answers a second.

Constants, read in November 2026. AWS changes them; an account may have other quotas, on request.

- prices: https://aws.amazon.com/kms/pricing
- quotas: https://docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html, symmetric operations
"""

from __future__ import annotations

import re
from typing import Final

DOLLARS_PER_REQUEST: Final = 0.03 / 10_000
"""For symmetric keys. A dollar a month for each KMS key comes on top, for whoever owns it."""

FREE_REQUESTS: Final = 20_000
"""So many a month cost nothing, in one account, over all regions."""

LOWEST_QUOTA: Final = 10_000
"""How many requests a second an account may make in a region that is not named below."""

_HIGHER_QUOTAS: Final = {
    **dict.fromkeys(("us-east-1", "us-west-2", "eu-west-1"), 100_000),
    **dict.fromkeys(
        ("us-east-2", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "eu-central-1", "eu-west-2"), 20_000
    ),
}
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d", re.ASCII)


def dollars(requests: float) -> float:
    """Return what so many requests in one month cost."""
    return max(0.0, requests - FREE_REQUESTS) * DOLLARS_PER_REQUEST


def quota(region: str | None) -> int:
    """Return how many requests a second an account may make in a region; without one, in any."""
    return _HIGHER_QUOTAS.get(region or "", LOWEST_QUOTA)


def is_region(name: str) -> bool:
    """Say whether this could be a region's name. AWS adds regions, so there is no list to look it up in."""
    return _REGION.fullmatch(name) is not None
