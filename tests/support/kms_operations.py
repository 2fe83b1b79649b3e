"""What the strict KMS does for each operation: state, policy and ciphertext checks, in AWS's order.

The states' effects are those of the table "Key states of AWS KMS keys" in the AWS KMS developer guide.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.kms_http import AwsError, ask_moto_kms
from tests.support.kms_policy import (
    Policy,
    Principal,
    Question,
    account_of,
    bypass_conditions,
    creation_conditions,
    encryption_conditions,
    named_principals,
    request_tags,
    resource_tags,
)

_DAY: Final = 86_400
PAGE = 100
"""How many rotations are listed at once."""
_CRYPTO: Final = {"Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt"}
_CROSS_ACCOUNT: Final = {*_CRYPTO, "CreateGrant", "DescribeKey", "GetKeyRotationStatus"}
_MANAGEMENT: Final = {
    "DisableKey",
    "EnableKey",
    "ScheduleKeyDeletion",
    "CancelKeyDeletion",
    "EnableKeyRotation",
    "DisableKeyRotation",
    "RotateKeyOnDemand",
    "GetKeyRotationStatus",
    "PutKeyPolicy",
    "GetKeyPolicy",
    "DescribeKey",
    "TagResource",
    "ListResourceTags",
    "ListKeyRotations",
    "ReplicateKey",
    "CreateAlias",
}
_STATE_WORDS: Final = {
    "PendingDeletion": "pending deletion",
    "PendingReplicaDeletion": "pending replica deletion",
    "PendingImport": "pending import",
    "Unavailable": "unavailable",
    "Creating": "creating",
    "Updating": "updating",
}
_AUTOMATIC_ROTATION: Final = {"EnableKeyRotation", "DisableKeyRotation", "GetKeyRotationStatus"}
_OF_THE_PRIMARY: Final = {"EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "ReplicateKey"}
_GONE: Final = {"PendingDeletion", "PendingReplicaDeletion"}


@dataclass
class KeyRecord:
    arn: str
    account: str
    region: str
    policy: Policy
    state: str = "Enabled"
    deletion_at: float | None = None
    rotation_days: int | None = None
    origin: str = "AWS_KMS"
    material: str = field(default_factory=lambda: secrets.token_hex(32))
    tags: dict[str, str] = field(default_factory=dict)
    rotations: list[dict[str, Any]] = field(default_factory=list)
    primary: KeyRecord | None = None
    replicas: list[KeyRecord] = field(default_factory=list)
    first_material: str = ""
    moto: str = ""

    def __post_init__(self) -> None:
        self.first_material = self.material
        self.moto = self.moto or self.arn

    @property
    def home(self) -> KeyRecord:
        """Whose material it is, of related multi-Region keys the primary's: moto has only that one."""
        return self.primary or self

    @property
    def key_id(self) -> str:
        return self.arn.rpartition("/")[2]


class KmsOperations:
    """The operations over a set of keys. The caller holds the lock."""

    def __init__(
        self,
        keys: dict[str, KeyRecord],
        authorise: Callable[[Question, Policy], bool],
        may_create: Callable[[Question], bool],
        exists: Callable[[str], bool],
    ) -> None:
        self._keys = keys
        self._authorise = authorise
        self._may_create = may_create
        self._exists = exists
        self._aliases: dict[str, str] = {}
        self._materials: dict[bytes, str] = {}
        self.knows_dry_runs = True
        self.grants: list[dict[str, Any]] = []

    def create(
        self, account: str, region: str, policy: Policy, parameters: Mapping[str, Any] | None = None
    ) -> KeyRecord:
        sent = dict(parameters or {})
        is_multi_region = sent.pop("MultiRegion", False)
        metadata = ask_moto_kms(account, region, "CreateKey", sent)["KeyMetadata"]
        moto = arn = metadata["Arn"]
        if is_multi_region:
            # moto's own ids of such keys are longer than AWS's, and than the place in its blobs.
            head, _, key_id = moto.rpartition("/")
            arn = f"{head}/mrk-{key_id.replace('-', '')}"
        record = KeyRecord(arn, account, region, policy, origin=metadata["Origin"], tags=_tags(sent), moto=moto)
        if record.origin == "EXTERNAL":
            record.state = "PendingImport"
        self._keys[record.arn] = record
        return record

    def run(self, operation: str, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        if operation == "CreateKey":
            return self._create(parameters, principal, region)
        if operation == "ReEncrypt":
            answer = self._re_encrypt(parameters, principal, region)
        elif operation in _CRYPTO:
            answer = self._crypto(operation, parameters, principal, region)
        elif operation == "CreateAlias":
            return self._create_alias(parameters, principal, region)
        elif operation == "CreateGrant":
            answer = self._create_grant(parameters, principal, region)
        elif operation in _MANAGEMENT:
            more = {**request_tags(parameters), **bypass_conditions(parameters)}
            record = self._permitted(operation, operation, parameters["KeyId"], principal, region, {}, more)
            if operation == "PutKeyPolicy":
                self._check_policy(parameters, principal, region)
            return self.manage(operation, record, parameters)
        else:
            raise AwsError("UnknownOperationException", f"not offered here: {operation}")
        if parameters.get("DryRun") and self.knows_dry_runs:
            raise AwsError(
                "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.", 412
            )
        return answer

    # Cryptographic operations.

    def _crypto(self, operation: str, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        context = parameters.get("EncryptionContext", {})
        named = parameters.get("KeyId")
        if operation == "Decrypt" and named is None:
            # Without KeyId, KMS takes whichever key the blob names and the caller may use.
            named = self._owner(parameters["CiphertextBlob"]).arn
        record = self._permitted(operation, operation, str(named), principal, region, context)
        _check_usable(record)
        sent = {name: value for name, value in parameters.items() if name != "DryRun"}
        if operation == "Decrypt":
            self._check_owner(parameters["CiphertextBlob"], record)
        home = record.home
        answer = ask_moto_kms(home.account, home.region, operation, {**sent, "KeyId": home.moto})
        answer["KeyId"] = record.arn
        if operation == "Decrypt":
            answer["EncryptionAlgorithm"] = "SYMMETRIC_DEFAULT"
        answer["KeyMaterialId"] = self._material(answer, parameters, record)
        return answer

    def _re_encrypt(self, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        blob = parameters["CiphertextBlob"]
        before = parameters.get("SourceEncryptionContext", {})
        after = parameters.get("DestinationEncryptionContext", {})
        named = parameters.get("SourceKeyId") or self._owner(blob).arn
        target = parameters["DestinationKeyId"]
        same = self._resolved(named, principal, region) == self._resolved(target, principal, region)
        more = {"kms:reencryptonsamekey": ["true" if same else "false"]}
        source = self._permitted("ReEncrypt", "ReEncryptFrom", named, principal, region, before, more)
        destination = self._permitted("ReEncrypt", "ReEncryptTo", target, principal, region, after, more)
        _check_usable(source)
        _check_usable(destination)
        self._check_owner(blob, source)
        opened = ask_moto_kms(
            source.account,
            source.home.region,
            "Decrypt",
            {"CiphertextBlob": blob, "KeyId": source.home.moto, "EncryptionContext": before},
        )
        sealed = ask_moto_kms(
            destination.account,
            destination.home.region,
            "Encrypt",
            {"Plaintext": opened["Plaintext"], "KeyId": destination.home.moto, "EncryptionContext": after},
        )
        return {
            "CiphertextBlob": sealed["CiphertextBlob"],
            "SourceKeyId": source.arn,
            "KeyId": destination.arn,
            "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "SourceKeyMaterialId": self._materials.get(_digest(blob), source.home.material),
            "DestinationKeyMaterialId": self._material(sealed, {}, destination),
        }

    def _create_grant(self, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        """Note a grant. It gives nobody anything here."""
        record = self._permitted("CreateGrant", "CreateGrant", parameters["KeyId"], principal, region, {})
        _check_usable(record)
        if not (parameters.get("DryRun") and self.knows_dry_runs):
            self.grants.append(parameters)
        return {"GrantId": secrets.token_hex(32), "GrantToken": secrets.token_hex(32)}

    def _material(self, answer: dict[str, Any], parameters: dict[str, Any], record: KeyRecord) -> str:
        """Remember which material made a new blob; say which made an old one."""
        if "CiphertextBlob" in answer:
            self._materials[_digest(answer["CiphertextBlob"])] = record.home.material
            return record.home.material
        return self._materials.get(_digest(parameters["CiphertextBlob"]), record.home.material)

    def _owner(self, blob: str) -> KeyRecord:
        """Return the key that made a blob: moto's blobs start with the key's id."""
        key_id = base64.b64decode(blob)[:36].decode("ascii", "replace")
        for record in self._keys.values():
            if record.moto.endswith(f":key/{key_id}"):
                return record
        raise AwsError("InvalidCiphertextException")

    def _check_owner(self, blob: str, record: KeyRecord) -> None:
        if self._owner(blob).home is not record.home:
            raise AwsError(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            )

    # Who may.

    def _permitted(
        self,
        operation: str,
        action: str,
        named: str,
        principal: Principal,
        region: str,
        context: Mapping[str, str],
        more: Mapping[str, list[str]] | None = None,
    ) -> KeyRecord:
        arn = self._resolved(named, principal, region)
        record = self._keys.get(arn)
        conditions = {
            **self._conditions(principal, region, context),
            **(resource_tags(record.tags) if record else {}),
            **(more or {}),
        }
        question = Question(principal, f"kms:{action}", arn, conditions)
        same_account = principal.account == account_of(arn)
        if record is None and same_account:
            raise AwsError("NotFoundException", f"Key '{arn}' does not exist")
        if record is None or not (same_account or operation in _CROSS_ACCOUNT):
            raise _denied(question)
        if not self._authorise(question, record.policy):
            raise _denied(question)
        return record

    def _resolved(self, named: str, principal: Principal, region: str) -> str:
        if named.startswith("arn:") and ":key/" in named:
            if named.split(":")[3] != region:
                raise AwsError("NotFoundException", f"Invalid arn {named.split(':')[3]}")
            return named
        account = account_of(named) if named.startswith("arn:") else principal.account
        alias = named if named.startswith("arn:") else f"arn:aws:kms:{region}:{account}:{named}"
        if alias in self._aliases:
            return self._aliases[alias]
        arn = ask_moto_kms(account, region, "DescribeKey", {"KeyId": named})["KeyMetadata"]["Arn"]
        return str(arn)

    def _conditions(
        self, principal: Principal, region: str, context: Mapping[str, str] | None = None
    ) -> dict[str, list[str]]:
        return {
            "aws:requestedregion": [region],
            "aws:principalarn": [principal.identity],
            "aws:principalaccount": [principal.account],
            "kms:calleraccount": [principal.account],
            **encryption_conditions(context or {}),
        }

    # Management.

    def _create(self, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        conditions = {**self._conditions(principal, region), **creation_conditions(parameters)}
        # Tags that a new key is made with need the permission to tag, on keys in general.
        for action in ("CreateKey", "TagResource") if parameters.get("Tags") else ("CreateKey",):
            question = Question(principal, f"kms:{action}", _any_key(principal, region), conditions)
            if not self._may_create(question):
                raise _denied(question)
        if "Policy" in parameters:
            self._check_policy(parameters, principal, region)
        root = {"AWS": f"arn:aws:iam::{principal.account}:root"}
        default = {"Statement": [{"Effect": "Allow", "Principal": root, "Action": "kms:*", "Resource": "*"}]}
        policy = json.loads(parameters["Policy"]) if "Policy" in parameters else default
        record = self.create(principal.account, region, policy, parameters)
        return self.manage("DescribeKey", record, {"KeyId": record.arn})

    def _check_policy(self, parameters: Mapping[str, Any], principal: Principal, region: str) -> None:
        """Refuse a policy with a principal that is not there, or one that locks its author out.

        The check asks whether the author could do PutKeyPolicy again, by the new policy *and* by its own: a role whose
        account the policy names, but whose own policy lacks PutKeyPolicy, is refused. So say those who ran into it;
        AWS's documentation leaves it open, and the stricter reading is the one to test against.
        """
        policy = json.loads(parameters["Policy"])
        if not all(map(self._exists, named_principals(policy))):
            raise AwsError(
                "MalformedPolicyDocumentException", "Policy contains a statement with one or more invalid principals."
            )
        again = Question(
            principal, "kms:PutKeyPolicy", _any_key(principal, region), self._conditions(principal, region)
        )
        if not parameters.get("BypassPolicyLockoutSafetyCheck") and not self._authorise(again, policy):
            raise AwsError(
                "MalformedPolicyDocumentException",
                "The new key policy will not allow you to update the key policy in the future.",
            )

    def _create_alias(self, parameters: dict[str, Any], principal: Principal, region: str) -> dict[str, Any]:
        """Name a key: that has to be allowed on the alias, by an identity policy, and on the key."""
        alias = f"arn:aws:kms:{region}:{principal.account}:{parameters['AliasName']}"
        question = Question(principal, "kms:CreateAlias", alias, self._conditions(principal, region))
        if not self._may_create(question):
            raise _denied(question)
        record = self._permitted("CreateAlias", "CreateAlias", parameters["TargetKeyId"], principal, region, {})
        _check_manageable("CreateAlias", record)
        if alias in self._aliases:
            raise AwsError("AlreadyExistsException", f"An alias with the name {alias} already exists")
        self._aliases[alias] = record.arn
        return {}

    def manage(self, operation: str, record: KeyRecord, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Do a management operation that is permitted."""
        _check_manageable(operation, record)
        if record.origin != "AWS_KMS" and operation in _AUTOMATIC_ROTATION:
            raise AwsError("UnsupportedOperationException", f"{record.arn} origin is {record.origin}.")
        if record.primary is not None and operation in _OF_THE_PRIMARY:
            raise AwsError("UnsupportedOperationException", f"{record.arn} is a replica.")
        if operation == "DisableKey":
            record.state = "Disabled"
        elif operation == "EnableKey":
            record.state = "Enabled"
        elif operation == "ScheduleKeyDeletion":
            record.state = "PendingDeletion"
            record.deletion_at = time.time() + int(parameters.get("PendingWindowInDays", 30)) * _DAY
            return {"KeyId": record.arn, "DeletionDate": record.deletion_at, "KeyState": record.state}
        elif operation == "CancelKeyDeletion":
            record.state, record.deletion_at = "Disabled", None
            return {"KeyId": record.arn}
        elif operation == "EnableKeyRotation":
            record.rotation_days = _period(parameters)
        elif operation == "DisableKeyRotation":
            record.rotation_days = None
        elif operation == "RotateKeyOnDemand":
            _rotate(record, "ON_DEMAND")
            return {"KeyId": record.arn}
        elif operation == "TagResource":
            record.tags.update(_tags(parameters))
        elif operation == "ListResourceTags":
            return {"Tags": [{"TagKey": key, "TagValue": value} for key, value in record.tags.items()]}
        elif operation == "GetKeyRotationStatus":
            return _rotation_status(record)
        elif operation == "ListKeyRotations":
            return _rotations(record, parameters)
        elif operation == "ReplicateKey":
            return self._replicate(record, parameters)
        elif operation == "PutKeyPolicy":
            record.policy = json.loads(parameters["Policy"])
        elif operation == "GetKeyPolicy":
            return {"Policy": json.dumps(record.policy), "PolicyName": "default"}
        else:
            return self._forward(operation, record, parameters)
        return {}

    def _replicate(self, record: KeyRecord, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Make a related key in another region: the same id and material, a policy and a state of its own."""
        region = str(parameters["ReplicaRegion"])
        arn = record.arn.replace(f":{record.region}:", f":{region}:", 1)
        if not record.key_id.startswith("mrk-"):
            raise AwsError("UnsupportedOperationException", f"{record.arn} is not a multi-Region key.")
        if arn in self._keys:
            raise AwsError("AlreadyExistsException", f"{arn} exists")
        policy = json.loads(parameters["Policy"])
        made = KeyRecord(arn, record.account, region, policy, origin=record.origin, primary=record)
        self._keys[arn] = made
        record.replicas.append(made)
        return {"ReplicaKeyMetadata": self.manage("DescribeKey", made, {"KeyId": arn})["KeyMetadata"]}

    def _forward(self, operation: str, record: KeyRecord, parameters: Mapping[str, Any]) -> dict[str, Any]:
        home = record.home
        answer = ask_moto_kms(home.account, home.region, operation, {**parameters, "KeyId": home.moto})
        if operation == "DescribeKey":
            metadata = answer["KeyMetadata"]
            metadata["Arn"], metadata["KeyId"] = record.arn, record.key_id
            metadata["MultiRegion"] = record.key_id.startswith("mrk-")
            if metadata["MultiRegion"]:
                metadata["MultiRegionConfiguration"] = {
                    "MultiRegionKeyType": "PRIMARY" if record is home else "REPLICA",
                    "PrimaryKey": {"Arn": home.arn, "Region": home.region},
                    "ReplicaKeys": [{"Arn": each.arn, "Region": each.region} for each in home.replicas],
                }
            metadata["KeyState"] = record.state
            metadata["Enabled"] = record.state == "Enabled"
            metadata["KeyUsage"] = metadata.get("KeyUsage") or "ENCRYPT_DECRYPT"
            metadata["CurrentKeyMaterialId"] = record.home.material
            if record.deletion_at is not None:
                metadata["DeletionDate"] = record.deletion_at
        return answer


def _check_usable(record: KeyRecord) -> None:
    """Refuse cryptography with a key that is not enabled. An ordinary key that is "updating" is refused as
    well."""
    if record.state == "Disabled":
        raise AwsError("DisabledException", f"{record.arn} is disabled.")
    if record.state != "Enabled":
        raise AwsError("KMSInvalidStateException", f"{record.arn} is {_STATE_WORDS[record.state]}.")


def _check_manageable(operation: str, record: KeyRecord) -> None:
    gone = record.state in _GONE
    if operation == "CancelKeyDeletion" and not gone:
        raise AwsError("KMSInvalidStateException", f"{record.arn} is not pending deletion.")
    if gone and operation in {
        "DisableKey",
        "EnableKey",
        "ScheduleKeyDeletion",
        "EnableKeyRotation",
        "DisableKeyRotation",
        "RotateKeyOnDemand",
        "TagResource",
        "CreateAlias",
    }:
        raise AwsError("KMSInvalidStateException", f"{record.arn} is {_STATE_WORDS[record.state]}.")
    if record.state == "Disabled" and operation in {
        "EnableKeyRotation",
        "DisableKeyRotation",
        "RotateKeyOnDemand",
    }:
        raise AwsError("DisabledException", f"{record.arn} is disabled.")


def _period(parameters: Mapping[str, Any]) -> int:
    days = int(parameters.get("RotationPeriodInDays", 365))
    if not 90 <= days <= 2560:
        raise AwsError("ValidationException", "RotationPeriodInDays must be between 90 and 2560")
    return days


def _tags(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {tag["TagKey"]: tag["TagValue"] for tag in parameters.get("Tags", ())}


def _any_key(principal: Principal, region: str) -> str:
    return f"arn:aws:kms:{region}:{principal.account}:key/*"


def _rotation_status(record: KeyRecord) -> dict[str, Any]:
    # Suspended while the key waits for its deletion; a cancelled deletion brings it back.
    if record.rotation_days is None or record.state in _GONE:
        return {"KeyId": record.arn, "KeyRotationEnabled": False}
    return {
        "KeyId": record.arn,
        "KeyRotationEnabled": True,
        "RotationPeriodInDays": record.rotation_days,
        "NextRotationDate": time.time() + record.rotation_days * _DAY,
    }


def _rotate(record: KeyRecord, kind: str) -> None:
    record.material = secrets.token_hex(32)
    record.rotations.append({"KeyMaterialId": record.material, "RotationDate": time.time(), "RotationType": kind})


def _rotations(record: KeyRecord, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Answer with a page of the rotations, oldest first, and with what the first material was if that is wanted."""
    if record.origin not in ("AWS_KMS", "EXTERNAL"):
        raise AwsError("UnsupportedOperationException", f"{record.arn} origin is {record.origin}.")
    home, first = record.home, []
    if parameters.get("IncludeKeyMaterial") == "ALL_KEY_MATERIAL":
        first = [{"KeyMaterialId": home.first_material}]
    found = [{"KeyId": record.arn, **each} for each in [*first, *home.rotations]]
    for each in found:
        is_current = each["KeyMaterialId"] == home.material
        each["KeyMaterialState"] = "CURRENT" if is_current else "NON_CURRENT"
    begin, limit = int(parameters.get("Marker") or 0), int(parameters.get("Limit", PAGE))
    page: dict[str, Any] = {"Rotations": found[begin : begin + limit], "Truncated": len(found) > begin + limit}
    if page["Truncated"]:
        page["NextMarker"] = str(begin + limit)
    return page


def _denied(question: Question) -> AwsError:
    return AwsError(
        "AccessDeniedException",
        f"User: {question.principal.arn} is not authorized to perform: {question.action} on resource: "
        f"{question.resource} because no resource-based policy allows the {question.action} action",
    )


def _digest(blob: str) -> bytes:
    return hashlib.sha256(base64.b64decode(blob)).digest()
