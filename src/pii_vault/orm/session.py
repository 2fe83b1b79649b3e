"""Hooks on sessions: rows are the scope's tenant's, and a session serves one tenant at a time.

Before a flush the tenant column of new rows is filled, and a row of another tenant is refused before anything is
written. At its first use inside a scope a session is pinned to that tenant until its transaction ends. What the
identity map still holds of an earlier tenant is refused, also where no event would fire: ``get``, ``merge``,
many-to-one.
"""

from __future__ import annotations

import sys
from typing import Any, Final
from weakref import ReferenceType, WeakKeyDictionary, ref

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Mapper, Session, SessionTransaction, scoped_session, sessionmaker
from sqlalchemy.orm.identity import IdentityMap
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql import visitors

from ..errors import ConfigurationError, TenantMismatchError, UnsupportedOperationError
from ..scope import Scope, no_tenant
from .attachment import Attachment
from .encrypted_type import EncryptedType
from .engine import tenant_refusal, warm
from .search import translate
from .tokens import encrypted_column

_ATTACHMENT: Final = "pii_vault_attachment"
_PIN: Final = "pii_vault.pin"
_LAST: Final = "pii_vault.last"
_OWNER: Final = "pii_vault.owner"


def attach_session(target: Any, attachment: Attachment) -> None:
    """Attach a Session or AsyncSession class, a maker of either, a scoped session or one session.

    Attaching twice changes nothing.

    Raises:
        ConfigurationError: the target is none of these, or is attached to another vault or for another tenant column.
    """
    sessions = _sessions_of(target)
    known = getattr(sessions, _ATTACHMENT, None)
    if known is not None:
        if known != attachment:
            raise ConfigurationError("the session is attached already, to another vault or for another tenant column")
        return
    setattr(sessions, _ATTACHMENT, attachment)
    hooks = _SessionHooks(attachment)
    event.listen(sessions, "do_orm_execute", hooks.do_orm_execute)
    event.listen(sessions, "before_flush", hooks.before_flush)
    event.listen(sessions, "after_begin", hooks.after_begin)
    event.listen(sessions, "after_transaction_end", hooks.after_transaction_end)


def session_attachment(target: Any) -> Attachment | None:
    """Return the attachment of what `attach_session` takes, or None; nothing is changed.

    Raises:
        ConfigurationError: the target is none of these.
    """
    found: Attachment | None = getattr(_sessions_of(target, changing=False), _ATTACHMENT, None)
    return found


def _sessions_of(target: Any, *, changing: bool = True) -> Any:
    """Return what SQLAlchemy's session events take: a Session class, or one session."""
    # It needs greenlet, which an application without asynchronous sessions need not have.
    asynchronous: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None:
        if isinstance(target, asynchronous.async_scoped_session):
            return _sessions_of(target.session_factory, changing=changing)
        if isinstance(target, asynchronous.async_sessionmaker):
            made = target.kw.get("sync_session_class") or target.class_.sync_session_class
            if not changing:
                return made
            target.configure(sync_session_class=_own_class(made))
            return _sessions_of(target.kw["sync_session_class"])
        if asynchronous.AsyncSession in getattr(target, "__mro__", ()):
            if not changing:
                return target.sync_session_class
            target.sync_session_class = _own_class(target.sync_session_class)
            return _sessions_of(target.sync_session_class)
        if isinstance(target, asynchronous.AsyncSession):
            return target.sync_session
    if isinstance(target, scoped_session):
        return _sessions_of(target.session_factory, changing=changing)
    if isinstance(target, sessionmaker):
        return target.class_
    if isinstance(target, Session) or (isinstance(target, type) and issubclass(target, Session)):
        return target
    raise ConfigurationError(
        f"a {type(target).__name__} cannot be attached",
        hint="attach engines, Session classes, sessionmakers and sessions, or the asynchronous kinds of these",
    )


def _own_class(sessions: Any) -> Any:
    """Return a class for one maker alone: hooks on a shared class would be on every session of the program."""
    if not isinstance(sessions, type) or hasattr(sessions, _ATTACHMENT):
        return sessions
    return type(sessions.__name__, (sessions,), {})


def sealed_columns(mapper: Mapper[Any]) -> bool:
    """Say whether a mapped class has an encrypted column."""
    return any(isinstance(getattr(column, "type", None), EncryptedType) for column in mapper.columns)


class _SessionHooks:
    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._sealed: WeakKeyDictionary[Mapper[Any], bool] = WeakKeyDictionary()

    def do_orm_execute(self, execution: Any) -> None:
        scope = self._attachment.scope()
        if scope is None:
            return
        self.pin(execution.session, scope)
        if execution.is_select:
            options = execution.load_options
            for state in (options._lazy_loaded_from, options._refresh_state):
                if state is not None and self.is_sealed(state):
                    self._check_owner(state, scope)
        elif (execution.is_update or execution.is_delete) and not execution.is_from_statement:
            _ask_the_database(execution)

    def after_begin(self, session: Session, _transaction: SessionTransaction, _connection: Any) -> None:
        scope = self._attachment.scope()
        if scope is not None:
            self.pin(session, scope)
        _guard(session, self)

    def after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.info.pop(_PIN, None)

    def before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        # States, not objects: a traceback shows the locals of every frame, and an object may show its values.
        states: list[InstanceState[Any]] = [
            *(inspect(each) for each in session.new),
            *(inspect(each) for each in session.dirty if session.is_modified(each)),
            *(inspect(each) for each in session.deleted),
        ]
        mine = [state for state in states if self.is_sealed(state)]
        if not mine:
            return
        scope = self._attachment.scope()
        if scope is None:
            raise no_tenant()
        self.pin(session, scope)
        warm(scope)
        for state in mine:
            self._check_owner(state, scope)
            self._fill_or_check(session, state, scope)

    def pin(self, session: Session, scope: Scope) -> None:
        """Pin a session to the scope's tenant for the rest of its transaction.

        Raises:
            TenantMismatchError: it is pinned to another tenant.
        """
        pinned = session.info.get(_PIN)
        if pinned is None:
            last = session.info.get(_LAST)
            if last != scope.tenant:
                if last is not None:
                    _remember_owner(session, last)
                session.info[_LAST] = scope.tenant
            # Outside a transaction nothing would end the pin; after_begin comes back.
            if session.in_transaction():
                session.info[_PIN] = scope.tenant
        elif pinned != scope.tenant:
            raise TenantMismatchError(
                f"this session works for another tenant than {scope.tenant!r} until its transaction ends",
                hint="commit, roll back or close it first, or use one session for each tenant",
            )

    def is_sealed(self, state: InstanceState[Any]) -> bool:
        """Say whether an object's class has an encrypted column."""
        mapper = state.mapper
        known = self._sealed.get(mapper)
        if known is None:
            known = self._sealed[mapper] = sealed_columns(mapper)
        return known

    def check_hit(self, session: Session, state: InstanceState[Any]) -> None:
        """Refuse an object that the identity map still holds of another tenant, or that is asked for in no scope."""
        if not self.is_sealed(state):
            return
        scope = self._attachment.scope()
        if scope is None:
            raise no_tenant()
        if session.info.get(_LAST) != scope.tenant:
            self.pin(session, scope)
        self._check_owner(state, scope)

    def _check_owner(self, state: InstanceState[Any], scope: Scope) -> None:
        owner = state.info.get(_OWNER) if "info" in state.__dict__ else None
        if owner is not None and owner != scope.tenant:
            raise TenantMismatchError(
                f"a {state.mapper.class_.__name__} in this session was loaded for another tenant than {scope.tenant!r}",
                hint="use one session for each tenant, or session.expunge_all() between them",
            )

    def _fill_or_check(self, session: Session, state: InstanceState[Any], scope: Scope) -> None:
        key = _tenant_attribute(state.mapper, self._attachment.tenant_column)
        if key is None:
            return
        if state.key is None and state.dict.get(key) is None:
            setattr(state.obj(), key, _as_column_value(state.mapper, key, scope.tenant))
        refusal = tenant_refusal(scope, state.mapper.local_table.description, _tenants_of(session, state, key))
        if refusal is not None:
            raise refusal


def _ask_the_database(execution: Any) -> None:
    """Let the ORM not decide in Python which objects an UPDATE or DELETE met, where it compares encrypted columns.

    It would compare their values as they are, and knows of no normaliser.
    """
    how = execution.update_delete_options._synchronize_session
    if how not in ("auto", "evaluate"):
        return
    for condition in execution.statement._where_criteria:
        for each in visitors.iterate(condition):
            found = translate(each)
            if found is None or found.by_value:
                continue
            if how == "evaluate":
                raise UnsupportedOperationError(
                    f"a comparison of {encrypted_column(found.token)!r} cannot be evaluated in Python as the database "
                    "does it",
                    hint="leave out synchronize_session='evaluate', or say 'fetch'",
                )
            execution.update_execution_options(synchronize_session="fetch")
            return


def _tenant_attribute(mapper: Mapper[Any], tenant_column: str | None) -> str | None:
    if tenant_column is None:
        return None
    for column in mapper.columns:
        if getattr(column, "name", None) == tenant_column:
            return mapper.get_property_by_column(column).key
    return None


def _as_column_value(mapper: Mapper[Any], key: str, tenant: str) -> Any:
    """Turn the tenant's name into what its column holds: a string, or for example an integer or a UUID."""
    value: Any = None
    python_type: Any = str
    try:
        python_type = mapper.columns[key].type.python_type
        value = python_type(tenant)
    except (NotImplementedError, TypeError, ValueError):
        pass
    if value is None or str(value) != tenant:
        raise ConfigurationError(
            f"the tenant name {tenant!r} cannot be stored in {mapper.class_.__name__}.{key}, a {python_type.__name__}"
        )
    return value


def _tenants_of(session: Session, state: InstanceState[Any], key: str) -> list[Any]:
    """Return whose row an object is to be and, if it is stored, whose it is now.

    The stored tenant is not known of an expired object, or when the column was not loaded: then the database is asked,
    since the object alone could make another tenant's row one of the scope's.
    """
    history = state.attrs[key].history
    known = [*history.added, *history.unchanged, *history.deleted]
    if state.key is None or history.unchanged or history.deleted:
        return known
    mapper = state.mapper
    identity = zip(mapper.primary_key, state.key[1], strict=True)
    stored = session.execute(
        select(mapper.columns[key]).select_from(mapper).where(*(column == value for column, value in identity))
    ).first()
    return known if stored is None else [*known, stored[0]]


def _remember_owner(session: Session, owner: str) -> None:
    """Mark what the identity map holds as the earlier tenant's; marked objects keep their mark."""
    for state in session.identity_map.all_states():
        state.info.setdefault(_OWNER, owner)


def _guard(session: Session, hooks: _SessionHooks) -> None:
    """Put the guarded class on the session's identity map; after close() a session has a new one."""
    identity_map: Any = session.identity_map
    if not isinstance(identity_map, _Guarded):
        identity_map.__class__ = _guarded_class(type(identity_map))
        identity_map.guarded_by = (ref(session), hooks)


class _Guarded:
    """An identity map that asks before it hands out an object.

    There is no event when ``Session.get``, ``merge`` or a many-to-one reference finds its object in the identity map,
    so the map itself is the only place to refuse it.
    """

    guarded_by: tuple[ReferenceType[Session], _SessionHooks]

    def get(self, key: Any, default: Any = None) -> Any:
        self._check(key)
        return super().get(key, default)  # type: ignore[misc]

    def __getitem__(self, key: Any) -> Any:
        self._check(key)
        return super().__getitem__(key)  # type: ignore[misc]

    def _check(self, key: Any) -> None:
        state = self.fast_get_state(key)  # type: ignore[attr-defined]
        session, hooks = self.guarded_by[0](), self.guarded_by[1]
        if state is not None and session is not None:
            hooks.check_hit(session, state)


_classes: dict[type[IdentityMap], type[IdentityMap]] = {}


def _guarded_class(base: type[IdentityMap]) -> type[IdentityMap]:
    if base not in _classes:
        _classes[base] = type(f"Guarded{base.__name__}", (_Guarded, base), {})
    return _classes[base]
