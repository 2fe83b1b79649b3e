"""Make a keyset of a tenant's records and one live call to the customer's KMS."""

from __future__ import annotations

import threading
from typing import Final

from cachetools import LRUCache

from ..context import kms_context
from ..errors import (
    KeyRecordError,
    KeyStoreBehindError,
    KmsUnavailableError,
    PiiEncryptionDisabledError,
    TenantSuspendedError,
)
from ..hierarchy import Kek, active_record, ended, unwrap_all
from ..keys import KEK_PURPOSE, OPENING, KekRecord, KeyState, Purpose, Secret, TenantRecord
from ..keystore import KeyStore, Snapshot
from ..kms import KmsKey, KmsProvider
from ..metering import Metering
from ..sealing import NO_GENERATION, NO_VERSION, Keyset
from .terms import Clock, Terms


def kms_key(tenant: TenantRecord, record: KekRecord) -> KmsKey:
    """Return the address of the KMS key that wraps a KEK, after it was compared with what is expected of the tenant's.

    Raises:
        KeyRecordError: it lies in another account or region: somebody changed the record.
    """
    tenant.policy.check(record.kms_key_arn)
    return KmsKey(record.kms_key_arn, record.role_arn, record.external_id, record.replica_regions)


def check_in_use(tenant: TenantRecord) -> None:
    """Raise unless a tenant's keys may be used.

    Raises:
        TenantSuspendedError: it is suspended, for the time being.
        PiiEncryptionDisabledError: PII encryption is not on for it.
    """
    if tenant.suspended:
        raise TenantSuspendedError(f"tenant {tenant.name!r} is suspended", hint="resume it first")
    if not tenant.policy.pii_encryption:
        raise PiiEncryptionDisabledError(
            f"PII encryption is not on for tenant {tenant.name!r}",
            hint=f"pii-vault tenant set {tenant.name} --pii-encryption on",
        )


class Loader:
    """Who asks the key store and the KMS for a keyset.

    Args:
        store: Where the wrapped keys are.
        kms: Who can unwrap a KEK.
        metering: Who counts what is sealed.
        clock: The two clocks.
        terms: How long the keysets of tenants are used that have no terms of their own.
        size: Of how many tenants the terms are remembered.
    """

    def __init__(
        self, store: KeyStore, kms: KmsProvider, metering: Metering, clock: Clock, terms: Terms, size: int
    ) -> None:
        self._store: Final = store
        self._kms: Final = kms
        self._metering: Final = metering
        self._clock: Final = clock
        self._terms: Final = terms
        self._terms_of: Final[LRUCache[str, Terms]] = LRUCache(size)
        self._highest: Final[dict[bytes, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Take another lock: in a forked child the parent's may be held for ever."""
        self._lock = threading.Lock()

    def terms(self, tenant: str) -> Terms:
        """Return a tenant's terms as they were when its records were last read."""
        with self._lock:
            return self._terms_of.get(tenant, self._terms)

    def terms_of(self, tenant: TenantRecord) -> Terms:
        """Return for how long a tenant's keysets are used: by its own terms, or by those of tenants without any."""
        return self._terms.of(tenant)

    def longest_use(self, tenant: TenantRecord) -> float:
        """Return for how many seconds a tenant's keyset is used at most."""
        return self._terms.of(tenant).lifetime

    def load(self, tenant: str, opening: frozenset[KeyState] = OPENING) -> Keyset:
        """Fetch a tenant's keyset.

        Args:
            tenant: The tenant's name.
            opening: The states of data keys that it opens with.

        Raises:
            TenantNotFoundError, TenantSuspendedError, PiiEncryptionDisabledError, KeyRecordError, KeyStoreError,
            KmsError
        """
        # The clocks are read before the KMS is asked: the bound counts from sending the request.
        sent, sent_wall = self._clock.monotonic(), self._clock.wall()
        snapshot = self._store.load(tenant)
        terms = self._terms.of(snapshot.tenant)
        with self._lock:
            self._terms_of[tenant] = terms
        keyset = self._unwrapped(snapshot, terms, sent, sent_wall, opening)
        if self._clock.monotonic() >= keyset.good_until or self._clock.wall() >= keyset.wall_good_until:
            raise KmsUnavailableError(
                f"the keys of tenant {tenant!r} took longer than the {terms.unasked:g} s for which they may be used",
                hint="try again; if it stays so, give the tenant a longer ttl",
            )
        return keyset

    def unwrap_kek(self, tenant: TenantRecord, record: KekRecord) -> Kek:
        """Unwrap a KEK by a live call to the customer's KMS, and check its commitment."""
        key = kms_key(tenant, record)
        self._kms.validate_key(key)
        context = kms_context(tenant.identity, KEK_PURPOSE, record.generation)
        kek = Kek(tenant.identity, record.generation, Secret(self._kms.unwrap(key, record.wrapped, context)))
        kek.check_commitment(record.commitment)
        return kek

    def saw(self, tenant_uid: bytes, version: int) -> None:
        """Remember that a version was active once, so that no older one is sealed with any more."""
        with self._lock:
            self._highest[tenant_uid] = max(version, self._highest.get(tenant_uid, 0))

    def _unwrapped(
        self, snapshot: Snapshot, terms: Terms, sent: float, sent_wall: float, opening: frozenset[KeyState]
    ) -> Keyset:
        tenant = snapshot.tenant
        check_in_use(tenant)
        kek = self.unwrap_kek(tenant, snapshot.kek)
        record = active_record(kek, snapshot.keys, Purpose.DATA)
        index_record = active_record(kek, snapshot.keys, Purpose.INDEX)
        # Without an active key there is nothing to seal with; what was sealed before opens as ever.
        active = record.version if record is not None else NO_VERSION
        if record is not None:
            self._never_backwards(tenant, active)
        return Keyset(
            tenant.name,
            tenant.identity,
            active,
            unwrap_all(kek, snapshot.keys, Purpose.DATA, opening),
            ended=ended(snapshot.keys, Purpose.DATA),
            index_keys=unwrap_all(kek, snapshot.keys, Purpose.INDEX),
            index_generation=index_record.version if index_record is not None else NO_GENERATION,
            slots=snapshot.slots,
            deadline=sent + terms.lifetime,
            wall_deadline=sent_wall + terms.lifetime,
            good_until=sent + terms.unasked,
            wall_good_until=sent_wall + terms.unasked,
            refresh_at=sent + terms.early(),
            asked_at=sent,
            allowance=self._metering.allowance(tenant.identity, active, record.reserved if record is not None else 0),
        )

    def _never_backwards(self, tenant: TenantRecord, version: int) -> None:
        uid = tenant.identity.tenant_uid
        with self._lock:
            highest = self._highest.get(uid, 0)
            if version >= highest:
                self._highest[uid] = version
                return
        if self._store.is_replica():
            raise behind_primary(tenant.name, highest)
        raise KeyRecordError(
            f"tenant {tenant.name!r} had data key version {highest} active, and now has {version}",
            hint="the key store was rolled back; restore it, then restart",
        )


def behind_primary(tenant: str, version: int) -> KeyStoreBehindError:
    """Return the error for a version that may be missing only because the key store's replica was asked."""
    return KeyStoreBehindError(
        f"data key version {version} of tenant {tenant!r} is not known to the key store's replica that was asked",
        hint="try again when it has caught up, or give the vault the primary's address",
    )
