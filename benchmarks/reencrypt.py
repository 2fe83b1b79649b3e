"""How fast rows move to a tenant's newest data key, beside what PostgreSQL needs to write the same rows at all.

The floor is PostgreSQL's own ``UPDATE people SET a=a, b=b, c=c`` of the same rows in batches of the same size, each a
transaction of its own. Floor and job take turns on one table, which is vacuumed before each, and the median of the
rounds' ratios counts: what a run says of rows per second is the machine's. The job runs in a process of its own, whose
memory is measured. Both have the server on the same machine.

The rows are loaded past the ORM, with the column types' own processors and COPY; that is not measured.

    python benchmarks/reencrypt.py [--json] [--rows N] [--rounds N] [--batch N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, text
from sqlalchemy.schema import CreateTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.postgres import start_postgres

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.reencryption.pacing import BATCH

TENANT = "acme"
NAMES = ("email", "phone", "street")

metadata = MetaData()
people = Table(
    "people",
    metadata,
    Column("id", sqlalchemy.BigInteger, primary_key=True),
    Column("tenant_id", String(30), nullable=False),
    *(Column(name, EncryptedString()) for name in NAMES),
)


@dataclass(frozen=True)
class Place:
    """Where the rows and the keys are; a process opens its own vault on it."""

    url: str
    kms: Path

    @contextmanager
    def opened(self) -> Iterator[tuple[Vault, Engine]]:
        vault, engine = Vault(self.url, kms=LocalKms(self.kms), ttl=36_000), create_engine(self.url)
        vault.attach(engine, tenant_column="tenant_id")
        try:
            yield vault, engine
        finally:
            vault.close()
            engine.dispose()


@dataclass(frozen=True)
class Done:
    """What one run of the job came to."""

    seconds: float
    left: int
    peak_mb: float
    idle_mb: float


def job(place: Place, batch: int) -> Done:
    """Move everything, in a process of its own."""
    with place.opened() as (vault, engine):
        idle = _peak_mb()
        start = time.perf_counter()
        done = vault.reencrypt(TENANT, metadata=metadata, engine=engine, batch=batch)
        return Done(time.perf_counter() - start, done.left + len(done.problems), _peak_mb(), idle)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


class Bench:
    """One table, and what is done with it."""

    def __init__(self, place: Place, rows: int, batch: int, progress: Progress) -> None:
        self._place, self._rows, self._batch, self._progress = place, rows, batch, progress
        self._plain = create_engine(place.url, isolation_level="AUTOCOMMIT")

    def load(self) -> None:
        columns = ", ".join(people.columns.keys())
        with self._place.opened() as (vault, engine), vault.tenant(TENANT), engine.begin() as connection:
            connection.execute(CreateTable(people))
            raw: Any = connection.connection.dbapi_connection
            seals = [people.c[name].type.bind_processor(engine.dialect) for name in NAMES]
            with raw.cursor() as cursor, cursor.copy(f"COPY people ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int8", "varchar", *["bytea"] * len(NAMES)])
                for number in self._progress.track(range(self._rows), description="loading"):
                    value = f"{number:08x}.ada@example.com"
                    copy.write_row((number, TENANT, *(seal(value) for seal in seals)))

    def floor(self) -> float:
        """Return the seconds that PostgreSQL needs to write all rows as they are."""
        same = ", ".join(f"{name} = {name}" for name in NAMES)
        statement = text(f"UPDATE people SET {same} WHERE id >= :first AND id < :end")
        with self._plain.connect() as connection:
            start = time.perf_counter()
            for first in range(0, self._rows, self._batch):
                connection.execute(statement, {"first": first, "end": first + self._batch})
            return time.perf_counter() - start

    def moved(self) -> Done:
        """Rotate, and move everything to the new key."""
        with self._place.opened() as (vault, _):
            vault.rotate(TENANT)
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned) as other:
            return other.submit(job, self._place, self._batch).result()

    def measure(self, rounds: int) -> dict[str, Any]:
        floors, done = [], []
        for number in self._progress.track(range(2 * rounds), description="writing"):
            self._tidy()
            if number % 2:
                done.append(self.moved())
            else:
                floors.append(self.floor())
        ratios = [floor / each.seconds for floor, each in zip(floors, done, strict=True)]
        return {
            "rows_per_s": round(self._rows / statistics.median(each.seconds for each in done)),
            "floor_rows_per_s": round(self._rows / statistics.median(floors)),
            "floor_ratio": round(statistics.median(ratios), 3),
            "floor_ratios": [round(each, 3) for each in ratios],
            "old_version_rows": self._old_rows(1 + rounds),
            "not_moved": sum(each.left for each in done),
            "peak_mb": round(max(each.peak_mb for each in done), 1),
            "idle_mb": round(min(each.idle_mb for each in done), 1),
        }

    def _old_rows(self, version: int) -> int:
        """Return how many rows hold a value of another version, read off the headers."""
        other = " OR ".join(f"substr({name}, 6, 2) <> :version" for name in NAMES)
        query = text(f"SELECT count(*) FROM people WHERE {other}")
        with self._plain.connect() as connection:
            return int(connection.scalar(query, {"version": version.to_bytes(2, "big")}) or 0)

    def _tidy(self) -> None:
        with self._plain.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE people")
            connection.exec_driver_sql("CHECKPOINT")

    def version(self) -> str:
        with self._plain.connect() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    def close(self) -> None:
        self._plain.dispose()


def run(rows: int, rounds: int, batch: int) -> dict[str, Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    server = start_postgres()
    name = server.create_database()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            place = Place(server.url(name), Path(folder) / "kms.json")
            with place.opened() as (vault, _):
                vault.create_all()
                vault.add_tenant(TENANT, key=LocalKms(place.kms).create_key())
            bench = Bench(place, rows, batch, progress)
            bench.load()
            figures = {"rows": rows, "columns": len(NAMES), "batch": batch, **bench.measure(rounds)}
            versions = {"python": platform.python_version(), "sqlalchemy": sqlalchemy.__version__}
            figures |= {**versions, "postgresql": bench.version()}
            bench.close()
            return figures
    finally:
        server.drop_database(name)
        server.close()


def main() -> None:
    """Print the figures, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rows", type=int, default=100_000, help="how many (100000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often floor and job take turns (3)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"rows of a batch ({BATCH})")
    options = parser.parse_args()
    if min(options.rows, options.rounds, options.batch) < 1:
        parser.error("--rows, --rounds and --batch are at least 1")
    figures = run(options.rows, options.rounds, options.batch)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<18}{value:,}" if isinstance(value, int) else f"{name:<18}{value}")


if __name__ == "__main__":
    main()
