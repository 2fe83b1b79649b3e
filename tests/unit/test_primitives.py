"""The few lines around standard constructions, against known answers and an independent computation."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import pytest
from tests.support.vectors import cases, named
from tests.vectors import generate

from pii_vault import primitives
from pii_vault.errors import OpenError

KEY = bytes(range(32))


@pytest.mark.parametrize("case", cases("derive.json"), ids=named)
def test_derived_keys_are_those_of_sp_800_108_in_counter_mode(case: dict[str, Any]) -> None:
    key, context = bytes.fromhex(case["key"]), bytes.fromhex(case["context"])
    label = f"pii_vault/1/{case['use']}".encode()
    message = bytes.fromhex("00000001") + label + b"\x00" + context + bytes.fromhex("00000100")
    assert hmac.digest(key, message, "sha256").hex() == case["subkey"]
    assert primitives.derive(key, case["use"], context).hex() == case["subkey"]


def test_every_use_has_known_answers() -> None:
    assert {case["use"] for case in cases("derive.json")} == primitives.USES


def test_known_answers_that_stand_in_a_file_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate.main(["--check"]) == 0
    for name, document in generate.documents().items():
        (tmp_path / name).write_text(generate.rendered(document), "utf-8")
    changed = tmp_path / "derive.json"
    changed.write_text(changed.read_text("utf-8").replace('"subkey": "', '"subkey": "00', 1), "utf-8")
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    before = changed.read_bytes()
    assert generate.main([]) == 1
    assert changed.read_bytes() == before


def test_a_use_that_is_not_registered_derives_nothing() -> None:
    with pytest.raises(ValueError, match="not a use"):
        primitives.derive(KEY, "sign", b"")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused_everywhere(size: int) -> None:
    key = bytes(size)
    for call in (
        lambda: primitives.derive(key, "seal", b""),
        lambda: primitives.sealer(key),
        lambda: primitives.opener(key),
        lambda: primitives.seal(key, b"", b""),
        lambda: primitives.open_(key, bytes(28), b""),
        lambda: primitives.mac(key, b""),
        lambda: primitives.authenticator(key),
    ):
        with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
            call()


def test_a_sealed_text_opens_with_the_same_key_and_additional_data_only() -> None:
    sealed = primitives.seal(KEY, b"text", b"aad")
    assert len(sealed) == 12 + 4 + 16
    assert primitives.open_(KEY, sealed, b"aad") == b"text"
    for key, data, aad in (
        (KEY[::-1], sealed, b"aad"),
        (KEY, sealed[:-1] + bytes((sealed[-1] ^ 1,)), b"aad"),
        (KEY, sealed, b"aae"),
        (KEY, sealed, b""),
    ):
        with pytest.raises(OpenError, match="authentication failed") as caught:
            primitives.open_(key, data, aad)
        assert caught.value.__context__ is None


@pytest.mark.parametrize("size", range(28))
def test_bytes_too_short_to_be_sealed_are_refused(size: int) -> None:
    with pytest.raises(OpenError, match="too short"):
        primitives.open_(KEY, bytes(size), b"")


def test_every_seal_draws_its_own_iv() -> None:
    ivs = {primitives.seal(KEY, b"text", b"")[:12] for _ in range(1000)}
    assert len(ivs) == 1000


def test_sealer_and_opener_are_inverse_and_deterministic() -> None:
    iv = bytes(12)
    sealed = primitives.sealer(KEY)(iv, b"text", b"aad")
    assert primitives.sealer(KEY)(iv, b"text", b"aad") == sealed
    assert primitives.opener(KEY)(iv, sealed, b"aad") == b"text"
    with pytest.raises(primitives.INVALID_TAG):
        primitives.opener(KEY)(iv, sealed, b"AAD")


def test_the_mac_is_hmac_sha256() -> None:
    """RFC 4231 has no key of 32 bytes; its construction is checked with the standard library."""
    assert primitives.mac(KEY, b"message") == hmac.new(KEY, b"message", "sha256").digest()
    mac = primitives.authenticator(KEY)
    assert [mac(each) for each in (b"message", b"", b"message")] == [
        hmac.new(KEY, each, "sha256").digest() for each in (b"message", b"", b"message")
    ]


def test_aes_gcm_gives_the_published_answer() -> None:
    """The GCM specification's test case 16: AES-256, 96-bit IV, 20 bytes of additional data."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    iv = bytes.fromhex("cafebabefacedbaddecaf888")
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    expected = (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert primitives.sealer(key)(iv, plaintext, aad).hex() == expected


def test_equal_compares_bytes() -> None:
    assert primitives.equal(b"abc", b"abc")
    assert not primitives.equal(b"abc", b"abd")
    assert not primitives.equal(b"abc", b"ab")
    assert not primitives.equal(b"", b"a")


def test_random_identifiers_differ_and_have_their_size() -> None:
    assert len({primitives.random_uid() for _ in range(100)}) == 100
    assert all(len(primitives.random_uid()) == 16 for _ in range(10))
    numbers = {primitives.random_u32() for _ in range(100)}
    assert len(numbers) > 90
    assert all(0 <= number < 2**32 for number in numbers)
