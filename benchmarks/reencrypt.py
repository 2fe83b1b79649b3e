"""How fast rows move to a tenant's newest data key, beside what PostgreSQL needs to write the same rows at all.

The floor is PostgreSQL's own ``UPDATE people SET a=a, b=b, c=c`` of the same rows in batches of the same size, each a
transaction of its own. Floor and job take turns on one table, which is vacuumed before each, and the median of the
rounds' ratios counts: what a run says of rows per second is the machine's. The job runs in a process of its own, whose
memory is measured; then the same is done by several. The server is on the same machine, and its processes' CPU time
says how many rows a second it can write at most, whoever sends them.

The rows are loaded past the ORM, with the column types' own processors and COPY; that is not measured.

    python benchmarks/reencrypt.py [--json] [--rows N] [--rounds N] [--batch N] [--workers N]
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, text
from sqlalchemy.schema import CreateTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.postgres import start_postgres

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.reencryption.crews import LocalCrew, Part, PartDone
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
    cpu_seconds: float
    left: int
    peak_mb: float
    idle_mb: float


@dataclass(frozen=True)
class Worker:
    """Does parts; each process opens a vault once."""

    place: Place

    def __call__(self, part: Part) -> PartDone:
        _, vault, engine = _opened(self.place)
        return vault.reencrypt_part(part, metadata=metadata, engine=engine)


@cache
def _opened(place: Place) -> tuple[ExitStack, Vault, Engine]:
    stack = ExitStack()  # it ends with the process
    return stack, *stack.enter_context(place.opened())


def job(place: Place, batch: int, workers: int) -> Done:
    """Move everything, in a process of its own, or in several that it has."""
    with place.opened() as (vault, engine):
        idle = _peak_mb()
        start, cpu = time.perf_counter(), time.process_time()
        crew = LocalCrew(Worker(place), workers) if workers > 1 else None
        done = vault.reencrypt(TENANT, metadata=metadata, engine=engine, batch=batch, crew=crew)
        left = done.left + len(done.problems)
        return Done(time.perf_counter() - start, time.process_time() - cpu, left, _peak_mb(), idle)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


class Bench:
    """One table, and what is done with it."""

    def __init__(self, place: Place, rows: int, batch: int, progress: Progress) -> None:
        self._place, self._rows, self._batch, self._progress = place, rows, batch, progress
        self._plain = create_engine(place.url, isolation_level="AUTOCOMMIT")
        self._version = 1

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

    def moved(self, workers: int) -> Done:
        """Rotate, and move everything to the new key."""
        with self._place.opened() as (vault, _):
            vault.rotate(TENANT)
            self._version += 1
        self._tidy()
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned) as other:
            return other.submit(job, self._place, self._batch, workers).result()

    def measure(self, rounds: int, most: int) -> dict[str, Any]:
        floors: list[float] = []
        by_workers: dict[int, list[Done]] = {workers: [] for workers in range(1, most + 1)}
        server = 0.0
        for _ in self._progress.track(range(rounds), description="writing"):
            self._tidy()
            floors.append(self.floor())
            for workers, runs in by_workers.items():
                before = self._server_cpu()
                runs.append(self.moved(workers))
                server += self._server_cpu() - before
        done = by_workers[1]
        alone = statistics.median(each.seconds for each in done)
        ratios = [floor / each.seconds for floor, each in zip(floors, done, strict=True)]
        return {
            "rows_per_s": round(self._rows / alone),
            "floor_rows_per_s": round(self._rows / statistics.median(floors)),
            "floor_ratio": round(statistics.median(ratios), 3),
            "floor_ratios": [round(each, 3) for each in ratios],
            "speedup_by_workers": {
                workers: round(alone / statistics.median(each.seconds for each in runs), 2)
                for workers, runs in by_workers.items()
            },
            "old_version_rows": self._old_rows(),
            "not_moved": sum(each.left for runs in by_workers.values() for each in runs),
            "cpu_us_per_row": round(1e6 * statistics.median(each.cpu_seconds for each in done) / self._rows, 1),
            "server_cpu_us_per_row": round(1e6 * server / (self._rows * rounds * most), 1) if server else None,
            "peak_mb": round(max(each.peak_mb for each in done), 1),
            "idle_mb": round(min(each.idle_mb for each in done), 1),
        }

    def _server_cpu(self) -> float:
        """Return the CPU seconds that the server has used; 0 where it runs on another machine.

        With them the maintenance that the writing calls for: write-ahead log, checkpoints, vacuum.
        """
        try:
            with self._plain.connect() as connection:
                backend = psutil.Process(connection.scalar(text("SELECT pg_backend_pid()")))
            server = backend.parent()
            if server is None or "postgres" not in server.name():
                return 0.0
            times = [each.cpu_times() for each in (server, *server.children())]
        except psutil.Error:
            return 0.0
        ended = times[0]
        return ended.children_user + ended.children_system + sum(each.user + each.system for each in times)

    def _old_rows(self) -> int:
        """Return how many rows hold a value of another version, read off the headers."""
        other = " OR ".join(f"substr({name}, 6, 2) <> :version" for name in NAMES)
        query = text(f"SELECT count(*) FROM people WHERE {other}")
        with self._plain.connect() as connection:
            return int(connection.scalar(query, {"version": self._version.to_bytes(2, "big")}) or 0)

    def _tidy(self) -> None:
        with self._plain.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE people")
            connection.exec_driver_sql("CHECKPOINT")

    def version(self) -> str:
        with self._plain.connect() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    def close(self) -> None:
        self._plain.dispose()


def run(rows: int, rounds: int, batch: int, workers: int) -> dict[str, Any]:
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
            figures = {"rows": rows, "columns": len(NAMES), "batch": batch, **bench.measure(rounds, workers)}
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
    parser.add_argument("--workers", type=int, default=2, help="up to so many processes (2)")
    options = parser.parse_args()
    if min(options.rows, options.rounds, options.batch, options.workers) < 1:
        parser.error("--rows, --rounds, --batch and --workers are at least 1")
    figures = run(options.rows, options.rounds, options.batch, options.workers)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<18}{value:,}" if isinstance(value, int) else f"{name:<18}{value}")


if __name__ == "__main__":
    main()
