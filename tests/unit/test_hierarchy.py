"""Key records against known answers, and every way in which a record can be wrong."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.vectors import cases, identity, named

from pii_vault.context import Identity
from pii_vault.errors import KeyRecordError, KeyStateError
from pii_vault.hierarchy import Kek, active_record, key_commitment, unwrap_all
from pii_vault.keys import KeyRecord, KeyState, Purpose, Secret

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ME = Identity(bytes(16), bytes(range(16)), 0xC0FFEE)
KEK_BYTES = bytes(range(200, 232))
KEK = Kek(ME, 1, Secret(KEK_BYTES))


def record_of(case: dict[str, Any], state: KeyState = KeyState.ACTIVE) -> KeyRecord:
    return KeyRecord(
        purpose=Purpose(case["purpose"]),
        version=case["version"],
        state=state,
        kek_generation=case["kek_generation"],
        algorithm=case["algorithm"],
        encrypted_key=bytes.fromhex(case["encrypted_key"]),
        iv=bytes.fromhex(case["iv"]),
        commitment=bytes.fromhex(case["commitment"]),
        epoch=case["epoch"],
        activation_mac=bytes.fromhex(case["activation_mac"]),
        created_at=NOW,
        activated_at=NOW,
        reason="initial",
        created_by="tests",
        kms_key_arn="arn",
        kms_key_material_id=None,
    )


def kek_of(case: dict[str, Any], generation: int = 1) -> Kek:
    return Kek(identity(case), generation, Secret(bytes.fromhex(case["kek"])))


def key(version: int) -> Secret:
    return Secret(bytes((version % 256,)) * 32)


def record(
    version: int,
    state: KeyState = KeyState.DEACTIVATED,
    *,
    epoch: int | None = None,
    purpose: Purpose = Purpose.DATA,
    kek: Kek = KEK,
) -> KeyRecord:
    """A record as the library writes it: activations counted in the order of versions."""
    iv, encrypted, commitment = kek.wrap(purpose, version, key(version))
    epoch = version if epoch is None else epoch
    return KeyRecord(
        purpose=purpose,
        version=version,
        state=state,
        kek_generation=kek.generation,
        algorithm=1,
        encrypted_key=b"" if state is KeyState.DESTROYED else encrypted,
        iv=iv,
        commitment=commitment,
        epoch=epoch,
        activation_mac=kek.activation_mac(purpose, version, epoch, commitment) if epoch else b"",
        created_at=NOW,
        activated_at=NOW if epoch else None,
        reason="initial",
        created_by="tests",
        kms_key_arn="arn",
        kms_key_material_id=None,
    )


@pytest.mark.parametrize("case", cases("key_records.json", "kek"), ids=named)
def test_the_subkeys_and_the_commitment_of_a_kek_are_the_frozen_ones(case: dict[str, Any]) -> None:
    kek = kek_of(case, case["generation"])
    assert kek._wrap.reveal().hex() == case["wrap_subkey"]
    assert kek._mac.reveal().hex() == case["mac_subkey"]
    assert kek.commitment.hex() == case["commitment"]
    kek.check_commitment(bytes.fromhex(case["commitment"]))


@pytest.mark.parametrize("case", cases("key_records.json", "record"), ids=named)
def test_a_known_record_unwraps_or_is_refused(case: dict[str, Any]) -> None:
    # The negative cases were all made from a record of KEK generation 1.
    generation = case["kek_generation"] if case["expect"] == "success" else 1
    kek = kek_of(case, generation)
    if case["expect"] == "success":
        assert kek.unwrap(record_of(case)).reveal().hex() == case["key"]
        return
    with pytest.raises(KeyRecordError) as caught:
        kek.unwrap(record_of(case))
    assert caught.value.__context__ is None
    assert case["kek"] not in str(caught.value)


@pytest.mark.parametrize("case", cases("key_records.json", "record"), ids=named)
def test_a_known_record_is_refused_by_the_kek_that_it_claims_too(case: dict[str, Any]) -> None:
    if case["expect"] == "success":
        return
    with pytest.raises(KeyRecordError):
        kek_of(case, case["kek_generation"]).unwrap(record_of(case))


@pytest.mark.parametrize("case", cases("key_records.json", "activation"), ids=named)
def test_a_known_activation_is_proven_or_not(case: dict[str, Any]) -> None:
    kek = kek_of(case, case["kek_generation"])
    if case["expect"] == "success":
        kek.check_activation(record_of(case))
        return
    with pytest.raises(KeyRecordError, match="without proof"):
        kek.check_activation(record_of(case))


def test_a_wrapped_key_unwraps_to_itself_under_a_fresh_iv() -> None:
    records = [record(1, KeyState.ACTIVE) for _ in range(50)]
    assert len({one.iv for one in records}) == 50
    assert len({one.commitment for one in records}) == 1
    assert {KEK.unwrap(one).reveal() for one in records} == {key(1).reveal()}


def test_another_commitment_of_the_kek_is_refused() -> None:
    KEK.check_commitment(KEK.commitment)
    for wrong in (bytes(32), KEK.commitment[:-1], b"", Kek(ME, 2, Secret(KEK_BYTES)).commitment):
        with pytest.raises(KeyRecordError, match="does not match its commitment"):
            KEK.check_commitment(wrong)


def test_a_commitment_tells_keys_and_everything_they_belong_to_apart() -> None:
    other = Identity(bytes(16), bytes(range(16)), 1)
    made = {
        key_commitment(owner, purpose, version, key(number))
        for owner in (ME, other)
        for purpose in Purpose
        for version in (1, 2)
        for number in (1, 2)
    }
    assert len(made) == 16


def test_an_index_key_never_serves_as_a_data_key() -> None:
    index = record(1, KeyState.ACTIVE, purpose=Purpose.INDEX)
    disguised = replace(index, purpose=Purpose.DATA)
    with pytest.raises(KeyRecordError, match="authentication"):
        KEK.unwrap(disguised)
    with pytest.raises(KeyRecordError, match="without proof"):
        KEK.check_activation(disguised)


def test_a_destroyed_key_is_not_unwrapped() -> None:
    with pytest.raises(KeyStateError, match="destroyed"):
        KEK.unwrap(record(1, KeyState.DESTROYED))


@pytest.mark.parametrize("state", [KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED, KeyState.COMPROMISED])
def test_every_other_state_unwraps_for_those_who_may_ask(state: KeyState) -> None:
    assert KEK.unwrap(record(1, state)).reveal() == key(1).reveal()


def test_a_keyset_holds_what_may_open_and_nothing_else() -> None:
    records = [
        record(1, KeyState.DESTROYED),
        record(2, KeyState.COMPROMISED),
        record(3, KeyState.DEACTIVATED),
        record(4, KeyState.ACTIVE),
        record(5, KeyState.PRE_ACTIVE, epoch=0),
        record(1, KeyState.ACTIVE, purpose=Purpose.INDEX),
    ]
    assert set(unwrap_all(KEK, records, Purpose.DATA)) == {3, 4, 5}
    assert set(unwrap_all(KEK, records, Purpose.INDEX)) == {1}


def test_the_active_record_is_found_by_its_state_and_not_by_its_place() -> None:
    records = [record(3, KeyState.ACTIVE), record(1), record(2)]
    assert active_record(KEK, records, Purpose.DATA).version == 3


def test_without_an_active_key_nothing_is_made_up() -> None:
    for records in ([], [record(1)], [record(1, KeyState.ACTIVE, purpose=Purpose.INDEX)]):
        assert active_record(KEK, records, Purpose.DATA) is None


def test_two_active_keys_are_refused() -> None:
    with pytest.raises(KeyRecordError, match="has 2 active data keys"):
        active_record(KEK, [record(1, KeyState.ACTIVE), record(2, KeyState.ACTIVE)], Purpose.DATA)


def test_an_active_record_without_proof_is_refused() -> None:
    good = record(2, KeyState.ACTIVE)
    for forged in (
        replace(good, activation_mac=b""),
        replace(good, activation_mac=bytes(32)),
        replace(good, epoch=9),
        replace(good, activation_mac=record(1, KeyState.ACTIVE).activation_mac),
    ):
        with pytest.raises(KeyRecordError, match="without proof"):
            active_record(KEK, [record(1), forged], Purpose.DATA)


@pytest.mark.parametrize("state", [KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED])
def test_an_old_key_is_not_active_again_while_a_later_one_is_known(state: KeyState) -> None:
    """The old record's proof was valid once and still is: what convicts it is the later record."""
    with pytest.raises(KeyRecordError, match="was active before"):
        active_record(KEK, [record(1, KeyState.ACTIVE), record(2, state)], Purpose.DATA)


def test_a_later_key_that_hides_as_pre_active_convicts_an_old_one_too() -> None:
    hidden = record(2, KeyState.PRE_ACTIVE)
    with pytest.raises(KeyRecordError, match="was active before"):
        active_record(KEK, [record(1, KeyState.ACTIVE), hidden], Purpose.DATA)


def test_a_later_epoch_of_a_lower_version_convicts_as_well() -> None:
    with pytest.raises(KeyRecordError, match="was active before"):
        active_record(KEK, [record(1, epoch=5), record(2, KeyState.ACTIVE, epoch=2)], Purpose.DATA)


def test_a_deactivated_key_that_denies_its_activation_still_convicts() -> None:
    denied = replace(record(2), epoch=0, activation_mac=b"")
    with pytest.raises(KeyRecordError, match="was active before"):
        active_record(KEK, [record(1, KeyState.ACTIVE), denied], Purpose.DATA)


@pytest.mark.parametrize("state", [KeyState.PRE_ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED])
def test_a_successor_that_was_never_active_does_not_make_the_active_key_old(state: KeyState) -> None:
    """A published successor may be withdrawn before it was ever used; the tenant goes on."""
    successor = record(2, state, epoch=0)
    assert active_record(KEK, [record(1, KeyState.ACTIVE), successor], Purpose.DATA).version == 1


def test_keys_of_another_purpose_do_not_count() -> None:
    later = record(9, KeyState.DEACTIVATED, purpose=Purpose.INDEX)
    assert active_record(KEK, [record(1, KeyState.ACTIVE), later], Purpose.DATA).version == 1


def test_a_kek_does_not_show_or_hand_out_its_bytes() -> None:
    subkeys = (KEK_BYTES, KEK._wrap.reveal(), KEK._mac.reveal())
    for text in (repr(KEK), str(KEK), f"{KEK}", repr(vars(KEK))):
        for secret in subkeys:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            call(KEK)
