"""Canonical bytes: known answers, and that no two different inputs give the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from tests.support.vectors import cases, identity, named

from pii_vault import context
from pii_vault.context import Identity
from pii_vault.errors import ConfigurationError

APP, TENANT = bytes(range(16)), bytes(range(16, 32))
ME = Identity(APP, TENANT, 7)


@pytest.mark.parametrize("case", cases("context.json", "lp"), ids=named)
def test_length_prefixes_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.lp(*map(bytes.fromhex, case["parts"])).hex() == case["bytes"]


def test_a_part_beyond_64_kib_keeps_its_whole_length() -> None:
    assert context.lp(b"z" * 65_537)[:6] == b"\x00\x01\x00\x01zz"


@pytest.mark.parametrize("case", cases("context.json", "context_id"), ids=named)
def test_context_ids_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.context_id(case["table"], case["column"]) == case["context_id"]


@pytest.mark.parametrize("case", cases("context.json", "column_context"), ids=named)
def test_column_contexts_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.column_context(case["suite"], identity(case), case["context_id"]).hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "value_aad"), ids=named)
def test_the_additional_data_of_values_is_the_frozen_one(case: dict[str, Any]) -> None:
    row = None if case["row_id"] is None else bytes.fromhex(case["row_id"])
    aad = context.value_aad(bytes.fromhex(case["header"]), identity(case), case["context_id"], row)
    assert aad.hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "kek_context"), ids=named)
def test_kek_contexts_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.kek_context(case["algorithm"], identity(case), case["generation"]).hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "key_context"), ids=named)
def test_key_contexts_are_the_frozen_ones(case: dict[str, Any]) -> None:
    made = context.key_context(case["algorithm"], identity(case), case["purpose"], case["version"])
    assert made.hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "record_aad"), ids=named)
def test_the_additional_data_of_key_records_is_the_frozen_one(case: dict[str, Any]) -> None:
    made = context.record_aad(
        identity(case),
        case["purpose"],
        case["version"],
        kek_generation=case["kek_generation"],
        algorithm=case["algorithm"],
        commitment=bytes.fromhex(case["commitment"]),
    )
    assert made.hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "activation_message"), ids=named)
def test_activation_messages_are_the_frozen_ones(case: dict[str, Any]) -> None:
    made = context.activation_message(
        identity(case), case["purpose"], case["version"], case["epoch"], bytes.fromhex(case["commitment"])
    )
    assert made.hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "kms_context"), ids=named)
def test_encryption_contexts_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.kms_context(identity(case), case["purpose"], case["number"]) == case["context"]


@pytest.mark.parametrize("case", cases("context.json", "platform_context"), ids=named)
def test_encryption_contexts_of_the_applications_own_keys_are_the_frozen_ones(case: dict[str, Any]) -> None:
    assert context.platform_context(bytes.fromhex(case["app_uid"]), case["purpose"]) == case["context"]


@pytest.mark.parametrize("case", cases("context.json", "audit_context"), ids=named)
def test_audit_contexts_are_the_frozen_ones(case: dict[str, Any]) -> None:
    tenant = None if case["tenant_uid"] is None else bytes.fromhex(case["tenant_uid"])
    assert context.audit_context(case["algorithm"], bytes.fromhex(case["app_uid"]), tenant).hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "entry_message"), ids=named)
def test_messages_of_audit_entries_are_the_frozen_ones(case: dict[str, Any]) -> None:
    made = context.entry_message(identity(case), case["number"], bytes.fromhex(case["before"]), case["text"].encode())
    assert made.hex() == case["bytes"]


@pytest.mark.parametrize("case", cases("context.json", "chain_aad"), ids=named)
def test_the_additional_data_of_the_ends_of_chains_is_the_frozen_one(case: dict[str, Any]) -> None:
    assert context.chain_aad(identity(case), case["number"], bytes.fromhex(case["head"])).hex() == case["bytes"]


@pytest.mark.parametrize(
    "made",
    [context.kms_context(ME, "data", 65535), context.platform_context(APP, "audit")],
    ids=["of a tenant", "of the application"],
)
def test_an_encryption_context_has_exactly_five_short_opaque_entries(made: dict[str, str]) -> None:
    assert list(made) == [f"pii-vault:{key}" for key in ("format", "app", "tenant", "purpose", "record")]
    assert all(1 <= len(value) <= 64 for value in made.values())


def test_no_tenants_encryption_context_is_that_of_a_key_of_the_applications_own() -> None:
    platform = context.platform_context(APP, "audit")
    assert all(context.kms_context(Identity(APP, uid, 1), "audit", 1) != platform for uid in (TENANT, bytes(16)))
    assert not set("platform") <= set("0123456789abcdef")


@pytest.mark.parametrize("purpose", ["", "DATA", "data key", "dätä", "data\n", "d" * 65, "arn:aws:kms"])
def test_an_encryption_context_value_outside_its_alphabet_is_refused(purpose: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        context.kms_context(ME, purpose, 1)
    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        context.platform_context(APP, purpose)


@pytest.mark.parametrize("uid", [b"", bytes(15), bytes(17)])
def test_a_uid_of_another_size_is_refused(uid: bytes) -> None:
    with pytest.raises(ConfigurationError, match="16 bytes"):
        Identity(uid, TENANT, 1)
    with pytest.raises(ConfigurationError, match="16 bytes"):
        Identity(APP, uid, 1)


@pytest.mark.parametrize("keyset_id", [-1, 2**32])
def test_a_keyset_id_beyond_32_bits_is_refused(keyset_id: int) -> None:
    with pytest.raises(ConfigurationError, match="32 bits"):
        Identity(APP, TENANT, keyset_id)


@pytest.mark.parametrize("keyset_id", [0, 2**32 - 1])
def test_the_outermost_keyset_ids_are_allowed(keyset_id: int) -> None:
    assert Identity(APP, TENANT, keyset_id).keyset_bytes == keyset_id.to_bytes(4, "big")


def test_an_identity_is_a_value() -> None:
    assert copy.deepcopy(ME) == pickle.loads(pickle.dumps(ME)) == ME
    assert {ME: 1}[Identity(APP, TENANT, 7)] == 1


def test_no_two_contexts_of_one_derivation_key_coincide() -> None:
    """A KEK and a data key never derive the same bytes, even were the keys equal."""
    purposes = ["data", "index"]
    made = [context.key_context(1, ME, purpose, number) for purpose in purposes for number in (1, 2, 256)]
    made += [context.kek_context(1, ME, generation) for generation in (1, 2, 256)]
    made += [context.column_context(suite, ME, name) for suite in (0xFA, 0xFB) for name in ("", "a.b", "kek", "data")]
    made += [context.kek_context(2, ME, 1), context.key_context(2, ME, "data", 1)]
    made += [context.audit_context(algorithm, APP, owner) for algorithm in (1, 2) for owner in (None, TENANT)]
    assert len(set(made)) == len(made)


def test_every_label_of_additional_data_is_its_own() -> None:
    record = context.record_aad(ME, "data", 1, kek_generation=1, algorithm=1, commitment=bytes(32))
    activation = context.activation_message(ME, "data", 1, 1, bytes(32))
    value = context.value_aad(bytes(10), ME, "a.b")
    entry = context.entry_message(ME, 1, bytes(32), b"")
    chain = context.chain_aad(ME, 1, bytes(32))
    made = (record, activation, value, entry, chain)
    labels = {each[4 : 4 + int.from_bytes(each[:4], "big")] for each in made}
    assert labels == {f"pii_vault/1/{label}".encode() for label in ("record", "activation", "value", "audit", "chain")}


def test_no_two_audit_entries_have_one_message() -> None:
    other, another = Identity(APP, APP, 7), Identity(TENANT, TENANT, 7)
    made = [
        context.entry_message(owner, number, head, text)
        for owner in (ME, other, another)
        for number in (1, 2, 256, 2**32 + 1)
        for head in (bytes(32), b"\x01" * 32)
        for text in (b"", b"a", b"\x00\x00\x00\x01a")
    ]
    assert len(set(made)) == len(made)
