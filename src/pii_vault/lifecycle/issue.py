"""Make keys: a tenant's KEK and first data key, and each successor.

Every key's bytes come from a live call to the customer's KMS (`GenerateDataKey`): the customer's consent and its audit
trail stand at every new key. A key is committed to the key store before anything is sealed with it.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import IntegrityError

from .. import primitives
from ..context import Identity, kms_context
from ..envelope import MAX_VERSION
from ..errors import KeyStateError, KeyStoreError, TenantExistsError, TenantNotFoundError
from ..hierarchy import Kek
from ..keyring import Keyring
from ..keys import ALGORITHM, KEK_PURPOSE, KekRecord, KeyRecord, KeyState, Purpose, Secret, TenantRecord
from ..keystore import KeyStore, Snapshot
from ..kms import KmsKey, KmsProvider

_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Issuer:
    """Makes keys for one application.

    Attributes:
        store: Where they are kept, wrapped.
        kms: Who generates them.
        keyring: Who unwraps a tenant's KEK, by a live call.
        now: The present instant, UTC.
    """

    store: KeyStore
    kms: KmsProvider
    keyring: Keyring
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def add_tenant(self, name: str, key: KmsKey) -> TenantRecord:
        """Register a tenant, with a KEK and a first data key from its KMS.

        Two processes that register the same tenant at once end with one tenant and one key. Registering it again with
        the same KMS key changes nothing and asks the KMS nothing.

        Raises:
            TenantExistsError: the name is registered with another KMS key.
            KmsError: the KMS does not generate, or does not unwrap what it generated.
        """
        self.kms.validate_key(key)
        for _ in range(_ATTEMPTS):
            known = self._registered(name, key)
            if known is not None:
                return known
            tenant = TenantRecord(self._new_identity(), name, suspended=False, created_at=self.now())
            kek_record = self._new_kek(tenant, key)
            # Unwrapped by a call of its own: what could not be opened later is never stored.
            kek = self.keyring.unwrap_kek(tenant, kek_record)
            first = self._new_key(tenant.identity, key, kek, version=1, epoch=1, reason="initial")
            try:
                self.store.insert_tenant(tenant, kek_record, first)
            except IntegrityError:
                continue  # the name or the keyset id was taken meanwhile
            return tenant
        raise KeyStoreError(f"tenant {name!r} could not be stored", hint="look at the database's own log")

    def rotate(self, name: str, *, reason: str = "forced") -> int:
        """Make a new data-key version ACTIVE and return it; rows are not touched.

        Raises:
            KeyStateError: the tenant has used up all 65535 versions.
            KmsError: the KMS refuses; the present version stays ACTIVE.
        """
        for _ in range(_ATTEMPTS):
            snapshot = self.store.load(name)
            successor = self._successor(snapshot, reason)
            if self.store.supersede(snapshot, successor):
                self.keyring.evict(name)
                return successor.version
        raise KeyStoreError(f"tenant {name!r} is being rotated by others all the time", hint="try again")

    def _registered(self, name: str, key: KmsKey) -> TenantRecord | None:
        try:
            snapshot = self.store.load(name)
        except TenantNotFoundError:
            return None
        kek = snapshot.kek
        if KmsKey(kek.kms_key_arn, kek.role_arn, kek.external_id) != key:
            raise TenantExistsError(
                f"tenant {name!r} is registered already, with another KMS key or role",
                hint="moving a tenant to another KMS key is a re-wrap, not a registration",
            )
        return snapshot.tenant

    def _new_identity(self) -> Identity:
        return Identity(self.store.app_uid(), primitives.random_uid(), primitives.random_u32())

    def _new_kek(self, tenant: TenantRecord, key: KmsKey) -> KekRecord:
        generation = 1
        generated = self.kms.generate(key, kms_context(tenant.identity, KEK_PURPOSE, generation))
        kek = Kek(tenant.identity, generation, Secret(generated.plaintext))
        return KekRecord(
            generation=generation,
            state=KeyState.ACTIVE,
            algorithm=ALGORITHM,
            kms_key_arn=key.arn,
            role_arn=key.role_arn,
            external_id=key.external_id,
            kms_key_material_id=generated.wrapped.key_material_id,
            wrapped=generated.wrapped.blob,
            commitment=kek.commitment,
            created_at=tenant.created_at,
        )

    def _successor(self, snapshot: Snapshot, reason: str) -> KeyRecord:
        tenant, record = snapshot.tenant, snapshot.kek
        data = [key for key in snapshot.keys if key.purpose is Purpose.DATA]
        version = max(key.version for key in data) + 1
        if version > MAX_VERSION:
            raise KeyStateError(f"tenant {tenant.name!r} has used up all {MAX_VERSION} data-key versions")
        epoch = max(key.epoch for key in data) + 1
        kek = self.keyring.unwrap_kek(tenant, record)
        address = KmsKey(record.kms_key_arn, record.role_arn, record.external_id)
        return self._new_key(tenant.identity, address, kek, version=version, epoch=epoch, reason=reason)

    def _new_key(
        self, identity: Identity, address: KmsKey, kek: Kek, *, version: int, epoch: int, reason: str
    ) -> KeyRecord:
        generated = self.kms.generate(address, kms_context(identity, Purpose.DATA, version))
        iv, encrypted, commitment = kek.wrap(Purpose.DATA, version, Secret(generated.plaintext))
        now = self.now()
        return KeyRecord(
            purpose=Purpose.DATA,
            version=version,
            state=KeyState.ACTIVE,
            kek_generation=kek.generation,
            algorithm=ALGORITHM,
            encrypted_key=encrypted,
            iv=iv,
            commitment=commitment,
            epoch=epoch,
            activation_mac=kek.activation_mac(Purpose.DATA, version, epoch, commitment),
            created_at=now,
            activated_at=now,
            reason=reason,
            created_by=_actor(),
            kms_key_arn=generated.wrapped.key_arn,
            kms_key_material_id=generated.wrapped.key_material_id,
        )


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
