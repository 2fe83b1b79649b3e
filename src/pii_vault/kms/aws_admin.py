"""What the owner of an AWS KMS key does: make it, disable it, enable it, end it.

For demonstrations and tests, and for an operator who erases a tenant whose KMS key is our own. A vault never does any
of this, and its role should not be allowed to: these calls stand apart so that a reader of `kms.aws` sees everything
that the library can do to a customer's key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigurationError
from .aws_arn import key_address
from .aws_calls import client_config, require_boto3, translated
from .base import KmsKey

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECT_SECONDS: Final = 2.0
_READ_SECONDS: Final = 5.0


class AwsKeyOwner:
    """The owner's side of AWS KMS.

    Args:
        endpoint_url: Another endpoint for KMS, or None.
    """

    def __init__(self, *, endpoint_url: str | None = None) -> None:
        require_boto3()
        from boto3.session import Session

        self._session = Session()
        self._endpoint_url = endpoint_url

    def create_key(self) -> str:
        """Make a key in the session's region and return its ARN. IAM: ``kms:CreateKey``."""
        region = self._session.region_name
        if region is None:
            raise ConfigurationError("no AWS region is configured", hint="set AWS_REGION")
        answer = self._call("CreateKey", "a new key", region, lambda client: client.create_key())
        return str(answer["KeyMetadata"]["Arn"])

    def disable_key(self, arn: str) -> None:
        """Make a key unusable until `enable_key`. IAM: ``kms:DisableKey``."""
        self._call("DisableKey", arn, _region(arn), lambda client: client.disable_key(KeyId=arn))

    def enable_key(self, arn: str) -> None:
        """Make a disabled key usable again. IAM: ``kms:EnableKey``."""
        self._call("EnableKey", arn, _region(arn), lambda client: client.enable_key(KeyId=arn))

    def schedule_key_deletion(self, arn: str, pending_days: int = 7) -> datetime:
        """Let a key be deleted after 7 to 30 days; return when, UTC. IAM: ``kms:ScheduleKeyDeletion``."""
        answer = self._call(
            "ScheduleKeyDeletion",
            arn,
            _region(arn),
            lambda client: client.schedule_key_deletion(KeyId=arn, PendingWindowInDays=pending_days),
        )
        when: datetime = answer["DeletionDate"]
        return when.astimezone(UTC)

    def _call(self, operation: str, arn: str, region: str, send: Callable[[Any], Any]) -> Any:
        def call() -> Any:
            config: Any = client_config(_CONNECT_SECONDS, _READ_SECONDS)
            client = self._session.client("kms", region, endpoint_url=self._endpoint_url, config=config)
            return send(client)

        return translated(operation, arn, call)


def _region(arn: str) -> str:
    return key_address(KmsKey(arn)).region
