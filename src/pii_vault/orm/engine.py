"""Hooks on an engine: statements are checked as they are compiled, and keys are warm before values are bound.

The compiler of the engine's dialect is replaced by a subclass; engines derived with ``execution_options`` share the
dialect and so the checks. All I/O happens in ``before_execute``, through SQLAlchemy's greenlet where there is one, so
that an event loop never waits for the KMS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, Connection, Engine, ExceptionContext, Table, event
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.util import concurrency

from ..blind_index import Slot
from ..errors import ConfigurationError, PiiVaultError, ScopeError, TenantMismatchError, UnsupportedOperationError
from ..scope import OWN_STATEMENTS, Scope, in_greenlet, no_tenant
from . import checker, generated, readiness, search, uniqueness
from .attachment import _ATTRIBUTE, Attachment, attached
from .comparator import refused
from .processors import Asked
from .tokens import Lookup, Sought, TokenOf
from .types import EncryptedType

_WROTE: Final = "pii_vault.wrote"
"""Where a connection says that its transaction has written, or may have: by text, nobody can tell."""


class _CheckedCompiler(SQLCompiler):
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

    _granted: tuple[Any, ...] = ()
    """The columns that may be sealed in the position being rendered."""

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
        results = (entry[3] for entry in self._result_columns)
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
        with self._within(False), self._grant(*checker.proposed_values(insert_stmt)):
            return super().visit_insert(insert_stmt, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_update(self, update_stmt: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = False
        checker.check_update(update_stmt)
        # The targets of its assignments are rendered as columns; all else in it has just been checked.
        with self._within(False), self._grant(*update_stmt.table.columns):
            return super().visit_update(update_stmt, *args, **kw)

    def visit_delete(self, delete_stmt: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = False
        checker.check_delete(delete_stmt)
        with self._within(False):
            return super().visit_delete(delete_stmt, *args, **kw)  # type: ignore[no-untyped-call]

    def _label_select_column(self, select: Any, column: Any, *args: Any, **kw: Any) -> Any:
        # Every column of a SELECT and of RETURNING.
        with self._grant(checker.check_projected(column)):
            return super()._label_select_column(select, column, *args, **kw)  # type: ignore[no-untyped-call]

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
        self.only_reads = self.only_reads and (bool(self.stack) or _reads(textclause.text))
        return super().visit_textclause(textclause, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_textual_select(self, taf: Any, *args: Any, **kw: Any) -> Any:
        self.only_reads = self.only_reads and _reads(taf.element.text)
        # Its columns tell how to read what the text selects; they are not rendered.
        with self._grant(*taf.column_args):
            return super().visit_textual_select(taf, *args, **kw)  # type: ignore[no-untyped-call]

    def visit_binary(self, binary: Any, *args: Any, **kw: Any) -> Any:
        found = search.translate(binary)
        if found is None:
            with self._grant(checker.granted_by(binary)):
                return super().visit_binary(binary, *args, **kw)  # type: ignore[no-untyped-call]
        before, self._looks_up = self._looks_up, found.by_value
        try:
            return super().visit_binary(found.binary, *args, **kw)  # type: ignore[no-untyped-call]
        finally:
            self._looks_up = before

    def visit_function(self, func: Any, *args: Any, **kw: Any) -> str:
        if not isinstance(func, TokenOf):
            with self._grant(checker.granted_by(func)):
                return super().visit_function(func, *args, **kw)
        self.relies_on(func)
        with self._grant(func.column):
            return super().visit_function(func, *args, **kw)

    def relies_on(self, token: TokenOf) -> None:
        """Note that the statement relies on each value of a column having its token."""
        if self.statement is not None:  # else an index is made
            self.searched |= {search.searched(token)}
            self.compares_tokens |= not self._looks_up

    def visit_bindparam(self, bindparam: Any, *args: Any, **kw: Any) -> Any:
        known = self.binds.get(bindparam.key)
        if known is not None and _purpose(known) != _purpose(bindparam):
            raise UnsupportedOperationError(
                f"the parameter {bindparam.key!r} stands for two things: a value that is stored or compared, and what "
                "a column is searched for",
                hint="give the search a parameter of its own",
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
        return super().visit_column(column, *args, **kw)

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


def attach_engine(engine: Engine, attachment: Attachment) -> None:
    """Attach an engine: check what it compiles, warm keys before it executes. Attaching twice changes nothing.

    Raises:
        ConfigurationError: the engine is attached to another vault, or for another tenant column.
    """
    known = attached(engine.dialect)
    if known is not None:
        if known != attachment:
            raise ConfigurationError("the engine is attached already, to another vault or for another tenant column")
        return
    base = engine.dialect.statement_compiler
    body = {_ATTRIBUTE: attachment}
    # The mix-in comes first, the dialect's compiler stays behind it.
    compiler = type(f"Checked{base.__name__}", (_CheckedCompiler, base), body)
    engine.dialect.statement_compiler = cast(type[SQLCompiler], compiler)
    engine.clear_compiled_cache()
    hooks = _Hooks(attachment)
    event.listen(engine, "before_execute", hooks.before_execute)
    event.listen(engine, "before_cursor_execute", hooks.before_cursor_execute)
    event.listen(engine, "after_cursor_execute", hooks.after_cursor_execute)
    if engine.dialect.name in generated.DIALECTS:
        event.listen(engine, "handle_error", hooks.handle_error, retval=True)
    for end in ("commit", "rollback", "commit_twophase", "rollback_twophase"):
        event.listen(engine, end, hooks.ended)


def warm(scope: Scope, need: int = 0) -> None:
    """Make the scope ready, and for sealing `need` values, off the event loop where there is one."""
    if scope.is_ready(need):
        return
    if in_greenlet():
        concurrency.await_only(scope.become_ready(need))
    else:
        scope.get_ready(need)


class _Hooks:
    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._facts: WeakKeyDictionary[Table, _Facts] = WeakKeyDictionary()

    def before_execute(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, _options: Any
    ) -> None:
        """Refuse rows that name another tenant, warm the scope's keys, and count what is about to be sealed."""
        scope = self._attachment.scope()
        # The key store may work on the same engine; what fetches keys must not wait for keys.
        if scope is None or OWN_STATEMENTS in connection.get_execution_options():
            return
        refusal, need, facts, table = None, 0, None, None
        if isinstance(statement, Insert | Update) and isinstance(statement.table, Table):
            table = statement.table
            rows, facts = multiparams or [params or {}], self._facts_about(table)
            refusal, need = _row_refusal(scope, statement, facts.tenant_key, rows), facts.sealed * len(rows)
            del rows
        # Errors leave this frame from here on, and a traceback shows the locals of every frame.
        del statement, multiparams, params
        if scope.keyring is not self._attachment.keyring:
            raise ScopeError(f"the scope of tenant {scope.tenant!r} belongs to another vault than this engine")
        if refusal is not None:
            raise refusal
        warm(scope, need)
        if facts is not None and facts.searched:
            _declare(scope, table, facts.searched)

    def before_cursor_execute(
        self, connection: Connection, _cursor: Any, sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        """Refuse a statement on encrypted columns without a scope, even one that would find no row."""
        compiled = context.compiled
        if not (_reads(sql) if compiled is None else getattr(compiled, "only_reads", False)):
            connection.info[_WROTE] = True
        if compiled is None or context.isddl:
            return
        if not isinstance(compiled, _CheckedCompiler):
            raise ConfigurationError("a statement was compiled for another engine, and so goes unchecked here")
        if not compiled.touches_sealed:
            return
        scope = self._attachment.scope()
        if scope is None:
            raise no_tenant()
        if compiled.searched:
            readiness.require(
                connection,
                scope,
                compiled.searched,
                self._attachment.tenant_column,
                compares_tokens=compiled.compares_tokens,
                lasting=_WROTE not in connection.info,
                schemas=context.execution_options.get("schema_translate_map"),
            )
        if compiled.unique_values and context.isinsert:
            self._refuse_duplicates(connection, scope, context, others=0)

    def after_cursor_execute(
        self, connection: Connection, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        """Refuse an UPDATE that has made two rows of one unique value, where the database cannot see it."""
        compiled = context.compiled
        if isinstance(compiled, _CheckedCompiler) and compiled.unique_values and context.isupdate:
            scope = self._attachment.scope()
            if scope is not None:
                self._refuse_duplicates(connection, scope, context, others=1)

    def _refuse_duplicates(self, connection: Connection, scope: Scope, context: Any, *, others: int) -> None:
        if len(scope.renew().index_generations) < 2:
            return  # the database's own index sees them
        types, rows = context.compiled.unique_values, context.compiled_parameters
        tenant_column = self._attachment.tenant_column
        schemas = context.execution_options.get("schema_translate_map")
        error = uniqueness.check(
            connection, scope, types, rows, others=others, tenant_column=tenant_column, schemas=schemas
        )
        del rows
        del context
        if error is not None:
            raise error

    def handle_error(self, context: ExceptionContext) -> ConfigurationError | None:
        """Say what is missing where MariaDB knows only that it is called pii_vault_email_0."""
        return generated.missing(context.original_exception)

    def ended(self, connection: Connection, *_: Any) -> None:
        """Forget that a transaction has written, when it has ended."""
        if not connection.invalidated and not connection.closed:
            connection.info.pop(_WROTE, None)

    def _facts_about(self, table: Table) -> _Facts:
        facts = self._facts.get(table)
        if facts is None:
            kinds = [column.type for column in table.columns if isinstance(column.type, EncryptedType)]
            searched = tuple((str(kind.context), kind.slots) for kind in kinds if kind.slots)
            owner = tenant_key(table, self._attachment.tenant_column)
            facts = self._facts[table] = _Facts(owner, len(kinds), searched)
        return facts


class _Facts(NamedTuple):
    """What the hooks need to know of a table.

    Attributes:
        tenant_key: The key of its tenant column, or None.
        sealed: How many encrypted columns it has.
        searched: The columns with tokens: their contexts and slots.
    """

    tenant_key: str | None
    sealed: int
    searched: tuple[tuple[str, tuple[Slot | None, ...]], ...]


def _declare(scope: Scope, table: Any, searched: tuple[tuple[str, tuple[Slot | None, ...]], ...]) -> None:
    """Have it written down what a table's values will hold in their slots, before the first is sealed."""
    keyset = scope.keyset or scope.renew()
    if table not in keyset.declared:
        declare = partial(scope.keyring.declare, keyset)
        if all(readiness.off_the_loop(partial(declare, context, slots)) for context, slots in searched):
            keyset.declared.add(table)


def _reads(sql: str) -> bool:
    """Say whether a text reads only. Many an application begins each transaction with a SET."""
    return sql.lstrip("( \t\r\n").upper().startswith(("SELECT ", "SELECT\n", "SET ", "SHOW ", "PRAGMA ", "SAVEPOINT "))


def _purpose(bind: Any) -> Any:
    kind = bind.type
    return (kind.slot.index, kind.slot.form, kind.pair) if isinstance(kind, Lookup) else None


def _row_refusal(
    scope: Scope, statement: Any, key: str | None, rows: Sequence[Mapping[str, Any]]
) -> TenantMismatchError | None:
    if key is None:
        return None
    tenants = [row[key] for row in rows if key in row]
    for value in _values_in(statement, key):
        tenants.extend(_bound(value, rows))
    return tenant_refusal(scope, statement.table.name, tenants)


def tenant_key(table: Table, tenant_column: str | None) -> str | None:
    """Return the key of the tenant column of a table with encrypted columns, or None."""
    if tenant_column is None or not any(isinstance(column.type, EncryptedType) for column in table.columns):
        return None
    return next((column.key for column in table.columns if column.name == tenant_column), None)


def tenant_refusal(scope: Scope, table: str, tenants: Iterable[Any]) -> TenantMismatchError | None:
    """Return the error for rows whose tenant column names another tenant than the scope, whom it does not name."""
    if all(str(each) == scope.tenant for each in tenants):
        return None
    return TenantMismatchError(
        f"a row of {table!r} belongs to another tenant than {scope.tenant!r}, which is in scope",
        hint="write it inside `with vault.tenant(...)` of its own tenant",
    )


def _values_in(statement: Any, column: str) -> Iterator[Any]:
    """Yield what the statement itself assigns to a column."""
    upsert = statement._post_values_clause if isinstance(statement, Insert) else None
    proposed = checker.proposed_values(statement) if upsert is not None else []
    assigned: list[Any] = [
        statement._values,
        getattr(statement, "_ordered_values", None),
        getattr(upsert, "update_values_to_set", None) or getattr(upsert, "update", None),
    ]
    for rows in getattr(statement, "_multi_values", None) or ():
        assigned.extend(checker._as_mapping(statement, row) for row in rows)
    for values in assigned:
        for key, value in dict(values or ()).items():
            if getattr(checker._target(statement, key), "key", None) != column:
                continue
            if not any(value is each for each in proposed):
                yield value


def _bound(value: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the values that a bound parameter takes in the rows of parameters; a plain value is its own."""
    if not isinstance(value, BindParameter):
        return [value]
    given = [row[value.key] for row in rows if value.key in row]
    return given if given or value.required else [value.effective_value]
