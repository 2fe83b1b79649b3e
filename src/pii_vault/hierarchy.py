"""The key hierarchy: a KEK wraps data and index keys, commits to them and vouches for their activation.

Pure: wrapped records in, secrets out, and the reverse. Where records are stored and how a KEK is unwrapped by the
customer's KMS is not known here. Every check is made before a key is handed out, and none of them tries a second key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NoReturn

from . import primitives
from .context import Identity, activation_message, kek_context, key_context, record_aad
from .errors import KeyRecordError, KeyStateError, OpenError
from .keys import ALGORITHM, OPENING, KeyRecord, KeyState, Purpose, Secret

_HINT: Final = "the key store was changed by something other than pii_vault; restore the record from a backup"


def key_commitment(identity: Identity, purpose: Purpose, version: int, key: Secret) -> bytes:
    """Return the 32-byte commitment of a data or index key: a value that no other key has (SP 800-108r1)."""
    return primitives.derive(key.reveal(), "commit", key_context(ALGORITHM, identity, purpose, version))


class Kek:
    """An unwrapped key-encryption key, alive only while records are wrapped or unwrapped.

    Args:
        identity: Whose KEK it is.
        generation: From 1.
        key: Its 32 bytes; no part of this class uses them other than through a derived subkey.
    """

    def __init__(self, identity: Identity, generation: int, key: Secret) -> None:
        context = kek_context(ALGORITHM, identity, generation)
        self.identity = identity
        self.generation = generation
        self.commitment = primitives.derive(key.reveal(), "commit", context)
        self._wrap = Secret(primitives.derive(key.reveal(), "wrap", context))
        self._mac = Secret(primitives.derive(key.reveal(), "mac", context))

    def __repr__(self) -> str:
        return f"<Kek generation {self.generation}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KEK is neither pickled nor copied")

    def check_commitment(self, stored: bytes) -> None:
        """Raise unless the stored commitment is this KEK's.

        Raises:
            KeyRecordError: the wrapped KEK and its commitment do not belong together.
        """
        if not primitives.equal(self.commitment, stored):
            raise KeyRecordError(f"KEK generation {self.generation} does not match its commitment", hint=_HINT)

    def wrap(self, purpose: Purpose, version: int, key: Secret) -> tuple[bytes, bytes, bytes]:
        """Wrap a data or index key.

        Returns:
            IV (12 bytes), encrypted key with tag (48 bytes), commitment (32 bytes).
        """
        commitment = key_commitment(self.identity, purpose, version, key)
        aad = record_aad(
            self.identity,
            purpose,
            version,
            kek_generation=self.generation,
            algorithm=ALGORITHM,
            commitment=commitment,
        )
        sealed = primitives.seal(self._wrap.reveal(), key.reveal(), aad)
        return sealed[: primitives.IV_BYTES], sealed[primitives.IV_BYTES :], commitment

    def unwrap(self, record: KeyRecord) -> Secret:
        """Return the key of a record, after its authentication and its commitment were checked.

        Raises:
            KeyRecordError: the record was changed, or belongs to another tenant, purpose, version or KEK.
            KeyStateError: the key is destroyed.
        """
        name = f"{record.purpose} key version {record.version}"
        if record.state is KeyState.DESTROYED:
            raise KeyStateError(f"{name} is destroyed")
        if record.algorithm != ALGORITHM or record.kek_generation != self.generation:
            raise KeyRecordError(f"{name} was not wrapped by this KEK, or by another release", hint=_HINT)
        aad = record_aad(
            self.identity,
            record.purpose,
            record.version,
            kek_generation=record.kek_generation,
            algorithm=record.algorithm,
            commitment=record.commitment,
        )
        key: Secret | None = None
        try:
            key = Secret(primitives.open_(self._wrap.reveal(), record.iv + record.encrypted_key, aad))
        except OpenError:
            pass
        if key is None:
            raise KeyRecordError(f"{name} fails its authentication", hint=_HINT)
        expected = key_commitment(self.identity, record.purpose, record.version, key)
        if not primitives.equal(expected, record.commitment):
            raise KeyRecordError(f"{name} does not match its commitment", hint=_HINT)
        return key

    def activation_mac(self, purpose: Purpose, version: int, epoch: int, commitment: bytes) -> bytes:
        """Return the 32-byte proof that a holder of the KEK made this version ACTIVE."""
        message = activation_message(self.identity, purpose, version, epoch, commitment)
        return primitives.mac(self._mac.reveal(), message)

    def check_activation(self, record: KeyRecord) -> None:
        """Raise unless a record that says ACTIVE was made ACTIVE by a holder of the KEK.

        Without this, whoever can write to the key store could bring an old or compromised key back into use.

        Raises:
            KeyRecordError: the activation MAC is not valid.
        """
        expected = self.activation_mac(record.purpose, record.version, record.epoch, record.commitment)
        if not primitives.equal(expected, record.activation_mac):
            raise KeyRecordError(
                f"{record.purpose} key version {record.version} claims to be active without proof", hint=_HINT
            )


def active_record(kek: Kek, records: Iterable[KeyRecord], purpose: Purpose) -> KeyRecord | None:
    """Return the one ACTIVE record of a purpose, after its proof was checked, or None when there is none.

    Raises:
        KeyRecordError: there are several, the proof is wrong, or a later version or epoch was active before: the key
            table was rolled back, and sealing under an older key is refused.
    """
    mine = [record for record in records if record.purpose is purpose]
    active = [record for record in mine if record.state is KeyState.ACTIVE]
    if not active:
        return None
    if len(active) > 1:
        raise KeyRecordError(f"the tenant has {len(active)} active {purpose} keys", hint=_HINT)
    record = active[0]
    kek.check_activation(record)
    # A successor that was withdrawn before it was ever active (epoch 0) does not count.
    past = [other for other in mine if other.epoch > 0 or other.state is KeyState.DEACTIVATED]
    if any(other.version > record.version or other.epoch > record.epoch for other in past):
        raise KeyRecordError(f"a later {purpose} key than version {record.version} was active before", hint=_HINT)
    return record


def ended(records: Iterable[KeyRecord], purpose: Purpose) -> dict[int, KeyState]:
    """Return the versions of a purpose that no longer open, and what became of them."""
    return {
        record.version: record.state for record in records if record.purpose is purpose and record.state not in OPENING
    }


def unwrap_all(
    kek: Kek, records: Iterable[KeyRecord], purpose: Purpose, opening: frozenset[KeyState] = OPENING
) -> dict[int, Secret]:
    """Return the keys of a purpose that may open, by version. Those in other states stay wrapped."""
    return {
        record.version: kek.unwrap(record)
        for record in records
        if record.purpose is purpose and record.state in opening
    }
