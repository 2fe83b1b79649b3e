"""What a vault does with tenants' keys alone: nothing is written to a table of the application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import MetaData

from .doctor.application import Application
from .doctor.doctor import diagnose
from .doctor.findings import Finding
from .doctor.patience import Patience
from .keys import KekRecord, KeyRecord, TenantRecord
from .kms import KmsKey, KmsRotationOwner
from .lifecycle import ending, kms_history, registration, replicas, rewrap, rewrap_all, rotation, schedule, validation
from .lifecycle.kms_history import KmsHistory, KmsRotationFound
from .lifecycle.parts import Parts, Reason
from .lifecycle.rewrap import Rewrap
from .lifecycle.rewrap_all import Moved
from .lifecycle.rotation import Rotation
from .lifecycle.schedule import Due
from .lifecycle.validation import Outcome


class KeyLife:
    """The part of a `Vault` that suspends, checks, rotates, re-wraps and ends keys.

    Args:
        parts: What it is done with.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts: Final = parts

    def suspend(self, tenant: str, reason: str = "") -> bool:
        """Let a tenant neither seal nor open until it is resumed; other processes follow within 5 seconds of use.

        Returns:
            False when it was suspended already.
        """
        return registration.set_suspended(self._parts, tenant, True, reason)

    def resume(self, tenant: str, reason: str = "") -> bool:
        """End a tenant's suspension; return False when it was not suspended."""
        return registration.set_suspended(self._parts, tenant, False, reason)

    def set_pii_encryption(self, tenant: str, on: bool, reason: str = "") -> bool:
        """Turn PII encryption on or off for a tenant: a feature that it has or has not, and no key is changed by it.

        Off, its values are neither sealed nor opened, and its keys are not rotated; they may be ended, re-wrapped and
        erased. Other processes follow within 5 seconds of use. A suspension is something else: it is for a time, and
        is told first where both hold.

        Returns:
            False when it was so already.
        """
        return registration.set_pii_encryption(self._parts, tenant, on, reason)

    def set_replica_regions(self, tenant: str, regions: Sequence[str], reason: str = "") -> KekRecord:
        """Say where a tenant's multi-Region KMS key has replicas, which unwrap while its own region is unavailable.

        Only an outage leads there, and never to another key: a refusal anywhere is a refusal. Other processes follow
        within 5 seconds of use.

        Args:
            tenant: The tenant's name.
            regions: Regions in the order in which they are tried, ``["eu-central-1"]``; empty for none.
            reason: Why, for the audit log.

        Raises:
            KmsConfigurationError: the KMS key is not a multi-Region key, or a region is none or named twice.
            KeyValidationError: there is no enabled replica of the KMS key in a region.
            KmsError: a region's KMS refuses to describe it, or does not answer.
        """
        return replicas.set_replica_regions(self._parts, tenant, tuple(regions), reason)

    def set_terms(self, tenant: str, *, ttl: int | None, grace: int = 0) -> TenantRecord:
        """Say for how long a tenant's keys are held in memory; all processes follow within 5 seconds of use.

        Args:
            tenant: The tenant's name.
            ttl: Whole seconds, as `Vault(ttl=…)`: 0 asks the KMS in every scope. None for the vault's own terms.
            grace: Whole seconds, as `Vault(grace=…)`. Both together are the bound that this customer gets.

        Raises:
            ConfigurationError: they are too long, or contradict each other.
        """
        return registration.set_terms(self._parts, tenant, ttl=ttl, grace=grace)

    def set_rotation(self, tenant: str, *, days: int | None = None, follows_kms: bool = False) -> TenantRecord:
        """Say how often a tenant's data key is rotated; the day on which the present one is due moves with it.

        Args:
            tenant: The tenant's name.
            days: 1 to 3650, or None for the vault's default.
            follows_kms: Whether the period is that of the tenant's KMS key, and a rotation there makes a new key here.
        """
        return registration.set_rotation(self._parts, tenant, days=days, follows_kms=follows_kms)

    def kms_history(self, tenant: str) -> KmsHistory:
        """Return what happened to a tenant's KMS key and to the keys under it, by time; asks its KMS once.

        That the KMS does not show its key's rotations to us is said in the answer, and is no error.
        """
        return kms_history.history(self._parts, tenant)

    def kms_rotation(self, tenant: str) -> KmsRotationFound:
        """Return how often a tenant's KMS key rotates, when next, and when it did last."""
        return kms_history.rotation(self._parts, tenant)

    def set_kms_rotation(self, tenant: str, days: int, owner: KmsRotationOwner) -> KmsRotationFound:
        """Let a tenant's KMS key rotate by itself every so many days, and return what the KMS says then.

        Args:
            tenant: The tenant's name.
            days: 90 to 2560.
            owner: Who may say so. The vault's own role need not be allowed to, and should not.

        Raises:
            ConfigurationError: the period is none that a KMS key can have; nobody is asked.
        """
        return kms_history.set_rotation_period(self._parts, tenant, days, owner)

    def validate(self, tenant: str) -> list[Outcome]:
        """Make every check on a tenant's KMS key and data key, and say what each found. Changes nothing."""
        return validation.validate(self._parts, tenant)

    def doctor(
        self,
        tenant: str,
        *,
        metadata: MetaData | None = None,
        engine: Any = None,
        sessions: Any = None,
        wait: float = 0.0,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> list[Finding]:
        """Prove what a tenant's KMS key allows and denies, and look at our own side. Changes nothing; docs/doctor.md.

        Args:
            tenant: The tenant's name.
            metadata: The application's tables; what is not given is not checked, and a finding says so.
            engine: On the application's database, an `Engine` or `AsyncEngine`.
            sessions: What makes the application's sessions: what `Vault.attach` takes.
            wait: For how many seconds AWS is asked again, 0 to 300, where something has been changed there just now.
            progress: Told how many answers have settled, of how many.
        """
        application = Application(metadata, engine, sessions)
        return diagnose(self._parts, tenant, application, patience=Patience(wait, progress=progress))

    def rotate(self, tenant: str, reason: Reason = Reason.FORCED) -> Rotation:
        """Make a new data-key version ACTIVE, at once. Rows are not touched; old ones stay readable.

        Raises:
            KeyValidationError, KeyRecordError: the new version did not pass a check; the present one stays.
            KmsError: the KMS refuses or does not answer; the present one stays.
        """
        return rotation.rotate(self._parts, tenant, reason)

    def rotate_due(
        self,
        *,
        ahead: timedelta = schedule.AHEAD,
        dry_run: bool = False,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> list[Due]:
        """Rotate every tenant whose data key is due, and report on each; made to be called by a scheduler.

        Args:
            ahead: How long before it is due the next version is stored, so that every process knows it in time: as long
                as from one call to the next, and no less than processes keep keys in memory.
            dry_run: Say what would be done, and do nothing.
            progress: Told how many tenants are done, of how many.
        """
        return schedule.rotate_due(self._parts, ahead=ahead, dry_run=dry_run, progress=progress)

    def rewrap(
        self,
        tenant: str,
        *,
        to: str | None = None,
        role_arn: str | None = None,
        external_id: str | None = None,
        replica_regions: Sequence[str] = (),
        new_kek: bool = False,
        shared_key: bool = False,
        reason: str = "",
        dry_run: bool = False,
    ) -> Rewrap:
        """Put a tenant's key-encryption key under another KMS key, or newer material of the same. No row is touched.

        Args:
            tenant: The tenant's name.
            to: The full ARN of the KMS key; None for the present one.
            role_arn: The role to assume for it, if any.
            external_id: The ExternalId for that role.
            replica_regions: Where the other KMS key has replicas. Those of the present one are forgotten with it.
            new_kek: Make a new key-encryption key instead of re-encrypting the present one inside the KMS.
            shared_key: Whether another tenant may have the same KMS key.
            reason: Why, for the audit log.
            dry_run: Make the checks, and change nothing.

        Returns:
            What was done, and what it promises, also against backups.
        """
        key = KmsKey(to, role_arn, external_id, tuple(replica_regions)) if to is not None else None
        return rewrap.rewrap(
            self._parts, tenant, key, new_kek=new_kek, shared_key=shared_key, reason=reason, dry_run=dry_run
        )

    def rewrap_all(
        self,
        *,
        under: str | None = None,
        to: str | None = None,
        new_kek: bool = False,
        shared_key: bool = False,
        reason: str = "",
        rate: float = rewrap_all.RATE,
        workers: int = rewrap_all.WORKERS,
        dry_run: bool = False,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> list[Moved]:
        """Re-wrap every tenant, or those under one KMS key. Called again, it goes on where it stopped.

        Args:
            under: The full ARN of the KMS key that they lie under now; None for any.
            to: The full ARN of the KMS key to put them under, without a role; None for each one's present key.
            new_kek: Make new key-encryption keys instead of re-encrypting the present ones.
            shared_key: Whether several tenants may have that KMS key; the platform's they may.
            reason: Why, for the audit log.
            rate: How many tenants a second, at most.
            workers: How many at a time; one on SQLite.
            dry_run: Make the checks, and change nothing.
            progress: Told how many tenants are done, of how many.
        """
        return rewrap_all.rewrap_all(
            self._parts,
            KmsKey(to) if to is not None else None,
            under=under,
            new_kek=new_kek,
            shared_key=shared_key,
            reason=reason,
            rate=rate,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
        )

    def deactivate(self, tenant: str, reason: str = "") -> KeyRecord:
        """Stop sealing with a tenant's data key; it goes on opening. Nothing is sealed until the tenant is rotated."""
        return ending.deactivate(self._parts, tenant, reason)

    def compromise(self, tenant: str, version: int, reason: str = "") -> KeyRecord:
        """Let a data key open for re-encryption only: the application no longer reads what it sealed. Final."""
        return ending.compromise(self._parts, tenant, version, reason)
