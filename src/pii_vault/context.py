"""What a key or a value belongs to, as bytes that cannot be read in two ways.

Pure functions: identities and names in, canonical bytes or a KMS encryption context out. Nothing here draws
randomness, reads a clock or knows a key. The labels and the order of the parts are frozen: they are under the
authentication tag of every stored value and key record (docs/format.md, sections 2 to 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .errors import ConfigurationError

UID_BYTES: Final = 16

_VALUE_LABEL: Final = b"pii_vault/1/value"
_RECORD_LABEL: Final = b"pii_vault/1/record"
_ACTIVATION_LABEL: Final = b"pii_vault/1/activation"

_CHAIN_LABEL: Final = b"pii_vault/1/chain"
_ENTRY_LABEL: Final = b"pii_vault/1/audit"

_KMS_VALUE: Final = re.compile(r"[a-z0-9._-]{1,64}\Z")


def lp(*parts: bytes) -> bytes:
    """Join parts so that no two different lists give the same bytes.

    Each part is preceded by its length, 4 bytes big endian (TupleHash of SP 800-185 has the same aim): moving a
    byte from one part to its neighbour always changes the result.
    """
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@dataclass(frozen=True, slots=True)
class Identity:
    """The immutable random names under which everything cryptographic of one tenant is done.

    Attributes:
        app_uid: 16 bytes, made when the key store was initialised.
        tenant_uid: 16 bytes, made when the tenant was registered.
        keyset_id: 0 to 2^32 - 1, random, unique in the key store; the first field of every header.
    """

    app_uid: bytes
    tenant_uid: bytes
    keyset_id: int

    def __post_init__(self) -> None:
        if len(self.app_uid) != UID_BYTES or len(self.tenant_uid) != UID_BYTES:
            raise ConfigurationError(f"application and tenant uid are {UID_BYTES} bytes each")
        if not 0 <= self.keyset_id <= 0xFFFFFFFF:
            raise ConfigurationError("a keyset id has 32 bits")

    @property
    def keyset_bytes(self) -> bytes:
        """The keyset id as in the header: 4 bytes, big endian."""
        return self.keyset_id.to_bytes(4, "big")


def context_id(table: str, column: str) -> str:
    """Return the default context id of a column, ``table.column``.

    Backslashes and dots inside the names are escaped with a backslash, so that table ``a.b`` with column ``c`` and
    table ``a`` with column ``b.c`` differ. The schema is left out: one model in many schemas keeps its data readable.
    """

    def escaped(name: str) -> str:
        return name.replace("\\", "\\\\").replace(".", "\\.")

    return f"{escaped(table)}.{escaped(column)}"


def column_context(suite: int, identity: Identity, context: str) -> bytes:
    """Return the derivation context of a column subkey: LP(suite) LP(app uid) LP(tenant uid) LP(context id)."""
    return lp(bytes((suite,)), identity.app_uid, identity.tenant_uid, context.encode())


def value_aad(header: bytes, identity: Identity, context: str, row_id: bytes | None = None) -> bytes:
    """Return the additional authenticated data of a sealed value (RFC 5116, section 2.1).

    Args:
        header: The 10 header bytes and the tokens, complete.
        identity: Whose value it is.
        context: The column's context id.
        row_id: The row's encoded primary key; given exactly when the suite is bound to the row (0xFB).
    """
    before, after = value_aad_around(len(header), identity, context)
    aad = before + header + after
    return aad if row_id is None else aad + lp(row_id)


def value_aad_around(header_bytes: int, identity: Identity, context: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the header and the tokens in the additional data of a column's values.

    Args:
        header_bytes: How long the header and the tokens are together.
        identity: Whose values they are.
        context: The column's context id.
    """
    before = lp(_VALUE_LABEL) + header_bytes.to_bytes(4, "big")
    return before, lp(identity.app_uid, identity.tenant_uid, context.encode())


def index_context(algorithm: int, identity: Identity, index: str, form: str) -> bytes:
    """Return the derivation context of a blind index's subkey.

    Args:
        algorithm: 1.
        identity: Whose index it is.
        index: The index's name, by default the column's context id: columns that share it share equality.
        form: How values become tokens, as text; another form is another subkey.
    """
    return lp(bytes((algorithm,)), identity.app_uid, identity.tenant_uid, index.encode(), form.encode())


def kek_context(algorithm: int, identity: Identity, generation: int) -> bytes:
    """Return the derivation context of a KEK's `wrap`, `mac` and `commit` subkeys."""
    return lp(
        bytes((algorithm,)),
        identity.app_uid,
        identity.tenant_uid,
        identity.keyset_bytes,
        b"kek",
        generation.to_bytes(4, "big"),
    )


def key_context(algorithm: int, identity: Identity, purpose: str, version: int) -> bytes:
    """Return the derivation context of a data or index key's commitment."""
    return lp(
        bytes((algorithm,)),
        identity.app_uid,
        identity.tenant_uid,
        identity.keyset_bytes,
        purpose.encode(),
        version.to_bytes(4, "big"),
    )


def record_aad(
    identity: Identity, purpose: str, version: int, *, kek_generation: int, algorithm: int, commitment: bytes
) -> bytes:
    """Return the additional authenticated data of a key record.

    No timestamp and no state: databases round timestamps, and states change after the key was wrapped.
    """
    return lp(
        _RECORD_LABEL,
        identity.app_uid,
        identity.tenant_uid,
        identity.keyset_bytes,
        purpose.encode(),
        version.to_bytes(4, "big"),
        kek_generation.to_bytes(4, "big"),
        bytes((algorithm,)),
        commitment,
    )


def activation_message(identity: Identity, purpose: str, version: int, epoch: int, commitment: bytes) -> bytes:
    """Return what an activation MAC authenticates: this version was made ACTIVE at this epoch."""
    return lp(
        _ACTIVATION_LABEL,
        identity.keyset_bytes,
        purpose.encode(),
        version.to_bytes(4, "big"),
        epoch.to_bytes(8, "big"),
        commitment,
    )


KMS_TENANT: Final = "pii-vault:tenant"
"""The entry of the KMS encryption context that names the tenant: its uid in hexadecimal, or ``platform``."""


def kms_context(identity: Identity, purpose: str, number: int) -> Mapping[str, str]:
    """Return the KMS encryption context of a key: exactly five entries, frozen.

    It is stored in clear in the customer's CloudTrail and can stand in its key policy, so it holds opaque ids only.
    It holds no ARN: the wrapped key must stay valid when the KMS key is replicated or replaced.

    Args:
        identity: Whose key it is.
        purpose: ``kek``, ``data`` or ``index``.
        number: The KEK's generation, the data key's version or the index key's generation.
    """
    return _kms_context(
        {
            "pii-vault:format": "1",
            "pii-vault:app": identity.app_uid.hex(),
            KMS_TENANT: identity.tenant_uid.hex(),
            "pii-vault:purpose": purpose,
            "pii-vault:record": f"{identity.keyset_id:08x}.{number}",
        }
    )


def platform_context(app_uid: bytes, purpose: str) -> Mapping[str, str]:
    """Return the KMS encryption context of a key that is the application's own, not a tenant's: the audit key."""
    return _kms_context(
        {
            "pii-vault:format": "1",
            "pii-vault:app": app_uid.hex(),
            KMS_TENANT: "platform",
            "pii-vault:purpose": purpose,
            "pii-vault:record": "1",
        }
    )


def _kms_context(context: Mapping[str, str]) -> Mapping[str, str]:
    if not all(_KMS_VALUE.match(value) for value in context.values()):
        raise ConfigurationError("an encryption context value is 1 to 64 characters of a-z, 0-9, '.', '_', '-'")
    return context


def audit_context(algorithm: int, app_uid: bytes, tenant_uid: bytes | None = None) -> bytes:
    """Return the derivation context of the audit key's subkeys, or with a tenant those of its chain's keys."""
    owner = b"" if tenant_uid is None else tenant_uid
    return lp(bytes((algorithm,)), app_uid, owner, b"audit")


def chain_aad(identity: Identity, seq: int, head: bytes) -> bytes:
    """Return the additional authenticated data of a chain's sealed key: the place that it continues from."""
    return lp(_CHAIN_LABEL, identity.app_uid, identity.tenant_uid, seq.to_bytes(8, "big"), head)


def entry_message(identity: Identity, seq: int, head: bytes, text: bytes) -> bytes:
    """Return what the MAC of an audit entry authenticates.

    Args:
        identity: Whose chain it is.
        seq: The entry's place, from 1.
        head: The MAC of the entry before, 32 bytes; zeros for the first.
        text: The entry.
    """
    return lp(_ENTRY_LABEL, identity.app_uid, identity.tenant_uid, seq.to_bytes(8, "big"), head, text)
