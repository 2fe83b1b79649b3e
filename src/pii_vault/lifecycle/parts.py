"""What every operation on keys works with, and how it is decided again when somebody else was faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeVar

from ..audit.ledger import Ledger
from ..errors import KeyStoreError
from ..keyring import Keyring
from ..keystore import KeyStore, SupersededError
from ..kms import KmsLifecycle

ATTEMPTS: Final = 10
"""How often an operation is decided anew. Each time that it must be, somebody else's was done."""

ResultT = TypeVar("ResultT")


class Reason(StrEnum):
    """Why a key is made. Stored in key records: the words stay."""

    INITIAL = "initial"
    SCHEDULED = "scheduled"
    FORCED = "forced"
    COMPROMISED = "compromised"
    KMS_ROTATION = "kms-rotation"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a vault that keys are made, checked, stored and written about with.

    Attributes:
        store: Where keys are kept, wrapped.
        kms: Who generates and wraps them.
        keyring: Who unwraps a KEK, by a live call, and forgets what has changed.
        ledger: Who writes down what happens.
        rotation_days: The rotation period of tenants that name none.
    """

    store: KeyStore
    kms: KmsLifecycle
    keyring: Keyring
    ledger: Ledger
    rotation_days: int

    def is_platform_key(self, arn: str) -> bool:
        """Tell whether a KMS key is the platform's own, which serves tenants that have none."""
        return self.ledger.has_platform_key and self.ledger.platform_key.arn == arn

    def now(self) -> datetime:
        """Return the present instant, UTC."""
        return self.ledger.now()


def decided(tenant: str, attempt: Callable[[], ResultT]) -> ResultT:
    """Read a tenant's records, decide on a change and make it, again while others change them in between.

    Raises:
        KeyStoreError: the records never stand still.
    """
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except SupersededError:
            continue
    raise KeyStoreError(f"tenant {tenant!r} is being changed by others all the time", hint="try again")
