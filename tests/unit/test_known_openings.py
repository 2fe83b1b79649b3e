"""Known values through the column types' own processors: what opens, and what each other one is refused with."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
from tests.support.vectors import build, cases, identity, load, named

from pii_vault.errors import CodecMismatchError, FormatError, OpenError
from pii_vault.keyring import Keyring
from pii_vault.keys import Secret
from pii_vault.orm import types
from pii_vault.orm.attachment import Attachment
from pii_vault.orm.processors import open_processor
from pii_vault.scope import Scope
from pii_vault.sealing import Keyset

FILE = "sealed_values_more.json"
KNOWN = [case for case in cases(FILE) if not case["row_bound"]]
ERRORS = {
    "unsupported": FormatError,
    "malformed": FormatError,
    "open_failure": OpenError,
    "codec_mismatch": CodecMismatchError,
}
SIMPLE: tuple[types.EncryptedType[Any], ...] = (
    types.EncryptedString(),
    types.EncryptedBytes(),
    types.EncryptedInteger(),
    types.EncryptedFloat(),
    types.EncryptedNumeric(),
    types.EncryptedBoolean(),
    types.EncryptedDate(),
    types.EncryptedTime(),
    types.EncryptedDateTime(),
    types.EncryptedDateTime(timezone=True),
    types.EncryptedUUID(),
    types.EncryptedJSON(),
)
BY_CODECS = {tuple(column.encoding().decoders()): column for column in SIMPLE}


def column_of(case: dict[str, Any]) -> tuple[types.EncryptedType[Any], Any]:
    if "members" in case:
        members = enum.Enum("Members", case["members"])
        return types.EncryptedEnum(members), members
    if "items" in case:
        return types.EncryptedArray(BY_CODECS[tuple(case["items"])]), None
    return BY_CODECS[tuple(case["reads"])], None


def opening(case: dict[str, Any], column: types.EncryptedType[Any]) -> Callable[[bytes], Any]:
    reader = load(FILE)["readers"][case["reader"]]
    keys = {int(version): Secret(bytes.fromhex(key)) for version, key in reader["data_keys"].items()}
    keyring = Keyring(cast(Any, None), cast(Any, None))  # it is never asked: the scope holds its keyset
    scope = Scope(keyring, "acme")
    scope.keyset = Keyset("acme", identity(reader), max(keys), keys, deadline=math.inf, wall_deadline=math.inf)
    return open_processor(Attachment(keyring, scope, None), case["context_id"], column.encoding())


@pytest.mark.parametrize("case", KNOWN, ids=named)
def test_a_known_value_opens_or_is_refused_as_the_format_says(case: dict[str, Any]) -> None:
    """Twice each: the second time with what the first one prepared."""
    column, members = column_of(case)
    open_ = opening(case, column)
    sealed = bytes.fromhex(case["sealed"])
    for _ in range(2):
        if case["expect"] == "success":
            value = open_(sealed)
            expected = build(case["value"], members)
            assert type(value) is type(expected)
            assert str(value) == str(expected)
            continue
        with pytest.raises(OpenError) as caught:
            open_(sealed)
        assert type(caught.value) is ERRORS[case["expect"]]
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


@pytest.mark.parametrize("case", [case for case in KNOWN if case["expect"] != "success"], ids=named)
def test_a_value_is_refused_alike_after_another_one_with_the_same_header_was_opened(case: dict[str, Any]) -> None:
    column, _ = column_of(case)
    open_ = opening(case, column)
    for other in KNOWN:
        if other["expect"] == "success" and other["reads"] == case["reads"]:
            open_(bytes.fromhex(other["sealed"]))
    with pytest.raises(OpenError) as caught:
        open_(bytes.fromhex(case["sealed"]))
    assert type(caught.value) is ERRORS[case["expect"]]


def test_every_outcome_has_known_values() -> None:
    assert {case["expect"] for case in KNOWN} == {"success", *ERRORS}


@pytest.mark.parametrize("case", [c for c in KNOWN if c["expect"] == "success"], ids=named)
def test_what_was_opened_is_written_again_as_it_stood_but_for_an_alias(case: dict[str, Any]) -> None:
    column, members = column_of(case)
    written = column.encoding().encode(build(case["value"], members))
    assert (written == (case["codec"], bytes.fromhex(case["plaintext"]))) is not case["name"].endswith("CRIMSON")
