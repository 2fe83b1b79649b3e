"""The Alembic operations that seal a plaintext column, and open a sealed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, LargeBinary
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.types import TypeEngine

from ..backfill.filling import BATCH
from ..backfill.names import own_name
from ..backfill.plain_types import reading_type
from ..backfill.sides import Plain, Sealed
from ..context import context_id
from ..errors import ConfigurationError
from ..orm.encrypted_type import EncryptedType
from ..orm.types import EncryptedBytes
from .moving import Move, Work
from .settings import keyring_of, refuse_sql, vault_of
from .transactions import MYSQL

ONLINE: Final = "run this revision on the database itself: alembic upgrade or downgrade without --sql"


class ColumnOp(MigrateOperation):
    """A column that is sealed or opened.

    Args:
        table_name: The table.
        column_name: The column.
        type_: Its encrypted type.
        plain_type: Its plain type; None where it is not known.
        nullable: Whether there may be NULL in the end; None for what was there before.
        existing_nullable: What was there before, if it is known.
        tenant_column: The column that says whose row it is; None for what the engine is attached with.
        drops: The names of indexes and constraints over the column that go with it.
        made: The names of those that are made after it, and go on the way back.
        vault: Holds the keys; None for the one in ``env.py``.
        schema: The table's schema.
        batch: How many rows are written at a time.
    """

    def __init__(
        self,
        table_name: str,
        column_name: str,
        type_: EncryptedType[Any],
        plain_type: TypeEngine[Any] | None,
        *,
        nullable: bool | None = None,
        existing_nullable: bool | None = None,
        tenant_column: str | None = None,
        drops: Sequence[str] = (),
        made: Sequence[str] = (),
        vault: Any = None,
        schema: str | None = None,
        batch: int = BATCH,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.type_ = type_
        self.plain_type = plain_type
        self.nullable = nullable
        self.existing_nullable = existing_nullable
        self.tenant_column = tenant_column
        self.drops = tuple(drops)
        self.made = tuple(made)
        self.vault = vault
        self.schema = schema
        self.batch = batch
        self.lost_tokens = 0
        """How many tokens of its values are not in the type, as autogenerate has seen."""

    def _reversed(self, kind: type[ColumnOp]) -> MigrateOperation:
        if self.plain_type is None:
            raise ValueError("the operation cannot be reversed: existing_type is not given")
        made = kind(
            self.table_name,
            self.column_name,
            self.type_,
            self.plain_type,
            nullable=self.existing_nullable,
            existing_nullable=self.nullable,
            tenant_column=self.tenant_column,
            drops=self.made,
            made=self.drops,
            vault=self.vault,
            schema=self.schema,
            batch=self.batch,
        )
        made.lost_tokens = self.lost_tokens
        return made

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        return ("modify_type", self.schema, self.table_name, self.column_name, type(self).__name__)


@Operations.register_operation("encrypt_column")
class EncryptColumnOp(ColumnOp):
    """Seal a plaintext column."""

    @classmethod
    def encrypt_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        type_: EncryptedType[Any],
        *,
        existing_type: TypeEngine[Any] | None = None,
        nullable: bool | None = None,
        tenant_column: str | None = None,
        drops: Sequence[str] = (),
        vault: Any = None,
        schema: str | None = None,
        batch: int = BATCH,
    ) -> None:
        """Turn a plaintext column into a sealed one, with its values.

        Values are sealed in batches beside other writers, each in the scope of its row's tenant. Then the table is
        locked while every value is opened and compared with its plaintext, and the plaintext column is dropped. Ended
        in any way and run again, it goes on where it was: let it be the only operation of its revision that moves
        values. What the migration has done before it is committed.

        Args:
            operations: Alembic's.
            table_name: The table.
            column_name: The column.
            type_: The type that the model has now: ``EncryptedString(index=True)``.
            existing_type: The plain type, where the database does not know it: an enumeration kept by value, say.
            nullable: Whether there may be NULL; by default as before.
            tenant_column: The column that says whose row it is; by default the one that env.py's engine is attached
                with.
            drops: The names of indexes and constraints over the plaintext that go with it.
            vault: Holds the keys; by default the one that ``env.py`` gives to ``context.configure(pii_vault=…)``.
            schema: The table's schema.
            batch: How many rows are written at a time.

        Raises:
            ConfigurationError: it cannot be done as it was said, or SQL is to be written; nothing is changed.
            BackfillError: some rows belong to nobody, or have a value that the type does not take; names them. The
                plaintext is there still.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason. Nothing is changed.
        """
        more: dict[str, Any] = {"tenant_column": tenant_column, "drops": drops, "vault": vault, "schema": schema}
        operations.invoke(cls(table_name, column_name, type_, existing_type, nullable=nullable, batch=batch, **more))

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        return self._reversed(DecryptColumnOp)


@Operations.register_operation("decrypt_column")
class DecryptColumnOp(ColumnOp):
    """Open a sealed column."""

    @classmethod
    def decrypt_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        type_: EncryptedType[Any],
        plain_type: TypeEngine[Any],
        *,
        nullable: bool | None = None,
        tenant_column: str | None = None,
        drops: Sequence[str] = (),
        vault: Any = None,
        schema: str | None = None,
        batch: int = BATCH,
    ) -> None:
        """Turn a sealed column into a plaintext one, with its values: the way back from `encrypt_column`.

        Afterwards whoever reads the database reads the values, and so does who reads its log and its backups.

        Args:
            operations: Alembic's.
            table_name: The table.
            column_name: The column.
            type_: The type that its values were sealed with.
            plain_type: The type that it is to have.
            nullable: Whether there may be NULL; by default as before.
            tenant_column: The column that says whose row it is; by default the one that env.py's engine is attached
                with.
            drops: The names of indexes over its tokens that go with it, unless `drop_blind_index` has dropped them.
            vault: Holds the keys; by default the one that ``env.py`` gives to ``context.configure(pii_vault=…)``.
            schema: The table's schema.
            batch: How many rows are written at a time.

        Raises:
            ConfigurationError: it cannot be done as it was said, or SQL is to be written; nothing is changed.
            BackfillError: some values cannot be opened, or do not fit the plain type; names the rows. The sealed
                values are there still.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason. Nothing is changed.
        """
        more: dict[str, Any] = {"tenant_column": tenant_column, "drops": drops, "vault": vault, "schema": schema}
        operations.invoke(cls(table_name, column_name, type_, plain_type, nullable=nullable, batch=batch, **more))

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        return self._reversed(EncryptColumnOp)


@Operations.implementation_for(EncryptColumnOp)
def _encrypt(operations: Operations, operation: EncryptColumnOp) -> None:
    move, vault = _move(operations, operation, "encrypt_column")
    name, kind = operation.column_name, _kind(operation)
    new = Sealed(own_name("sealed", name), kind, keyring_of(vault))
    there = move.found.columns
    if new.name not in there and move.found.is_binary(name):
        is_sealed = move.is_sealed(Sealed(name, kind, keyring_of(vault)))
        if is_sealed or (is_sealed is None and not isinstance(kind, EncryptedBytes)):
            return  # it was done, and the migration ended before its revision was written down
        if not isinstance(kind, EncryptedBytes):
            raise ConfigurationError(
                f"op.encrypt_column: {operation.table_name}.{name} holds bytes that were not sealed as this type would",
                hint="it seals plaintext; if these are sealed values of another context or type, name that",
            )
    plain = Plain(name, reading_type(kind, operation.plain_type or there[name]["type"]))
    move.do(plain, new, sealed_column(operations, name, there[name].get("comment")))


@Operations.implementation_for(DecryptColumnOp)
def _decrypt(operations: Operations, operation: DecryptColumnOp) -> None:
    move, vault = _move(operations, operation, "decrypt_column")
    name, kind, plain = operation.column_name, _kind(operation), operation.plain_type
    assert plain is not None
    new = Plain(own_name("plain", name), reading_type(kind, plain))
    sealed = Sealed(name, kind, keyring_of(vault))
    if new.name not in move.found.columns:
        binary = isinstance(kind, EncryptedBytes) and move.found.is_binary(name)
        if not move.found.is_binary(name) or (binary and move.is_sealed(sealed) is False):
            return  # it was done, and the migration ended before its revision was written down
    final: Column[Any] = Column(name, plain, comment=move.found.columns[name].get("comment"))
    move.do(sealed, new, final)


def sealed_column(operations: Operations, name: str, comment: str | None) -> Column[Any]:
    """Return a column for sealed values, as a database has it."""
    kind = LONGBLOB() if operations.get_bind().dialect.name in MYSQL else LargeBinary()
    return Column(name, kind, comment=comment)


def _move(operations: Operations, operation: ColumnOp, name: str) -> tuple[Move, Any]:
    refuse_sql(operations, name, ONLINE)
    vault = vault_of(operations, operation.vault, name)
    work = Work(
        name,
        operation.table_name,
        operation.schema,
        operation.tenant_column,
        vault,
        operation.drops,
        operation.nullable,
        operation.batch,
    )
    move = Move(operations, work)
    if operation.column_name not in move.found.columns:
        raise ConfigurationError(f"op.{name}: table {operation.table_name!r} has no column {operation.column_name!r}")
    return move, vault


def _kind(operation: ColumnOp) -> EncryptedType[Any]:
    return operation.type_.within(context_id(operation.table_name, operation.column_name))
