"""What rotating and re-wrapping cost: calls of the KMS, statements on the key store, rows touched, tenants a second.

A rotation must cost the same whether the tenant has one row or millions, one key version or a thousand. These are
counts, so they do not depend on the machine. The seconds do; they are printed as ratios of two measured in this run.

The database is a real PostgreSQL, started for the run unless --database-url names one. The KMS answers over HTTP.

    python benchmarks/rotation.py [--json] [--rows N] [--versions N] [--tenants N] [--database-url URL]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, String, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.postgres import start_postgres
from tests.support.strict_kms import StrictKms

from pii_vault import EncryptedString, LocalKms, Vault

WORKERS = 4


class Base(DeclarativeBase): ...


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    email: Mapped[str] = mapped_column(EncryptedString())


@dataclass
class Cost:
    """What one operation cost."""

    kms: dict[str, int]
    statements: int
    seconds: float

    @property
    def calls(self) -> int:
        return sum(self.kms.values())


@dataclass
class Bench:
    """A vault on PostgreSQL and the strict KMS, and what counts its work."""

    kms: StrictKms
    vault: Vault
    engine: Engine
    statements: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        @event.listens_for(self.vault._engine, "before_cursor_execute")
        def count(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
            self.statements.append(statement)

    def cost(self, work: Callable[[], object]) -> Cost:
        self.statements.clear()
        with self.kms.counting() as calls:
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
        platform = self.kms.platform_key()
        found = [call.operation for call in calls.calls if call.key != platform]
        return Cost({name: found.count(name) for name in sorted(set(found))}, len(self.statements), seconds)

    def add_tenant(self, name: str) -> None:
        key = self.kms.customer_key()
        self.vault.add_tenant(name, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)

    def rotations(self, name: str, count: int) -> Cost:
        """The cost of a rotation: counts that must be the same each time, and the median of the seconds."""
        costs = [self.cost(lambda: self.vault.rotate(name)) for _ in range(count)]
        assert len({(str(each.kms), each.statements) for each in costs}) == 1, costs
        return Cost(costs[0].kms, costs[0].statements, statistics.median(each.seconds for each in costs))

    def add_rows(self, name: str, count: int) -> None:
        """One value is sealed, and copied: what counts here is how many rows there are."""
        with self.vault.tenant(name), Session(self.engine) as session, session.begin():
            session.add(Person(tenant_id=name, email="ada@example.com"))
            session.flush()
            copied = "INSERT INTO people (tenant_id, email) SELECT tenant_id, email FROM people, generate_series(2, :n)"
            session.execute(text(f"{copied} WHERE tenant_id = :tenant"), {"n": count, "tenant": name})

    def next_transaction(self) -> int:
        with self.engine.begin() as connection:
            return int(connection.scalar(text("SELECT txid_current()")) or 0)

    def rows_written_since(self, transaction: int) -> int:
        query = text("SELECT count(*) FROM people WHERE xmin::text::bigint >= :first")
        with self.engine.connect() as connection:
            return int(connection.scalar(query, {"first": transaction}) or 0)


@contextmanager
def bench(url: str) -> Iterator[Bench]:
    with StrictKms() as kms:
        vault = Vault(url, kms=kms.provider(), platform_key=kms.platform_key())
        vault.create_all()
        engine = create_engine(url)
        vault.attach(engine, tenant_column="tenant_id")
        Base.metadata.create_all(engine)
        try:
            yield Bench(kms, vault, engine)
        finally:
            vault.close()
            engine.dispose()


def measure_rotation(bench: Bench, rows: int, versions: int) -> dict[str, Any]:
    """Rotate a tenant with little, one with many rows, and one with many versions."""
    for name in ("small", "rows", "versions"):
        bench.add_tenant(name)
    bench.add_rows("small", 1)
    small = bench.rotations("small", 5)
    _say(f"writing {rows:,} rows")
    bench.add_rows("rows", rows)
    before = bench.next_transaction()
    large = bench.rotations("rows", 5)
    touched = bench.rows_written_since(before)
    _say(f"making {versions:,} versions")
    for _ in range(versions - 1):
        bench.vault.rotate("versions")
    old = bench.rotations("versions", 5)
    opening = bench.cost(lambda: bench.vault.tenant("versions").__enter__().__exit__(None, None, None))
    return {
        "rows": rows,
        "versions": versions,
        "kms_calls_1_version": small.calls,
        f"kms_calls_{versions}_versions": old.calls,
        "statements_1_row": small.statements,
        f"statements_{_short(rows)}_rows": large.statements,
        f"statements_{versions}_versions": old.statements,
        "rows_touched": touched,
        "kms_calls": small.kms,
        f"kms_calls_{versions}_versions_scope": opening.calls,
        "seconds_ratio_rows": round(large.seconds / small.seconds, 2),
        "seconds_ratio_versions": round(old.seconds / small.seconds, 2),
    }


def measure_rewrap(bench: Bench, tenants: int) -> dict[str, Any]:
    """Re-wrap many tenants under the platform's key after its material was rotated: over HTTP."""
    _register(bench.vault, tenants)
    bench.kms.rotate(bench.kms.platform_key())
    with bench.kms.counting() as calls:
        rate = _rewrap_all(bench.vault, bench.kms.platform_key(), tenants)
    found = [call.operation for call in calls.calls]
    reads_and_writes = found.count("ReEncrypt")
    assert reads_and_writes == 2 * tenants, found[:10]
    return {
        "tenants": tenants,
        "rewrap_kms_calls_per_tenant": round(len(found) / tenants, 3),
        "rewrap_kms_calls": {name: found.count(name) for name in sorted(set(found))},
        "rewrap_tenants_per_s": round(rate, 1),
    }


def measure_rewrap_locally(url: str, tenants: int) -> dict[str, Any]:
    """The same with a KMS in a file: what is left is the library's and the database's own part."""
    with tempfile.TemporaryDirectory() as folder:
        kms = LocalKms(Path(folder) / "kms.json")
        vault = Vault(url, kms=kms)
        vault.create_all()
        _register(vault, tenants)
        kms.rotate_key(vault.platform_key)
        rate = _rewrap_all(vault, vault.platform_key, tenants)
        vault.close()
    return {"rewrap_tenants_per_s_without_http": round(rate, 1)}


def _register(vault: Vault, tenants: int) -> None:
    _say(f"registering {tenants:,} tenants")
    vault.add_tenant("0")  # the first one makes the audit key
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(vault.add_tenant, (str(number) for number in range(1, tenants))))


def _rewrap_all(vault: Vault, under: str, tenants: int) -> float:
    _say(f"re-wrapping {tenants:,} tenants")
    start = time.perf_counter()
    moved = vault.rewrap_all(under=under, rate=1e9, workers=WORKERS)
    seconds = time.perf_counter() - start
    assert [each.way for each in moved].count("re-encrypted") == tenants == len(moved)
    return tenants / seconds


def _short(number: int) -> str:
    for size, letter in ((10**6, "m"), (10**3, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return str(number)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


@contextmanager
def databases(url: str | None) -> Iterator[tuple[str, str]]:
    """Two empty databases: named, or of a server that is started for this run."""
    if url is not None:
        yield url, f"{url}_2"
        return
    server = start_postgres()
    try:
        yield server.url(server.create_database()), server.url(server.create_database())
    finally:
        server.close()


def main() -> None:
    """Print the figures, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the tenant with many (1000000)")
    parser.add_argument("--versions", type=int, default=1000, help="key versions of the tenant with many (1000)")
    parser.add_argument("--tenants", type=int, default=1000, help="tenants that are re-wrapped (1000)")
    parser.add_argument("--database-url", help="an empty PostgreSQL database; a second one, NAME_2, is used too")
    arguments = parser.parse_args()
    with databases(arguments.database_url) as (url, second):
        with bench(url) as one:
            figures = measure_rotation(one, arguments.rows, arguments.versions)
            figures |= measure_rewrap(one, arguments.tenants)
        figures |= measure_rewrap_locally(second, arguments.tenants)
    if arguments.json:
        print(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
