"""The audit chain against known answers, and every way in which it can be wrong."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
from tests.support.canary import Secrets, leaks, object_leaks
from tests.support.vectors import cases, identity, named

from pii_vault import chain, primitives
from pii_vault.chain import START, AuditKey, ChainRecord, Entry, Walk
from pii_vault.context import Identity
from pii_vault.errors import AuditError
from pii_vault.keys import Secret

ME = Identity(bytes(16), bytes(range(16)), 0xC0FFEE)
OTHER = Identity(bytes(16), bytes(range(1, 17)), 0xC0FFEE)
KEY_BYTES, ROOT_BYTES = bytes(range(200, 232)), bytes(range(32, 64))
KEY = AuditKey(ME.app_uid, Secret(KEY_BYTES))
ROOT = Secret(ROOT_BYTES)
ARN = "arn:aws:kms:eu-west-1:999900001111:key/platform"


def entries_of(case: dict[str, Any]) -> list[Entry]:
    return [Entry(each["number"], each["text"], bytes.fromhex(each["mac"])) for each in case["entries"]]


def end_of(case: dict[str, Any]) -> ChainRecord:
    end = case["end"]
    return ChainRecord(ARN, b"wrapped", end["number"], bytes.fromhex(end["mac"]), bytes.fromhex(end["sealed_key"]))


def audit_key_of(case: dict[str, Any]) -> AuditKey:
    return AuditKey(bytes.fromhex(case["app_uid"]), Secret(bytes.fromhex(case["audit_key"])))


def walk_of(case: dict[str, Any]) -> Walk:
    return chain.walk(identity(case), Secret(bytes.fromhex(case["root"])), entries_of(case))


def made(count: int, owner: Identity = ME, root: Secret = ROOT) -> tuple[ChainRecord, list[Entry]]:
    """A chain as the library writes it."""
    end, entry = chain.begin(KEY, owner, root, kms_key_arn=ARN, wrapped_root=b"wrapped", text="entry 1")
    entries = [entry]
    for number in range(2, count + 1):
        end, entry = chain.append(KEY, owner, end, f"entry {number}")
        entries.append(entry)
    return end, entries


@pytest.mark.parametrize("case", cases("audit_chain.json"), ids=named)
def test_a_known_chain_is_in_order_or_forged_at_the_known_place(case: dict[str, Any]) -> None:
    walked, end = walk_of(case), end_of(case)
    if case["expect"] == "forged":
        missing = len(case["entries"]) + 1 if end.seq > len(case["entries"]) else None
        assert (walked.first_bad or missing) == case["first_bad"]
        return
    assert walked.first_bad is None
    assert chain.continues(audit_key_of(case), identity(case), end, walked) is (case["expect"] == "success")


@pytest.mark.parametrize("case", cases("audit_chain.json"), ids=named)
def test_nothing_is_added_to_a_known_end_that_does_not_open(case: dict[str, Any]) -> None:
    if case["expect"] == "forged":
        return
    audit_key, owner, end = audit_key_of(case), identity(case), end_of(case)
    if case["expect"] == "success":
        assert audit_key.open_(owner, end).reveal().hex() == case["following_key"]
        longer, entry = chain.append(audit_key, owner, end, "one more")
        walked = chain.walk(owner, Secret(bytes.fromhex(case["root"])), [*entries_of(case), entry])
        assert walked.first_bad is None
        assert chain.continues(audit_key, owner, longer, walked)
    elif "opens to" in case["name"]:  # whoever has the audit key can seal any key; the next entry is then forged
        _, entry = chain.append(audit_key, owner, end, "one more")
        walked = chain.walk(owner, Secret(bytes.fromhex(case["root"])), [*entries_of(case), entry])
        assert walked.first_bad == len(case["entries"]) + 1
    else:
        with pytest.raises(AuditError, match="fails its authentication"):
            chain.append(audit_key, owner, end, "one more")


@pytest.mark.parametrize("case", cases("audit_chain.json"), ids=named)
def test_a_known_chain_is_written_as_it_was_frozen(case: dict[str, Any]) -> None:
    if case["expect"] != "success":
        return
    audit_key, owner = audit_key_of(case), identity(case)
    assert audit_key.commitment.hex() == case["audit_key_commitment"]
    first, *others = case["entries"]
    end, entry = chain.begin(
        audit_key,
        owner,
        Secret(bytes.fromhex(case["root"])),
        kms_key_arn=ARN,
        wrapped_root=b"wrapped",
        text=first["text"],
    )
    written = [entry]
    for other in others:
        assert audit_key.open_(owner, end).reveal().hex() == other["key"]
        end, entry = chain.append(audit_key, owner, end, other["text"])
        written.append(entry)
    assert written == entries_of(case)
    assert (end.seq, end.head) == (end_of(case).seq, end_of(case).head)
    assert audit_key.open_(owner, end).reveal().hex() == case["following_key"]


def test_a_chain_begins_behind_zeros_and_keeps_its_root_and_its_address() -> None:
    end, (entry,) = made(1)
    assert not any(START)
    assert len(START) == 32
    assert (entry.seq, entry.text) == (1, "entry 1")
    assert (end.kms_key_arn, end.root, end.seq, end.head) == (ARN, b"wrapped", 1, entry.mac)
    later, _ = chain.append(KEY, ME, end, "entry 2")
    assert (later.kms_key_arn, later.root, later.seq) == (ARN, b"wrapped", 2)


def test_every_end_is_sealed_anew_and_holds_a_key_of_its_own() -> None:
    ends = [made(count)[0] for count in range(1, 6)]
    assert all(len(end.sealed_key) == 60 for end in ends)
    keys = {KEY.open_(ME, end).reveal() for end in ends}
    assert len(keys) == 5
    assert ROOT_BYTES not in keys
    # The same chain once more: the same keys, under other IVs.
    again = [made(count)[0] for count in range(1, 6)]
    assert {KEY.open_(ME, end).reveal() for end in again} == keys
    assert len({end.sealed_key[:12] for end in ends + again}) == 10


def test_a_walk_comes_to_the_end_of_what_was_written() -> None:
    end, entries = made(20)
    walked = chain.walk(ME, ROOT, entries)
    assert (walked.first_bad, walked.head) == (None, end.head)
    assert walked.key.reveal() == KEY.open_(ME, end).reveal()
    assert chain.continues(KEY, ME, end, walked)


def test_a_walk_along_nothing_stands_at_the_start() -> None:
    walked = chain.walk(ME, ROOT, [])
    assert (walked.first_bad, walked.head, walked.key.reveal()) == (None, START, ROOT_BYTES)


def test_a_walk_stops_at_the_first_bad_entry_with_what_it_had_by_then() -> None:
    _, entries = made(6)
    entries[3] = replace(entries[3], text="another")
    entries[4] = replace(entries[4], text="another still")
    asked = []
    walked = chain.walk(ME, ROOT, (asked.append(entry.seq) or entry for entry in entries))
    assert (walked.first_bad, walked.head) == (4, entries[2].mac)
    assert walked.key.reveal() == KEY.open_(ME, made(3)[0]).reveal()
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize("place", range(6))
def test_an_entry_left_out_or_written_twice_is_found_at_its_place(place: int) -> None:
    end, entries = made(6)
    left_out = chain.walk(ME, ROOT, entries[:place] + entries[place + 1 :])
    if place < 5:
        assert left_out.first_bad == place + 1
    else:  # a walk does not know where the end is
        assert left_out.first_bad is None
        assert not chain.continues(KEY, ME, end, left_out)
    assert chain.walk(ME, ROOT, entries[: place + 1] + entries[place:]).first_bad == place + 2


def test_who_holds_the_audit_key_and_the_end_cannot_write_an_earlier_entry() -> None:
    """All that a host has once entry 5 is written: the audit key, and with it the key of entry 6."""
    end, entries = made(5)
    for seq in range(1, 6):
        head = entries[seq - 2].mac if seq > 1 else START
        # The end is sealed for place 5; a host can seal the key that it has for any other place.
        stolen = KEY.open_(ME, end)
        before = replace(end, seq=seq - 1, head=head, sealed_key=KEY.seal(ME, seq - 1, head, stolen))
        _, forged = chain.append(KEY, ME, before, "forged")
        assert chain.walk(ME, ROOT, [*entries[: seq - 1], forged, *entries[seq:]]).first_bad == seq


def test_an_end_does_not_continue_another_walk() -> None:
    ends = {count: made(count) for count in range(1, 6)}
    walks = {count: chain.walk(ME, ROOT, entries) for count, (_, entries) in ends.items()}
    for count, (end, _) in ends.items():
        assert [chain.continues(KEY, ME, end, walks[other]) for other in ends] == [other == count for other in ends]
    end, _ = ends[3]
    assert not chain.continues(KEY, ME, end, chain.walk(ME, Secret(bytes(32)), []))
    assert not chain.continues(KEY, OTHER, end, walks[3])
    assert not chain.continues(AuditKey(ME.app_uid, Secret(bytes(32))), ME, end, walks[3])
    assert not chain.continues(AuditKey(bytes(range(16)), Secret(KEY_BYTES)), ME, end, walks[3])


def test_chains_of_two_tenants_share_no_mac_and_no_key_even_with_one_root() -> None:
    (mine, my_entries), (others, other_entries) = made(5), made(5, OTHER)
    assert not {entry.mac for entry in my_entries} & {entry.mac for entry in other_entries}
    assert KEY.open_(ME, mine).reveal() != KEY.open_(OTHER, others).reveal()
    assert chain.walk(OTHER, ROOT, my_entries).first_bad == 1
    with pytest.raises(AuditError):
        KEY.open_(OTHER, mine)


def test_a_changed_end_says_whose_it_is_and_drags_no_key_along() -> None:
    end, _ = made(3)
    secrets = Secrets(KEY_BYTES, ROOT_BYTES, KEY.open_(ME, end).reveal(), KEY._wrap.reveal())
    for changed in ({"seq": 4}, {"head": bytes(32)}, {"sealed_key": bytes(60)}, {"sealed_key": b""}):
        with pytest.raises(AuditError, match=ME.tenant_uid.hex()) as caught:
            chain.append(KEY, ME, replace(end, **changed), "never")
        assert caught.value.__context__ is None
        assert leaks(caught.value, secrets) == []


def test_an_audit_key_does_not_show_its_bytes() -> None:
    secrets = Secrets(KEY_BYTES, KEY._wrap.reveal())
    assert object_leaks(KEY, secrets) == []
    assert KEY.commitment == primitives.derive(KEY_BYTES, "commit", chain.audit_context(1, ME.app_uid))


def test_nothing_of_a_chain_shows_a_key() -> None:
    end, entries = made(3)
    walked = chain.walk(ME, ROOT, entries)
    keys = [KEY.open_(ME, made(count)[0]).reveal() for count in range(1, 4)]
    secrets = Secrets(KEY_BYTES, ROOT_BYTES, KEY._wrap.reveal(), *keys)
    for thing in (end, walked, *entries):
        assert object_leaks(thing, secrets) == []


@pytest.mark.parametrize("take", [pickle.dumps, copy.deepcopy], ids=lambda take: take.__name__)
@pytest.mark.parametrize("thing", [KEY, chain.walk(ME, ROOT, [])], ids=["audit key", "walk"])
def test_the_key_in_what_holds_one_is_neither_pickled_nor_copied(take: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        take(thing)
