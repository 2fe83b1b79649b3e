"""How the operations on columns are written into a migration: what stands in the models, and no vault, key or address.

An encrypted type is written out in full, unlike in ``op.create_table``: how values are sealed, and their tokens made,
is what such a migration is about.
"""

from __future__ import annotations

import datetime
import decimal
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _repr_type, renderers

from ..errors import ConfigurationError
from ..orm.encrypted_type import EncryptedType
from .columns import ColumnOp, DecryptColumnOp, EncryptColumnOp
from .reencrypting import ReencryptOp
from .renaming import RenameEncryptedColumnOp

_IMPORT: Final = "import pii_vault.migrations"


@renderers.dispatch_for(EncryptColumnOp)
def _render_encrypt(autogen_context: AutogenContext, operation: EncryptColumnOp) -> list[str]:
    given = [rendered_type(autogen_context, operation.type_)]
    if operation.plain_type is not None:
        given.append(f"existing_type={_repr_type(operation.plain_type, autogen_context)}")
    lines = [_call(autogen_context, "encrypt_column", operation, given)]
    if operation.lost_tokens:
        lines.insert(
            0, f"# The values had {operation.lost_tokens} search tokens: say in the type which, index= and tokens=."
        )
    return lines


@renderers.dispatch_for(DecryptColumnOp)
def _render_decrypt(autogen_context: AutogenContext, operation: DecryptColumnOp) -> str:
    assert operation.plain_type is not None
    given = [rendered_type(autogen_context, operation.type_), _repr_type(operation.plain_type, autogen_context)]
    return _call(autogen_context, "decrypt_column", operation, given)


@renderers.dispatch_for(RenameEncryptedColumnOp)
def _render_rename(autogen_context: AutogenContext, operation: RenameEncryptedColumnOp) -> str:
    names = (operation.table_name, operation.column_name, operation.new_column_name)
    given = [*(repr(str(name)) for name in names), rendered_type(autogen_context, operation.type_)]
    given.append(f"keep_context={operation.keep_context!r}")
    more = {"old_context": operation.old_context, **_common(operation)}
    return _written(autogen_context, "rename_encrypted_column", given, more)


@renderers.dispatch_for(ReencryptOp)
def _render_reencrypt(autogen_context: AutogenContext, operation: ReencryptOp) -> str:
    tenants = list(operation.tenants) if operation.tenants is not None else None
    return _written(
        autogen_context, "reencrypt", [repr(str(name)) for name in operation.table_names], {"tenants": tenants}
    )


def rendered_type(autogen_context: AutogenContext, kind: EncryptedType[Any]) -> str:
    """Return a type as a migration names it: ``pii_vault.EncryptedString(index=True)``.

    Raises:
        ConfigurationError: it is made in a way that cannot be written down.
    """
    return _value(autogen_context, kind)


def _call(autogen_context: AutogenContext, function: str, operation: ColumnOp, given: list[str]) -> str:
    names = [repr(str(operation.table_name)), repr(str(operation.column_name))]
    return _written(autogen_context, function, names + given, {"nullable": operation.nullable, **_common(operation)})


def _common(operation: ColumnOp | RenameEncryptedColumnOp) -> dict[str, Any]:
    return {
        "tenant_column": operation.tenant_column and str(operation.tenant_column),
        "drops": list(map(str, operation.drops)) or None,
        "schema": operation.schema and str(operation.schema),
    }


def _written(autogen_context: AutogenContext, function: str, given: list[str], more: Mapping[str, Any]) -> str:
    autogen_context.imports.add(_IMPORT)
    given = given + [f"{name}={value!r}" for name, value in more.items() if value is not None]
    return f"{autogen_context.opts['alembic_module_prefix'] or ''}{function}({', '.join(given)})"


def _value(autogen_context: AutogenContext, value: Any) -> str:
    """Return an argument of a type as Python."""
    if isinstance(value, EncryptedType):
        return _constructed(autogen_context, value, value.arguments())
    if isinstance(value, type):
        return _named(autogen_context, value)
    if is_dataclass(value):
        given = {each.name: getattr(value, each.name) for each in fields(value) if not _is_default(value, each)}
        return _constructed(autogen_context, value, given)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_value(autogen_context, each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple | list):
        return repr(value)
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        autogen_context.imports.add(f"import {type(value).__module__}")
        return f"{type(value).__module__}.{value!r}" if isinstance(value, decimal.Decimal) else repr(value)
    return repr(value)


def _constructed(autogen_context: AutogenContext, value: Any, given: Mapping[str, Any]) -> str:
    arguments = (f"{name}={_value(autogen_context, each)}" for name, each in given.items())
    return f"{_named(autogen_context, type(value))}({', '.join(arguments)})"


def _named(autogen_context: AutogenContext, kind: type) -> str:
    module = kind.__module__
    if "<" in kind.__qualname__:
        raise ConfigurationError(
            f"{kind.__qualname__} is made inside a function, so that a migration cannot name it",
            hint="define it in a module",
        )
    if getattr(sys.modules["pii_vault"], kind.__qualname__, None) is kind:
        module = "pii_vault"
    autogen_context.imports.add(_IMPORT if module == "pii_vault" else f"import {module}")
    return f"{module}.{kind.__qualname__}" if module != "builtins" else kind.__qualname__


def _is_default(value: Any, each: Field[Any]) -> bool:
    found = getattr(value, each.name)
    if each.default is not MISSING:
        return bool(found == each.default)
    return each.default_factory is not MISSING and bool(found == each.default_factory())
