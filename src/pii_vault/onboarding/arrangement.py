"""What is arranged with a customer before its first key exists: accounts, principals, names, ExternalId.

Pure values: everything that the handed-over documents say comes from here, and everything here is checked before it is
put into one. There is no I/O, and no secret: an ExternalId is none (AWS IAM user guide, "Access to AWS accounts owned
by third parties").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigurationError
from ..keystore import Way
from ..kms import KmsKey
from ..kms.aws_arn import key_address, partition_of
from ..kms.base import MAX_ROTATION_DAYS, MIN_ROTATION_DAYS

_PARTITION: Final = "aws|aws-cn|aws-us-gov"
_ACCOUNT: Final = re.compile(r"\d{12}", re.ASCII)
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d", re.ASCII)
_ROLE: Final = re.compile(rf"arn:({_PARTITION}):iam::\d{{12}}:role/[\w+=,.@/-]{{1,512}}", re.ASCII)
_EXTERNAL_ID: Final = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_ALIAS: Final = re.compile(r"[A-Za-z0-9/_-]{1,200}")


@dataclass(frozen=True, slots=True)
class Ours:
    """Our own roles, in our account: who may come to a customer's key.

    Attributes:
        runtime: The role of the application: it unwraps keys.
        rotation: The role of whoever rotates, re-wraps and onboards.
        provisioning: The role that makes customers' keys, or None: only `Way.CREATED` needs it.
    """

    runtime: str
    rotation: str
    provisioning: str | None = None

    def __post_init__(self) -> None:
        for name, arn in (
            ("runtime", self.runtime),
            ("rotation", self.rotation),
            ("provisioning", self.provisioning),
        ):
            if arn is not None and not _ROLE.fullmatch(arn):
                raise ConfigurationError(
                    f"the {name} role is not the ARN of an IAM role: {arn!r}",
                    hint="arn:aws:iam::123456789012:role/name; not a user, not an assumed-role session",
                )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is arranged with one customer.

    Attributes:
        tenant: The tenant's name.
        app_uid: 16 bytes, the application's.
        tenant_uid: 16 bytes, made for the tenant before any document names it.
        keyset_id: 32 bits, likewise; names of roles come of it.
        way: Who makes the KMS key.
        account: The customer's AWS account, 12 digits.
        region: The region of its KMS key.
        external_id: Made by us at random for this tenant, never chosen by the customer.
        ours: Our own roles.
        key_arn: The KMS key, once it is known.
        direct: Whether our own roles use the key as they are, instead of a role in the customer's account.
        rotation_days: How often AWS shall rotate the KMS key, 90 to 2560 days.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """

    tenant: str
    app_uid: bytes
    tenant_uid: bytes
    keyset_id: int
    way: Way
    account: str
    region: str
    external_id: str
    ours: Ours
    key_arn: str | None = None
    direct: bool = False
    rotation_days: int = 365
    partition: str = "aws"

    def __post_init__(self) -> None:
        if not _ACCOUNT.fullmatch(self.account):
            raise ConfigurationError(f"an AWS account is 12 digits, not {self.account!r}")
        if not _REGION.fullmatch(self.region):
            raise ConfigurationError(f"an AWS region looks like eu-west-1, not {self.region!r}")
        if self.partition != partition_of(self.region):
            raise ConfigurationError(f"region {self.region} is not in partition {self.partition!r}")
        if not _EXTERNAL_ID.fullmatch(self.external_id):
            raise ConfigurationError("an ExternalId is 2 to 1224 of A-Z a-z 0-9 _+=,.@:/-")
        if not MIN_ROTATION_DAYS <= self.rotation_days <= MAX_ROTATION_DAYS:
            raise ConfigurationError(f"AWS rotates a KMS key every {MIN_ROTATION_DAYS} to {MAX_ROTATION_DAYS} days")
        if self.key_arn is not None:
            self._check_key(self.key_arn)

    @property
    def access_role(self) -> str | None:
        """The role in the customer's account that we assume to use the key; None when our own roles use it."""
        return None if self.direct else self._role("")

    @property
    def provisioning_role(self) -> str | None:
        """The role in the customer's account that we assume once, to make the key."""
        return self._role("-provisioning") if self.way is Way.CREATED else None

    @property
    def alias(self) -> str:
        """The alias that the key goes by in the customer's console. We never use it as an address."""
        name = self.tenant if _ALIAS.fullmatch(self.tenant) else f"{self.keyset_id:08x}"
        return f"alias/pii-vault/{name}"

    def _role(self, suffix: str) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/pii-vault-{self.keyset_id:08x}{suffix}"

    def _check_key(self, arn: str) -> None:
        address = key_address(KmsKey(arn))
        if (address.partition, address.region, address.account) != (self.partition, self.region, self.account):
            raise ConfigurationError(
                f"KMS key {arn} is not in account {self.account}, region {self.region}",
                hint="name the account and the region of the key, or begin anew with its ARN",
            )
