"""The independent opener gives the expected result for every vector: the pages under docs/ are complete."""

from __future__ import annotations

import ast
import json
import struct
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support import independent_opener as opener
from tests.support.independent_opener import End, Entry, Failure, Header, KeyRecord, Kind, Member, Tenant

HERE = Path(__file__).parent
FILES = (
    "sealed_values",
    "sealed_values_refused",
    "sealed_values_more",
    "key_records",
    "audit_chain",
    "context",
    "derive",
    "codecs",
)


def load(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def cases(name: str) -> list[dict[str, Any]]:
    found = load(name)
    return found if isinstance(found, list) else found["cases"]


def each(name: str) -> pytest.MarkDecorator:
    found = cases(name)
    ids = [ascii(f"{i}-{c.get('codec', c.get('function', ''))}-{c.get('name', '')}")[1:-1] for i, c in enumerate(found)]
    return pytest.mark.parametrize("case", found, ids=ids)


def unhex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def tenant_of(case: dict[str, Any]) -> Tenant:
    return Tenant(bytes.fromhex(case["app_uid"]), bytes.fromhex(case["tenant_uid"]), case["keyset_id"])


def header_of(case: dict[str, Any]) -> Header:
    tokens = tuple(bytes.fromhex(token) for token in case["tokens"])
    return Header(case["suite"], case["keyset_id"], case["version"], case["codec"], case["index_generation"], tokens)


def kind_of(error: pytest.ExceptionInfo[Failure]) -> str:
    return error.value.kind


def test_opener_shares_no_code_with_the_package():
    tree = ast.parse(Path(opener.__file__).read_text(encoding="utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add((node.module or "").partition(".")[0])
    assert "pii_vault" not in roots
    assert "tests" not in roots
    used = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not used & {"pii_vault", "importlib"}


@pytest.mark.parametrize("name", FILES)
def test_there_are_vectors(name: str):
    assert len(cases(name)) > 0


# --- sealed values ---


@each("sealed_values")
def test_sealed_value(case: dict[str, Any]):
    tenant = tenant_of(case)
    data_key = bytes.fromhex(case["data_key"])
    row = unhex(case["row_id"])
    sealed = bytes.fromhex(case["sealed"])
    plaintext = bytes.fromhex(case["plaintext"])
    header = header_of(case)
    bound = case["suite"] == 0xFB
    assert (row is not None) == bound

    parsed = opener.parse(sealed)
    assert parsed.header == header
    assert parsed.iv == bytes.fromhex(case["iv"])
    context = opener.column_context(tenant, case["suite"], case["context_id"])
    assert opener.derive(data_key, "seal", context).hex() == case["subkey"]
    assert opener.value_aad(tenant, parsed.header_and_tokens, case["context_id"], row).hex() == case["aad"]
    keys = {case["version"]: data_key}

    def opened(**changed: Any) -> opener.Opened:
        given = {"tenant": tenant, "data_keys": keys, "context": case["context_id"], "row_bound": bound, "row": row}
        return opener.open_value(sealed, **{**given, **changed})

    assert opened(reads={case["codec"]}) == opener.Opened(case["codec"], plaintext)
    again = opener.seal_value(
        header, parsed.iv, plaintext, tenant=tenant, data_key=data_key, context=case["context_id"], row=row
    )
    assert again == sealed
    assert len(sealed) == len(plaintext) + 38 + 16 * len(header.tokens)

    with pytest.raises(Failure) as error:
        opened(row_bound=not bound, row=b"\0")
    assert kind_of(error) == opener.UNSUPPORTED
    with pytest.raises(Failure) as error:
        opened(reads={99})
    assert kind_of(error) == opener.CODEC_MISMATCH
    with pytest.raises(Failure) as error:
        opened(tenant=Tenant(tenant.app_uid, tenant.tenant_uid, tenant.keyset_id ^ 1))
    assert kind_of(error) == opener.FOREIGN
    with pytest.raises(Failure) as error:
        opened(data_keys={})
    assert kind_of(error) == opener.UNKNOWN_KEY
    if bound:
        with pytest.raises(Failure) as error:
            opened(row=(row or b"") + b"\0")
        assert kind_of(error) == opener.OPEN_FAILURE


@pytest.mark.parametrize("file", ["sealed_values", "context"])
def test_row_ids_are_primary_keys(file: str):
    rows = {bytes.fromhex(case["row_id"]) for case in cases(file) if case.get("row_id") is not None}
    assert rows
    for row in rows:
        columns = []
        rest = row
        while rest:
            size = struct.unpack_from(">I", rest)[0]
            part, rest = rest[4 : 4 + size], rest[4 + size :]
            value = opener.decode(Kind((part[0],)), part[0], part[1:])
            columns.append(opener.encode(Kind((part[0],)), value))
        assert opener.row_id(columns) == row


@each("sealed_values")
def test_plaintext_of_a_sealed_value_decodes(case: dict[str, Any]):
    kind = Kind((case["codec"],))
    value = opener.decode(kind, case["codec"], bytes.fromhex(case["plaintext"]))
    assert opener.encode(kind, value) == (case["codec"], bytes.fromhex(case["plaintext"]))


@each("sealed_values_refused")
def test_sealed_value_as_a_reader_sees_it(case: dict[str, Any]):
    reader = load("sealed_values_refused")["readers"][case["reader"]]
    keys = {int(version): bytes.fromhex(key) for version, key in reader["data_keys"].items()}
    bound = case.get("row_bound", False)

    def opened() -> opener.Opened:
        return opener.open_value(
            bytes.fromhex(case["sealed"]),
            tenant=tenant_of(reader),
            data_keys=keys,
            context=case["context_id"],
            row_bound=bound,
            row=unhex(case.get("row_id")),
        )

    if case["expect"] == "success":
        assert opened() == opener.Opened(case["codec"], bytes.fromhex(case["plaintext"]))
    else:
        with pytest.raises(Failure) as error:
            opened()
        assert kind_of(error) == case["expect"]


@each("sealed_values_more")
def test_value_in_a_column_whose_type_and_binding_are_known(case: dict[str, Any]):
    reader = load("sealed_values_more")["readers"][case["reader"]]
    keys = {int(version): bytes.fromhex(key) for version, key in reader["data_keys"].items()}
    items = Kind(tuple(case["items"])) if "items" in case else None
    kind = Kind(tuple(case["reads"]), items, case.get("members"))

    def opened() -> tuple[opener.Opened, Any]:
        found = opener.open_value(
            bytes.fromhex(case["sealed"]),
            tenant=tenant_of(reader),
            data_keys=keys,
            context=case["context_id"],
            row_bound=case["row_bound"],
            row=unhex(case["row_id"]),
            reads=case["reads"],
        )
        return found, opener.decode(kind, found.codec, found.plaintext)

    if case["expect"] == "success":
        found, value = opened()
        assert found == opener.Opened(case["codec"], bytes.fromhex(case["plaintext"]))
        assert plain(value) == plain(build(case["value"]))
    else:
        with pytest.raises(Failure) as error:
            opened()
        assert kind_of(error) == case["expect"]


def test_every_error_of_a_sealed_value_has_vectors_in_columns_of_both_bindings():
    seen = {(case["row_bound"], case["expect"]) for case in cases("sealed_values_more")}
    seen |= {(False, case["expect"]) for case in cases("sealed_values_refused")}
    kinds = {
        "success",
        opener.UNSUPPORTED,
        opener.MALFORMED,
        opener.FOREIGN,
        opener.UNKNOWN_KEY,
        opener.OPEN_FAILURE,
        opener.CODEC_MISMATCH,
    }
    assert seen == {(bound, kind) for bound in (False, True) for kind in kinds} | {(False, opener.NOT_ENCRYPTED)}


# --- keys ---


@each("derive")
def test_derived_key(case: dict[str, Any]):
    found = opener.derive(bytes.fromhex(case["key"]), case["use"], bytes.fromhex(case["context"]))
    assert found.hex() == case["subkey"]


def record_of(case: dict[str, Any]) -> KeyRecord:
    return KeyRecord(
        case["purpose"],
        case["version"],
        case["kek_generation"],
        case["algorithm"],
        bytes.fromhex(case.get("iv", "")),
        bytes.fromhex(case.get("encrypted_key", "")),
        bytes.fromhex(case["commitment"]),
    )


@each("key_records")
def test_key_record(case: dict[str, Any]):
    tenant = tenant_of(case)
    kek = bytes.fromhex(case["kek"])
    if case["function"] == "kek":
        context = opener.kek_context(tenant, case["generation"], case["algorithm"])
        assert opener.derive(kek, "wrap", context).hex() == case["wrap_subkey"]
        assert opener.derive(kek, "mac", context).hex() == case["mac_subkey"]
        assert opener.kek_commitment(tenant, case["generation"], kek).hex() == case["commitment"]
        return
    record = record_of(case)
    mac = bytes.fromhex(case["activation_mac"])
    if case["function"] == "record":

        def check() -> None:
            key = opener.unwrap(tenant, record, kek)
            assert key.hex() == case["key"]
            assert opener.key_commitment(tenant, record.purpose, record.version, key) == record.commitment
            assert opener.wrap_key(tenant, record, kek, key) == record.encrypted_key
            opener.check_activation(tenant, record, kek, case["epoch"], mac)
            assert opener.activation_mac(tenant, record, kek, case["epoch"]) == mac
    else:
        assert case["function"] == "activation"

        def check() -> None:
            opener.check_activation(tenant, record, kek, case["epoch"], mac)

    if case["expect"] == "success":
        check()
    else:
        with pytest.raises(Failure) as error:
            check()
        assert kind_of(error) == case["expect"]


# --- the audit log ---


def entries_of(case: dict[str, Any]) -> list[Entry]:
    return [Entry(each["number"], each["text"], bytes.fromhex(each["mac"])) for each in case["entries"]]


@each("audit_chain")
def test_audit_chain(case: dict[str, Any]):
    tenant = tenant_of(case)
    root, audit_key = bytes.fromhex(case["root"]), bytes.fromhex(case["audit_key"])
    entries = entries_of(case)
    end = End(case["end"]["number"], bytes.fromhex(case["end"]["mac"]), bytes.fromhex(case["end"]["sealed_key"]))

    def check() -> list[bytes]:
        return opener.verify_chain(tenant, root, audit_key, entries, end)

    if case["expect"] == "success":
        keys = check()
        assert [key.hex() for key in keys] == [each["key"] for each in case["entries"]] + [case["following_key"]]
        assert opener.audit_key_commitment(tenant.app_uid, audit_key).hex() == case["audit_key_commitment"]
        iv, head = end.sealed_key[:12], entries[-1].mac
        assert opener.seal_end(tenant, audit_key, len(entries), head, keys[-1], iv) == end
    else:
        with pytest.raises(Failure) as error:
            check()
        assert (kind_of(error), error.value.first_bad) == (case["expect"], case.get("first_bad"))


def test_audit_chain_has_vectors_of_every_outcome_and_of_a_forgery_at_every_place():
    seen = {(case["expect"], case.get("first_bad")) for case in cases("audit_chain")}
    forged = {(opener.FORGED, place) for place in range(1, 7)}
    assert seen == {("success", None), (opener.OPEN_FAILURE, None)} | forged


def test_every_entry_of_a_good_chain_is_needed():
    for case in cases("audit_chain"):
        if case["expect"] != "success":
            continue
        entries = entries_of(case)
        end = End(case["end"]["number"], bytes.fromhex(case["end"]["mac"]), bytes.fromhex(case["end"]["sealed_key"]))
        for place in range(len(entries)):
            with pytest.raises(Failure) as error:
                opener.verify_chain(
                    tenant_of(case),
                    bytes.fromhex(case["root"]),
                    bytes.fromhex(case["audit_key"]),
                    entries[:place] + entries[place + 1 :],
                    end,
                )
            assert (kind_of(error), error.value.first_bad) == (opener.FORGED, place + 1)


@each("context")
def test_context(case: dict[str, Any]):
    function = case["function"]
    if function == "lp":
        assert opener.lp(*map(bytes.fromhex, case["parts"])).hex() == case["bytes"]
        return
    if function == "context_id":
        assert opener.context_id(case["table"], case["column"]) == case["context_id"]
        return
    if function == "platform_context":
        assert opener.platform_context(bytes.fromhex(case["app_uid"]), case["purpose"]) == case["context"]
        return
    if function == "audit_context":
        app_uid, tenant_uid = bytes.fromhex(case["app_uid"]), unhex(case["tenant_uid"])
        if tenant_uid is None:
            found = opener.audit_key_context(app_uid, case["algorithm"])
        else:
            found = opener.chain_key_context(Tenant(app_uid, tenant_uid, 0), case["algorithm"])
        assert found.hex() == case["bytes"]
        return
    tenant = tenant_of(case)
    if function == "column_context":
        found = opener.column_context(tenant, case["suite"], case["context_id"])
    elif function == "value_aad":
        found = opener.value_aad(tenant, bytes.fromhex(case["header"]), case["context_id"], unhex(case["row_id"]))
    elif function == "kek_context":
        found = opener.kek_context(tenant, case["generation"], case["algorithm"])
    elif function == "key_context":
        found = opener.key_context(tenant, case["purpose"], case["version"], case["algorithm"])
    elif function == "record_aad":
        found = opener.record_aad(tenant, record_of(case))
    elif function == "activation_message":
        found = opener.activation_message(
            tenant.keyset_id, case["purpose"], case["version"], case["epoch"], bytes.fromhex(case["commitment"])
        )
    elif function == "entry_message":
        found = opener.entry_message(tenant, case["number"], bytes.fromhex(case["before"]), case["text"])
    elif function == "chain_aad":
        found = opener.chain_aad(tenant, case["number"], bytes.fromhex(case["head"]))
    else:
        assert function == "kms_context"
        assert opener.kms_context(tenant, case["purpose"], case["number"]) == case["context"]
        return
    assert found.hex() == case["bytes"]


# --- codecs ---


def build(described: dict[str, Any]) -> Any:
    """The value that a vector describes."""
    ((kind, value),) = described.items()
    simple = {
        "str": str,
        "bytes": bytes.fromhex,
        "utf16": lambda units: bytes.fromhex(units).decode("utf-16-be", "surrogatepass"),
        "int": opener.long_int,
        "bool": bool,
        "float64": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
        "decimal": Decimal,
        "date": date.fromisoformat,
        "time": time.fromisoformat,
        "datetime": datetime.fromisoformat,
        "uuid": UUID,
        "member": Member,
        "json": json.loads,
        "nested": lambda found: [build({"nested": [found[0] - 1, found[1]]})] if found[0] else build(found[1]),
        "none": lambda _: None,
        "list": lambda items: [build(item) for item in items],
        "tuple": lambda items: tuple(build(item) for item in items),
        "dict": lambda items: {build(key): build(item) for key, item in items},
    }
    return simple[kind](value)


def plain(value: Any) -> Any:
    """A form in which two values are equal exactly when type and every bit are."""
    if isinstance(value, dict):
        return "dict", [(key, plain(value[key])) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return type(value), [plain(item) for item in value]
    if isinstance(value, float):
        return "float", struct.pack(">d", value)
    if isinstance(value, Decimal):
        return "decimal", value.as_tuple()
    if isinstance(value, datetime):
        return "datetime", value.replace(tzinfo=None), value.utcoffset()
    return type(value), value


def declared(described: Any, members: list[str] | None = None) -> Kind:
    """The kind of a codec's name, of `integer`, or of a list: an array and what its items are."""
    if isinstance(described, list):
        outer, *inner = described
        assert outer == "array"
        return Kind((15,), declared(inner[0] if len(inner) == 1 else inner))
    if described == "integer":
        return Kind((3, 4))
    return Kind((opener.CODEC_NAMES.index(described),), members={m: m for m in members} if members else None)


@each("codecs")
def test_codec(case: dict[str, Any]):
    codec = case["id"]
    assert opener.CODEC_NAMES[codec] == case["codec"]
    kind = declared(case["codec"], case.get("members"))
    if codec == 15:
        kind = Kind((15,), declared(case["items"]))
    if case["expect"] == "success":
        encoded = bytes.fromhex(case["hex"])
        assert opener.encode(kind, build(case["value"])) == (codec, encoded)
        found = opener.decode(kind, codec, encoded)
        assert plain(found) == plain(build(case.get("decoded", case["value"])))
        assert opener.encode(kind, found) == (codec, encoded)
    elif case["expect"] == "refused on encode":
        with pytest.raises(Failure) as error:
            opener.encode(kind, build(case["value"]))
        assert kind_of(error) == opener.REFUSED
    else:
        assert case["expect"] == "malformed on decode"
        with pytest.raises(Failure) as error:
            opener.decode(kind, codec, bytes.fromhex(case["hex"]))
        assert kind_of(error) == opener.MALFORMED


def test_codecs_has_vectors_of_every_codec_and_outcome():
    seen = {(case["id"], case["expect"]) for case in cases("codecs")}
    assert {codec for codec, expect in seen if expect == "success"} == set(range(1, 16))
    assert {codec for codec, expect in seen if expect == "refused on encode"} == set(range(1, 16))
    # Nothing is malformed for codec 2.
    assert {codec for codec, expect in seen if expect == "malformed on decode"} == set(range(1, 16)) - {2}


def strictly(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        assert depth < 32
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            strictly(part, depth + 1)
    elif isinstance(value, str):
        value.encode("utf-8")
    elif value is not None and value is not True and value is not False:
        assert type(value) is int
        assert 0 <= value < 2**32


def test_codecs_load_in_a_parser_that_has_few_levels_and_only_float64_and_unicode():
    strictly(load("codecs"), 0)


def test_alias_of_an_enum_member_is_read_and_never_written():
    kind = Kind((13,), members={"NEW": "NEW", "OLD": "NEW"})
    _, old = opener.encode(Kind((13,), members={"OLD": "OLD"}), Member("OLD"))
    _, new = opener.encode(Kind((13,), members={"NEW": "NEW"}), Member("NEW"))
    assert opener.decode(kind, 13, old) == Member("NEW")
    assert opener.encode(kind, Member("OLD")) == (13, new)


DECIMALS_AT_THE_EDGE = {
    "1E+999999999999999999": True,
    "1E+1000000000000000000": False,
    "1E-1999999999999999997": True,
    "1E-1999999999999999998": False,
    "0E-1999999999999999997": True,
    "0E+999999999999999999": True,
    "0E+1000000000000000000": False,
}


@pytest.mark.parametrize("text", DECIMALS_AT_THE_EDGE)
def test_limits_of_a_decimal_are_as_the_page_says(text: str):
    if DECIMALS_AT_THE_EDGE[text]:
        assert str(opener.decode(Kind((6,)), 6, text.encode())) == text
        return
    with pytest.raises(Failure) as error:
        opener.decode(Kind((6,)), 6, text.encode())
    assert kind_of(error) == opener.MALFORMED


def test_codec_that_the_column_does_not_read_is_a_mismatch():
    for codec in (2, 16, 255):
        with pytest.raises(Failure) as error:
            opener.decode(Kind((1,)), codec, b"Ada")
        assert kind_of(error) == opener.CODEC_MISMATCH
