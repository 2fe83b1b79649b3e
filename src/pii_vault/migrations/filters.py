"""The two functions that an environment gives to ``context.configure``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import Column

from ..orm.encrypted_type import EncryptedType
from ..orm.generated import PREFIX, generated_name
from ..orm.tokens import TokenOf
from .parts import named_token, token_in

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_MYSQL: Final = ("mysql", "mariadb")


def include_object(obj: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Tell autogenerate what to compare: not the key store's tables, and no generated column that holds a token.

    On MariaDB it also says which indexes over tokens differ; Alembic by itself takes all of them for changed.

    Args:
        obj: What is found in the models or, when `reflected`, in the database.
        name: Its name.
        type_: What it is: ``"table"``, ``"column"``, ``"index"`` and others.
        reflected: Whether it is found in the database only.
        compare_to: What it is compared with, or None.
    """
    if type_ == "table":
        return not (reflected and compare_to is None and str(name).startswith(PREFIX))
    if type_ == "column":
        return not (reflected and compare_to is None and is_generated(obj))
    if type_ == "index" and not reflected and compare_to is not None:
        return not _is_same(obj, compare_to)
    return True


def render_item(type_: str, obj: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Let autogenerate write an encrypted type as what it is in the database; False for everything else.

    So a migration does not depend on the types' later arguments, and needs no key.

    Args:
        type_: What it is: ``"type"`` and others.
        obj: The type.
        autogen_context: Of the run.
    """
    if type_ != "type" or not isinstance(obj, EncryptedType):
        return False
    dialect = autogen_context.dialect
    if dialect is not None and dialect.name in _MYSQL:
        autogen_context.imports.add("from sqlalchemy.dialects import mysql")
        return "mysql.LONGBLOB()"
    return f"{autogen_context.opts['sqlalchemy_module_prefix'] or ''}LargeBinary()"


def is_generated(column: Column[Any]) -> bool:
    """Tell whether a column that was read from a database was generated for a token."""
    if column.computed is None or named_token(column.name) is None:
        return False
    return token_in(str(column.computed.sqltext)) is not None


def _is_same(index: Any, found: Any) -> bool:
    """Tell whether an index over tokens is what MariaDB has: one over generated columns."""
    if not any(isinstance(each, TokenOf) for each in index.expressions) or bool(index.unique) != bool(found.unique):
        return False
    wanted: list[Any] = list(index.expressions)
    columns = list(found.columns)
    if len(wanted) != len(columns):
        return False
    return all(_is_same_part(*each) for each in zip(wanted, columns, strict=True))


def _is_same_part(wanted: Any, column: Column[Any]) -> bool:
    if not isinstance(wanted, TokenOf):
        return getattr(wanted, "name", None) == column.name
    if generated_name(wanted) != column.name or column.computed is None:
        return False
    made_of = token_in(str(column.computed.sqltext))
    return made_of == (wanted.column.name, wanted.slot.number)
