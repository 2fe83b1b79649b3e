"""The rows behind an audit log: what they say, and how somebody who owns the database changes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select, text
from tests.support.world import World

from pii_vault.audit.reading import Verification
from pii_vault.keystore import schema
from pii_vault.keystore.schema import audit, audit_chains, keks, key_use, keys, policies, tenants

ACTOR = "ops@example.com"
IN_ORDER: tuple[str, ...] = ()
OF_A_TENANT = (policies, keks, keys, key_use, audit_chains, audit)

Row = dict[str, Any]


def written(world: World, tenant: str = "acme") -> list[tuple[str, str]]:
    """What a tenant's log says: event and reason of each entry."""
    if tenant not in world.vault.tenants(even_erased=True):
        return []
    return [(entry.event, entry.reason) for entry in world.vault.audit.entries(tenant)]


def found(world: World, tenant: str = "acme") -> tuple[str, ...]:
    return world.vault.audit.verify(tenant).problems


def assert_in_order(world: World) -> None:
    for tenant in world.vault.tenants(even_erased=True):
        entries = len(world.vault.audit.entries(tenant))
        assert world.vault.audit.verify(tenant) == Verification(tenant, entries, None, IN_ORDER)


@contextmanager
def owning(engine: Engine) -> Iterator[Connection]:
    """A connection past every trigger, as somebody who owns the database has it."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        yield connection


def change(world: World, *statements: Any) -> None:
    with owning(world.engine) as connection:
        for statement in statements:
            connection.execute(statement)


def uid(world: World, tenant: str = "acme") -> bytes:
    with world.engine.connect() as connection:
        return bytes(connection.scalars(select(tenants.c.uid).where(tenants.c.name == tenant)).one())


def mine(table: Table, owner: bytes) -> Any:
    return (table.c.uid if table is tenants else table.c.tenant_uid) == owner


def rows(engine: Engine, table: Table, owner: bytes | None = None) -> list[Row]:
    query = select(table) if owner is None else select(table).where(mine(table, owner))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(*table.primary_key)).mappings()]


def put(world: World, owner: bytes, saved: dict[Table, list[Row]]) -> None:
    """Let these be the rows that a tenant has."""
    for table in reversed(list(saved)):
        change(world, table.delete().where(mine(table, owner)))
    for table, each in saved.items():
        change(world, *(insert(table).values(row) for row in each))


def everything(world: World) -> dict[str, list[Row]]:
    return {table.name: rows(world.engine, table) for table in schema.metadata.sorted_tables}
