"""The Alembic operation that renames an encrypted column, whose values are bound to their column's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations

from ..backfill.filling import BATCH
from ..backfill.names import own_name
from ..backfill.sides import Sealed
from ..blind_index import Slot
from ..context import context_id
from ..errors import ConfigurationError
from ..orm.encrypted_type import EncryptedType, index_name
from ..orm.generated import PREFIX
from .columns import ONLINE, sealed_column
from .moving import Move, Work
from .operations import CreateBlindIndexOp
from .parts import named_token
from .settings import keyring_of, refuse_sql, vault_of
from .tables import FoundTable
from .transactions import MYSQL, quoted_table


@Operations.register_operation("rename_encrypted_column")
class RenameEncryptedColumnOp(MigrateOperation):
    """Rename an encrypted column.

    Args:
        table_name: The table.
        column_name: The column.
        new_column_name: Its name in the end.
        type_: Its type in the end.
        keep_context: Whether its values stay as they are, bound to their context.
        old_context: What its values are bound to now; None for the table's and the column's names.
        tenant_column: The column that says whose row it is; None for what the engine is attached with.
        drops: The names of indexes over the column's tokens that go with the old column.
        vault: Holds the keys; None for the one in ``env.py``.
        schema: The table's schema.
        batch: How many rows are written at a time.
    """

    def __init__(
        self,
        table_name: str,
        column_name: str,
        new_column_name: str,
        type_: EncryptedType[Any],
        *,
        keep_context: bool,
        old_context: str | None = None,
        tenant_column: str | None = None,
        drops: Sequence[str] = (),
        vault: Any = None,
        schema: str | None = None,
        batch: int = BATCH,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.new_column_name = new_column_name
        self.type_ = type_
        self.keep_context = keep_context
        self.old_context = old_context
        self.tenant_column = tenant_column
        self.drops = tuple(drops)
        self.vault = vault
        self.schema = schema
        self.batch = batch

    @property
    def before(self) -> str:
        """What the values are bound to now."""
        return self.old_context or context_id(self.table_name, self.column_name)

    @property
    def after(self) -> str:
        """What the type in the end says that they are bound to."""
        return str(self.type_.within(context_id(self.table_name, self.new_column_name)).context)

    @classmethod
    def rename_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        new_column_name: str,
        type_: EncryptedType[Any],
        *,
        keep_context: bool,
        old_context: str | None = None,
        tenant_column: str | None = None,
        drops: Sequence[str] = (),
        vault: Any = None,
        schema: str | None = None,
        batch: int = BATCH,
    ) -> None:
        """Rename an encrypted column. Its values are bound to its name, or rather to its context: choose what of that.

        With ``keep_context=True`` they stay as they are, and the model has to say what they are bound to:
        ``EncryptedString(context="customers.email")``. Nothing but the name changes, and no key is needed. With
        ``keep_context=False`` each value is opened and sealed anew for the new name, as `encrypt_column` seals a
        column; its indexes are made anew after it.

        Args:
            operations: Alembic's.
            table_name: The table.
            column_name: The column.
            new_column_name: Its name in the end.
            type_: The type that the model has then.
            keep_context: Whether the values stay as they are.
            old_context: What the values are bound to now, if it was given: the ``context=`` of the model until now.
            tenant_column: The column that says whose row it is; by default the one that env.py's engine is attached
                with.
            drops: The names of indexes over the column's tokens, which go with the old column.
            vault: Holds the keys; by default the one that ``env.py`` gives to ``context.configure(pii_vault=…)``.
            schema: The table's schema.
            batch: How many rows are written at a time.

        Raises:
            ConfigurationError: the type's context is not what was chosen, or SQL is to be written for values that are
                sealed anew; nothing is changed.
            BackfillError: some rows belong to nobody, or cannot be opened; names them.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason. Nothing is changed.
        """
        operations.invoke(
            cls(
                table_name,
                column_name,
                new_column_name,
                type_,
                keep_context=keep_context,
                old_context=old_context,
                tenant_column=tenant_column,
                drops=drops,
                vault=vault,
                schema=schema,
                batch=batch,
            )
        )

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        default = context_id(self.table_name, self.new_column_name)
        now = self.before if self.keep_context else self.after
        kind = self.type_.bound_to(
            None if self.before == context_id(self.table_name, self.column_name) else self.before
        )
        return RenameEncryptedColumnOp(
            self.table_name,
            self.new_column_name,
            self.column_name,
            kind,
            keep_context=self.keep_context,
            old_context=None if now == default else now,
            tenant_column=self.tenant_column,
            drops=self.drops,
            vault=self.vault,
            schema=self.schema,
            batch=self.batch,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        return ("rename_column", self.schema, self.table_name, self.column_name, self.new_column_name)


@Operations.implementation_for(RenameEncryptedColumnOp)
def _rename(operations: Operations, operation: RenameEncryptedColumnOp) -> None:
    same = operation.before == operation.after
    if operation.keep_context and not same:
        raise ConfigurationError(
            f"op.rename_encrypted_column: the values stay bound to {operation.before!r}, and the type would look for "
            f"{operation.after!r}",
            hint=f"say so in the model, and here: {type(operation.type_).__name__}(context={operation.before!r}, …)",
        )
    if same and not operation.keep_context:
        raise ConfigurationError(
            f"op.rename_encrypted_column: the type says context={operation.after!r}, which the values are bound to "
            "already, so there is nothing to seal anew",
            hint="say keep_context=True, or leave out context= for the new name's",
        )
    if operation.keep_context:
        _rename_only(operations, operation)
    else:
        _seal_anew(operations, operation)


def _seal_anew(operations: Operations, operation: RenameEncryptedColumnOp) -> None:
    refuse_sql(operations, "rename_encrypted_column", ONLINE)
    vault = vault_of(operations, operation.vault, "rename_encrypted_column")
    work = Work(
        "rename_encrypted_column",
        operation.table_name,
        operation.schema,
        operation.tenant_column,
        vault,
        operation.drops,
        batch=operation.batch,
    )
    move = Move(operations, work)
    if _is_done(move.found.columns, operation):
        return
    old, new = operation.column_name, operation.new_column_name
    keyring, kind = keyring_of(vault), operation.type_
    source = Sealed(old, kind.bound_to(operation.before), keyring)
    target = Sealed(own_name("sealed", new), kind.bound_to(operation.after), keyring)
    move.do(source, target, sealed_column(operations, new, move.found.columns[old].get("comment")))


def _rename_only(operations: Operations, operation: RenameEncryptedColumnOp) -> None:
    """Rename the column, and what its type declares over it. Each statement can be run again."""
    dialect = operations.impl.dialect
    columns: dict[str, Any] = {}
    if not operations.migration_context.as_sql:
        columns = FoundTable(operations.get_bind(), operation.table_name, operation.schema).columns
    is_done = bool(columns) and _is_done(columns, operation)
    if dialect.name in MYSQL:
        if not is_done:
            _alter(operations, operation, *_generated(operation, columns), *_indexes(operations, operation))
        return
    if not is_done:
        _alter(operations, operation)
    quote = dialect.identifier_preparer.quote
    schema = f"{quote(operation.schema)}." if operation.schema else ""
    for old, new, slot in _declared(operation):
        if dialect.name == "postgresql":
            operations.execute(f"ALTER INDEX IF EXISTS {schema}{quote(old)} RENAME TO {quote(new)}")
            continue
        parts = [(operation.new_column_name, slot.number)]
        more: dict[str, Any] = {"unique": slot.unique, "schema": operation.schema, "if_not_exists": True}
        operations.invoke(CreateBlindIndexOp(new, operation.table_name, parts, **more))
        operations.execute(f"DROP INDEX IF EXISTS {schema}{quote(old)}")


def _alter(operations: Operations, operation: RenameEncryptedColumnOp, *more: str) -> None:
    quote = operations.impl.dialect.identifier_preparer.quote
    table = quoted_table(operations, operation.table_name, operation.schema)
    renamed = f"RENAME COLUMN {quote(operation.column_name)} TO {quote(operation.new_column_name)}"
    operations.execute(f"ALTER TABLE {table} {', '.join((renamed, *more))}".replace(":", r"\:"))


def _generated(operation: RenameEncryptedColumnOp, columns: Mapping[str, Any]) -> list[str]:
    """Return what renames the generated columns of MariaDB, whose names say of which column they are."""
    slots = {slot.number for _, _, slot in _declared(operation)}
    slots |= {token[1] for name in columns if (token := named_token(name)) and token[0] == operation.column_name}
    old, new = operation.column_name, operation.new_column_name
    names = [(f"{PREFIX}{old}_{slot}", f"{PREFIX}{new}_{slot}") for slot in sorted(slots)]
    return [f"RENAME COLUMN IF EXISTS `{before}` TO `{after}`" for before, after in names]


def _indexes(operations: Operations, operation: RenameEncryptedColumnOp) -> list[str]:
    quote = operations.impl.dialect.identifier_preparer.quote
    return [f"RENAME INDEX IF EXISTS {quote(old)} TO {quote(new)}" for old, new, _ in _declared(operation)]


def _declared(operation: RenameEncryptedColumnOp) -> list[tuple[str, str, Slot]]:
    """Return the indexes that the type itself brings: their names before and after, and their slots."""
    slots = [slot for slot in operation.type_.bound_to(operation.after).slots if slot is not None and slot.create]
    names = [[index_name(operation.table_name, each, slot) for slot in slots] for each in _names(operation)]
    return list(zip(*names, slots, strict=True))


def _names(operation: RenameEncryptedColumnOp) -> tuple[str, str]:
    return operation.column_name, operation.new_column_name


def _is_done(columns: Mapping[str, Any], operation: RenameEncryptedColumnOp) -> bool:
    """Say whether the column has its new name.

    Raises:
        ConfigurationError: there is neither of the columns, or both.
    """
    old, new = (name in columns for name in _names(operation))
    if old == new:
        what = "both columns" if old else "neither of the columns"
        raise ConfigurationError(
            f"op.rename_encrypted_column: table {operation.table_name!r} has {what} {operation.column_name!r} and "
            f"{operation.new_column_name!r}"
        )
    return new
