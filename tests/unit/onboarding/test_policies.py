"""The policies as documents: well formed, small enough, and about nobody else's key. What they do: tests/kms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from tests.support.arrangements import EVERY_WAY, KEY, OURS, arrangement
from tests.support.policy_grammar import faults

from pii_vault.context import Identity, kms_context
from pii_vault.errors import ConfigurationError
from pii_vault.keystore import Way
from pii_vault.onboarding import policies
from pii_vault.onboarding.arrangement import Arrangement, Ours

LONGEST = arrangement(
    way=Way.CREATED,
    external_id="x" * 1000,
    ours=Ours(*(f"arn:aws-us-gov:iam::999900001111:role/{name * 64}" for name in "abc")),
)


def documents(one: Arrangement) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every policy that can be made of an arrangement: kind, name, document."""
    kinds: list[tuple[str, Callable[[Arrangement], dict[str, Any]]]] = [
        ("key", policies.key_policy),
        ("trust", policies.access_role_trust),
        ("trust", policies.provisioning_role_trust),
        ("identity", policies.provisioning_role_permissions),
        ("identity", policies.runtime_identity),
        ("identity", policies.rotation_identity),
        ("identity", policies.provisioning_identity),
    ]
    for kind, make in kinds:
        try:
            yield kind, make.__name__, make(one)
        except ConfigurationError:
            continue


@pytest.mark.parametrize("one", [*EVERY_WAY.values(), LONGEST], ids=[*EVERY_WAY, "the longest"])
def test_every_document_is_well_formed_and_small_enough(one: Arrangement) -> None:
    made = list(documents(one))
    assert made
    for kind, name, document in made:
        assert faults(document, kind) == [], name
        assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    "spoil",
    [
        lambda policy: policy.update(Version="2008-10-17"),
        lambda policy: policy["Statement"][1].update(Sid="Not-Allowed"),
        lambda policy: policy["Statement"][1].update(Sid=policy["Statement"][0]["Sid"]),
        lambda policy: policy["Statement"][1].update(Effect="allow"),
        lambda policy: policy["Statement"][1].update(Action=["kms:Decypt"]),
        lambda policy: policy["Statement"][1].update(Action=["kms:ReEncrypt"]),
        lambda policy: policy["Statement"][1].update(Action=["sts:AssumeRole"]),
        lambda policy: policy["Statement"][1].update(Principal={"AWS": ["arn:aws:iam::1:role/x"]}),
        lambda policy: policy["Statement"][1].update(Resource=KEY),
        lambda policy: policy["Statement"][1].update(Condition={}),
        lambda policy: policy["Statement"][1]["Condition"].update(StringEqual={"kms:KeySpec": "x"}),
        lambda policy: policy["Statement"][1]["Condition"].update(Null={"kms:EncryptionContextKey": "false"}),
        lambda policy: policy["Statement"][1]["Condition"].update(Null={"kms:EncryptionContextKeys": False}),
        lambda policy: policy["Statement"][1]["Condition"].update(StringEquals={"kms:EncryptionContextKeys": "x"}),
        lambda policy: policy["Statement"][1].pop("Principal"),
        lambda policy: policy["Statement"][1].update(NotAction="kms:*"),
        lambda policy: policy["Statement"][1]["Condition"]["StringEquals"].update({"kms:KeySpec": "x" * 33_000}),
    ],
)
def test_the_grammar_finds_what_is_wrong(spoil: Callable[[dict[str, Any]], object]) -> None:
    policy = deepcopy(policies.key_policy(arrangement()))
    assert faults(policy, "key") == []
    spoil(policy)
    assert faults(policy, "key")


def test_the_context_that_is_demanded_is_the_one_that_is_sent() -> None:
    """The documents are handed over once; a context that changed later would lock every customer out."""
    one = arrangement()
    context = kms_context(Identity(one.app_uid, one.tenant_uid, one.keyset_id), "kek", 7)
    condition = policies.key_statements(one)[0]["Condition"]
    assert condition["ForAllValues:StringEquals"]["kms:EncryptionContextKeys"] == list(context)
    demanded = {key.removeprefix("kms:EncryptionContext:"): value for key, value in condition["StringEquals"].items()}
    assert demanded.items() <= context.items()
    asked = {*demanded, *(key.removeprefix("kms:EncryptionContext:") for key in condition["Null"])}
    assert asked == {*context, "kms:EncryptionContextKeys"}


def test_names_of_customers_stand_in_no_policy() -> None:
    """A key policy and CloudTrail are read by many: uids only."""
    for _, name, document in documents(arrangement(tenant="Jane Doe & Sons", way=Way.CREATED)):
        assert "Jane" not in json.dumps(document), name


@pytest.mark.parametrize("one", EVERY_WAY.values(), ids=EVERY_WAY)
def test_no_policy_has_a_wildcard_for_an_action_or_a_principal(one: Arrangement) -> None:
    for _, name, document in documents(one):
        for statement in document["Statement"]:
            assert "*" not in json.dumps([statement["Action"], statement.get("Principal")]), name


def test_our_own_policies_name_one_role_or_one_key() -> None:
    through_role, direct = arrangement(), arrangement(direct=True, key_arn=KEY)
    for make in (policies.runtime_identity, policies.rotation_identity):
        assert make(through_role)["Statement"][0]["Resource"] == [through_role.access_role]
        assert make(direct)["Statement"][0]["Resource"] == [KEY]
    created = arrangement(way=Way.CREATED)
    assert policies.provisioning_identity(created)["Statement"][0]["Resource"] == [created.provisioning_role]


def test_replicas_of_a_multi_region_key_need_no_other_policy() -> None:
    arn = KEY.replace("key/0a1b2c3d-0000-4000-8000-00000000c0de", "key/mrk-0a1b2c3d00004000800000000000c0de")
    one = arrangement(direct=True, key_arn=arn)
    (statement,) = policies.runtime_identity(one)["Statement"]
    assert statement["Resource"] == [arn.replace("eu-west-1", "*")]
    assert faults(policies.runtime_identity(one), "identity") == []
    for made in (
        policies.key_policy(one),
        policies.key_policy(arrangement()),
        policies.access_role_trust(arrangement()),
    ):
        assert "eu-west-1" not in json.dumps(made)


def test_one_role_for_both_tasks_is_named_once() -> None:
    one = arrangement(ours=Ours(OURS.runtime, OURS.runtime))
    assert policies.access_role_trust(one)["Statement"][0]["Principal"] == {"AWS": [OURS.runtime]}


@pytest.mark.parametrize(
    ("make", "one", "says"),
    [
        (policies.access_role_trust, arrangement(direct=True), "there is no access role"),
        (policies.provisioning_role_trust, arrangement(), "there is no provisioning role"),
        (policies.provisioning_role_permissions, arrangement(), "there is no provisioning role"),
        (policies.runtime_identity, arrangement(direct=True), "its ARN is not known yet"),
        (policies.rotation_identity, arrangement(direct=True), "its ARN is not known yet"),
        (
            policies.provisioning_role_trust,
            arrangement(way=Way.CREATED, ours=Ours(OURS.runtime, OURS.rotation)),
            "we need a provisioning role of our own",
        ),
    ],
)
def test_what_is_not_arranged_is_refused(make: Callable[[Arrangement], object], one: Arrangement, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(one)
    assert "'acme'" in str(caught.value)


def test_whatever_changes_or_uses_a_symmetric_key_is_granted_or_denied_by_name() -> None:
    """So that an action that AWS adds is looked at: it fails here when botocore brings it."""
    other_kinds = {
        "Decapsulate",
        "Encapsulate",
        "DeriveSharedSecret",
        "GenerateMac",
        "GetParametersForImport",
        "GetPublicKey",
        "Sign",
        "Verify",
        "VerifyMac",
    }
    without_a_key = {
        name
        for name in operations()
        if "CustomKeyStore" in name or name in {"CreateKey", "GenerateRandom", "ListAliases", "ListKeys"}
    }
    reading = {"GetKeyLastUsage", "GetKeyPolicy", "ListGrants", "ListKeyPolicies", "ListResourceTags"}
    reading |= {"ListRetirableGrants"}
    looking, never = policies.key_policy(arrangement())["Statement"][-2:]
    granted = {"GenerateDataKey", "Decrypt", "ReEncrypt", *(name.removeprefix("kms:") for name in looking["Action"])}
    denied = {name.removeprefix("kms:") for name in never["Action"]}
    assert granted.isdisjoint(denied)
    assert operations() == granted | denied | reading | without_a_key | other_kinds


def operations() -> set[str]:
    import botocore.session

    return set(botocore.session.get_session().get_service_model("kms").operation_names)
