"""The independent implementation makes the token of every vector: section 10 of docs/format.md is complete."""

from __future__ import annotations

import ast
import json
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support import independent_opener as opener
from tests.support import independent_tokens as tokens
from tests.support.independent_opener import Failure, Kind, Member, Tenant

HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = json.loads((HERE / "tokens.json").read_text(encoding="utf-8"))["cases"]
BEHIND_AN_AT = "text;after(@);128"


def named(case: dict[str, Any]) -> str:
    return case["name"]


def tenant_of(case: dict[str, Any]) -> Tenant:
    return Tenant(bytes.fromhex(case["app_uid"]), bytes.fromhex(case["tenant_uid"]), case["keyset_id"])


def build(described: dict[str, Any]) -> Any:
    """The value that a vector describes."""
    ((kind, value),) = described.items()
    simple = {
        "str": str,
        "bytes": bytes.fromhex,
        "int": opener.long_int,
        "bool": bool,
        "float64": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
        "decimal": Decimal,
        "date": date.fromisoformat,
        "time": time.fromisoformat,
        "datetime": datetime.fromisoformat,
        "uuid": UUID,
        "member": Member,
    }
    return simple[kind](value)


def members_of(case: dict[str, Any]) -> dict[str, str] | None:
    return {name: name for name in case["members"]} if "members" in case else None


def message(form: str, value: Any, members: dict[str, str] | None = None) -> bytes | None:
    return tokens.message_of_value(tokens.parse_form(form), value, members)


def refused(call: Callable[..., object], *given: Any) -> bool:
    try:
        call(*given)
    except Failure as error:
        return error.kind == opener.REFUSED
    return False


def test_implementation_shares_no_code_with_the_package():
    tree = ast.parse(Path(tokens.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert {name for name in imported if name.startswith("tests")} == {"tests.support.independent_opener"}
    assert not {name for name in imported if name.partition(".")[0] in {"pii_vault", "importlib"}}


# --- the vectors ---


@pytest.mark.parametrize("case", CASES, ids=named)
def test_token(case: dict[str, Any]):
    tenant, index_key = tenant_of(case), bytes.fromhex(case["index_key"])
    form = tokens.parse_form(case["form"])
    assert tokens.index_context(tenant, case["index"], case["form"]).hex() == case["context"]
    subkey = tokens.index_subkey(index_key, tenant, case["index"], case["form"])
    assert subkey.hex() == case["subkey"]
    found = tokens.message_of_value(form, build(case["value"]), members_of(case))
    assert found is not None
    assert found.hex() == case["message"]
    assert tokens.token_of(subkey, found, form.bits).hex() == case["token"]


@pytest.mark.parametrize("case", CASES, ids=named)
def test_message_is_made_of_what_a_sealed_value_opens_to(case: dict[str, Any]):
    form = tokens.parse_form(case["form"])
    for codec in tokens.CODECS[form.kind]:
        try:
            _, encoded = opener.encode(Kind((codec,), members=members_of(case)), build(case["value"]))
        except Failure:
            continue
        value = opener.decode(Kind((codec,), members=members_of(case)), codec, encoded)
        assert tokens.message_of(form, codec, encoded) == bytes.fromhex(case["message"])
        assert tokens.message_of_value(form, value, members_of(case)) == bytes.fromhex(case["message"])
        return
    pytest.fail("no codec of the kind takes the value")


def test_vectors_have_every_kind_normaliser_part_and_unit():
    forms = [tokens.parse_form(case["form"]) for case in CASES]
    assert {name for form in forms for name in form.normalisers} == set(tokens.NORMALISERS)
    assert {form.part for form in forms} == {"whole", "prefix", "last", "after", "bucket"}
    buckets = {(form.kind, form.argument[-1]) for form in forms if form.part == "bucket"}
    assert {(kind, unit) for kind, unit in buckets if kind == "date"} == {("date", unit) for unit in "ymd"}
    assert {kind for kind, _ in buckets} == {"date", "datetime", "instant", "int", "decimal"}
    assert {form.kind for form in forms if form.part != "bucket"} == set(tokens.CODECS)


# --- what the page says and the vectors do not ---

BY_HAND = [
    ("time;whole;128", time(0, 0, 1), "00000000000f4240"),
    ("datetime;whole;128", datetime(1970, 1, 1, 0, 0, 1), "00000000000f4240"),
    ("datetime;whole;128", datetime(1969, 12, 31, 23, 59, 59, 999999), "ffffffffffffffff"),
    ("float;whole;128", float("inf"), "7ff0000000000000"),
    ("float;whole;128", float("-inf"), "fff0000000000000"),
    ("float;whole;128", struct.unpack(">d", bytes.fromhex("7ff8000000000001"))[0], "7ff8000000000000"),
    ("float;whole;128", 1, "3ff0000000000000"),
    ("int;whole;128", -128, "80"),
    ("int;whole;128", -(2**63), "8000000000000000"),
    ("int;whole;128", -(2**63) - 1, "ff7fffffffffffffff"),
    ("decimal;whole;128", Decimal("7"), b"7E0".hex()),
    ("decimal;whole;128", 7, b"7E0".hex()),
    ("decimal;whole;128", Decimal("1002.00300"), b"1002003E-3".hex()),
    ("decimal;whole;128", Decimal("0E+7"), b"0".hex()),
    ("decimal;whole;128", Decimal("1E+999999999999999999"), b"1E999999999999999999".hex()),
    ("bool;whole;128", False, "00"),
    ("date;whole;128", date(1, 1, 1), "fff506c6"),
    ("bytes;whole;128", b"", ""),
    ("text;last(2);128", "a\u0301\U0001f600", "cc81f09f9880"),
    ("text;last(4);128", "abc", "616263"),
    ("text;casefold/1;nfkc/1;whole;128", "\U0001d400", "41"),
    ("text;nfkc/1;casefold/1;whole;128", "\U0001d400", "61"),
    ("text;prefix(1);128", "", ""),
    ("text;strip/1;whole;128", "\x1c\x1f\x85\u3000\u200b a \u2029", "e2808b2061"),
    ("text;casefold/1;nfkc/1;whole;128", "\u03f4", "ceb8"),
    ("text;nfkc/1;whole;128", "\u03f4", "ce98"),
    ("text;digits/1;whole;128", "\u00b2\u2460\u0be7\U0001d7d9", "3131"),
    ("text;after(/);128", "a/b/c", "63"),
    ("text;after(]);128", "a]b", "62"),
    (BEHIND_AN_AT, "ada@", ""),
    (BEHIND_AN_AT, "ada\uff20b@c", "63"),
    ("text;nfkc/1;after(@);128", "ada\uff20b", "62"),
    ("int;bucket(100);128", -(2**63) - 1, "feb851eb851eb851"),
    ("decimal;bucket(0.5);128", Decimal("0E-5000"), "00"),
    ("decimal;bucket(0.000000000000000001);128", Decimal("-1E-19"), "ff"),
    ("decimal;bucket(100);128", 250, "02"),
    ("instant;bucket(1m);128", datetime(1, 1, 1, tzinfo=timezone(timedelta(minutes=1))), "0b"),
    ("instant;bucket(1d);128", datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(minutes=1))), "37b9db"),
    ("instant;bucket(400y);128", datetime(1600, 1, 1, tzinfo=UTC), "04"),
    ("date;bucket(1000000000000000000d);128", date(9999, 12, 31), "00"),
]


@pytest.mark.parametrize(("form", "value", "expected"), BY_HAND, ids=[f"{i}-{c[0]}" for i, c in enumerate(BY_HAND)])
def test_message_that_was_made_by_hand(form: str, value: Any, expected: str):
    found = message(form, value)
    assert found is not None
    assert found.hex() == expected


def test_enum_is_found_by_the_number_of_its_name_and_an_alias_by_that_of_its_member():
    members = {"NEW": "NEW", "OLD": "NEW"}
    number = opener.encode(Kind((13,), members={"NEW": "NEW"}), Member("NEW"))[1]
    assert message("enum;whole;128", Member("NEW"), members) == number
    assert message("enum;whole;128", Member("OLD"), members) == number


def test_text_without_its_part_has_another_random_token_each_time():
    form = tokens.parse_form("text;after(@);20")
    found = message(BEHIND_AN_AT, "ada")
    assert found is None
    made = {tokens.token_of(bytes(32), found, 128) for _ in range(4)}
    assert len(made) == 4
    assert all(len(token) == 16 for token in made)
    short = {tokens.token_of(bytes(32), found, form.bits) for _ in range(4)}
    assert len(short) > 1
    assert all(int.from_bytes(token, "big") % 2**108 == 0 for token in short)


SEARCHES = [
    ("text;prefix(3);128", "abc", b"abc"),
    ("text;last(2);128", "abc", b"abc"),
    ("text;casefold/1;after(@);128", "Example.COM", b"example.com"),
    ("text;casefold/1;after(@);128", "a@Example.COM", b"a@example.com"),
    ("text;digits/1;last(4);128", "11-20", b"1120"),
    ("text;strip/1;whole;128", " ada ", b"ada"),
    ("date;bucket(10y);128", date(1989, 12, 31), b"\x00\xc6"),
    ("int;whole;128", 128, b"\x00\x80"),
]


@pytest.mark.parametrize(("form", "given", "expected"), SEARCHES)
def test_who_looks_for_a_part_of_a_text_gives_the_part(form: str, given: Any, expected: bytes):
    assert tokens.message_of_search(tokens.parse_form(form), given) == expected


@pytest.mark.parametrize("bits", range(1, 129))
def test_bits_after_the_first_are_zeros(bits: int):
    found = int.from_bytes(tokens.cut(b"\xff" * 32, bits), "big")
    assert f"{found:0128b}" == "1" * bits + "0" * (128 - bits)


def test_each_part_of_the_context_makes_another_subkey():
    case = CASES[0]
    tenant, key = tenant_of(case), bytes.fromhex(case["index_key"])
    another = Tenant(tenant.app_uid, bytes(16), tenant.keyset_id)
    another_app = Tenant(bytes(16), tenant.tenant_uid, tenant.keyset_id)
    another_keyset = Tenant(tenant.app_uid, tenant.tenant_uid, tenant.keyset_id ^ 1)
    asked = [
        (key, tenant, "a", "text;whole;128"),
        (bytes(32), tenant, "a", "text;whole;128"),
        (key, another, "a", "text;whole;128"),
        (key, another_app, "a", "text;whole;128"),
        (key, tenant, "b", "text;whole;128"),
        (key, tenant, "a", "text;whole;127"),
        (key, tenant, "a", "bytes;whole;128"),
    ]
    assert len({tokens.index_subkey(*each) for each in asked}) == len(asked)
    assert tokens.index_subkey(key, another_keyset, "a", "text;whole;128") == tokens.index_subkey(*asked[0])


def test_calendar_is_the_proleptic_gregorian_one():
    first = date(1, 1, 1).toordinal()
    for day in (*range(first, first + 3000), *range(0, date.max.toordinal(), 97), date.max.toordinal()):
        if day >= first:
            expected = date.fromordinal(day)
            assert tokens.year_and_month(day - first) == (expected.year, expected.month)
    assert [tokens.year_and_month(day) for day in (-1, -31, -32, -366)] == [(0, 12), (0, 12), (0, 11), (0, 1)]
    assert tokens.year_and_month(date.max.toordinal() - first + 1) == (10000, 1)


BAD_FORMS = [
    "text",
    "text;whole",
    "text;128",
    "whole;128",
    "json;whole;128",
    "array;whole;128",
    "text;whole;0",
    "text;whole;129",
    "text;whole;+1",
    "text;whole;08",
    "text;whole;128 ",
    "Text;whole;128",
    "text;nfkc;whole;128",
    "text;nfkc/2;whole;128",
    "text;whole;nfkc/1;128",
    "text;whole(1);128",
    "text;prefix;128",
    "text;prefix();128",
    "text;prefix(0);128",
    "text;prefix(-1);128",
    "text;last(03);128",
    "text;after;128",
    "text;after();128",
    "text;after(--);128",
    "text;after(a);128",
    "text;after(0);128",
    "text;after( );128",
    "text;after(;);128",
    "text;after(();128",
    "text;after());128",
    "text;after(\n);128",
    "text;after(\xdf);128",
    "text;prefix(1001);128",
    "text;last(1001);128",
    "text;bucket(1);128",
    "text;bucket(1y);128",
    "bytes;strip/1;whole;128",
    "bytes;prefix(1);128",
    "int;last(4);128",
    "uuid;after(-);128",
    "float;bucket(1);128",
    "time;bucket(1d);128",
    "bool;bucket(1);128",
    "date;bucket(10);128",
    "date;bucket(0y);128",
    "date;bucket(01y);128",
    "date;bucket(1w);128",
    "date;bucket(12m);128",
    "date;bucket(24m);128",
    "date;bucket(0.5y);128",
    "date;bucket(1000000000000000001d);128",
    "int;bucket(10y);128",
    "int;bucket(0);128",
    "int;bucket(-1);128",
    "int;bucket(0.5);128",
    "int;bucket(1.0);128",
    "int;bucket(1e2);128",
    "int;bucket(1000000000000000001);128",
    "decimal;bucket(0.0);128",
    "decimal;bucket(.5);128",
    "decimal;bucket(5.);128",
    "decimal;bucket(0.50);128",
    "decimal;bucket(00.5);128",
    "decimal;bucket(1E+2);128",
    "decimal;bucket(0.0000000000000000001);128",
    "decimal;bucket(1000000000000000000.1);128",
]


@pytest.mark.parametrize("form", BAD_FORMS)
def test_form_that_the_page_does_not_know_is_refused(form: str):
    assert refused(tokens.parse_form, form)


def test_sizes_at_the_edge_are_taken():
    for form in (
        "date;bucket(1000000000000000000y);128",
        "date;bucket(1m);128",
        "date;bucket(13m);128",
        "int;bucket(1000000000000000000);1",
        "decimal;bucket(1000000000000000000);128",
        "decimal;bucket(0.000000000000000001);128",
        "decimal;bucket(999999999999999999.999999999999999999);128",
    ):
        assert not refused(tokens.parse_form, form)


VALUES_OF_ANOTHER_TYPE = [
    ("text;whole;128", b"ada"),
    ("text;whole;128", "\ud800"),
    ("text;whole;128", None),
    ("bytes;whole;128", "ada"),
    ("int;whole;128", True),
    ("int;whole;128", 1.0),
    ("float;whole;128", Decimal(1)),
    ("float;whole;128", 2**53 + 1),
    ("decimal;whole;128", Decimal("NaN")),
    ("decimal;bucket(1);128", Decimal("Infinity")),
    ("decimal;whole;128", 1.0),
    ("bool;whole;128", 1),
    ("date;whole;128", datetime(2000, 1, 1)),
    ("date;bucket(1y);128", datetime(2000, 1, 1)),
    ("datetime;whole;128", datetime(2000, 1, 1, tzinfo=UTC)),
    ("datetime;bucket(1y);128", date(2000, 1, 1)),
    ("instant;whole;128", datetime(2000, 1, 1)),
    ("instant;bucket(1y);128", datetime(2000, 1, 1)),
    ("uuid;whole;128", "00112233-4455-6677-8899-aabbccddeeff"),
]


@pytest.mark.parametrize(("form", "value"), VALUES_OF_ANOTHER_TYPE)
def test_value_that_the_codecs_of_the_kind_do_not_take_has_no_token(form: str, value: Any):
    assert refused(tokens.message_of_value, tokens.parse_form(form), value)


def test_decimal_of_too_many_digits_has_no_bucket_and_does_have_a_whole():
    for text, allowed in {
        "1E+999": True,
        "-9.99E+999": True,
        "1E+1000": False,
        "-1E+1000": False,
        "1E-1000": True,
        "10E-1001": True,
        "1E-1001": False,
        "0E+5000": True,
        "0E-5000": True,
        "9" * 1000 + "." + "9" * 1000: True,
        "1E+999999999999999999": False,
    }.items():
        value = Decimal(text)
        assert refused(tokens.message_of_value, tokens.parse_form("decimal;bucket(0.5);128"), value) is not allowed
        assert not refused(tokens.message_of_value, tokens.parse_form("decimal;whole;128"), value)


def test_quotient_of_a_decimal_is_exact():
    assert message("decimal;bucket(3);128", Decimal("2." + "9" * 1000)) == b"\x00"
    assert message("decimal;bucket(3);128", Decimal("-3." + "0" * 999 + "1")) == b"\xfe"
    assert message("decimal;bucket(0.1);128", Decimal("0.3")) == b"\x03"


# --- where tokens stand ---


def test_tokens_stand_behind_the_header_and_are_authenticated():
    cases = json.loads((HERE / "sealed_values.json").read_text(encoding="utf-8"))["cases"]
    indexed = [case for case in cases if case["tokens"]]
    assert {(case["suite"], len(case["tokens"])) for case in indexed} >= {(0xFA, 1), (0xFA, 3), (0xFA, 15), (0xFB, 1)}
    for case in indexed:
        sealed = bytes.fromhex(case["sealed"])
        joined = bytes.fromhex("".join(case["tokens"]))
        assert sealed[8] == case["index_generation"] != 0
        assert sealed[9] == len(case["tokens"])
        assert sealed[10 : 10 + len(joined)] == joined
        places = [tokens.place(sealed, number) for number in range(16)]
        assert places == [*map(bytes.fromhex, case["tokens"]), *[None] * (16 - len(case["tokens"]))]
        front = sealed[: 10 + len(joined)]
        tail = () if case["row_id"] is None else (bytes.fromhex(case["row_id"]),)
        tenant = tenant_of(case)
        owner = (tenant.app_uid, tenant.tenant_uid, case["context_id"].encode())
        assert opener.lp(b"pii_vault/1/value", front, *owner, *tail).hex() == case["aad"]
        for offset in range(8, len(front)):
            changed = sealed[:offset] + bytes((sealed[offset] ^ 1,)) + sealed[offset + 1 :]
            with pytest.raises(Failure) as error:
                opener.open_value(
                    changed,
                    tenant=tenant,
                    data_keys={case["version"]: bytes.fromhex(case["data_key"])},
                    context=case["context_id"],
                    row_bound=case["suite"] == 0xFB,
                    row=tail[0] if tail else None,
                )
            assert error.value.kind in {opener.OPEN_FAILURE, opener.MALFORMED}
