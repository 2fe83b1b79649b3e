"""The strict KMS where keys are made, named and tagged, against AWS's documentation."""

import json
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import VENDOR, StrictKms

ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
MAKER = f"arn:aws:iam::{ACCOUNT}:user/maker"


def client(kms: StrictKms, identity: str = MAKER) -> Any:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=5)
    return kms.session(identity).client("kms", endpoint_url=kms.endpoint_url, config=config)


def allowed(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Statement": [{"Effect": "Allow", "Resource": "*", **one} for one in statements]}


def key_policy(principal: str = ROOT, actions: Any = "kms:*") -> str:
    return json.dumps(allowed({"Principal": {"AWS": principal}, "Action": actions}))


def tags(**values: str) -> list[dict[str, str]]:
    return [{"TagKey": key, "TagValue": value} for key, value in values.items()]


def code(call: Any, *arguments: Any, **options: Any) -> str:
    """What a call is answered with: ``ok`` or an error code."""
    try:
        call(*arguments, **options)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "ok"


def test_what_a_request_does_not_say_is_no_condition_key(strict_kms: StrictKms) -> None:
    condition = {"StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT"}}
    strict_kms.add_identity(MAKER, allowed({"Action": "kms:CreateKey", "Condition": condition}))
    kms = client(strict_kms)
    assert code(kms.create_key, KeySpec="SYMMETRIC_DEFAULT") == "ok"
    assert code(kms.create_key, KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY") == "AccessDeniedException"
    assert code(kms.create_key) == "AccessDeniedException"


@pytest.mark.parametrize(
    ("key", "value", "right", "wrong"),
    [
        ("kms:KeyUsage", "ENCRYPT_DECRYPT", {"KeyUsage": "ENCRYPT_DECRYPT"}, {"KeyUsage": "GENERATE_VERIFY_MAC"}),
        ("kms:KeyOrigin", "AWS_KMS", {"Origin": "AWS_KMS"}, {"Origin": "EXTERNAL"}),
        ("aws:RequestedRegion", "eu-west-1", {}, None),
        ("aws:RequestedRegion", "eu-west-2", None, {}),
    ],
)
def test_conditions_of_a_new_key(key: str, value: str, right: Any, wrong: Any, strict_kms: StrictKms) -> None:
    allow = {"Action": "kms:CreateKey", "Condition": {"StringEquals": {key: value}}}
    strict_kms.add_identity(MAKER, allowed(allow))
    if right is not None:
        assert code(client(strict_kms).create_key, **right) == "ok"
    if wrong is not None:
        assert code(client(strict_kms).create_key, **wrong) == "AccessDeniedException"


def test_a_bypass_is_a_condition_and_its_absence_is_none(strict_kms: StrictKms) -> None:
    for operator, without in (("Bool", "AccessDeniedException"), ("BoolIfExists", "ok")):
        condition = {operator: {"kms:BypassPolicyLockoutSafetyCheck": "false"}}
        strict_kms.add_identity(MAKER, allowed({"Action": "kms:CreateKey", "Condition": condition}))
        kms = client(strict_kms)
        assert code(kms.create_key) == without
        assert code(kms.create_key, BypassPolicyLockoutSafetyCheck=False) == "ok"
        assert code(kms.create_key, BypassPolicyLockoutSafetyCheck=True) == "AccessDeniedException"


def test_tags_of_a_new_key_need_the_permission_to_tag(strict_kms: StrictKms) -> None:
    strict_kms.add_identity(MAKER, allowed({"Action": "kms:CreateKey"}))
    assert code(client(strict_kms).create_key) == "ok"
    assert code(client(strict_kms).create_key, Tags=tags(a="1")) == "AccessDeniedException"
    condition = {"StringEquals": {"aws:RequestTag/a": "1"}, "ForAllValues:StringEquals": {"aws:TagKeys": ["a"]}}
    tagging = {"Action": "kms:TagResource", "Condition": condition}
    strict_kms.add_identity(MAKER, allowed({"Action": ["kms:CreateKey", "kms:DescribeKey"]}, tagging))
    kms = client(strict_kms)
    arn = kms.create_key(Tags=tags(a="1"))["KeyMetadata"]["Arn"]
    assert code(kms.create_key, Tags=tags(a="2")) == "AccessDeniedException"
    assert code(kms.create_key, Tags=tags(a="1", b="1")) == "AccessDeniedException"
    assert code(kms.tag_resource, KeyId=arn, Tags=tags(b="1")) == "AccessDeniedException"
    assert code(kms.tag_resource, KeyId=arn, Tags=tags(a="1")) == "ok"


def test_tags_of_a_key_are_conditions(strict_kms: StrictKms) -> None:
    strict_kms.add_identity(MAKER, ALLOW_EVERYTHING)
    owner = client(strict_kms)
    arn, other = (owner.create_key(Tags=tags(a=value))["KeyMetadata"]["Arn"] for value in "12")
    assert owner.list_resource_tags(KeyId=arn)["Tags"] == tags(a="1")
    condition = {"StringEquals": {"aws:ResourceTag/a": "1"}}
    strict_kms.add_identity(MAKER, allowed({"Action": ["kms:DescribeKey", "kms:CreateAlias"], "Condition": condition}))
    kms = client(strict_kms)
    assert code(kms.describe_key, KeyId=arn) == "ok"
    assert code(kms.describe_key, KeyId=other) == "AccessDeniedException"


def test_an_alias_needs_both_the_alias_and_the_key(strict_kms: StrictKms) -> None:
    strict_kms.add_identity(MAKER, ALLOW_EVERYTHING)
    arn = client(strict_kms).create_key()["KeyMetadata"]["Arn"]
    on_alias = {"Action": "kms:CreateAlias", "Resource": f"arn:aws:kms:eu-west-1:{ACCOUNT}:alias/a/*"}
    on_key = {"Action": ["kms:CreateAlias", "kms:DescribeKey"], "Resource": arn}
    for statements, answer in (([on_alias], "AccessDeniedException"), ([on_key], "AccessDeniedException")):
        strict_kms.add_identity(MAKER, allowed(*statements))
        assert code(client(strict_kms).create_alias, AliasName="alias/a/b", TargetKeyId=arn) == answer
    strict_kms.add_identity(MAKER, allowed(on_alias, on_key))
    kms = client(strict_kms)
    assert code(kms.create_alias, AliasName="alias/b", TargetKeyId=arn) == "AccessDeniedException"
    assert code(kms.create_alias, AliasName="alias/a/b", TargetKeyId=arn) == "ok"
    assert code(kms.create_alias, AliasName="alias/a/b", TargetKeyId=arn) == "AlreadyExistsException"
    assert kms.describe_key(KeyId="alias/a/b")["KeyMetadata"]["Arn"] == arn


def test_a_policy_may_not_lock_its_author_out(strict_kms: StrictKms) -> None:
    """Neither by the key policy nor by the author's own: both are asked whether it could change the policy again."""
    strict_kms.add_identity(MAKER, allowed({"Action": ["kms:CreateKey", "kms:PutKeyPolicy"]}))
    kms, refused = client(strict_kms), "MalformedPolicyDocumentException"
    without = ["kms:DescribeKey", "kms:DisableKey"]
    assert code(kms.create_key, Policy=key_policy()) == "ok"
    assert code(kms.create_key, Policy=key_policy(actions=without)) == refused
    assert code(kms.create_key, Policy=key_policy(actions=without), BypassPolicyLockoutSafetyCheck=True) == "ok"
    arn = kms.create_key()["KeyMetadata"]["Arn"]
    assert code(kms.put_key_policy, KeyId=arn, Policy=key_policy(actions=without)) == refused
    assert code(kms.put_key_policy, KeyId=arn, Policy=key_policy()) == "ok"
    strict_kms.add_identity(MAKER, allowed({"Action": "kms:CreateKey"}))
    kms = client(strict_kms)
    assert code(kms.create_key, Policy=key_policy()) == refused
    assert code(kms.create_key, Policy=key_policy(MAKER)) == "ok"


def test_a_principal_of_a_policy_must_exist(strict_kms: StrictKms) -> None:
    strict_kms.add_identity(MAKER, ALLOW_EVERYTHING)
    kms, role = client(strict_kms), f"arn:aws:iam::{ACCOUNT}:role/later"

    def policy() -> str:
        named = {"Principal": {"AWS": [role, VENDOR]}, "Action": "kms:Decrypt"}
        return json.dumps(allowed({"Principal": {"AWS": ROOT}, "Action": "kms:*"}, named))

    assert code(kms.create_key, Policy=policy()) == "MalformedPolicyDocumentException"
    strict_kms.register_role(role)
    assert code(kms.create_key, Policy=policy()) == "ok"
    strict_kms.remove_role(role)
    assert code(kms.create_key, Policy=policy()) == "MalformedPolicyDocumentException"


def test_a_grant_is_made_by_whoever_may_also_from_abroad(strict_kms: StrictKms) -> None:
    arn, vendor = strict_kms.create_key(ACCOUNT), client(strict_kms, VENDOR)
    grant = {"KeyId": arn, "GranteePrincipal": VENDOR, "Operations": ["Decrypt"]}
    assert code(vendor.create_grant, **grant) == "AccessDeniedException"
    strict_kms.allow(arn, VENDOR, actions=["kms:CreateGrant"])
    assert code(vendor.create_grant, **grant) == "ok"
    assert code(vendor.create_grant, **grant, DryRun=True) == "DryRunOperationException"


def test_rotations_are_listed_at_home_only(strict_kms: StrictKms) -> None:
    strict_kms.add_identity(MAKER, ALLOW_EVERYTHING)
    owner = client(strict_kms)
    arn = owner.create_key()["KeyMetadata"]["Arn"]
    strict_kms.rotate(arn)
    (rotation,) = owner.list_key_rotations(KeyId=arn)["Rotations"]
    assert (rotation["KeyId"], rotation["RotationType"]) == (arn, "ON_DEMAND")
    strict_kms.allow(arn, VENDOR, actions=["kms:*"])
    assert code(client(strict_kms, VENDOR).list_key_rotations, KeyId=arn) == "AccessDeniedException"
