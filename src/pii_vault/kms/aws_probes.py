"""Ask AWS KMS and STS what they would allow, as the identity that uses a key, without doing it.

Where AWS has a dry run (``DryRun=True``: the cryptographic operations and CreateGrant) it is one. The rest are requests
that change nothing even where they are allowed: ``EnableKey`` on a key that is enabled, ``CancelKeyDeletion`` on one
that is not to be deleted, ``GetKeyPolicy``. ``PutKeyPolicy``, ``DisableKey`` and ``ScheduleKeyDeletion`` have neither,
and are never sent.

AWS checks whether a caller is authorised before it looks at the ciphertext. So only ``AccessDeniedException`` is a
refusal by policy, and ``InvalidCiphertextException`` says that the request was allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from ..errors import ConfigurationError, KmsDeniedError
from .aws_answers import KEY_BYTES
from .aws_arn import key_address
from .base import KmsKey, Ruling, Trial

_NOTHING_SECRET: Final = b"pii_vault probe"

_Send = Callable[[Any], Any]


class _Call(Protocol):
    """`AwsKms._call`: a client of the right identity, our timeouts, retries and errors."""

    def __call__(self, operation: str, key: KmsKey, send: Callable[[Any], Ruling], /) -> Ruling: ...


class AwsProber:
    """A `KmsProber` for AWS. `AwsKms.prober` makes it.

    Args:
        call: Calls an operation as the identity that a key is used as.
        assume: Assumes a key's role and forgets the credentials.
        clock: Seconds of the wall clock.
    """

    def __init__(self, call: _Call, assume: Callable[[KmsKey], None], clock: Callable[[], float]) -> None:
        self._call: Final = call
        self._assume: Final = assume
        self._clock: Final = clock
        self._offset: float | None = None

    @property
    def clock_offset(self) -> float | None:
        """By how many seconds AWS's clock was ahead of ours at the last answer, to within a second."""
        return self._offset

    def probe(self, key: KmsKey, trial: Trial) -> Ruling:
        """Say whether AWS KMS would allow a request. IAM: none that it does not ask about.

        Raises:
            KmsError: the answer says nothing about permission.
        """
        operation, is_dry, send = _request(key, trial)
        ruling = self._call(operation, key, lambda client: self._ruling(operation, lambda: send(client)))
        # What has no dry run was answered by doing nothing.
        return Ruling.ALLOWED if ruling is Ruling.DONE and not is_dry else ruling

    def probe_role(self, key: KmsKey) -> Ruling:
        """Say whether STS lets our own identity assume the role of `key`, with its ExternalId or without one."""
        try:
            self._assume(key)
        except KmsDeniedError:
            return Ruling.DENIED
        return Ruling.ALLOWED

    def _ruling(self, operation: str, send: Callable[[], Any]) -> Ruling:
        from botocore.exceptions import ClientError

        began = self._clock()
        try:
            answer = send()
        except ClientError as error:
            self._compare_clocks(error.response, began)
            answered = str(error.response.get("Error", {}).get("Code", ""))
            # The operation too: botocore may have refreshed our own credentials on the way, by another call.
            ruling = _RULINGS.get((operation, answered), _RULINGS.get(("", answered)))
            if ruling is None or error.operation_name != operation:
                raise
            return ruling
        self._compare_clocks(answer, began)
        answer.clear()  # a dry run that was none may have brought a key
        return Ruling.DONE

    def _compare_clocks(self, answer: Mapping[str, Any], began: float) -> None:
        said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            theirs = parsedate_to_datetime(said).timestamp()
        except (TypeError, ValueError):
            return
        # The header has whole seconds, the rest is cut off (RFC 9110, section 5.6.7).
        self._offset = theirs + 0.5 - (began + self._clock()) / 2


_RULINGS: Final[dict[tuple[str, str], Ruling]] = {
    ("", "AccessDeniedException"): Ruling.DENIED,
    ("", "DryRunOperationException"): Ruling.ALLOWED,
    ("Decrypt", "InvalidCiphertextException"): Ruling.ALLOWED,
    ("ReEncrypt", "InvalidCiphertextException"): Ruling.ALLOWED,
    # The key is not pending deletion, which is why this may be asked at all.
    ("CancelKeyDeletion", "KMSInvalidStateException"): Ruling.ALLOWED,
}
"""What answers say about permission, by operation; an empty one stands for all."""


def _request(key: KmsKey, trial: Trial) -> tuple[str, bool, _Send]:
    """Return the operation that asks for an action, whether it is a dry run, and how it is sent."""
    context, arn = dict(trial.context), key.arn
    dry: dict[str, Any] = {"DryRun": True}
    if trial.action == "GenerateDataKey":
        sent = {"KeyId": arn, "NumberOfBytes": KEY_BYTES, "EncryptionContext": context, **dry}
        return "GenerateDataKey", True, lambda client: client.generate_data_key(**sent)
    if trial.action == "Decrypt":
        sent = {"KeyId": arn, "CiphertextBlob": trial.blob, "EncryptionContext": context, **dry}
        return "Decrypt", True, lambda client: client.decrypt(**sent)
    if trial.action in ("ReEncryptFrom", "ReEncryptTo"):
        sent = _re_encrypt(arn, trial) | dry
        return "ReEncrypt", True, lambda client: client.re_encrypt(**sent)
    if trial.action == "Encrypt":
        sent = {"KeyId": arn, "Plaintext": _NOTHING_SECRET, "EncryptionContext": context, **dry}
        return "Encrypt", True, lambda client: client.encrypt(**sent)
    if trial.action == "CreateGrant":
        sent = {"KeyId": arn, "GranteePrincipal": _grantee(key), "Operations": ["DescribeKey"], **dry}
        return "CreateGrant", True, lambda client: client.create_grant(**sent)
    if trial.action == "EnableKey":
        return "EnableKey", False, lambda client: client.enable_key(KeyId=arn)
    if trial.action == "CancelKeyDeletion":
        return "CancelKeyDeletion", False, lambda client: client.cancel_key_deletion(KeyId=arn)
    if trial.action == "GetKeyPolicy":
        return "GetKeyPolicy", False, lambda client: client.get_key_policy(KeyId=arn)
    raise ConfigurationError(f"kms:{trial.action} cannot be tried without doing it")


def _re_encrypt(arn: str, trial: Trial) -> dict[str, Any]:
    """Return a ReEncrypt on one key whose context is the trial's on one side, and the blob's own on the other."""
    tried, own = dict(trial.context), dict(trial.blob_context)
    source, destination = (tried, own) if trial.action == "ReEncryptFrom" else (own, tried)
    return {
        "CiphertextBlob": trial.blob,
        "SourceKeyId": arn,
        "SourceEncryptionContext": source,
        "DestinationKeyId": arn,
        "DestinationEncryptionContext": destination,
    }


def _grantee(key: KmsKey) -> str:
    address = key_address(key)
    return key.role_arn or f"arn:{address.partition}:iam::{address.account}:root"
