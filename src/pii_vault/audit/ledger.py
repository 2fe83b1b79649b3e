"""Write the audit log: each entry in the transaction of the change that it tells of, so that neither is alone.

The audit key lies under the platform's KMS key, not the customer's: that a customer has revoked must be loggable too.
Our KMS is asked before the transaction begins; without its answer nothing is changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from .. import chain
from ..chain import AuditKey, ChainRecord, Walk
from ..context import Identity, kms_context, platform_context
from ..errors import ConfigurationError, KeyRecordError
from ..keys import Secret, TenantRecord
from ..keystore import AuditKeyRecord, Change, KeyStore, Snapshot
from ..kms import KmsKey, KmsProvider
from .facts import Event, canonical, facts

AUDIT_PURPOSE: Final = "audit"
"""Purpose of the audit key in the KMS encryption context: who writes the log may unwrap it."""

ROOT_PURPOSE: Final = "audit-root"
"""Purpose of a chain's first key: who writes the log generates it, only who verifies may unwrap it."""

KEPT_SECONDS: Final = 300.0
"""How long the audit key stays in memory."""


class Ledger:
    """Writes audit entries.

    Args:
        store: Where they are kept.
        kms: The KMS that holds the platform's key.
        platform_key: The full ARN of the platform's KMS key, or None when there is none: then nothing can be recorded,
            and so nothing changed.
        actor: Who is written down as the one who asked.
        now: The present instant, UTC.
    """

    def __init__(
        self, store: KeyStore, kms: KmsProvider, platform_key: str | None, *, actor: str, now: Callable[[], datetime]
    ) -> None:
        self._store: Final = store
        self._kms: Final = kms
        self._platform_key: Final = platform_key
        self.actor: Final = actor
        self.now: Final = now
        self._kept: tuple[float, AuditKey] | None = None

    @property
    def has_platform_key(self) -> bool:
        """Whether a platform's KMS key is configured."""
        return self._platform_key is not None

    @property
    def platform_key(self) -> KmsKey:
        """The platform's KMS key.

        Raises:
            ConfigurationError: none is configured.
        """
        if self._platform_key is None:
            raise ConfigurationError(
                "no platform KMS key is configured, so the audit log cannot be written",
                hint="give the vault platform_key=, the command --platform-key or PII_VAULT_PLATFORM_KEY: a KMS key "
                "in your own account, not a customer's",
            )
        return KmsKey(self._platform_key)

    def page(self, tenant: TenantRecord, snapshot: Snapshot | None = None) -> Page:
        """Return where the entries of one change of a tenant are written; asks our KMS if it must.

        Args:
            tenant: Whose chain it is.
            snapshot: The records that the change is decided on; None for a tenant that is being registered.

        Raises:
            ConfigurationError: no platform key is configured.
            KmsError: our own KMS does not answer.
        """
        return Page(self, tenant, snapshot, self._audit_key(), self._root(tenant, snapshot))

    def continues(self, identity: Identity, end: ChainRecord, walked: Walk) -> bool:
        """Tell whether the stored end of a chain is where a walk along its entries came to. Stores nothing."""
        return self._store.audit_key() is not None and chain.continues(self._audit_key(), identity, end, walked)

    def _root(self, tenant: TenantRecord, snapshot: Snapshot | None) -> tuple[Secret, bytes] | None:
        if snapshot is not None and snapshot.chain is not None:
            return None
        made = self._kms.generate(self.platform_key, kms_context(tenant.identity, ROOT_PURPOSE, 1))
        return Secret(made.plaintext), made.wrapped.blob

    def _audit_key(self) -> AuditKey:
        # No lock: two threads at once ask twice and keep the same key.
        kept = self._kept
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        until = time.monotonic() + KEPT_SECONDS
        key = self._fetch()
        self._kept = (until, key)
        return key

    def _fetch(self) -> AuditKey:
        app_uid = self._store.app_uid()
        context = platform_context(app_uid, AUDIT_PURPOSE)
        record = self._store.audit_key()
        if record is None:
            made = self._kms.generate(self.platform_key, context)
            commitment = AuditKey(app_uid, Secret(made.plaintext)).commitment
            record = self._store.add_audit_key(
                AuditKeyRecord(self.platform_key.arn, made.wrapped.blob, commitment, self.now())
            )
        if record.kms_key_arn != self.platform_key.arn:
            raise ConfigurationError(
                f"the audit key is under KMS key {record.kms_key_arn}, the platform key is {self.platform_key.arn}",
                hint="configure the platform key that the key store was begun with",
            )
        # Asked for in any case: what cannot be unwrapped later must not be written with.
        key = AuditKey(app_uid, Secret(self._kms.unwrap(self.platform_key, record.wrapped, context)))
        if key.commitment != record.commitment:
            raise KeyRecordError("the audit key does not match its commitment", hint="restore the key store")
        return key


class Page:
    """Where the entries of one change are written, in the change's own transaction."""

    def __init__(
        self,
        ledger: Ledger,
        tenant: TenantRecord,
        snapshot: Snapshot | None,
        audit_key: AuditKey,
        root: tuple[Secret, bytes] | None,
    ) -> None:
        self._ledger = ledger
        self._identity = tenant.identity
        self._snapshot = snapshot
        self._audit_key = audit_key
        self._root = root
        self._chain: ChainRecord | None = snapshot.chain if snapshot is not None else None

    def write(self, change: Change, event: Event, *, reason: str = "", **records: Any) -> None:
        """Add an entry to the tenant's chain.

        Args:
            change: The transaction that makes true what the entry says.
            event: What happens.
            reason: Why.
            records: What `facts` takes: the touched records as they are afterwards.
        """
        if self._chain is None and self._snapshot is not None:
            # The tenant is older than the audit log: what is there now is what the chain vouches for from here on.
            known = self._snapshot
            self._append(change, Event.CHAIN_BEGUN, "", facts(tenant=known.tenant, keks=[known.kek], keys=known.keys))
        self._append(change, event, reason, facts(**records))

    def write_once(self, change: Change, event: Event, *, reason: str) -> None:
        """Add an entry unless the chain's last one says the same."""
        if self._chain is not None:
            with suppress(ValueError, TypeError, KeyError):  # it was changed: not the same
                last = json.loads(change.entry(self._chain.seq).text)
                if (last["event"], last["reason"]) == (event, reason):
                    return
        self.write(change, event, reason=reason)

    def _append(self, change: Change, event: Event, reason: str, details: dict[str, Any]) -> None:
        text = canonical(
            {
                "at": self._ledger.now().isoformat(timespec="microseconds"),
                "actor": self._ledger.actor,
                "event": str(event),
                "reason": reason,
                "details": details,
            }
        )
        if self._chain is None:
            assert self._root is not None
            root, wrapped = self._root
            self._chain, entry = chain.begin(
                self._audit_key,
                self._identity,
                root,
                kms_key_arn=self._ledger.platform_key.arn,
                wrapped_root=wrapped,
                text=text,
            )
        else:
            self._chain, entry = chain.append(self._audit_key, self._identity, self._chain, text)
        change.append(self._chain, entry)
