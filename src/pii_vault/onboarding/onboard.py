"""The steps of an onboarding: each is written down when it is done, and whoever comes later goes on from there.

Begun: identity and ExternalId are made and stored, since policies name them. Handed over: the customer has what it is
to set up. Made: the KMS key is known. Proven: what has to work works and what has to be denied is denied. Registered:
the tenant has keys under its KMS key.

Nothing is made twice that the customer would see twice: a key's ARN is stored before anything else is done with it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from .. import primitives
from ..context import Identity
from ..doctor.contexts import Contexts
from ..doctor.findings import Finding
from ..doctor.patience import Patience
from ..doctor.probes import probe_key
from ..errors import KeyStoreError, KmsDeniedError, OnboardingError, TenantNotFoundError
from ..keyring import check_in_use
from ..keys import Policy, TenantRecord
from ..keystore import OnboardingRecord, OnboardingStep, Way
from ..kms import KmsKey
from ..lifecycle import registration, rewrap
from ..lifecycle.parts import Parts
from .arrangement import Arrangement, Ours
from .documents import Document, documents
from .policies import TENANT_TAG, key_policy

EXTERNAL_ID_BYTES: Final = 24
"""192 random bits: nobody guesses another tenant's."""

_ARRANGED: Final = (
    *("way", "direct", "kms_partition", "kms_account", "kms_region", "kms_key_arn", "rotation_days"),
    *("runtime_role", "rotation_role", "provisioning_role"),
)
"""What may be arranged anew. The identity and the ExternalId may not: the customer's policies name them."""


class KeyMaker(Protocol):
    """Who makes a KMS key in the customer's account (`kms.aws_provisioning`)."""

    def create_key(self, policy: str, description: str, tags: dict[str, str]) -> str:
        """Make a key and return its ARN."""
        ...

    def name_key(self, arn: str, alias: str) -> None:
        """Give a key an alias, unless it has it already."""
        ...

    def rotate_key(self, arn: str, days: int) -> None:
        """Let the KMS rotate a key every so many days."""
        ...


class Onboarding:
    """One customer's way to its first key.

    Args:
        parts: What a vault works with.
        tenant: The tenant's name.
    """

    def __init__(self, parts: Parts, tenant: str) -> None:
        self._parts: Final = parts
        self.tenant: Final = tenant

    def is_begun(self) -> bool:
        """Say whether there is anything to go on with."""
        return self._parts.store.onboardings.load(self.tenant) is not None

    def arrangement(self) -> Arrangement:
        """Return what is arranged."""
        return self._arrangement(self.record())

    def record(self) -> OnboardingRecord:
        """Return how far it is.

        Raises:
            OnboardingError: it was not begun.
        """
        found = self._parts.store.onboardings.load(self.tenant)
        if found is None:
            raise OnboardingError(
                f"the onboarding of tenant {self.tenant!r} was not begun",
                hint=f"pii-vault onboard {self.tenant} --key ARN, or --account ID --region REGION",
            )
        return found

    def begin(
        self,
        *,
        way: Way,
        account: str,
        region: str,
        ours: Ours,
        key_arn: str | None = None,
        direct: bool = False,
        rotation_days: int = 365,
        partition: str = "aws",
    ) -> OnboardingRecord:
        """Arrange it, or arrange it anew while the tenant is not registered; identity and ExternalId stay.

        Args:
            way: Who makes the KMS key.
            account: The customer's AWS account, 12 digits.
            region: The region of the KMS key.
            ours: Our own roles.
            key_arn: The KMS key, if it is known.
            direct: Whether our own roles use the key as they are, and none is assumed.
            rotation_days: How often AWS shall rotate the KMS key, 90 to 2560 days.
            partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.

        Raises:
            ConfigurationError: something of it cannot be arranged.
            OnboardingError: the tenant has keys under a customer's KMS key already.
            PiiEncryptionDisabledError, TenantSuspendedError: the tenant is registered and not in use.
        """
        known = self._parts.store.onboardings.load(self.tenant)
        identity, external_id = self._identity(known)
        wanted = Arrangement(
            self.tenant,
            identity.app_uid,
            identity.tenant_uid,
            identity.keyset_id,
            way,
            account,
            region,
            external_id,
            ours,
            key_arn,
            direct,
            rotation_days,
            partition,
        )
        if known is not None and arrangement_of(known, identity.app_uid) == wanted:
            return known
        fresh = self._recorded(wanted)
        if known is None:
            return self._parts.store.onboardings.begin(fresh)
        return self._advance(known, OnboardingStep.BEGUN, **{name: getattr(fresh, name) for name in _ARRANGED})

    def documents(self) -> tuple[Document, ...]:
        """Return what the customer is handed, and what our own side needs; the step is written down."""
        record = self.record()
        found = documents(self._arrangement(record))
        if record.step is OnboardingStep.BEGUN:
            try:
                self._advance(record, OnboardingStep.HANDED_OVER)
            except KeyStoreError:
                if self.record().step is OnboardingStep.BEGUN:
                    raise
                # somebody else hands over the same
        return found

    def share_key(self, arn: str) -> OnboardingRecord:
        """Take the ARN of the key that the customer has made.

        Raises:
            ConfigurationError: it is not a key of the arranged account and region.
            OnboardingError: the tenant is registered, with another key or with this one.
        """
        record = self._unfinished()
        replace(self._arrangement(record), key_arn=arn)  # checks it
        return self._advance(record, OnboardingStep.MADE, kms_key_arn=arn)

    def make_key(self, maker: KeyMaker, *, wait: float = 0.0) -> OnboardingRecord:
        """Make the key in the customer's account: with its policy, its name, and AWS's own rotation.

        Args:
            maker: Who makes it.
            wait: For how many seconds to try again what the role may do with a key that bears our tag: AWS takes up to
                five minutes to weigh a new tag (AWS KMS developer guide, "Using tags to control access to KMS keys").

        Raises:
            KmsError: the role may not do it, or does not exist yet.
            OnboardingError: the tenant is registered.
        """
        tagged = partial(_once_allowed, wait)
        record = self._unfinished()
        arranged = self._arrangement(record)
        arn = record.kms_key_arn
        if arn is None:
            arn = maker.create_key(
                json.dumps(key_policy(arranged)),
                f"pii_vault, tenant {arranged.tenant_uid.hex()}",
                {TENANT_TAG: arranged.tenant_uid.hex()},
            )
            record = self._remember_key(record, arn)  # before anything else can fail
        replace(arranged, key_arn=arn)  # it is where it was to be
        tagged(lambda: maker.name_key(arn, arranged.alias))
        tagged(lambda: maker.rotate_key(arn, arranged.rotation_days))
        return self._advance(record, OnboardingStep.MADE, kms_key_arn=arn)

    def prove(self, patience: Patience | None = None) -> list[Finding]:
        """Try what has to work and what has to be denied; where all is well, the step is written down.

        Args:
            patience: For how long to ask again while AWS may not have heard of new policies yet; by default not at all.
        """
        record = self.record()
        contexts = Contexts.of(self.tenant, self._identity_of(record))
        findings = probe_key(self._parts.kms, self._address(record), contexts, patience=patience)
        proven = findings and not any(each.verdict.is_bad for each in findings)
        if proven and record.step is not OnboardingStep.REGISTERED:
            self._advance(record, OnboardingStep.PROVEN)
        return findings

    def register(self, *, shared_key: bool = False) -> TenantRecord:
        """Give the tenant keys under its KMS key: its first ones, or new ones in place of those under the platform's.

        Raises:
            OnboardingError: it was not proven.
            TenantExistsError, ConfigurationError, KeyValidationError, KmsError: as `Vault.add_tenant`.
        """
        record = self.record()
        if record.step not in (OnboardingStep.PROVEN, OnboardingStep.REGISTERED):
            raise OnboardingError(f"the KMS key of tenant {self.tenant!r} was not proven", hint="prove it first")
        key = self._address(record)
        if self._is_registered() and not self._is_under(key):
            rewrap.rewrap(
                self._parts, self.tenant, key, new_kek=True, shared_key=shared_key, reason="the customer's own KMS key"
            )
            found = self._parts.store.load(self.tenant).tenant
        else:
            found = registration.add_tenant(
                self._parts,
                self.tenant,
                key,
                Policy.for_key(key.arn),
                shared_key=shared_key,
                identity=self._identity_of(record),
            )
        if record.step is OnboardingStep.PROVEN:
            self._advance(record, OnboardingStep.REGISTERED)
        return found

    # What is stored, and what it means.

    def _identity(self, known: OnboardingRecord | None) -> tuple[Identity, str]:
        """Return whose keys they will be, and the ExternalId: of the onboarding, of the tenant, or fresh ones."""
        if known is not None:
            known = self._unfinished()
            return self._identity_of(known), known.external_id
        external_id = secrets.token_urlsafe(EXTERNAL_ID_BYTES)
        if not self._is_registered():
            uid, keyset = primitives.random_uid(), primitives.random_u32()
            return Identity(self._parts.store.app_uid(), uid, keyset), external_id
        snapshot = self._parts.store.load(self.tenant)
        check_in_use(snapshot.tenant)
        if not self._parts.is_platform_key(snapshot.kek.kms_key_arn):
            raise self._done(snapshot.kek.kms_key_arn)
        return snapshot.tenant.identity, external_id

    def _unfinished(self) -> OnboardingRecord:
        """Return how far it is, unless the tenant is registered: then nothing of it may change any more."""
        record = self.record()
        if record.step is OnboardingStep.REGISTERED:
            raise self._done(str(record.kms_key_arn))
        return record

    def _remember_key(self, record: OnboardingRecord, arn: str) -> OnboardingRecord:
        """Store the ARN of a key that was just made, unless somebody else has made one meanwhile."""
        try:
            return self._advance(record, record.step, kms_key_arn=arn)
        except KeyStoreError as error:
            failure = error
        raise OnboardingError(
            f"KMS key {arn} was made for tenant {self.tenant!r}, and is not used: {failure.args[0]}",
            hint="look where the onboarding stands; the customer may delete a key that is not the one it names",
        )

    def _done(self, arn: str) -> OnboardingError:
        return OnboardingError(
            f"tenant {self.tenant!r} is registered with KMS key {arn}",
            hint="another KMS key takes its place by `pii-vault rewrap`; `pii-vault doctor` proves the present one",
        )

    def _identity_of(self, record: OnboardingRecord) -> Identity:
        return Identity(self._parts.store.app_uid(), record.tenant_uid, record.keyset_id)

    def _arrangement(self, record: OnboardingRecord) -> Arrangement:
        return arrangement_of(record, self._parts.store.app_uid())

    def _address(self, record: OnboardingRecord) -> KmsKey:
        if record.kms_key_arn is None:
            raise OnboardingError(
                f"the KMS key of tenant {self.tenant!r} is not known yet",
                hint=f"pii-vault onboard {self.tenant} --key ARN, with the ARN that the customer's stack says",
            )
        role = self._arrangement(record).access_role
        return KmsKey(record.kms_key_arn, role, record.external_id if role is not None else None)

    def _is_registered(self) -> bool:
        try:
            self._parts.store.load(self.tenant)
        except TenantNotFoundError:
            return False
        return True

    def _is_under(self, key: KmsKey) -> bool:
        return self._parts.store.load(self.tenant).kek.kms_key_arn == key.arn

    def _recorded(self, wanted: Arrangement) -> OnboardingRecord:
        now, ledger = self._parts.now(), self._parts.ledger
        return OnboardingRecord(
            tenant_name=wanted.tenant,
            tenant_uid=wanted.tenant_uid,
            keyset_id=wanted.keyset_id,
            external_id=wanted.external_id,
            way=wanted.way,
            direct=wanted.direct,
            kms_partition=wanted.partition,
            kms_account=wanted.account,
            kms_region=wanted.region,
            kms_key_arn=wanted.key_arn,
            runtime_role=wanted.ours.runtime,
            rotation_role=wanted.ours.rotation,
            provisioning_role=wanted.ours.provisioning,
            rotation_days=wanted.rotation_days,
            step=OnboardingStep.BEGUN,
            begun_at=now,
            begun_by=ledger.actor,
            step_at=now,
        )

    def _advance(self, record: OnboardingRecord, step: OnboardingStep, **changes: Any) -> OnboardingRecord:
        return self._parts.store.onboardings.advance(record, step, self._parts.now(), **changes)


def _once_allowed(wait: float, call: Callable[[], None]) -> None:
    """Do something now, or within so many seconds as soon as it is allowed."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

    pauses = wait_exponential(multiplier=0.5, max=15)
    allowed = retry_if_exception_type(KmsDeniedError)
    Retrying(stop=stop_after_delay(wait), wait=pauses, retry=allowed, reraise=True)(call)


def arrangement_of(record: OnboardingRecord, app_uid: bytes) -> Arrangement:
    """Return what a stored onboarding has arranged.

    Raises:
        ConfigurationError: somebody has changed what is stored.
    """
    return Arrangement(
        record.tenant_name,
        app_uid,
        record.tenant_uid,
        record.keyset_id,
        record.way,
        record.kms_account,
        record.kms_region,
        record.external_id,
        Ours(record.runtime_role, record.rotation_role, record.provisioning_role),
        record.kms_key_arn,
        record.direct,
        record.rotation_days,
        record.kms_partition,
    )
