"""AWS KMS as a `KmsLifecycle`: one assumed role a customer, own timeouts, typed errors.

Promises: a key is always named by its full ARN, and an answer that brings a key or describes one must name the same;
no call takes longer than `attempts` x (connect + read timeout) plus back-off of at most a second each, name
resolution aside, and an unwrap no longer than that for each region of a multi-Region key; only `KmsUnavailableError` is
tried again; no error, log or repr holds a credential, a wrapped key or a plaintext.

It does not cache keys, does not choose a key, and never calls ``kms:Encrypt``.

IAM, by task; each method names its own. All on full key ARNs:

=============  ================================================================================================
runtime        ``kms:Decrypt`` on the tenant's key.
rotation       ``kms:GenerateDataKey``, ``kms:Decrypt`` and ``kms:DescribeKey`` on it; a first key needs the same.
               ``kms:GetKeyRotationStatus`` too, for a tenant whose period is that of its KMS key.
re-wrap        ``kms:ReEncryptFrom`` on the old key and ``kms:ReEncryptTo`` on the new one, for the old key's role.
               ``kms:ReEncryptFrom`` and ``kms:ReEncryptTo`` on the new key for the new key's role, to prove the
               new wrap without a plaintext; the condition ``kms:ReEncryptOnSameKey`` may stand at both. And
               ``kms:DescribeKey`` on the new key.
history        ``kms:ListKeyRotations`` on it, for a role in the key's account only; without, it is not shown.
validation     ``kms:DescribeKey`` and ``kms:Decrypt``; a dry run needs no other.
doctor         what rotation and re-wrap need. It tries others too, which have to be refused (`aws_probes`).
with a role    ``sts:AssumeRole`` on it, for our own identity; the role's trust policy names that and the ExternalId.
=============  ================================================================================================

``kms:DescribeKey`` and ``kms:GetKeyRotationStatus`` carry no encryption context: a statement with conditions on
``kms:EncryptionContext:*`` denies them, so they stand in one of their own; all the others can be limited by it.
Within the key's account the key policy is enough. Whoever comes from another account, as the old key's role does to
a new key elsewhere, needs a policy of its own as well.

Removing a role's trust stops the next AssumeRole, not credentials that are out already. They live
`session_seconds`: 900 by default, the least that STS allows. Disabling the key or changing its policy acts at
once.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar, cast

from ..errors import (
    ConfigurationError,
    KmsConfigurationError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsUnavailableError,
)
from . import aws_rotations
from .aws_answers import (
    KEY_BYTES,
    Answer,
    check_blob,
    check_key,
    description,
    plaintext,
    unexpected,
    wrapped,
)
from .aws_arn import key_address
from .aws_calls import client_config, require_boto3, translated
from .aws_clients import ClientCache, ClientKey, Lease
from .aws_errors import OWN_CREDENTIALS, kms_error
from .aws_replicas import opened_somewhere
from .aws_retries import RetryBudget
from .base import GeneratedKey, KmsKey, KmsKeyDescription, KmsRotationHistory, KmsRotationStatus, WrappedKey

if TYPE_CHECKING:
    from boto3.session import Session

    from .aws_probes import AwsProber

_SESSION_NAME: Final = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_GLOBAL_STS: Final = "https://sts.amazonaws.com"

ResultT = TypeVar("ResultT")


class _Client(Protocol):
    """What this module uses of a boto3 client for KMS or STS."""

    @property
    def meta(self) -> _ClientMeta: ...

    def generate_data_key(self, **arguments: object) -> Answer: ...
    def decrypt(self, **arguments: object) -> Answer: ...
    def re_encrypt(self, **arguments: object) -> Answer: ...
    def describe_key(self, **arguments: object) -> Answer: ...
    def get_key_rotation_status(self, **arguments: object) -> Answer: ...
    def list_key_rotations(self, **arguments: object) -> Answer: ...
    def assume_role(self, **arguments: object) -> Answer: ...


class _ClientMeta(Protocol):
    @property
    def endpoint_url(self) -> str: ...


class AwsKms:
    """Customers' keys in AWS KMS.

    Thread-safe, and safe to carry over a fork: the child makes its own clients.

    Args:
        endpoint_url: Another endpoint for KMS (a VPC endpoint, a test server), or None. Replicas of multi-Region keys
            are asked there too, which the endpoint of one region refuses.
        sts_endpoint_url: Another endpoint for STS, or None for the one in the key's region.
        session: The boto3 session with our own credentials; None for boto3's usual chain.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for an answer.
        attempts: How often to try while the KMS is unavailable; 1 for never again. A customer whose KMS stays so gets
            one attempt a call after ten calls in a row, and one more try each second.
        role_session_name: The session name of assumed roles; it shows in the customer's CloudTrail.
        session_seconds: How long assumed credentials live.
        max_clients: How many clients (identities) to keep; each holds an idle connection or two.
        clock: Seconds of the wall clock.
        sleep: Waits between two attempts.

    Raises:
        ConfigurationError: boto3 is not installed, or an argument makes no sense.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        sts_endpoint_url: str | None = None,
        session: Session | None = None,
        connect_timeout: float = 1.0,
        read_timeout: float = 3.0,
        attempts: int = 2,
        role_session_name: str = "pii-vault",
        session_seconds: int = 900,
        max_clients: int = 256,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_boto3()
        if not (connect_timeout > 0 and read_timeout > 0 and attempts >= 1 and max_clients >= 1):
            raise ConfigurationError("AwsKms: timeouts are above 0, attempts and max_clients at least 1")
        if not 900 <= session_seconds <= 43_200:
            raise ConfigurationError("AwsKms: session_seconds is 900 to 43200; with role chaining at most 3600")
        if not _SESSION_NAME.fullmatch(role_session_name):
            raise ConfigurationError("AwsKms: role_session_name is 2 to 64 of A-Z a-z 0-9 _+=,.@-")
        self._endpoint_url = endpoint_url
        self._sts_endpoint_url = sts_endpoint_url
        self._given_session = session
        self._session: Session | None = session
        self._timeouts = (connect_timeout, read_timeout)
        self._attempts = attempts
        self._role_session_name = role_session_name
        self._session_seconds = session_seconds
        self._max_clients = max_clients
        self._clock = clock
        self._sleep = sleep
        self._forget_clients()
        _instances.add(self)

    def __repr__(self) -> str:
        return f"AwsKms(endpoint_url={self._endpoint_url!r}, attempts={self._attempts})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("AwsKms is not pickled: it holds credentials; build one in each process")

    def generate(self, key: KmsKey, context: Mapping[str, str]) -> GeneratedKey:
        """Make 32 random bytes in the KMS and return them with the same wrapped under `key` and `context`.

        IAM: ``kms:GenerateDataKey`` on the key, which can be limited by ``kms:EncryptionContext:*``.
        """
        address = key_address(key)
        answer = self._call(
            "GenerateDataKey",
            key,
            lambda client: client.generate_data_key(
                KeyId=key.arn, NumberOfBytes=KEY_BYTES, EncryptionContext=dict(context)
            ),
        )
        made = wrapped(answer, "GenerateDataKey", address, material="KeyMaterialId")
        return GeneratedKey(plaintext(answer, "GenerateDataKey", address), made)

    def unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext of `blob`, which was wrapped under exactly this `key` and `context`.

        While the key's region is unavailable, its replicas are asked in their order; each takes as long as the key
        itself may take. Whatever else a region answers is the answer.

        IAM: ``kms:Decrypt`` on the key and on each replica, which can be limited by ``kms:EncryptionContext:*``.
        """
        check_blob(blob, "Decrypt", key_address(key))
        return opened_somewhere(key, lambda asked: self._unwrap(asked, blob, context, exactly=asked is not key))

    def _unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str], *, exactly: bool) -> bytes:
        address = key_address(key)
        # Without KeyId, KMS would take any key that we may use: a swapped blob would open.
        answer = self._call(
            "Decrypt",
            key,
            lambda client: client.decrypt(KeyId=key.arn, CiphertextBlob=blob, EncryptionContext=dict(context)),
        )
        check_key(answer, "KeyId", "Decrypt", address, exactly=exactly)
        return plaintext(answer, "Decrypt", address)

    def rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Wrap the same plaintext under `destination`, inside the KMS; the context stays.

        Both keys are used by one identity, that of `source`: so the new key's policy has to grant it no more
        than encryption, and the right to decrypt is never given to an account that did not have it.

        IAM: ``kms:ReEncryptFrom`` on the source and ``kms:ReEncryptTo`` on the destination, for the source's
        role.

        Raises:
            KmsConfigurationError: also for keys in two regions, which no KMS endpoint can serve.
        """
        answer = self._call("ReEncrypt", source, self._re_encrypt(source, destination, blob, context), destination)
        check_key(answer, "SourceKeyId", "ReEncrypt", key_address(source))
        return wrapped(answer, "ReEncrypt", key_address(destination), material="DestinationKeyMaterialId")

    def check_rewrap(self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `rewrap` would raise, for whatever reason; nothing is wrapped.

        IAM: as for `rewrap`.
        """
        send = self._re_encrypt(source, destination, blob, context, DryRun=True)
        if not self._call(
            "ReEncrypt", source, lambda client: _would_succeed("ReEncrypt", lambda: send(client)), destination
        ):
            raise unexpected("the answer to a dry run is a real one", "ReEncrypt", key_address(source))

    def _re_encrypt(
        self, source: KmsKey, destination: KmsKey, blob: bytes, context: Mapping[str, str], **more: object
    ) -> Callable[[_Client], Answer]:
        old, new = key_address(source), key_address(destination)
        if (old.partition, old.region) != (new.partition, new.region):
            raise KmsConfigurationError(
                f"ReEncrypt from {old.arn} to {new.arn}: the keys are in different regions",
                code="InvalidAddress",
                operation="ReEncrypt",
                hint="make a new key-encryption key under the new KMS key, or use a multi-Region replica",
            )
        check_blob(blob, "ReEncrypt", old)
        return lambda client: client.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=source.arn,
            SourceEncryptionContext=dict(context),
            DestinationKeyId=destination.arn,
            DestinationEncryptionContext=dict(context),
            **more,
        )

    def describe(self, key: KmsKey) -> KmsKeyDescription:
        """Return what the KMS says about `key`; it proves that the key exists and that we may look at it.

        IAM: ``kms:DescribeKey`` on the key, in a statement without encryption-context conditions: this call
        carries no context.
        """
        address = key_address(key)
        answer = self._call("DescribeKey", key, lambda client: client.describe_key(KeyId=key.arn))
        return description(answer, address)

    def check_unwrap(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> None:
        """Raise what `unwrap` would raise, for whatever reason; nothing is decrypted for us, and no replica is asked.

        AWS makes every check of a real call, those of blob and context too, and sends no plaintext.

        IAM: ``kms:Decrypt`` on the key, as for `unwrap`.

        Raises:
            KmsCorruptError: also for an endpoint that takes a dry run for a real call.
        """
        address = key_address(key)
        check_blob(blob, "Decrypt", address)
        request = {"KeyId": key.arn, "CiphertextBlob": blob, "EncryptionContext": dict(context), "DryRun": True}
        if not self._call("Decrypt", key, lambda client: _would_succeed("Decrypt", lambda: client.decrypt(**request))):
            raise unexpected("the answer to a dry run is a real one", "Decrypt", address)

    def rotation_period(self, key: KmsKey) -> timedelta | None:
        """Return how often AWS rotates this key by itself, or None when it does not. IAM: as `rotation_status`."""
        return self.rotation_status(key).period

    def rotation_status(self, key: KmsKey) -> KmsRotationStatus:
        """Return how often AWS rotates this key by itself, and when next.

        IAM: ``kms:GetKeyRotationStatus`` on the key, in a statement without encryption-context conditions: this
        call carries no context.
        """

        def ask() -> Answer:
            return self._call("GetKeyRotationStatus", key, lambda client: client.get_key_rotation_status(KeyId=key.arn))

        return aws_rotations.rotation_status(key_address(key), ask)

    def rotation_history(self, key: KmsKey) -> KmsRotationHistory:
        """Return the rotations of this key that are done, as far as AWS shows them to us.

        IAM: ``kms:ListKeyRotations`` on the key, without encryption-context conditions. AWS does not show them to
        another account than the key's, so we see them only with a role there.
        """

        def ask(more: dict[str, str]) -> Answer:
            return self._call("ListKeyRotations", key, lambda client: client.list_key_rotations(KeyId=key.arn, **more))

        return aws_rotations.rotation_history(key_address(key), ask)

    def check_role(self, key: KmsKey) -> None:
        """Refuse a role that can also be assumed without the ExternalId agreed with the customer.

        IAM: ``sts:AssumeRole`` on the role, whose trust policy must deny this call.

        Raises:
            KmsConfigurationError: it can, so the role's trust policy does not ask for the ExternalId.
        """
        if key.role_arn is None or key.external_id is None:
            return
        try:
            self._assume_anew(KmsKey(key.arn, key.role_arn))
        except KmsDeniedError:
            return
        raise KmsConfigurationError(
            f"role {key.role_arn} can be assumed without its ExternalId",
            code="ExternalIdNotRequired",
            operation="AssumeRole",
            hint="its owner adds the condition StringEquals sts:ExternalId to the role's trust policy",
        )

    def prober(self) -> AwsProber:
        """Return who asks what a key's policies allow, as the identities that this uses."""
        from .aws_probes import AwsProber

        return AwsProber(self._call, self._assume_anew, self._clock)

    def validate_key(self, key: KmsKey) -> None:
        """Refuse an address that AWS KMS cannot mean, before any call. Needs no IAM permission.

        Raises:
            KmsConfigurationError: an alias, a bare key id, another service's ARN, a role in another account.
        """
        key_address(key)

    def _call(
        self, operation: str, key: KmsKey, send: Callable[[_Client], ResultT], other: KmsKey | None = None
    ) -> ResultT:
        named = key.arn if other in (None, key) else f"{key.arn} to {other.arn}"
        return self._tried(_caller(key), lambda: self._call_once(operation, key, send, named))

    def _tried(self, caller: ClientKey, call: Callable[[], ResultT]) -> ResultT:
        # botocore's own retries are off: they take LimitExceededException for a throttle, and they cannot
        # know which of our classes may be tried again.
        for attempt in range(1, self._attempts):
            try:
                return call()
            except KmsUnavailableError:
                if not self._retries.take(caller):
                    raise
                self._sleep(random.uniform(0, min(1.0, 0.1 * 2**attempt)))  # noqa: S311 - jitter, no secret
        return call()

    def _call_once(self, operation: str, key: KmsKey, send: Callable[[_Client], ResultT], named: str) -> ResultT:
        identity = _caller(key)
        try:
            client = self._client(operation, key, identity)
            return translated(operation, named, lambda: send(client))
        except KmsCredentialsError:
            # Once more with fresh ones: ours may have been rotated, the assumed ones may have ended early.
            self._clients.drop(identity)
            self._forget_own_session()
        client = self._client(operation, key, identity)
        return translated(operation, named, lambda: send(client))

    def _client(self, operation: str, key: KmsKey, identity: ClientKey) -> _Client:
        def make() -> Lease[_Client]:
            if identity.role_arn is None:
                return Lease(self._new_client(operation, key, "kms"))
            return self._assumed(operation, key)

        return self._clients.get(identity, make)

    def _assume_anew(self, key: KmsKey) -> None:
        """Assume a role, and forget the credentials."""
        self._tried(_caller(key), lambda: self._assumed("DescribeKey", key))

    def _assumed(self, operation: str, key: KmsKey) -> Lease[_Client]:
        """Make a client with credentials of the customer's role.

        IAM: ``sts:AssumeRole`` on the role for our own identity; the role's trust policy names it and the
        ExternalId.
        """
        now = self._clock()
        self._resolve_own_credentials(operation, key)
        sts = self._sts_client(operation, key)
        arguments: dict[str, object] = {
            "RoleArn": key.role_arn,
            "RoleSessionName": self._role_session_name,
            "DurationSeconds": self._session_seconds,
        }
        if key.external_id is not None:
            arguments["ExternalId"] = key.external_id
        answer = translated(operation, key.arn, lambda: sts.assume_role(**arguments), step="AssumeRole")
        credentials = answer.get("Credentials")
        if not isinstance(credentials, Mapping) or not isinstance(credentials.get("Expiration"), datetime):
            raise kms_error("ResponseParserError", operation, key.arn, step="AssumeRole")
        client = self._new_client(operation, key, "kms", credentials)
        return Lease.until(client, now, credentials["Expiration"].timestamp())

    def _resolve_own_credentials(self, operation: str, key: KmsKey) -> None:
        """Fetch or refresh our own credentials now, apart from the customer's role.

        They may themselves come from an AssumeRole, whose refusal must not look like the customer's.
        """
        with self._session_lock:
            session = self._own_session(operation, key)
            credentials = translated(operation, key.arn, session.get_credentials, step=OWN_CREDENTIALS)
        if credentials is None:
            raise kms_error("NoCredentialsError", operation, key.arn, step=OWN_CREDENTIALS)
        translated(operation, key.arn, credentials.get_frozen_credentials, step=OWN_CREDENTIALS)

    def _sts_client(self, operation: str, key: KmsKey) -> _Client:
        client = self._new_client(operation, key, "sts")
        if client.meta.endpoint_url != _GLOBAL_STS:
            return client
        # AWS_STS_REGIONAL_ENDPOINTS=legacy sends everybody to us-east-1, whose outage would then be ours.
        regional = f"https://sts.{key_address(key).region}.amazonaws.com"
        return self._new_client(operation, key, "sts", endpoint_url=regional)

    def _new_client(
        self,
        operation: str,
        key: KmsKey,
        service: str,
        credentials: Mapping[str, object] | None = None,
        *,
        endpoint_url: str | None = None,
    ) -> _Client:
        given = self._endpoint_url if service == "kms" else self._sts_endpoint_url
        options: dict[str, Any] = {
            "region_name": key_address(key).region,
            "endpoint_url": endpoint_url or given,
            "config": client_config(*self._timeouts),
        }
        if credentials is not None:
            options["aws_access_key_id"] = credentials.get("AccessKeyId")
            options["aws_secret_access_key"] = credentials.get("SecretAccessKey")
            options["aws_session_token"] = credentials.get("SessionToken")
        # Clients are thread-safe, but making one from a session is not.
        with self._session_lock:
            session = self._own_session(operation, key)
            made = translated(operation, key.arn, lambda: session.client(service, **options), step="making a client")
        return cast(_Client, made)

    def _own_session(self, operation: str, key: KmsKey) -> Session:
        if self._session is None:
            from boto3.session import Session

            self._session = translated(operation, key.arn, Session, step=OWN_CREDENTIALS)
        return self._session

    def _forget_own_session(self) -> None:
        with self._session_lock:
            self._session = self._given_session

    def _forget_clients(self) -> None:
        """Start anew without clients, session or locks: in a forked child a lock may be held for ever."""
        self._session_lock = threading.Lock()
        self._session = self._given_session
        self._clients: ClientCache[_Client] = ClientCache(capacity=self._max_clients, clock=self._clock)
        self._retries = RetryBudget(self._max_clients)


_instances: Final[weakref.WeakSet[AwsKms]] = weakref.WeakSet()


def _after_fork() -> None:
    for provider in list(_instances):
        provider._forget_clients()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _caller(key: KmsKey) -> ClientKey:
    """Return as whom a key is used."""
    return ClientKey(key_address(key).region, key.role_arn, key.external_id)


def _would_succeed(operation: str, dry_run: Callable[[], Answer]) -> bool:
    """Tell whether a dry run was answered as one that would succeed; a refusal is raised."""
    from botocore.exceptions import ClientError

    try:
        dry_run()
    except ClientError as error:
        # The operation too: botocore may have refreshed our own credentials on the way, by another call.
        answered = (error.operation_name, error.response.get("Error", {}).get("Code"))
        if answered == (operation, "DryRunOperationException"):
            return True
        raise
    return False
