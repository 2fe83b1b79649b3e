"""Key stores as earlier releases left them: their own tables and triggers, and the rows that they wrote themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, Table, create_engine, insert, update

from pii_vault.keystore.upgrade import MIGRATIONS


def write_key_store(url: str, revision: str, dump: dict[str, Any]) -> None:
    """Make a key store of a revision, with the rows of a dump, where the URL's search path leads."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, revision)
    engine = create_engine(url)
    with engine.begin() as connection:
        fill(connection, dump["tables"])
    engine.dispose()


def fill(connection: Connection, tables: dict[str, Any]) -> None:
    """Write the rows as the earlier release did: its triggers let keys and logs only move forward."""
    for name, rows in tables.items():
        table = Table(name, MetaData(), autoload_with=connection)
        for row in rows:
            values = {column: value(connection, each) for column, each in row.items()}
            if name in STEPS:
                begin, wrapped = STEPS[name]
                live = values[wrapped] or b"\0" * 48  # what an erasure has dropped since
                connection.execute(insert(table).values(values | {"state": begin, wrapped: live}))
                mine = [column == values[column.name] for column in table.primary_key.columns]
                for state in PATHS[begin][values["state"]]:
                    gone = {wrapped: b""} if state == "destroyed" else {}
                    connection.execute(update(table).where(*mine).values(state=state, **gone))
            elif name == "pii_vault_audit_chains":
                connection.execute(insert(table).values(values | {"seq": 1}))
                for seq in range(2, values["seq"] + 1):
                    connection.execute(update(table).where(table.c.tenant_uid == values["tenant_uid"]).values(seq=seq))
            else:
                connection.execute(insert(table).values(values))


STEPS = {"pii_vault_keys": ("pre_active", "encrypted_key"), "pii_vault_keks": ("active", "wrapped")}
"""How a record of these tables begins, and its column of wrapped bytes."""

PATHS = {
    "active": {"active": (), "deactivated": ("deactivated",), "destroyed": ("deactivated", "destroyed")},
    "pre_active": {
        "active": ("active",),
        "deactivated": ("active", "deactivated"),
        "destroyed": ("active", "deactivated", "destroyed"),
    },
}
"""The states that a record goes through from its first one to the one that it is in."""


def value(connection: Connection, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    if "hex" in stored:
        return bytes.fromhex(stored["hex"])
    instant = datetime.fromisoformat(stored["utc"])
    return instant if connection.dialect.name == "postgresql" else instant.replace(tzinfo=None)
