"""The statement checker: SQL that a sealed column cannot answer is refused when it is compiled.

Randomised ciphertext answers every comparison with "no", sorts by chance and aggregates to nonsense, and a database
does all that without an error. So each statement is checked once per compilation against an allow list of positions:

- a sealed column, bare or labelled, in the columns of a SELECT or in RETURNING;
- ``IS NULL``, ``IS NOT NULL`` and ``count(column)`` anywhere;
- a bound value, NULL or the proposed row of an upsert where a sealed column is assigned;
- DISTINCT when the primary key is selected too; UNION ALL of columns with the same context.

Everything else that touches a sealed column is refused, and so is anything but a bound value written into one. What
``text()``, ``literal_column`` and ``type_coerce`` do is the user's own.
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
from sqlalchemy.sql.elements import ClauseElement, Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Exists, FromClause, Join, SelectBase, Subquery, Values

from ..errors import UnsupportedOperationError
from .comparator import refused
from .types import EncryptedType


def sealed(element: Any) -> bool:
    """Say whether an expression has an encrypted type."""
    return isinstance(getattr(element, "type", None), EncryptedType)


def check_select(statement: Select[Any], froms: Iterable[FromClause], labels: dict[str, Any]) -> None:
    """Check one SELECT's own clauses; selects inside it are checked when they are compiled.

    Args:
        statement: The SELECT as it is rendered, after the ORM has worked on it.
        froms: What it selects from.
        labels: What names in ORDER BY and GROUP BY stand for.
    """
    projected = list(_projected(statement._raw_columns))
    for column in projected:
        _check_projected(column)
    if statement._distinct:
        _check_distinct(projected, "DISTINCT over")
    _check_all(statement._distinct_on, "DISTINCT ON", labels)
    _check_all(statement._where_criteria, "a condition on", labels)
    _check_all(statement._having_criteria, "HAVING with", labels)
    _check_all(statement._group_by_clauses, "GROUP BY", labels)
    _check_all(statement._order_by_clauses, "ORDER BY", labels)
    for source in froms:
        _check_from(source)


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
    if statement.select is not None:
        _check_from_select(statement)
    upsert = statement._post_values_clause
    if upsert is not None:
        _check_upsert(statement, upsert)
    _check_returning(statement)


def check_update(statement: Any) -> None:
    """Check an UPDATE: sealed columns receive bound values only, and conditions see none of them."""
    ordered = getattr(statement, "_ordered_values", None)
    for key, value in (*_assignments(statement._values), *(ordered or ())):
        _check_assigned(statement, key, value)
    check_conditions(statement)
    _check_returning(statement)


def check_delete(statement: Any) -> None:
    """Check a DELETE."""
    check_conditions(statement)
    _check_returning(statement)


def check_conditions(statement: Any) -> None:
    """Check the WHERE of an UPDATE or DELETE."""
    _check_all(statement._where_criteria, "a condition on", {})


def _check_returning(statement: Any) -> None:
    for column in _projected(statement._returning or ()):
        _check_projected(column)


def _projected(elements: Iterable[Any]) -> Iterator[Any]:
    for element in elements:
        yield from getattr(element, "_select_iterable", (element,))


def _columns_of(select: Any) -> Iterable[Any]:
    while isinstance(select, Grouping) or not hasattr(select, "_all_selected_columns"):
        select = select.element
    return list(select._all_selected_columns)


def _check_projected(column: Any) -> None:
    while isinstance(column, Label | Grouping):
        column = column.element
    if isinstance(column, ColumnClause | TypeCoerce):
        return
    if isinstance(column, ScalarSelect):
        return
    _check(column, "an expression of")


def _check_distinct(projected: list[Any], what: str) -> None:
    """Allow DISTINCT when the rows differ by primary key anyway: equal keys mean the same stored bytes."""
    bare = []
    for column in projected:
        while isinstance(column, Label | Grouping):
            column = column.element
        bare.append(column)
    names = {(id(_table(column)), column.key) for column in bare if isinstance(column, ColumnClause)}
    for column in bare:
        if not sealed(column):
            continue
        table = _table(column)
        keys = list(getattr(table, "primary_key", None) or ())
        if not keys or any((id(table), key.key) not in names for key in keys):
            raise refused(what, column)


def _table(column: Any) -> Any:
    table = getattr(column, "table", None)
    # The ORM annotates tables: the same table then is several objects around one.
    return getattr(table, "_Annotated__element", table)


def _kind(column: Any) -> Any:
    return column.type._static_cache_key if sealed(column) else None


def _check_from(source: Any) -> None:
    if isinstance(source, Join):
        _check_from(source.left)
        _check_from(source.right)
        if source.onclause is not None:
            _check(source.onclause, "a join on")
    elif isinstance(source, Values):
        for column in source.columns:
            if sealed(column):
                raise refused("VALUES with", column)
    elif isinstance(source, FunctionElement):
        _check(source, "a function of")
    elif isinstance(getattr(source, "element", None), FunctionElement):
        _check(source.element, "a function of")


def _check_all(elements: Iterable[Any], what: str, labels: dict[str, Any]) -> None:
    for element in elements:
        _check(element, what, labels)


def _check(element: Any, what: str, labels: dict[str, Any] | None = None) -> None:
    """Refuse an expression that uses a sealed column in any way that is not on the allow list."""
    pending: list[Any] = [element]
    while pending:
        each = pending.pop()
        name = getattr(each, "__visit_name__", "")
        if name == "textual_label_reference":
            each = (labels or {}).get(each.element, each)
        if _is_null_test(each) or _is_count(each) or isinstance(each, TypeCoerce | Exists):
            continue
        if isinstance(each, SelectBase | Subquery):
            _check_nested(each, what)
            continue
        if sealed(each) and isinstance(each, ColumnClause | BindParameter | ScalarSelect):
            raise refused(what, each)
        children = list(each.get_children()) if isinstance(each, ClauseElement) else []
        if sealed(each) and not children:
            raise refused(what, each)
        pending.extend(children)


def _check_nested(select: Any, what: str) -> None:
    """A select inside an expression is compared with something: it must not deliver sealed bytes for that."""
    for column in _columns_of(select):
        if sealed(column):
            raise refused(what, column)


def _is_null_test(element: Any) -> bool:
    return (
        isinstance(element, BinaryExpression)
        and element.operator in (operators.is_, operators.is_not)
        and isinstance(element.right, Null)
        and isinstance(element.left, ColumnClause)
    )


def _is_count(element: Any) -> bool:
    if not isinstance(element, FunctionElement) or getattr(element, "name", "").lower() != "count":
        return False
    arguments = list(element.clauses)
    return len(arguments) == 1 and isinstance(arguments[0], ColumnClause)


def _assignments(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if values else ()


def _as_mapping(statement: Any, row: Any) -> dict[Any, Any]:
    if isinstance(row, dict):
        return row
    return dict(zip(statement.table.columns, row, strict=False))


def _check_assigned(statement: Any, key: Any, value: Any) -> None:
    if isinstance(key, tuple | list):
        raise UnsupportedOperationError("a tuple of columns cannot be assigned where columns are encrypted")
    target = _target(statement, key)
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
    if _is_proposed_row(value) and _kind(value) == _kind(target):
        return
    raise refused("assigning an SQL expression to", target)


def _is_proposed_row(value: Any) -> bool:
    """``excluded.email``: the row that an upsert proposed, sealed for this very column."""
    return isinstance(value, ColumnClause) and getattr(value.table, "name", None) in ("excluded", "new")


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


def _check_upsert(statement: Any, upsert: Any) -> None:
    assigned = getattr(upsert, "update_values_to_set", None)
    if assigned is None:
        assigned = getattr(upsert, "update", None) or ()
    for key, value in assigned.items() if hasattr(assigned, "items") else assigned:
        _check_assigned(statement, key, value)
    for condition in ("update_whereclause", "inferred_target_whereclause"):
        clause = getattr(upsert, condition, None)
        if isinstance(clause, ClauseElement):
            _check(clause, "a condition on")
    for element in getattr(upsert, "inferred_target_elements", None) or ():
        target = _target(statement, element)
        if sealed(target):
            raise refused("ON CONFLICT on", target)
