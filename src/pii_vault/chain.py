"""The audit chain: entries that are joined to one another by a keyed hash whose key moves on with every entry.

Entry i is authenticated with a key that exists only until entry i is written: the next key is derived from it, one way,
and only the next one is kept. Who takes over a host can therefore forge what comes after, but not what was written
before; and nobody can leave out, change or reorder an entry without the keys. What the end of a chain hides, an anchor
kept elsewhere shows.

Pure: keys and entries in, records out. Where they are stored and who unwraps the first key is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from . import primitives
from .context import Identity, audit_context, chain_aad, entry_message
from .errors import AuditError, OpenError
from .keys import ALGORITHM, Secret

START: Final = bytes(32)
"""What the first entry is joined to."""


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """The end of a tenant's chain as stored.

    Attributes:
        kms_key_arn: The platform's KMS key that wraps the chain's first key.
        root: That first key, wrapped by the KMS: only verification opens it.
        seq: How many entries there are.
        head: The MAC of the last one, 32 bytes.
        sealed_key: The next entry's key, sealed under the audit key: 60 bytes.
    """

    kms_key_arn: str
    root: bytes
    seq: int
    head: bytes
    sealed_key: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as stored.

    Attributes:
        seq: Its place in the chain, from 1.
        text: What happened, as canonical JSON.
        mac: 32 bytes over the application, the tenant, the place, the entry before and the text.
    """

    seq: int
    text: str
    mac: bytes


class AuditKey:
    """The application's audit key: it keeps each chain's next key out of the database's sight.

    Args:
        app_uid: 16 bytes.
        key: 32 bytes from the platform's KMS.
    """

    def __init__(self, app_uid: bytes, key: Secret) -> None:
        context = audit_context(ALGORITHM, app_uid)
        self.commitment: Final = primitives.derive(key.reveal(), "commit", context)
        self._wrap: Final = Secret(primitives.derive(key.reveal(), "wrap", context))

    def __repr__(self) -> str:
        return "<AuditKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an audit key is neither pickled nor copied")

    def seal(self, identity: Identity, seq: int, head: bytes, key: Secret) -> bytes:
        """Return a chain's next key, sealed for its place behind `seq` and `head`: 60 bytes."""
        return primitives.seal(self._wrap.reveal(), key.reveal(), chain_aad(identity, seq, head))

    def open_(self, identity: Identity, chain: ChainRecord) -> Secret:
        """Return a chain's next key.

        Raises:
            AuditError: the end of the chain was changed.
        """
        opened: Secret | None = None
        try:
            aad = chain_aad(identity, chain.seq, chain.head)
            opened = Secret(primitives.open_(self._wrap.reveal(), chain.sealed_key, aad))
        except OpenError:
            pass
        if opened is None:
            raise AuditError(
                f"the end of the audit chain of tenant {identity.tenant_uid.hex()} fails its authentication",
                hint="the key store was changed by something other than pii_vault: run `pii-vault audit verify`",
            )
        return opened


def begin(
    audit_key: AuditKey, identity: Identity, root: Secret, *, kms_key_arn: str, wrapped_root: bytes, text: str
) -> tuple[ChainRecord, Entry]:
    """Start a chain with its first entry."""
    nowhere = ChainRecord(kms_key_arn, wrapped_root, 0, START, b"")
    return _join(audit_key, identity, nowhere, root, text)


def append(audit_key: AuditKey, identity: Identity, chain: ChainRecord, text: str) -> tuple[ChainRecord, Entry]:
    """Add an entry to a chain; return its new end and the entry.

    Raises:
        AuditError: the end of the chain was changed.
    """
    return _join(audit_key, identity, chain, audit_key.open_(identity, chain), text)


@dataclass(frozen=True, slots=True)
class Walk:
    """What following a chain from its first key on came to.

    Attributes:
        first_bad: The place of the first entry that is not what was written there, or None.
        head: The MAC of the last good entry, or `START`.
        key: The key of the entry after that.
    """

    first_bad: int | None
    head: bytes
    key: Secret


def walk(identity: Identity, root: Secret, entries: Iterable[Entry]) -> Walk:
    """Follow a chain entry by entry, to its end or to the first that is not authentic in its place.

    A gap is found at the first missing place.
    """
    key, head = root, START
    for seq, entry in enumerate(entries, 1):
        if entry.seq != seq or not primitives.equal(_mac(key, identity, seq, head, entry.text), entry.mac):
            return Walk(seq, head, key)
        key, head = _next(key, identity), entry.mac
    return Walk(None, head, key)


def continues(audit_key: AuditKey, identity: Identity, chain: ChainRecord, walked: Walk) -> bool:
    """Tell whether the stored end of a chain is where a walk along its entries came to."""
    try:
        key = audit_key.open_(identity, chain)
    except AuditError:
        return False
    return primitives.equal(chain.head, walked.head) and primitives.equal(key.reveal(), walked.key.reveal())


def _join(
    audit_key: AuditKey, identity: Identity, chain: ChainRecord, key: Secret, text: str
) -> tuple[ChainRecord, Entry]:
    seq = chain.seq + 1
    mac = _mac(key, identity, seq, chain.head, text)
    sealed = audit_key.seal(identity, seq, mac, _next(key, identity))
    return replace(chain, seq=seq, head=mac, sealed_key=sealed), Entry(seq, text, mac)


def _mac(key: Secret, identity: Identity, seq: int, head: bytes, text: str) -> bytes:
    subkey = primitives.derive(key.reveal(), "mac", audit_context(ALGORITHM, identity.app_uid, identity.tenant_uid))
    return primitives.mac(subkey, entry_message(identity, seq, head, text.encode()))


def _next(key: Secret, identity: Identity) -> Secret:
    context = audit_context(ALGORITHM, identity.app_uid, identity.tenant_uid)
    return Secret(primitives.derive(key.reveal(), "ratchet", context))
