"""The policies that an arrangement comes to: key policy, trust policies, identity policies, as documents.

Pure functions: an `Arrangement` in, a policy document of the IAM JSON policy language out (IAM user guide, "IAM JSON
policy element reference"), as a dictionary; nothing is sent anywhere. Who needs which action is said in
``kms/aws.py``; that what is needed works and what is not needed is denied is proven in ``tests/kms/test_policies.py``.

Three things that these documents stand on:

* A grant for cryptography holds for one application and one tenant: ``kms:EncryptionContext:*`` must be equal to what
  `context.kms_context` makes. So nobody can be told to send another tenant's request to this key (confused deputy).
* ``ForAllValues`` is true of a request without any context: that is why ``Null`` stands beside it.
* A new key's policy leaves administration to the customer's account, and cryptography to nobody but us: whoever in the
  account wants to read must change the policy, which its CloudTrail shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..context import KMS_TENANT, Identity, kms_context
from ..errors import ConfigurationError
from ..keystore import Way
from .arrangement import Arrangement

Statement = dict[str, Any]
Document = dict[str, Any]

TENANT_TAG: Final = KMS_TENANT
"""The tag of a key that we made: its value is the tenant's uid in hexadecimal."""

_USE: Final = ("kms:GenerateDataKey", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")
_LOOK: Final = ("kms:DescribeKey", "kms:GetKeyRotationStatus")
# Not callable from another account, so of use to a role in the customer's only.
_LOOK_AT_HOME: Final = (*_LOOK, "kms:ListKeyRotations")

_CHANGE: Final = (
    "kms:CancelKeyDeletion",
    "kms:CreateAlias",
    "kms:DeleteAlias",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:PutKeyPolicy",
    "kms:ReplicateKey",
    "kms:RevokeGrant",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateKeyDescription",
    "kms:UpdatePrimaryRegion",
)
_READ: Final = (
    "kms:GetKeyPolicy",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
)
_ADMINISTRATION: Final = (*_LOOK_AT_HOME, *_READ, *_CHANGE)
# Encrypt would let us write under the key without the KMS making the key material, and a grant outlives a policy.
_NEVER: Final = (
    "kms:CreateGrant",
    "kms:DeleteImportedKeyMaterial",
    "kms:Encrypt",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ImportKeyMaterial",
    "kms:RetireGrant",
    *_CHANGE,
)


def key_policy(arrangement: Arrangement) -> Document:
    """Return the whole policy of a key that is made for this arrangement.

    The roles that it names must exist before the key does: AWS refuses a principal that it does not find.
    """
    root = f"arn:{arrangement.partition}:iam::{arrangement.account}:root"
    statements = [_statement("CustomerAdministers", _ADMINISTRATION, principals=[root])]
    if arrangement.way is Way.CREATED:
        statements.append(_lockout_check(arrangement))
    statements += [*key_statements(arrangement), _never(arrangement)]
    return _document(statements)


def key_statements(arrangement: Arrangement) -> list[Statement]:
    """Return what the policy of a key that exists has to gain, and nothing that it may have already."""
    uses = _context_condition(arrangement)
    if not arrangement.direct:
        role = [_access_role(arrangement)]
        return [
            _statement("PiiVaultUses", _USE, principals=role, condition=uses),
            _statement("PiiVaultLooks", _LOOK_AT_HOME, principals=role),
        ]
    runtime, rotation = [arrangement.ours.runtime], [arrangement.ours.rotation]
    return [
        _statement("PiiVaultUnwraps", ["kms:Decrypt"], principals=runtime, condition=uses),
        _statement("PiiVaultRotates", _USE, principals=rotation, condition=uses),
        _statement("PiiVaultLooks", _LOOK, principals=rotation),
    ]


def access_role_trust(arrangement: Arrangement) -> Document:
    """Return who may assume the access role: our runtime and rotation roles, with the ExternalId.

    Raises:
        ConfigurationError: the arrangement is direct and has no such role.
    """
    _access_role(arrangement)
    return _trust("PiiVaultAssumes", _users(arrangement), arrangement.external_id)


def provisioning_role_trust(arrangement: Arrangement) -> Document:
    """Return who may assume the provisioning role: our provisioning role, with the ExternalId.

    Raises:
        ConfigurationError: the customer makes its key, or we have no provisioning role.
    """
    _provisioning_role(arrangement)
    return _trust("PiiVaultProvisions", [_our_provisioning(arrangement)], arrangement.external_id)


def provisioning_role_permissions(arrangement: Arrangement) -> Document:
    """Return what the provisioning role may do: make one kind of key, name it, let it rotate.

    A key is made with its tag or not at all, and tagging is allowed in one region: so is making.

    Tagging can be limited to one tag with one value, not to the moment in which a key is made: KMS has no condition
    for that. What the tag opens is naming and rotation.

    A change of a tag takes up to five minutes until it counts (AWS KMS developer guide, "Using tags to control access
    to KMS keys"): what comes after making the key may be denied so long.

    Raises:
        ConfigurationError: the customer makes its key.
    """
    _provisioning_role(arrangement)
    here = f"arn:{arrangement.partition}:kms:{arrangement.region}:{arrangement.account}"
    tenant = arrangement.tenant_uid.hex()
    tagged = {"StringEquals": {f"aws:ResourceTag/{TENANT_TAG}": tenant}}
    naming = {
        "StringEquals": {f"aws:RequestTag/{TENANT_TAG}": tenant},
        "ForAllValues:StringEquals": {"aws:TagKeys": [TENANT_TAG]},
        # Not a key that is tagged for another tenant. A key in the making has no tag yet.
        "StringEqualsIfExists": {f"aws:ResourceTag/{TENANT_TAG}": tenant},
    }
    looking = ["kms:EnableKeyRotation", "kms:GetKeyRotationStatus", "kms:DescribeKey"]
    return _document(
        [
            _statement("MakeKey", ["kms:CreateKey"], resources=["*"], condition=_creation(arrangement)),
            _statement("TagKey", ["kms:TagResource"], resources=[f"{here}:key/*"], condition=naming),
            _statement("NameAlias", ["kms:CreateAlias"], resources=[f"{here}:{arrangement.alias}"]),
            _statement("NameKey", ["kms:CreateAlias"], resources=[f"{here}:key/*"], condition=tagged),
            _statement("RotateKey", looking, resources=[f"{here}:key/*"], condition=tagged),
        ]
    )


def runtime_identity(arrangement: Arrangement) -> Document:
    """Return what our runtime role needs: to assume the customer's role, or to unwrap with its key.

    Raises:
        ConfigurationError: the arrangement is direct and its key is not known yet.
    """
    if arrangement.direct:
        return _document([_statement("UnwrapKeys", ["kms:Decrypt"], resources=[_key_anywhere(arrangement)])])
    return _may_assume(_access_role(arrangement))


def rotation_identity(arrangement: Arrangement) -> Document:
    """Return what our rotation role needs: to assume the customer's role, or to use and describe its key.

    Raises:
        ConfigurationError: the arrangement is direct and its key is not known yet.
    """
    if arrangement.direct:
        return _document([_statement("RotateKeys", [*_USE, *_LOOK], resources=[_key_anywhere(arrangement)])])
    return _may_assume(_access_role(arrangement))


def provisioning_identity(arrangement: Arrangement) -> Document:
    """Return what our provisioning role needs: to assume the customer's provisioning role.

    Raises:
        ConfigurationError: the customer makes its key, or we have no provisioning role.
    """
    _our_provisioning(arrangement)
    return _may_assume(_provisioning_role(arrangement))


# Statements.


def _context_condition(arrangement: Arrangement) -> Document:
    """Demand exactly the five entries of `kms_context`, and in three of them the values that never change."""
    identity = Identity(arrangement.app_uid, arrangement.tenant_uid, arrangement.keyset_id)
    context = kms_context(identity, "kek", 1)
    free = ("pii-vault:purpose", "pii-vault:record")
    return {
        "StringEquals": {f"kms:EncryptionContext:{name}": value for name, value in context.items() if name not in free},
        "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": list(context)},
        # ForAllValues closes the list and demands nothing: neither that there is a context, nor these two.
        "Null": {
            "kms:EncryptionContextKeys": "false",
            **{f"kms:EncryptionContext:{name}": "false" for name in free},
        },
    }


def _lockout_check(arrangement: Arrangement) -> Statement:
    """Let the provisioning role pass the check that KMS makes of a new key's policy.

    Without BypassPolicyLockoutSafetyCheck, KMS refuses a policy under which whoever makes the key could not change it
    again (CreateKey, "Policy"). The account's statement does not help a role whose own policy lacks PutKeyPolicy, as
    this one's does. The customer deletes the role when the key is made, and with it goes this.
    """
    condition = {"BoolIfExists": {"kms:BypassPolicyLockoutSafetyCheck": "false"}}
    role = [_provisioning_role(arrangement)]
    return _statement("PassesLockoutCheck", ["kms:PutKeyPolicy"], principals=role, condition=condition)


def _never(arrangement: Arrangement) -> Statement:
    """Deny what no task of ours needs, whatever else is allowed: by an identity policy that is too wide, for one."""
    principals = _users(arrangement) if arrangement.direct else [_access_role(arrangement)]
    return _statement("PiiVaultNever", sorted(_NEVER), principals=principals, effect="Deny")


def _creation(arrangement: Arrangement) -> Document:
    return {
        "StringEquals": {
            "kms:KeySpec": "SYMMETRIC_DEFAULT",
            "kms:KeyUsage": "ENCRYPT_DECRYPT",
            "kms:KeyOrigin": "AWS_KMS",
            f"aws:RequestTag/{TENANT_TAG}": arrangement.tenant_uid.hex(),
        },
        # A request that does not say is one that does not bypass; the condition key is then missing.
        "BoolIfExists": {"kms:BypassPolicyLockoutSafetyCheck": "false"},
    }


def _may_assume(role: str) -> Document:
    # Without a condition on the ExternalId: that the *customer's* trust policy demands it is what `check_role` tries,
    # and a denial of our own would look like one of its.
    return _document([_statement("AssumeCustomersRole", ["sts:AssumeRole"], resources=[role])])


def _trust(sid: str, principals: list[str], external_id: str) -> Document:
    condition = {"StringEquals": {"sts:ExternalId": external_id}}
    return _document(
        [
            {
                "Sid": sid,
                "Effect": "Allow",
                "Principal": {"AWS": principals},
                "Action": "sts:AssumeRole",
                "Condition": condition,
            }
        ]
    )


def _statement(
    sid: str,
    actions: Iterable[str],
    *,
    principals: list[str] | None = None,
    resources: list[str] | None = None,
    condition: Mapping[str, Any] | None = None,
    effect: str = "Allow",
) -> Statement:
    """Build a statement. With principals it is a key policy's, where the resource is always the key itself."""
    statement: Statement = {"Sid": sid, "Effect": effect}
    if principals is not None:
        statement["Principal"] = {"AWS": principals}
    statement["Action"] = list(actions)
    statement["Resource"] = "*" if resources is None else resources
    if condition is not None:
        statement["Condition"] = dict(condition)
    return statement


def _document(statements: list[Statement]) -> Document:
    return {"Version": "2012-10-17", "Statement": statements}


# Names.


def _users(arrangement: Arrangement) -> list[str]:
    return list(dict.fromkeys((arrangement.ours.runtime, arrangement.ours.rotation)))


def _access_role(arrangement: Arrangement) -> str:
    if arrangement.access_role is None:
        raise ConfigurationError(
            f"tenant {arrangement.tenant!r}: our own roles use the key directly, there is no access role",
        )
    return arrangement.access_role


def _provisioning_role(arrangement: Arrangement) -> str:
    if arrangement.provisioning_role is None:
        raise ConfigurationError(
            f"tenant {arrangement.tenant!r}: the customer makes its KMS key, there is no provisioning role"
        )
    return arrangement.provisioning_role


def _our_provisioning(arrangement: Arrangement) -> str:
    if arrangement.ours.provisioning is None:
        raise ConfigurationError(
            f"tenant {arrangement.tenant!r}: to make its KMS key we need a provisioning role of our own",
            hint="name the role that makes customers' keys, or let the customer make its key",
        )
    return arrangement.ours.provisioning


def _key_anywhere(arrangement: Arrangement) -> str:
    """Return the key's ARN; a multi-Region key's with any region, since its replicas differ in nothing else."""
    arn = arrangement.key_arn
    if arn is None:
        raise ConfigurationError(
            f"tenant {arrangement.tenant!r}: our own roles use the key directly, and its ARN is not known yet",
            hint="an identity policy names exactly one key: make it when the key exists",
        )
    parts = arn.split(":")
    if parts[5].startswith("key/mrk-"):
        parts[3] = "*"
    return ":".join(parts)
