"""What an arrangement asks of the customer, as one CloudFormation template.

Pure text: YAML in which every string is quoted, so that nothing is taken for a date, a number or a tag. The policies
are those of `policies`, element by element.

A stack makes roles and, where there is none, the key. It cannot change the policy of a key that exists: the statements
that this has to gain stand in the template's metadata, to be added by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..keystore import Way
from . import policies
from .arrangement import Arrangement

_PLAIN_KEY: Final = re.compile(r"(?!(?i:null|true|false|yes|no|on|off|y|n)$)[A-Za-z][A-Za-z0-9]*")
"""Keys that need no quotes. YAML takes an unquoted ``Null``, a condition operator, for no key at all."""


def cloudformation(arrangement: Arrangement) -> str | None:
    """Return the template, or None where there is nothing to make: our own roles and a key that exists.

    A stack of it needs ``CAPABILITY_NAMED_IAM`` wherever it makes a role.
    """
    resources = _resources(arrangement)
    if not resources:
        return None
    template: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "What pii_vault asks for, to keep personal data under a KMS key of yours",
    }
    if _exists(arrangement):
        template["Metadata"] = {"KeyStatements": policies.key_statements(arrangement)}
    template["Resources"] = resources
    template["Outputs"] = _outputs(resources)
    return _comment(arrangement) + "\n".join(_yaml(template)) + "\n"


def _exists(arrangement: Arrangement) -> bool:
    return arrangement.way is Way.SHARED and arrangement.key_arn is not None


def _resources(arrangement: Arrangement) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if not arrangement.direct:
        resources["AccessRole"] = _role(arrangement.access_role, policies.access_role_trust(arrangement))
    if arrangement.way is Way.CREATED:
        role = _role(arrangement.provisioning_role, policies.provisioning_role_trust(arrangement))
        permissions = policies.provisioning_role_permissions(arrangement)
        role["Properties"]["Policies"] = [{"PolicyName": "make-one-key", "PolicyDocument": permissions}]
        resources["ProvisioningRole"] = role
    elif not _exists(arrangement):
        resources["Key"] = _key(arrangement)
        resources["KeyAlias"] = {
            "Type": "AWS::KMS::Alias",
            "Properties": {"AliasName": arrangement.alias, "TargetKeyId": {"Ref": "Key"}},
        }
    return resources


def _role(arn: str | None, trust: Mapping[str, Any]) -> dict[str, Any]:
    assert arn is not None
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "RoleName": arn.rpartition("/")[2],
            "MaxSessionDuration": 3600,
            "AssumeRolePolicyDocument": trust,
        },
    }


def _key(arrangement: Arrangement) -> dict[str, Any]:
    key: dict[str, Any] = {"Type": "AWS::KMS::Key"}
    if not arrangement.direct:
        # AWS refuses a policy that names a role which is not there.
        key["DependsOn"] = ["AccessRole"]
    # A stack that is deleted leaves the key: without it the data that it protects can never be read again.
    key["DeletionPolicy"] = key["UpdateReplacePolicy"] = "Retain"
    key["Properties"] = {
        "Description": "Wraps the keys of personal data (pii_vault)",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "EnableKeyRotation": True,
        "RotationPeriodInDays": arrangement.rotation_days,
        "PendingWindowInDays": 30,
        "Tags": [{"Key": policies.TENANT_TAG, "Value": arrangement.tenant_uid.hex()}],
        "KeyPolicy": policies.key_policy(arrangement),
    }
    return key


def _outputs(resources: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}Arn": {"Value": {"Fn::GetAtt": [name, "Arn"]}}
        for name in ("Key", "AccessRole", "ProvisioningRole")
        if name in resources
    }


def _comment(arrangement: Arrangement) -> str:
    lines = [
        f"For account {arrangement.account}, region {arrangement.region}. Read README.md beside this file first.",
        "A stack that makes roles needs --capabilities CAPABILITY_NAMED_IAM.",
    ]
    if _exists(arrangement):
        lines += [
            f"A stack cannot change the policy of {arrangement.key_arn}:",
            "add the statements under Metadata, KeyStatements to it by hand, when the stack has made the role.",
        ]
    if arrangement.way is Way.CREATED:
        lines += [
            "We make the key through ProvisioningRole, once. Take that resource and its output away, and update the",
            "stack, when we have told you the key's ARN.",
        ]
    return "".join(f"# {line}\n" for line in lines)


def _yaml(value: Any, depth: int = 0) -> Iterator[str]:
    """Lay out mappings and lists as block-style YAML 1.2; scalars as JSON, which YAML reads as they are."""
    pad = "  " * depth
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = key if _PLAIN_KEY.fullmatch(key) else json.dumps(key)
            if isinstance(inner, Mapping | list):
                yield f"{pad}{name}:"
                yield from _yaml(inner, depth + 1)
            else:
                yield f"{pad}{name}: {json.dumps(inner)}"
        return
    for inner in value:
        if isinstance(inner, Mapping | list):
            first, *rest = _yaml(inner, depth + 1)
            yield f"{pad}- {first.strip()}"
            yield from rest
        else:
            yield f"{pad}- {json.dumps(inner)}"
