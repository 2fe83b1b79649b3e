"""What the policies of the provisioning role do: one kind of key can be made, named and let rotate, and no more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.arrangements import arrangement
from tests.support.strict_kms import StrictKms
from tests.support.two_accounts import Documents, TwoAccounts, every_document

from pii_vault.keystore import Way
from pii_vault.onboarding.policies import TENANT_TAG

Document = dict[str, Any]
CREATED = arrangement(way=Way.CREATED)
NAMES = itertools.count()


class Provisioning(TwoAccounts):
    """We make the key ourselves, through the role that the customer lends us."""

    def _make_key(self) -> str:
        return str(self.make(self.role())["KeyMetadata"]["Arn"])

    def install(self, instead: Documents, *, wide: bool = False) -> None:
        super().install(instead, wide=wide)
        # A probe that was let through may have changed it.
        self.kms.set_tags(self.arn, {TENANT_TAG: self.arrangement.tenant_uid.hex()})

    def role(self, **options: Any) -> Any:
        assert self.arrangement.ours.provisioning is not None
        return self.assumed(self.arrangement.ours.provisioning, self.arrangement.provisioning_role, **options)

    def make(self, kms: Any, *, without: str = "", **changes: Any) -> Any:
        policy = {**every_document(self.arrangement)["key"]}
        request = {
            "Policy": json.dumps(policy),
            "KeySpec": "SYMMETRIC_DEFAULT",
            "KeyUsage": "ENCRYPT_DECRYPT",
            "Origin": "AWS_KMS",
            "Tags": self.tags(),
            **changes,
        }
        return kms.create_key(**{name: value for name, value in request.items() if name != without})

    def tags(self, value: str = "", **more: str) -> list[dict[str, str]]:
        tags = {TENANT_TAG: value or self.arrangement.tenant_uid.hex(), **more}
        return [{"TagKey": key, "TagValue": one} for key, one in tags.items()]

    def foreign_key(self, **tags: str) -> str:
        """Another key of the customer's, with a policy as the console makes it, and with tags."""
        listed = [{"TagKey": key, "TagValue": value} for key, value in tags.items()]
        return str(self.client(self.admin).create_key(Tags=listed)["KeyMetadata"]["Arn"])

    def provisioning_probes(self) -> dict[str, Callable[[], object]]:
        """What the provisioning role must not be able to do."""
        kms, ours, role = self.role(), self.arrangement.ours, self.arrangement.provisioning_role
        assert ours.provisioning is not None
        foreign, another = self.foreign_key(), self.foreign_key(**{TENANT_TAG: "f" * 32})
        policy = json.dumps(self.kms.key_policy(self.arn))
        elsewhere = self.role(region="eu-west-2")
        return {
            "another kind of key": lambda: self.make(kms, KeySpec="RSA_2048"),
            "another use": lambda: self.make(kms, KeyUsage="GENERATE_VERIFY_MAC"),
            "imported material": lambda: self.make(kms, Origin="EXTERNAL"),
            "no tag": lambda: self.make(kms, without="Tags"),
            "another tenant's tag": lambda: self.make(kms, Tags=self.tags("f" * 32)),
            "one tag more": lambda: self.make(kms, Tags=self.tags(owner="us")),
            "without the lock-out check": lambda: self.make(kms, BypassPolicyLockoutSafetyCheck=True),
            "another region": lambda: self.make(elsewhere),
            "an alias elsewhere": lambda: kms.create_alias(AliasName=f"alias/x{next(NAMES)}", TargetKeyId=self.arn),
            "our alias on another key": lambda: kms.create_alias(AliasName=self.arrangement.alias, TargetKeyId=foreign),
            "rotation of another key": lambda: kms.enable_key_rotation(KeyId=foreign),
            "rotation of another tenant's key": lambda: kms.enable_key_rotation(KeyId=another),
            "a look at another key": lambda: kms.describe_key(KeyId=foreign),
            "another tag": lambda: kms.tag_resource(KeyId=self.arn, Tags=[{"TagKey": "a", "TagValue": "b"}]),
            "another tag beside": lambda: kms.tag_resource(KeyId=self.arn, Tags=self.tags(owner="us")),
            "another value of the tag": lambda: kms.tag_resource(KeyId=self.arn, Tags=self.tags("f" * 32)),
            "another tenant's key tagged as this one's": lambda: kms.tag_resource(KeyId=another, Tags=self.tags()),
            "a policy without the lock-out check": lambda: kms.put_key_policy(
                KeyId=self.arn, Policy=policy, BypassPolicyLockoutSafetyCheck=True
            ),
            "another key's policy": lambda: kms.put_key_policy(KeyId=foreign, Policy=policy),
            "disabling": lambda: kms.disable_key(KeyId=self.arn),
            "deletion": lambda: kms.schedule_key_deletion(KeyId=self.arn),
            "a grant": lambda: kms.create_grant(KeyId=self.arn, GranteePrincipal=role, Operations=["Decrypt"]),
            "reading": lambda: kms.decrypt(KeyId=self.arn, CiphertextBlob=self.blob, EncryptionContext=self.context),
            "writing": lambda: kms.encrypt(KeyId=self.arn, Plaintext=b"x", EncryptionContext=self.context),
            "role without ExternalId": lambda: self.role(ExternalId=""),
            "role with a wrong ExternalId": lambda: self.role(ExternalId="another"),
            "role of another role of ours": lambda: self.assumed(self.stranger, role),
            "role of our runtime": lambda: self.assumed(ours.runtime, role),
        }

    def open_provisioning(self) -> list[str]:
        return [name for name, probe in self.provisioning_probes().items() if not _denied(probe)]

    def provision(self) -> None:
        """Do what the role is there for; raise what AWS raises."""
        kms = self.role()
        arn = self.make(kms, BypassPolicyLockoutSafetyCheck=False)["KeyMetadata"]["Arn"]
        kms.create_alias(AliasName=self.arrangement.alias, TargetKeyId=arn)
        kms.enable_key_rotation(KeyId=arn, RotationPeriodInDays=self.arrangement.rotation_days)
        assert kms.get_key_rotation_status(KeyId=arn)["RotationPeriodInDays"] == self.arrangement.rotation_days
        assert kms.describe_key(KeyId=self.arrangement.alias)["KeyMetadata"]["Arn"] == arn


def _denied(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except ClientError as error:
        return error.response["Error"]["Code"] in {"AccessDenied", "AccessDeniedException"}
    return False


@pytest.fixture(scope="module")
def kms() -> Iterator[StrictKms]:
    with StrictKms() as server:
        yield server


@pytest.fixture(scope="module")
def made(kms: StrictKms) -> Provisioning:
    return Provisioning(kms, CREATED)


@pytest.fixture
def world(made: Provisioning) -> Iterator[Provisioning]:
    """A customer whose alias is free, with the documents as handed over."""
    made.arrangement = replace(made.arrangement, tenant=f"acme-{next(NAMES)}")
    made.documents = every_document(made.arrangement)
    made.install({})
    yield made
    made.install({})


def test_a_key_is_made_named_and_rotates(world: Provisioning) -> None:
    world.provision()


def test_a_key_that_we_made_serves_and_guards_like_the_customers_own(world: Provisioning) -> None:
    assert world.broken() == []
    assert world.open_doors() == []


def test_the_provisioning_role_can_do_nothing_else(world: Provisioning) -> None:
    assert world.open_provisioning() == []


def test_a_key_cannot_be_made_before_the_role_that_its_policy_names(kms: StrictKms) -> None:
    with StrictKms() as server:
        world = Provisioning(server, CREATED)
        assert world.arrangement.access_role is not None
        server.remove_role(world.arrangement.access_role)
        with pytest.raises(ClientError, match="invalid principals"):
            world.provision()


def test_without_its_statement_the_key_policy_would_not_pass_the_lock_out_check(world: Provisioning) -> None:
    policy = deepcopy(every_document(world.arrangement)["key"])
    policy["Statement"] = [one for one in policy["Statement"] if one["Sid"] != "PassesLockoutCheck"]
    with pytest.raises(ClientError, match="will not allow you to update the key policy"):
        world.make(world.role(), Policy=json.dumps(policy))


def test_when_the_role_is_gone_nobody_of_ours_comes_to_the_policy(world: Provisioning) -> None:
    assert world.arrangement.provisioning_role is not None
    world.kms.remove_role(world.arrangement.provisioning_role)
    with pytest.raises(ClientError, match="not authorized to perform: sts:AssumeRole"):
        world.role()
    # The administrator may not put the same policy again: AWS refuses a principal that is gone.
    assert world.broken() == ["administer"]
    assert world.open_doors() == []


def conditions(document: Document) -> Iterator[tuple[str, Document]]:
    """Each condition of a document, and the document without it."""
    for number, statement in enumerate(document["Statement"]):
        for operator, tests in statement.get("Condition", {}).items():
            for key in tests:
                without = deepcopy(document)
                del without["Statement"][number]["Condition"][operator][key]
                yield f"{statement['Sid']}: {operator} {key}", without


@pytest.mark.parametrize("name", ["provisioning trust", "provisioning permissions"])
def test_without_any_one_condition_something_is_no_longer_denied(name: str, world: Provisioning) -> None:
    for what, changed in conditions(every_document(world.arrangement)[name]):
        world.install({name: changed})
        assert world.open_provisioning() != [], what


def test_without_its_condition_the_lock_out_check_could_be_left_out(world: Provisioning) -> None:
    policy = deepcopy(every_document(world.arrangement)["key"])
    (statement,) = (one for one in policy["Statement"] if one["Sid"] == "PassesLockoutCheck")
    del statement["Condition"]
    world.install({"key": policy})
    assert world.open_provisioning() == ["a policy without the lock-out check"]


@pytest.mark.parametrize(
    ("sid", "kind", "opened"),
    [("NameAlias", "alias", "an alias elsewhere"), ("TagKey", "key", "another region")],
)
def test_a_resource_is_named_for_a_reason(sid: str, kind: str, opened: str, world: Provisioning) -> None:
    anywhere = deepcopy(every_document(world.arrangement)["provisioning permissions"])
    (statement,) = (one for one in anywhere["Statement"] if one["Sid"] == sid)
    statement["Resource"] = f"arn:aws:kms:*:{CREATED.account}:{kind}/*"
    world.install({"provisioning permissions": anywhere})
    assert world.open_provisioning() == [opened]


def test_the_one_who_assumes_is_named_for_a_reason(world: Provisioning) -> None:
    anybody = deepcopy(every_document(world.arrangement)["provisioning trust"])
    anybody["Statement"][0]["Principal"] = {"AWS": "arn:aws:iam::999900001111:root"}
    world.install({"provisioning trust": anybody})
    assert world.open_provisioning() == ["role of another role of ours"]


ACTIONS = [
    (number, action)
    for number, statement in enumerate(every_document(CREATED)["provisioning permissions"]["Statement"])
    for action in statement["Action"]
]


@pytest.mark.parametrize(("number", "action"), ACTIONS)
def test_every_action_of_the_provisioning_role_is_needed(number: int, action: str, world: Provisioning) -> None:
    fewer = deepcopy(every_document(world.arrangement)["provisioning permissions"])
    statement = fewer["Statement"][number]
    statement["Action"] = [one for one in statement["Action"] if one != action] or ["kms:Sign"]
    world.install({"provisioning permissions": fewer})
    with pytest.raises(ClientError, match=f"not authorized to perform: {action}"):
        world.provision()
