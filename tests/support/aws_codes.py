"""Which error codes of AWS mean what: the table that tests compare the library with, by class."""

from pii_vault.errors import (
    KmsConfigurationError,
    KmsCorruptError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
)

R, T, C, F, V = KmsDeniedError, KmsUnavailableError, KmsCorruptError, KmsConfigurationError, KmsCredentialsError

# One row a class, each code once. What AWS answers to KMS requests, whichever operation was asked for:
CODES: dict[type[KmsError], str] = {
    R: "AccessDeniedException AccessDenied NotAuthorized DisabledException KMSInvalidStateException",
    T: """
        KeyUnavailableException DependencyTimeoutException KMSInternalException ConflictException
        ThrottlingException Throttling ThrottledException TooManyRequestsException SlowDown
        RequestLimitExceeded RequestThrottled RequestThrottledException
        InternalFailure InternalError InternalServerError ServiceUnavailable ServiceUnavailableException
        RequestTimeout RequestTimeoutException XksProxyUriUnreachableException
        """,
    C: "InvalidCiphertextException IncorrectKeyException",
    F: """
        LimitExceededException InvalidKeyUsageException UnsupportedOperationException InvalidArnException
        ValidationException ValidationError InvalidParameterValue MalformedPolicyDocument
        MalformedPolicyDocumentException PackedPolicyTooLarge TagException InvalidGrantTokenException
        DryRunOperationException InvalidAction MissingAction RegionDisabledException OptInRequired
        AlreadyExistsException InvalidAliasNameException InvalidMarkerException
        UnknownOperationException SerializationException
        XksProxyInvalidResponseException XksKeyNotFoundException XksProxyIncorrectAuthenticationCredentialException
        CustomKeyStoreInvalidStateException CustomKeyStoreNotFoundException CloudHsmClusterNotActiveException
        """,
    V: """
        ExpiredToken ExpiredTokenException RequestExpired RequestTimeTooSkewed RequestInTheFuture
        SignatureDoesNotMatch InvalidSignatureException IncompleteSignature IncompleteSignatureException
        InvalidClientTokenId UnrecognizedClientException AuthFailure
        MissingAuthenticationToken MissingAuthenticationTokenException
        """,
}
# What STS answers where a customer's role is assumed:
STS_CODES: dict[type[KmsError], str] = {
    R: "AccessDenied AccessDeniedException",
    T: "Throttling ServiceUnavailable InternalFailure RequestTimeout RequestLimitExceeded",
    F: "ValidationError RegionDisabledException MalformedPolicyDocument PackedPolicyTooLarge",
    V: """
        ExpiredToken ExpiredTokenException RequestExpired SignatureDoesNotMatch IncompleteSignature
        InvalidClientTokenId MissingAuthenticationToken
        """,
}


def rows(table: dict[type[KmsError], str]) -> list[tuple[str, type[KmsError]]]:
    return [(code, expected) for expected, codes in table.items() for code in codes.split()]
