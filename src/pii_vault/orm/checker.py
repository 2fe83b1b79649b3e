"""The statement checker: SQL that a sealed column cannot answer is refused when it is compiled.

Randomised ciphertext answers every comparison with "no", sorts by chance and aggregates to nonsense, and a database
does all that without an error. So each statement is checked once per compilation against an allow list of positions:

- a sealed column, bare or labelled, in the columns of a SELECT or in RETURNING;
- ``IS NULL``, ``IS NOT NULL`` and ``count(column)`` anywhere;
- ``==``, ``!=``, ``in_`` and ``not_in`` anywhere where the column has a blind index (`search.py`), and its tokens
  where it only matters which are equal: GROUP BY, PARTITION BY, DISTINCT, ``count()``, ON CONFLICT;
- a bound value, NULL or the proposed row of an upsert where a sealed column is assigned;
- DISTINCT when the primary key is selected too; UNION ALL of columns with the same context.

Everything else that touches a sealed column is refused, and so is anything but a bound value written into one. What
``text()``, ``literal_column`` and ``type_coerce`` do is the user's own.

The functions here look at the clauses of a statement and can say what is wrong with it. Behind them stands the compiler
(`engine.py`), which renders a sealed column only where one of the positions above has granted it: a clause that nobody
thought of is refused too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import (
    BinaryExpression,
    BindParameter,
    ColumnClause,
    Label,
    Null,
    ScalarSelect,
    Select,
    TypeCoerce,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    ClauseElement,
    ClauseList,
    Grouping,
    Over,
    Tuple,
    UnaryExpression,
    _label_reference,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Exists, SelectBase, Subquery

from ..errors import UnsupportedOperationError
from . import search
from .comparator import refused, refused_tokens
from .encrypted_type import EncryptedType
from .tokens import TokenBytes, TokenOf, arguments, inexact


def sealed(element: Any) -> bool:
    """Say whether an expression has an encrypted type, on any dialect."""
    kind = getattr(element, "type", None)
    variants = getattr(kind, "_variant_mapping", {}).values()
    return isinstance(kind, EncryptedType) or any(isinstance(each, EncryptedType) for each in variants)


def is_token(element: Any) -> bool:
    """Say whether an expression is a token, also that of a subquery's column."""
    return isinstance(getattr(element, "type", None), TokenBytes)


def check_select(statement: Select[Any], labels: dict[str, Any], dialect: str, *, candidates: bool) -> None:
    """Check one SELECT's own clauses; selects inside it are checked when they are compiled.

    Args:
        statement: The SELECT as it is rendered, after the ORM has worked on it.
        labels: What names in ORDER BY and GROUP BY stand for.
        dialect: Its name: others than PostgreSQL render DISTINCT ON as DISTINCT.
        candidates: Whether its conditions may find other values too: nothing is concluded from its rows but that they
            are returned.
    """
    if statement._distinct and not (dialect == "postgresql" and _is_distinct_on(statement)):
        _check_distinct(list(_projected(statement._raw_columns)))
    _check_all(statement._distinct_on, "DISTINCT ON", labels)
    _check_all(statement._where_criteria, "a condition on", labels, candidates=candidates)
    _check_all(statement._having_criteria, "HAVING with", labels)
    _check_all(statement._group_by_clauses, "GROUP BY", labels)
    _check_all(statement._order_by_clauses, "ORDER BY", labels)


def check_compound(statement: Any, labels: dict[str, Any]) -> None:
    """Check a UNION, INTERSECT or EXCEPT; its selects are checked when they are compiled."""
    columns = [list(_columns_of(select)) for select in statement.selects]
    keeps_all = statement.keyword.name == "UNION_ALL"
    for position in zip(*columns, strict=False):
        kinds = {_kind(column) for column in position}
        if kinds == {None}:
            continue
        first = next(column for column in position if sealed(column))
        if not keeps_all:
            raise refused(f"{statement.keyword.name.replace('_', ' ')} over", first)
        if len(kinds) > 1:
            raise refused("UNION ALL of another column with", first)
    _check_all(statement._group_by_clauses, "GROUP BY", labels)
    _check_all(statement._order_by_clauses, "ORDER BY", labels)


def check_insert(statement: Any) -> None:
    """Check an INSERT: sealed columns receive bound values only."""
    for key, value in _assignments(statement._values):
        _check_assigned(statement, key, value)
    for rows in statement._multi_values or ():
        for row in rows:
            for key, value in _assignments(_as_mapping(statement, row)):
                _check_assigned(statement, key, value)
                _check_typed(_target(statement, key), value)
    if statement.select is not None:
        _check_from_select(statement)
    upsert = statement._post_values_clause
    if upsert is not None:
        _check_upsert(statement, upsert)


def check_update(statement: Any) -> None:
    """Check an UPDATE: sealed columns receive bound values only, and conditions see none of them."""
    ordered = getattr(statement, "_ordered_values", None)
    for key, value in (*_assignments(statement._values), *(ordered or ())):
        _check_assigned(statement, key, value)
    _check_all(statement._where_criteria, "a condition on", _columns_by_name(statement.table))


def check_delete(statement: Any) -> None:
    """Check a DELETE."""
    _check_all(statement._where_criteria, "a condition on", _columns_by_name(statement.table))


def check_join(join: Any) -> None:
    """Check what a JOIN is on."""
    _check(join.onclause, "a join on", _columns_by_name(join))


def check_row(source: Any) -> None:
    """Refuse a whole row as one value where it has sealed columns."""
    for column in source.columns:
        if sealed(column):
            raise refused("the whole row with", column)


def check_projected(column: Any) -> Any:
    """Check one column of a SELECT or of RETURNING, and return what it is without its label."""
    bare = _bare(column)
    if not isinstance(bare, ColumnClause | TypeCoerce | ScalarSelect):
        _check(bare, "an expression of")
    elif sealed(bare) and not sealed(column):
        raise refused("a label of another type on", bare)
    return bare


def _bare(column: Any) -> Any:
    while isinstance(column, Label | Grouping):
        column = column.element
    return column


def granted_by(element: Any) -> Any:
    """Return the column that ``IS NULL``, ``count()`` or ``type_coerce()`` may use, or None."""
    if isinstance(element, TypeCoerce):
        return element.clause
    if _is_null_test(element):
        return element.left
    return arguments(element)[0] if _is_count(element) else None


def is_proposed_row(value: Any, upsert: Any) -> bool:
    """Say whether this is ``excluded.email``: the row that an upsert proposed, sealed for this very column."""
    if not isinstance(value, ColumnClause):
        return False
    # MySQL's and MariaDB's is whatever has this one alias, which is rendered as VALUES(email) or as new.email.
    alias = getattr(upsert, "inserted_alias", None)
    return getattr(value.table, "name", None) == "excluded" if alias is None else value.table is alias


def _projected(elements: Iterable[Any]) -> Iterator[Any]:
    for element in elements:
        yield from getattr(element, "_select_iterable", (element,))


def _columns_of(select: Any) -> Iterable[Any]:
    while isinstance(select, Grouping) or not hasattr(select, "_all_selected_columns"):
        select = select.element
    return list(select._all_selected_columns)


def _is_distinct_on(statement: Any) -> bool:
    extension = getattr(statement, "_pre_columns_clause", None)  # DISTINCT ON of SQLAlchemy 2.1
    extensions = () if extension is None else (extension, *extension.get_children())
    return any(getattr(each, "_distinct_on", ()) for each in (statement, *extensions))


def _check_distinct(projected: list[Any]) -> None:
    """Allow DISTINCT when the rows differ by primary key anyway: equal keys mean the same stored bytes."""
    bare = [_bare(column) for column in projected]
    names = {(id(_table(column)), column.key) for column in bare if isinstance(column, ColumnClause)}
    for column in bare:
        if not sealed(column):
            continue
        table = _table(column)
        keys = list(getattr(table, "primary_key", None) or ())
        if not keys or any((id(table), key.key) not in names for key in keys):
            raise refused("DISTINCT over", column)


def _table(column: Any) -> Any:
    table = getattr(column, "table", None)
    # The ORM annotates tables: the same table then is several objects around one.
    return getattr(table, "_Annotated__element", table)


def _kind(column: Any) -> Any:
    return column.type._static_cache_key if sealed(column) else None


def _columns_by_name(source: Any) -> dict[str, Any]:
    return {column.name: column for column in source.columns}


def _check_all(elements: Iterable[Any], what: str, labels: dict[str, Any], *, candidates: bool = False) -> None:
    for element in elements:
        _check(element, what, labels, candidates=candidates)


def _check(element: Any, what: str, labels: dict[str, Any] | None = None, *, candidates: bool = False) -> None:
    """Refuse an expression that uses a sealed column in any way that is not on the allow list.

    Args:
        element: The expression.
        what: What it is used for, for the message.
        labels: What names in it stand for.
        candidates: Whether it may also be true for rows that have another value, by tokens of few bits: where that
            gives more rows, and never fewer.
    """
    pending: list[Any] = [(element, candidates, what in _TAKES_TOKENS)]
    while pending:
        each, more, tokens = pending.pop()
        name = getattr(each, "__visit_name__", "")
        if name == "textual_label_reference":
            each = (labels or {}).get(each.element, each)
        elif isinstance(each, ColumnClause) and each.table is None:
            each = (labels or {}).get(each.name, each)
        if _is_null_test(each) or _is_count(each) or isinstance(each, TypeCoerce | Exists):
            continue
        found = search.translate(each)
        if found is not None:
            if not more and search.is_inexact(found):
                raise inexact(what.removesuffix(" on"), found.token)
            continue
        if isinstance(each, SelectBase | Subquery):
            _check_nested(each, what)
            continue
        if is_token(each) and isinstance(each, TokenOf | ColumnClause | ScalarSelect):
            if not tokens:
                raise refused_tokens(what, each)
            continue
        if sealed(each) and isinstance(each, ColumnClause | BindParameter | ScalarSelect):
            raise refused(what, each)
        children = list(each.get_children()) if isinstance(each, ClauseElement) else []
        if sealed(each) and not children:
            raise refused(what, each)
        more = more and (isinstance(each, Grouping) or getattr(each, "operator", None) in _MONOTONE)
        tokens = _counts(each) or (tokens and _is_around_tokens(each, what))
        grouped = each.partition_by if isinstance(each, Over) else None
        pending.extend((child, more, tokens or child is grouped) for child in children)


_TAKES_TOKENS = frozenset(("GROUP BY", "DISTINCT ON", "ON CONFLICT on", "an expression of", "copying"))
"""What tokens as they are can be used for: it asks which of them are equal, or hands them on."""

_GROUPING_FUNCTIONS = frozenset(("rollup", "cube", "grouping_sets"))


def _counts(element: Any) -> bool:
    return isinstance(element, FunctionElement) and getattr(element, "name", "").lower() == "count"


def _is_around_tokens(element: Any, what: str) -> bool:
    """Say whether what is allowed for an element is allowed for its parts as well."""
    if isinstance(element, FunctionElement):
        return what == "GROUP BY" and getattr(element, "name", "").lower() in _GROUPING_FUNCTIONS
    if isinstance(element, UnaryExpression):
        return element.operator is operators.distinct_op
    if isinstance(element, Tuple):
        return what == "GROUP BY"
    return isinstance(element, Label | Grouping | ClauseList | _label_reference)


_MONOTONE = frozenset((operators.and_, operators.or_))
"""Whatever they combine: what is true more often makes them true more often."""


def _check_nested(select: Any, what: str) -> None:
    """A select inside an expression is compared with something: it must not deliver sealed bytes for that."""
    for column in _columns_of(select):
        if sealed(column):
            raise refused(what, column)
        if is_token(column):
            raise refused_tokens(what, column)


def _is_null_test(element: Any) -> bool:
    return (
        isinstance(element, BinaryExpression)
        and element.operator in (operators.is_, operators.is_not)
        and isinstance(element.right, Null)
        and isinstance(element.left, ColumnClause | TokenOf)
    )


def _is_count(element: Any) -> bool:
    if not _counts(element):
        return False
    counted = arguments(element)
    return len(counted) == 1 and isinstance(counted[0], ColumnClause)


def _assignments(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if values else ()


def _as_mapping(statement: Any, row: Any) -> dict[Any, Any]:
    if isinstance(row, dict):
        return row
    return dict(zip(statement.table.columns, row, strict=False))


def _check_assigned(statement: Any, key: Any, value: Any) -> None:
    target = _target(statement, key)
    if not isinstance(target, ColumnClause | None):
        _check(target, "assigning a part of")
    if not sealed(target):
        if isinstance(value, ClauseElement):
            _check(value, "copying")
        return
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    if not isinstance(value, ClauseElement) or isinstance(value, Null):
        return
    if isinstance(value, BindParameter) and (value.type._isnull or _kind(value) == _kind(target)):
        return
    if is_proposed_row(value, getattr(statement, "_post_values_clause", None)) and _kind(value) == _kind(target):
        return
    raise refused("assigning an SQL expression to", target)


def _check_typed(target: Any, value: Any) -> None:
    """Of many rows in values(), SQLAlchemy gives a parameter its column's type in the first alone."""
    if sealed(target) and isinstance(value, BindParameter) and value.type._isnull:
        raise UnsupportedOperationError(
            f"a parameter without a type stands for a value of the encrypted column {target.name!r} in one of many "
            "rows, where it would be stored as it is",
            hint="bindparam(name, type_=Model.column.type), or execute the INSERT with a list of rows",
        )


def _target(statement: Any, key: Any) -> Any:
    if hasattr(key, "__clause_element__"):
        key = key.__clause_element__()
    if not isinstance(key, str):
        return key
    table = statement.table
    subject = statement._propagate_attrs.get("plugin_subject")
    mapper = getattr(subject, "mapper", None)
    if mapper is not None and key in mapper.columns:
        return mapper.columns[key]
    return table.columns.get(key)


def _check_from_select(statement: Any) -> None:
    targets = [_target(statement, name) for name in statement._select_names or statement.table.columns.keys()]
    for column in (*targets, *_columns_of(statement.select)):
        if sealed(column):
            raise refused("INSERT from SELECT with", column)


def proposed_values(statement: Any) -> list[Any]:
    """Return what an upsert takes as it is from the row that it proposed."""
    upsert = statement._post_values_clause
    return [value for _, value in _upserted(upsert) if is_proposed_row(value, upsert)]


def _upserted(upsert: Any) -> Any:
    assigned: Any = getattr(upsert, "update_values_to_set", None) or getattr(upsert, "update", None) or ()
    return assigned.items() if hasattr(assigned, "items") else assigned


def _check_upsert(statement: Any, upsert: Any) -> None:
    for key, value in _upserted(upsert):
        _check_named(statement.table, key)
        # Names here are those of the table, also in a statement of the ORM.
        _check_assigned(statement, statement.table.columns.get(key) if isinstance(key, str) else key, value)
    for condition in ("update_whereclause", "inferred_target_whereclause"):
        clause = getattr(upsert, condition, None)
        if isinstance(clause, ClauseElement):
            _check(clause, "a condition on")
    for element in getattr(upsert, "inferred_target_elements", None) or ():
        _check(_target(statement, element), "ON CONFLICT on")


def _check_named(table: Any, key: Any) -> None:
    """A column that SET names by its database name, not by its key, would get the value as it is: unsealed."""
    if isinstance(key, str) and key not in table.columns:
        for column in table.columns:
            if column.name == key and sealed(column):
                raise refused(f"assigning under another key than {column.key!r} to", column)
