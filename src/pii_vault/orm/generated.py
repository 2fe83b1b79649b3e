"""Tokens on MariaDB and MySQL, which use no index for an expression: a generated column holds each token, by its name.

``CREATE INDEX`` over a token becomes one ``ALTER TABLE`` that adds the generated column and the index, and a token of a
table's column is rendered as the generated column, if the model has an index over it. Of a subquery's column, and where
there is no index, it is cut out as elsewhere.
"""

from __future__ import annotations

import re
from copy import copy
from typing import Any, Final

from sqlalchemy import Alias, Column, ColumnClause, Index, LargeBinary, Table, UnaryExpression
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import TableClause

from ..blind_index import Slot
from ..errors import ConfigurationError
from .tokens import TokenOf

PREFIX: Final = "pii_vault_"

DIALECTS: Final = ("mysql", "mariadb")

_NO_SUCH_COLUMN: Final = 1054


def generated_name(token: TokenOf) -> str:
    """Return the name of the generated column that holds a token: ``pii_vault_email_0``.

    By its slot: so a name stands for one column and one place in it, and a token can be given another name.
    """
    return name_of(token.column.name, token.slot)


def generated_column(token: TokenOf) -> ColumnClause[Any] | None:
    """Return the generated column of a token, or None where there is none or a query has made the column's values."""
    source: Any = token.column.table
    bare = source
    while isinstance(bare, Alias):
        bare = bare.element
    bare = getattr(bare, "_Annotated__element", bare)
    if not isinstance(bare, Table | TableClause) and source is not None:
        return None
    home: tuple[Any, str] | None = token.column.type.home
    if home is not None and not _is_indexed(home[0], home[1], token.slot):
        return None
    return ColumnClause(generated_name(token), _selectable=source)


def generated_in(table: Table, column: str, slot: Slot) -> Column[bytes] | None:
    """Return a new column like the one that holds the tokens of a table's column, or None if no index is over it."""
    return Column(name_of(column, slot), LargeBinary) if _is_indexed(table, column, slot) else None


def missing(error: BaseException | None) -> ConfigurationError | None:
    """Return the error for a statement that names a generated column which is not in the database, or None."""
    arguments = error.args if error is not None else ()
    if len(arguments) < 2 or arguments[0] != _NO_SUCH_COLUMN:
        return None
    found = re.search(rf"'([^']*\b{PREFIX}(.+)_\d+)'", str(arguments[1]))
    if found is None:
        return None
    return ConfigurationError(
        f"{found[2]!r} is searched, and the database has no column {found[1]!r} for its tokens",
        hint="make the index that the model declares, by a migration or by index.create(engine): it brings the column",
    )


def name_of(column: str, slot: Slot) -> str:
    """Return the name of the generated column for a slot of a column."""
    return f"{PREFIX}{column}_{slot.number}"


def parts_of(index: Index) -> list[str | None]:
    """Return the names of the columns that an index is over, generated ones for tokens; None for another expression."""
    names: list[str | None] = []
    for expression in index.expressions:
        bare: Any = _of_generated(expression)
        while isinstance(bare, UnaryExpression):  # DESC
            bare = bare.element
        names.append(bare.name if isinstance(bare, ColumnClause) else None)
    return names


def _is_indexed(table: Any, column: str, slot: Slot) -> bool:
    mine = (column, slot.number)
    return any((token.column.name, token.slot.number) == mine for index in table.indexes for token in _tokens_in(index))


def _tokens_in(index: Any) -> list[TokenOf]:
    """Return the tokens that an index is over, each once; around one there may be a ``DESC``."""
    tokens = [part for each in index.expressions for part in visitors.iterate(each) if isinstance(part, TokenOf)]
    return list({generated_name(each): each for each in tokens}.values())


@compiles(TokenOf, *DIALECTS)
def _token(token: TokenOf, compiler: Any, **kw: Any) -> str:
    column = generated_column(token)
    if column is None:
        return str(compiler.visit_function(token, **kw))
    relies_on = getattr(compiler, "relies_on", None)
    if relies_on is not None:  # the checked compiler, which has to know
        relies_on(token)
    kw.pop("within_aggregate_function", None)
    return str(compiler.process(column, **kw))


@compiles(CreateIndex, *DIALECTS)
def _create_index(create: CreateIndex, compiler: Any, **kw: Any) -> str:
    index = create.element
    tokens = _tokens_in(index)
    if not tokens:
        return str(compiler.visit_create_index(create, **kw))
    quote = compiler.preparer
    over, create = copy(index), copy(create)
    over.expressions, create.element = [_of_generated(each) for each in index.expressions], over
    table = quote.format_table(index.table)
    made, _, columns = str(compiler.visit_create_index(create, **kw)).partition(f" ON {table} ")
    added = [f"ADD COLUMN {_if_missing(compiler)}{_definition(quote, each)}" for each in tokens]
    return f"ALTER TABLE {table} {', '.join(added)}, ADD {made.removeprefix('CREATE ')} {columns}"


def _of_generated(expression: Any) -> Any:
    def replaced(element: Any, **_: Any) -> Any:
        return ColumnClause(generated_name(element)) if isinstance(element, TokenOf) else None

    return visitors.replacement_traverse(expression, {}, replaced)


def _if_missing(compiler: Any) -> str:
    """Two indexes can be over one token. MySQL cannot say so, and takes one."""
    return "IF NOT EXISTS " if getattr(compiler.dialect, "is_mariadb", False) else ""


def _definition(quote: Any, token: TokenOf) -> str:
    # VARBINARY: BINARY pads with zeros, and two values that differ would clash. INVISIBLE: SELECT * stays as it was.
    column: Column[Any] = token.column
    start = token.slot.start
    return (
        f"{quote.quote(generated_name(token))} VARBINARY(16) "
        f"GENERATED ALWAYS AS (substr({quote.quote(column.name)}, {start}, 16)) VIRTUAL INVISIBLE"
    )
