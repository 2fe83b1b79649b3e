"""The scope: who is the tenant now.

One context variable holds it, so it follows the code through calls, threads' own contexts and asyncio tasks. Column
types, statement and session hooks read it from here and know no vault. Reads take the tenant from the scope, never from
a header; there is no scope that covers several tenants.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final

from sqlalchemy.util import concurrency

from .envelope import parse
from .errors import KeyNotFoundError, NoTenantError, ScopeError
from .keyring import Keyring, coroutines
from .keystore import OWN_STATEMENTS as OWN_STATEMENTS  # noqa: PLC0414
from .sealing import Keyset

current: Final[ContextVar[Scope | None]] = ContextVar("pii_vault_scope", default=None)


class Scope:
    """A tenant's scope, from `Vault.tenant`; enter it once, with ``with`` or ``async with``.

    Entering it fetches the tenant's keyset; while it lasts, an expired keyset is fetched again when it is needed.

    Args:
        keyring: Where keysets come from.
        tenant: The tenant's name.
    """

    __slots__ = ("_keyring", "_token", "keyset", "tenant")

    def __init__(self, keyring: Keyring, tenant: str) -> None:
        self._keyring: Final = keyring
        self._token: Token[Scope | None] | None = None
        self.tenant: Final = tenant
        self.keyset: Keyset | None = None

    def __repr__(self) -> str:
        return f"<Scope of tenant {self.tenant!r}>"

    def __enter__(self) -> Scope:
        self.keyset = self._keyring.cached(self.tenant)
        self.get_ready()
        return self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def __aenter__(self) -> Scope:
        self.keyset = self._keyring.cached(self.tenant)
        await self.become_ready()
        return self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def keyring(self) -> Keyring:
        """The keyring behind this scope: it tells two vaults apart."""
        return self._keyring

    def is_ready(self, need: int = 0) -> bool:
        """Say whether the scope can be used now, and `need` values sealed in it, without asking anybody."""
        keyset = self.keyset
        return (
            keyset is not None
            and self._keyring.fresh(keyset)
            and not self._keyring.is_due(keyset)
            and (not need or keyset.allowance.enough(need))
        )

    def get_ready(self, need: int = 0) -> None:
        """Fetch a keyset if there is no fresh one or it is time to, and the right to seal `need` values with it."""
        keyset = self.keyset = self._keyring.renewed(self.renew())
        self._keyring.provide(keyset, need)

    async def become_ready(self, need: int = 0) -> None:
        """Do what `get_ready` does, for a coroutine: the event loop goes on meanwhile."""
        keyring = self._keyring
        if keyring.is_behind():
            await asyncio.to_thread(keyring.catch_up)
        keyset = self.keyset
        if keyset is None or not keyring.fresh(keyset):
            keyset = await coroutines.get(keyring, self.tenant)
        self.keyset = keyset = coroutines.renewed(keyring, keyset)
        if not keyset.allowance.enough(need):
            await asyncio.to_thread(keyring.provide, keyset, need)

    def renew(self) -> Keyset:
        """Return a fresh keyset, asking key store and KMS when the present one has expired or was evicted."""
        keyring = self._keyring
        if keyring.is_behind():
            if in_greenlet():
                concurrency.await_only(asyncio.to_thread(keyring.catch_up))
            elif not _on_event_loop():  # there, the next statement asks
                keyring.catch_up()
        keyset = self.keyset
        if keyset is None or not keyring.fresh(keyset):
            if in_greenlet():
                keyset = concurrency.await_only(coroutines.get(keyring, self.tenant))
            else:
                keyset = keyring.get(self.tenant)
            self.keyset = keyset
        return keyset

    def open_(self, context: str, sealed: bytes) -> tuple[int, bytes]:
        """Open a value by the careful way: renew what has expired, look once for a version that is not known yet.

        Returns:
            The codec id and the encoded plaintext.
        """
        keyset = self.renew()
        try:
            opened = keyset.open_(context, sealed)
        except KeyNotFoundError:
            # Another process may have rotated: one look at the key store, then the answer is final.
            version = parse(sealed).version
            newer = self._keyring.newer(keyset, version) if version not in keyset.ended else keyset
            if newer is keyset:
                raise
            keyset = self.keyset = newer
            opened = keyset.open_(context, sealed)
        self._keyring.saw(keyset, parse(sealed).version)
        return opened

    def _begin(self) -> Scope:
        if self._token is not None:
            raise ScopeError("a scope is entered once", hint="call vault.tenant() again for another scope")
        self._token = current.set(self)
        return self

    def _end(self) -> None:
        token, self._token = self._token, None
        if token is None:
            return
        # A scope that is not the innermost one would, by its token, bring back a tenant whose scope was left before.
        if current.get() is self:
            try:
                current.reset(token)
            except ValueError:
                pass
            else:
                return
        current.set(None)
        raise ScopeError(
            f"the scope of tenant {self.tenant!r} was left in another context than it was entered in, or out of order",
            hint="do not hold a scope open across a yield; enter and leave it in the same function",
        )


class ReencryptionScope(Scope):
    """The scope of the re-encryption job, which alone opens what compromised keys have sealed. Synchronous only."""

    __slots__ = ()

    def __enter__(self) -> Scope:
        self.renew()
        return self._begin()

    def get_ready(self, need: int = 0) -> None:
        """Fetch a keyset if there is no fresh one, and the right to seal `need` values with it."""
        self._keyring.provide(self.renew(), need)

    def renew(self) -> Keyset:
        """Return a fresh keyset of the job's own."""
        if self._keyring.is_behind():
            self._keyring.catch_up()
        keyset = self.keyset
        while keyset is None or not self._keyring.fresh(keyset):
            keyset = self.keyset = self._keyring.for_reencryption(self.tenant)
        return keyset

    def open_(self, context: str, sealed: bytes) -> tuple[int, bytes]:
        """Open a value; look once for a version that is not known yet."""
        keyset, version = self.renew(), parse(sealed).version
        if version not in keyset.versions and version not in keyset.ended:
            keyset = self.keyset = self._keyring.for_reencryption(self.tenant)
        opened = keyset.open_(context, sealed)
        self._keyring.saw(keyset, version)
        return opened


def in_greenlet() -> bool:
    """Say whether SQLAlchemy runs this for a coroutine; nothing does where greenlet, which is optional, is missing."""
    return sys.modules.get("greenlet") is not None and concurrency.in_greenlet()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def no_tenant() -> NoTenantError:
    """Return the error that says that no tenant is in scope."""
    return NoTenantError(
        "an encrypted column is used while no tenant is in scope", hint="use it inside `with vault.tenant(name):`"
    )
