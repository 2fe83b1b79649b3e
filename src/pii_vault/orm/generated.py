"""Tokens on MariaDB and MySQL, which use no index for an expression: a generated column holds each token, by its name.

``CREATE INDEX`` over a token becomes one ``ALTER TABLE`` that adds the generated column and the index, and a token of a
table's column is rendered as the generated column. Of a subquery's column, which has none, it is cut out as elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Alias, Column, ColumnClause, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex
from sqlalchemy.sql.selectable import TableClause

from .tokens import TokenOf

PREFIX: Final = "pii_vault_"

_DIALECTS: Final = ("mysql", "mariadb")


def generated_name(token: TokenOf) -> str:
    """Return the name of the generated column that holds a token: ``pii_vault_email_0``.

    By its slot: so a name stands for one column and one place in it, and a token can be given another name.
    """
    return f"{PREFIX}{token.column.name}_{token.slot.number}"


def generated_column(token: TokenOf) -> ColumnClause[Any] | None:
    """Return the generated column of a token, or None where a query has made the column's values."""
    source: Any = token.column.table
    bare = source
    while isinstance(bare, Alias):
        bare = bare.element
    bare = getattr(bare, "_Annotated__element", bare)
    if not isinstance(bare, Table | TableClause) and source is not None:
        return None
    return ColumnClause(generated_name(token), _selectable=source)


@compiles(TokenOf, *_DIALECTS)
def _token(token: TokenOf, compiler: Any, **kw: Any) -> str:
    column = generated_column(token)
    if column is None:
        return str(compiler.visit_function(token, **kw))
    relies_on = getattr(compiler, "relies_on", None)
    if relies_on is not None:  # the checked compiler, which has to know
        relies_on(token)
    kw.pop("within_aggregate_function", None)
    return str(compiler.process(column, **kw))


@compiles(CreateIndex, *_DIALECTS)
def _create_index(create: CreateIndex, compiler: Any, **kw: Any) -> str:
    index = create.element
    tokens = [each for each in index.expressions if isinstance(each, TokenOf)]
    if not tokens:
        return str(compiler.visit_create_index(create, **kw))
    quote = compiler.preparer
    unique = "UNIQUE INDEX" if index.unique else "INDEX"
    columns: list[Any] = list(index.expressions)
    parts = [generated_name(each) if isinstance(each, TokenOf) else each.name for each in columns]
    added = [f"ADD COLUMN {_if_missing(compiler)}{_definition(quote, each)}" for each in tokens]
    missing = _if_missing(compiler) if create.if_not_exists else ""
    added.append(f"ADD {unique} {missing}{quote.format_index(index)} ({', '.join(map(quote.quote, parts))})")
    return f"ALTER TABLE {quote.format_table(index.table)} {', '.join(added)}"


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
