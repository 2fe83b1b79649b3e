"""Hooks on an engine: statements are checked as they are compiled, and keys are warm before values are bound.

A statement that writes one of two columns that are being made one is completed first (`pairing.py`).

The compiler of the engine's dialect is replaced by a subclass; engines derived with ``execution_options`` share the
dialect and so the checks. All I/O happens before a statement is executed, through SQLAlchemy's greenlet where there is
one, so that an event loop never waits for the KMS: keys in ``before_execute``, and what a search relies on after
compilation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary, ref

from sqlalchemy import BindParameter, Connection, Engine, ExceptionContext, Table, event
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.util import concurrency

from ..blind_index import Slot
from ..errors import ConfigurationError, PiiVaultError, ScopeError, TenantMismatchError
from ..scope import OWN_STATEMENTS, Scope, in_greenlet, no_tenant
from . import adopted_reads, checker, generated, pairing, readiness, uniqueness
from .attachment import _ATTRIBUTE, Attachment, attached
from .compiler import CheckedCompiler, reads_only
from .encrypted_type import EncryptedType
from .pairs import Pair, base_table, pairs_of

_WROTE: Final = "pii_vault.wrote"
"""Where a connection says which transaction has written, or may have: by text, nobody can tell."""

_WRITES: Final = (Insert, Update)


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
    compiler = type(f"Checked{base.__name__}", (CheckedCompiler, base), body)
    engine.dialect.statement_compiler = cast(type[SQLCompiler], compiler)
    engine.clear_compiled_cache()
    hooks = _Hooks(attachment)
    event.listen(engine, "before_execute", hooks.complete, retval=True)
    event.listen(engine, "before_execute", hooks.before_execute)
    event.listen(engine, "before_cursor_execute", hooks.before_cursor_execute, retval=True)
    event.listen(engine, "after_cursor_execute", hooks.after_cursor_execute)
    if engine.dialect.name in generated.DIALECTS:
        event.listen(engine, "handle_error", hooks.handle_error, retval=True)


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

    def complete(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, _options: Any
    ) -> tuple[Any, Any, Any]:
        """Have a statement that sets one of two columns which are being made one set both."""
        if _written(statement) is None or OWN_STATEMENTS in connection.get_execution_options():
            return statement, multiparams, params
        executed, error = self._completed(statement, multiparams, params)
        if error is not None:
            # It leaves this frame, and a traceback shows the locals of every frame.
            del statement, multiparams, params, executed
            raise error
        return executed

    def _completed(
        self, statement: Any, multiparams: Any, params: Any
    ) -> tuple[tuple[Any, Any, Any], PiiVaultError | None]:
        executed, written = (statement, multiparams, params), _written(statement)
        table = base_table(written.table)
        if table is None:
            return executed, None
        try:
            pairs = self._facts_about(table).pairs
            if not pairs:
                return executed, None
            completed, rows = pairing.paired(written, multiparams or [params or {}], pairs)
        except PiiVaultError as error:
            return executed, error.with_traceback(None)
        if written is statement:
            statement = completed
        elif completed is not written:
            statement = statement._generate()
            statement.element = completed
        return (statement, rows, {}) if len(rows) > 1 else (statement, [], rows[0]), None

    def before_execute(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, _options: Any
    ) -> None:
        """Refuse rows that name another tenant, warm the scope's keys, and count what is about to be sealed."""
        scope = self._attachment.scope()
        # The key store may work on the same engine; what fetches keys must not wait for keys.
        if scope is None or OWN_STATEMENTS in connection.get_execution_options():
            return
        refusal, need, facts, table, written = None, 0, None, None, _written(statement)
        if written is not None:
            table = base_table(written.table)
        if table is not None:
            rows, facts = multiparams or [params or {}], self._facts_about(table)
            refusal, need = _row_refusal(scope, written, facts.tenant_key, rows), facts.sealed * len(rows)
            del rows
        # Errors leave this frame from here on, and a traceback shows the locals of every frame.
        del statement, written, multiparams, params
        if scope.keyring is not self._attachment.keyring:
            raise ScopeError(f"the scope of tenant {scope.tenant!r} belongs to another vault than this engine")
        if refusal is not None:
            raise refusal
        warm(scope, need)
        if facts is not None and facts.searched:
            _declare(scope, table, facts.searched)

    def before_cursor_execute(
        self, connection: Connection, _cursor: Any, sql: str, parameters: Any, context: Any, _many: bool
    ) -> tuple[str, Any]:
        """Refuse a statement on encrypted columns without a scope, even one that would find no row."""
        self._check(connection, sql, context)
        return sql, parameters  # a listener that returns nothing costs a call more

    def _check(self, connection: Connection, sql: str, context: Any) -> None:
        compiled = context.compiled
        if not (reads_only(sql) if compiled is None else getattr(compiled, "only_reads", False)):
            connection.info[_WROTE] = _transaction(connection)
        if compiled is None or context.isddl:
            return
        if not isinstance(compiled, CheckedCompiler):
            raise ConfigurationError("a statement was compiled for another engine, and so goes unchecked here")
        if compiled.adopted_reads:
            adopted_reads.require(self._attachment.keyring, compiled.adopted_reads)
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
                lasting=not _has_written(connection),
                schemas=context.execution_options.get("schema_translate_map"),
            )
        if compiled.unique_values and context.isinsert:
            self._refuse_duplicates(connection, scope, context, others=0)

    def after_cursor_execute(
        self, connection: Connection, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        """Refuse an UPDATE that has made two rows of one unique value, where the database cannot see it."""
        compiled = context.compiled
        if isinstance(compiled, CheckedCompiler) and compiled.unique_values and context.isupdate:
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

    def _facts_about(self, table: Table) -> _Facts:
        facts = self._facts.get(table)
        if facts is None:
            kinds = [column.type for column in table.columns if isinstance(column.type, EncryptedType)]
            searched = tuple((str(kind.context), kind.slots) for kind in kinds if kind.slots)
            owner = tenant_key(table, self._attachment.tenant_column)
            facts = self._facts[table] = _Facts(owner, len(kinds), searched, pairs_of(table))
        return facts


def _written(statement: Any) -> Any:
    """Return the INSERT or UPDATE that is executed, also one of whose rows the ORM makes objects; else None."""
    if isinstance(statement, FromStatement):
        statement = statement.element
    return statement if isinstance(statement, _WRITES) else None


def _transaction(connection: Connection) -> Any:
    """Return what tells a connection's transaction from its next one, without keeping it alive."""
    transaction = connection.get_transaction()
    return transaction and ref(transaction)


def _has_written(connection: Connection) -> bool:
    """Say whether the transaction has written; not an earlier one, in which the connection was used too."""
    return _WROTE in connection.info and connection.info[_WROTE] == _transaction(connection)


class _Facts(NamedTuple):
    """What the hooks need to know of a table.

    Attributes:
        tenant_key: The key of its tenant column, or None.
        sealed: How many encrypted columns it has.
        searched: The columns with tokens: their contexts and slots.
        pairs: The columns that are written together, because one adopts the other.
    """

    tenant_key: str | None
    sealed: int
    searched: tuple[tuple[str, tuple[Slot | None, ...]], ...]
    pairs: tuple[Pair, ...]


def _declare(scope: Scope, table: Any, searched: tuple[tuple[str, tuple[Slot | None, ...]], ...]) -> None:
    """Have it written down what a table's values will hold in their slots, before the first is sealed."""
    keyset = scope.keyset or scope.renew()
    if table not in keyset.declared:
        declare = partial(scope.keyring.declare, keyset)
        if all(readiness.off_the_loop(partial(declare, context, slots)) for context, slots in searched):
            keyset.declared.add(table)


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
