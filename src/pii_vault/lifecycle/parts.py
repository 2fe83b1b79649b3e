"""What every operation on keys works with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ..audit.ledger import Ledger
from ..keyring import Keyring
from ..keystore import KeyStore
from ..kms import KmsLifecycle


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

    def now(self) -> datetime:
        """Return the present instant, UTC."""
        return self.ledger.now()
