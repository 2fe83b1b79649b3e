"""docs/codecs.md says of every column type which codecs it reads, and it is so."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Any

import pytest

from pii_vault.encoding import REGISTRY
from pii_vault.errors import FormatError
from pii_vault.orm import types
from pii_vault.orm.encrypted_type import EncryptedType
from pii_vault.orm.types import EncryptedArray, EncryptedDateTime, EncryptedEnum, EncryptedInteger

PAGE = (Path(__file__).parent.parent.parent / "docs" / "codecs.md").read_text("utf-8")
ROW = re.compile(r"^\| `(Encrypted\w+\([^)]*\))` \| (\d+(?:, \d+)*)(.*) \|$", re.MULTILINE)


class Colour(enum.Enum):
    RED = 1


CLASSES = {
    name: found
    for name, found in vars(types).items()
    if isinstance(found, type) and issubclass(found, EncryptedType) and found is not EncryptedType
}
WITH_ARGUMENTS: dict[str, EncryptedType[Any]] = {
    "EncryptedDateTime(timezone=True)": EncryptedDateTime(timezone=True),
    "EncryptedEnum(…)": EncryptedEnum(Colour),
    "EncryptedArray(…)": EncryptedArray(EncryptedInteger()),
}
TYPES = WITH_ARGUMENTS | {f"{name}()": found() for name, found in CLASSES.items() if f"{name}(…)" not in WITH_ARGUMENTS}


def test_the_page_lists_what_every_type_reads() -> None:
    stated = {row: {int(number) for number in numbers.split(", ")} for row, numbers, _ in ROW.findall(PAGE)}
    assert stated == {row: set(column.encoding().decoders()) for row, column in TYPES.items()}
    assert set().union(*stated.values()) == set(REGISTRY)


def test_the_page_lists_each_type_once_and_says_more_of_arrays_only() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) == len(TYPES)
    assert [row for row, _, more in rows if more] == ["EncryptedArray(…)"]


@pytest.mark.parametrize("row", TYPES)
def test_an_array_reads_in_its_items_what_their_type_reads(row: str) -> None:
    names = [REGISTRY[codec.id] for codec in TYPES[row].encoding().codecs]
    (array,) = EncryptedArray(TYPES[row]).encoding().codecs
    for number in {*range(1, 256)} - set(TYPES[row].encoding().decoders()):
        with pytest.raises(FormatError, match=f"expected array items stored as {' or '.join(names)}, got"):
            array.decode(bytes((number, 0, 0, 0, 0)))
