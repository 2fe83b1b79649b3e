"""What is handed over as text: the same policies in each form, laid out as the tools want it, each explained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from tests.support.arrangements import EVERY_WAY, KEY, OURS, arrangement
from tests.support.policy_grammar import faults

from pii_vault.keystore import Way
from pii_vault.onboarding import policies
from pii_vault.onboarding.arrangement import Arrangement, Ours
from pii_vault.onboarding.documents import Recipient, documents

WAYS = pytest.mark.parametrize("one", EVERY_WAY.values(), ids=EVERY_WAY)
ROOT = Path(__file__).parents[3]
TERRAFORM = shutil.which("terraform")
CFN_LINT = shutil.which("cfn-lint")


def texts(one: Arrangement) -> dict[str, str]:
    return {document.name: document.text for document in documents(one)}


def exists(one: Arrangement) -> bool:
    return one.way is Way.SHARED and one.key_arn is not None


def expected(one: Arrangement) -> dict[str, Any]:
    """What Terraform and CloudFormation have to hold, by the names that Terraform has for it."""
    found: dict[str, Any] = {}
    if not one.direct:
        found["access_role_trust"] = policies.access_role_trust(one)
    if one.way is Way.CREATED:
        found["provisioning_role_trust"] = policies.provisioning_role_trust(one)
        found["provisioning_role_permissions"] = policies.provisioning_role_permissions(one)
    elif exists(one):
        found["key_statements"] = {"Version": "2012-10-17", "Statement": policies.key_statements(one)}
    else:
        found["key_policy"] = policies.key_policy(one)
    return found


@WAYS
def test_each_has_a_name_a_recipient_and_a_sentence(one: Arrangement) -> None:
    made = documents(one)
    assert made[0].name == "README.md"
    assert len({document.name for document in made}) == len(made)
    for document in made:
        assert re.fullmatch(r"[A-Za-z-]+\.(json|md|tf|yaml)", document.name)
        assert document.text.endswith("\n")
        assert document.what.endswith(".")
        assert document.who is (Recipient.US if document.name.startswith("our-") else Recipient.CUSTOMER)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        (
            "a new key, through a role",
            "README.md access-role-trust.json cloudformation.yaml key-policy.json our-rotation-policy.json"
            " our-runtime-policy.json terraform.tf",
        ),
        ("a new key, directly", "README.md cloudformation.yaml key-policy.json terraform.tf"),
        (
            "a key that exists, directly",
            "README.md key-statements.json our-rotation-policy.json our-runtime-policy.json terraform.tf",
        ),
        (
            "a key that we make, through a role",
            "README.md access-role-trust.json cloudformation.yaml key-policy.json our-provisioning-policy.json"
            " our-rotation-policy.json our-runtime-policy.json provisioning-role-permissions.json"
            " provisioning-role-trust.json terraform.tf",
        ),
    ],
)
def test_what_is_handed_over(name: str, names: str) -> None:
    assert sorted(texts(EVERY_WAY[name])) == names.split()


MAKERS = {
    "key-policy.json": (policies.key_policy, "key"),
    "access-role-trust.json": (policies.access_role_trust, "trust"),
    "provisioning-role-trust.json": (policies.provisioning_role_trust, "trust"),
    "provisioning-role-permissions.json": (policies.provisioning_role_permissions, "identity"),
    "our-runtime-policy.json": (policies.runtime_identity, "identity"),
    "our-rotation-policy.json": (policies.rotation_identity, "identity"),
    "our-provisioning-policy.json": (policies.provisioning_identity, "identity"),
}


@WAYS
def test_json_documents_are_the_policies(one: Arrangement) -> None:
    for name, text in texts(one).items():
        if name == "key-statements.json":
            assert json.loads(text) == policies.key_statements(one)
            assert faults({"Version": "2012-10-17", "Statement": json.loads(text)}, "key") == []
        elif name.endswith(".json"):
            make, kind = MAKERS[name]
            assert json.loads(text) == make(one)
            assert faults(json.loads(text), kind) == [], name


# Terraform.


@WAYS
def test_terraform_holds_the_same_policies(one: Arrangement) -> None:
    configuration = hcl2.loads(texts(one)["terraform.tf"])
    held = {name: value for block in configuration["locals"] for name, value in block.items() if name in expected(one)}
    assert {name: json.loads(heredoc(value)) for name, value in held.items()} == expected(one)


def heredoc(text: str) -> str:
    match = re.fullmatch(r'"?<<-?JSON\n(.*)\n\s*JSON"?', text, re.DOTALL)
    return match[1] if match else text


@WAYS
def test_terraform_makes_what_is_not_there_and_nothing_else(one: Arrangement) -> None:
    text = texts(one)["terraform.tf"]
    made = set(re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE))
    wanted = set() if one.direct else {("aws_iam_role", "access")}
    if one.way is Way.CREATED:
        wanted |= {("aws_iam_role", "provisioning"), ("aws_iam_role_policy", "provisioning")}
    elif not exists(one):
        wanted |= {("aws_kms_key", "pii_vault"), ("aws_kms_alias", "pii_vault")}
        assert "prevent_destroy = true" in text
        assert f"rotation_period_in_days  = {one.rotation_days}\n" in text
    assert made == wanted
    assert ("must not be" in text) == exists(one)
    assert ("Delete the role" in text) == (one.way is Way.CREATED)
    assert text.count("depends_on") == (0 if one.direct or one.way is Way.CREATED else 1)


@pytest.mark.skipif(TERRAFORM is None, reason="terraform is not installed")
@WAYS
def test_terraform_is_laid_out_as_its_own_tool_does(one: Arrangement, tmp_path: Path) -> None:
    assert TERRAFORM is not None
    (tmp_path / "main.tf").write_text(texts(one)["terraform.tf"])
    done = subprocess.run([TERRAFORM, "fmt", "-check", "-diff", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# CloudFormation.


@pytest.mark.skipif(CFN_LINT is None, reason="cfn-lint is not installed")
@WAYS
def test_cloudformation_finds_nothing_to_complain_of(one: Arrangement, tmp_path: Path) -> None:
    text = texts(one).get("cloudformation.yaml")
    if text is None:
        return
    assert CFN_LINT is not None
    (tmp_path / "template.yaml").write_text(text)
    done = subprocess.run(
        [CFN_LINT, "--regions", one.region, "--", str(tmp_path / "template.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@WAYS
def test_cloudformation_holds_the_same_policies(one: Arrangement) -> None:
    text = texts(one).get("cloudformation.yaml")
    if text is None:
        assert one.direct
        assert exists(one)
        return
    template = yaml.safe_load(text)
    resources = template["Resources"]
    held: dict[str, Any] = {}
    if "AccessRole" in resources:
        held["access_role_trust"] = resources["AccessRole"]["Properties"]["AssumeRolePolicyDocument"]
    if "ProvisioningRole" in resources:
        role = resources["ProvisioningRole"]["Properties"]
        held["provisioning_role_trust"] = role["AssumeRolePolicyDocument"]
        (policy,) = role["Policies"]
        held["provisioning_role_permissions"] = policy["PolicyDocument"]
    if "Key" in resources:
        held["key_policy"] = resources["Key"]["Properties"]["KeyPolicy"]
    if "Metadata" in template:
        held["key_statements"] = {"Version": "2012-10-17", "Statement": template["Metadata"]["KeyStatements"]}
    assert held == expected(one)


def test_cloudformation_keeps_the_key_and_makes_the_role_first() -> None:
    template = yaml.safe_load(texts(arrangement(rotation_days=180))["cloudformation.yaml"])
    key = template["Resources"]["Key"]
    assert (key["DeletionPolicy"], key["UpdateReplacePolicy"], key["DependsOn"]) == ("Retain", "Retain", ["AccessRole"])
    assert key["Properties"]["RotationPeriodInDays"] == 180
    assert key["Properties"]["EnableKeyRotation"] is True
    assert template["Resources"]["KeyAlias"]["Properties"]["AliasName"] == "alias/pii-vault/acme"
    assert set(template["Outputs"]) == {"KeyArn", "AccessRoleArn"}


def test_no_key_of_the_template_is_taken_for_something_else() -> None:
    """``Null`` without quotes is no text in YAML."""

    def keys(value: Any) -> list[Any]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [*(value if isinstance(value, dict) else ()), *(key for one in inner for key in keys(one))]

    found = keys(yaml.safe_load(texts(arrangement())["cloudformation.yaml"]))
    assert "Null" in found
    assert all(isinstance(key, str) for key in found)


# What is said about them.


@WAYS
def test_the_readme_explains_every_statement_and_names_every_file_to_apply(one: Arrangement) -> None:
    given = texts(one)
    readme = given["README.md"]
    for document in expected(one).values():
        for statement in document["Statement"]:
            assert f"`{statement['Sid']}`" in readme
    assert "`terraform.tf`" in readme
    assert ("`cloudformation.yaml`" in readme) == ("cloudformation.yaml" in given)
    assert ("access role" in readme) == (not one.direct)
    for name in re.findall(r"`([\w-]+\.(?:json|yaml|tf))`", readme):
        assert name in given


def test_the_page_of_the_docs_explains_every_statement() -> None:
    page = (ROOT / "docs" / "onboarding.md").read_text()
    for one in EVERY_WAY.values():
        for document in expected(one).values():
            for statement in document["Statement"]:
                assert f"`{statement['Sid']}`" in page


def test_a_hostile_name_does_not_get_into_any_document() -> None:
    """A tenant's name is any text; what it says must not end a comment or a string."""
    name = 'x\n"}\nresource "aws_iam_user" "evil" {}\n# `|'
    for way in Way:
        for document in documents(arrangement(tenant=name, way=way)):
            assert "evil" not in document.text, document.name


def test_documents_for_us_name_no_other_customer() -> None:
    for document in documents(arrangement(direct=True, key_arn=KEY)):
        if document.who is Recipient.US:
            assert set(re.findall(r"\d{12}", document.text.replace(KEY, ""))) == set()
    one_role = arrangement(ours=Ours(OURS.runtime, OURS.runtime))
    assert texts(one_role)["our-runtime-policy.json"] == texts(one_role)["our-rotation-policy.json"]
