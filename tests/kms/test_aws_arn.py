"""Which addresses AWS KMS can mean."""

import pytest

from pii_vault.errors import KmsConfigurationError
from pii_vault.kms import KmsKey
from pii_vault.kms.aws_arn import key_address

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
MRK_ID = "mrk-0123456789abcdef0123456789abcdef"
ARN = f"arn:aws:kms:eu-west-1:111122223333:key/{KEY_ID}"
ROLE = "arn:aws:iam::111122223333:role/pii-vault"


@pytest.mark.parametrize(
    "arn",
    [
        ARN,
        f"arn:aws:kms:us-east-1:111122223333:key/{MRK_ID}",
        f"arn:aws-cn:kms:cn-north-1:111122223333:key/{KEY_ID}",
        f"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/{KEY_ID}",
        f"arn:aws-iso-b:kms:us-isob-east-1:111122223333:key/{KEY_ID}",
        f"arn:aws-eusc:kms:eusc-de-east-1:111122223333:key/{KEY_ID}",
        f"arn:aws:kms:ap-southeast-7:111122223333:key/{KEY_ID}",
    ],
)
def test_a_full_key_arn_is_taken_apart(arn: str) -> None:
    address = key_address(KmsKey(arn))
    parts = [address.partition, "kms", address.region, address.account, f"key/{address.key_id}"]
    assert ":".join(["arn", *parts]) == arn


@pytest.mark.parametrize(
    "arn",
    [
        "",
        "alias/customer",
        "arn:aws:kms:eu-west-1:111122223333:alias/customer",
        KEY_ID,
        MRK_ID,
        f"key/{KEY_ID}",
        ARN.upper(),
        f" {ARN}",
        f"{ARN}\n",
        f"{ARN}x",
        ARN.replace(":key/", ":key:"),
        ARN.replace("kms", "s3"),
        ARN.replace("eu-west-1", ""),
        ARN.replace("eu-west-1", "eu-west"),
        ARN.replace("eu-west-1", "evil.example/eu-west-1"),
        ARN.replace("111122223333", "11112222333"),
        ARN.replace("111122223333", ""),
        ARN.replace("111122223333", "١" * 12),  # digits, but not ASCII ones
        ARN.replace("arn:aws:", "arn:aws_:"),
        ARN.replace("arn:aws:", "arn:gcp:"),
        ARN.replace("arn:aws:", "arn:aws-cn:"),
        ARN.replace("eu-west-1", "cn-north-1"),
        ARN.replace("eu-west-1", "us-gov-west-1"),
        ARN.replace(KEY_ID, "mrk-1234"),
        "arn:local:kms:local:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    ],
)
def test_anything_else_is_refused(arn: str) -> None:
    with pytest.raises(KmsConfigurationError) as caught:
        key_address(KmsKey(arn))
    assert caught.value.hint
    assert not caught.value.retryable


@pytest.mark.parametrize("name", ["pii-vault", "team/pii-vault", "a+b=c,d.e@f_g"])
def test_a_role_in_the_account_of_the_key_is_taken(name: str) -> None:
    role = f"arn:aws:iam::111122223333:role/{name}"
    assert key_address(KmsKey(ARN, role, "external-id")).account == "111122223333"
    assert key_address(KmsKey(ARN, role)).account == "111122223333"


@pytest.mark.parametrize(
    "role",
    [
        "arn:aws:iam::444455556666:role/pii-vault",
        "arn:aws-cn:iam::111122223333:role/pii-vault",
        "arn:aws:iam::111122223333:user/pii-vault",
        "arn:aws:iam::111122223333:root",
        "arn:aws:iam::111122223333:role/",
        "arn:aws:sts::111122223333:assumed-role/pii-vault/session",
        "pii-vault",
        "",
    ],
)
def test_a_role_elsewhere_is_refused(role: str) -> None:
    with pytest.raises(KmsConfigurationError):
        key_address(KmsKey(ARN, role, "external-id"))


@pytest.mark.parametrize("external_id", ["", "x", "with space", "x" * 1225, "new\nline"])
def test_an_external_id_that_sts_would_refuse_is_refused(external_id: str) -> None:
    with pytest.raises(KmsConfigurationError):
        key_address(KmsKey(ARN, ROLE, external_id))


def test_an_external_id_without_a_role_is_refused() -> None:
    with pytest.raises(KmsConfigurationError):
        key_address(KmsKey(ARN, None, "external-id"))


def test_only_a_replica_of_a_multi_region_key_is_the_same_key() -> None:
    single = key_address(KmsKey(ARN))
    assert single.is_same_key(ARN)
    assert not single.is_same_key(ARN.replace("eu-west-1", "us-east-1"))
    assert not single.is_same_key("")
    replica = f"arn:aws:kms:eu-west-1:111122223333:key/{MRK_ID}"
    multi = key_address(KmsKey(replica))
    assert multi.is_same_key(replica.replace("eu-west-1", "us-east-1"))
    assert not multi.is_same_key(replica.replace("111122223333", "444455556666"))
    assert not multi.is_same_key(replica.replace("abcdef", "abcde0"))
    assert not multi.is_same_key(replica.replace("arn:aws:", "arn:aws-cn:"))
