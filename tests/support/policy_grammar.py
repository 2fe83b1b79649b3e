"""The grammar of IAM's policy language, as far as our documents go: elements, operators, actions, ARNs, sizes.

After the IAM user guide, "Grammar of the IAM JSON policy language" and "IAM and AWS STS quotas". Action names come from
botocore's service models, so a misspelt one is found; condition keys from the lists that the services document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

KEY_POLICY_BYTES: Final = 32_768
TRUST_POLICY_CHARACTERS: Final = 2048
MANAGED_POLICY_CHARACTERS: Final = 6144

# Permissions that are no operation of the same name (service authorisation reference of AWS KMS).
_ONLY_PERMISSIONS: Final = {"kms": {"ReEncryptFrom", "ReEncryptTo"}, "sts": {"TagSession", "SetSourceIdentity"}}
_NO_PERMISSIONS: Final = {"kms": {"ReEncrypt"}, "sts": set()}
_OPERATORS: Final = {
    f"String{name}" for name in ("Equals", "NotEquals", "EqualsIgnoreCase", "NotEqualsIgnoreCase", "Like", "NotLike")
} | {"Bool", "ArnEquals", "ArnLike", "NumericLessThanEquals", "DateLessThan"}
_CONDITION_KEYS: Final = {
    "aws:TagKeys",
    "kms:BypassPolicyLockoutSafetyCheck",
    "kms:EncryptionContextKeys",
    "kms:KeyOrigin",
    "kms:KeySpec",
    "kms:KeyUsage",
    "kms:ReEncryptOnSameKey",
    "sts:ExternalId",
}
_CONDITION_PREFIXES: Final = ("kms:EncryptionContext:", "aws:RequestTag/", "aws:ResourceTag/")
_MANY_VALUED: Final = {"aws:TagKeys", "kms:EncryptionContextKeys"}
_SID: Final = re.compile(r"[A-Za-z0-9]+")
_PRINCIPAL: Final = re.compile(r"arn:(aws|aws-cn|aws-us-gov):iam::\d{12}:(root|role/[\w+=,.@/-]+)", re.ASCII)
_RESOURCE: Final = re.compile(
    r"arn:(aws|aws-cn|aws-us-gov):("
    r"kms:([a-z0-9-]+|\*):\d{12}:(key/(\*|[0-9a-z-]+)|alias/[A-Za-z0-9/_-]+)"
    r"|iam::\d{12}:role/[\w+=,.@/-]+)",
    re.ASCII,
)
_ACCOUNT_WIDE: Final = {"kms:CreateKey"}
"""Actions without a resource: theirs is ``*``."""


def faults(document: Mapping[str, Any], kind: str) -> list[str]:
    """Return what is wrong with a document, as sentences; nothing when it is well formed.

    Args:
        document: The policy.
        kind: ``key``, ``trust`` or ``identity``.
    """
    return [*_document_faults(document, kind), *_size_faults(document, kind)]


def compact(document: Mapping[str, Any]) -> str:
    """The document as it is counted: IAM leaves white space out, KMS does not, so we count it out ourselves."""
    return json.dumps(document, separators=(",", ":"))


def _size_faults(document: Mapping[str, Any], kind: str) -> Iterator[str]:
    limit = {"key": KEY_POLICY_BYTES, "trust": TRUST_POLICY_CHARACTERS, "identity": MANAGED_POLICY_CHARACTERS}[kind]
    text = json.dumps(document, indent=2) if kind == "key" else compact(document)
    if len(text.encode()) > limit:
        yield f"{len(text)} characters are more than {limit}"


def _document_faults(document: Mapping[str, Any], kind: str) -> Iterator[str]:
    if set(document) != {"Version", "Statement"}:
        yield f"elements {sorted(document)}"
    if document.get("Version") != "2012-10-17":
        yield f"version {document.get('Version')}"
    statements = document.get("Statement")
    if not isinstance(statements, list) or not statements:
        yield "no list of statements"
        return
    sids = [statement.get("Sid") for statement in statements]
    if len(set(sids)) != len(sids):
        yield f"a Sid twice: {sids}"
    for statement in statements:
        for fault in _statement_faults(statement, kind):
            yield f"{statement.get('Sid')}: {fault}"


def _statement_faults(statement: Mapping[str, Any], kind: str) -> Iterator[str]:
    wanted = {"Sid", "Effect", "Action"} | {
        "key": {"Principal", "Resource"},
        "trust": {"Principal"},
        "identity": {"Resource"},
    }[kind]
    if set(statement) - {"Condition"} != wanted:
        yield f"elements {sorted(statement)}"
    if not _SID.fullmatch(str(statement.get("Sid", ""))):
        yield "the Sid is not letters and digits"
    if statement.get("Effect") not in {"Allow", "Deny"}:
        yield f"effect {statement.get('Effect')}"
    yield from _action_faults(_listed(statement.get("Action", [])), kind)
    if "Principal" in statement:
        yield from _principal_faults(statement["Principal"])
    if "Resource" in statement:
        yield from _resource_faults(statement, kind)
    yield from _condition_faults(statement.get("Condition"))


def _action_faults(actions: list[str], kind: str) -> Iterator[str]:
    if not actions:
        yield "no action"
    if len(set(actions)) != len(actions):
        yield "an action twice"
    for action in actions:
        service, _, name = action.partition(":")
        if service not in {"kms", "sts"} or name not in _actions(service):
            yield f"no such action: {action}"
        if kind != "identity" and (service == "kms") != (kind == "key"):
            yield f"{action} in a {kind} policy"


@cache
def _actions(service: str) -> frozenset[str]:
    import botocore.session

    model = botocore.session.get_session().get_service_model(service)
    return frozenset((set(model.operation_names) - _NO_PERMISSIONS[service]) | _ONLY_PERMISSIONS[service])


def _principal_faults(principal: Any) -> Iterator[str]:
    if not isinstance(principal, Mapping) or set(principal) != {"AWS"} or not _listed(principal["AWS"]):
        yield f"principal {principal}"
        return
    names = _listed(principal["AWS"])
    if len(set(names)) != len(names):
        yield "a principal twice"
    for name in names:
        if not _PRINCIPAL.fullmatch(name):
            yield f"principal {name}"


def _resource_faults(statement: Mapping[str, Any], kind: str) -> Iterator[str]:
    resources = _listed(statement["Resource"])
    if kind == "key":
        if resources != ["*"]:
            yield f"a key policy's resource is the key: {resources}"
        return
    everywhere = set(_listed(statement["Action"])) <= _ACCOUNT_WIDE
    for resource in resources:
        if (resource == "*") != everywhere:
            yield f"resource {resource} for {statement['Action']}"
        elif resource != "*" and not _RESOURCE.fullmatch(resource):
            yield f"resource {resource}"


def _condition_faults(condition: Any) -> Iterator[str]:
    if condition is None:
        return
    if not isinstance(condition, Mapping) or not condition:
        yield "an empty condition"
        return
    for operator, tests in condition.items():
        if not isinstance(tests, Mapping) or not tests:
            yield f"{operator} tests nothing"
            continue
        for key, values in tests.items():
            yield from _test_faults(operator, key, values)


def _test_faults(operator: str, key: str, values: Any) -> Iterator[str]:
    qualifier, _, name = operator.rpartition(":")
    if qualifier not in {"", "ForAllValues", "ForAnyValue"} or (
        name.removesuffix("IfExists") not in _OPERATORS and operator != "Null"
    ):
        yield f"operator {operator}"
    if key not in _CONDITION_KEYS and not key.startswith(_CONDITION_PREFIXES):
        yield f"condition key {key}"
    if operator != "Null" and bool(qualifier) != (key in _MANY_VALUED):
        yield f"{operator} on {key}: several values, and only those, are asked with ForAllValues or ForAnyValue"
    if not _listed(values) or not all(isinstance(value, str) and value for value in _listed(values)):
        yield f"{operator} {key} has values that are not text: {values}"
    if (operator == "Null" or name.startswith("Bool")) and not set(_listed(values)) <= {"true", "false"}:
        yield f"{operator} {key} is true or false"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
