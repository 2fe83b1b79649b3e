"""Header bytes in both directions, and what arbitrary bytes do to the parser."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from pii_vault import envelope
from pii_vault.context import Identity, column_context, context_id, key_context, lp, value_aad
from pii_vault.envelope import Header, parse
from pii_vault.errors import FormatError

headers = st.builds(
    lambda suite, keyset_id, version, codec, generation, tokens: Header(
        suite, keyset_id, version, codec, generation if tokens else 0, tokens
    ),
    st.sampled_from([0xFA, 0xFB]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 65535),
    st.integers(1, 255),
    st.integers(1, 255),
    st.integers(0, 15),
)
parts = st.lists(st.binary(max_size=8), max_size=5)


@settings(deadline=None)
@given(headers, st.binary(max_size=40))
def test_pack_and_parse_are_inverse(header: Header, rest: bytes) -> None:
    packed = header.pack()
    assert len(packed) == envelope.HEADER_BYTES
    assert parse(packed + bytes(16 * header.tokens + 28) + rest) == header


@settings(deadline=None)
@given(st.binary(min_size=38, max_size=300))
def test_what_parses_packs_to_the_same_bytes(data: bytes) -> None:
    data = b"\xfa" + data[1:]
    try:
        header = parse(data)
    except FormatError:
        return
    assert header.pack() == data[:10]
    assert header.iv_offset + 28 <= len(data)


@settings(deadline=None)
@given(st.binary(max_size=4096))
def test_arbitrary_bytes_give_a_header_or_a_format_error(data: bytes) -> None:
    for candidate in (data, b"\xfa" + data, b"\xfb" + data):
        with suppress(FormatError):
            assert isinstance(parse(candidate), Header)


@settings(deadline=None)
@given(parts, parts)
def test_different_parts_never_give_the_same_bytes(left: list[bytes], right: list[bytes]) -> None:
    assert (lp(*left) == lp(*right)) == (left == right)


@settings(deadline=None)
@given(parts, parts)
def test_joined_lists_stay_apart_from_one_list(left: list[bytes], right: list[bytes]) -> None:
    assert lp(*left) + lp(*right) == lp(*left, *right)
    assert lp(lp(*left), lp(*right)) != lp(*left, *right) or not (left or right)


uids = st.binary(min_size=16, max_size=16)
identities = st.builds(Identity, uids, uids, st.integers(0, 2**32 - 1))
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@settings(deadline=None)
@given(*[st.tuples(st.sampled_from([0xFA, 0xFB]), identities, names)] * 2)
def test_two_columns_share_a_subkey_only_when_they_are_the_same(
    left: tuple[int, Identity, str], right: tuple[int, Identity, str]
) -> None:
    same = (left[0], left[1].app_uid, left[1].tenant_uid, left[2]) == (
        right[0],
        right[1].app_uid,
        right[1].tenant_uid,
        right[2],
    )
    assert (column_context(*left) == column_context(*right)) == same


@settings(deadline=None)
@given(*[st.tuples(st.binary(max_size=12), identities, names, st.none() | st.binary(max_size=4))] * 2)
def test_the_additional_data_of_two_values_differ_when_anything_does(
    left: tuple[bytes, Identity, str, bytes | None], right: tuple[bytes, Identity, str, bytes | None]
) -> None:
    def identifying(one: tuple[bytes, Identity, str, bytes | None]) -> tuple[object, ...]:
        return one[0], one[1].app_uid, one[1].tenant_uid, one[2], one[3]

    assert (value_aad(*left) == value_aad(*right)) == (identifying(left) == identifying(right))


@settings(deadline=None)
@given(*[st.tuples(st.integers(0, 255), identities, st.sampled_from(["data", "index"]), st.integers(0, 65535))] * 2)
def test_the_commitment_contexts_of_two_keys_differ_when_anything_does(
    left: tuple[int, Identity, str, int], right: tuple[int, Identity, str, int]
) -> None:
    assert (key_context(*left) == key_context(*right)) == (left == right)


sql_names = st.text(st.sampled_from("ab.\\ é"), max_size=6)


@settings(deadline=None)
@given(*[st.tuples(sql_names, sql_names)] * 2)
def test_two_columns_never_share_a_default_context_id(left: tuple[str, str], right: tuple[str, str]) -> None:
    assert (context_id(*left) == context_id(*right)) == (left == right)
