"""What the owner of an AWS KMS key does: make it, disable it, enable it, end it.

For demonstrations and tests, and for an operator who erases a tenant whose KMS key is our own. A vault never does any
of this, and its role should not be allowed to: these calls stand apart so that a reader of `kms.aws` sees everything
that the library can do to a customer's key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigurationError
from .aws import AwsKms
from .aws_arn import key_address
from .aws_calls import client_config, require_boto3, translated
from .base import MAX_ROTATION_DAYS, MIN_ROTATION_DAYS, KmsKey, KmsRotationStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from boto3.session import Session

_CONNECT_SECONDS: Final = 2.0
_READ_SECONDS: Final = 5.0


class AwsKeyOwner:
    """The owner's side of AWS KMS.

    Args:
        endpoint_url: Another endpoint for KMS, or None.
    """

    def __init__(self, *, endpoint_url: str | None = None) -> None:
        require_boto3()
        import boto3.session

        self._session = boto3.session.Session()
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


class AwsRotationOwner(AwsKms):
    """Who may say how often an AWS KMS key rotates: the customer, or who the customer lends a role for it.

    AWS takes it only from the key's own account, so either these are credentials of that account, or `role_arn` is a
    role in it. Calls, timeouts and errors are those of `AwsKms`.

    Args:
        endpoint_url: Another endpoint for KMS, or None.
        sts_endpoint_url: Another endpoint for STS, or None.
        role_arn: The role in the key's account to assume, or None.
        external_id: The ExternalId for that role, or None.
        session: The boto3 session with the credentials; None for boto3's usual chain.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        sts_endpoint_url: str | None = None,
        role_arn: str | None = None,
        external_id: str | None = None,
        session: Session | None = None,
    ) -> None:
        super().__init__(
            endpoint_url=endpoint_url,
            sts_endpoint_url=sts_endpoint_url,
            session=session,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
        )
        self._role = (role_arn, external_id)

    def set_rotation_period(self, arn: str, days: int) -> None:
        """Let a key rotate by itself every so many days. IAM: ``kms:EnableKeyRotation``.

        Raises:
            ConfigurationError: not 90 to 2560 days; nobody is asked.
        """
        if not MIN_ROTATION_DAYS <= days <= MAX_ROTATION_DAYS:
            raise ConfigurationError(f"AWS rotates a KMS key every {MIN_ROTATION_DAYS} to {MAX_ROTATION_DAYS} days")

        def send(client: Any) -> Any:
            return client.enable_key_rotation(KeyId=arn, RotationPeriodInDays=days)

        self._call("EnableKeyRotation", KmsKey(arn, *self._role), send)

    def own_rotation_status(self, arn: str) -> KmsRotationStatus:
        """Return whether and when a key rotates. IAM: ``kms:GetKeyRotationStatus``."""
        return self.rotation_status(KmsKey(arn, *self._role))


def _region(arn: str) -> str:
    return key_address(KmsKey(arn)).region
