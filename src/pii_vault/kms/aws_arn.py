"""Addresses in AWS: which keys and roles may be named at all. Pure functions, no call, no boto3."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..errors import KmsConfigurationError
from .base import KmsKey

_PARTITION: Final = r"(?P<partition>aws(?:-[a-z]+)*)"
_KEY_ID: Final = r"(?P<key_id>mrk-[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_KEY_ARN: Final = re.compile(
    rf"arn:{_PARTITION}:kms:(?P<region>[a-z]{{2,4}}(?:-[a-z]+)+-\d{{1,2}}):(?P<account>\d{{12}}):key/{_KEY_ID}",
    re.ASCII,
)
_ROLE_ARN: Final = re.compile(rf"arn:{_PARTITION}:iam::(?P<account>\d{{12}}):role/[\w+=,.@/-]{{1,576}}", re.ASCII)
_EXTERNAL_ID: Final = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)

# Longest prefix first. A region that is in none of these belongs to the partition "aws".
_REGION_PARTITIONS: Final = (
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-isob-", "aws-iso-b"),
    ("us-isof-", "aws-iso-f"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-iso-", "aws-iso"),
    ("eusc-", "aws-eusc"),
)


@dataclass(frozen=True, slots=True)
class KeyAddress:
    """A full key ARN, taken apart.

    Attributes:
        arn: The ARN as given.
        partition: ``aws``, ``aws-cn``, ``aws-us-gov`` …
        region: The region whose endpoint answers for it.
        account: The owning account, 12 digits.
        key_id: A UUID, or ``mrk-`` and 32 hex digits for a multi-Region key.
    """

    arn: str
    partition: str
    region: str
    account: str
    key_id: str

    def is_same_key(self, answered: str) -> bool:
        """Tell whether an ARN in an answer means this key: equal, or its replica in another Region.

        Replicas of a multi-Region key share key id, account and key material; an answer may name the one
        under which the blob was made.
        """
        if answered == self.arn:
            return True
        match = _KEY_ARN.fullmatch(answered)
        return (
            match is not None
            and self.key_id.startswith("mrk-")
            and match["key_id"] == self.key_id
            and match["account"] == self.account
            and match["partition"] == self.partition
        )


@lru_cache(maxsize=4096)
def key_address(key: KmsKey) -> KeyAddress:
    """Take the ARN of `key` apart and check that its role and its replicas can belong to it.

    Raises:
        KmsConfigurationError: not a full AWS KMS key ARN, a role that is not in the key's account, or regions in which
            the key can have no replica.
    """
    address = _parse(key.arn)
    if key.role_arn is not None:
        _check_role(address, key.role_arn)
    elif key.external_id is not None:
        raise _refused(key.arn, "an ExternalId without a role has no meaning", "give the role's ARN too")
    if key.external_id is not None and not _EXTERNAL_ID.fullmatch(key.external_id):
        raise _refused(key.arn, "the ExternalId is not one that STS accepts", "2 to 1224 of A-Z a-z 0-9 _+=,.@:/-")
    _check_replicas(address, key)
    return address


def _check_replicas(address: KeyAddress, key: KmsKey) -> None:
    regions = key.replica_regions
    if regions and not address.key_id.startswith("mrk-"):
        raise _refused(key.arn, "only a multi-Region key has replicas", "the id of one begins with mrk-")
    if address.region in regions or len(set(regions)) != len(regions):
        raise _refused(key.arn, "a region is named twice", "name each replica's region once, and not the key's own")
    for replica in key.replicas:
        _parse(replica.arn)


def partition_of(region: str) -> str:
    """Return the partition of a region, ``aws`` for all that no other one has."""
    return next((name for prefix, name in _REGION_PARTITIONS if region.startswith(prefix)), "aws")


def _parse(arn: str) -> KeyAddress:
    match = _KEY_ARN.fullmatch(arn)
    if match is None:
        # An alias or a bare key id can be pointed at another key by whoever may write the alias or our
        # account.
        hint = "an alias can be pointed elsewhere: " if ":alias/" in arn or arn.startswith("alias/") else ""
        raise _refused(arn, "not a full AWS KMS key ARN", f"{hint}arn:aws:kms:<region>:<account>:key/<key id>")
    address = KeyAddress(arn, match["partition"], match["region"], match["account"], match["key_id"])
    expected = partition_of(address.region)
    if address.partition != expected:
        raise _refused(arn, f"region {address.region} is not in partition {address.partition}", f"use {expected}")
    return address


def _check_role(address: KeyAddress, role_arn: str) -> None:
    match = _ROLE_ARN.fullmatch(role_arn)
    if match is None:
        raise _refused(address.arn, f"not a role ARN: {role_arn[:200]!r}", "arn:aws:iam::<account>:role/<name>")
    # The role is how the customer lets us in, so it lives where the key lives. A role elsewhere would let one
    # customer's registration borrow the rights of another account.
    if (match["partition"], match["account"]) != (address.partition, address.account):
        raise _refused(
            address.arn,
            f"the role {role_arn} is not in the key's account {address.account}",
            "name a role in the customer's account, or none and let the key policy name your own role",
        )


def _refused(arn: str, reason: str, hint: str) -> KmsConfigurationError:
    return KmsConfigurationError(f"KMS key {arn[:200]!r}: {reason}", code="InvalidAddress", hint=hint)
