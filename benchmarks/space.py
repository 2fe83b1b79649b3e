"""How many bytes encrypted values take: in the table, in the index, and in memory when rows are loaded.

The tables are those of orm.py, written alike in one database. These are counts, so they do not depend on the machine:
what PostgreSQL and SQLite say of their tables, and what Python says of the memory that 10,000 loaded objects hold.

    python benchmarks/space.py [--json] [--rows N] [--no-peers]
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from orm import OURS, PLAIN, TENANT, Blocking, Variant, databases, places, row, variants, vault_with_tenants
from peers import Found, found
from sqlalchemy import Column, Index, Integer, MetaData, String, Table, insert, select, text
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pii_vault import EncryptedString


def table_bytes(place: Blocking, variant: Variant) -> int:
    """Fill a table and return what it takes, without its primary key's index."""
    engine = place._engine(variant)
    place.create(variant)
    if engine.dialect.name == "postgresql":
        place.core_insert(variant)
        with engine.connect() as connection:
            return int(connection.scalar(text(f"SELECT pg_table_size('{variant.table}')")) or 0)
    with engine.connect() as connection:
        before = connection.scalar(text("PRAGMA page_count")) or 0
        size = connection.scalar(text("PRAGMA page_size")) or 0
    place.core_insert(variant)
    with engine.connect() as connection:
        return int(((connection.scalar(text("PRAGMA page_count")) or 0) - before) * size)


def loaded_bytes(place: Blocking, variant: Variant) -> int:
    """What the objects of all rows hold, beyond a session that has loaded one of them."""
    with Session(place._engine(variant)) as session:
        session.scalars(select(variant.model).limit(1)).all()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        loaded = session.scalars(select(variant.model)).all()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        del loaded
    return taken


def index_bytes(place: Blocking, rows: list[dict[str, Any]]) -> dict[str, int]:
    """What an index takes that finds e-mail addresses, built over rows that are there: sealed and plain."""
    found = {}
    metadata = MetaData()
    for name, kind in ((OURS, EncryptedString(index=True)), (PLAIN, String())):
        table = Table(
            f"indexed_{name}",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("tenant_id", String(30)),
            Column("email", kind),
        )
        if name == PLAIN:
            Index("ix_indexed_plain_email", table.c.email)
        engine = place._engines[name == OURS]
        indexes = list(table.indexes)
        table.indexes.clear()
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(insert(table), [{each: one[each] for each in ("tenant_id", "email")} for one in rows])
            (index,) = indexes
            index.create(connection)
        with engine.connect() as connection:
            found[name] = int(connection.scalar(text(f"SELECT pg_relation_size('{index.name}')")) or 0)
    return found


def run(rows: int, *, with_peers: bool) -> dict[str, Any]:
    peers = found() if with_peers else Found([], {}, {})
    given = [row(number) for number in range(rows)]
    figures: dict[str, Any] = {"rows": rows, "left_out": peers.left_out, "loaded": {}}
    with vault_with_tenants() as (vault, _), databases(("postgresql", "sqlite")) as urls:
        for database, both in urls.items():
            with places(False, vault, both, given, 1) as place, vault.tenant(TENANT):
                assert isinstance(place, Blocking)
                for variant in variants(peers):
                    taken = table_bytes(place, variant)
                    figures.setdefault(f"{database}_table", {})[variant.name] = round(taken / rows, 1)
                    if database == "sqlite":
                        figures["loaded"][variant.name] = round(loaded_bytes(place, variant) / rows * 10_000)
                if database == "postgresql":
                    taken_by = index_bytes(place, given)
                    figures["postgresql_index"] = {name: round(each / rows, 1) for name, each in taken_by.items()}
    for name in ("postgresql_table", "sqlite_table", "postgresql_index", "loaded"):
        ours, plain = figures[name][OURS], figures[name][PLAIN]
        figures[f"{name}_ratio"] = round(ours / plain, 3) if plain else None
    return figures


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure those installed")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("--rows is at least 1")
    figures = run(options.rows, with_peers=options.peers)
    if options.json:
        print(json.dumps(figures))
        return
    print("bytes a row in the table, and megabytes of 10,000 loaded objects")
    print(f"{'':<30}{'PostgreSQL':>12}{'SQLite':>12}{'loaded':>12}")
    for name, loaded in figures["loaded"].items():
        sizes = f"{figures['postgresql_table'][name]:>12}{figures['sqlite_table'][name]:>12}"
        print(f"{name:<30}{sizes}{loaded / 1e6:>12.1f}")
    index = figures["postgresql_index"]
    print(f"the index over e-mail addresses: {index[OURS]} bytes a row of tokens, {index[PLAIN]} of plaintext")
    for name, reason in figures["left_out"].items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    main()
