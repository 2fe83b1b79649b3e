"""While a plaintext column is being adopted, whoever writes it or the sealed one writes both, in one statement.

ORM and Core meet in the engine's hook before a statement is executed, so it is done there, once for all ways to write:
where an INSERT or UPDATE sets one of the two columns, the other one is added with the same Python value. What Python
does not see cannot be sealed, so SQL expressions, INSERT from SELECT and defaults of the database are refused.

``text()``, and what is executed past SQLAlchemy, goes past this too, and so does a statement that was compiled by the
application itself. The guard in the database is the net beneath: before the switch it empties the sealed column of a
row whose plaintext is changed alone, afterwards it refuses that. An INSERT or UPDATE inside a CTE, and one that sets
columns of a second table, is refused when it is compiled, unless it sets both.

Safety: the other value is bound by a parameter of its own, which takes the type of the column that it is for. Two
columns never share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, Null, Table
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.util import immutabledict

from ..errors import AdoptionError, PiiVaultError, UnsupportedOperationError
from . import checker
from .pairs import NOT_GIVEN, Pair, base_table, pairs_of

Row = Mapping[str, Any]
_Items = list[tuple[Any, Any]]

_EXPRESSION: Final = object()


def paired(statement: Any, rows: Sequence[Row], pairs: Sequence[Pair]) -> tuple[Any, list[Row]]:
    """Return a statement that sets both columns of each pair of which it sets one.

    Args:
        statement: An INSERT or UPDATE; it is not changed.
        rows: Its rows of parameters, one or more; they are not changed.
        pairs: The pairs of its table.

    Returns:
        The statement and its rows.

    Raises:
        AdoptionError: it gives the columns of a pair different values.
        UnsupportedOperationError: it gives one a value that Python does not see.
    """
    writing = _Writing(statement, list(rows))
    for pair in pairs:
        writing.complete(pair)
    return writing.statement, writing.rows


class _Writing:
    """An INSERT or UPDATE while it is completed."""

    def __init__(self, statement: Insert | Update, rows: list[Row]) -> None:
        self.statement: Any = statement
        self.rows: list[Row] = rows
        self._inserts = isinstance(statement, Insert)

    def complete(self, pair: Pair) -> None:
        """Have both columns of a pair set where one is."""
        if getattr(self.statement, "select", None) is not None:
            self._refuse_select(pair)
        in_values = self._complete_values(pair)
        in_rows = any(pair.plaintext in row or pair.sealed in row for row in self.rows)
        if in_values and in_rows:
            self._drop_from_rows(pair)
        elif in_rows or (self._inserts and pair.default is not NOT_GIVEN and not in_values):
            self.rows = self._completed_rows(pair, self.rows)
        self._complete_upsert(pair)

    # What the statement itself says.

    def _complete_values(self, pair: Pair) -> bool:
        touched = False
        for name in ("_values", "_ordered_values"):
            values = getattr(self.statement, name, None)
            if not values:
                continue
            items = list(values.items()) if hasattr(values, "items") else list(values)
            found, completed = self._completed(pair, items, self._target)
            touched |= found
            if completed is not None:
                self._put(name, immutabledict(completed) if hasattr(values, "items") else completed)
        return self._complete_multi_values(pair) or touched

    def _complete_multi_values(self, pair: Pair) -> bool:
        batches = getattr(self.statement, "_multi_values", ())
        if not batches:
            return False
        touched, made = set(), []
        for batch in batches:
            completed = []
            for row in batch:
                items = list(checker._as_mapping(self.statement, row).items())
                found, more = self._completed(pair, items, self._target)
                if not found and pair.default is not NOT_GIVEN:
                    columns = self.statement.table.c
                    more, found = [*items, *((columns[key], pair.default) for key in pair.to_add)], True
                touched.add(found)
                completed.append(dict(items if more is None else more))
            made.append(completed)
        if len(touched) > 1:
            raise _mixed(pair)
        if True in touched:
            self._put("_multi_values", tuple(made))
        return True in touched

    def _complete_upsert(self, pair: Pair) -> None:
        clause: Any = getattr(self.statement, "_post_values_clause", None)
        name = "update_values_to_set" if hasattr(clause, "update_values_to_set") else "update"
        assigned: Any = getattr(clause, name, None)
        if not assigned:
            return
        items = list(assigned.items() if hasattr(assigned, "items") else assigned)
        # Names here are those of the table, also in a statement of the ORM.
        columns = self.statement.table.c
        _, completed = self._completed(
            pair, items, lambda key: columns.get(key) if isinstance(key, str) else key, upsert=clause
        )
        if completed is not None:
            made = clause._clone()
            whole = [(key if isinstance(key, str) else key.key, value) for key, value in completed]
            setattr(made, name, dict(whole) if hasattr(assigned, "items") else whole)
            self._put("_post_values_clause", made)

    def _completed(
        self, pair: Pair, items: _Items, target: Callable[[Any], Any], upsert: Any = None
    ) -> tuple[bool, _Items | None]:
        """Complete what is assigned in one place. Say whether it names the pair, and return it if it has changed."""
        places: dict[str, int] = {}
        for place, (key, _) in enumerate(items):
            column = getattr(target(key), "key", None)
            if column in (pair.plaintext, pair.sealed):
                if column in places:
                    raise UnsupportedOperationError(f"one of {pair.names} is set twice by one statement")
                places[column] = place
        if not places:
            return False, None
        table = self.statement.table
        if len(places) == 1:
            ((key, place),) = places.items()
            twin = self._twin(pair, items[place][1], key, upsert)
            return True, [*items[: place + 1], (table.c[pair.other(key)], twin), *items[place + 1 :]]
        first, second = places[pair.plaintext], places[pair.sealed]
        plaintext, sealed = self._reconciled(pair, items[first][1], items[second][1], upsert)
        if plaintext is items[first][1] and sealed is items[second][1]:
            return True, None
        changed = list(items)
        changed[first], changed[second] = (items[first][0], plaintext), (items[second][0], sealed)
        return True, changed

    def _twin(self, pair: Pair, value: Any, key: str, upsert: Any) -> Any:
        """Return what gives the other column the value that one is given."""
        value = _element(value)
        if upsert is not None and checker.is_proposed_row(value, upsert) and value.key == key:
            return value.table.c[pair.other(key)]
        if isinstance(value, BindParameter) and value.callable is None:
            return self._second(value, pair.other(key))
        if isinstance(value, Null) or not isinstance(value, ClauseElement):
            return value
        raise _not_seen(pair)

    def _second(self, bind: Any, key: str) -> Any:
        """Return a parameter for another column that takes the same values, in that column's type."""
        made = bind._clone()
        # Not left to SQLAlchemy: in the second of many rows of values() it would bind the value as it is.
        made.type = self.statement.table.c[key].type
        made.literal_execute = False
        if not bind.unique:
            made.key = made._orig_key = name = f"pii_vault_{key}_of_{bind.key}"
            self.rows = [{**row, name: row[bind.key]} if bind.key in row else row for row in self.rows]
        return made

    def _reconciled(self, pair: Pair, plaintext: Any, sealed: Any, upsert: Any) -> tuple[Any, Any]:
        """Return what both columns are given, where both were."""
        plaintext, sealed = _element(plaintext), _element(sealed)
        if upsert is not None:
            proposed = [checker.is_proposed_row(each, upsert) and each.key for each in (plaintext, sealed)]
            if proposed == [pair.plaintext, pair.sealed]:
                return plaintext, sealed
            if any(proposed):
                raise _differ(pair)
        fills = self._inserts and upsert is None
        values = [self._given(each) for each in (plaintext, sealed)]
        if any(each is _EXPRESSION for each in values):
            raise _not_seen(pair)
        merged, filled = _merged(pair, values[0], values[1], fills=fills)
        if filled and len(merged) == 1 and all(_is_constant(each) for each in (plaintext, sealed)):
            if values[0][0] is None:
                return self._constant(sealed, pair.plaintext), sealed
            return plaintext, self._constant(plaintext, pair.sealed)
        if filled:
            columns = [self.statement.table.c[key] for key in (pair.plaintext, pair.sealed)]
            both: list[Any] = [
                BindParameter(f"pii_vault_{column.key}", type_=column.type, required=True) for column in columns
            ]
            self.rows = [
                {**row, **{bind.key: value for bind in both}} for row, value in zip(self.rows, merged, strict=True)
            ]
            return both[0], both[1]
        if isinstance(sealed, BindParameter) and not sealed.unique:
            sealed = self._second(sealed, pair.sealed)
        return plaintext, sealed

    def _constant(self, value: Any, key: str) -> Any:
        return self._second(value, key) if isinstance(value, BindParameter) else value

    def _given(self, value: Any) -> Any:
        """Return what a column is given in each row, or that nobody knows."""
        if isinstance(value, BindParameter):
            if value.callable is not None:
                return _EXPRESSION
            if value.unique:
                return [value.value] * len(self.rows)
            return [row.get(value.key, value.value) for row in self.rows]
        if isinstance(value, ClauseElement) and not isinstance(value, Null):
            return _EXPRESSION
        return [None if isinstance(value, Null) else value] * len(self.rows)

    def _target(self, key: Any) -> Any:
        return checker._target(self.statement, key)

    def _put(self, name: str, value: Any) -> None:
        self.statement = self.statement._generate()
        setattr(self.statement, name, value)

    # What the rows of parameters say.

    def _completed_rows(self, pair: Pair, rows: list[Row]) -> list[Row]:
        plaintext, sealed, inserts = pair.plaintext, pair.sealed, self._inserts
        has_default = inserts and pair.default is not NOT_GIVEN
        completed: list[Row] = []
        missing = 0
        for row in rows:
            one, other = row.get(plaintext, NOT_GIVEN), row.get(sealed, NOT_GIVEN)
            if has_default and _falls_to_default(pair, row):
                missing += 1
                completed.append({**row, **dict.fromkeys(pair.to_add, pair.default)})
            elif one is NOT_GIVEN and other is NOT_GIVEN:
                missing += 1
                completed.append(row)
            elif one is NOT_GIVEN or (inserts and one is None):
                completed.append({**row, **dict.fromkeys((plaintext, sealed), _or_none(other))})
            elif other is NOT_GIVEN or (inserts and other is None):
                completed.append({**row, sealed: one})
            elif not _equal(pair, one, other):
                raise _differ(pair)
            else:
                completed.append(row)
        if 0 < missing < len(rows):
            raise _mixed(pair)
        return completed

    def _drop_from_rows(self, pair: Pair) -> None:
        """The ORM gives None for a column that was not set, also beside an expression in the statement."""
        keys = (pair.plaintext, pair.sealed)
        if not self._inserts or any(row.get(key) is not None for row in self.rows for key in keys):
            raise UnsupportedOperationError(
                f"{pair.names} are set by values() and by parameters of one statement", hint="set them in one place"
            )
        self.rows = [{key: value for key, value in row.items() if key not in keys} for row in self.rows]

    def _refuse_select(self, pair: Pair) -> None:
        names = self.statement._select_names or ()
        targets = {getattr(self._target(name), "key", None) for name in names}
        if targets & {pair.plaintext, pair.sealed} or pair.default is not NOT_GIVEN:
            raise UnsupportedOperationError(
                f"INSERT from SELECT sets {pair.names}, of which one is sealed in Python",
                hint="select the rows, and insert them with their values",
            )


def _falls_to_default(pair: Pair, row: Row) -> bool:
    """Say whether an INSERT leaves a pair to its default: nothing is given, nor for the column that has one."""
    for key in (pair.plaintext, pair.sealed):
        if row.get(key) is not None or (key in row and key not in pair.to_add):
            return False
    return True


def _or_none(value: Any) -> Any:
    return None if value is NOT_GIVEN else value


def _equal(pair: Pair, one: Any, other: Any) -> bool:
    return one is other or pair.same(one, other)


def _merged(pair: Pair, ones: list[Any], others: list[Any], *, fills: bool) -> tuple[list[Any], bool]:
    """Return what each row is given for both columns, and whether one of them lacks it."""
    merged, filled = [], False
    for one, other in zip(ones, others, strict=True):
        if fills and (one is None) != (other is None):
            filled = True
        elif not _equal(pair, one, other):
            raise _differ(pair)
        merged.append(other if one is None else one)
    return merged, filled


def _is_constant(value: Any) -> bool:
    return not isinstance(value, BindParameter) or value.unique


def _element(value: Any) -> Any:
    return value.__clause_element__() if hasattr(value, "__clause_element__") else value


def check_complete(statement: Any, *, inside: bool) -> None:
    """Refuse, when it is compiled, a statement that sets one column of a pair where the hook has not come.

    Args:
        statement: The INSERT or UPDATE.
        inside: Whether it is inside another statement. If not, only columns of a second table are looked at.
    """
    own = base_table(statement.table)
    rows = [row for row in _assigned(statement) if row]
    for keys in rows:
        for table in {table for table, _ in keys if table is not None and (inside or table != own)}:
            for pair in pairs_of(table):
                if ((table, pair.plaintext) in keys) != ((table, pair.sealed) in keys):
                    raise _written_elsewhere(pair)
    if inside and own is not None and isinstance(statement, Insert):
        for pair in pairs_of(own):
            if pair.default is not NOT_GIVEN and not (rows and (own, pair.sealed) in rows[0]):
                raise _written_elsewhere(pair)


def _assigned(statement: Any) -> list[set[tuple[Table | None, str | None]]]:
    """Return which columns are assigned in each place of a statement, as their table and key."""
    places = [dict(getattr(statement, name, None) or ()) for name in ("_values", "_ordered_values")]
    for batch in getattr(statement, "_multi_values", ()):
        places.extend(checker._as_mapping(statement, row) for row in batch)
    columns = [[checker._target(statement, key) for key in row] for row in places]
    upsert = getattr(statement, "_post_values_clause", None)
    if upsert is not None:
        known = statement.table.c
        columns.append([known.get(key) if isinstance(key, str) else key for key, _ in checker._upserted(upsert)])
    return [{(base_table(getattr(each, "table", None)), getattr(each, "key", None)) for each in row} for row in columns]


def _written_elsewhere(pair: Pair) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"one of {pair.names} is written by a statement inside another one, or to a second table, where the other one "
        "is not added",
        hint="set both, or execute the INSERT or UPDATE of this table on its own",
    )


def _differ(pair: Pair) -> AdoptionError:
    return AdoptionError(
        f"{pair.names} are given different values, and have to be the same until the adoption is done",
        hint="set one of them: the other one is added",
    )


def _mixed(pair: Pair) -> PiiVaultError:
    return AdoptionError(
        f"some of the rows of one statement set {pair.names} and some do not",
        hint="give it in each row, None where there is no value, or execute them apart",
    )


def _not_seen(pair: Pair) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"one of {pair.names} is set to an SQL expression: what the database makes of it cannot be sealed",
        hint="compute the value in Python",
    )
