"""Which of the five `KmsError` classes an AWS error code means, as one table.

Pure: codes, a status and a message in, an error out. `LocalKms` answers with AWS's codes and uses the same
table, so that a program meets the same classes in development.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import (
    KmsConfigurationError,
    KmsCorruptError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
)

OWN_CREDENTIALS: Final = "getting our own credentials"

_DENIED: Final = frozenset({"AccessDeniedException", "AccessDenied", "DisabledException", "NotAuthorized"})

_UNAVAILABLE: Final = frozenset(
    {
        "KeyUnavailableException",
        "DependencyTimeoutException",
        "KMSInternalException",
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ConflictException",
        "InternalFailure",
        "InternalError",
        "InternalServerError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestTimeout",
        "RequestTimeoutException",
        "XksProxyUriUnreachableException",
        # botocore's exceptions, by name: nothing was answered, or nothing that can be read.
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
    }
)

_CORRUPT: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})

_CONFIGURATION: Final = frozenset(
    {
        "LimitExceededException",
        "InvalidKeyUsageException",
        "UnsupportedOperationException",
        "InvalidArnException",
        "ValidationException",
        "ValidationError",
        "MalformedPolicyDocument",
        "MalformedPolicyDocumentException",
        "PackedPolicyTooLarge",
        "TagException",
        "InvalidGrantTokenException",
        "DryRunOperationException",
        "InvalidAction",
        "MissingAction",
        "InvalidParameterValue",
        "RegionDisabledException",
        "OptInRequired",
        "AlreadyExistsException",
        "InvalidAliasNameException",
        "InvalidMarkerException",
        "UnknownOperationException",
        "SerializationException",
        # botocore's exceptions: a certificate that does not fit may be somebody in between, so no retry
        # either.
        "SSLError",
        "ParamValidationError",
        "BaseEndpointResolverError",
        "EndpointProviderError",
        "UnknownRegionError",
        "DataNotFoundError",
        "ProfileNotFound",
        "ConfigParseError",
        "ConfigNotFound",
        "MissingDependencyException",
        "InvalidConfigError",
        "ValueError",
    }
)
_NETWORK: Final = frozenset({"ConnectionError", "HTTPClientError", "SSLError"})
_CONFIGURATION_PREFIXES: Final = ("Xks", "CustomKeyStore", "CloudHsm")

_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "RequestInTheFuture",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "AuthFailure",
        # botocore's exceptions: our own credentials could not be had.
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "MetadataRetrievalError",
        "TokenRetrievalError",
        "NoAuthTokenError",
        "UnknownCredentialError",
        "RefreshWithMFAUnsupportedError",
        "InvalidIMDSEndpointError",
        "SSOError",
        "LoginError",
    }
)

_TABLE: Final[tuple[tuple[frozenset[str], type[KmsError]], ...]] = (
    (_DENIED, KmsDeniedError),
    (_UNAVAILABLE, KmsUnavailableError),
    (_CORRUPT, KmsCorruptError),
    (_CONFIGURATION, KmsConfigurationError),
    (_CREDENTIALS, KmsCredentialsError),
)

# Multi-Region keys answer "<arn> is creating." or "<arn> is updating." for a moment; nothing was taken away.
_PASSING_STATE: Final = re.compile(r"\b(creating|updating)\b", re.IGNORECASE)

# Of AWS's message no more than an action and a key's address: the rest may quote parameters.
_LACKING: Final = re.compile(
    r"not authorized to perform: (kms:[A-Za-z]{1,40}) on resource: "
    r"(arn:[a-z-]{3,20}:kms:[a-z0-9-]{1,30}:\d{12}:key/[\w-]{1,64})",
    re.ASCII,
)

_CODE_HINTS: Final[dict[tuple[str, type[KmsError]], str]] = {
    ("DisabledException", KmsDeniedError): "the key is disabled: its owner can enable it again",
    ("KMSInvalidStateException", KmsDeniedError): (
        "the key is pending deletion or import, or its custom key store failed: DescribeKey tells its owner"
    ),
    (
        "AccessDenied",
        KmsDeniedError,
    ): "the role's trust policy or ExternalId no longer lets us in, or the role is gone",
    (
        "LimitExceededException",
        KmsConfigurationError,
    ): "an AWS quota or length limit is reached; a retry does not help",
    (
        "SSLError",
        KmsConfigurationError,
    ): "the endpoint's certificate is not trusted here: check the endpoint and the CA bundle",
    (
        "IncorrectKeyException",
        KmsCorruptError,
    ): "the blob was wrapped by another KMS key than its record names",
    ("InvalidCiphertextException", KmsCorruptError): "the wrapped key or its encryption context was changed",
    ("DryRunOperationException", KmsConfigurationError): "a dry run succeeded where a real call was meant",
}

_CLASS_HINTS: Final[dict[type[KmsError], str]] = {
    KmsDeniedError: "only the owner of the key can change that: ask for the key policy and CloudTrail",
    KmsUnavailableError: "nothing is wrong with the key; try again",
    KmsCorruptError: "restore the key record from a backup; do not retry",
    KmsConfigurationError: "check the key ARN, its region and usage, and the endpoint",
    KmsCredentialsError: "check our own AWS credentials and this machine's clock",
}


def error_class(code: str, operation: str, *, message: str = "", status: int | None = None) -> type[KmsError]:
    """Return the class that an AWS error code means for an operation.

    Args:
        code: The error code, for example ``DisabledException``.
        operation: The KMS operation that was wanted, for example ``Decrypt``.
        message: AWS's message; only KMSInvalidStateException needs it.
        status: The HTTP status, if there was an answer.
    """
    known = _known_class(code, operation, message, status)
    if known is not None:
        return known
    # Fail closed on what this release does not know: nothing new is sealed under a key in doubt, and nothing
    # is destroyed or marked as revoked because of a word that may be a new kind of outage.
    return KmsDeniedError if operation in {"GenerateDataKey", "ReEncrypt"} else KmsUnavailableError


def _known_class(code: str, operation: str, message: str, status: int | None) -> type[KmsError] | None:
    for codes, found in _TABLE:
        if code in codes:
            return found
    if code == "KMSInvalidStateException":
        return KmsUnavailableError if _PASSING_STATE.search(message) else KmsDeniedError
    if code == "NotFoundException":
        # A provider cannot know whether the key ever worked. A blob exists only because it did, so for a blob
        # the key is gone; a new key or a look at it more probably has a mistyped ARN.
        return KmsDeniedError if operation in {"Decrypt", "ReEncrypt"} else KmsConfigurationError
    if code.startswith(_CONFIGURATION_PREFIXES):
        return KmsConfigurationError
    if status is not None and (status >= 500 or status == 429):
        return KmsUnavailableError
    return None


def exception_code(error: BaseException) -> str:
    """Return the name under which the table knows an exception or one of its bases, else its own name."""
    names = [base.__name__ for base in type(error).__mro__]
    return next((name for name in names if any(name in codes for codes, _ in _TABLE)), names[0])


def may_be_chained(error: BaseException) -> bool:
    """Tell whether a botocore exception may be kept as a cause: its text names endpoints at most.

    `ParamValidationError` quotes parameters and `ResponseParserError` the answer, which may hold credentials.
    """
    code = exception_code(error)
    return code in _NETWORK or code in _CREDENTIALS


def kms_error(
    code: str,
    operation: str,
    arn: str,
    *,
    message: str = "",
    status: int | None = None,
    step: str | None = None,
) -> KmsError:
    """Build the error for an AWS error code.

    AWS's own message is not repeated: it may quote parameters.

    Args:
        code: The error code, or the name of a botocore exception.
        operation: The KMS operation that was wanted.
        arn: The key's ARN.
        message: AWS's message, for the classification only.
        status: The HTTP status, if there was an answer.
        step: What failed on the way, if not the operation itself: ``AssumeRole`` or `OWN_CREDENTIALS`.
    """
    found = error_class(code, operation, message=message, status=status)
    if step == OWN_CREDENTIALS and found is not KmsUnavailableError:
        # Whatever keeps us from our own identity is no word of the customer's.
        found = KmsCredentialsError
    failed = f"{operation} with KMS key {arn}" if step is None else f"{step} for {operation} with KMS key {arn}"
    hint = _CODE_HINTS.get((code, found), _CLASS_HINTS[found])
    lacking = _LACKING.search(message) if code == "AccessDeniedException" else None
    if lacking is not None:
        hint = (
            f"{lacking[1]} on {lacking[2]} is not granted: its key policy says who may, and from another account the "
            "role's own policy has to say so too"
        )
    error = found(f"{failed} failed: {code}", code=code, operation=operation, hint=hint)
    if isinstance(error, KmsUnavailableError):
        error.is_outage = _known_class(code, operation, message, status) is not None
    return error
