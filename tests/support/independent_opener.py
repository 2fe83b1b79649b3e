"""A second implementation of the stored format, written from docs/format.md and docs/codecs.md alone.

It shares no code with the package and must never import it. It is written to be compared with the pages, line by line,
and is neither fast nor hardened. Only AES-256-GCM comes from a library.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NOT_ENCRYPTED = "not_encrypted"
UNSUPPORTED = "unsupported"
MALFORMED = "malformed"
FOREIGN = "foreign"
UNKNOWN_KEY = "unknown_key"
OPEN_FAILURE = "open_failure"
CODEC_MISMATCH = "codec_mismatch"
REFUSED = "refused"  # a value that a codec does not encode
FORGED = "forged"

SUITE_COLUMN = 0xFA
SUITE_ROW = 0xFB
ALGORITHM = 1


class Failure(Exception):
    """One of the named errors."""

    def __init__(self, kind: str, first_bad: int | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.first_bad = first_bad


# --- format.md 1 and 2: notation, derived keys ---


def u8(number: int) -> bytes:
    return struct.pack(">B", number)


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def lp(*parts: bytes) -> bytes:
    return b"".join(u32(len(part)) + part for part in parts)


def derive(key: bytes, use: str, context: bytes) -> bytes:
    fixed = b"pii_vault/1/" + use.encode() + u8(0) + context + u32(256)
    return hmac.digest(key, u32(1) + fixed, "sha256")


@dataclass(frozen=True)
class Tenant:
    app_uid: bytes
    tenant_uid: bytes
    keyset_id: int


def context_id(table: str, column: str) -> str:
    return ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in (table, column))


def column_context(tenant: Tenant, suite: int, context: str) -> bytes:
    return lp(u8(suite), tenant.app_uid, tenant.tenant_uid, context.encode())


def key_context(tenant: Tenant, purpose: str, number: int, algorithm: int = ALGORITHM) -> bytes:
    return lp(u8(algorithm), tenant.app_uid, tenant.tenant_uid, u32(tenant.keyset_id), purpose.encode(), u32(number))


def kek_context(tenant: Tenant, generation: int, algorithm: int = ALGORITHM) -> bytes:
    return key_context(tenant, "kek", generation, algorithm)


# --- format.md 3 and 4: the sealed value ---


@dataclass(frozen=True)
class Header:
    suite: int
    keyset_id: int
    version: int
    codec: int
    index_generation: int
    tokens: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        fixed = struct.pack(
            ">BIHBBB",
            self.suite,
            self.keyset_id,
            self.version,
            self.codec,
            self.index_generation,
            len(self.tokens),
        )
        return fixed + b"".join(self.tokens)


@dataclass(frozen=True)
class Parsed:
    header: Header
    header_and_tokens: bytes
    iv: bytes
    ciphertext_and_tag: bytes


@dataclass(frozen=True)
class Opened:
    codec: int
    plaintext: bytes


def parse(sealed: bytes) -> Parsed:
    """Rules 1 to 3."""
    if not sealed or sealed[0] < 0xF8:
        raise Failure(NOT_ENCRYPTED)
    if sealed[0] not in {SUITE_COLUMN, SUITE_ROW}:
        raise Failure(UNSUPPORTED)
    if len(sealed) < 38:
        raise Failure(MALFORMED)
    suite, keyset_id, version, codec, generation, last = struct.unpack_from(">BIHBBB", sealed)
    if last & 0xF0:
        raise Failure(MALFORMED)
    if version == 0 or codec == 0 or (last == 0) != (generation == 0):
        raise Failure(MALFORMED)
    if len(sealed) < 38 + 16 * last:
        raise Failure(MALFORMED)
    tokens = tuple(sealed[10 + 16 * i : 26 + 16 * i] for i in range(last))
    end = 10 + 16 * last
    header = Header(suite, keyset_id, version, codec, generation, tokens)
    return Parsed(header, sealed[:end], sealed[end : end + 12], sealed[end + 12 :])


def value_aad(tenant: Tenant, header_and_tokens: bytes, context: str, row_id: bytes | None) -> bytes:
    parts = [b"pii_vault/1/value", header_and_tokens, tenant.app_uid, tenant.tenant_uid, context.encode()]
    if header_and_tokens[0] == SUITE_ROW:
        assert row_id is not None
        parts.append(row_id)
    return lp(*parts)


def row_id(columns: Iterable[tuple[int, bytes]]) -> bytes:
    """The row id of (codec id, encoded value) for each primary-key column, in the table's order."""
    return b"".join(lp(u8(codec) + encoded) for codec, encoded in columns)


def open_value(
    sealed: bytes,
    *,
    tenant: Tenant,
    data_keys: Mapping[int, bytes],
    context: str,
    row_bound: bool = False,
    row: bytes | None = None,
    reads: Collection[int] | None = None,
) -> Opened:
    """Rules 1 to 8, but for the decoding of the plaintext. `reads` is None where the column's type is not known."""
    parsed = parse(sealed)
    header = parsed.header
    if header.suite != (SUITE_ROW if row_bound else SUITE_COLUMN):
        raise Failure(UNSUPPORTED)
    if header.keyset_id != tenant.keyset_id:
        raise Failure(FOREIGN)
    if header.version not in data_keys:
        raise Failure(UNKNOWN_KEY)
    subkey = derive(data_keys[header.version], "seal", column_context(tenant, header.suite, context))
    aad = value_aad(tenant, parsed.header_and_tokens, context, row)
    try:
        plaintext = AESGCM(subkey).decrypt(parsed.iv, parsed.ciphertext_and_tag, aad)
    except InvalidTag:
        raise Failure(OPEN_FAILURE) from None
    if reads is not None and header.codec not in reads:
        raise Failure(CODEC_MISMATCH)
    return Opened(header.codec, plaintext)


def seal_value(
    header: Header,
    iv: bytes,
    plaintext: bytes,
    *,
    tenant: Tenant,
    data_key: bytes,
    context: str,
    row: bytes | None = None,
) -> bytes:
    """Seal with a given IV: for known answers only."""
    front = header.to_bytes()
    subkey = derive(data_key, "seal", column_context(tenant, header.suite, context))
    return front + iv + AESGCM(subkey).encrypt(iv, plaintext, value_aad(tenant, front, context, row))


# --- format.md 5 and 6: key records, the KEK ---


@dataclass(frozen=True)
class KeyRecord:
    purpose: str
    version: int
    kek_generation: int
    algorithm: int
    iv: bytes
    encrypted_key: bytes
    commitment: bytes


def record_aad(tenant: Tenant, record: KeyRecord) -> bytes:
    return lp(
        b"pii_vault/1/record",
        tenant.app_uid,
        tenant.tenant_uid,
        u32(tenant.keyset_id),
        record.purpose.encode(),
        u32(record.version),
        u32(record.kek_generation),
        u8(record.algorithm),
        record.commitment,
    )


def key_commitment(tenant: Tenant, purpose: str, version: int, key: bytes) -> bytes:
    return derive(key, "commit", key_context(tenant, purpose, version))


def kek_commitment(tenant: Tenant, generation: int, kek: bytes) -> bytes:
    return derive(kek, "commit", kek_context(tenant, generation))


def unwrap(tenant: Tenant, record: KeyRecord, kek: bytes) -> bytes:
    if record.algorithm != ALGORITHM or len(record.iv) != 12 or len(record.encrypted_key) != 48:
        raise Failure(OPEN_FAILURE)
    wrap = derive(kek, "wrap", kek_context(tenant, record.kek_generation))
    try:
        key = AESGCM(wrap).decrypt(record.iv, record.encrypted_key, record_aad(tenant, record))
    except InvalidTag:
        raise Failure(OPEN_FAILURE) from None
    if not hmac.compare_digest(key_commitment(tenant, record.purpose, record.version, key), record.commitment):
        raise Failure(OPEN_FAILURE)
    return key


def wrap_key(tenant: Tenant, record: KeyRecord, kek: bytes, key: bytes) -> bytes:
    """Wrap with the record's IV: for known answers only. The record's `encrypted_key` is not looked at."""
    wrap = derive(kek, "wrap", kek_context(tenant, record.kek_generation))
    return AESGCM(wrap).encrypt(record.iv, key, record_aad(tenant, record))


def activation_message(keyset_id: int, purpose: str, version: int, epoch: int, commitment: bytes) -> bytes:
    return lp(b"pii_vault/1/activation", u32(keyset_id), purpose.encode(), u32(version), u64(epoch), commitment)


def activation_mac(tenant: Tenant, record: KeyRecord, kek: bytes, epoch: int) -> bytes:
    key = derive(kek, "mac", kek_context(tenant, record.kek_generation))
    message = activation_message(tenant.keyset_id, record.purpose, record.version, epoch, record.commitment)
    return hmac.digest(key, message, "sha256")


def check_activation(tenant: Tenant, record: KeyRecord, kek: bytes, epoch: int, mac: bytes) -> None:
    if epoch < 1 or not hmac.compare_digest(activation_mac(tenant, record, kek, epoch), mac):
        raise Failure(OPEN_FAILURE)


def kms_context(tenant: Tenant, purpose: str, number: int) -> dict[str, str]:
    return {
        "pii-vault:format": "1",
        "pii-vault:app": tenant.app_uid.hex(),
        "pii-vault:tenant": tenant.tenant_uid.hex(),
        "pii-vault:purpose": purpose,
        "pii-vault:record": f"{tenant.keyset_id:08x}.{number}",
    }


# --- format.md 9: the audit log ---


@dataclass(frozen=True)
class Entry:
    number: int
    text: str
    mac: bytes


@dataclass(frozen=True)
class End:
    number: int
    mac: bytes
    sealed_key: bytes


NO_MAC = bytes(32)


def audit_key_context(app_uid: bytes, algorithm: int = ALGORITHM) -> bytes:
    return lp(u8(algorithm), app_uid, b"", b"audit")


def chain_key_context(tenant: Tenant, algorithm: int = ALGORITHM) -> bytes:
    return lp(u8(algorithm), tenant.app_uid, tenant.tenant_uid, b"audit")


def audit_key_commitment(app_uid: bytes, audit_key: bytes) -> bytes:
    return derive(audit_key, "commit", audit_key_context(app_uid))


def platform_context(app_uid: bytes, purpose: str) -> dict[str, str]:
    return {
        "pii-vault:format": "1",
        "pii-vault:app": app_uid.hex(),
        "pii-vault:tenant": "platform",
        "pii-vault:purpose": purpose,
        "pii-vault:record": "1",
    }


def entry_message(tenant: Tenant, number: int, before: bytes, text: str) -> bytes:
    return lp(b"pii_vault/1/audit", tenant.app_uid, tenant.tenant_uid, u64(number), before, text.encode())


def entry_mac(tenant: Tenant, chain_key: bytes, number: int, before: bytes, text: str) -> bytes:
    key = derive(chain_key, "mac", chain_key_context(tenant))
    return hmac.digest(key, entry_message(tenant, number, before, text), "sha256")


def next_chain_key(tenant: Tenant, chain_key: bytes) -> bytes:
    return derive(chain_key, "ratchet", chain_key_context(tenant))


def chain_aad(tenant: Tenant, number: int, mac: bytes) -> bytes:
    return lp(b"pii_vault/1/chain", tenant.app_uid, tenant.tenant_uid, u64(number), mac)


def open_end(tenant: Tenant, audit_key: bytes, end: End) -> bytes:
    if len(end.sealed_key) != 60:
        raise Failure(OPEN_FAILURE)
    wrap = derive(audit_key, "wrap", audit_key_context(tenant.app_uid))
    try:
        return AESGCM(wrap).decrypt(end.sealed_key[:12], end.sealed_key[12:], chain_aad(tenant, end.number, end.mac))
    except InvalidTag:
        raise Failure(OPEN_FAILURE) from None


def seal_end(tenant: Tenant, audit_key: bytes, number: int, mac: bytes, chain_key: bytes, iv: bytes) -> End:
    """Seal with a given IV: for known answers only."""
    wrap = derive(audit_key, "wrap", audit_key_context(tenant.app_uid))
    return End(number, mac, iv + AESGCM(wrap).encrypt(iv, chain_key, chain_aad(tenant, number, mac)))


def verify_chain(tenant: Tenant, root: bytes, audit_key: bytes, entries: Sequence[Entry], end: End) -> list[bytes]:
    """The chain keys k(1) to k(n+1) of a chain that is in order."""
    keys = [root]
    mac = NO_MAC
    for number, entry in enumerate(entries, 1):
        mac = entry_mac(tenant, keys[-1], number, mac, entry.text)
        if entry.number != number or not hmac.compare_digest(mac, entry.mac):
            raise Failure(FORGED, number)
        keys.append(next_chain_key(tenant, keys[-1]))
    if end.number > len(entries):
        raise Failure(FORGED, len(entries) + 1)
    opened = open_end(tenant, audit_key, end)
    in_order = end.number == len(entries) and hmac.compare_digest(end.mac, mac)
    if not in_order or not hmac.compare_digest(opened, keys[-1]):
        raise Failure(OPEN_FAILURE)
    return keys


# --- codecs.md ---


@dataclass(frozen=True)
class Kind:
    """What a column, or the items of an array, declare: the codecs, and what an array or an enum needs besides.

    `members` holds each name with the name that it stands for: itself, or for an alias the member.
    """

    codecs: tuple[int, ...]
    items: Kind | None = None
    members: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Member:
    name: str


def encode(kind: Kind, value: object) -> tuple[int, bytes]:
    """The first codec of the kind that takes the value."""
    for codec in kind.codecs:
        try:
            return codec, _CODECS[codec][0](value, kind)
        except Failure:
            continue
    raise Failure(REFUSED)


def decode(kind: Kind, codec: int, encoded: bytes) -> Any:
    if codec not in kind.codecs:
        raise Failure(CODEC_MISMATCH)
    return _CODECS[codec][1](encoded, kind)


def _require(condition: bool, kind: str) -> None:
    if not condition:
        raise Failure(kind)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encode_text(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, str), REFUSED)
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise Failure(REFUSED) from None


def _decode_text(encoded: bytes, _: Kind) -> str:
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(MALFORMED) from None


def _encode_bytes(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, bytes | bytearray | memoryview), REFUSED)
    return bytes(value)


def _decode_bytes(encoded: bytes, _: Kind) -> bytes:
    return encoded


def _in_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _encode_int64(value: Any, _: Kind) -> bytes:
    _require(_is_int(value) and _in_int64(value), REFUSED)
    return struct.pack(">q", value)


def _decode_signed(encoded: bytes, size: int) -> int:
    _require(len(encoded) == size, MALFORMED)
    return int.from_bytes(encoded, "big", signed=True)


def _decode_int64(encoded: bytes, _: Kind) -> int:
    return _decode_signed(encoded, 8)


def _encode_bigint(value: Any, _: Kind) -> bytes:
    _require(_is_int(value) and not _in_int64(value), REFUSED)
    size = 9
    while not -(1 << (8 * size - 1)) <= value < 1 << (8 * size - 1):
        size += 1
    return int(value).to_bytes(size, "big", signed=True)


def _decode_bigint(encoded: bytes, kind: Kind) -> int:
    _require(len(encoded) >= 9, MALFORMED)
    number = int.from_bytes(encoded, "big", signed=True)
    _require(not _in_int64(number), MALFORMED)
    _require(_encode_bigint(number, kind) == encoded, MALFORMED)
    return number


def _encode_float(value: Any, _: Kind) -> bytes:
    if _is_int(value):
        try:
            exact = float(value)
        except OverflowError:
            raise Failure(REFUSED) from None
        _require(int(exact) == value, REFUSED)
        value = exact
    _require(isinstance(value, float), REFUSED)
    return struct.pack(">d", value)


def _decode_float(encoded: bytes, _: Kind) -> float:
    _require(len(encoded) == 8, MALFORMED)
    return float(struct.unpack(">d", encoded)[0])


_DECIMAL = re.compile(rb"(-?)([0-9]+)(?:\.([0-9]+))?(?:E([+-][0-9]+))?")
_DECIMAL_MOST = 10**18 - 1
_DECIMAL_LEAST = -1999999999999999997


def _decimal_text(sign: int, digits: str, exponent: int) -> str:
    adjusted = exponent + len(digits) - 1
    if exponent == 0:
        text = digits
    elif exponent < 0 and adjusted >= -6:
        padded = digits.rjust(1 - exponent, "0")
        text = f"{padded[:exponent]}.{padded[exponent:]}"
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"E{adjusted:+d}"
    return "-" * sign + text


def _encode_decimal(value: Any, _: Kind) -> bytes:
    if _is_int(value):
        value = Decimal(value)
    _require(isinstance(value, Decimal) and value.is_finite(), REFUSED)
    sign, digits, exponent = value.as_tuple()
    return _decimal_text(sign, "".join(map(str, digits)).lstrip("0") or "0", int(exponent)).encode()


def _decode_decimal(encoded: bytes, _: Kind) -> Decimal:
    match = _DECIMAL.fullmatch(encoded)
    if match is None or len(match[4] or b"") > 20:
        raise Failure(MALFORMED)
    fraction = (match[3] or b"").decode()
    digits = (match[2].decode() + fraction).lstrip("0") or "0"
    exponent = int(match[4] or 0) - len(fraction)
    sign = int(match[1] == b"-")
    _require(_decimal_text(sign, digits, exponent).encode() == encoded, MALFORMED)
    _require(exponent + len(digits) - 1 <= _DECIMAL_MOST and exponent >= _DECIMAL_LEAST, MALFORMED)
    return Decimal((sign, tuple(map(int, digits)), exponent))


def _encode_bool(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, bool), REFUSED)
    return b"\x01" if value else b"\x00"


def _decode_bool(encoded: bytes, _: Kind) -> bool:
    _require(encoded in {b"\x00", b"\x01"}, MALFORMED)
    return encoded == b"\x01"


_DAY_ZERO = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1)
_FIRST = -62_135_596_800_000_000
_LAST = 253_402_300_799_999_999


def _encode_date(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, date) and not isinstance(value, datetime), REFUSED)
    return struct.pack(">i", value.toordinal() - _DAY_ZERO)


def _decode_date(encoded: bytes, _: Kind) -> date:
    days = _decode_signed(encoded, 4)
    _require(-719162 <= days <= 2932896, MALFORMED)
    return date.fromordinal(days + _DAY_ZERO)


def _encode_time(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, time) and value.tzinfo is None, REFUSED)
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return u64(seconds * 10**6 + value.microsecond)


def _decode_time(encoded: bytes, _: Kind) -> time:
    number = _decode_signed(encoded, 8)
    _require(0 <= number <= 86_399_999_999, MALFORMED)
    return (_EPOCH + number * _MICROSECOND).time()


def _encode_aware(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, datetime), REFUSED)
    offset = value.utcoffset()
    if offset is None or offset % timedelta(seconds=1):
        raise Failure(REFUSED)
    wall = (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    seconds = offset // timedelta(seconds=1)
    return struct.pack(">qi", wall - seconds * 10**6, seconds)


def _decode_aware(encoded: bytes, _: Kind) -> datetime:
    _require(len(encoded) == 12, MALFORMED)
    instant, seconds = struct.unpack(">qi", encoded)
    _require(-86399 <= seconds <= 86399, MALFORMED)
    wall = instant + seconds * 10**6
    _require(_FIRST <= wall <= _LAST, MALFORMED)
    zone = timezone(timedelta(seconds=seconds)) if seconds else UTC
    return (_EPOCH + wall * _MICROSECOND).replace(tzinfo=zone)


def _encode_naive(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, datetime) and value.tzinfo is None, REFUSED)
    return struct.pack(">q", (value - _EPOCH) // _MICROSECOND)


def _decode_naive(encoded: bytes, _: Kind) -> datetime:
    number = _decode_signed(encoded, 8)
    _require(_FIRST <= number <= _LAST, MALFORMED)
    return _EPOCH + number * _MICROSECOND


def _encode_uuid(value: Any, _: Kind) -> bytes:
    _require(isinstance(value, UUID), REFUSED)
    return bytes.fromhex(str(value).replace("-", ""))


def _decode_uuid(encoded: bytes, _: Kind) -> UUID:
    _require(len(encoded) == 16, MALFORMED)
    return UUID(encoded.hex())


def _member_number(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


def _encode_enum(value: Any, kind: Kind) -> bytes:
    assert kind.members is not None
    _require(isinstance(value, Member) and value.name in kind.members, REFUSED)
    return _member_number(kind.members[value.name])


def _decode_enum(encoded: bytes, kind: Kind) -> Member:
    assert kind.members is not None
    for name, member in kind.members.items():
        if _member_number(name) == encoded:
            return Member(member)
    raise Failure(MALFORMED)


_JSON_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JSON_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?(e[+-]?[0-9]+)?")
_JSON_DEPTH = 100
_JSON_DIGITS = 4300


def _json_float(number: float) -> str:
    if not math.isfinite(number):
        raise Failure(REFUSED)
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    if number == 0:
        return sign + "0.0"
    # repr() has the shortest digits; only they are taken from it, not its notation.
    _, found, exponent = Decimal(repr(abs(number))).as_tuple()
    digits = "".join(map(str, found)).strip("0")
    # The first significant digit stands at 10^(p - 1).
    p = len("".join(map(str, found)).lstrip("0")) + int(exponent)
    if not -4 < p <= 16:
        return sign + digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{p - 1:+03d}"
    if p <= 0:
        return sign + "0." + "0" * -p + digits
    whole = digits[:p].ljust(p, "0")
    return sign + whole + "." + (digits[p:] or "0")


def _json_string(text: Any) -> str:
    _require(isinstance(text, str), REFUSED)
    _require(not any(0xD800 <= ord(c) < 0xE000 for c in text), REFUSED)
    return '"' + "".join(_JSON_ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text) + '"'


def _json_text(value: Any, depth: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        _require(abs(value) < 10**_JSON_DIGITS, REFUSED)
        return _long_text(value)
    if isinstance(value, float):
        return _json_float(value)
    if isinstance(value, str):
        return _json_string(value)
    _require(isinstance(value, dict | list | tuple), REFUSED)
    _require(depth < _JSON_DEPTH, REFUSED)
    if isinstance(value, dict):
        _require(all(isinstance(key, str) for key in value), REFUSED)
        texts = [_json_string(key) + ":" + _json_text(value[key], depth + 1) for key in sorted(value)]
        return "{" + ",".join(texts) + "}"
    return "[" + ",".join(_json_text(item, depth + 1) for item in value) + "]"


class _JsonReader:
    """Reads the one form that codec 14 writes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, token: str) -> bool:
        found = self.text.startswith(token, self.at)
        if found:
            self.at += len(token)
        return found

    def expect(self, token: str) -> None:
        _require(self.take(token), MALFORMED)

    def value(self, depth: int) -> Any:
        for token, constant in (("null", None), ("true", True), ("false", False)):
            if self.take(token):
                return constant
        if self.text.startswith('"', self.at):
            return self.string()
        if self.take("["):
            _require(depth < _JSON_DEPTH, MALFORMED)
            return self.array(depth + 1)
        if self.take("{"):
            _require(depth < _JSON_DEPTH, MALFORMED)
            return self.object(depth + 1)
        return self.number()

    def array(self, depth: int) -> list[Any]:
        items: list[Any] = []
        if self.take("]"):
            return items
        while True:
            items.append(self.value(depth))
            if self.take("]"):
                return items
            self.expect(",")

    def object(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        last: str | None = None
        if self.take("}"):
            return items
        while True:
            key = self.string()
            _require(last is None or last < key, MALFORMED)
            last = key
            self.expect(":")
            items[key] = self.value(depth)
            if self.take("}"):
                return items
            self.expect(",")

    def string(self) -> str:
        self.expect('"')
        found: list[str] = []
        while not self.take('"'):
            escape = next((c for c, written in _JSON_ESCAPES.items() if self.take(written)), None)
            if escape is not None:
                found.append(escape)
                continue
            match = re.compile(r"\\u(00[01][0-9a-f])").match(self.text, self.at)
            if match:
                character = chr(int(match[1], 16))
                _require(character not in _JSON_ESCAPES, MALFORMED)
                self.at = match.end()
            else:
                character = self.text[self.at : self.at + 1]
                _require(character >= " " and character != "\\", MALFORMED)
                self.at += 1
            found.append(character)
        return "".join(found)

    def number(self) -> int | float:
        match = _JSON_NUMBER.match(self.text, self.at)
        if match is None:
            raise Failure(MALFORMED)
        self.at = match.end()
        if match[2] is None and match[3] is None:
            _require(match[0] != "-0" and len(match[0].lstrip("-")) <= _JSON_DIGITS, MALFORMED)
            return long_int(match[0])
        number = float(match[0])
        _require(math.isfinite(number) and _json_float(number) == match[0], MALFORMED)
        return number


_PIECE = 600  # digits; an interpreter can be told to convert no more than 640 at a time


def long_int(text: str) -> int:
    """An integer of any size, read in pieces."""
    digits = text.lstrip("-")
    number = 0
    for start in range(0, len(digits), _PIECE):
        piece = digits[start : start + _PIECE]
        number = number * 10 ** len(piece) + int(piece)
    return -number if text.startswith("-") else number


def _long_text(number: int) -> str:
    pieces: list[str] = []
    rest = abs(number)
    while rest >= 10**_PIECE:
        rest, piece = divmod(rest, 10**_PIECE)
        pieces.append(f"{piece:0{_PIECE}d}")
    return "-" * (number < 0) + str(rest) + "".join(reversed(pieces))


def _encode_json(value: Any, _: Kind) -> bytes:
    _require(value is not None, REFUSED)
    return _json_text(value, 0).encode()


def _decode_json(encoded: bytes, kind: Kind) -> Any:
    reader = _JsonReader(_decode_text(encoded, kind))
    value = reader.value(0)
    _require(reader.at == len(reader.text) and value is not None, MALFORMED)
    return value


def _encode_array(value: Any, kind: Kind) -> bytes:
    _require(isinstance(value, list | tuple), REFUSED)
    assert kind.items is not None
    parts: list[bytes] = []
    for item in value:
        if item is None:
            parts.append(b"\x00")
        else:
            codec, encoded = encode(kind.items, item)
            parts.append(u8(codec) + lp(encoded))
    return b"".join(parts)


def _decode_array(encoded: bytes, kind: Kind) -> list[Any]:
    assert kind.items is not None
    items: list[Any] = []
    at = 0
    while at < len(encoded):
        codec = encoded[at]
        at += 1
        if codec == 0:
            items.append(None)
            continue
        _require(codec in kind.items.codecs, MALFORMED)
        _require(at + 4 <= len(encoded), MALFORMED)
        (size,) = struct.unpack_from(">I", encoded, at)
        at += 4
        _require(at + size <= len(encoded), MALFORMED)
        items.append(decode(kind.items, codec, encoded[at : at + size]))
        at += size
    return items


_CODECS: Mapping[int, tuple[Callable[[Any, Kind], bytes], Callable[[bytes, Kind], Any]]] = {
    1: (_encode_text, _decode_text),
    2: (_encode_bytes, _decode_bytes),
    3: (_encode_int64, _decode_int64),
    4: (_encode_bigint, _decode_bigint),
    5: (_encode_float, _decode_float),
    6: (_encode_decimal, _decode_decimal),
    7: (_encode_bool, _decode_bool),
    8: (_encode_date, _decode_date),
    9: (_encode_time, _decode_time),
    10: (_encode_aware, _decode_aware),
    11: (_encode_naive, _decode_naive),
    12: (_encode_uuid, _decode_uuid),
    13: (_encode_enum, _decode_enum),
    14: (_encode_json, _decode_json),
    15: (_encode_array, _decode_array),
}

CODEC_NAMES: Sequence[str] = (
    "",
    "text",
    "bytes",
    "int64",
    "bigint",
    "float64",
    "decimal",
    "bool",
    "date",
    "time",
    "datetime_aware",
    "datetime_naive",
    "uuid",
    "enum",
    "json",
    "array",
)
