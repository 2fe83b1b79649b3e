"""Vault: the object that an application builds once. Every method delegates to the floor below that does the work."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import URL, Engine

from . import primitives
from .audit.ledger import Ledger
from .errors import ConfigurationError
from .keyring import Clock, Keyring
from .keys import TenantRecord
from .keystore import KeyStore
from .keystore.engine import open_engine
from .kms import KmsKey, KmsLifecycle
from .lifecycle import registration, rotation
from .lifecycle.parts import Parts, Reason
from .lifecycle.rotation import Rotation
from .orm.attachment import Attachment
from .orm.engine import attach_engine
from .orm.session import attach_session
from .scope import Scope


class Vault:
    """Encrypted columns for many tenants, each under a key in its own KMS.

    Args:
        database: The key store's database: a URL with a synchronous driver, or an engine. The application's own
            database or another; the vault uses connections of its own either way.
        kms: Where the customers' keys are: `AwsKms`, or `LocalKms` for development.
        platform_key: The full ARN of a KMS key of our own, not a customer's: the audit key lies under it, and the keys
            of tenants that have no KMS key yet. Needed by whatever changes keys; `LocalKms` brings its own.
        ttl: Seconds for which a tenant's keys stay in memory after the KMS was last asked; 0 asks in every scope.
        rotation_days: How often data keys are rotated, for tenants that name no period of their own.
        actor: Who is written into the audit log as the one who asked; the system's user by default.
        default_tenant: The tenant of an application that has only one; then no scope is needed.
        clock: The clocks that keys expire by.
        now: The present instant in UTC, for records.
    """

    def __init__(
        self,
        database: str | URL | Engine,
        *,
        kms: KmsLifecycle,
        platform_key: str | None = None,
        ttl: float = 300.0,
        rotation_days: int = 365,
        actor: str | None = None,
        default_tenant: str | None = None,
        clock: Clock | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._owns_engine: Final = not isinstance(database, Engine)
        self._engine: Final = database if isinstance(database, Engine) else open_engine(database)
        check_database = getattr(kms, "check_database", None)
        if check_database is not None:
            check_database(self._engine.url)
        self._store: Final = KeyStore(self._engine)
        self._keyring: Final = Keyring(self._store, kms, ttl=ttl, clock=clock)
        own_platform_key = getattr(kms, "platform_key", None)
        if platform_key is None and own_platform_key is not None:
            platform_key = own_platform_key()
        ledger = Ledger(self._store, kms, platform_key, actor=actor or _user(), now=now)
        self._parts: Final = Parts(self._store, kms, self._keyring, ledger, rotation_days)
        self._default: Final = Scope(self._keyring, default_tenant) if default_tenant is not None else None

    def __repr__(self) -> str:
        return f"<Vault on {self._engine.url.render_as_string(hide_password=True)}>"

    def create_all(self) -> None:
        """Create the key store's tables where they are missing, and give the application its uid."""
        self._store.create_all(primitives.random_uid, self._parts.now())

    def attach(self, *targets: Any, tenant_column: str | None = None) -> None:
        """Attach engines and sessions, once, right after they are made.

        An engine's statements are checked when they are compiled, and keys are warm before values are bound. A session
        fills the tenant column of new rows, refuses rows of other tenants, and serves one tenant per transaction.

        Args:
            targets: Engine, AsyncEngine, Session class, sessionmaker, async_sessionmaker, or a session.
            tenant_column: The name of the column that says whose row it is. Its values are the tenants' names.

        Raises:
            ConfigurationError: a target is none of these, or is attached to another vault.
        """
        attachment = Attachment(self._keyring, self._default, tenant_column)
        for target in targets:
            engine = getattr(target, "sync_engine", target)
            if isinstance(engine, Engine):
                attach_engine(engine, attachment)
            else:
                attach_session(target, attachment)

    def tenant(self, name: str) -> Scope:
        """Return a scope in which `name` is the tenant: ``with vault.tenant("acme"):``, or ``async with``.

        Entering it raises what fetching the tenant's keys raises: `TenantNotFoundError`, `TenantSuspendedError`,
        `KmsDeniedError`, `KmsUnavailableError`, `KeyStoreError` …
        """
        return Scope(self._keyring, name)

    def add_tenant(
        self, name: str, *, key: str, role_arn: str | None = None, external_id: str | None = None
    ) -> TenantRecord:
        """Register a tenant and make its first keys in its KMS. Doing it again changes nothing.

        Args:
            name: How the application calls the tenant; 1 to 255 characters.
            key: The full ARN of the tenant's KMS key.
            role_arn: The role in the customer's account to assume, if any.
            external_id: The ExternalId for that role.

        Raises:
            TenantExistsError: the name is registered with another KMS key.
            KmsError: the KMS does not do it; nothing is registered then.
        """
        if not 1 <= len(name) <= 255:
            raise ConfigurationError("a tenant's name has 1 to 255 characters")
        return registration.add_tenant(self._parts, name, KmsKey(key, role_arn, external_id))

    def tenants(self) -> list[str]:
        """Return the names of all tenants. There is no scope for several: jobs go tenant by tenant."""
        return [tenant.name for tenant in self._store.tenants()]

    def rotate(self, tenant: str, reason: Reason = Reason.FORCED) -> Rotation:
        """Make a new data-key version ACTIVE, at once. Rows are not touched; old ones stay readable."""
        return rotation.rotate(self._parts, tenant, reason)

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keys in this process; the next use asks the KMS."""
        self._keyring.evict(tenant)

    def suspend(self, tenant: str, reason: str = "") -> None:
        """Let a tenant neither seal nor open until it is resumed; other processes follow within their time to live."""
        registration.set_suspended(self._parts, tenant, True, reason)

    def resume(self, tenant: str, reason: str = "") -> None:
        """End a tenant's suspension."""
        registration.set_suspended(self._parts, tenant, False, reason)

    def close(self) -> None:
        """Close the vault's own connections, and report uses of keys that were not counted yet."""
        self._keyring.settle()
        if self._owns_engine:
            self._engine.dispose()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
