"""Encrypted column types, one for each kind of value: each says how its values become bytes.

What they have in common is in `encrypted_type`.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Mapping
from typing import Any

from .. import encoding
from ..blind_index import BlindIndex, Token
from ..encoding import Encoding
from .encrypted_type import EncryptedType


class EncryptedString(EncryptedType[str]):
    """Text of any length, kept exactly as given: no normalisation, no trimming."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the UTF-8 encoding."""
        return Encoding.of(encoding.TEXT)


class EncryptedText(EncryptedString):
    """Long text; the same as `EncryptedString`, for readers of the model."""

    cache_ok = True


class EncryptedBytes(EncryptedType[bytes]):
    """Bytes."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of bytes as they are."""
        return Encoding.of(encoding.BYTES)


class EncryptedInteger(EncryptedType[int]):
    """Integers of any size; those of 64 bits have one length, larger ones show their magnitude by theirs."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of integers."""
        return encoding.INTEGER


class EncryptedFloat(EncryptedType[float]):
    """IEEE 754 doubles, bit for bit."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of doubles."""
        return Encoding.of(encoding.FLOAT64)


class EncryptedNumeric(EncryptedType[decimal.Decimal]):
    """Decimals with their exponent: 1.10 comes back as 1.10. No NaN, no infinity, no floats."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of decimals."""
        return Encoding.of(encoding.DECIMAL)


class EncryptedBoolean(EncryptedType[bool]):
    """True and False, of one length."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of booleans."""
        return Encoding.of(encoding.BOOL)


class EncryptedDate(EncryptedType[dt.date]):
    """Dates."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of dates."""
        return Encoding.of(encoding.DATE)


class EncryptedTime(EncryptedType[dt.time]):
    """Times of day without a time zone."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of times."""
        return Encoding.of(encoding.TIME)


class EncryptedDateTime(EncryptedType[dt.datetime]):
    """Instants.

    Args:
        timezone: True for aware datetimes, kept with their UTC offset (not with the zone's name); False for naive ones.
            The other kind is refused.
        context: See `EncryptedType`.
        index: Likewise.
        tokens: Likewise.
    """

    cache_ok = True

    def __init__(
        self,
        timezone: bool = False,
        *,
        context: str | None = None,
        index: bool | BlindIndex = False,
        tokens: Mapping[str, Token] | None = None,
    ) -> None:
        super().__init__(context=context, index=index, tokens=tokens)
        self.timezone = timezone

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of aware or of naive datetimes."""
        return Encoding.of(encoding.DATETIME_AWARE if self.timezone else encoding.DATETIME_NAIVE)

    def _configuration(self) -> dict[str, Any]:
        return {"timezone": self.timezone or None}


class EncryptedUUID(EncryptedType[uuid.UUID]):
    """UUIDs."""

    cache_ok = True

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of UUIDs."""
        return Encoding.of(encoding.UUID)


class EncryptedEnum(EncryptedType[enum.Enum]):
    """Members of an enumeration, of one length whatever their names.

    A member is stored by a number made from its name: reordering and adding members is safe, renaming one is not.

    Args:
        enum_class: The enumeration.
        context: See `EncryptedType`.
        index: Likewise; it wants `BlindIndex` with ``low_entropy=True``.
    """

    cache_ok = True

    def __init__(
        self, enum_class: type[enum.Enum], *, context: str | None = None, index: bool | BlindIndex = False
    ) -> None:
        super().__init__(context=context, index=index)
        self.enum_class = enum_class
        encoding.enum_codec(enum_class)  # two names with one number are refused here, not at the first value

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of this enumeration's members."""
        return Encoding.of(encoding.enum_codec(self.enum_class))

    def _configuration(self) -> dict[str, Any]:
        return {"enum_class": self.enum_class}


class EncryptedJSON(EncryptedType[Any]):
    """JSON values; ``MutableDict.as_mutable(EncryptedJSON())`` tracks changes in place. None is NULL."""

    cache_ok = True
    hashable = False

    def encoding(self) -> Encoding[Any]:
        """Return the canonical JSON encoding."""
        return Encoding.of(encoding.JSON)


class EncryptedArray(EncryptedType[list[Any]]):
    """Lists of one type.

    Args:
        item_type: The type of the items, an encrypted type: ``EncryptedArray(EncryptedString())``.
        context: See `EncryptedType`.
    """

    cache_ok = True
    hashable = False

    def __init__(self, item_type: EncryptedType[Any] | type[EncryptedType[Any]], *, context: str | None = None) -> None:
        super().__init__(context=context)
        self.item_type = item_type() if isinstance(item_type, type) else item_type

    def encoding(self) -> Encoding[Any]:
        """Return the encoding of lists of the items' encoding."""
        return Encoding.of(encoding.array_codec(self.item_type.encoding()))

    def _configuration(self) -> dict[str, Any]:
        return {"item_type": self.item_type}
