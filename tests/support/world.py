"""A vault with two tenants, an attached engine and sessions: what most tests start from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData
from sqlalchemy.orm import Session, sessionmaker

from pii_vault import LocalKms, Vault

TENANTS = ("acme", "glob")


@dataclass
class World:
    """One application: a database, a development KMS with a key for each tenant, a vault on both."""

    url: str
    kms: LocalKms
    keys: dict[str, str]
    vault: Vault
    engine: Engine
    sessions: sessionmaker[Session]

    @contextmanager
    def session(self, tenant: str = "acme") -> Iterator[Session]:
        """A session inside the tenant's scope, committed at the end."""
        with self.vault.tenant(tenant), self.sessions.begin() as session:
            yield session


def make_world(
    url: str,
    directory: Path,
    make_engine: Callable[..., Engine],
    metadata: MetaData | None = None,
    key_store_url: str | None = None,
    **options: Any,
) -> World:
    """Build a world on a fresh database; `options` go to the vault. The key store may have a database of its own."""
    kms = LocalKms(directory / "kms.json")
    vault = Vault(key_store_url or url, kms=kms, **options)
    vault.create_all()
    keys = {tenant: kms.create_key() for tenant in TENANTS}
    for tenant, key in keys.items():
        vault.add_tenant(tenant, key=key)
    engine = make_engine(url)
    sessions = sessionmaker(engine)
    vault.attach(engine, sessions, tenant_column="tenant_id")
    if metadata is not None:
        metadata.create_all(engine)
    return World(url, kms, keys, vault, engine, sessions)
