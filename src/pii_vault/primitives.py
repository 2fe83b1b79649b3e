"""Seal, open, derive, authenticate: the only module that imports `cryptography`.

Everything here is a few lines around a standard construction, and nothing here knows what the bytes mean:

- AES-256-GCM with a fresh random 96-bit IV and a 128-bit tag (SP 800-38D; RFC 5116, AEAD_AES_256_GCM);
- the SP 800-108r1 key derivation in counter mode with HMAC-SHA256;
- HMAC-SHA256 (FIPS 198-1), compared in constant time.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from .errors import OpenError

KEY_BYTES: Final = 32
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
COMMITMENT_BYTES: Final = 32

_LABEL: Final = "pii_vault/1/"
USES: Final = frozenset(("seal", "index", "wrap", "commit", "mac", "ratchet"))

# (IV, data, AAD) -> ciphertext and tag, or plaintext
Cipher = Callable[[bytes, bytes, bytes], bytes]

new_iv = os.urandom
"""`new_iv(12)`: always from the kernel. A pool in the process would repeat IVs after a fork or a VM snapshot."""


def library() -> str:
    """Return the names and versions of what does the cryptography: the package, and the OpenSSL in it."""
    from cryptography import __version__
    from cryptography.hazmat.backends.openssl.backend import backend

    return f"cryptography {__version__}, {backend.openssl_version_text()}"


def random_uid() -> bytes:
    """Return 16 random bytes."""
    return os.urandom(16)


def random_u32() -> int:
    """Return a random integer of 32 bits."""
    return int.from_bytes(os.urandom(4), "big")


def derive(key: bytes, use: str, context: bytes) -> bytes:
    """Derive a 32-byte subkey (SP 800-108r1, section 4.1: counter mode, HMAC-SHA256, r = 32).

    The fixed input is label, a zero byte, context and the output length as 32 bits; one iteration gives all 256 bits.

    Args:
        key: 32 uniform bytes: a KEK, data, index, audit or chain key.
        use: One of `USES`; it becomes the label ``pii_vault/1/<use>``.
        context: Canonical bytes from `pii_vault.context`.
    """
    if use not in USES:
        raise ValueError(f"{use!r} is not a use of a derived key")
    _check_key(key)
    kdf = KBKDFHMAC(
        algorithm=SHA256(),
        mode=Mode.CounterMode,
        length=KEY_BYTES,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=(_LABEL + use).encode(),
        context=context,
        fixed=None,
    )
    return kdf.derive(key)


def sealer(key: bytes) -> Cipher:
    """Return ``encrypt(iv, plaintext, aad) -> ciphertext + tag`` with the key schedule done once.

    The caller passes a fresh `new_iv` (12 bytes) with every call. At most 2^32 calls per key (SP 800-38D, section 8.3).
    """
    _check_key(key)
    return AESGCM(key).encrypt


def opener(key: bytes) -> Cipher:
    """Return ``decrypt(iv, ciphertext + tag, aad) -> plaintext``; it raises `INVALID_TAG` when the tag is wrong."""
    _check_key(key)
    return AESGCM(key).decrypt


INVALID_TAG: Final = InvalidTag
"""What a cipher from `opener` raises when the tag does not match."""


def seal(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Seal under a fresh IV: 12 bytes IV, ciphertext, 16 bytes tag."""
    iv = new_iv(IV_BYTES)
    return iv + sealer(key)(iv, plaintext, aad)


def open_(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Open what `seal` made.

    Raises:
        OpenError: the bytes, the key or the AAD are not those of the seal.
    """
    if len(sealed) < IV_BYTES + TAG_BYTES:
        raise OpenError("sealed bytes are too short")
    opened: bytes | None = None
    try:
        opened = opener(key)(sealed[:IV_BYTES], sealed[IV_BYTES:], aad)
    except INVALID_TAG:
        pass
    if opened is None:
        raise OpenError("authentication failed")
    return opened


def mac(key: bytes, message: bytes) -> bytes:
    """Return the HMAC-SHA256 of a message: 32 bytes."""
    _check_key(key)
    return hmac.digest(key, message, "sha256")


def authenticator(key: bytes) -> Callable[[bytes], bytes]:
    """Return ``mac(message) -> 32 bytes``, the same HMAC-SHA256 with the key schedule done once."""
    _check_key(key)
    begin = HMAC(key, SHA256()).copy

    def mac_of(message: bytes) -> bytes:
        state = begin()
        state.update(message)
        return state.finalize()

    return mac_of


def equal(left: bytes, right: bytes) -> bool:
    """Compare in a time that does not depend on where the bytes differ."""
    return hmac.compare_digest(left, right)


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
