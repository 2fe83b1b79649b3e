"""The compiler of an attached engine: it asks the checker, and renders what a column is searched for as tokens.

It is mixed in front of the dialect's own compiler, so it sees every statement on its way to text, after the ORM has
worked on it. What it learns about a statement stays with the compiled form, for the engine's hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.sql.compiler import SQLCompiler

from ..errors import PiiVaultError, UnsupportedOperationError
from . import adopted_reads, checker, pairing, search, uniqueness
from .attachment import _ATTRIBUTE
from .comparator import refused
from .encrypted_type import EncryptedType
from .processors import Asked
from .tokens import Lookup, Sought, TokenOf


class CheckedCompiler(SQLCompiler):
    """The part that is mixed in front of a dialect's own compiler."""

    touches_sealed: bool = False
    """Whether executing the statement binds or reads sealed values, and so needs a scope."""

    only_reads: bool = True
    """Whether the statement writes nothing."""

    searched: frozenset[search.Searched] = frozenset()
    """The slots that the statement relies on: each value has its token there."""

    compares_tokens: bool = False
    """Whether tokens are compared with each other, so that all have to be of one generation of index keys."""

    unique_values: Mapping[str, Any] = {}
    """The parameters that write columns with a unique index, and the columns' types."""

    adopted_reads: frozenset[adopted_reads.AdoptedRead] = frozenset()
    """What the statement reads of columns that adopt others, whose values may not all be there."""

    _granted: tuple[Any, ...] = ()
    """The columns that may be sealed in the position being rendered."""

    _falling_back: Any = None
    """The selected column in whose place the plaintext is rendered where it is NULL."""

    _returns_rows: bool = True
    """Whether the rows of the SELECT being rendered are what is returned, and nothing is concluded of them."""

    _looks_up: bool = False
    """Whether the tokens being rendered are compared with values."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        refusal = None
        try:
            super().__init__(*args, **kw)
        except PiiVaultError as error:
            # A traceback shows the locals of every frame, and a bound parameter shows its value.
            refusal = error.with_traceback(None)
        if refusal is not None:
            del args, kw
            raise refusal
        results = [entry[3] for entry in self._result_columns]
        for kind in results:
            self._reads(kind, falls_back=getattr(kind, "falls_back", False))
        binds = (bind.type for bind in getattr(self, "binds", {}).values())
        if self.isinsert or self.isupdate:
            self.unique_values = uniqueness.written(self.binds, getattr(self, _ATTRIBUTE).tenant_column)
        self.touches_sealed = any(isinstance(kind, EncryptedType | Lookup) for kind in (*results, *binds)) or bool(
            self.searched
        )

    def _compose_select_body(self, text: str, select: Any, compile_state: Any, *args: Any, **kw: Any) -> Any:
        # Every SELECT passes here on its way to text, however deep, after the ORM has worked on it.
        labels = compile_state._label_resolve_dict[0]
        checker.check_select(select, labels, self.dialect.name, candidates=self._returns_rows)
        return super()._compose_select_body(text, select, compile_state, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_select(self, select_stmt: Any, asfrom: bool = False, *args: Any, **kw: Any) -> Any:
        in_union = kw.get("compound_index") is not None
        with self._within(asfrom or in_union or not self.stack):
            return super().visit_select(select_stmt, asfrom, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_compound_select(self, cs: Any, asfrom: bool = False, *args: Any, **kw: Any) -> Any:
        labels = {column.key: column for column in cs.selects[0].exported_columns}
        checker.check_compound(cs, labels)
        in_union = kw.get("compound_index") is not None
        with self._within(cs.keyword.name.startswith("UNION") and (asfrom or in_union or not self.stack)):
            return super().visit_compound_select(cs, asfrom, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_cte(self, cte: Any, *args: Any, **kw: Any) -> Any:
        with self._within(False):  # it is rendered once, and may be used anywhere
            return super().visit_cte(cte, *args, **kw)

    def visit_insert(self, insert_stmt: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = False
        checker.check_insert(insert_stmt)
        pairing.check_complete(insert_stmt, inside=self._is_inside(kw))
        with self._within(False), self._grant(*checker.proposed_values(insert_stmt)):
            return super().visit_insert(insert_stmt, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_update(self, update_stmt: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = False
        checker.check_update(update_stmt)
        pairing.check_complete(update_stmt, inside=self._is_inside(kw))
        # The targets of its assignments are rendered as columns; all else in it has just been checked.
        with self._within(False), self._grant(*update_stmt.table.columns):
            return super().visit_update(update_stmt, *args, **kw)

    def visit_delete(self, delete_stmt: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = False
        checker.check_delete(delete_stmt)
        with self._within(False):
            return super().visit_delete(delete_stmt, *args, **kw)  # type: ignore[no-untyped-call]

    def _is_inside(self, kw: Mapping[str, Any]) -> bool:
        return bool(self.stack) or kw.get("visiting_cte") is not None

    def _label_select_column(self, select: Any, column: Any, *args: Any, **kw: Any) -> Any:
        # Every column of a SELECT and of RETURNING.
        bare = checker.check_projected(column)
        before, self._falling_back = self._falling_back, None
        if getattr(getattr(bare, "type", None), "falls_back", False):
            self._falling_back = bare
            if adopted_reads.plaintext_beside(bare) is None and not adopted_reads.has_fallen_back(bare):
                self._reads(bare.type)
        try:
            with self._grant(bare):
                return super()._label_select_column(select, column, *args, **kw)  # type: ignore[no-untyped-call]
        finally:
            self._falling_back = before

    def visit_join(self, join: Any, *args: Any, **kw: Any) -> Any:
        checker.check_join(join)
        return super().visit_join(join, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_values(self, element: Any, *args: Any, **kw: Any) -> Any:
        with self._grant(*element.columns):  # their names
            return super().visit_values(element, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_table_valued_column(self, element: Any, **kw: Any) -> Any:
        checker.check_row(element.scalar_alias)
        return super().visit_table_valued_column(element, **kw)  # type: ignore[no-untyped-call]

    def visit_textclause(self, textclause: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = self.only_reads and (bool(self.stack) or reads_only(textclause.text))
        return super().visit_textclause(textclause, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_textual_select(self, taf: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = self.only_reads and reads_only(taf.element.text)
        # Its columns tell how to read what the text selects; they are not rendered.
        for column in taf.column_args:
            self._reads(column.type)
        with self._grant(*taf.column_args):
            return super().visit_textual_select(taf, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_binary(self, binary: Any, *args: Any, **kw: Any) -> Any:
        found = search.translate(binary)
        if found is None:
            tested = checker.granted_by(binary)
            self._reads(getattr(tested, "type", None))
            with self._grant(tested):
                return super().visit_binary(binary, *args, **kw)  # type: ignore[no-untyped-call]
        before, self._looks_up = self._looks_up, found.by_value
        try:
            return super().visit_binary(found.binary, *args, **kw)  # type: ignore[no-untyped-call]
        finally:
            self._looks_up = before

    def visit_function(self, func: Any, *args: Any, **kw: Any) -> str:
        if not isinstance(func, TokenOf):
            counted = checker.granted_by(func)
            self._reads(getattr(counted, "type", None))
            with self._grant(counted):
                return super().visit_function(func, *args, **kw)
        self.relies_on(func)
        with self._grant(func.column):
            return super().visit_function(func, *args, **kw)

    def relies_on(self, token: TokenOf) -> None:
        """Note that the statement relies on each value of a column having its token."""
        if self.statement is not None:  # else an index is made
            self.searched |= {search.searched(token)}
            self._reads(token.column.type)
            self.compares_tokens |= not self._looks_up

    def visit_bindparam(self, bindparam: Any, *args: Any, **kw: Any) -> Any:
        known = self.binds.get(bindparam.key)
        if known is not None and _purpose(known) != _purpose(bindparam):
            raise UnsupportedOperationError(
                f"the parameter {bindparam.key!r} stands for two things: a value that is stored or compared, and what "
                "a column is searched for",
                hint="give the search a parameter of its own",
            )
        if known is not None and _sealed_for(known) != _sealed_for(bindparam):
            raise UnsupportedOperationError(
                f"the parameter {bindparam.key!r} stands for values of two columns, of which one is encrypted: both "
                "would be bound in one way, sealed or as they are",
                hint="give each column a parameter of its own",
            )
        return super().visit_bindparam(bindparam, *args, **kw)  # type: ignore[no-untyped-call]

    def _process_parameters_for_postcompile(self, parameters: Any, *args: Any, **kw: Any) -> Any:
        # Called with the values of each execution: a list that is searched for is longer while two generations live.
        scope = getattr(self, _ATTRIBUTE).scope()
        if scope is not None and scope.keyset is not None and len(scope.keyset.index_generations) > 1:
            for bind in self.post_compile_params:
                name = self.bind_names[bind]
                if isinstance(bind.type, Lookup) and name in parameters:
                    parameters[name] = [Asked(value, later) for value in parameters[name] for later in (False, True)]
        return super()._process_parameters_for_postcompile(parameters, *args, **kw)

    def visit_type_coerce(self, type_coerce: Any, **kw: Any) -> Any:
        with self._grant(checker.granted_by(type_coerce)):
            return super().visit_type_coerce(type_coerce, **kw)  # type: ignore[no-untyped-call]

    def visit_column(self, column: Any, *args: Any, **kw: Any) -> str:
        if not any(column is each for each in self._granted) and checker.sealed(column):
            raise refused("an expression of", column)
        sealed = super().visit_column(column, *args, **kw)
        plaintext = adopted_reads.plaintext_beside(column) if column is self._falling_back else None
        if plaintext is None:
            return sealed
        beside = super().visit_column(plaintext, include_table=kw.get("include_table", True))
        # Not CASE: in RETURNING, SQLite (3.40.1) can take an IS NULL for false that is true.
        return f"COALESCE({sealed}, {adopted_reads.marked(self.dialect.name, beside)})"

    def _reads(self, kind: Any, *, falls_back: bool = False) -> None:
        """Note that values of a type are read."""
        self.adopted_reads |= frozenset(adopted_reads.read_of(kind, falls_back=falls_back))

    @contextmanager
    def _within(self, returned: bool) -> Iterator[None]:
        before = self._returns_rows
        self._returns_rows = before and returned
        try:
            yield
        finally:
            self._returns_rows = before

    @contextmanager
    def _grant(self, *columns: Any) -> Iterator[None]:
        before, self._granted = self._granted, columns
        try:
            yield
        finally:
            self._granted = before

    def render_literal_value(self, value: Any, type_: Any) -> str:
        if isinstance(type_, EncryptedType | Lookup | Sought):
            # The type's own literal_processor must not raise: SQLAlchemy would wrap it together with the plaintext.
            del value
            raise UnsupportedOperationError(
                "a value of an encrypted column is not rendered into SQL text", hint="do not use literal_binds"
            )
        return super().render_literal_value(value, type_)


def reads_only(sql: str) -> bool:
    """Say whether a text reads only. Many an application begins each transaction with a SET."""
    return sql.lstrip("( \t\r\n").upper().startswith(("SELECT ", "SELECT\n", "SET ", "SHOW ", "PRAGMA ", "SAVEPOINT "))


def _sealed_for(bind: Any) -> str | None:
    return bind.type.context if isinstance(bind.type, EncryptedType) else None


def _purpose(bind: Any) -> Any:
    kind = bind.type
    return (kind.slot.index, kind.slot.form, kind.pair) if isinstance(kind, Lookup) else None
