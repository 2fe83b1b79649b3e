"""Whatever is sealed opens; whatever is changed does not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.vectors import cases, identity

from pii_vault.context import Identity
from pii_vault.errors import OpenError
from pii_vault.keys import Secret
from pii_vault.sealing import Keyset

uids = st.binary(min_size=16, max_size=16)
identities = st.builds(Identity, uids, uids, st.integers(0, 2**32 - 1))
keys = st.binary(min_size=32, max_size=32)
columns = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
codecs = st.integers(1, 255)
versions = st.integers(1, 65535)
plaintexts = st.binary(max_size=200)


def keyset(owner: Identity, version: int, key: bytes) -> Keyset:
    return Keyset("acme", owner, version, {version: Secret(key)}, deadline=1.0, wall_deadline=1.0)


def fails(reader: Keyset, column: str, sealed: bytes) -> None:
    with pytest.raises(OpenError):
        reader.open_(column, sealed)


@settings(deadline=None)
@given(identities, versions, keys, columns, codecs, plaintexts)
def test_what_was_sealed_opens_to_itself(
    owner: Identity, version: int, key: bytes, column: str, codec: int, plaintext: bytes
) -> None:
    sealed = keyset(owner, version, key).seal(column, codec, plaintext)
    assert len(sealed) == len(plaintext) + 38
    assert keyset(owner, version, key).open_(column, sealed) == (codec, plaintext)


KNOWN = [case for case in cases("sealed_values.json") if case["suite"] == 0xFA and len(case["sealed"]) < 300]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case["name"])
def test_every_single_flipped_bit_is_found(case: dict[str, object]) -> None:
    reader = keyset(identity(case), int(str(case["version"])), bytes.fromhex(str(case["data_key"])))
    sealed = bytes.fromhex(str(case["sealed"]))
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        fails(reader, str(case["context_id"]), bytes(changed))


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case["name"])
def test_every_truncation_and_every_byte_more_is_found(case: dict[str, object]) -> None:
    reader = keyset(identity(case), int(str(case["version"])), bytes.fromhex(str(case["data_key"])))
    sealed, column = bytes.fromhex(str(case["sealed"])), str(case["context_id"])
    for size in range(len(sealed)):
        fails(reader, column, sealed[:size])
        fails(reader, column, sealed[size + 1 :])
        fails(reader, column, sealed[:size] + sealed[size + 1 :])
    for more in range(256):
        fails(reader, column, sealed + bytes((more,)))


@settings(deadline=None)
@given(identities, keys, columns, plaintexts, st.data())
def test_any_change_of_the_bytes_is_found(
    owner: Identity, key: bytes, column: str, plaintext: bytes, data: st.DataObject
) -> None:
    reader = keyset(owner, 1, key)
    sealed = reader.seal(column, 1, plaintext)
    start = data.draw(st.integers(0, len(sealed)))
    stop = data.draw(st.integers(start, len(sealed)))
    changed = sealed[:start] + data.draw(st.binary(max_size=20)) + sealed[stop:]
    if changed != sealed:
        fails(reader, column, changed)


@settings(deadline=None)
@given(identities, identities, keys, keys, columns, columns, plaintexts)
def test_any_other_context_or_key_is_refused(
    owner: Identity, other: Identity, key: bytes, other_key: bytes, column: str, other_column: str, plaintext: bytes
) -> None:
    sealed = keyset(owner, 1, key).seal(column, 1, plaintext)
    if other_column != column:
        fails(keyset(owner, 1, key), other_column, sealed)
    if other_key != key:
        fails(keyset(owner, 1, other_key), column, sealed)
    for stranger in (
        Identity(other.app_uid, owner.tenant_uid, owner.keyset_id),
        Identity(owner.app_uid, other.tenant_uid, owner.keyset_id),
        Identity(owner.app_uid, owner.tenant_uid, other.keyset_id),
        Identity(owner.tenant_uid, owner.app_uid, owner.keyset_id),
    ):
        if stranger != owner:
            fails(keyset(stranger, 1, key), column, sealed)


@settings(deadline=None)
@given(identities, keys, st.binary(max_size=500))
def test_arbitrary_bytes_never_open_and_never_raise_anything_else(owner: Identity, key: bytes, noise: bytes) -> None:
    reader = keyset(owner, 1, key)
    mine = b"\xfa" + owner.keyset_bytes + b"\x00\x01\x01\x00\x00"
    for candidate in (noise, b"\xfa" + noise, mine + noise):
        fails(reader, "a.b", candidate)


def test_ten_thousand_random_values_up_to_4_kib_never_open() -> None:
    generator = random.Random(20260102)
    reader = keyset(Identity(bytes(16), bytes(16), 0), 1, bytes(32))
    for number in range(10_000):
        noise = generator.randbytes(generator.randrange(4096 if number % 10 == 0 else 100))
        fails(reader, "a.b", b"\xfa\x00\x00\x00\x00\x00\x01\x01" + noise if number % 2 else noise)


@settings(deadline=None)
@given(identities, keys, keys, columns, plaintexts)
def test_a_value_of_one_version_never_opens_as_another(
    owner: Identity, first: bytes, second: bytes, column: str, plaintext: bytes
) -> None:
    both = Keyset("acme", owner, 2, {1: Secret(first), 2: Secret(second)}, deadline=1.0, wall_deadline=1.0)
    sealed = both.seal(column, 1, plaintext)
    fails(both, column, sealed[:5] + b"\x00\x01" + sealed[7:])
