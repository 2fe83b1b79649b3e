"""Count sealed values by the key in their header, inside the database: no value is opened, and none leaves it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, LargeBinary, MetaData, Row, Select, case, column, func, literal, select, table
from sqlalchemy.exc import DBAPIError

from ..errors import ConfigurationError
from ..orm.encrypted_type import EncryptedType

_KEY_START: Final = 2
"""Where a header names its key, counted from 1 as SQL does: keyset id and version, big endian (docs/format.md)."""

_KEY_BYTES: Final = 6


def values_under(engine: Engine, metadata: MetaData, keyset_id: int, version: int) -> dict[str, int]:
    """Count the values that were sealed with one data key, by ``table.column``; columns without any are left out.

    Args:
        engine: On the application's database.
        metadata: The application's tables.
        keyset_id: Whose key it is.
        version: Which of its versions.

    Raises:
        ConfigurationError: the metadata holds no encrypted column, or a table of it cannot be read.
    """
    wanted = {
        each: [mine.name for mine in each.columns if isinstance(mine.type, EncryptedType)]
        for each in metadata.tables.values()
    }
    if not any(wanted.values()):
        raise ConfigurationError(
            "the metadata holds no encrypted column, so nothing can be counted",
            hint="name the declarative base or the MetaData of the application's models",
        )
    key = literal(keyset_id.to_bytes(4, "big") + version.to_bytes(2, "big"), LargeBinary)
    found: dict[str, int] = {}
    for each, names in wanted.items():
        if not names:
            continue
        # Plain columns by name: what is compared is a header's bytes, not a value.
        stored = [column(name, LargeBinary) for name in names]
        matches = [func.sum(case((func.substr(one, _KEY_START, _KEY_BYTES) == key, 1), else_=0)) for one in stored]
        query = select(*matches).select_from(table(each.name, *stored, schema=each.schema))
        counts = counted(engine, each.fullname, query)
        found |= {f"{each.fullname}.{name}": int(count) for name, count in zip(names, counts, strict=True) if count}
    return found


def counted(engine: Engine, name: str, query: Select[Any]) -> Row[Any]:
    """Return the only row of a query that counts in one table of the application.

    Raises:
        ConfigurationError: the table cannot be read.
    """
    try:
        with engine.connect() as connection:
            return connection.execute(query).one()
    except DBAPIError as error:
        failure = type(error.orig).__name__
    # Not chained: driver errors carry parameters.
    raise ConfigurationError(
        f"table {name!r} cannot be read: {failure}",
        hint="the metadata and the database have to be the same application's; migrate the database first",
    )
