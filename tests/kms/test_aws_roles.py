"""Roles and credentials: whose they are, how long they last, what their end means."""

import os
import time

import pytest
from tests.support.kms_http import FaultRule
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.errors import KmsCredentialsError, KmsDeniedError, KmsUnavailableError
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:purpose": "kek"}


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def test_the_role_is_assumed_once_for_many_calls(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider(role_session_name="billing")
    for _ in range(3):
        provider.generate(key, CONTEXT)
    assert strict_kms.count("AssumeRole") == 1
    sent = next(call for call in strict_kms.calls if call.operation == "AssumeRole").parameters
    assert sent["RoleSessionName"] == "billing"
    assert sent["DurationSeconds"] == "900"
    assert sent["ExternalId"] == key.external_id
    assert strict_kms.calls[-1].principal.endswith("/billing")


def test_a_wrong_external_id_is_denied_even_after_the_right_one(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    provider.generate(key, CONTEXT)
    for wrong in ("another-id", None):
        with pytest.raises(KmsDeniedError) as caught:
            provider.generate(KmsKey(key.arn, key.role_arn, wrong), CONTEXT)
        assert caught.value.code == "AccessDenied"


def test_a_role_that_is_gone_is_denied_without_a_second_try(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    assert key.role_arn is not None
    strict_kms.remove_role(key.role_arn)
    with pytest.raises(KmsDeniedError):
        strict_kms.provider(attempts=3).generate(key, CONTEXT)
    assert strict_kms.count("AssumeRole") == 1


def test_credentials_are_renewed_before_their_end(strict_kms: StrictKms) -> None:
    clock = Clock()
    key, provider = strict_kms.customer_key(), strict_kms.provider(clock=clock)
    provider.generate(key, CONTEXT)
    clock.ahead = 590
    provider.generate(key, CONTEXT)
    assert strict_kms.count("AssumeRole") == 1
    clock.ahead = 601
    provider.generate(key, CONTEXT)
    assert strict_kms.count("AssumeRole") == 2
    assert strict_kms.count(outcome="ExpiredTokenException") == 0


def test_an_outage_of_sts_is_bridged_by_credentials_that_are_still_good(strict_kms: StrictKms) -> None:
    clock = Clock()
    key, provider = strict_kms.customer_key(), strict_kms.provider(clock=clock)
    provider.generate(key, CONTEXT)
    strict_kms.script(FaultRule("AssumeRole", error="ServiceUnavailable", times=None))
    clock.ahead = 700
    provider.generate(key, CONTEXT)
    clock.ahead = 901
    with pytest.raises(KmsUnavailableError):
        provider.generate(key, CONTEXT)


def test_a_removed_trust_ends_access_at_the_next_renewal(strict_kms: StrictKms) -> None:
    clock = Clock()
    key, provider = strict_kms.customer_key(), strict_kms.provider(clock=clock)
    provider.generate(key, CONTEXT)
    assert key.role_arn is not None
    strict_kms.remove_role(key.role_arn)
    clock.ahead = 601
    with pytest.raises(KmsDeniedError):
        provider.generate(key, CONTEXT)


def test_short_credentials_are_renewed_in_time(strict_kms: StrictKms) -> None:
    clock = Clock()
    key, provider = strict_kms.customer_key(), strict_kms.provider(clock=clock)
    assert key.role_arn is not None
    strict_kms.register_role(key.role_arn, external_id=key.external_id, session_seconds=600)
    for _ in range(12):
        provider.generate(key, CONTEXT)
        clock.ahead += 150
        strict_kms.pass_time(150)
    assert strict_kms.count("AssumeRole") == 4
    assert strict_kms.count(outcome="ExpiredTokenException") == 0


def test_credentials_that_ended_early_are_fetched_anew_once(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider(attempts=1)
    provider.generate(key, CONTEXT)
    strict_kms.expire_credentials()
    provider.generate(key, CONTEXT)
    assert strict_kms.count("AssumeRole") == 2
    strict_kms.script(FaultRule("GenerateDataKey", error="ExpiredTokenException", times=None))
    with strict_kms.counting() as calls, pytest.raises(KmsCredentialsError):
        provider.generate(key, CONTEXT)
    assert calls.count("GenerateDataKey") == 2


def test_without_credentials_of_our_own_nothing_is_denied(
    strict_kms: StrictKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    provider = AwsKms(endpoint_url=strict_kms.endpoint_url, sts_endpoint_url=strict_kms.endpoint_url)
    for key in (strict_kms.customer_key(), KmsKey(strict_kms.create_key())):
        with pytest.raises(KmsCredentialsError) as caught:
            provider.generate(key, CONTEXT)
        assert caught.value.code == "NoCredentialsError"


def test_our_own_credentials_are_read_anew_when_they_are_refused(
    strict_kms: StrictKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KmsKey(strict_kms.create_key())
    strict_kms.allow(key.arn, VENDOR)
    good = strict_kms.environment()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAROTATEDAWAY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "old")
    provider = AwsKms(endpoint_url=strict_kms.endpoint_url, attempts=1)
    with pytest.raises(KmsCredentialsError):
        provider.generate(key, CONTEXT)
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    provider.generate(key, CONTEXT)


def test_another_identity_of_ours_is_denied(strict_kms: StrictKms) -> None:
    """A colleague's application with credentials of its own cannot assume the customer's role."""
    strict_kms.add_identity("arn:aws:iam::999900001111:user/other")
    key = strict_kms.customer_key()
    with pytest.raises(KmsDeniedError):
        strict_kms.provider("arn:aws:iam::999900001111:user/other").generate(key, CONTEXT)


def test_sts_is_asked_in_the_region_of_the_key(strict_kms: StrictKms, monkeypatch: pytest.MonkeyPatch) -> None:
    key = strict_kms.customer_key(region="eu-west-1")
    for value in ("legacy", "regional"):
        monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", value)
        provider = AwsKms(session=strict_kms.session())
        client = provider._sts_client("Decrypt", key)
        assert client.meta.endpoint_url == "https://sts.eu-west-1.amazonaws.com"
