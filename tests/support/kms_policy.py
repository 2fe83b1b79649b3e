"""Evaluate the parts of AWS policy documents that key policies for pii_vault use; refuse to guess at any
other part.

The rules: an explicit deny wins; a key policy that names the principal allows inside the key's own account,
and outside of it only together with an identity policy; a key policy that names an account (its root) hands
the decision to that account's identity policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

Policy = Mapping[str, Any]

ALLOW_EVERYTHING: Final[Policy] = {"Statement": [{"Effect": "Allow", "Action": ["kms:*", "sts:*"], "Resource": "*"}]}
_STATEMENT_KEYS: Final = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}


def account_of(arn: str) -> str:
    return arn.split(":")[4]


@dataclass(frozen=True)
class Principal:
    """Who signed a request: `arn` as CloudTrail shows it, `identity` the user or role behind it."""

    arn: str
    identity: str

    @property
    def account(self) -> str:
        return account_of(self.arn)


@dataclass(frozen=True)
class Question:
    """May this principal do this action on this resource, under these condition keys?"""

    principal: Principal
    action: str
    resource: str
    conditions: Mapping[str, Sequence[str]]


def is_allowed(question: Question, resource_policy: Policy, identity_policy: Policy | None) -> bool:
    named, delegated = False, False
    for statement in _statements(resource_policy):
        match = _principal_match(statement["Principal"], question.principal)
        if match is None or not _applies(statement, question):
            continue
        if statement["Effect"] == "Deny":
            return False
        named |= match == "named"
        delegated |= match == "account"
    identity = False
    for statement in _statements(identity_policy or {"Statement": []}):
        if not _applies(statement, question):
            continue
        if statement["Effect"] == "Deny":
            return False
        identity = True
    same_account = question.principal.account == account_of(question.resource)
    return (named and (same_account or identity)) or (delegated and identity)


def encryption_conditions(context: Mapping[str, str]) -> dict[str, list[str]]:
    conditions = {f"kms:encryptioncontext:{name.lower()}": [value] for name, value in context.items()}
    if context:
        conditions["kms:encryptioncontextkeys"] = list(context)
    return conditions


def creation_conditions(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """The condition keys of CreateKey: what the request does not say is not there, as in AWS."""
    said = {"KeySpec": "kms:keyspec", "KeyUsage": "kms:keyusage", "Origin": "kms:keyorigin"}
    return {
        **{key: [str(parameters[name])] for name, key in said.items() if name in parameters},
        **bypass_conditions(parameters),
        **request_tags(parameters),
    }


def bypass_conditions(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """The condition key of CreateKey and PutKeyPolicy for leaving out the lock-out check."""
    name = "BypassPolicyLockoutSafetyCheck"
    return {f"kms:{name.lower()}": [str(parameters[name]).lower()]} if name in parameters else {}


def request_tags(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """The condition keys of the tags that a request brings."""
    tags = {tag["TagKey"]: tag["TagValue"] for tag in parameters.get("Tags", ())}
    conditions = {f"aws:requesttag/{key.lower()}": [value] for key, value in tags.items()}
    if tags:
        conditions["aws:tagkeys"] = list(tags)
    return conditions


def resource_tags(tags: Mapping[str, str]) -> dict[str, list[str]]:
    """The condition keys of the tags that a key has."""
    return {f"aws:resourcetag/{key.lower()}": [value] for key, value in tags.items()}


def named_principals(policy: Policy) -> set[str]:
    """The users and roles that a policy names, account roots left out."""
    found: set[str] = set()
    for statement in _statements(policy):
        if statement["Principal"] != "*":
            found |= {name for name in _listed(statement["Principal"]["AWS"]) if ":user/" in name or ":role/" in name}
    return found


def _statements(policy: Policy) -> list[dict[str, Any]]:
    found = policy["Statement"]
    statements = [found] if isinstance(found, Mapping) else list(found)
    for statement in statements:
        unknown = set(statement) - _STATEMENT_KEYS
        if unknown:
            raise NotImplementedError(f"policy element {sorted(unknown)}")
    return statements


def _principal_match(principal: Any, who: Principal) -> str | None:
    """Return "named", "account" or None."""
    if principal == "*":
        return "named"
    if set(principal) != {"AWS"}:
        raise NotImplementedError(f"principal {principal}")
    names = _listed(principal["AWS"])
    if "*" in names or who.arn in names or who.identity in names:
        return "named"
    account = {who.account, f"arn:aws:iam::{who.account}:root"}
    return "account" if account & set(names) else None


def _applies(statement: Mapping[str, Any], question: Question) -> bool:
    action = question.action.lower()
    if not any(fnmatchcase(action, pattern.lower()) for pattern in _listed(statement["Action"])):
        return False
    if not any(fnmatchcase(question.resource, pattern) for pattern in _listed(statement.get("Resource", "*"))):
        return False
    return all(
        _holds(operator, question.conditions.get(key.lower(), ()), _listed(wanted))
        for operator, tests in statement.get("Condition", {}).items()
        for key, wanted in tests.items()
    )


def _holds(operator: str, values: Sequence[str], wanted: list[str]) -> bool:
    if operator == "Null":
        return (not values) == (wanted == ["true"])
    qualifier, _, name = operator.rpartition(":")
    if name.endswith("IfExists"):
        if not values:
            return True
        name = name.removesuffix("IfExists")
    if qualifier == "ForAllValues":
        return all(_test(name, value, wanted) for value in values)
    if qualifier == "ForAnyValue":
        return any(_test(name, value, wanted) for value in values)
    if qualifier:
        raise NotImplementedError(f"condition operator {operator}")
    if not values:
        _test(name, "", wanted)
        return "Not" in name
    if len(values) > 1:
        raise NotImplementedError(f"{operator} on a condition key with several values")
    return _test(name, values[0], wanted)


def _test(name: str, value: str, wanted: list[str]) -> bool:
    if name in {"StringEquals", "ArnEquals", "Bool"}:
        return value in wanted
    if name == "StringNotEquals":
        return value not in wanted
    if name in {"StringLike", "ArnLike"}:
        return any(fnmatchcase(value, pattern) for pattern in wanted)
    if name in {"StringNotLike", "ArnNotLike"}:
        return not any(fnmatchcase(value, pattern) for pattern in wanted)
    raise NotImplementedError(f"condition operator {name}")


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
