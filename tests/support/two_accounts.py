"""The handed-over policies in the strict KMS: a vendor's account, a customer's, and what goes and what does not.

`TwoAccounts` installs the documents where AWS has them: key policy, trust policies, identity policies. `broken` names
the tasks of ours that fail, `open_doors` the things that must be denied and are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from botocore.config import Config
from botocore.exceptions import ClientError
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import StrictKms

from pii_vault.context import Identity, kms_context
from pii_vault.errors import ConfigurationError, KmsDeniedError, PiiVaultError
from pii_vault.kms import KmsKey
from pii_vault.onboarding import policies
from pii_vault.onboarding.arrangement import Arrangement

Documents = dict[str, dict[str, Any]]
Probe = Callable[[], object]

MAKERS: Final[Mapping[str, Callable[[Arrangement], dict[str, Any]]]] = {
    "key": policies.key_policy,
    "access trust": policies.access_role_trust,
    "provisioning trust": policies.provisioning_role_trust,
    "provisioning permissions": policies.provisioning_role_permissions,
    "runtime": policies.runtime_identity,
    "rotation": policies.rotation_identity,
    "provisioning": policies.provisioning_identity,
}


def every_document(arrangement: Arrangement) -> Documents:
    """The documents that this arrangement has, by where they go."""
    found: Documents = {}
    for name, make in MAKERS.items():
        with suppress(ConfigurationError):
            found[name] = make(arrangement)
    return found


class TwoAccounts:
    """A customer and we, with nothing but what the documents of an arrangement grant.

    With `existing`, the key was there before and its policy has only gained our statements.
    """

    def __init__(self, kms: StrictKms, arrangement: Arrangement, *, existing: bool = False) -> None:
        self.kms = kms
        self.arrangement = arrangement
        self.existing = existing
        self.admin = f"arn:aws:iam::{arrangement.account}:user/admin"
        self.stranger = arrangement.ours.runtime.replace("role/", "role/another-")
        kms.add_identity(self.admin, ALLOW_EVERYTHING)
        kms.add_identity(self.stranger, ALLOW_EVERYTHING)
        self._install_roles(every_document(arrangement))
        self.arn = self._make_key()
        self.arrangement = replace(arrangement, key_arn=self.arn)
        self.documents = every_document(self.arrangement)
        if existing:
            self.documents["key"] = self.kms.key_policy(self.arn)
        self.other_key = kms.create_key(arrangement.account, policy=kms.key_policy(self.arn))
        self.install({})
        identity = Identity(arrangement.app_uid, arrangement.tenant_uid, arrangement.keyset_id)
        self.context = dict(kms_context(identity, "kek", 1))
        self.blob = self.provider(arrangement.ours.rotation).generate(self.key, self.context).wrapped.blob

    @property
    def key(self) -> KmsKey:
        if self.arrangement.direct:
            return KmsKey(self.arn)
        return KmsKey(self.arn, self.arrangement.access_role, self.arrangement.external_id)

    # The documents.

    def install(self, instead: Documents, *, wide: bool = False) -> None:
        """Put the documents in force, some of them replaced.

        Args:
            instead: Documents to take instead of the arrangement's.
            wide: Let everybody's own policy allow everything, as if an administrator had been careless.
        """
        documents = {**self.documents, **instead}
        self.kms.put_key_policy(self.arn, documents["key"])
        self.kms.set_state(self.arn, "Enabled")
        self._install_roles(documents, wide=wide)

    def _install_roles(self, documents: Documents, *, wide: bool = False) -> None:
        ours, kms = self.arrangement.ours, self.kms
        for name, arn in (("runtime", ours.runtime), ("rotation", ours.rotation), ("provisioning", ours.provisioning)):
            if arn is not None:
                kms.add_identity(arn, ALLOW_EVERYTHING if wide else documents.get(name))
        if "access trust" in documents:
            assert self.arrangement.access_role is not None
            policy = ALLOW_EVERYTHING if wide else None
            kms.register_role(
                self.arrangement.access_role, trust_policy=documents["access trust"], identity_policy=policy
            )
        if "provisioning trust" in documents:
            assert self.arrangement.provisioning_role is not None
            kms.register_role(
                self.arrangement.provisioning_role,
                trust_policy=documents["provisioning trust"],
                identity_policy=documents["provisioning permissions"],
            )

    def _make_key(self) -> str:
        """Let the customer's administrator make the key, or change the policy of one that it has."""
        owner = self.client(self.admin)
        if not self.existing:
            made = owner.create_key(Policy=json.dumps(policies.key_policy(self.arrangement)))
            return str(made["KeyMetadata"]["Arn"])
        arn = str(owner.create_key()["KeyMetadata"]["Arn"])
        policy = json.loads(owner.get_key_policy(KeyId=arn)["Policy"])
        policy["Statement"] += policies.key_statements(self.arrangement)
        owner.put_key_policy(KeyId=arn, Policy=json.dumps(policy))
        return arn

    # Who speaks.

    def provider(self, identity: str) -> Any:
        return self.kms.provider(identity, attempts=1)

    def client(self, identity: str, service: str = "kms", **options: Any) -> Any:
        config = Config(retries={"total_max_attempts": 1}, read_timeout=5)
        return self.kms.session(identity).client(
            service, endpoint_url=self.kms.endpoint_url, **{"config": config, **options}
        )

    def assumed(self, identity: str, role: str | None, *, region: str = "eu-west-1", **external: str) -> Any:
        """A KMS client as a role that an identity has assumed."""
        given = external or {"ExternalId": self.arrangement.external_id}
        given = {name: value for name, value in given.items() if value}
        answer = self.client(identity, "sts").assume_role(RoleArn=role, RoleSessionName="test", **given)["Credentials"]
        return self.client(
            identity,
            region_name=region,
            aws_access_key_id=answer["AccessKeyId"],
            aws_secret_access_key=answer["SecretAccessKey"],
            aws_session_token=answer["SessionToken"],
        )

    def user_of_the_key(self) -> Any:
        """A KMS client as whoever uses the key for us: the access role, or our rotation role."""
        if self.arrangement.direct:
            return self.client(self.arrangement.ours.rotation)
        return self.assumed(self.arrangement.ours.rotation, self.arrangement.access_role)

    # What must go.

    def broken(self) -> list[str]:
        """Name our tasks that do not work."""
        return [name for name, task in self._tasks().items() if not _works(task)]

    def _tasks(self) -> dict[str, Probe]:
        runtime, rotation = (
            self.provider(one) for one in (self.arrangement.ours.runtime, self.arrangement.ours.rotation)
        )
        key, blob, context = self.key, self.blob, self.context
        tasks: dict[str, Probe] = {
            "unwrap at runtime": lambda: runtime.unwrap(key, blob, context),
            "generate": lambda: rotation.generate(key, context),
            "unwrap to rotate": lambda: rotation.unwrap(key, blob, context),
            "check an unwrap": lambda: rotation.check_unwrap(key, blob, context),
            "rewrap": lambda: rotation.rewrap(key, key, blob, context),
            "check a rewrap": lambda: rotation.check_rewrap(key, key, blob, context),
            "describe": lambda: rotation.describe(key),
            "rotation period": lambda: rotation.rotation_period(key),
            "administer": lambda: self.client(self.admin).put_key_policy(
                KeyId=self.arn, Policy=json.dumps(self.kms.key_policy(self.arn))
            ),
        }
        if not self.arrangement.direct:
            tasks["check the role"] = lambda: rotation.check_role(key)
            tasks["list rotations"] = lambda: self.user_of_the_key().list_key_rotations(KeyId=self.arn)
            other = replace(key, arn=self.other_key)
            tasks["rewrap to the customer's next key"] = lambda: rotation.rewrap(key, other, blob, context)
        return tasks

    # What must not.

    def open_doors(self) -> list[str]:
        """Name what must be denied and is not."""
        return [name for name, probe in self._probes().items() if not _denied(probe)]

    def leaks(self) -> bool:
        """Tell whether there is any open door."""
        return any(not _denied(probe) for probe in self._probes().values())

    def _probes(self) -> dict[str, Probe]:
        return {
            **(self._direct_probes() if self.arrangement.direct else self._role_probes()),
            **self._stranger_probes(),
            **self._context_probes(),
            **({} if self.existing else self.management_probes()),
        }

    def _context_probes(self) -> dict[str, Probe]:
        probes: dict[str, Probe] = {}
        runtime, rotation = (
            self.provider(one) for one in (self.arrangement.ours.runtime, self.arrangement.ours.rotation)
        )
        for what, context in wrong_contexts(self.context).items():
            probes[f"generate: {what}"] = lambda c=context: rotation.generate(self.key, c)
            probes[f"unwrap: {what}"] = lambda c=context: runtime.unwrap(self.key, self.blob, c)
            probes[f"unwrap to rotate: {what}"] = lambda c=context: rotation.unwrap(self.key, self.blob, c)
            probes[f"rewrap: {what}"] = lambda c=context: rotation.rewrap(self.key, self.key, self.blob, c)
            probes[f"rewrap into: {what}"] = lambda c=context: self._re_encrypted_into(c)
        return probes

    def _re_encrypted_into(self, context: Mapping[str, str]) -> object:
        return self.user_of_the_key().re_encrypt(
            CiphertextBlob=self.blob,
            SourceKeyId=self.arn,
            SourceEncryptionContext=self.context,
            DestinationKeyId=self.arn,
            DestinationEncryptionContext=context,
        )

    def _role_probes(self) -> dict[str, Probe]:
        role, ours = self.arrangement.access_role, self.arrangement.ours
        elsewhere = f"{role}-of-another-customer"
        self.kms.register_role(elsewhere, trusts=[ours.runtime, ours.rotation])
        own = KmsKey(self.arn)
        return {
            "assume without ExternalId": lambda: self.assumed(ours.runtime, role, ExternalId=""),
            "assume with a wrong ExternalId": lambda: self.assumed(ours.runtime, role, ExternalId="another"),
            "assume as another role of ours": lambda: self.assumed(self.stranger, role),
            "assume as somebody of the customer's": lambda: self.assumed(self.admin, role),
            "runtime assumes another role": lambda: self.assumed(ours.runtime, elsewhere, ExternalId=""),
            "rotation assumes another role": lambda: self.assumed(ours.rotation, elsewhere, ExternalId=""),
            "use the key without the role": lambda: self.provider(ours.runtime).unwrap(own, self.blob, self.context),
        }

    def _direct_probes(self) -> dict[str, Probe]:
        runtime, context = self.client(self.arrangement.ours.runtime), {"EncryptionContext": self.context}
        return {
            "runtime generates": lambda: runtime.generate_data_key(KeyId=self.arn, NumberOfBytes=32, **context),
            "runtime describes": lambda: runtime.describe_key(KeyId=self.arn),
            "runtime rewraps": lambda: self.provider(self.arrangement.ours.runtime).rewrap(
                self.key, self.key, self.blob, self.context
            ),
        }

    def _stranger_probes(self) -> dict[str, Probe]:
        """Those whose own policy allows everything, but whom the key policy does not know."""
        context = {"KeyId": self.arn, "EncryptionContext": self.context}
        who = {"another role of ours": self.stranger}
        if not self.existing:
            who["somebody of the customer's"] = self.admin
        probes: dict[str, Probe] = {}
        for name, identity in who.items():
            kms = self.client(identity)
            probes[f"{name} generates"] = lambda kms=kms: kms.generate_data_key(NumberOfBytes=32, **context)
            probes[f"{name} unwraps"] = lambda kms=kms: kms.decrypt(CiphertextBlob=self.blob, **context)
        return probes

    def management_probes(self) -> dict[str, Probe]:
        """What nobody of ours may, whatever else is allowed to us."""
        user, arn = self.user_of_the_key(), self.arn
        probes: dict[str, Probe] = {
            "Encrypt": lambda: user.encrypt(KeyId=arn, Plaintext=b"x", EncryptionContext=self.context),
            "CreateGrant": lambda: user.create_grant(KeyId=arn, GranteePrincipal=self.stranger, Operations=["Decrypt"]),
            "PutKeyPolicy": lambda: user.put_key_policy(KeyId=arn, Policy=json.dumps(self.kms.key_policy(arn))),
            "EnableKeyRotation": lambda: user.enable_key_rotation(KeyId=arn),
            "DisableKeyRotation": lambda: user.disable_key_rotation(KeyId=arn),
            "RotateKeyOnDemand": lambda: user.rotate_key_on_demand(KeyId=arn),
            "TagResource": lambda: user.tag_resource(KeyId=arn, Tags=[{"TagKey": "a", "TagValue": "b"}]),
            "CreateAlias": lambda: user.create_alias(AliasName=f"alias/x-{arn[-12:]}", TargetKeyId=arn),
            "DisableKey": lambda: user.disable_key(KeyId=arn),
            "EnableKey": lambda: user.enable_key(KeyId=arn),
            "ScheduleKeyDeletion": lambda: user.schedule_key_deletion(KeyId=arn),
            "CancelKeyDeletion": lambda: user.cancel_key_deletion(KeyId=arn),
        }
        return probes


def wrong_contexts(context: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Encryption contexts that a key of this tenant must never be used with."""
    other = {
        "another tenant": {**context, "pii-vault:tenant": "f" * 32},
        "another application": {**context, "pii-vault:app": "f" * 32},
        "another format": {**context, "pii-vault:format": "2"},
        "upper case": {**context, "pii-vault:tenant": context["pii-vault:tenant"].upper()},
        "one entry more": {**context, "more": "x"},
        "nothing": {},
    }
    missing = {f"without {name}": {key: context[key] for key in context if key != name} for name in context}
    return {**other, **missing}


def _works(task: Probe) -> bool:
    try:
        task()
    except (PiiVaultError, ClientError):
        return False
    return True


def _denied(probe: Probe) -> bool:
    """Tell whether a probe is denied. A refusal for another reason is none: somebody else's request may pass."""
    try:
        probe()
    except KmsDeniedError:
        return True
    except ClientError as error:
        return error.response["Error"]["Code"] in {"AccessDenied", "AccessDeniedException"}
    except PiiVaultError:
        return False
    return False
