"""Every error code of AWS, answered over HTTP, becomes one of the five classes, and that decides how often we ask."""

import ssl
from collections.abc import Callable, Iterator

import botocore.exceptions
import pytest
from botocore.parsers import ResponseParserError
from tests.support.aws_codes import CODES, STS_CODES, C, F, R, T, V, rows
from tests.support.kms_http import FaultRule, HttpServer, Reply
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.errors import (
    KmsConfigurationError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
)
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms
from pii_vault.kms.aws_calls import translated
from pii_vault.kms.aws_errors import _TABLE, error_class, exception_code
from pii_vault.kms.aws_retries import RetryBudget

CONTEXT = {"pii-vault:tenant": "0123"}
BLOB = b"\x01\x02" * 40
ATTEMPTS = 3
REQUESTS = {R: 1, T: ATTEMPTS, C: 1, F: 1, V: 2}
"""How many requests a call comes to: an outage is tried again, and wrong credentials are fetched anew once."""

Calls = dict[str, Callable[[AwsKms, KmsKey], object]]
CALLS: Calls = {
    "GenerateDataKey": lambda kms, key: kms.generate(key, CONTEXT),
    "Decrypt": lambda kms, key: kms.unwrap(key, BLOB, CONTEXT),
    "ReEncrypt": lambda kms, key: kms.rewrap(key, key, BLOB, CONTEXT),
    "DescribeKey": lambda kms, key: kms.describe(key),
}


@pytest.fixture(scope="module")
def shared_kms() -> Iterator[StrictKms]:
    with StrictKms() as kms:
        yield kms


@pytest.fixture(scope="module")
def shared_provider(shared_kms: StrictKms) -> AwsKms:
    return shared_kms.provider(attempts=ATTEMPTS, sleep=lambda _: None)


@pytest.fixture
def provider(shared_provider: AwsKms) -> AwsKms:
    """A provider that has had no failure lately: it tries again as often as it may."""
    shared_provider._retries = RetryBudget(100)
    return shared_provider


@pytest.fixture
def key(shared_kms: StrictKms) -> Iterator[KmsKey]:
    """A key without a role, so that each call is one request."""
    arn = shared_kms.create_key()
    shared_kms.allow(arn, VENDOR)
    yield KmsKey(arn)
    shared_kms.clear_script()


def failing(provider: AwsKms, operation: str, key: KmsKey, kms: StrictKms, rule: FaultRule) -> tuple[KmsError, int]:
    """Return the error of an operation under a fault, and how many requests were sent."""
    kms.script(rule)
    with kms.counting() as calls, pytest.raises(KmsError) as caught:
        CALLS[operation](provider, key)
    return caught.value, calls.count()


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(("code", "expected"), rows(CODES))
def test_a_code_has_one_class_for_every_operation(
    code: str, expected: type[KmsError], operation: str, shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    secret_message = "CANARY in the message of AWS"
    rule = FaultRule(operation, error=code, message=secret_message, times=None)
    error, requests = failing(provider, operation, key, shared_kms, rule)
    assert type(error) is expected
    assert (error.code, error.operation) == (code, operation)
    assert error.retryable is (expected in {T, V})
    assert key.arn in str(error)
    assert code in str(error)
    assert error.hint
    assert "CANARY" not in str(error)
    assert requests == REQUESTS[expected]


@pytest.mark.parametrize(("code", "expected"), rows(STS_CODES))
def test_a_code_of_sts_has_a_class_too(
    code: str, expected: type[KmsError], shared_kms: StrictKms, provider: AwsKms
) -> None:
    key = shared_kms.customer_key()
    rule = FaultRule("AssumeRole", key=key.role_arn, error=code, times=None)
    error, requests = failing(provider, "Decrypt", key, shared_kms, rule)
    shared_kms.clear_script()
    assert type(error) is expected
    assert error.code == code
    assert error.retryable is (expected in {T, V})
    assert "AssumeRole" in str(error)
    assert key.arn in str(error)
    assert shared_kms.count("Decrypt", key=key.arn) == 0
    assert requests == REQUESTS[expected]


def test_every_code_that_the_library_knows_has_a_row() -> None:
    known = {code for codes, _ in _TABLE for code in codes}
    exceptions = {exception_code(error) for error, _, _ in BY_HAND}
    assert known - exceptions <= {code for code, _ in rows(CODES)}


@pytest.mark.parametrize(
    ("operation", "expected"), [("GenerateDataKey", F), ("Decrypt", R), ("ReEncrypt", R), ("DescribeKey", F)]
)
def test_a_key_that_is_not_found(
    operation: str, expected: type[KmsError], shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    rule = FaultRule(operation, error="NotFoundException", times=None)
    error, requests = failing(provider, operation, key, shared_kms, rule)
    assert type(error) is expected
    assert requests == 1


@pytest.mark.parametrize(
    ("operation", "expected"), [("GenerateDataKey", R), ("Decrypt", T), ("ReEncrypt", R), ("DescribeKey", T)]
)
def test_an_unknown_code_fails_closed(
    operation: str, expected: type[KmsError], shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    rule = FaultRule(operation, error="BrandNewException", status=400, times=None)
    error, requests = failing(provider, operation, key, shared_kms, rule)
    assert type(error) is expected
    assert requests == REQUESTS[expected]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
@pytest.mark.parametrize("code", ["", "BrandNewException"])
@pytest.mark.parametrize("operation", CALLS)
def test_a_server_error_is_an_outage(
    operation: str, code: str, status: int, shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    rule = FaultRule(operation, error=code, status=status, times=None)
    error, requests = failing(provider, operation, key, shared_kms, rule)
    assert type(error) is T
    assert requests == ATTEMPTS


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PendingDeletion", R),
        ("PendingReplicaDeletion", R),
        ("PendingImport", R),
        ("Unavailable", R),
        ("Creating", T),
        ("Updating", T),
    ],
)
def test_the_state_decides_what_an_invalid_state_means(
    state: str, expected: type[KmsError], shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    generated = provider.generate(key, CONTEXT)
    shared_kms.set_state(key.arn, state)
    with pytest.raises(KmsError) as caught:
        provider.unwrap(key, generated.wrapped.blob, CONTEXT)
    assert type(caught.value) is expected
    assert caught.value.code == "KMSInvalidStateException"


def test_a_dropped_connection_is_an_outage(shared_kms: StrictKms, provider: AwsKms, key: KmsKey) -> None:
    error, requests = failing(provider, "Decrypt", key, shared_kms, FaultRule("Decrypt", drop=True, times=None))
    assert (type(error), requests) == (T, ATTEMPTS)
    assert error.code in {"HTTPClientError", "ConnectionError"}


@pytest.mark.parametrize("operation", CALLS)
def test_an_answer_that_is_not_json_is_never_a_key(
    operation: str, shared_kms: StrictKms, provider: AwsKms, key: KmsKey
) -> None:
    blob = provider.generate(key, CONTEXT).wrapped.blob
    calls: Calls = {**CALLS, "Decrypt": lambda kms, key: kms.unwrap(key, blob, CONTEXT)}
    calls["ReEncrypt"] = lambda kms, key: kms.rewrap(key, key, blob, CONTEXT)
    shared_kms.script(FaultRule(operation, alter=lambda _: b"<html>proxy login</html>", times=None))
    with pytest.raises(KmsError) as caught:
        calls[operation](provider, key)
    assert type(caught.value) in {T, C}
    assert "proxy login" not in str(caught.value)


def test_nobody_listens(strict_kms: StrictKms) -> None:
    server = HttpServer(lambda headers, body: Reply(200, b"{}"))
    server.close()
    provider = AwsKms(endpoint_url=server.url, session=strict_kms.session(), attempts=1)
    with pytest.raises(KmsUnavailableError) as caught:
        provider.unwrap(KmsKey(strict_kms.create_key()), BLOB, CONTEXT)
    assert caught.value.code == "ConnectionError"


def test_a_name_that_does_not_resolve(strict_kms: StrictKms) -> None:
    provider = AwsKms(endpoint_url="http://kms.invalid", session=strict_kms.session(), attempts=1)
    with pytest.raises(KmsUnavailableError):
        provider.unwrap(KmsKey(strict_kms.create_key()), BLOB, CONTEXT)


def test_an_untrusted_certificate_is_a_configuration_error(strict_kms: StrictKms, self_signed: ssl.SSLContext) -> None:
    server = HttpServer(lambda headers, body: Reply(200, b"{}"), tls=self_signed)
    try:
        provider = AwsKms(endpoint_url=server.url, session=strict_kms.session(), attempts=3)
        with pytest.raises(KmsConfigurationError) as caught:
            provider.unwrap(KmsKey(strict_kms.create_key()), BLOB, CONTEXT)
    finally:
        server.close()
    assert caught.value.code == "SSLError"
    assert "certificate" in str(caught.value)
    assert not caught.value.retryable


def test_an_endpoint_that_is_no_url(strict_kms: StrictKms) -> None:
    provider = AwsKms(endpoint_url="not a url", session=strict_kms.session())
    with pytest.raises(KmsConfigurationError):
        provider.describe(KmsKey(strict_kms.create_key()))


BY_HAND: list[tuple[Exception, type[KmsError], bool]] = [
    (botocore.exceptions.NoCredentialsError(), V, True),
    (botocore.exceptions.PartialCredentialsError(provider="env", cred_var="x"), V, True),
    (botocore.exceptions.CredentialRetrievalError(provider="web", error_msg="x"), V, True),
    (botocore.exceptions.SSOTokenLoadError(error_msg="x"), V, True),
    (botocore.exceptions.MetadataRetrievalError(error_msg="x"), V, True),
    (botocore.exceptions.TokenRetrievalError(provider="sso", error_msg="x"), V, True),
    (botocore.exceptions.NoAuthTokenError(), V, True),
    (botocore.exceptions.UnknownCredentialError(name="x"), V, True),
    (botocore.exceptions.RefreshWithMFAUnsupportedError(), V, True),
    (botocore.exceptions.InvalidIMDSEndpointError(endpoint="x"), V, True),
    (botocore.exceptions.LoginError(), V, True),
    (botocore.exceptions.ConnectTimeoutError(endpoint_url="https://kms"), T, True),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="https://kms"), T, True),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="https://kms"), T, True),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="https://kms"), T, True),
    (botocore.exceptions.ProxyConnectionError(proxy_url="https://proxy"), T, True),
    (botocore.exceptions.HTTPClientError(error="x"), T, True),
    (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), T, False),
    (ResponseParserError("CANARY"), T, False),
    (botocore.exceptions.SSLError(endpoint_url="https://kms", error="x"), F, True),
    (botocore.exceptions.ParamValidationError(report="CANARY"), F, False),
    (botocore.exceptions.NoRegionError(), F, False),
    (botocore.exceptions.UnknownRegionError(region_name="x", error_msg="x"), F, False),
    (botocore.exceptions.UnknownEndpointError(service_name="kms", region_name="x"), F, False),
    (botocore.exceptions.EndpointProviderError(msg="x"), F, False),
    (botocore.exceptions.DataNotFoundError(data_path="x"), F, False),
    (botocore.exceptions.ProfileNotFound(profile="x"), F, False),
    (botocore.exceptions.ConfigParseError(path="x"), F, False),
    (botocore.exceptions.ConfigNotFound(path="x"), F, False),
    (botocore.exceptions.MissingDependencyException(msg="x"), F, False),
    (botocore.exceptions.InvalidConfigError(error_msg="x"), F, False),
    (ValueError("CANARY"), F, False),
]


@pytest.mark.parametrize(("error", "expected", "chained"), BY_HAND, ids=lambda one: type(one).__name__)
def test_an_exception_of_botocore_has_a_class(error: Exception, expected: type[KmsError], chained: bool) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(KmsError) as caught:
        translated("GenerateDataKey", "arn:aws:kms:x", fail)
    assert type(caught.value) is expected
    assert (caught.value.__cause__ is error) is chained
    assert caught.value.__context__ in (None, caught.value.__cause__)
    assert "CANARY" not in str(caught.value)
    # Frames of botocore hold signed requests.
    if chained:
        assert error.__traceback__ is None


def test_an_unknown_exception_of_botocore_follows_the_rule_for_unknown_codes() -> None:
    def fail() -> None:
        raise botocore.exceptions.BotoCoreError

    with pytest.raises(KmsDeniedError):
        translated("GenerateDataKey", "arn", fail)
    with pytest.raises(KmsUnavailableError):
        translated("Decrypt", "arn", fail)


def test_a_refusal_of_our_own_role_is_not_the_customers() -> None:
    """botocore refreshes our own credentials inside any call; a mistake there must not look like a
    revocation."""
    answer = {"Error": {"Code": "AccessDenied", "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    def fail() -> None:
        raise botocore.exceptions.ClientError(answer, "AssumeRoleWithWebIdentity")

    for step in (None, "AssumeRole"):
        with pytest.raises(KmsCredentialsError):
            translated("Decrypt", "arn", fail, step=step)


def test_the_message_of_an_invalid_state_is_read_as_words() -> None:
    for message in ("arn:x is creating.", "arn:x is updating."):
        assert error_class("KMSInvalidStateException", "Decrypt", message=message) is T
    for message in ("", "arn:x is pending deletion.", "the recreating store is unavailable"):
        assert error_class("KMSInvalidStateException", "Decrypt", message=message) is R
