"""The application under test: one table, and values that anybody can work out again.

A value follows from its row's plain columns, so that whoever reads it knows what it must be: another tenant's, another
row's or an older one is a wrong value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.soaking.plan import ATTEMPTS, CONNECT_TIMEOUT, READ_TIMEOUT, Plan
from sqlalchemy import BigInteger, Engine, Index, String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pii_vault import AwsKms, EncryptedString, Vault

MARK: Final = "plaintext of"
"""What every value begins with, and no stored one may contain."""


class Base(DeclarativeBase): ...


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = (Index("notes_of_tenant", "tenant_id", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    number: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int]
    body: Mapped[str] = mapped_column(EncryptedString())


def value_of(tenant: str, number: int, revision: int) -> str:
    """Return what stands in a row."""
    digest = hashlib.sha256(f"{tenant}/{number}/{revision}".encode()).hexdigest()
    return f"{MARK} {tenant}, row {number}, revision {revision}: {digest}"


@dataclass(frozen=True)
class Place:
    """Where everything is, for every process.

    Attributes:
        database: The application's database.
        key_store: The vault's; the same on PostgreSQL.
        connections: How many of the two databases' connections a process may have, for the application and the vault.
        environment: With which the KMS is reached.
        platform_key: The KMS key of our own.
    """

    database: str
    key_store: str
    connections: tuple[int, int]
    environment: Mapping[str, str]
    platform_key: str


@dataclass(frozen=True)
class Application:
    """A vault, an attached engine and sessions, in one process."""

    vault: Vault
    engine: Engine
    key_store: Engine
    sessions: sessionmaker[Session]

    def close(self) -> None:
        self.vault.close()
        self.engine.dispose()
        self.key_store.dispose()


def open_application(plan: Plan, place: Place, **kms: Any) -> Application:
    """Open the application as each worker does; `kms` are other options for the KMS's client."""
    for_rows, for_keys = place.connections
    key_store, engine = _engine(place.key_store, for_keys), _engine(place.database, for_rows)
    options = {"attempts": ATTEMPTS, "connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT, **kms}
    vault = Vault(
        key_store, kms=AwsKms(**options), platform_key=place.platform_key, ttl=plan.ttl, grace=plan.grace, actor="soak"
    )
    sessions: sessionmaker[Session] = sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    return Application(vault, engine, key_store, sessions)


def _engine(url: str, connections: int) -> Engine:
    # No overflow: PostgreSQL's places are few, and who waits for one has not failed.
    engine = create_engine(url, pool_size=connections, max_overflow=0)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _wait_for_writers)
    return engine


def _wait_for_writers(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA busy_timeout = 30000")
