"""Replicas of multi-Region keys: they unwrap while the key's region is unavailable, and change nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.kms_http import FaultRule
from tests.support.strict_kms import StrictKms

from pii_vault.errors import (
    KmsConfigurationError,
    KmsCorruptError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
)
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:purpose": "kek"}
FIRST, SECOND = "eu-central-1", "us-east-1"
ACCOUNT = "111122223333"


class Keys:
    """A multi-Region key with two replicas, and something that it has wrapped."""

    def __init__(self, kms: StrictKms) -> None:
        self.kms = kms
        made = kms.customer_key(multi_region=True)
        self.first, self.second = (kms.replicate(made.arn, region) for region in (FIRST, SECOND))
        self.key = KmsKey(made.arn, made.role_arn, made.external_id, (FIRST, SECOND))
        self.provider = kms.provider(attempts=1, connect_timeout=0.3, read_timeout=0.3)
        generated = self.provider.generate(self.key, CONTEXT)
        self.plaintext, self.blob = generated.plaintext, generated.wrapped.blob

    def unwrap(self, provider: AwsKms | None = None) -> bytes:
        return (provider or self.provider).unwrap(self.key, self.blob, CONTEXT)

    def asked(self) -> list[str]:
        """Ask once, and return which keys were."""
        with self.kms.counting() as calls:
            try:
                assert self.unwrap() == self.plaintext
            except KmsError as error:
                self.refusal = error
            return [call.key for call in calls.matching("Decrypt")]

    def out(self, arn: str, **how: Any) -> None:
        how = how or {"error": "KMSInternalException", "status": 500}
        self.kms.script(FaultRule("Decrypt", key=arn, times=None, **how))


@pytest.fixture
def keys(strict_kms: StrictKms) -> Keys:
    return Keys(strict_kms)


OUTAGES: dict[str, dict[str, Any]] = {
    "black hole": {"black_hole": True},
    "dropped": {"drop": True},
    "500": {"error": "KMSInternalException"},
    "503": {"error": "", "status": 503},
    "throttled": {"error": "ThrottlingException"},
    "dependency": {"error": "DependencyTimeoutException"},
    "updating": {"error": "KMSInvalidStateException", "message": "it is updating."},
}


@pytest.mark.parametrize("name", OUTAGES)
def test_while_the_region_is_unavailable_the_replica_opens(keys: Keys, name: str) -> None:
    keys.out(keys.key.arn, **OUTAGES[name])
    assert keys.asked() == [keys.key.arn, keys.first]


def test_as_long_as_the_region_answers_nobody_else_is_asked(keys: Keys) -> None:
    assert keys.asked() == [keys.key.arn]


def test_the_replica_is_asked_in_its_region_with_its_arn_and_the_same_context(keys: Keys) -> None:
    keys.out(keys.key.arn)
    with keys.kms.counting() as calls:
        keys.unwrap()
    (_, replica) = calls.matching("Decrypt")
    assert (replica.key, replica.region, replica.context) == (keys.first, FIRST, CONTEXT)
    (assumed,) = calls.matching("AssumeRole")  # the credentials for the key's own region were there
    assert assumed.region == FIRST


def test_an_outage_of_the_regions_sts_leads_on_too(keys: Keys) -> None:
    keys.kms.script(FaultRule("AssumeRole", region="eu-west-1", black_hole=True, times=None))
    fresh = keys.kms.provider(attempts=1, connect_timeout=0.3, read_timeout=0.3)
    with keys.kms.counting() as calls:
        assert keys.unwrap(fresh) == keys.plaintext
    assert [call.region for call in calls.matching("AssumeRole")] == ["eu-west-1", FIRST]
    assert [call.key for call in calls.matching("Decrypt")] == [keys.first]


def test_they_are_asked_in_the_order_that_was_given(keys: Keys) -> None:
    keys.out(keys.key.arn)
    keys.out(keys.first)
    assert keys.asked() == [keys.key.arn, keys.first, keys.second]
    keys.key = KmsKey(keys.key.arn, keys.key.role_arn, keys.key.external_id, (SECOND, FIRST))
    assert keys.asked() == [keys.key.arn, keys.second]


def test_when_all_are_unavailable_it_is_what_the_key_s_own_region_said(keys: Keys) -> None:
    keys.out(keys.key.arn, error="ThrottlingException")
    keys.out(keys.first)
    keys.out(keys.second)
    assert keys.asked() == [keys.key.arn, keys.first, keys.second]
    assert isinstance(keys.refusal, KmsUnavailableError)
    assert (keys.refusal.code, keys.refusal.is_outage) == ("ThrottlingException", True)


REFUSALS: dict[str, tuple[dict[str, Any], type[KmsError]]] = {
    "denied": ({"error": "AccessDeniedException"}, KmsDeniedError),
    "disabled": ({"error": "DisabledException"}, KmsDeniedError),
    "to be deleted": ({"error": "KMSInvalidStateException", "message": "it is pending deletion."}, KmsDeniedError),
    "gone": ({"error": "NotFoundException"}, KmsDeniedError),
    "corrupt": ({"error": "InvalidCiphertextException"}, KmsCorruptError),
    "another key's": ({"error": "IncorrectKeyException"}, KmsCorruptError),
    "misused": ({"error": "InvalidKeyUsageException"}, KmsConfigurationError),
    "our clock": ({"error": "InvalidSignatureException"}, KmsCredentialsError),
    "unknown": ({"error": "NeverHeardOfException"}, KmsUnavailableError),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_key_s_own_region_refuses_is_refused_although_a_replica_would_open(keys: Keys, name: str) -> None:
    how, error = REFUSALS[name]
    keys.out(keys.key.arn, **how)
    assert set(keys.asked()) == {keys.key.arn}
    assert isinstance(keys.refusal, error)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_replica_refuses_is_refused_although_the_next_one_would_open(keys: Keys, name: str) -> None:
    how, error = REFUSALS[name]
    keys.out(keys.key.arn)
    keys.out(keys.first, **how)
    assert set(keys.asked()) == {keys.key.arn, keys.first}
    assert isinstance(keys.refusal, error)


def test_a_customer_that_disables_only_the_replica_has_refused(keys: Keys) -> None:
    keys.kms.disable(keys.first)
    keys.out(keys.key.arn)
    assert keys.asked() == [keys.key.arn, keys.first]
    assert isinstance(keys.refusal, KmsDeniedError)


def test_a_replica_s_policy_is_its_own(keys: Keys) -> None:
    keys.kms.put_key_policy(keys.first, {"Statement": []})
    keys.out(keys.key.arn)
    keys.asked()
    assert isinstance(keys.refusal, KmsDeniedError)


def other(keys: Keys, field: str) -> str:
    arn = keys.first
    return {
        "region": keys.second,
        "primary": keys.key.arn,
        "account": arn.replace(ACCOUNT, "444455556666"),
        "id": arn[:-1] + ("0" if arn[-1] != "0" else "1"),
        "none": "",
    }[field]


@pytest.mark.parametrize("field", ["region", "primary", "account", "id", "none"])
def test_an_answer_of_a_replica_names_exactly_that_replica(keys: Keys, field: str) -> None:
    keys.out(keys.key.arn)
    keys.kms.script(FaultRule("Decrypt", key=keys.first, alter=lambda answer: answer | {"KeyId": other(keys, field)}))
    assert keys.asked() == [keys.key.arn, keys.first]
    assert isinstance(keys.refusal, KmsCorruptError)


def test_a_replica_of_another_material_does_not_open(keys: Keys) -> None:
    elsewhere = keys.provider.generate(keys.kms.customer_key(multi_region=True), CONTEXT).wrapped.blob
    keys.blob = elsewhere
    keys.out(keys.key.arn)
    keys.asked()
    assert isinstance(keys.refusal, KmsCorruptError)


def test_no_other_account_and_no_other_key_is_ever_asked(keys: Keys) -> None:
    keys.out(keys.key.arn)
    keys.out(keys.first)
    keys.out(keys.second)
    with keys.kms.counting() as calls, pytest.raises(KmsUnavailableError):
        keys.unwrap()
    key_id = keys.key.arn.rpartition("/")[2]
    for call in calls.calls:
        arn = call.key if call.operation == "Decrypt" else f":{ACCOUNT}:key/{key_id}"
        assert arn.endswith(f":{ACCOUNT}:key/{key_id}"), call
        assert ACCOUNT in call.key


def test_only_an_unwrap_goes_elsewhere(keys: Keys) -> None:
    calls = {
        "GenerateDataKey": lambda: keys.provider.generate(keys.key, CONTEXT),
        "ReEncrypt": lambda: keys.provider.rewrap(keys.key, keys.key, keys.blob, CONTEXT),
        "DescribeKey": lambda: keys.provider.describe(keys.key),
        "GetKeyRotationStatus": lambda: keys.provider.rotation_period(keys.key),
        "Decrypt": lambda: keys.provider.check_unwrap(keys.key, keys.blob, CONTEXT),
    }
    for operation, call in calls.items():
        keys.kms.script(FaultRule(operation, key=keys.key.arn, error="KMSInternalException", status=500))
        with keys.kms.counting() as counted, pytest.raises(KmsUnavailableError):
            call()
        assert {each.key for each in counted.matching(operation)} == {keys.key.arn}, operation


def test_the_time_that_it_takes_is_that_of_each_region(keys: Keys) -> None:
    """The bound that `kms/aws.py` promises: so many attempts, each with its timeouts, in each region."""
    for arn in (keys.key.arn, keys.first, keys.second):
        keys.out(arn, black_hole=True)
    provider = keys.kms.provider(attempts=2, connect_timeout=0.2, read_timeout=0.2, sleep=lambda _: None)
    with keys.kms.counting() as calls, pytest.raises(KmsUnavailableError):
        keys.unwrap(provider)
    assert [call.key for call in calls.matching("Decrypt")] == [
        *[keys.key.arn] * 2,
        *[keys.first] * 2,
        *[keys.second] * 2,
    ]


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        (("eu-west-1",), "named twice"),
        ((FIRST, FIRST), "named twice"),
        (("cn-north-1",), "not in partition"),
        (("europe",), "not a full AWS KMS key ARN"),
        (("eu-central-1:444455556666:key/x",), "not a full AWS KMS key ARN"),
        (("",), "not a full AWS KMS key ARN"),
    ],
    ids=str,
)
def test_regions_that_can_have_no_replica_are_refused_before_any_call(
    keys: Keys, regions: tuple[str, ...], says: str
) -> None:
    with keys.kms.counting() as calls, pytest.raises(KmsConfigurationError, match=says):
        keys.provider.unwrap(KmsKey(keys.key.arn, replica_regions=regions), keys.blob, CONTEXT)
    assert calls.calls == []


def test_a_key_of_one_region_has_no_replicas(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    with pytest.raises(KmsConfigurationError, match="only a multi-Region key"):
        strict_kms.provider().validate_key(KmsKey(key.arn, key.role_arn, key.external_id, (FIRST,)))
