"""Make the known-answer files of the stored format, from HMAC and AES-GCM alone.

Nothing of pii_vault is imported: this is a second implementation of docs/format.md, short enough to be read beside it.

The files are frozen. A case that stands in a file is never changed or removed, because values like it are stored in
customers' databases; cases are only added. ``python tests/vectors/generate.py`` therefore refuses to write a file
that would lose or change a case, and ``--check`` writes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).parent
Case = dict[str, Any]


# The constructions of docs/format.md.


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def lp(*parts: bytes) -> bytes:
    return b"".join(u32(len(part)) + part for part in parts)


def kdf(key: bytes, use: str, context: bytes) -> bytes:
    message = u32(1) + f"pii_vault/1/{use}".encode() + b"\x00" + context + u32(256)
    return hmac.digest(key, message, "sha256")


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def gcm(key: bytes, iv: bytes, plaintext: bytes, aad: bytes) -> bytes:
    return AESGCM(key).encrypt(iv, plaintext, aad)


def context_id(table: str, column: str) -> str:
    return ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in (table, column))


# The cast: everything that is random in life is a hash of its name here.


def fixed(name: str, size: int = 32) -> bytes:
    return hashlib.sha256(f"pii_vault test vector: {name}".encode()).digest()[:size]


APP, OTHER_APP = fixed("application", 16), fixed("another application", 16)
ACME, GLOB = fixed("tenant acme", 16), fixed("tenant glob", 16)
ACME_KEYSET, GLOB_KEYSET = 0x5EC2E7A1, 0x0BADCAFE
EMAIL = "customers.email"

Owner = tuple[bytes, bytes, int]
OWNER: Owner = (APP, ACME, ACME_KEYSET)


def column_context(suite: int, owner: Owner, context: str) -> bytes:
    return lp(bytes((suite,)), owner[0], owner[1], context.encode())


def value_aad(header: bytes, owner: Owner, context: str, row: bytes | None = None) -> bytes:
    parts = (b"pii_vault/1/value", header, owner[0], owner[1], context.encode())
    return lp(*parts) if row is None else lp(*parts, row)


def kek_context(algorithm: int, owner: Owner, generation: int) -> bytes:
    return lp(bytes((algorithm,)), owner[0], owner[1], u32(owner[2]), b"kek", u32(generation))


def key_context(algorithm: int, owner: Owner, purpose: str, version: int) -> bytes:
    return lp(bytes((algorithm,)), owner[0], owner[1], u32(owner[2]), purpose.encode(), u32(version))


def record_aad(
    owner: Owner, purpose: str, version: int, kek_generation: int, algorithm: int, commitment: bytes
) -> bytes:
    return lp(
        b"pii_vault/1/record",
        owner[0],
        owner[1],
        u32(owner[2]),
        purpose.encode(),
        u32(version),
        u32(kek_generation),
        bytes((algorithm,)),
        commitment,
    )


def activation_message(owner: Owner, purpose: str, version: int, epoch: int, commitment: bytes) -> bytes:
    return lp(b"pii_vault/1/activation", u32(owner[2]), purpose.encode(), u32(version), u64(epoch), commitment)


def kms_context(owner: Owner, purpose: str, number: int) -> dict[str, str]:
    return {
        "pii-vault:format": "1",
        "pii-vault:app": owner[0].hex(),
        "pii-vault:tenant": owner[1].hex(),
        "pii-vault:purpose": purpose,
        "pii-vault:record": f"{owner[2]:08x}.{number}",
    }


def audit_context(algorithm: int, app: bytes, tenant: bytes = b"") -> bytes:
    return lp(bytes((algorithm,)), app, tenant, b"audit")


def entry_message(owner: Owner, number: int, before: bytes, text: str) -> bytes:
    return lp(b"pii_vault/1/audit", owner[0], owner[1], u64(number), before, text.encode())


def chain_aad(owner: Owner, number: int, head: bytes) -> bytes:
    return lp(b"pii_vault/1/chain", owner[0], owner[1], u64(number), head)


def platform_context(app: bytes, purpose: str) -> dict[str, str]:
    return {
        "pii-vault:format": "1",
        "pii-vault:app": app.hex(),
        "pii-vault:tenant": "platform",
        "pii-vault:purpose": purpose,
        "pii-vault:record": "1",
    }


def header_bytes(suite: int, keyset: int, version: int, codec: int, generation: int, tokens: int) -> bytes:
    return bytes((suite,)) + u32(keyset) + u16(version) + bytes((codec, generation, tokens))


def row_id(*columns: tuple[int, bytes]) -> bytes:
    """Return the row id of a primary key, from the codec id and the encoded value of each of its columns."""
    return b"".join(lp(bytes((codec,)) + encoded) for codec, encoded in columns)


ROWS = {
    "integer key 1": row_id((3, u64(1))),
    "integer key 2": row_id((3, u64(2))),
    "text key": row_id((1, b"customer-17")),
    "uuid key": row_id((12, bytes(range(16)))),
    "key of two columns": row_id((3, u64(1)), (1, b"home")),
}


def owned(owner: Owner) -> Case:
    return {"app_uid": owner[0].hex(), "tenant_uid": owner[1].hex(), "keyset_id": owner[2]}


# context.json


OWNERS: dict[str, Owner] = {
    "acme": OWNER,
    "glob": (APP, GLOB, GLOB_KEYSET),
    "lowest keyset id": (APP, ACME, 0),
    "highest keyset id": (APP, ACME, 0xFFFFFFFF),
    "uids of zeros and ones": (bytes(16), b"\xff" * 16, 1),
}

CONTEXT_IDS = [
    EMAIL,
    "customers",
    "a.b",
    r"a\.b.c",
    r"a.b\.c",
    r"a\\.b",
    "kunden.straße",
    "顧客.名前",
    "customers.📧",
    "x" * 300,
    " customers.email",
    "Customers.email",
]


def context_cases() -> Iterator[Case]:
    for name, parts in {
        "no part": [],
        "one empty part": [b""],
        "two empty parts": [b"", b""],
        "one byte": [b"a"],
        "ab and c": [b"ab", b"c"],
        "a and bc": [b"a", b"bc"],
        "a part that looks like a length": [u32(1), b"a"],
        "a joined list as one part": [lp(b"a", b"b")],
        "256 bytes": [bytes(range(256))],
        "300 bytes": [b"\x5a" * 300],
    }.items():
        yield {
            "function": "lp",
            "name": name,
            "parts": [part.hex() for part in parts],
            "bytes": lp(*parts).hex(),
        }
    for table, column in [
        ("customers", "email"),
        ("a.b", "c"),
        ("a", "b.c"),
        ("a\\", "b"),
        ("a", "\\b"),
        ("a\\.b", "c"),
        ("", "c"),
        ("t", ""),
        ("", ""),
        ("kunden", "straße"),
        ("顧客", "名前"),
        ("customers", "📧"),
        ("my table", "my column"),
    ]:
        yield {"function": "context_id", "table": table, "column": column, "context_id": context_id(table, column)}
    for name, owner in OWNERS.items():
        for context in CONTEXT_IDS if name == "acme" else [EMAIL]:
            for suite in (0xFA, 0xFB):
                yield {
                    "function": "column_context",
                    "name": name,
                    "suite": suite,
                    **owned(owner),
                    "context_id": context,
                    "bytes": column_context(suite, owner, context).hex(),
                }
            header = header_bytes(0xFA, owner[2], 1, 1, 0, 0)
            yield {
                "function": "value_aad",
                "name": name,
                **owned(owner),
                "header": header.hex(),
                "context_id": context,
                "row_id": None,
                "bytes": value_aad(header, owner, context).hex(),
            }
        for row in ROWS.values():
            header = header_bytes(0xFB, owner[2], 7, 1, 2, 1) + fixed("token 0", 16)
            yield {
                "function": "value_aad",
                "name": f"{name}, bound to a row, one token",
                **owned(owner),
                "header": header.hex(),
                "context_id": EMAIL,
                "row_id": row.hex(),
                "bytes": value_aad(header, owner, EMAIL, row).hex(),
            }
        for generation in (1, 2, 0xFFFFFFFF):
            yield {
                "function": "kek_context",
                "name": name,
                "algorithm": 1,
                **owned(owner),
                "generation": generation,
                "bytes": kek_context(1, owner, generation).hex(),
            }
        for purpose, version in (("data", 1), ("data", 65535), ("index", 1), ("index", 255)):
            commitment = fixed(f"commitment {purpose} {version}")
            yield {
                "function": "key_context",
                "name": name,
                "algorithm": 1,
                **owned(owner),
                "purpose": purpose,
                "version": version,
                "bytes": key_context(1, owner, purpose, version).hex(),
            }
            yield {
                "function": "record_aad",
                "name": name,
                **owned(owner),
                "purpose": purpose,
                "version": version,
                "kek_generation": 3,
                "algorithm": 1,
                "commitment": commitment.hex(),
                "bytes": record_aad(owner, purpose, version, 3, 1, commitment).hex(),
            }
            yield {
                "function": "activation_message",
                "name": name,
                **owned(owner),
                "purpose": purpose,
                "version": version,
                "epoch": version + 2**40,
                "commitment": commitment.hex(),
                "bytes": activation_message(owner, purpose, version, version + 2**40, commitment).hex(),
            }
        for purpose, number in (("kek", 1), ("data", 65535), ("index", 255)):
            yield {
                "function": "kms_context",
                "name": name,
                **owned(owner),
                "purpose": purpose,
                "number": number,
                "context": kms_context(owner, purpose, number),
            }
    yield from audit_context_cases()


def audit_context_cases() -> Iterator[Case]:
    for name, owner in OWNERS.items():
        yield {
            "function": "kms_context",
            "name": f"{name}, root of the audit log",
            **owned(owner),
            "purpose": "audit-root",
            "number": 1,
            "context": kms_context(owner, "audit-root", 1),
        }
        yield {
            "function": "audit_context",
            "name": f"{name}, chain key",
            "algorithm": 1,
            "app_uid": owner[0].hex(),
            "tenant_uid": owner[1].hex(),
            "bytes": audit_context(1, owner[0], owner[1]).hex(),
        }
        for number in (1, 2**32, 2**63 - 1):
            head = bytes(32) if number == 1 else fixed(f"head before {number}")
            for text in ("", '{"event":"key.created"}', "Zoë 📧"):
                yield {
                    "function": "entry_message",
                    "name": name,
                    **owned(owner),
                    "number": number,
                    "before": head.hex(),
                    "text": text,
                    "bytes": entry_message(owner, number, head, text).hex(),
                }
        for number in (0, 1, 2**32, 2**63 - 1):
            head = fixed(f"head {number}") if number else bytes(32)
            yield {
                "function": "chain_aad",
                "name": name,
                **owned(owner),
                "number": number,
                "head": head.hex(),
                "bytes": chain_aad(owner, number, head).hex(),
            }
    for name, app in {"application": APP, "another application": OTHER_APP, "uid of zeros": bytes(16)}.items():
        for algorithm in (1, 2):
            yield {
                "function": "audit_context",
                "name": f"{name}, audit key",
                "algorithm": algorithm,
                "app_uid": app.hex(),
                "tenant_uid": None,
                "bytes": audit_context(algorithm, app).hex(),
            }
        yield {
            "function": "platform_context",
            "name": name,
            "app_uid": app.hex(),
            "purpose": "audit",
            "context": platform_context(app, "audit"),
        }


# derive.json


def derive_cases() -> Iterator[Case]:
    contexts = {
        "empty context": b"",
        "column": column_context(0xFA, OWNER, EMAIL),
        "column, bound to the row": column_context(0xFB, OWNER, EMAIL),
        "KEK": kek_context(1, OWNER, 1),
        "data key": key_context(1, OWNER, "data", 1),
        "index key": key_context(1, OWNER, "index", 1),
        "a zero byte, then what looks like another label": b"\x00pii_vault/1/wrap\x00",
        "1000 bytes": bytes(range(250)) * 4,
    }
    for use in ("seal", "index", "wrap", "commit", "mac", "ratchet"):
        for name, context in contexts.items():
            for key_name in ("key one", "key two"):
                key = fixed(key_name)
                yield {
                    "name": f"{use}, {name}, {key_name}",
                    "use": use,
                    "key": key.hex(),
                    "context": context.hex(),
                    "subkey": kdf(key, use, context).hex(),
                }


# sealed_values.json


def seal(
    owner: Owner,
    key: bytes,
    context: str,
    plaintext: bytes,
    *,
    name: str = "",
    suite: int = 0xFA,
    version: int = 1,
    codec: int = 1,
    generation: int = 0,
    tokens: tuple[bytes, ...] = (),
    row: bytes | None = None,
) -> tuple[bytes, Case]:
    header = header_bytes(suite, owner[2], version, codec, generation, len(tokens)) + b"".join(tokens)
    iv = fixed(f"iv {name}", 12)
    subkey = kdf(key, "seal", column_context(suite, owner, context))
    aad = value_aad(header, owner, context, row)
    sealed = header + iv + gcm(subkey, iv, plaintext, aad)
    case = {
        "name": name,
        "suite": suite,
        **owned(owner),
        "version": version,
        "data_key": key.hex(),
        "context_id": context,
        "codec": codec,
        "index_generation": generation,
        "tokens": [token.hex() for token in tokens],
        "row_id": None if row is None else row.hex(),
        "iv": iv.hex(),
        "plaintext": plaintext.hex(),
        "subkey": subkey.hex(),
        "aad": aad.hex(),
        "sealed": sealed.hex(),
        "expect": "success",
    }
    return sealed, case


TOKENS = tuple(fixed(f"token {number}", 16) for number in range(15))
TEXT = "Zoë Ångström".encode()


def value_cases() -> Iterator[Case]:
    one = fixed("data key 1")

    def case(name: str, plaintext: bytes = b"ada@example.com", owner: Owner = OWNER, **options: Any) -> Case:
        key = options.pop("key", one)
        return seal(owner, key, options.pop("context", EMAIL), plaintext, name=name, **options)[1]

    yield case("text")
    yield case("text, empty", b"")
    yield case("text beyond ASCII", TEXT)
    yield case("bytes", bytes(range(256)), codec=2)
    yield case("int64, -1", b"\xff" * 8, codec=3)
    yield case("bool, true", b"\x01", codec=7)
    yield case("date, the day before 1970", b"\xff" * 4, codec=8)
    yield case("uuid", fixed("uuid", 16), codec=12)
    yield case("json", b'{"a":[1,null]}', codec=14)
    yield case("16 bytes: one block", b"b" * 16)
    yield case("17 bytes: one block and one byte", b"b" * 17)
    yield case("1000 bytes", b"\x00" * 1000, codec=2)
    for context in CONTEXT_IDS[1:]:
        yield case(f"context id {context[:20]}", context=context)
    yield case("lowest keyset id", owner=OWNERS["lowest keyset id"])
    yield case("highest keyset id", owner=OWNERS["highest keyset id"])
    yield case("version 2", version=2, key=fixed("data key 2"))
    yield case("version 255", version=255, key=fixed("data key 255"))
    yield case("version 256", version=256, key=fixed("data key 256"))
    yield case("version 65535", version=65535, key=fixed("data key 65535"))
    yield case("one token, generation 1", generation=1, tokens=TOKENS[:1])
    yield case("one token, generation 255", generation=255, tokens=TOKENS[:1])
    yield case("three tokens, generation 1", generation=1, tokens=TOKENS[:3])
    yield case("three tokens, generation 255, empty plaintext", b"", generation=255, tokens=TOKENS[:3])
    yield case("15 tokens", generation=2, tokens=TOKENS)
    yield case("another tenant, same key and plaintext", owner=OWNERS["glob"])
    yield case("another application, same key and plaintext", owner=(OTHER_APP, ACME, ACME_KEYSET))
    for name, row in ROWS.items():
        yield case(f"bound to the row, {name}", suite=0xFB, row=row)
    yield case("bound to the row, one token", suite=0xFB, row=ROWS["integer key 1"], generation=1, tokens=TOKENS[:1])


# sealed_values_refused.json: what an opener must and must not accept.


READERS: dict[str, tuple[Owner, tuple[int, ...]]] = {
    "acme": (OWNER, (1, 2, 3)),
    "acme, holding version 2 only": (OWNER, (2,)),
    "another tenant": (OWNERS["glob"], (1, 2, 3)),
    "another tenant that pretends the same keyset id": ((APP, GLOB, ACME_KEYSET), (1, 2, 3)),
    "another application with the same keyset id": ((OTHER_APP, ACME, ACME_KEYSET), (1, 2, 3)),
    "tenant and application uid exchanged": ((ACME, APP, ACME_KEYSET), (1, 2, 3)),
}


def reader_keys(versions: tuple[int, ...]) -> dict[int, bytes]:
    return {version: fixed(f"data key {version}") for version in versions}


def reader_of(name: str) -> Case:
    owner, versions = READERS[name]
    return owned(owner) | {"data_keys": {str(version): key.hex() for version, key in reader_keys(versions).items()}}


def flipped(data: bytes, offset: int, mask: int = 0x01) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= mask
    return bytes(changed)


def replaced(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def refusal_cases() -> Iterator[Case]:
    keys = reader_keys((1, 2, 3))
    plaintext = b"ada@example.com"
    plain, _ = seal(OWNER, keys[1], EMAIL, plaintext, name="refusals")
    indexed, _ = seal(OWNER, keys[1], EMAIL, plaintext, name="refusals 1", generation=4, tokens=TOKENS[:1])
    three, _ = seal(OWNER, keys[1], EMAIL, plaintext, name="refusals 3", generation=4, tokens=TOKENS[:3])
    empty, _ = seal(OWNER, keys[1], EMAIL, b"", name="refusals 0")
    bound, _ = seal(OWNER, keys[1], EMAIL, plaintext, name="refusals fb", suite=0xFB, row=ROWS["integer key 1"])

    def case(name: str, sealed: bytes, expect: str, *, reader: str = "acme", context: str = EMAIL) -> Case:
        return {"name": name, "reader": reader, "context_id": context, "sealed": sealed.hex(), "expect": expect}

    def opens(name: str, sealed: bytes, opened: bytes = plaintext, codec: int = 1, **options: Any) -> Case:
        return case(name, sealed, "success", **options) | {"codec": codec, "plaintext": opened.hex()}

    yield opens("as it was sealed", plain)
    yield opens("as it was sealed, one token", indexed)
    yield opens("as it was sealed, three tokens", three)
    yield opens("empty plaintext", empty, b"")

    yield case("nothing", b"", "not_encrypted")
    yield case("text", b"ada@example.com", "not_encrypted")
    yield case("text beyond ASCII", TEXT, "not_encrypted")
    yield case("zeros", bytes(38), "not_encrypted")
    yield case("a JSON document", b'{"ciphertext": "..."}', "not_encrypted")
    yield case("the sealed value in hex", plain.hex().encode(), "not_encrypted")
    yield case("one byte before", b"\x00" + plain, "not_encrypted")
    yield case("suite byte below F8", replaced(plain, 0, b"\xf7"), "not_encrypted")
    for suite in (0xF8, 0xF9, 0xFC, 0xFD, 0xFE):
        yield case(f"suite {suite:02X}, not assigned", replaced(plain, 0, bytes((suite,))), "unsupported")
    yield case("escape suite FF", replaced(plain, 0, b"\xff"), "unsupported")
    yield case("escape suite FF alone", b"\xff", "unsupported")
    yield case("bound to the row, in a column bound to the column", bound, "unsupported")
    yield case("suite byte raised to FB", replaced(plain, 0, b"\xfb"), "unsupported")
    yield case("bound to the row, suite byte lowered to FA", replaced(bound, 0, b"\xfa"), "open_failure")

    yield case("version 0", replaced(plain, 5, u16(0)), "malformed")
    yield case("codec 0", replaced(plain, 7, b"\x00"), "malformed")
    yield case("generation without tokens", replaced(plain, 8, b"\x01"), "malformed")
    yield case("tokens without generation", replaced(indexed, 8, b"\x00"), "malformed")
    for bit in (0x10, 0x20, 0x40, 0x80):
        yield case(f"reserved bit {bit:02X}", replaced(plain, 9, bytes((bit,))), "malformed")
        yield case(f"reserved bit {bit:02X} beside a token", flipped(indexed, 9, bit), "malformed")
    yield case("a token count beyond the end", replaced(indexed, 9, b"\x0f"), "malformed")
    for name, value in (("no token", plain), ("one token", indexed), ("three tokens", three), ("empty", empty)):
        shortest = 38 + 16 * value[9]
        for size in sorted({1, 4, 9, 10, 21, 22, 37, shortest - 17, shortest - 1}):
            if 0 < size < shortest:
                yield case(f"{name}, cut to {size} bytes", value[:size], "malformed")
        if len(value) > shortest:
            yield case(f"{name}, cut to its shortest, {shortest} bytes", value[:shortest], "open_failure")
            yield case(f"{name}, last byte cut", value[:-1], "open_failure")
        yield case(f"{name}, one byte after", value + b"\x00", "open_failure")

    yield case("another keyset id", replaced(plain, 1, u32(ACME_KEYSET + 1)), "foreign")
    yield case("keyset id 0", replaced(plain, 1, u32(0)), "foreign")
    yield case("the keyset id of another tenant", replaced(plain, 1, u32(GLOB_KEYSET)), "foreign")
    yield case("foreign keyset id and unknown version", replaced(plain, 1, u32(0) + u16(9)), "foreign")
    yield case("foreign keyset id and version 0", replaced(plain, 1, u32(0) + u16(0)), "malformed")
    yield case("a version that nobody holds", replaced(plain, 5, u16(4)), "unknown_key")
    yield case("version 65535", replaced(plain, 5, u16(65535)), "unknown_key")
    yield case("a version not held here", plain, "unknown_key", reader="acme, holding version 2 only")
    yield case("another version that is held", replaced(plain, 5, u16(2)), "open_failure")
    yield case("another codec", replaced(plain, 7, b"\x02"), "open_failure")
    yield case("a codec that does not exist", replaced(plain, 7, b"\xff"), "open_failure")
    yield case("another index generation", replaced(indexed, 8, b"\x05"), "open_failure")
    yield case("one token fewer", three[:8] + b"\x04\x02" + three[10:42] + three[58:], "open_failure")
    yield case("token removed, its bytes left", replaced(indexed, 8, b"\x00\x00"), "open_failure")
    yield case("tokens exchanged", three[:10] + three[26:42] + three[10:26] + three[42:], "open_failure")
    yield case("token of another value", replaced(indexed, 10, TOKENS[1]), "open_failure")
    for offset in (10, 17, 25):
        yield case(f"token, byte {offset} changed", flipped(indexed, offset), "open_failure")
    for name, value in (("plain", plain), ("indexed", indexed), ("empty", empty)):
        start = 10 + 16 * value[9]
        for offset in (start, start + 11):
            yield case(f"{name}, IV byte {offset} changed", flipped(value, offset), "open_failure")
        for offset in range(start + 12, len(value) - 16, 7):
            yield case(f"{name}, ciphertext byte {offset} changed", flipped(value, offset), "open_failure")
        for offset in (len(value) - 16, len(value) - 1):
            for mask in (0x01, 0x80):
                yield case(
                    f"{name}, tag byte {offset} changed with {mask:02X}", flipped(value, offset, mask), "open_failure"
                )
    yield case("IV of zeros", replaced(plain, 10, bytes(12)), "open_failure")
    yield case("tag of zeros", plain[:-16] + bytes(16), "open_failure")
    other, _ = seal(OWNER, keys[1], EMAIL, plaintext, name="refusals, another IV")
    yield case("IV of another seal", plain[:10] + other[10:22] + plain[22:], "open_failure")
    yield case("tag of another seal", plain[:-16] + other[-16:], "open_failure")

    for context in ("customers.phone", "customers.Email", "customers.email ", r"customers\.email", "", "customers"):
        yield case(f"in column {context!r}", plain, "open_failure", context=context)
    yield case("in another tenant's column", plain, "foreign", reader="another tenant")
    for reader in list(READERS)[3:]:
        yield case(f"read by {reader}", plain, "open_failure", reader=reader)
    header = header_bytes(0xFA, ACME_KEYSET, 1, 1, 0, 0)
    iv = fixed("iv refusals, made wrongly", 12)
    subkey = kdf(keys[1], "seal", column_context(0xFA, OWNER, EMAIL))
    aad = value_aad(header, OWNER, EMAIL)

    def made(key: bytes, additional: bytes) -> bytes:
        return header + iv + gcm(key, iv, plaintext, additional)

    yield opens("made by hand", made(subkey, aad))
    yield case("sealed with the data key itself", made(keys[1], aad), "open_failure")
    yield case(
        "sealed with the subkey of suite FB",
        made(kdf(keys[1], "seal", column_context(0xFB, OWNER, EMAIL)), aad),
        "open_failure",
    )
    for use in ("index", "wrap", "commit", "mac"):
        wrong = kdf(keys[1], use, column_context(0xFA, OWNER, EMAIL))
        yield case(f"sealed with the subkey for {use}", made(wrong, aad), "open_failure")
    yield case("sealed without additional data", made(subkey, b""), "open_failure")
    yield case(
        "additional data of a row-bound value", made(subkey, value_aad(header, OWNER, EMAIL, b"")), "open_failure"
    )
    yield case("additional data without the header", made(subkey, value_aad(b"", OWNER, EMAIL)), "open_failure")
    unframed = b"pii_vault/1/value" + header + APP + ACME + EMAIL.encode()
    yield case("additional data joined without lengths", made(subkey, unframed), "open_failure")
    yield case("label of a key record", made(subkey, aad.replace(b"value", b"recor")), "open_failure")


# sealed_values_more.json: what an opener must make of a value in a column whose type and binding are known.


def typed_cases() -> Iterator[Case]:
    key = fixed("data key 1")

    def sealed(name: str, plaintext: bytes, codec: int = 1, **options: Any) -> bytes:
        suite = 0xFA if options.get("row") is None else 0xFB
        return seal(OWNER, key, EMAIL, plaintext, name=f"typed, {name}", codec=codec, suite=suite, **options)[0]

    def case(name: str, value: bytes, expect: str, *reads: int, **column: Any) -> Case:
        fields = {"context_id": EMAIL, "reads": list(reads), "row_bound": False, "row_id": None, **column}
        return {"name": name, "reader": "acme", **fields, "sealed": value.hex(), "expect": expect}

    def opens(name: str, plaintext: bytes, codec: int, value: Case, *reads: int, **column: Any) -> Case:
        found = case(name, sealed(name, plaintext, codec), "success", *reads, **column)
        return found | {"codec": codec, "plaintext": plaintext.hex(), "value": value}

    yield opens("text", TEXT, 1, {"str": TEXT.decode()}, 1)
    yield opens("int64 in a column of integers", u64(1), 3, {"int": "1"}, 3, 4)
    yield opens("bigint in a column of integers", b"\x00" + u64(2**63), 4, {"int": str(2**63)}, 3, 4)

    for codec in (16, 127, 254, 255):
        name = f"codec {codec}, not assigned"
        yield case(name, sealed(name, b"ada@example.com", codec), "codec_mismatch", 1)
    for name, codec, plaintext, *reads in (
        ("bytes in a column of text", 2, b"ada", 1),
        ("text in a column of bytes", 1, b"ada", 2),
        ("int64 in a column of floats", 3, u64(1), 5),
        ("float64 in a column of integers", 5, u64(1), 3, 4),
        ("decimal in a column of integers", 6, b"1", 3, 4),
        ("datetime_naive in a column of datetime_aware", 11, u64(0), 10),
        ("datetime_aware in a column of datetime_naive", 10, bytes(12), 11),
        ("json in a column of text", 14, b'"ada"', 1),
        ("int64 of one byte in a column of text", 3, b"a", 1),
        ("not UTF-8 in a column of bytes", 1, b"\xff", 2),
    ):
        yield case(name, sealed(name, plaintext, codec), "codec_mismatch", *reads)
    changed = replaced(sealed("codec changed", b"ada"), 7, b"\x02")
    yield case("codec changed to one that the column reads", changed, "open_failure", 2)
    yield case("codec changed to one that the column does not read", changed, "open_failure", 1)

    enum = {"members": {"RED": "RED", "GREEN": "GREEN", "CRIMSON": "RED"}}
    for member, stands_for in enum["members"].items():
        number = hashlib.sha256(member.encode()).digest()[:8]
        yield opens(f"enum, {member}", number, 13, {"member": stands_for}, 13, **enum)
    for name, codec, plaintext, *reads in (
        ("text that is not UTF-8", 1, b"ada\xff", 1),
        ("int64 of 7 bytes", 3, bytes(7), 3, 4),
        ("int64 without bytes", 3, b"", 3, 4),
        ("bigint that int64 holds", 4, bytes(9), 3, 4),
        ("float64 of 4 bytes", 5, bytes(4), 5),
        ("decimal with a plus sign", 6, b"+1", 6),
        ("bool 02", 7, b"\x02", 7),
        ("date after 9999", 8, u32(2932897), 8),
        ("time 24:00", 9, u64(86_400_000_000), 9),
        ("datetime_aware with an offset of a day", 10, u64(0) + u32(86_400), 10),
        ("datetime_naive before the year 1", 11, u64(2**64 - 62_135_596_800_000_001), 11),
        ("uuid of 15 bytes", 12, bytes(15), 12),
        ("json with a space", 14, b'{"a": 1}', 14),
        ("json null", 14, b"null", 14),
    ):
        yield case(name, sealed(name, plaintext, codec), "malformed", *reads)
    removed = hashlib.sha256(b"BLUE").digest()[:8]
    yield case("enum, a name that is not declared", sealed("BLUE", removed, 13), "malformed", 13, **enum)
    for name, plaintext in (
        ("array cut off", b"\x01" + u32(4) + b"ada"),
        ("array of text with an item of int64", b"\x03" + lp(u64(1))),
        ("array with an item of codec 255", b"\xff" + lp(b"")),
        ("array with a malformed item", b"\x01" + lp(b"\xff")),
    ):
        yield case(name, sealed(name, plaintext, 15), "malformed", 15, items=[1])
    array = [{"str": "ada"}, {"none": None}]
    yield opens("array of text", b"\x01" + lp(b"ada") + b"\x00", 15, {"list": array}, 15, items=[1])

    highest, lowest = 10**18 - 1, -1999999999999999997
    for text in (
        f"1E+{highest}",
        f"-9.99E+{highest}",
        f"0E+{highest}",
        f"1E{lowest}",
        f"-1E{lowest}",
        f"-0E{lowest}",
        f"1.5E{lowest + 1}",
    ):
        yield opens(f"decimal {text}", text.encode(), 6, {"decimal": text}, 6)
    for text in (
        f"1E+{highest + 1}",
        f"-9.99E+{highest + 1}",
        f"0E+{highest + 1}",
        f"1E{lowest - 1}",
        f"-0E{lowest - 1}",
        f"1.5E{lowest}",
    ):
        yield case(f"decimal {text}", sealed(text, text.encode(), 6), "malformed", 6)
    yield from row_bound_cases(sealed, case)


def row_bound_cases(sealed: Callable[..., bytes], case: Callable[..., Case]) -> Iterator[Case]:
    plaintext = b"ada@example.com"
    plain = sealed("bound to the column", plaintext)
    bound = {name: sealed(f"bound to the row, {name}", plaintext, row=row) for name, row in ROWS.items()}
    value, row = bound["integer key 1"], ROWS["integer key 1"]
    indexed = sealed("bound to the row, one token", plaintext, row=row, generation=4, tokens=TOKENS[:1])

    def in_row(name: str, value: bytes, expect: str, row: bytes = row, reads: int = 1, **column: Any) -> Case:
        return case(name, value, expect, reads, row_bound=True, row_id=row.hex(), **column)

    def opens(name: str, value: bytes, row: bytes) -> Case:
        opened = {"codec": 1, "plaintext": plaintext.hex(), "value": {"str": plaintext.decode()}}
        return in_row(name, value, "success", row) | opened

    for name, each in ROWS.items():
        yield opens(f"bound to the row, {name}", bound[name], each)
    yield opens("bound to the row, one token", indexed, row)
    yield in_row("bound to the column, in a column bound to the row", plain, "unsupported")
    foreign = replaced(plain, 1, u32(GLOB_KEYSET))
    yield in_row("bound to the column and foreign, in a column bound to the row", foreign, "unsupported")
    yield in_row("suite byte lowered to FA, in a column bound to the row", replaced(value, 0, b"\xfa"), "unsupported")
    yield in_row("suite byte raised to FB, in a column bound to the row", replaced(plain, 0, b"\xfb"), "open_failure")
    yield case("bound to the row, in a column that is not", value, "unsupported", 1)

    two, both = ROWS["key of two columns"], bound["key of two columns"]
    home = row_id((1, b"home"))
    for name, found, other in (
        ("another number", value, ROWS["integer key 2"]),
        ("the number as text", value, row_id((1, b"1"))),
        ("the number as bigint", value, row_id((4, u64(1)))),
        ("a column more", value, two),
        ("a column fewer", both, row),
        ("columns exchanged", both, home + row),
        ("without lengths", value, b"\x03" + u64(1)),
        ("with its length once more", value, lp(row)),
        ("empty", value, b""),
    ):
        yield in_row(f"another row: {name}", found, "open_failure", other)

    for size in (1, 9, 10, 22, 37):
        yield in_row(f"bound to the row, cut to {size} bytes", value[:size], "malformed")
    yield in_row("bound to the row, one token, cut to 53 bytes", indexed[:53], "malformed")
    yield in_row("bound to the row, cut to 38 bytes", value[:38], "open_failure")
    yield in_row("bound to the row, last byte cut", value[:-1], "open_failure")
    yield in_row("bound to the row, version 0", replaced(value, 5, u16(0)), "malformed")
    yield in_row("bound to the row, another keyset id", replaced(value, 1, u32(GLOB_KEYSET)), "foreign")
    yield in_row("bound to the row, a version that nobody holds", replaced(value, 5, u16(4)), "unknown_key")
    yield in_row("bound to the row, another version", replaced(value, 5, u16(2)), "open_failure")
    yield in_row("bound to the row, another column", value, "open_failure", context_id="customers.phone")
    yield in_row("bound to the row, last byte changed", flipped(value, len(value) - 1), "open_failure")
    yield in_row("bound to the row, text in a column of bytes", value, "codec_mismatch", reads=2)
    malformed = sealed("bound to the row, not UTF-8", b"\xff", row=row)
    yield in_row("bound to the row, text that is not UTF-8", malformed, "malformed")


# key_records.json


def wrapped_record(
    owner: Owner, kek: bytes, generation: int, purpose: str, version: int, key: bytes, epoch: int, *, name: str
) -> Case:
    wrap, mac = (kdf(kek, use, kek_context(1, owner, generation)) for use in ("wrap", "mac"))
    commitment = kdf(key, "commit", key_context(1, owner, purpose, version))
    iv = fixed(f"record iv {name}", 12)
    encrypted = gcm(wrap, iv, key, record_aad(owner, purpose, version, generation, 1, commitment))
    proof = hmac_sha256(mac, activation_message(owner, purpose, version, epoch, commitment))
    return {
        "name": name,
        **owned(owner),
        "kek": kek.hex(),
        "kek_generation": generation,
        "algorithm": 1,
        "purpose": purpose,
        "version": version,
        "key": key.hex(),
        "iv": iv.hex(),
        "encrypted_key": encrypted.hex(),
        "commitment": commitment.hex(),
        "epoch": epoch,
        "activation_mac": proof.hex(),
    }


def record_cases() -> Iterator[Case]:
    kek = fixed("kek 1")
    for name, owner in OWNERS.items():
        for generation in (1, 2):
            context = kek_context(1, owner, generation)
            yield {
                "function": "kek",
                "name": f"{name}, generation {generation}",
                **owned(owner),
                "generation": generation,
                "algorithm": 1,
                "kek": kek.hex(),
                "wrap_subkey": kdf(kek, "wrap", context).hex(),
                "mac_subkey": kdf(kek, "mac", context).hex(),
                "commitment": kdf(kek, "commit", context).hex(),
            }
    records = [
        wrapped_record(OWNER, kek, 1, "data", 1, fixed("data key 1"), 1, name="data key 1"),
        wrapped_record(OWNER, kek, 1, "data", 2, fixed("data key 2"), 2, name="data key 2"),
        wrapped_record(OWNER, kek, 1, "data", 65535, fixed("data key 65535"), 2**40, name="data key 65535"),
        wrapped_record(OWNER, kek, 1, "index", 1, fixed("index key 1"), 1, name="index key 1"),
        wrapped_record(OWNER, kek, 1, "index", 255, fixed("index key 255"), 2**63 - 1, name="index key 255"),
        wrapped_record(OWNER, fixed("kek 2"), 2, "data", 1, fixed("data key 1"), 1, name="data key 1, KEK 2"),
        wrapped_record(OWNERS["glob"], kek, 1, "data", 1, fixed("data key 1"), 1, name="another tenant, same keys"),
        wrapped_record(OWNERS["lowest keyset id"], kek, 1, "data", 1, fixed("data key 1"), 1, name="keyset id 0"),
        wrapped_record(OWNERS["highest keyset id"], kek, 1, "data", 1, fixed("data key 1"), 1, name="keyset id max"),
    ]
    for record in records:
        yield {"function": "record", **record, "expect": "success"}
    yield from refused_records(records, kek)


def refused_records(records: list[Case], kek: bytes) -> Iterator[Case]:
    first, second, glob = records[0], records[1], records[6]

    def case(name: str, **changed: Any) -> Case:
        return {"function": "record", **first, "key": None, **changed, "name": name, "expect": "open_failure"}

    yield case("another KEK", kek=fixed("kek 2").hex())
    yield case("one bit of the KEK", kek=flipped(kek, 31).hex())
    yield case("another application", app_uid=OTHER_APP.hex())
    yield case("another tenant", tenant_uid=GLOB.hex())
    yield case("uids exchanged", app_uid=ACME.hex(), tenant_uid=APP.hex())
    yield case("another keyset id", keyset_id=ACME_KEYSET + 1)
    yield case("another purpose", purpose="index")
    yield case("another version", version=2)
    yield case("another KEK generation", kek_generation=2)
    yield case("another algorithm", algorithm=2)
    for field, size in (("encrypted_key", 48), ("iv", 12), ("commitment", 32)):
        data = bytes.fromhex(first[field])
        for offset in (0, size - 1):
            yield case(f"{field}, byte {offset} changed", **{field: flipped(data, offset).hex()})
        yield case(f"{field} of version 2", **{field: second[field]})
        yield case(f"{field} of zeros", **{field: bytes(size).hex()})
    together = ("encrypted_key", "iv", "commitment")
    yield case("everything but the number of version 2", **{field: second[field] for field in together})
    yield case("everything of another tenant", **{field: glob[field] for field in together})
    yield case("encrypted key cut", encrypted_key=first["encrypted_key"][:-2])
    yield case("encrypted key empty", encrypted_key="")
    # Whoever knows the wrap subkey could claim any commitment: the key is held against it all the same.
    wrap = kdf(kek, "wrap", kek_context(1, OWNER, 1))
    wrong = fixed("a commitment of no key")
    iv = fixed("record iv, wrong commitment", 12)
    sealed = gcm(wrap, iv, fixed("data key 1"), record_aad(OWNER, "data", 1, 1, 1, wrong))
    yield case(
        "authentic, but the commitment is of no key", iv=iv.hex(), encrypted_key=sealed.hex(), commitment=wrong.hex()
    )
    sealed = gcm(kek, iv, fixed("data key 1"), record_aad(OWNER, "data", 1, 1, 1, bytes.fromhex(first["commitment"])))
    yield case("wrapped with the KEK itself", iv=iv.hex(), encrypted_key=sealed.hex())

    def proof(name: str, **changed: Any) -> Case:
        return {"function": "activation", **first, **changed, "name": name, "expect": "open_failure"}

    yield {"function": "activation", **first, "name": "activation as it was made", "expect": "success"}
    yield proof("activation at another epoch", epoch=2)
    yield proof("activation at epoch 0", epoch=0)
    yield proof("activation of another version", version=2)
    yield proof("activation of another purpose", purpose="index")
    yield proof("activation of another keyset id", keyset_id=ACME_KEYSET + 1)
    yield proof("activation of another tenant", tenant_uid=GLOB.hex())
    yield proof("activation in another application", app_uid=OTHER_APP.hex())
    yield proof("activation under another KEK", kek=fixed("kek 2").hex())
    yield proof("activation under another KEK generation", kek_generation=2)
    yield proof("activation of another commitment", commitment=second["commitment"])
    yield proof("proof of version 2", activation_mac=second["activation_mac"])
    yield proof("proof changed", activation_mac=flipped(bytes.fromhex(first["activation_mac"]), 0).hex())
    yield proof("proof cut", activation_mac=first["activation_mac"][:-2])
    yield proof("proof of zeros", activation_mac=bytes(32).hex())
    yield proof("no proof", activation_mac="")


# audit_chain.json


def chain_key(owner: Owner, root: bytes, number: int) -> bytes:
    key = root
    for _ in range(number - 1):
        key = kdf(key, "ratchet", audit_context(1, owner[0], owner[1]))
    return key


def entry(owner: Owner, key: bytes, number: int, before: bytes, text: str) -> Case:
    subkey = kdf(key, "mac", audit_context(1, owner[0], owner[1]))
    mac = hmac_sha256(subkey, entry_message(owner, number, before, text))
    return {"number": number, "text": text, "mac": mac.hex(), "key": key.hex()}


def entries_of(owner: Owner, root: bytes, texts: list[str]) -> list[Case]:
    entries: list[Case] = []
    head = bytes(32)
    for number, text in enumerate(texts, 1):
        entries.append(entry(owner, chain_key(owner, root, number), number, head, text))
        head = bytes.fromhex(entries[-1]["mac"])
    return entries


def chain_end(owner: Owner, audit_key: bytes, number: int, head: bytes, key: bytes, *, name: str) -> Case:
    iv = fixed(f"chain iv {name}", 12)
    wrap = kdf(audit_key, "wrap", audit_context(1, owner[0]))
    sealed = iv + gcm(wrap, iv, key, chain_aad(owner, number, head))
    return {"number": number, "mac": head.hex(), "sealed_key": sealed.hex()}


ROOT, AUDIT_KEY = fixed("audit root"), fixed("audit key")


def chain(name: str, texts: list[str], owner: Owner = OWNER, root: bytes = ROOT, audit_key: bytes = AUDIT_KEY) -> Case:
    entries = entries_of(owner, root, texts)
    head = bytes.fromhex(entries[-1]["mac"]) if entries else bytes(32)
    following = chain_key(owner, root, len(entries) + 1)
    return {
        "name": name,
        **owned(owner),
        "root": root.hex(),
        "audit_key": audit_key.hex(),
        "audit_key_commitment": kdf(audit_key, "commit", audit_context(1, owner[0])).hex(),
        "entries": entries,
        "end": chain_end(owner, audit_key, len(entries), head, following, name=name),
        "following_key": following.hex(),
    }


def entry_text(second: int, event: str, reason: str = "", **details: Any) -> str:
    members = {
        "at": f"2026-03-01T09:00:{second:02d}.000000+00:00",
        "actor": "ops@example.com",
        "event": event,
        "reason": reason,
        "details": details,
    }
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


AUDIT_TEXTS = [
    entry_text(1, "tenant.added", "signed on 1 March", tenant={"name": "acme"}, keks=[], keys=[]),
    entry_text(2, "key.created", keys=[{"purpose": "data", "version": 1}]),
    entry_text(3, "key.activated", keys=[{"purpose": "data", "version": 1}]),
    entry_text(4, "tenant.suspended", "the invoice is open", tenant={"suspended": True}),
    entry_text(5, "tenant.resumed", tenant={"suspended": False}),
]
ODD_TEXTS = [
    entry_text(1, "tenant.added", "Zoë Ångström 顧客 📧"),
    entry_text(2, "key.created", 'a "quoted" \\ word\n\tand \x7f'),
    "Zoë Ångström, not escaped: 顧客 📧",
    "Zoe\u0308 is not Zo\u00eb",
    "",
    " ",
    "x" * 3000,
]


def chain_cases() -> Iterator[Case]:
    five = chain("five entries", AUDIT_TEXTS)
    succeed = [
        chain("one entry", AUDIT_TEXTS[:1]),
        chain("two entries", AUDIT_TEXTS[:2]),
        five,
        chain("texts that are escaped, that are not, and that are empty", ODD_TEXTS),
        chain("one text five times", AUDIT_TEXTS[:1] * 5),
        chain("another tenant, same keys", AUDIT_TEXTS, OWNERS["glob"]),
        chain("another application, same keys", AUDIT_TEXTS, (OTHER_APP, ACME, ACME_KEYSET)),
        chain("another keyset id, same keys", AUDIT_TEXTS[:2], OWNERS["highest keyset id"]),
        chain("another root", AUDIT_TEXTS[:2], root=fixed("another audit root")),
        chain("another audit key", AUDIT_TEXTS[:2], audit_key=fixed("another audit key")),
    ]
    for found in succeed:
        yield found | {"expect": "success"}
    yield from forged_chains(five)
    yield from unopened_ends(five)


def renumbered(entries: list[Case]) -> list[Case]:
    return [each | {"number": number} for number, each in enumerate(entries, 1)]


def forged_chains(five: Case) -> Iterator[Case]:
    entries: list[Case] = five["entries"]
    other: list[Case] = chain("another tenant, same keys", AUDIT_TEXTS, OWNERS["glob"])["entries"]

    def case(name: str, first_bad: int, found: list[Case], **changed: Any) -> Case:
        return five | changed | {"name": name, "entries": found, "expect": "forged", "first_bad": first_bad}

    def changed_at(place: int, **members: Any) -> list[Case]:
        return [each | members if each["number"] == place else each for each in entries]

    def head_before(number: int) -> bytes:
        return bytes.fromhex(entries[number - 2]["mac"])

    for number in (1, 3, 5):
        text = entries[number - 1]["text"]
        yield case(f"entry {number}, text changed", number, changed_at(number, text=text.replace("ops", "eve")))
        yield case(f"entry {number}, a blank after its text", number, changed_at(number, text=text + " "))
        yield case(f"entry {number}, no text", number, changed_at(number, text=""))
        mac = bytes.fromhex(entries[number - 1]["mac"])
        for offset in (0, 31):
            changed = changed_at(number, mac=flipped(mac, offset).hex())
            yield case(f"entry {number}, MAC byte {offset} changed", number, changed)
    yield case("MAC of zeros", 2, changed_at(2, mac=bytes(32).hex()))
    yield case("MAC cut", 2, changed_at(2, mac=entries[1]["mac"][:-2]))
    yield case("MAC empty", 2, changed_at(2, mac=""))
    yield case("MAC of the entry before", 3, changed_at(3, mac=entries[1]["mac"]))
    yield case("an entry of another tenant at the same place", 4, changed_at(4, **other[3]))

    yield case("entries 2 and 3 exchanged", 2, renumbered([entries[0], entries[2], entries[1], *entries[3:]]))
    yield case("entries 4 and 5 exchanged", 4, renumbered([*entries[:3], entries[4], entries[3]]))
    yield case("entry 3 left out", 3, entries[:2] + entries[3:])
    yield case("entry 3 left out, those after it renumbered", 3, renumbered(entries[:2] + entries[3:]))
    yield case("first entry missing", 1, entries[1:])
    yield case("every number one too high", 1, [each | {"number": each["number"] + 1} for each in entries])
    yield case("the last number one too high", 5, [*entries[:4], entries[4] | {"number": 6}])
    yield case("the last number one too low", 5, [*entries[:4], entries[4] | {"number": 4}])
    yield case("first entry missing, those after it renumbered", 1, renumbered(entries[1:]))
    yield case("last entry missing", 5, entries[:4])
    yield case("last two entries missing", 4, entries[:3])
    yield case("all entries missing", 1, [])
    yield case("an entry once more, those after it renumbered", 3, renumbered([*entries[:2], *entries[1:]]))
    made = entry(OWNER, chain_key(OWNER, ROOT, 6), 3, head_before(3), AUDIT_TEXTS[1])
    yield case("an entry inserted, made with the end's key", 3, renumbered([*entries[:2], made, *entries[2:]]))
    yield case("an entry inserted, its MAC of zeros", 1, renumbered([entries[0] | {"mac": bytes(32).hex()}, *entries]))

    yield case("entry 5 made with the end's key", 5, [*entries[:4], made_at(5, 6, head_before(5))])
    yield case("entry 4 made with the key of entry 3", 4, [*entries[:3], made_at(4, 3, head_before(4)), entries[4]])
    yield case("entry 3 made upon zeros", 3, [*entries[:2], made_at(3, 3, bytes(32)), *entries[3:]])
    yield case("entry 3 made as number 4", 3, [*entries[:2], made_at(4, 3, head_before(3)) | {"number": 3}])
    unframed = b"pii_vault/1/audit" + APP + ACME + u64(1) + bytes(32) + AUDIT_TEXTS[0].encode()
    mac = hmac_sha256(kdf(ROOT, "mac", audit_context(1, APP, ACME)), unframed)
    yield case("entry 1 made without lengths", 1, changed_at(1, mac=mac.hex()))
    mac = hmac_sha256(ROOT, entry_message(OWNER, 1, bytes(32), AUDIT_TEXTS[0]))
    yield case("entry 1 made with the root itself", 1, changed_at(1, mac=mac.hex()))
    anew = entries_of(OWNER, chain_key(OWNER, ROOT, 6), [text.replace("ops", "eve") for text in AUDIT_TEXTS])
    yield case("all entries made anew from the end's key", 1, anew)
    later = entries[:2]
    for number in (3, 4, 5):
        text = AUDIT_TEXTS[number - 1].replace("ops", "eve")
        key = chain_key(OWNER, ROOT, 6 + number - 3)
        later = [*later, entry(OWNER, key, number, bytes.fromhex(later[-1]["mac"]), text)]
    yield case("entries 3 to 5 made anew from the end's key", 3, later)

    yield case("read as another tenant's", 1, entries, tenant_uid=GLOB.hex())
    yield case("read as another application's", 1, entries, app_uid=OTHER_APP.hex())
    yield case("application and tenant uid exchanged", 1, entries, app_uid=ACME.hex(), tenant_uid=APP.hex())
    yield case("another tenant's entries under the same keys", 1, other)
    yield case("read from another root", 1, entries, root=fixed("another audit root").hex())
    yield case("read from the key of entry 2", 1, entries, root=entries[1]["key"])
    for number in (6, 2**32 - 1):
        yield case(f"number of the end raised to {number}", 6, entries, end=five["end"] | {"number": number})
    broken = five["end"] | {"sealed_key": bytes(60).hex()}
    yield case("text changed, and an end that does not open", 3, changed_at(3, text="{}"), end=broken)


def made_at(number: int, key_number: int, before: bytes) -> Case:
    return entry(OWNER, chain_key(OWNER, ROOT, key_number), number, before, AUDIT_TEXTS[number - 1])


def unopened_ends(five: Case) -> Iterator[Case]:
    head, following = bytes.fromhex(five["end"]["mac"]), bytes.fromhex(five["following_key"])
    sealed = bytes.fromhex(five["end"]["sealed_key"])

    def case(name: str, **changed: Any) -> Case:
        return five | {"end": five["end"] | changed, "name": name, "expect": "open_failure"}

    def end(name: str, number: int = 5, mac: bytes = head, key: bytes = following, **options: Any) -> Case:
        audit_key, owner = options.get("audit_key", AUDIT_KEY), options.get("owner", OWNER)
        return case(name, **chain_end(owner, audit_key, number, mac, key, name=name))

    for offset in (0, 11, 12, 43, 44, 59):
        yield case(f"sealed key, byte {offset} changed", sealed_key=flipped(sealed, offset).hex())
    yield case("sealed key of zeros", sealed_key=bytes(60).hex())
    yield case("sealed key cut", sealed_key=sealed[:-1].hex())
    yield case("sealed key cut to its IV", sealed_key=sealed[:12].hex())
    yield case("sealed key empty", sealed_key="")
    yield case("a byte after the sealed key", sealed_key=sealed.hex() + "00")
    for number in (0, 1, 4):
        yield case(f"number changed to {number}", number=number)
    for offset in (0, 31):
        yield case(f"MAC byte {offset} changed", mac=flipped(head, offset).hex())
    yield case("MAC of the entry before", mac=five["entries"][3]["mac"])
    yield case("MAC of zeros", mac=bytes(32).hex())
    yield end("sealed under another audit key", audit_key=fixed("another audit key"))
    yield case("read with another audit key") | {"audit_key": fixed("another audit key").hex()}
    yield end("another tenant's end, sealed for the same place", owner=OWNERS["glob"])
    yield end("another application's end, sealed for the same place", owner=(OTHER_APP, ACME, ACME_KEYSET))
    yield end("opens to the key of the last entry", key=bytes.fromhex(five["entries"][4]["key"]))
    yield end("opens to the key after the next", key=kdf(following, "ratchet", audit_context(1, APP, ACME)))
    yield end("opens to another key", key=fixed("a key of no chain"))
    iv = fixed("chain iv by hand", 12)
    aad = chain_aad(OWNER, 5, head)
    bare = iv + gcm(AUDIT_KEY, iv, following, aad)
    yield case("sealed with the audit key itself", sealed_key=bare.hex())
    wrap = kdf(AUDIT_KEY, "wrap", audit_context(1, APP))
    yield case("sealed without additional data", sealed_key=(iv + gcm(wrap, iv, following, b"")).hex())
    wrong = kdf(AUDIT_KEY, "wrap", audit_context(1, APP, ACME))
    yield case("sealed with a subkey of the tenant's", sealed_key=(iv + gcm(wrong, iv, following, aad)).hex())


# The files.

# Blind-index tokens: the message of each value stands here as bytes, made by hand from docs/format.md, section 10.


def index_context(algorithm: int, owner: Owner, index: str, form: str) -> bytes:
    return lp(bytes((algorithm,)), owner[0], owner[1], index.encode(), form.encode())


def token(subkey: bytes, message: bytes, bits: int) -> bytes:
    whole = hmac_sha256(subkey, message)[:16]
    kept = int.from_bytes(whole, "big") & ~((1 << (128 - bits)) - 1)
    return kept.to_bytes(16, "big")


def token_case(
    name: str,
    form: str,
    value: Any,
    message: bytes,
    *,
    owner: Owner = OWNER,
    index: str = EMAIL,
    key: str = "index key 1",
) -> Case:
    context = index_context(1, owner, index, form)
    subkey = kdf(fixed(key), "index", context)
    return {
        "name": name,
        **owned(owner),
        "index_key": fixed(key).hex(),
        "index": index,
        "form": form,
        "value": value,
        "context": context.hex(),
        "subkey": subkey.hex(),
        "message": message.hex(),
        "token": token(subkey, message, int(form.rpartition(";")[2])).hex(),
    }


CASELESS = "text;nfkc/1;casefold/1;nfkc/1"


def token_cases() -> Iterator[Case]:
    text = "text;whole;128"
    yield token_case("text", text, {"str": "ada@example.com"}, b"ada@example.com")
    yield token_case("empty text", text, {"str": ""}, b"")
    yield token_case("text is kept as it is", text, {"str": " Ada\u0301 "}, b" Ada\xcc\x81 ")
    yield token_case("another index name", text, {"str": "ada@example.com"}, b"ada@example.com", index="email")
    yield token_case(
        "another tenant", text, {"str": "ada@example.com"}, b"ada@example.com", owner=(APP, GLOB, GLOB_KEYSET)
    )
    yield token_case("another generation", text, {"str": "ada@example.com"}, b"ada@example.com", key="index key 2")
    yield token_case("caseless", f"{CASELESS};whole;128", {"str": "ADA@Stra\u00dfe.example"}, b"ada@strasse.example")
    yield token_case("caseless, composed", f"{CASELESS};whole;128", {"str": "\uff21da\u0301"}, b"ad\xc3\xa1")
    yield token_case("stripped", "text;strip/1;whole;128", {"str": "\t Ada\u2003\n"}, b"Ada")
    yield token_case("digits", "text;digits/1;whole;128", {"str": "+49 (30) \u0661\u0662\u0663-4"}, b"49301234")
    yield token_case("last 4 characters", "text;digits/1;last(4);128", {"str": "078-05-1120"}, b"1120")
    yield token_case("last 4 of a shorter one", "text;last(4);128", {"str": "ab"}, b"ab")
    yield token_case("first 3 characters", "text;casefold/1;prefix(3);128", {"str": "\u00c4rger"}, b"\xc3\xa4rg")
    yield token_case("behind the last @", "text;casefold/1;after(@);128", {"str": "a@b@Example.COM"}, b"example.com")
    yield token_case("24 bits", "text;whole;24", {"str": "ada@example.com"}, b"ada@example.com")
    yield token_case("1 bit", "text;whole;1", {"str": "ada@example.com"}, b"ada@example.com")
    yield token_case("bytes", "bytes;whole;128", {"bytes": "00ff10"}, bytes.fromhex("00ff10"))
    for number, message in (
        (0, "00"),
        (-1, "ff"),
        (127, "7f"),
        (128, "0080"),
        (-129, "ff7f"),
        (2**63, "008000000000000000"),
    ):
        yield token_case(f"integer {number}", "int;whole;128", {"int": str(number)}, bytes.fromhex(message))
    for number, bits, message in (
        ("1.5", "3ff8000000000000", "3ff8000000000000"),
        ("-0.0", "8000000000000000", "0000000000000000"),
        ("a NaN", "fff8000000000001", "7ff8000000000000"),
    ):
        yield token_case(f"float {number}", "float;whole;128", {"float64": bits}, bytes.fromhex(message))
    for number, message in (
        *(("1.10", "11E-1"), ("1.1", "11E-1"), ("100", "1E2"), ("1E+2", "1E2"), ("-0.00", "0"), ("-2.50", "-25E-1")),
    ):
        yield token_case(f"decimal {number}", "decimal;whole;128", {"decimal": number}, message.encode())
    yield token_case("date", "date;whole;128", {"date": "2000-02-29"}, bytes.fromhex("00002b08"))
    for instant in ("2026-07-01T12:00:00+00:00", "2026-07-01T14:00:00+02:00"):
        yield token_case(
            f"instant {instant}", "instant;whole;128", {"datetime": instant}, (1_782_907_200_000_000).to_bytes(8, "big")
        )
    yield token_case(
        "uuid",
        "uuid;whole;128",
        {"uuid": "00112233-4455-6677-8899-aabbccddeeff"},
        bytes.fromhex("00112233445566778899aabbccddeeff"),
    )
    yield token_case("true", "bool;whole;128", {"bool": True}, b"\x01")
    yield from bucket_cases()


def bucket_cases() -> Iterator[Case]:
    """The message is the number of the bucket, in two's complement: counted by hand."""
    for date, size, message in (
        ("1984-05-17", "10y", "00c6"),
        ("1990-01-01", "10y", "00c7"),
        ("0001-01-01", "10y", "00"),
        ("9999-12-31", "10y", "03e7"),
        ("2000-02-29", "1y", "07d0"),
        ("2000-02-29", "1m", "5dc1"),
        ("2000-02-29", "18m", "0535"),
        ("0001-01-01", "1m", "0c"),
        ("0001-01-07", "7d", "00"),
        ("0001-01-08", "7d", "01"),
        ("1970-01-01", "1d", "0af93a"),
        ("2024-03-03", "7d", "019c5b"),
        ("2024-03-04", "7d", "019c5c"),
    ):
        yield token_case(f"{date} of {size}", f"date;bucket({size});128", {"date": date}, bytes.fromhex(message))
    for moment, size, message in (
        ("1969-12-31T23:59:59.999999", "1d", "0af939"),
        ("1999-12-31T23:59:59.999999", "10y", "00c7"),
        ("2000-01-01T00:00:00", "10y", "00c8"),
        ("0001-01-01T00:00:00", "7d", "00"),
    ):
        form = f"datetime;bucket({size});128"
        yield token_case(f"{moment} of {size}", form, {"datetime": moment}, bytes.fromhex(message))
    for moment, size, message in (
        ("2000-01-01T00:30:00+01:00", "1m", "5dbf"),
        ("1999-12-31T23:30:00+00:00", "1m", "5dbf"),
        ("1999-12-31T23:30:00-01:00", "1m", "5dc0"),
        ("0001-01-01T00:00:00+00:01", "1y", "00"),
        ("0001-01-01T00:00:00+00:01", "7d", "ff"),
        ("9999-12-31T23:59:00-00:01", "1y", "2710"),
    ):
        form = f"instant;bucket({size});128"
        yield token_case(f"{moment} of {size}", form, {"datetime": moment}, bytes.fromhex(message))
    for number, size, message in (
        ("0", "100", "00"),
        ("99", "100", "00"),
        ("100", "100", "01"),
        ("-1", "100", "ff"),
        ("-100", "100", "ff"),
        ("-101", "100", "fe"),
        ("12799", "100", "7f"),
        ("12800", "100", "0080"),
        (str(2**63), "1000000000000000000", "09"),
    ):
        yield token_case(f"{number} of {size}", f"int;bucket({size});128", {"int": number}, bytes.fromhex(message))
    for number, size, message in (
        ("1.10", "0.5", "02"),
        ("0.49999", "0.5", "00"),
        ("0.50", "0.5", "01"),
        ("-0.00", "0.5", "00"),
        ("-0.01", "0.5", "ff"),
        ("1E+3", "0.5", "07d0"),
        ("99.99", "100", "00"),
        ("-1E-1000", "100", "ff"),
        ("0.3", "0.1", "03"),
    ):
        form = f"decimal;bucket({size});128"
        yield token_case(f"{number} of {size}", form, {"decimal": number}, bytes.fromhex(message))
    yield token_case("20 bits of a decade", "date;bucket(10y);20", {"date": "1984-05-17"}, bytes.fromhex("00c6"))
    yield from more_token_cases()


def more_token_cases() -> Iterator[Case]:
    """Kinds that the cases above have no whole of, and what an implementation could do otherwise and pass them."""
    second = (1_000_000).to_bytes(8, "big")
    yield token_case("time", "time;whole;128", {"time": "00:00:01"}, second)
    yield token_case("datetime", "datetime;whole;128", {"datetime": "1970-01-01T00:00:01"}, second)
    yield token_case(
        "datetime before 1970", "datetime;whole;128", {"datetime": "1969-12-31T23:59:59.999999"}, b"\xff" * 8
    )
    member = hashlib.sha256(b"GOOD").digest()[:8]
    yield {**token_case("enum", "enum;whole;128", {"member": "GOOD"}, member), "members": ["GOOD", "BAD"]}
    yield token_case("false", "bool;whole;128", {"bool": False}, b"\x00")
    yield token_case("bytes, none", "bytes;whole;128", {"bytes": ""}, b"")
    for number, bits, message in (
        ("a positive NaN", "7ff8000000000001", "7ff8000000000000"),
        ("infinity", "7ff0000000000000", "7ff0000000000000"),
        ("-infinity", "fff0000000000000", "fff0000000000000"),
    ):
        yield token_case(f"float {number}", "float;whole;128", {"float64": bits}, bytes.fromhex(message))
    for number, message in (("7", "7E0"), ("-100", "-1E2"), ("1002.00300", "1002003E-3"), ("0E+7", "0")):
        yield token_case(f"decimal {number}", "decimal;whole;128", {"decimal": number}, message.encode())
    yield token_case("integer -128", "int;whole;128", {"int": "-128"}, b"\x80")
    bold = {"str": "\U0001d400"}  # has no folding itself; it is compatible to A, which has
    yield token_case("composed, then folded", "text;nfkc/1;casefold/1;whole;128", bold, b"a")
    yield token_case("folded, then composed", "text;casefold/1;nfkc/1;whole;128", bold, b"A")
    yield token_case("prefix of the folded text", "text;casefold/1;prefix(2);128", {"str": "\u00dfa"}, b"ss")
    yield token_case("last 4 of 3 characters", "text;last(4);128", {"str": "abc"}, b"abc")
    yield token_case("last 2 code points", "text;last(2);128", {"str": "ea\u0301"}, b"a\xcc\x81")
    yield token_case("nothing behind the last @", "text;after(@);128", {"str": "ada@"}, b"")
    yield token_case("@ that is made by a normaliser", "text;nfkc/1;after(@);128", {"str": "ada\uff20b"}, b"b")
    yield token_case(
        "stripped of all that is white", "text;strip/1;whole;128", {"str": "\x1f\u0085a\u200b\u3000"}, b"a\xe2\x80\x8b"
    )
    yield token_case("digits, no numbers", "text;digits/1;whole;128", {"str": "\u00b2\u2460\u0be7\U0001d7d9"}, b"11")
    yield token_case(
        "index name and form of other characters",
        "text;after(~);9",
        {"str": "a~\u00e9"},
        b"\xc3\xa9",
        index="k\u00fc.e\\.mail",
    )


def documents() -> dict[str, dict[str, Any]]:
    return {
        "context.json": {"cases": list(context_cases())},
        "derive.json": {"cases": list(derive_cases())},
        "sealed_values.json": {"cases": list(value_cases())},
        "sealed_values_refused.json": {
            "readers": {name: reader_of(name) for name in READERS},
            "cases": list(refusal_cases()),
        },
        "sealed_values_more.json": {
            "readers": {"acme": reader_of("acme")},
            "cases": list(typed_cases()),
        },
        "key_records.json": {"cases": list(record_cases())},
        "audit_chain.json": {"cases": list(chain_cases())},
        "tokens.json": {"cases": list(token_cases())},
    }


def rendered(document: dict[str, Any]) -> str:
    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True)

    parts = []
    for key, value in document.items():
        if isinstance(value, dict):
            body = ",\n".join(f"    {line(name)}: {line(each)}" for name, each in value.items())
            parts.append(f"  {line(key)}: {{\n{body}\n  }}")
        else:
            body = ",\n".join(f"    {line(each)}" for each in value)
            parts.append(f"  {line(key)}: [\n{body}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def lost(before: str, after: str) -> list[str]:
    """Return the lines of a frozen file that a new one would lose."""
    kept = {line.rstrip(",") for line in after.splitlines()}
    return [line for line in before.splitlines() if line.rstrip(",") not in kept]


def main(arguments: list[str]) -> int:
    status = 0
    for name, document in documents().items():
        path, text = FOLDER / name, rendered(document)
        before = path.read_text("utf-8") if path.exists() else ""
        gone = lost(before, text)
        if gone:
            print(f"{name}: {len(gone)} frozen cases would change; the first:\n{gone[0][:500]}", file=sys.stderr)
            status = 1
        elif before != text:
            print(f"{name}: new cases")
            if "--check" in arguments:
                status = 1
            else:
                path.write_text(text, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
