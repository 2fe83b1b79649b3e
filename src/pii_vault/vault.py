"""Vault: the object that an application builds once. Every method delegates to the floor below that does the work."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import URL, Engine, MetaData

from . import primitives
from .adoption.adopt import Adoption, adoptions
from .audit.ledger import Ledger
from .audit.reading import AuditLog
from .errors import ConfigurationError
from .key_life import KeyLife
from .keyring import Clock, Keyring, Terms
from .keys import KeyRecord, Policy, TenantRecord
from .keystore import KeyStore, Snapshot
from .keystore.engine import open_engine
from .kms import KmsKey, KmsLifecycle
from .kms.measured import MeasuredKms
from .lifecycle import ending, erasure, registration
from .lifecycle.ending import Destruction
from .lifecycle.erasure import KeyDeletion
from .lifecycle.evidence import Erasure, Remains
from .lifecycle.parts import Parts
from .onboarding.onboard import Onboarding
from .orm.attachment import Attachment, attached
from .orm.engine import attach_engine
from .orm.session import attach_session
from .reencryption import indexing
from .reencryption.coverage import Coverage, coverage, remains, values_under
from .reencryption.crews import Crew, Part, PartDone
from .reencryption.indexing import Built, IndexRotation, IndexStatus
from .reencryption.pacing import BATCH, Pace
from .reencryption.reencrypt import Reencryption, reencrypt, reencrypt_part
from .reencryption.running import Progress
from .report.facts import Report
from .report.gathering import report
from .report.stored import tables_of
from .scope import ReencryptionScope, Scope
from .telemetry import telemetry


class Vault(KeyLife):
    """Encrypted columns for many tenants, each under a key in its own KMS.

    Args:
        database: The key store's database: a URL with a synchronous driver, or an engine. The application's own
            database or another; the vault uses connections of its own either way.
        kms: Where the customers' keys are: `AwsKms`, or `LocalKms` for development.
        schema: PostgreSQL's schema that the key store has for itself in that database; None for where the search path
            of the connections leads. The application's own tables and statements have nothing to do with it.
        platform_key: The full ARN of a KMS key of our own, not a customer's: the audit key lies under it, and the keys
            of tenants that have no KMS key yet. Needed by whatever changes keys; `LocalKms` brings its own.
        ttl: Seconds for which a tenant's keys stay in memory after the KMS was last asked; 0 asks in every scope.
        grace: Seconds for which they may be used beyond that while the KMS or the key store cannot be reached. A
            refusal ends them at once. Both together are the bound that customers get, and at most half a day.
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
        schema: str | None = None,
        platform_key: str | None = None,
        ttl: float = 300.0,
        grace: float = 0.0,
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
        self._store: Final = KeyStore(self._engine, schema)
        own_platform_key = getattr(kms, "platform_key", None)
        told = telemetry()
        kms = MeasuredKms(kms, told)
        self._keyring: Final = Keyring(self._store, kms, terms=Terms(ttl, grace), clock=clock, telemetry=told)
        if platform_key is None and own_platform_key is not None:
            platform_key = own_platform_key()
        ledger = Ledger(self._store, kms, platform_key, actor=actor or _user(), now=now)
        super().__init__(Parts(self._store, kms, self._keyring, ledger, rotation_days))
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
        `PiiEncryptionDisabledError`, `TenantErasedError`, `KmsDeniedError`, `KmsUnavailableError`, `KeyStoreError` …
        """
        return Scope(self._keyring, name)

    def add_tenant(
        self,
        name: str,
        *,
        key: str | None = None,
        role_arn: str | None = None,
        external_id: str | None = None,
        shared_key: bool = False,
        rotation_days: int | None = None,
        follows_kms: bool = False,
        pii_encryption: bool = True,
        replica_regions: Sequence[str] = (),
    ) -> TenantRecord:
        """Register a tenant and make its first keys in its KMS. Doing it again changes nothing.

        Args:
            name: How the application calls the tenant; 1 to 255 characters.
            key: The full ARN of the tenant's KMS key; None for the platform's, until the tenant brings one (`rewrap`).
            role_arn: The role in the customer's account to assume, if any.
            external_id: The ExternalId for that role.
            shared_key: Whether another tenant may have the same KMS key: two of one customer's, say.
            rotation_days: How often its data key is rotated, 1 to 3650 days; None for the vault's default.
            follows_kms: Whether it is rotated as often as the KMS key is, and whenever that was.
            pii_encryption: Whether PII encryption is on for it. Off, it gets its keys, and nothing is sealed with them
                until `set_pii_encryption`.
            replica_regions: Where a multi-Region KMS key has replicas, as for `set_replica_regions`.

        Raises:
            TenantExistsError: the name is registered with another KMS key.
            ConfigurationError: the KMS key is another tenant's, or no platform key is configured.
            KeyValidationError: the KMS key, or the new data key, did not pass a check.
            KmsError: the KMS does not do it; nothing is registered then.
        """
        if not 1 <= len(name) <= 255:
            raise ConfigurationError("a tenant's name has 1 to 255 characters")
        address = (
            self._parts.ledger.platform_key
            if key is None
            else KmsKey(key, role_arn, external_id, tuple(replica_regions))
        )
        policy = Policy("", "", rotation_days, follows_kms, pii_encryption=pii_encryption)
        return registration.add_tenant(self._parts, name, address, policy, shared_key=shared_key)

    def onboarding(self, tenant: str) -> Onboarding:
        """Return a customer's way from an AWS account to its first key; docs/onboarding.md tells it.

        Args:
            tenant: The tenant's name. It need not be registered.
        """
        return Onboarding(self._parts, tenant)

    def tenants(self, *, even_erased: bool = False) -> list[str]:
        """Return the names of all tenants that are not erased. There is no scope for several: jobs go one by one.

        Args:
            even_erased: Name those too that are: their audit logs stay.
        """
        return self._store.names(even_erased=even_erased)

    def destroy_key(
        self, tenant: str, version: int, *, metadata: MetaData, engine: Engine, reason: str = "", dry_run: bool = False
    ) -> Destruction:
        """Drop a data key's wrapped bytes from the live key store, if nothing that it sealed is left. Final.

        Args:
            tenant: The tenant's name.
            version: The version.
            metadata: The application's tables; they are searched for values that the key has sealed.
            engine: On the application's database.
            reason: Why, for the audit log.
            dry_run: Make every check, and change nothing.

        Returns:
            The key's record, and what holds from now on, also against backups.

        Raises:
            KeyStateError: values are left, or the key is in use, or was until a day ago.
        """

        def rows(snapshot: Snapshot, record: KeyRecord) -> dict[str, int]:
            return values_under(engine, metadata, snapshot.tenant.identity.keyset_id, record.version)

        return ending.destroy(self._parts, tenant, version, reason, rows, dry_run=dry_run)

    def erase(
        self,
        tenant: str,
        *,
        reason: str = "",
        metadata: MetaData | None = None,
        engine: Engine | None = None,
        key_deletion: KeyDeletion | None = None,
        dry_run: bool = False,
    ) -> Erasure:
        """Destroy all keys of a tenant in the live key store, so that nothing it sealed opens again. Final.

        Other processes follow within 5 seconds of use. Called again, it changes nothing and tells the same. The
        tenant's name stays taken, and its audit log is kept.

        Args:
            tenant: The tenant's name.
            reason: Why, for the audit log.
            metadata: The application's tables, to count what is left in them; None if nobody is to look.
            engine: On the application's database; together with `metadata`.
            key_deletion: Have the tenant's KMS key deleted too, where it is our own.
            dry_run: Make every check, tell what would be destroyed, and change nothing.

        Returns:
            What was destroyed, and what backups and tokens still mean.

        Raises:
            ConfigurationError: the KMS key is not ours to delete, and nothing was destroyed; or a table cannot be read,
                and it was. Called again, it tells the rest.
        """

        def left(snapshot: Snapshot) -> tuple[Remains, ...]:
            assert engine is not None
            assert metadata is not None
            return remains(engine, metadata, snapshot.tenant.identity.keyset_id)

        if (metadata is None) != (engine is None):
            raise ConfigurationError("metadata and engine belong together", hint="name both, or none")
        return erasure.erase(
            self._parts,
            tenant,
            reason,
            remains=left if metadata is not None else None,
            key_deletion=key_deletion,
            dry_run=dry_run,
        )

    def reencrypt(
        self,
        tenant: str,
        *,
        metadata: MetaData,
        engine: Engine,
        batch: int = BATCH,
        rate: float | None = None,
        max_lag: float | None = None,
        crew: Crew | None = None,
        dry_run: bool = False,
        progress: Progress = lambda table, done, total: None,
    ) -> Reencryption:
        """Seal every value of a tenant with its ACTIVE data key, while the application goes on writing.

        Rows are written by compare and swap, in batches, each a transaction of its own. Ended in any way and called
        again, it goes on where it was: what is left is read off the values' headers.

        Args:
            tenant: The tenant's name.
            metadata: The application's tables.
            engine: On the application's database.
            batch: How many rows at a time.
            rate: How many rows a second at most.
            max_lag: For how many seconds a replica of the database may not have seen what was written before more is.
                PostgreSQL only.
            crew: Who does it: `LocalCrew` for processes of this machine, `DaskCrew` for a cluster. None: this thread.
            dry_run: Count what is left, reckon how long it would take, and write nothing.
            progress: Told a table, how many of its rows are done, and of how many.

        Returns:
            What is left. It is complete only when nothing is, a day after the rotation.
        """
        pace = Pace(batch, rate, max_lag)
        with self._reaching(engine, ReencryptionScope(self._keyring, tenant)) as scope:
            return reencrypt(self._parts, engine, scope, metadata, progress, pace, crew, dry_run=dry_run)

    def reencrypt_part(self, part: Part, *, metadata: MetaData, engine: Engine) -> PartDone:
        """Do what a worker of a crew is given: a part of a re-encryption that somebody else has cut.

        Done twice it changes nothing the second time. No key is in it: this vault asks the tenant's KMS itself.

        Args:
            part: The part.
            metadata: The application's tables.
            engine: On the application's database.
        """
        with self._reaching(engine, ReencryptionScope(self._keyring, part.tenant)) as scope:
            return reencrypt_part(engine, scope, metadata, part)

    def coverage(
        self,
        *,
        metadata: MetaData,
        engine: Engine,
        tenant: str | None = None,
        estimate: bool = False,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Coverage:
        """Count where which data key seals stored values, and what is stored that no known key has sealed.

        It is counted inside the database, one query a table, and no KMS is asked.

        Args:
            metadata: The application's tables.
            engine: On the application's database.
            tenant: Count only what this tenant's keys have sealed.
            estimate: On PostgreSQL, look only at a sample of each large table. A key that sealed little may be missed.
            progress: Told how many tables are done, of how many.

        Raises:
            ConfigurationError: the metadata holds no encrypted column, or a table of it cannot be read.
            TenantNotFoundError: nobody has this name.
        """
        return coverage(self._store, engine, metadata, tenant=tenant, estimate=estimate, progress=progress)

    def report(
        self,
        tenant: str,
        *,
        metadata: MetaData | None = None,
        engine: Engine | None = None,
        tenant_column: str | None = None,
        processes: int | None = None,
        ask_kms: bool = True,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Report:
        """Gather what a customer may know about the protection of its data; `report.page.page` shows it as HTML.

        Args:
            tenant: The tenant's name; it may be suspended or erased.
            metadata: The application's tables, to count values in; None to count none.
            engine: On the application's database; together with `metadata`.
            tenant_column: The column that says whose row it is: what is not sealed is counted in the tenant's rows.
            processes: How many processes the application runs as, to reckon KMS requests a day.
            ask_kms: Whether the customer's KMS is asked; every check on its key is made then.
            progress: Told how many tables are done, of how many.
        """
        tables = tables_of(engine, metadata, tenant_column, progress)
        return report(self._parts, self.audit, tenant, tables=tables, processes=processes, ask_kms=ask_kms)

    def index_status(self, tenant: str, *, metadata: MetaData, engine: Engine) -> list[IndexStatus]:
        """Say how far each index and token is for a tenant: how many values lack theirs, and whether it is searched.

        Args:
            tenant: The tenant's name.
            metadata: The application's tables.
            engine: On the application's database.
        """
        with self._reaching(engine, self.tenant(tenant)) as scope:
            return indexing.status(engine, scope, metadata)

    def build_index(
        self,
        tenant: str,
        *,
        metadata: MetaData,
        engine: Engine,
        progress: Progress = lambda table, done, total: None,
    ) -> Built:
        """Give every value of a tenant the tokens that its column declares, while the application goes on writing.

        Rows are written by compare and swap, in batches. Ended in any way and called again, it goes on where it was.

        Args:
            tenant: The tenant's name.
            metadata: The application's tables.
            engine: On the application's database.
            progress: Told a table, how many of its rows are done, and of how many.
        """
        with self._reaching(engine, self.tenant(tenant)) as scope:
            return indexing.build(engine, scope, metadata, progress)

    def rotate_index(
        self,
        tenant: str,
        *,
        metadata: MetaData,
        engine: Engine,
        reason: str = "",
        progress: Progress = lambda table, done, total: None,
    ) -> IndexRotation:
        """Do the next step of replacing a tenant's index key. Call it again when it says so, until it is finished.

        Values are found throughout. Columns are not compared with each other, and not grouped, until it is finished.

        Args:
            tenant: The tenant's name.
            metadata: The application's tables: all that have tokens, or values would not be found any longer.
            engine: On the application's database.
            reason: Why, for the audit log.
            progress: Told a table, how many of its rows are done, and of how many.
        """
        with self._reaching(engine, self.tenant(tenant)) as scope:
            return indexing.rotate(self._parts, engine, scope, metadata, reason, progress)

    def drop_index(self, tenant: str, context: str, slot: int) -> bool:
        """Let a slot of a column be searched no longer, so that writers need not know it; False if it was not searched.

        Args:
            tenant: The tenant's name.
            context: The column's context id.
            slot: The slot.
        """
        self._store.load(tenant)  # refuses one that is erased
        dropped = self._store.unset_ready(tenant, context, slot)
        self._keyring.evict(tenant)
        return dropped

    def adoption(
        self,
        context: str,
        *,
        metadata: MetaData,
        engine: Engine,
        tenant_column: str | None = None,
        tenant: str | None = None,
    ) -> Adoption:
        """Return the adoption of a plaintext column by a sealed one: where it stands, its next step, the one back.

        Args:
            context: The context id of the sealed column, by default that of the plaintext column: ``customers.email``.
            metadata: The application's tables.
            engine: On the application's database, as a user who may create triggers there.
            tenant_column: The column that says whose row it is; by default the one that the engine is attached with.
            tenant: The tenant of all rows, where no column says it; by default the application's only one.

        Raises:
            AdoptionError: no model declares it, and it was never begun.
            ConfigurationError: a model declares it wrongly.
        """
        attachment = attached(engine.dialect)
        column = tenant_column or (attachment.tenant_column if attachment is not None and tenant is None else None)
        return Adoption(self._parts, self.tenant, tenant or self.default_tenant, engine, metadata, context, column)

    def adoptions(self, metadata: MetaData) -> list[str]:
        """Return the names of all adoptions: those that models declare with ``adopting``, and those that were begun."""
        return adoptions(self._parts, metadata)

    @contextmanager
    def _reaching(self, engine: Engine, scope: Scope) -> Iterator[Scope]:
        """Attach an engine that is not, and enter a scope."""
        if attached(engine.dialect) is None:
            attach_engine(engine, Attachment(self._keyring, self._default, None))
        with scope:
            yield scope

    @property
    def default_tenant(self) -> str | None:
        """The tenant of an application that has only one, or None."""
        return self._default.tenant if self._default is not None else None

    @property
    def platform_key(self) -> str:
        """The full ARN of the platform's KMS key.

        Raises:
            ConfigurationError: none is configured.
        """
        return self._parts.ledger.platform_key.arn

    @property
    def audit(self) -> AuditLog:
        """The audit log: read it, verify it, anchor its end elsewhere."""
        return AuditLog(self._store, self._parts.kms, self._parts.ledger)

    def evict(self, tenant: str) -> None:
        """Forget a tenant's keys: the next use asks its KMS. No KMS is asked for that.

        This process forgets them at once, open scopes included. The others are asked to through the key store, where
        each that is in use looks every 5 seconds.

        Raises:
            TenantNotFoundError: nobody has this name.
            KeyStoreError: the key store cannot be written: only this process has forgotten them.
        """
        self._keyring.evict_everywhere(tenant)

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
