"""Wrapped keys: whatever is wrapped unwraps; whatever is changed does not; no old key comes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pii_vault.context import Identity
from pii_vault.errors import KeyRecordError, KeyStateError
from pii_vault.hierarchy import Kek, active_record, unwrap_all
from pii_vault.keys import KeyRecord, KeyState, Purpose, Secret

NOW = datetime(2026, 1, 2, tzinfo=UTC)
uids = st.binary(min_size=16, max_size=16)
identities = st.builds(Identity, uids, uids, st.integers(0, 2**32 - 1))
keys = st.binary(min_size=32, max_size=32)
purposes = st.sampled_from(Purpose)
versions = st.integers(1, 65535)
generations = st.integers(1, 2**32 - 1)
epochs = st.integers(1, 2**63 - 1)


def wrapped(kek: Kek, purpose: Purpose, version: int, key: bytes, epoch: int = 1) -> KeyRecord:
    iv, encrypted, commitment = kek.wrap(purpose, version, Secret(key))
    return KeyRecord(
        purpose,
        version,
        KeyState.ACTIVE,
        kek.generation,
        1,
        encrypted,
        iv,
        commitment,
        epoch,
        kek.activation_mac(purpose, version, epoch, commitment),
        NOW,
        NOW,
        "initial",
        "tests",
        "arn",
        None,
    )


@settings(deadline=None)
@given(identities, generations, keys, purposes, versions, keys, epochs)
def test_what_was_wrapped_unwraps_to_itself(
    owner: Identity, generation: int, kek: bytes, purpose: Purpose, version: int, key: bytes, epoch: int
) -> None:
    record = wrapped(Kek(owner, generation, Secret(kek)), purpose, version, key, epoch)
    again = Kek(owner, generation, Secret(kek))
    again.check_activation(record)
    assert again.unwrap(record).reveal() == key
    assert active_record(again, [record], purpose) is record


@settings(deadline=None)
@given(identities, keys, keys, st.data())
def test_any_changed_bit_of_a_record_is_found(
    owner: Identity, kek_bytes: bytes, key: bytes, data: st.DataObject
) -> None:
    kek = Kek(owner, 1, Secret(kek_bytes))
    record = wrapped(kek, Purpose.DATA, 1, key)
    field = data.draw(st.sampled_from(["encrypted_key", "iv", "commitment", "activation_mac"]))
    before = getattr(record, field)
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    changed = bytearray(before)
    changed[bit // 8] ^= 1 << bit % 8
    forged = replace(record, **{field: bytes(changed)})
    check = kek.check_activation if field == "activation_mac" else kek.unwrap
    with pytest.raises(KeyRecordError):
        check(forged)


@settings(deadline=None)
@given(identities, identities, generations, generations, keys, keys, keys, purposes, purposes, versions, versions)
def test_a_record_belongs_to_one_owner_kek_purpose_and_version(
    owner: Identity,
    other: Identity,
    generation: int,
    other_generation: int,
    kek: bytes,
    other_kek: bytes,
    key: bytes,
    purpose: Purpose,
    other_purpose: Purpose,
    version: int,
    other_version: int,
) -> None:
    record = wrapped(Kek(owner, generation, Secret(kek)), purpose, version, key)
    strangers = [
        (Kek(owner, generation, Secret(other_kek)), record, other_kek != kek),
        (Kek(other, generation, Secret(kek)), record, other != owner),
        (Kek(owner, other_generation, Secret(kek)), record, other_generation != generation),
        (
            Kek(owner, other_generation, Secret(kek)),
            replace(record, kek_generation=other_generation),
            other_generation != generation,
        ),
        (Kek(owner, generation, Secret(kek)), replace(record, purpose=other_purpose), other_purpose != purpose),
        (Kek(owner, generation, Secret(kek)), replace(record, version=other_version), other_version != version),
    ]
    for stranger, forged, different in strangers:
        if different:
            with pytest.raises(KeyRecordError):
                stranger.unwrap(forged)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["rotate", "publish", "withdraw", "compromise", "destroy"]), max_size=12), st.data())
def test_after_any_history_the_latest_activation_is_active_and_no_older_one_can_be(
    steps: list[str], data: st.DataObject
) -> None:
    kek = Kek(Identity(bytes(16), bytes(range(16)), 1), 1, Secret(bytes(32)))
    records = [wrapped(kek, Purpose.DATA, 1, bytes(32), 1)]

    def move(index: int, after: KeyState) -> None:
        records[index].state.check_transition(after)
        gone = {"encrypted_key": b""} if after is KeyState.DESTROYED else {}
        records[index] = replace(records[index], state=after, **gone)

    def of(state: KeyState) -> list[int]:
        return [index for index, record in enumerate(records) if record.state is state]

    for step in steps:
        version = len(records) + 1
        if step == "rotate":
            move(of(KeyState.ACTIVE)[0], KeyState.DEACTIVATED)
            epoch = max(record.epoch for record in records) + 1
            records.append(wrapped(kek, Purpose.DATA, version, bytes((version,)) * 32, epoch))
        elif step == "publish":
            ahead = wrapped(kek, Purpose.DATA, version, bytes((version,)) * 32)
            records.append(replace(ahead, state=KeyState.PRE_ACTIVE, epoch=0, activation_mac=b""))
        elif step == "withdraw" and of(KeyState.PRE_ACTIVE):
            move(of(KeyState.PRE_ACTIVE)[-1], KeyState.DESTROYED)
        elif step == "compromise" and of(KeyState.DEACTIVATED):
            move(of(KeyState.DEACTIVATED)[0], KeyState.COMPROMISED)
        elif step == "destroy" and of(KeyState.DEACTIVATED):
            move(of(KeyState.DEACTIVATED)[0], KeyState.DESTROYED)

    active = active_record(kek, records, Purpose.DATA)
    assert active.epoch == max(record.epoch for record in records)
    assert active.version in unwrap_all(kek, records, Purpose.DATA)

    older = [index for index, record in enumerate(records) if 0 < record.epoch < active.epoch]
    if older:
        revived = data.draw(st.sampled_from(older))
        hidden = data.draw(st.sampled_from([state for state in KeyState if state is not KeyState.ACTIVE]))
        forged = [replace(record, state=hidden) if record is active else record for record in records]
        forged[revived] = replace(forged[revived], state=KeyState.ACTIVE)
        with pytest.raises((KeyRecordError, KeyStateError)):
            active_record(kek, forged, Purpose.DATA)
