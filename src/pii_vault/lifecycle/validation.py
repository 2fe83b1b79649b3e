"""Check a key before it is used, and at any time afterwards: each check has a name and says what it found.

A new version is PRE_ACTIVE until all of them pass. They change nothing. The customer's KMS sees three calls: one that
describes its key, one that unwraps the KEK, and one with a wrong encryption context, which it must refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from .. import primitives
from ..context import kms_context
from ..errors import KeyStateError, KeyValidationError, KmsCorruptError, KmsDeniedError, OpenError, PiiVaultError
from ..hierarchy import Kek, active_record
from ..keyring import kms_key
from ..keys import KEK_PURPOSE, KeyRecord, KeyState, Policy, Purpose, Secret
from ..keystore import Snapshot, SupersededError
from ..kms import KmsKey, KmsKeyDescription
from ..sealing import Keyset
from .parts import Parts, decided

_CANARY: Final = b"pii_vault canary"
_CANARY_CONTEXT: Final = "pii_vault.canary"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found.

    Attributes:
        check: Its name.
        passed: True, False, or None when it could not be made because an earlier one failed.
        finding: One sentence.
        error: What was raised, where it failed.
    """

    check: str
    passed: bool | None
    finding: str
    error: PiiVaultError | None = field(default=None, compare=False, repr=False)


def validate(parts: Parts, name: str) -> list[Outcome]:
    """Make every check on a tenant's ACTIVE data key, or on the one that waits for its activation; change nothing.

    Raises:
        TenantNotFoundError, KeyStoreError: there is nothing to check.
        KeyStateError: the tenant has no data key that seals or will.
    """

    def attempt() -> Examination:
        snapshot = parts.store.load(name)
        record = snapshot.active or snapshot.pending
        if record is None:
            raise KeyStateError(f"tenant {name!r} has no active data key", hint="rotate the tenant to make one")
        again = parts.store.load(name)
        if again.chain != snapshot.chain:
            raise SupersededError  # a change that is written down is no fault
        return Examination(parts, again, record)

    return decided(name, attempt).outcomes()


class Examination:
    """The checks on one key record.

    Args:
        parts: What they are made with.
        snapshot: The tenant's records as they were read, after the record under test was known.
        record: The record under test, as it ought to be in the snapshot.
        kek: The tenant's KEK, if a live call of this same operation has just unwrapped it.
    """

    def __init__(self, parts: Parts, snapshot: Snapshot, record: KeyRecord, kek: Kek | None = None) -> None:
        self._parts = parts
        self._snapshot = snapshot
        self._record = record
        self._kek = kek
        self._description: KmsKeyDescription | None = None
        self._key: Secret | None = None

    def require(self) -> Kek:
        """Make every check and return the KEK; raise at the first that fails.

        Raises:
            KmsError: the KMS refuses or does not answer.
            KeyRecordError, KeyValidationError: a record is not what it should be.
        """
        for _, check in self._checks():
            check()
        return self._unwrapped()

    def outcomes(self) -> list[Outcome]:
        """Make every check that can be made, and say what each found; also whether the role asks for its ExternalId.

        That is no reason not to rotate, and so none of `require`.
        """
        found: list[Outcome] = []
        for name, check in [*self._checks(), ("kms-role", self._role)]:
            try:
                found.append(Outcome(name, True, check()))
            except _NotMadeError as reason:
                found.append(Outcome(name, None, str(reason)))
            except PiiVaultError as error:
                found.append(Outcome(name, False, str(error), error))
        return found

    def _checks(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("kms-key-exists", self._exists),
            ("kms-key-enabled", self._enabled),
            ("kms-key-usage", self._usage),
            ("kms-key-owner", self._owner),
            ("kms-unwrap", self._unwraps),
            ("kms-wrong-context", self._refuses_wrong_context),
            ("record-stored", self._stored),
            ("version-follows", self._version_follows),
            ("key-commitment", self._commitment),
            ("activation-proof", self._activation),
            ("key-is-new", self._is_new),
            ("canary", self._canary),
        ]

    # What the customer's KMS says.

    def _exists(self) -> str:
        self._snapshot.tenant.policy.check(self._arn)
        self._description = self._parts.kms.describe(kms_key(self._snapshot.tenant, self._snapshot.kek))
        return f"the KMS knows {self._arn}"

    def _enabled(self) -> str:
        return _check_enabled(self._tenant, self._described())

    def _usage(self) -> str:
        return _check_usage(self._tenant, self._described())

    def _owner(self) -> str:
        return _check_owner(self._tenant, self._described(), self._snapshot.tenant.policy)

    def _unwraps(self) -> str:
        if self._kek is None:
            self._kek = self._parts.keyring.unwrap_kek(self._snapshot.tenant, self._snapshot.kek)
        return f"the KMS unwraps KEK generation {self._kek.generation}, and its commitment matches"

    def _refuses_wrong_context(self) -> str:
        tenant, kek = self._snapshot.tenant, self._snapshot.kek
        wrong = kms_context(tenant.identity, KEK_PURPOSE, kek.generation + 1)
        try:
            # The answer, if there is one, is thrown away unseen.
            self._parts.kms.unwrap(kms_key(tenant, kek), kek.wrapped, wrong)
        except (KmsDeniedError, KmsCorruptError) as refusal:
            return f"the KMS refuses a wrong encryption context ({refusal.code})"
        raise self._failed(
            "kms-wrong-context",
            f"KMS key {self._arn} unwraps tenant {tenant.name!r}'s KEK under a wrong encryption context",
            "this is not AWS KMS, or not as it should be: do not use it",
        )

    def _role(self) -> str:
        key = kms_key(self._snapshot.tenant, self._snapshot.kek)
        self._parts.kms.check_role(key)
        if key.role_arn is None:
            return "no role is assumed"
        return f"{key.role_arn} " + ("wants its ExternalId" if key.external_id else "is assumed without an ExternalId")

    # What the key store says.

    def _stored(self) -> str:
        record = self._record
        found = [key for key in self._snapshot.keys if (key.purpose, key.version) == (record.purpose, record.version)]
        if found != [self._record]:
            raise self._failed(
                "record-stored",
                f"{self._name} does not read from the key store as it was written",
                "the database changes what it stores, or somebody changed the record",
            )
        return f"{self._name} reads from the key store as it was written"

    def _version_follows(self) -> str:
        versions = [key.version for key in self._snapshot.data_keys]
        earlier = [version for version in versions if version < self._record.version]
        previous = self._record.previous_version
        if self._record.version != (previous or 0) + 1 or earlier != list(range(1, self._record.version)):
            raise self._failed(
                "version-follows",
                f"{self._name} does not follow the version before it",
                "a key record is missing: restore the key store from a backup",
            )
        return f"version {self._record.version} follows version {previous}" if previous else "version 1 is the first"

    # What the keys themselves say.

    def _commitment(self) -> str:
        self._key = self._unwrapped().unwrap(self._record)
        return f"{self._name} is authentic, and its commitment matches"

    def _activation(self) -> str:
        kek = self._unwrapped()
        if self._record.state is KeyState.ACTIVE:
            active_record(kek, self._snapshot.keys, Purpose.DATA)
            return f"{self._name} was made active by a holder of the KEK"
        # Not active yet: a proof can be made, holds for this version, and for no other.
        mac = kek.activation_mac(self._record.purpose, self._record.version, 1, self._record.commitment)
        proven = replace(self._record, epoch=1, activation_mac=mac)
        kek.check_activation(proven)
        return f"an activation of {self._name} can be proven"

    def _is_new(self) -> str:
        key, kek, compared = self._unwrapped_key(), self._unwrapped(), 0
        for other in self._snapshot.data_keys:
            if other.version == self._record.version or other.state is KeyState.DESTROYED:
                continue
            compared += 1
            if primitives.equal(key.reveal(), kek.unwrap(other).reveal()):
                raise self._failed(
                    "key-is-new",
                    f"{self._name} is the same key as version {other.version}",
                    "the KMS gave the same bytes twice: do not use it",
                )
        return f"the key differs from every other: {compared} compared"

    def _canary(self) -> str:
        identity, version = self._snapshot.tenant.identity, self._record.version
        keys = {version: self._unwrapped_key()}
        keyset = Keyset(self._snapshot.tenant.name, identity, version, keys, deadline=0.0, wall_deadline=0.0)
        sealed = keyset.seal(_CANARY_CONTEXT, 1, _CANARY)
        try:
            opens = keyset.open_(_CANARY_CONTEXT, sealed) == (1, _CANARY)
        except OpenError:
            opens = False
        if _CANARY in sealed or not opens:
            raise self._failed("canary", f"{self._name} does not open what it sealed", "do not use it")
        return f"{self._name} seals and opens"

    # What the checks share.

    @property
    def _tenant(self) -> str:
        return self._snapshot.tenant.name

    @property
    def _arn(self) -> str:
        return self._snapshot.kek.kms_key_arn

    @property
    def _name(self) -> str:
        return f"{self._record.purpose} key version {self._record.version}"

    def _failed(self, check: str, message: str, hint: str) -> KeyValidationError:
        return _failure(check, self._tenant, message, hint)

    def _described(self) -> KmsKeyDescription:
        if self._description is None:
            raise _NotMadeError("not checked: the KMS does not describe its key")
        return self._description

    def _unwrapped(self) -> Kek:
        if self._kek is None:
            raise _NotMadeError("not checked: the KEK could not be unwrapped")
        return self._kek

    def _unwrapped_key(self) -> Secret:
        if self._key is None:
            raise _NotMadeError("not checked: the key could not be unwrapped")
        return self._key


class _NotMadeError(Exception):
    """A check needs what an earlier one did not get."""


def check_kms_key(describe: Callable[[KmsKey], KmsKeyDescription], tenant: str, key: KmsKey) -> KmsKeyDescription:
    """Refuse a KMS key that a tenant's KEK cannot be put under; return what the KMS says about it.

    Raises:
        KeyValidationError: it is not enabled, or of another kind.
        KmsError: the KMS does not say.
    """
    described = describe(key)
    _check_enabled(tenant, described)
    _check_usage(tenant, described)
    _check_owner(tenant, described, Policy.for_key(key.arn))
    return described


def _check_enabled(tenant: str, described: KmsKeyDescription) -> str:
    if described.state != "Enabled":
        raise _failure(
            "kms-key-enabled",
            tenant,
            f"KMS key {described.arn} is {described.state}",
            "its owner enables it, or cancels its deletion",
        )
    return "the KMS key is enabled"


def _check_usage(tenant: str, described: KmsKeyDescription) -> str:
    if (described.usage, described.spec) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
        raise _failure(
            "kms-key-usage",
            tenant,
            f"KMS key {described.arn} is for {described.usage} with {described.spec}",
            "a symmetric key for ENCRYPT_DECRYPT is needed: SYMMETRIC_DEFAULT",
        )
    return "the KMS key is symmetric and encrypts"


def _check_owner(tenant: str, described: KmsKeyDescription, policy: Policy) -> str:
    if (described.account, described.region) != (policy.kms_account, policy.kms_region):
        raise _failure(
            "kms-key-owner",
            tenant,
            f"KMS key {described.arn} belongs to account {described.account} in {described.region}, "
            f"not to {policy.kms_account} in {policy.kms_region}",
            "find out who changed the key's address; a tenant is moved with `pii-vault rewrap`",
        )
    return f"account {policy.kms_account}, region {policy.kms_region}, as expected"


def _failure(check: str, tenant: str, message: str, hint: str) -> KeyValidationError:
    return KeyValidationError(f"tenant {tenant!r}: {message}", check=check, hint=hint)
