"""The stored format: parse a sealed value's header, build one. Knows no key and opens nothing.

A sealed value, wire format 1 (docs/format.md, section 1)::

    offset  size  field
    0       1     suite: 0xFA bound to tenant and column, 0xFB bound to the row as well
    1       4     keyset id, big endian
    5       2     data-key version, big endian, from 1
    7       1     codec id: how the plaintext bytes encode the value
    8       1     index-key generation; 0 exactly when there are no tokens
    9       1     low nibble: number of blind-index tokens k; high nibble reserved, 0
    10      16k   blind-index tokens
    …       12    IV
    …       n     ciphertext, as long as the encoded plaintext
    …       16    tag

This layout is frozen: bytes written by any release open under every later one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .errors import FormatError, NotEncryptedError

SUITE_COLUMN: Final = 0xFA
SUITE_ROW: Final = 0xFB
SUITE_ESCAPE: Final = 0xFF

HEADER_BYTES: Final = 10
TOKEN_BYTES: Final = 16
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER_BYTES + IV_BYTES + TAG_BYTES

PLAINTEXT_MARK: Final = b"~"
"""What a plaintext begins with that is delivered in a sealed value's place. No sealed value begins so."""

MAX_KEYSET_ID: Final = 0xFFFF_FFFF
MAX_VERSION: Final = 0xFFFF
MAX_GENERATION: Final = 0xFF
MAX_TOKENS: Final = 0x0F

_SUITES: Final = frozenset((SUITE_COLUMN, SUITE_ROW))


class Header(NamedTuple):
    """The first 10 bytes of a sealed value, in the clear but under its authentication tag."""

    suite: int
    keyset_id: int
    version: int
    codec: int
    index_generation: int = 0
    tokens: int = 0

    def pack(self) -> bytes:
        """Return the 10 bytes.

        Raises:
            FormatError: a field is out of its range, or tokens and generation contradict each other. Counters never
                wrap: the version after 65535 and the generation after 255 do not exist.
        """
        _check(self)
        return (
            bytes((self.suite,))
            + self.keyset_id.to_bytes(4, "big")
            + self.version.to_bytes(2, "big")
            + bytes((self.codec, self.index_generation, self.tokens))
        )

    @property
    def iv_offset(self) -> int:
        """Where the IV starts: after the header and the tokens."""
        return HEADER_BYTES + TOKEN_BYTES * self.tokens


def parse(sealed: bytes) -> Header:
    """Return the header of a sealed value.

    Raises:
        NotEncryptedError: the bytes do not start as a sealed value does.
        FormatError: they do, but the rest is shorter or other than the format allows.
    """
    if not sealed or sealed[0] not in _SUITES:
        raise _not_ours(sealed)
    if len(sealed) < OVERHEAD_BYTES:
        raise FormatError(f"a sealed value has at least {OVERHEAD_BYTES} bytes, this one {len(sealed)}")
    header = Header(
        sealed[0],
        int.from_bytes(sealed[1:5], "big"),
        int.from_bytes(sealed[5:7], "big"),
        sealed[7],
        sealed[8],
        sealed[9],
    )
    _check(header)
    if len(sealed) < header.iv_offset + IV_BYTES + TAG_BYTES:
        raise FormatError(f"a sealed value with {header.tokens} tokens is longer than {len(sealed)} bytes")
    return header


def _check(header: Header) -> None:
    if header.suite not in _SUITES:
        raise FormatError("unknown suite")
    if not 0 <= header.keyset_id <= MAX_KEYSET_ID:
        raise FormatError("the keyset id is outside 0 to 2^32 - 1")
    if not 1 <= header.version <= MAX_VERSION:
        raise FormatError("the key version is outside 1 to 65535")
    if not 1 <= header.codec <= MAX_GENERATION:
        raise FormatError("the codec id is outside 1 to 255")
    if header.tokens & 0xF0 or not 0 <= header.tokens <= MAX_TOKENS:
        raise FormatError("reserved bits are set beside the token count")
    if not 0 <= header.index_generation <= MAX_GENERATION:
        raise FormatError("the index-key generation is outside 0 to 255")
    if (header.tokens == 0) != (header.index_generation == 0):
        raise FormatError("tokens and index-key generation contradict each other")


def _not_ours(sealed: bytes) -> FormatError:
    if sealed and sealed[0] >= 0xF8:
        # These bytes never start UTF-8 text: more likely a format of a later release than a leftover plaintext.
        return FormatError("unknown format or suite", hint="it may need a newer release of pii_vault")
    return NotEncryptedError(
        "an encrypted column holds a value that was never sealed",
        hint="it was written past the vault; find such rows and seal them before reading",
    )
