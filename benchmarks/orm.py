"""What three encrypted columns cost beside plain ones: rows loaded and inserted by ORM and Core, one got by its key.

A row has a key, three plain columns and three columns of 24 characters, which are encrypted, or plain in the twin.
Ours, the twin and the peers that are installed have a table each, in one database, and take turns in every round, in
an order that changes. A figure is the median of the rounds' ratios to the twin in the same round: compare ratios, not
times. Garbage is collected before each timing and then as it comes, as in any application.

Ours is attached with everything that an application has: a tenant column that is checked, statements that are checked,
keys that expire. The scope is entered around what is measured; what that costs says keyring.py.

    python benchmarks/orm.py [--json] [--rows N] [--rounds N] [--database sqlite|postgresql|both] [--no-peers] [--async]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine, Integer, String, create_engine, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, mapped_column, registry
from sqlalchemy.types import TypeEngine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import Found, found
from tests.support.postgres import start_postgres

from pii_vault import EncryptedString, LocalKms, Vault

TENANT, OTHERS = "acme", 9
TEXTS = ("email", "phone", "street")
OPERATIONS = ("orm_load", "core_load", "orm_insert", "core_insert", "session_get")
GETS, PIECES = 400, 10
"""So many rows are got in a round, in so many pieces: a single get is too short to be alone with the machine."""
SLOW_ROUNDS = 2

PLAIN, OURS = "plain", "pii_vault"


@dataclass(frozen=True)
class Variant:
    """A model of its own, and how often it takes its turn."""

    name: str
    model: Any
    slow: bool = False

    @property
    def table(self) -> Any:
        return self.model.__table__


@dataclass(frozen=True)
class Sizes:
    """How much is measured, how often."""

    rows: int
    rounds: int
    gets: int


class CountingKms(LocalKms):
    """A development KMS that counts how often it unwraps a key: what `Decrypt` is in AWS."""

    decrypts = 0

    def unwrap(self, *arguments: Any) -> bytes:
        self.decrypts += 1
        return super().unwrap(*arguments)


def variants(peers: Found) -> list[Variant]:
    """Return the twin, ours and the peers, all mapped alike."""
    mapped = registry()

    def variant(name: str, column: Callable[[], TypeEngine[Any]], slow: bool = False) -> Variant:
        table = name.replace(" ", "_").replace("-", "_").lower()
        namespace = {
            "__tablename__": table,
            "id": mapped_column(Integer, primary_key=True),
            "tenant_id": mapped_column(String(30)),
            "ward": mapped_column(String(30)),
            "visits": mapped_column(Integer),
            **{text: mapped_column(column()) for text in TEXTS},
        }
        return Variant(name, mapped.mapped(type(f"Patient_{table}", (), namespace)), slow)

    return [
        variant(PLAIN, String),
        variant(OURS, EncryptedString),
        *(variant(peer.name, peer.column, peer.slow) for peer in peers.peers),
    ]


def row(number: int) -> dict[str, Any]:
    texts = {name: f"{number * 2_654_435_761 % 2**32:08x}.{name:.<15}" for name in TEXTS}
    return {"tenant_id": TENANT, "ward": f"B{number % 40}", "visits": number % 100, **texts}


class Blocking:
    """What is measured, on an ordinary engine. Each method returns the seconds that count."""

    def __init__(self, engines: Mapping[bool, Engine], rows: list[dict[str, Any]], gets: int) -> None:
        self._engines, self._rows, self._gets = engines, rows, gets

    def create(self, variant: Variant) -> None:
        variant.table.create(self._engine(variant))

    def clear(self, variant: Variant) -> None:
        with self._engine(variant).begin() as connection:
            connection.execute(delete(variant.table))
        self._tidy(variant)

    def orm_insert(self, variant: Variant) -> float:
        self.clear(variant)
        with timed() as taken, Session(self._engine(variant)) as session:
            session.add_all([variant.model(**each) for each in self._rows])
            session.commit()
        self._tidy(variant)
        return taken[0]

    def core_insert(self, variant: Variant) -> float:
        self.clear(variant)
        with timed() as taken, self._engine(variant).begin() as connection:
            connection.execute(insert(variant.table), self._rows)
        self._tidy(variant)
        return taken[0]

    def orm_load(self, variant: Variant) -> float:
        with Session(self._engine(variant)) as session:
            with timed() as taken:
                loaded = session.scalars(select(variant.model)).all()
            check(loaded, self._rows)
        return taken[0]

    def core_load(self, variant: Variant) -> float:
        with self._engine(variant).connect() as connection:
            with timed() as taken:
                loaded = connection.execute(select(variant.table)).all()
            check(loaded, self._rows)
        return taken[0]

    def session_get(self, variant: Variant) -> float:
        engine, model = self._engine(variant), variant.model
        with engine.connect() as connection:
            keys = connection.scalars(select(variant.table.c.id).limit(self._gets)).all()
        with timed(collecting=False) as taken:
            for key in keys:
                with Session(engine) as session:
                    session.get(model, key)
        return taken[0] / len(keys) * len(self._rows)  # times are said for a row

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()

    def _engine(self, variant: Variant) -> Engine:
        return self._engines[variant.name == OURS]

    def _tidy(self, variant: Variant) -> None:
        """Leave no dead rows behind, and none whose visibility the first reader has to find out."""
        engine = self._engine(variant)
        if engine.dialect.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"VACUUM ANALYZE {variant.table}")


class Asynchronous:
    """The same on an asynchronous engine, in one event loop."""

    def __init__(self, engines: Mapping[bool, AsyncEngine], rows: list[dict[str, Any]], gets: int) -> None:
        self._engines, self._rows, self._gets = engines, rows, gets
        self._runner = asyncio.Runner()

    def create(self, variant: Variant) -> None:
        async def create() -> None:
            async with self._engine(variant).begin() as connection:
                await connection.run_sync(variant.table.create)

        self._run(create())

    def orm_insert(self, variant: Variant) -> float:
        return self._run(self._orm_insert(variant))

    def core_insert(self, variant: Variant) -> float:
        return self._run(self._core_insert(variant))

    def orm_load(self, variant: Variant) -> float:
        return self._run(self._orm_load(variant))

    def core_load(self, variant: Variant) -> float:
        return self._run(self._core_load(variant))

    def session_get(self, variant: Variant) -> float:
        return self._run(self._session_get(variant))

    def close(self) -> None:
        async def dispose() -> None:
            for engine in self._engines.values():
                await engine.dispose()

        self._run(dispose())
        self._runner.close()

    async def _orm_insert(self, variant: Variant) -> float:
        await self._clear(variant)
        with timed() as taken:
            async with AsyncSession(self._engine(variant)) as session:
                session.add_all([variant.model(**each) for each in self._rows])
                await session.commit()
        await self._tidy(variant)
        return taken[0]

    async def _core_insert(self, variant: Variant) -> float:
        await self._clear(variant)
        with timed() as taken:
            async with self._engine(variant).begin() as connection:
                await connection.execute(insert(variant.table), self._rows)
        await self._tidy(variant)
        return taken[0]

    async def _orm_load(self, variant: Variant) -> float:
        async with AsyncSession(self._engine(variant)) as session:
            with timed() as taken:
                loaded = (await session.scalars(select(variant.model))).all()
            check(loaded, self._rows)
        return taken[0]

    async def _core_load(self, variant: Variant) -> float:
        async with self._engine(variant).connect() as connection:
            with timed() as taken:
                loaded = (await connection.execute(select(variant.table))).all()
            check(loaded, self._rows)
        return taken[0]

    async def _session_get(self, variant: Variant) -> float:
        engine, model = self._engine(variant), variant.model
        async with engine.connect() as connection:
            keys = (await connection.scalars(select(variant.table.c.id).limit(self._gets))).all()
        with timed(collecting=False) as taken:
            for key in keys:
                async with AsyncSession(engine) as session:
                    await session.get(model, key)
        return taken[0] / len(keys) * len(self._rows)

    async def _clear(self, variant: Variant) -> None:
        async with self._engine(variant).begin() as connection:
            await connection.execute(delete(variant.table))
        await self._tidy(variant)

    async def _tidy(self, variant: Variant) -> None:
        engine = self._engine(variant)
        if engine.dialect.name == "postgresql":
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql(f"VACUUM ANALYZE {variant.table}")

    def _engine(self, variant: Variant) -> AsyncEngine:
        return self._engines[variant.name == OURS]

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)


@contextmanager
def timed(collecting: bool = True) -> Iterator[list[float]]:
    """Collect garbage, then take the time."""
    taken: list[float] = []
    if collecting:
        gc.collect()
    start = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - start)


def check(loaded: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Look at a few of the values, so that nobody is quick by returning something else."""
    assert len(loaded) == len(rows)
    known = {each["email"] for each in rows}
    assert all(each.email in known for each in loaded[:: max(1, len(loaded) // 10)])


Place = Blocking | Asynchronous


def take_turns(
    place: Place, all_variants: list[Variant], rounds: int, progress: Progress
) -> dict[str, dict[str, list[float]]]:
    """Return each variant's seconds by operation. A slow one has its turn in the last rounds only."""
    chosen = random.Random(1)
    seconds: dict[str, dict[str, list[float]]] = {each: {} for each in OPERATIONS}
    for variant in all_variants:
        place.create(variant)
    for number in progress.track(range(rounds + 1), description=type(place).__name__.lower()):
        late = number > rounds - SLOW_ROUNDS
        taking_part = [each for each in all_variants if late or not each.slow]
        for inserted, loaded in (("core_insert", "core_load"), ("orm_insert", "orm_load")):
            for operation in (inserted, loaded, *(["session_get"] if loaded == "orm_load" else [])):
                pieces: dict[str, list[float]] = {each.name: [] for each in taking_part}
                for _ in range(PIECES if operation == "session_get" else 1):
                    chosen.shuffle(taking_part)
                    for variant in taking_part:
                        pieces[variant.name].append(getattr(place, operation)(variant))
                for name, taken in pieces.items():
                    if number:  # the first round compiles statements and opens connections
                        seconds[operation].setdefault(name, []).append(statistics.median(taken))
    return seconds


def compared(seconds: dict[str, dict[str, list[float]]], rows: int) -> dict[str, Any]:
    """Return each variant's ratios to the twin, and what the twin takes."""
    figures: dict[str, Any] = {"plain_us_per_row": {}, "ratios": {}, "quartiles": {}}
    for operation, taken in seconds.items():
        plain = taken[PLAIN]
        figures["plain_us_per_row"][operation] = round(statistics.median(plain) / rows * 1e6, 2)
        for name, each in taken.items():
            ratios = [one / other for one, other in zip(each, plain[-len(each) :], strict=True)]
            figures["ratios"].setdefault(name, {})[operation] = round(statistics.median(ratios), 3)
            if name == OURS:
                figures["quartiles"][operation] = quartiles(ratios)
    return figures


def quartiles(ratios: list[float]) -> list[float]:
    if len(ratios) < 2:
        return [round(ratios[0], 3)] * 2
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [round(low, 3), round(high, 3)]


@contextmanager
def places(
    asynchronous: bool, vault: Vault, urls: tuple[str, str], rows: list[dict[str, Any]], gets: int
) -> Iterator[Place]:
    """Two engines on one database: ours is attached, the other one is not touched."""
    url = urls[asynchronous]
    place: Place
    if asynchronous:
        ours, bare = create_async_engine(url), create_async_engine(url)
        vault.attach(ours, tenant_column="tenant_id")
        place = Asynchronous({True: ours, False: bare}, rows, gets)
    else:
        attached, untouched = create_engine(url), create_engine(url)
        vault.attach(attached, tenant_column="tenant_id")
        place = Blocking({True: attached, False: untouched}, rows, gets)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def databases(names: Sequence[str]) -> Iterator[dict[str, tuple[str, str]]]:
    """URLs by name, for ordinary and for asynchronous engines. SQLite is in memory: what it costs is the floor's."""
    urls: dict[str, tuple[str, str]] = {}
    with ExitStack() as stack:
        if "postgresql" in names:
            server = start_postgres()
            stack.callback(server.close)
            name = server.create_database()
            stack.callback(server.drop_database, name)
            second = server.create_database()
            stack.callback(server.drop_database, second)
            urls["postgresql"] = (server.url(name), server.url(second, "asyncpg"))
        if "sqlite" in names:
            urls["sqlite"] = ("sqlite://", "sqlite+aiosqlite://")
        yield urls


@contextmanager
def vault_with_tenants() -> Iterator[tuple[Vault, CountingKms]]:
    with tempfile.TemporaryDirectory() as folder:
        kms = CountingKms(Path(folder) / "kms.json")
        operator = Vault(f"sqlite:///{folder}/keys.sqlite3", kms=kms)
        operator.create_all()
        for name in (TENANT, *(f"tenant {number}" for number in range(OTHERS))):
            operator.add_tenant(name, key=kms.create_key())
        operator.close()
        kms.decrypts = 0
        vault = Vault(f"sqlite:///{folder}/keys.sqlite3", kms=kms, ttl=36_000)
        yield vault, kms
        vault.close()


def measure(
    vault: Vault, peers: Found, urls: Mapping[str, tuple[str, str]], sizes: Sizes, *, asynchronous: bool
) -> dict[str, Any]:
    """Measure on each database, blocking or not."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    given = [row(number) for number in range(sizes.rows)]
    gets = -(-sizes.gets // PIECES)
    figures: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name, both in urls.items():
            with places(asynchronous, vault, both, given, gets) as place, vault.tenant(TENANT):
                figures[name] = compared(take_turns(place, variants(peers), sizes.rounds, progress), sizes.rows)
    return figures


def use_others(vault: Vault) -> None:
    """Let a row of every other tenant be written and read, so that calls are counted of more than one."""
    engine = create_engine("sqlite://")
    vault.attach(engine, tenant_column="tenant_id")
    _, ours = variants(Found([], {}, {}))
    with engine.begin() as connection:
        ours.table.create(connection)
        for number in range(OTHERS):
            with vault.tenant(f"tenant {number}"):
                values = {**row(number), "tenant_id": f"tenant {number}"}
                connection.execute(insert(ours.table), [values] * 100)
                connection.execute(select(ours.table).where(ours.table.c.tenant_id == values["tenant_id"])).all()
    engine.dispose()


def run(names: Sequence[str], sizes: Sizes, *, with_peers: bool, asynchronous: bool) -> dict[str, Any]:
    peers = found() if with_peers else Found([], {}, {})
    with vault_with_tenants() as (vault, kms), databases(names) as urls:
        plain = measure(vault, peers, urls, sizes, asynchronous=False)
        figures = shaped(plain)
        if asynchronous:
            figures["async"] = shaped(measure(vault, peers, urls, sizes, asynchronous=True))
        use_others(vault)
        figures["kms_calls_per_tenant"] = round(kms.decrypts / (1 + OTHERS), 3)
    return {
        **figures,
        "left_out": peers.left_out,
        "rows": sizes.rows,
        "rounds": sizes.rounds,
        "versions": {
            "python": platform.python_version(),
            "sqlalchemy": sqlalchemy.__version__,
            **peers.versions,
        },
    }


def shaped(measured: dict[str, Any]) -> dict[str, Any]:
    """By database what ours comes to, and by peer what the others do."""
    figures: dict[str, Any] = {name: each["ratios"].pop(OURS) for name, each in measured.items()}
    names = sorted({name for each in measured.values() for name in each["ratios"]} - {PLAIN}, key=str.lower)
    figures["peers"] = {name: {database: each["ratios"][name] for database, each in measured.items()} for name in names}
    figures["quartiles"] = {name: each["quartiles"] for name, each in measured.items()}
    figures["plain_us_per_row"] = {name: each["plain_us_per_row"] for name, each in measured.items()}
    return figures


def show(figures: dict[str, Any], names: Sequence[str], title: str) -> None:
    for database in names:
        print(f"\n{database}, {title}: ratios to plain columns in the same round")
        print(f"{'':<30}" + "".join(f"{each:>13}" for each in OPERATIONS))
        lines = {OURS: figures[database], **{name: each[database] for name, each in figures["peers"].items()}}
        for name, each in lines.items():
            print(f"{name:<30}" + "".join(f"{each[operation]:>13}" for operation in OPERATIONS))
        floor = figures["plain_us_per_row"][database]
        print(f"{'plain, µs a row':<30}" + "".join(f"{floor[operation]:>13}" for operation in OPERATIONS))


def main() -> None:
    """Print tables, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of each table (20000)")
    parser.add_argument("--rounds", type=int, default=9, help="how often each takes its turn (9)")
    parser.add_argument("--gets", type=int, default=GETS, help=f"rows that are got by their key in a round ({GETS})")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure those installed")
    parser.add_argument("--async", dest="asynchronous", action="store_true", help="on asynchronous engines too")
    options = parser.parse_args()
    sizes = Sizes(options.rows, options.rounds, options.gets)
    if min(sizes.rows, sizes.rounds, sizes.gets) < 1:
        parser.error("--rows, --rounds and --gets are at least 1")
    names = ("postgresql", "sqlite") if options.database == "both" else (options.database,)
    figures = run(names, sizes, with_peers=options.peers, asynchronous=options.asynchronous)
    if options.json:
        print(json.dumps(figures))
        return
    print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    show(figures, names, "blocking")
    if options.asynchronous:
        show(figures["async"], names, "asynchronous")
    print(f"\nKMS calls per tenant: {figures['kms_calls_per_tenant']}")
    for name, reason in figures["left_out"].items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    main()
