"""A sealed value as text: read what databases print, name what its header says."""

from __future__ import annotations

import base64
import binascii
import re
import sys

from ..encoding import REGISTRY
from ..envelope import IV_BYTES, SUITE_ROW, TAG_BYTES, TOKEN_BYTES, parse
from ..errors import ConfigurationError
from .documents import SealedValue

_SQL_HEX = re.compile(r"(?:\\x|0x|[xX]')([0-9A-Fa-f]*)'?")


def parse_text(text: str) -> bytes:
    r"""Return the bytes of a value written as hex (also ``\x…``, ``0x…``, ``x'…'``) or as base64.

    Raises:
        ConfigurationError: it is neither. The text is not shown.
    """
    text = "".join((sys.stdin.read() if text == "-" else text).split())
    sql = _SQL_HEX.fullmatch(text)
    text = sql[1] if sql else text
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        pass
    raise ConfigurationError("the value is neither hex nor base64", hint="in SQL: encode(column, 'hex') or hex(column)")


def describe(sealed: bytes) -> SealedValue:
    """Return what the header of a sealed value says, and the sizes of its parts.

    Raises:
        FormatError: it is not a sealed value of this release.
    """
    header = parse(sealed)
    overhead = header.iv_offset + IV_BYTES + TAG_BYTES
    return SealedValue(
        format=1,
        suite=f"0x{header.suite:02x}",
        algorithm="AES-256-GCM",
        bound_to=["tenant", "column", "row"] if header.suite == SUITE_ROW else ["tenant", "column"],
        keyset_id=f"{header.keyset_id:08x}",
        key_version=header.version,
        codec=REGISTRY.get(header.codec),
        codec_id=header.codec,
        index_generation=header.index_generation or None,
        tokens=header.tokens,
        token_bytes=header.tokens * TOKEN_BYTES,
        plaintext_bytes=len(sealed) - overhead,
        stored_bytes=len(sealed),
    )
