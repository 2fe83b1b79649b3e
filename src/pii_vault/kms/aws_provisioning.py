"""Make a customer's KMS key in the customer's account, through a role that is lent for that and taken back afterwards.

Apart from `kms.aws` on purpose: a reader of that module sees everything that the library ever does to a customer's key.
What this role may do is written in the documents that the customer is handed (`onboarding.policies`): make one kind of
key with a policy that we cannot change later, name it, and let AWS rotate it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import KmsConfigurationError, KmsDeniedError
from .aws_calls import client_config, require_boto3, translated
from .aws_errors import OWN_CREDENTIALS

if TYPE_CHECKING:
    from boto3.session import Session

_CONNECT_SECONDS: Final = 2.0
_READ_SECONDS: Final = 5.0
_SESSION_SECONDS: Final = 900
"""The least that STS allows: five calls take seconds."""

_SESSION_NAME: Final = "pii-vault-provisioning"

_Credentials = dict[str, str]
ResultT = TypeVar("ResultT")


class AwsProvisioning:
    """The provisioning role in one customer's account, assumed once.

    Args:
        role_arn: The role in the customer's account.
        external_id: The ExternalId that its trust policy asks for.
        region: Where the key is made.
        through: Our own role, which that trust policy names; assumed first, unless our credentials are its already.
        endpoint_url: Another endpoint for KMS, or None.
        sts_endpoint_url: Another endpoint for STS, or None for the region's.
        session: The boto3 session with our own credentials; None for boto3's usual chain.

    Raises:
        ConfigurationError: boto3 is not installed.
        KmsDeniedError: the role cannot be assumed (yet).
    """

    def __init__(
        self,
        role_arn: str,
        external_id: str,
        region: str,
        *,
        through: str | None = None,
        endpoint_url: str | None = None,
        sts_endpoint_url: str | None = None,
        session: Session | None = None,
    ) -> None:
        require_boto3()
        self._role_arn: Final = role_arn
        self._session: Final = session or self._own_session()
        self._region: Final = region
        self._endpoints: Final = {"kms": endpoint_url, "sts": sts_endpoint_url}
        ours: _Credentials = {}
        if through is not None and not self._is(through):
            ours = self._assumed(through, {}, ours)
        self._kms = self._client("kms", self._assumed(role_arn, {"ExternalId": external_id}, ours))

    def _own_session(self) -> Session:
        from boto3.session import Session

        return translated("CreateKey", self._role_arn, Session, step=OWN_CREDENTIALS)

    def _is(self, role: str) -> bool:
        """Tell whether our own credentials are those of a role."""
        sts = self._client("sts", {})
        arn = str(translated("GetCallerIdentity", role, sts.get_caller_identity)["Arn"])
        name = role.rpartition("/")[2]
        return arn == role or (f":assumed-role/{name}/" in arn and arn.split(":")[4] == role.split(":")[4])

    def _assumed(self, role: str, more: _Credentials, credentials: _Credentials) -> _Credentials:
        """Assume a role with some credentials, and return its own."""
        sts = self._client("sts", credentials)
        try:
            answer = translated(
                "CreateKey",
                role,
                lambda: sts.assume_role(
                    RoleArn=role, RoleSessionName=_SESSION_NAME, DurationSeconds=_SESSION_SECONDS, **more
                ),
                step="AssumeRole",
            )
        except KmsDeniedError as error:
            refusal = error
        else:
            return _credentials(answer["Credentials"])
        raise KmsDeniedError(
            f"role {role} cannot be assumed ({refusal.code})",
            code=refusal.code,
            operation="AssumeRole",
            hint="its owner applies the documents that were handed over; AWS takes some minutes to know a new role",
        )

    def _client(self, service: str, credentials: _Credentials) -> Any:
        config: Any = client_config(_CONNECT_SECONDS, _READ_SECONDS)
        options: dict[str, Any] = {"endpoint_url": self._endpoints[service], "config": config, **credentials}
        return translated(
            "CreateKey",
            self._role_arn,
            lambda: self._session.client(service, self._region, **options),
            step="making a client",
        )

    def create_key(self, policy: str, description: str, tags: Mapping[str, str]) -> str:
        """Make a symmetric key with this policy, and return its ARN. IAM: ``kms:CreateKey``, ``kms:TagResource``.

        Args:
            policy: The key policy, a JSON document.
            description: What stands in the customer's console.
            tags: Told at once with the making: the role may do it only with them.
        """
        answer = self._call(
            "CreateKey",
            "a new key",
            lambda: self._kms.create_key(
                Policy=policy,
                Description=description,
                KeySpec="SYMMETRIC_DEFAULT",
                KeyUsage="ENCRYPT_DECRYPT",
                Origin="AWS_KMS",
                BypassPolicyLockoutSafetyCheck=False,
                Tags=[{"TagKey": name, "TagValue": value} for name, value in tags.items()],
            ),
        )
        return str(answer["KeyMetadata"]["Arn"])

    def name_key(self, arn: str, alias: str) -> None:
        """Give a key a name in the customer's console, unless it has it already.

        IAM: ``kms:CreateAlias`` on the alias and on the key; ``kms:DescribeKey``.

        Raises:
            KmsConfigurationError: the alias names another key.
        """
        try:
            self._call("CreateAlias", arn, lambda: self._kms.create_alias(AliasName=alias, TargetKeyId=arn))
        except KmsConfigurationError as error:
            if error.code != "AlreadyExistsException" or not self._is_named(arn, alias):
                raise

    def _is_named(self, arn: str, alias: str) -> bool:
        answer = self._call("DescribeKey", alias, lambda: self._kms.describe_key(KeyId=alias))
        return bool(answer["KeyMetadata"]["Arn"] == arn)

    def rotate_key(self, arn: str, days: int) -> None:
        """Let AWS rotate a key every so many days, 90 to 2560. IAM: ``kms:EnableKeyRotation``."""
        self._call(
            "EnableKeyRotation", arn, lambda: self._kms.enable_key_rotation(KeyId=arn, RotationPeriodInDays=days)
        )

    def _call(self, operation: str, named: str, call: Callable[[], ResultT]) -> ResultT:
        return translated(operation, f"{named} by {self._role_arn}", call)


def _credentials(given: Any) -> _Credentials:
    """Return what STS has answered as boto3 takes it."""
    return {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }
