"""Hooks on sessions: rows are the scope's tenant's, and a session serves one tenant at a time.

Before a flush the tenant column of new rows is filled, and a row of another tenant is refused before anything is
written. At its first use inside a scope a session is pinned to that tenant until its transaction ends. What the identity
map still holds of an earlier tenant is refused where no event would fire: ``get``, ``merge``, many-to-one.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.orm.identity import IdentityMap
from sqlalchemy.orm.state import InstanceState

from ..errors import ConfigurationError, TenantMismatchError
from ..scope import Scope, no_tenant
from .attachment import Attachment
from .engine import check_tenant, warm
from .types import EncryptedType

_PIN: Final = "pii_vault.pin"
_LAST: Final = "pii_vault.last"
_OWNER: Final = "pii_vault.owner"


def attach_session(target: Any, attachment: Attachment) -> None:
    """Attach a Session class, a sessionmaker or one session."""
    hooks = _SessionHooks(attachment)
    event.listen(target, "do_orm_execute", hooks.do_orm_execute)
    event.listen(target, "before_flush", hooks.before_flush)
    event.listen(target, "after_begin", hooks.after_begin)
    event.listen(target, "after_transaction_end", hooks.after_transaction_end)


def sealed_columns(mapper: Mapper[Any]) -> bool:
    """Say whether a mapped class has an encrypted column."""
    return any(isinstance(getattr(column, "type", None), EncryptedType) for column in mapper.columns)


class _SessionHooks:
    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._sealed: dict[Mapper[Any], bool] = {}

    def do_orm_execute(self, state: Any) -> None:
        scope = self._attachment.scope()
        if scope is not None:
            self.pin(state.session, scope)

    def after_begin(self, session: Session, _transaction: SessionTransaction, _connection: Any) -> None:
        scope = self._attachment.scope()
        if scope is not None:
            self.pin(session, scope)
        _guard(session, self)

    def after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.info.pop(_PIN, None)

    def before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        changed = [each for each in session.dirty if session.is_modified(each)]
        mine = [each for each in (*session.new, *changed, *session.deleted) if self.is_sealed(inspect(each))]
        if not mine:
            return
        scope = self._attachment.scope()
        if scope is None:
            raise no_tenant()
        self.pin(session, scope)
        warm(scope)
        for each in mine:
            state: InstanceState[Any] = inspect(each)
            self._check_owner(state, scope)
            self._fill_or_check(state, scope, is_new=each in session.new)

    def pin(self, session: Session, scope: Scope) -> None:
        """Pin a session to the scope's tenant for the rest of its transaction.

        Raises:
            TenantMismatchError: it is pinned to another tenant.
        """
        pinned = session.info.get(_PIN)
        if pinned is None:
            last = session.info.get(_LAST)
            if last is not None and last != scope.tenant:
                _remember_owner(session, last)
            session.info[_PIN] = session.info[_LAST] = scope.tenant
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
        last = session.info.get(_LAST)
        if last != scope.tenant:
            self.pin(session, scope)
        self._check_owner(state, scope)

    def _check_owner(self, state: InstanceState[Any], scope: Scope) -> None:
        owner = state.info.get(_OWNER) if "info" in state.__dict__ else None
        if owner is not None and owner != scope.tenant:
            raise TenantMismatchError(
                f"a {state.mapper.class_.__name__} in this session was loaded for another tenant than {scope.tenant!r}",
                hint="use one session for each tenant, or session.expunge_all() between them",
            )

    def _fill_or_check(self, state: InstanceState[Any], scope: Scope, *, is_new: bool) -> None:
        key = _tenant_attribute(state.mapper, self._attachment.tenant_column)
        if key is None:
            return
        value = state.dict.get(key)
        if value is None and is_new:
            setattr(state.obj(), key, _as_column_value(state.mapper, key, scope.tenant))
        elif key in state.dict:
            check_tenant(scope, state.mapper.local_table.name, value)
        history = state.attrs[key].history
        if not is_new and history.deleted:
            check_tenant(scope, state.mapper.local_table.name, history.deleted[0])


def _tenant_attribute(mapper: Mapper[Any], tenant_column: str | None) -> str | None:
    if tenant_column is None:
        return None
    for column in mapper.columns:
        if getattr(column, "name", None) == tenant_column:
            return mapper.get_property_by_column(column).key
    return None


def _as_column_value(mapper: Mapper[Any], key: str, tenant: str) -> Any:
    """Turn the tenant's name into what its column holds: a string, or for example an integer or a UUID."""
    python_type: Any = mapper.columns[key].type.python_type
    if python_type is str:
        return tenant
    try:
        return python_type(tenant)
    except (TypeError, ValueError):
        pass
    raise ConfigurationError(
        f"the tenant name {tenant!r} cannot be stored in {mapper.class_.__name__}.{key}, a {python_type.__name__}"
    )


def _remember_owner(session: Session, owner: str) -> None:
    """Mark what the identity map holds as the earlier tenant's; marked objects keep their mark."""
    for state in session.identity_map.all_states():
        state.info.setdefault(_OWNER, owner)


def _guard(session: Session, hooks: _SessionHooks) -> None:
    """Put the guarded class on the session's identity map; after close() a session has a new one."""
    identity_map: Any = session.identity_map
    if not isinstance(identity_map, _Guarded):
        base = type(identity_map)
        identity_map.__class__ = _guarded_class(base)
        identity_map.guarded_by = (session, hooks)


class _Guarded:
    """An identity map that asks before it hands out an object.

    There is no event when ``Session.get``, ``merge`` or a many-to-one reference finds its object in the identity map,
    so the map itself is the only place to refuse it.
    """

    guarded_by: tuple[Session, _SessionHooks]

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)  # type: ignore[misc]
        if found is not None and found is not default:
            session, hooks = self.guarded_by
            hooks.check_hit(session, inspect(found))
        return found

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)  # type: ignore[misc]
        session, hooks = self.guarded_by
        hooks.check_hit(session, inspect(found))
        return found


_classes: dict[type[IdentityMap], type[IdentityMap]] = {}


def _guarded_class(base: type[IdentityMap]) -> type[IdentityMap]:
    if base not in _classes:
        _classes[base] = type(f"Guarded{base.__name__}", (_Guarded, base), {})
    return _classes[base]
