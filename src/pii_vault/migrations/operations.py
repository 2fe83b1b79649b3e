"""Alembic operations for indexes over tokens, and how autogenerate writes them into a migration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import ClauseElement, Column, Index, MetaData, Table, literal, text
from sqlalchemy.sql.elements import conv
from sqlalchemy.types import NullType

from ..blind_index import BlindIndex
from ..orm.generated import generated_name
from ..orm.tokens import TokenOf
from ..orm.types import EncryptedBytes
from .parts import Part, is_token

_IMPORT: Final = "import pii_vault.migrations"
_MYSQL: Final = ("mysql", "mariadb")


class _BlindIndexOp(MigrateOperation):
    """An index over tokens, and perhaps columns.

    Args:
        index_name: Its name.
        table_name: The table.
        parts: What it is over, in order.
        unique: Whether it is unique.
        schema: The table's schema.
        kw: Options for one kind of database, as ``op.create_index`` takes them: ``postgresql_concurrently=True``.
    """

    def __init__(
        self,
        index_name: str,
        table_name: str,
        parts: Sequence[Part],
        *,
        unique: bool = False,
        schema: str | None = None,
        **kw: Any,
    ) -> None:
        self.index_name = index_name
        self.table_name = table_name
        self.parts = tuple(parts)
        self.unique = unique
        self.schema = schema
        self.kw = kw

    def to_index(self) -> Index:
        """Return the index, over a table that has nothing but its columns."""
        slots: dict[str, set[int]] = {}
        for part in self.parts:
            column, *slot = (part,) if isinstance(part, str) else part
            slots.setdefault(column, set()).update(slot)
        columns = {
            name: Column(name, _sealed(str(number), numbers) if numbers else NullType())
            for number, (name, numbers) in enumerate(slots.items())
        }
        Table(self.table_name, MetaData(), *columns.values(), schema=self.schema)
        over: list[Any] = [
            TokenOf(columns[part[0]], _label(part[1])) if is_token(part) else columns[str(part)] for part in self.parts
        ]
        return Index(self.index_name, *over, unique=self.unique, **self.kw)


@Operations.register_operation("create_blind_index")
class CreateBlindIndexOp(_BlindIndexOp):
    """Create an index over tokens.

    Args:
        if_not_exists: Whether to do nothing when there is an index of this name.
    """

    def __init__(self, *args: Any, if_not_exists: bool | None = None, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.if_not_exists = if_not_exists

    @classmethod
    def create_blind_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column: str,
        *,
        slot: int,
        unique: bool = False,
        columns_before: Sequence[str | tuple[str, int]] = (),
        columns_after: Sequence[str | tuple[str, int]] = (),
        schema: str | None = None,
        if_not_exists: bool | None = None,
        **kw: Any,
    ) -> None:
        """Create an index over a token of an encrypted column; on MariaDB with the generated column that it needs.

        Args:
            operations: Alembic's.
            index_name: The index's name.
            table_name: The table.
            column: The encrypted column.
            slot: The token's place in the sealed value: 0 for the first that a column declares.
            unique: Whether it is unique.
            columns_before: What the index is over before the token: columns, and further tokens as (column, slot).
            columns_after: Likewise, after it.
            schema: The table's schema.
            if_not_exists: Whether to do nothing when there is an index of this name.
            kw: Options for one kind of database, as ``op.create_index`` takes them.
        """
        parts = (*columns_before, (column, slot), *columns_after)
        operations.invoke(
            cls(index_name, table_name, parts, unique=unique, schema=schema, if_not_exists=if_not_exists, **kw)
        )

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        return DropBlindIndexOp(
            self.index_name,
            self.table_name,
            self.parts,
            unique=self.unique,
            schema=self.schema,
            if_exists=self.if_not_exists,
            **self.kw,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        return ("add_index", self.to_index())


@Operations.register_operation("drop_blind_index")
class DropBlindIndexOp(_BlindIndexOp):
    """Drop an index over tokens.

    Args:
        if_exists: Whether to do nothing when there is no index of this name.
    """

    def __init__(self, *args: Any, if_exists: bool | None = None, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.if_exists = if_exists

    @classmethod
    def drop_blind_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column: str,
        *,
        slot: int,
        columns_before: Sequence[str | tuple[str, int]] = (),
        columns_after: Sequence[str | tuple[str, int]] = (),
        schema: str | None = None,
        if_exists: bool | None = None,
        **kw: Any,
    ) -> None:
        """Drop an index over a token; on MariaDB also the generated column, if no other index is over it.

        Args:
            operations: Alembic's.
            index_name: The index's name.
            table_name: The table.
            column: The encrypted column.
            slot: The token's place in the sealed value.
            columns_before: Further tokens that the index is over, as (column, slot). Plain columns can be left out.
            columns_after: Likewise.
            schema: The table's schema.
            if_exists: Whether to do nothing when there is no index of this name.
            kw: Options for one kind of database, as ``op.drop_index`` takes them.
        """
        parts = (*columns_before, (column, slot), *columns_after)
        operations.invoke(cls(index_name, table_name, parts, schema=schema, if_exists=if_exists, **kw))

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        return CreateBlindIndexOp(
            self.index_name,
            self.table_name,
            self.parts,
            unique=self.unique,
            schema=self.schema,
            if_not_exists=self.if_exists,
            **self.kw,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        return ("remove_index", self.to_index())


@Operations.implementation_for(CreateBlindIndexOp)
def _create(operations: Operations, operation: CreateBlindIndexOp) -> None:
    more = {} if operation.if_not_exists is None else {"if_not_exists": operation.if_not_exists}
    operations.impl.create_index(operation.to_index(), **more)


@Operations.implementation_for(DropBlindIndexOp)
def _drop(operations: Operations, operation: DropBlindIndexOp) -> None:
    index = operation.to_index()
    more = {} if operation.if_exists is None else {"if_exists": operation.if_exists}
    operations.impl.drop_index(index, **more)
    if operations.impl.dialect.name in _MYSQL:
        for token in dict.fromkeys(each for each in index.expressions if isinstance(each, TokenOf)):
            _drop_generated(operations, operation, generated_name(token))


def _drop_generated(operations: Operations, operation: DropBlindIndexOp, name: str) -> None:
    """Drop a generated column that no index is over any longer.

    MariaDB would take a column out of the other indexes that are over it. It is asked in SQL, because a migration may
    be written to a file and run later.
    """
    dialect = operations.impl.dialect
    quote = dialect.identifier_preparer

    def text_of(value: str) -> str:
        return str(literal(value).compile(dialect=dialect, compile_kwargs={"literal_binds": True}))

    schema = text_of(operation.schema) if operation.schema else "DATABASE()"
    there = f"WHERE table_schema = {schema} AND table_name = {text_of(operation.table_name)} "
    there += f"AND column_name = {text_of(name)}"
    table = quote.format_table(Table(operation.table_name, MetaData(), schema=operation.schema))
    drop = text_of(f"ALTER TABLE {table} DROP COLUMN {quote.quote(name)}")
    for statement in (
        f"SET @pii_vault = IF((SELECT COUNT(*) FROM information_schema.columns {there}) > "  # noqa: S608 - names
        f"(SELECT COUNT(*) > 0 FROM information_schema.statistics {there}), {drop}, 'DO 0')",
        "PREPARE pii_vault FROM @pii_vault",
        "EXECUTE pii_vault",
        "DEALLOCATE PREPARE pii_vault",
    ):
        operations.execute(text(statement.replace(":", r"\:")))


@renderers.dispatch_for(CreateBlindIndexOp)
def render_create(autogen_context: AutogenContext, operation: CreateBlindIndexOp) -> str:
    """Write the call."""
    more = [f"if_not_exists={operation.if_not_exists!r}"] if operation.if_not_exists is not None else []
    unique = [f"unique={bool(operation.unique)!r}"]
    return _rendered(autogen_context, "create_blind_index", operation, operation.parts, unique + more)


@renderers.dispatch_for(DropBlindIndexOp)
def _render_drop(autogen_context: AutogenContext, operation: DropBlindIndexOp) -> str:
    tokens = [part for part in operation.parts if is_token(part)]
    more = [f"if_exists={operation.if_exists!r}"] if operation.if_exists is not None else []
    return _rendered(autogen_context, "drop_blind_index", operation, tokens, more)


def _rendered(
    autogen_context: AutogenContext, function: str, operation: _BlindIndexOp, parts: Sequence[Part], more: list[str]
) -> str:
    autogen_context.imports.add(_IMPORT)
    prefix = autogen_context.opts["alembic_module_prefix"] or ""
    at, (column, slot) = next((at, part) for at, part in enumerate(parts) if is_token(part))
    name = f"{prefix}f({str(operation.index_name)!r})" if isinstance(operation.index_name, conv) else None
    given = [name or repr(str(operation.index_name)), repr(str(operation.table_name)), repr(str(column))]
    given += [f"slot={slot}", *more]
    around = {"columns_before": parts[:at], "columns_after": parts[at + 1 :]}
    given += [f"{where}={[_plain(each) for each in found]!r}" for where, found in around.items() if found]
    if operation.schema:
        given.append(f"schema={str(operation.schema)!r}")
    given += [f"{option}={_option(autogen_context, value)}" for option, value in operation.kw.items()]
    return f"{prefix}{function}({', '.join(given)})"


def _plain(part: Part) -> Part:
    return (str(part[0]), part[1]) if is_token(part) else str(part)


def _option(autogen_context: AutogenContext, value: Any) -> str:
    if not isinstance(value, ClauseElement):
        return repr(value)
    sql = autogen_context.migration_context.impl.render_ddl_sql_expr(value)
    return f"{autogen_context.opts['sqlalchemy_module_prefix'] or ''}text({sql!r})"


def _label(slot: int) -> str:
    return f"slot_{slot}"


def _sealed(context: str, slots: set[int]) -> EncryptedBytes:
    """Return the type of a column that has tokens in these slots."""
    tokens = {_label(slot): BlindIndex(slot=slot, create=False) for slot in sorted(slots)}
    return EncryptedBytes(context=context, tokens=tokens)
