"""Which plain type goes with an encrypted one, and the other way round."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from ..orm.encrypted_type import EncryptedType
from ..orm.types import (
    EncryptedArray,
    EncryptedBoolean,
    EncryptedBytes,
    EncryptedDate,
    EncryptedDateTime,
    EncryptedEnum,
    EncryptedFloat,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedNumeric,
    EncryptedString,
    EncryptedTime,
    EncryptedUUID,
)

_PLAIN: Final[tuple[tuple[type[EncryptedType[Any]], TypeEngine[Any]], ...]] = (
    (EncryptedString, String()),
    (EncryptedBytes, LargeBinary()),
    (EncryptedInteger, Integer()),
    (EncryptedFloat, Double()),
    (EncryptedNumeric, Numeric()),
    (EncryptedBoolean, Boolean()),
    (EncryptedDate, Date()),
    (EncryptedTime, Time()),
    (EncryptedUUID, Uuid()),
    (EncryptedJSON, JSON()),
)

_ENCRYPTED: Final[tuple[tuple[type[TypeEngine[Any]], type[EncryptedType[Any]]], ...]] = (
    (String, EncryptedString),
    (Boolean, EncryptedBoolean),
    (Integer, EncryptedInteger),
    (Float, EncryptedFloat),
    (Numeric, EncryptedNumeric),
    (Date, EncryptedDate),
    (Time, EncryptedTime),
    (Uuid, EncryptedUUID),
    (JSON, EncryptedJSON),
)


def reading_type(kind: EncryptedType[Any], stored: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type by which values of a plain column are those of an encrypted type.

    A database does not say what a number, a text or an enumeration stands for; the encrypted type does. A type that
    the application has made, or that fits, is used as it is.

    Args:
        kind: The encrypted type.
        stored: The type of the column, as it was declared or as the database says.
    """
    if isinstance(stored, TypeDecorator):
        return stored
    if isinstance(kind, EncryptedEnum):
        return _members(kind, stored)
    if isinstance(kind, EncryptedUUID) and isinstance(stored, String):
        return Uuid(native_uuid=False)
    if isinstance(kind, EncryptedArray) and isinstance(stored, ARRAY):
        return stored
    if isinstance(kind, EncryptedDateTime):
        return stored if isinstance(stored, DateTime) else DateTime(timezone=kind.timezone)
    plain = next((plain for encrypted, plain in _PLAIN if isinstance(kind, encrypted)), JSON())
    if isinstance(kind, EncryptedFloat):  # what a database reflects may make decimals of them
        return plain
    if isinstance(kind, EncryptedNumeric) and isinstance(stored, Numeric):
        return Numeric(stored.precision, None if isinstance(stored, Float) else stored.scale)
    return stored if isinstance(stored, type(plain)) else plain


def encrypted_type(stored: TypeEngine[Any]) -> EncryptedType[Any] | None:
    """Return the encrypted type for the values of a plain one; None where none is known."""
    kind: Any = stored
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    if isinstance(kind, Enum) and kind.enum_class is not None:
        return EncryptedEnum(kind.enum_class)
    if isinstance(kind, DateTime):
        return EncryptedDateTime(timezone=kind.timezone)
    if isinstance(kind, ARRAY):
        items = encrypted_type(kind.item_type)
        return EncryptedArray(items) if items is not None else None
    return next((encrypted() for plain, encrypted in _ENCRYPTED if isinstance(kind, plain)), None)


def _members(kind: EncryptedEnum, stored: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(stored, Enum) and stored.enum_class is not None:
        return stored
    if isinstance(stored, postgresql.ENUM):
        return postgresql.ENUM(kind.enum_class, name=stored.name, schema=stored.schema, create_type=False)
    return Enum(kind.enum_class, native_enum=False, create_constraint=False)
