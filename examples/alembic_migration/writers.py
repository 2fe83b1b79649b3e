"""The application at work: threads that insert, change, empty, find and read rows, and remember what was acknowledged.

While a release is replaced, threads of both run. Each has rows of its own, so it knows what must stand there.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

from pii_vault import Vault

CANARY = "canary-"
"""In every value, so that plaintext is found wherever it was left."""

THREADS = 2
LANES = 2 * THREADS
"""Two releases run at once at most. A row belongs to the lane that its key says."""


class Journal:
    """What was acknowledged, and what went wrong, of all releases together."""

    def __init__(self, tenants: list[str]) -> None:
        self.tenants = tenants
        self.values: dict[tuple[str, int], str | None] = {}
        self.keys: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.writes = 0
        self.reads = 0
        self.failures: list[str] = []
        self.wrong: list[str] = []

    def tenant(self, key: int) -> str:
        return self.tenants[key % len(self.tenants)]

    def wrote(self, table: str, key: int, value: str | None) -> None:
        if (table, key) not in self.values:
            self.keys[table, key % LANES].append(key)
        self.values[table, key] = value
        self.writes += 1


class Release:
    """Threads that run one release, until they are replaced."""

    def __init__(self, number: int, models: Any, url: str, vault: Vault, journal: Journal) -> None:
        self.models, self.journal, self._vault = models, journal, vault
        # Two that write to a SQLite file wait for each other.
        self._engine = create_engine(url, connect_args={"timeout": 60} if url.startswith("sqlite") else {})
        self._sessions = sessionmaker(self._engine)
        vault.attach(self._engine, self._sessions, tenant_column="tenant_id")
        self._stop = threading.Event()
        lanes = [number % 2 * THREADS + each for each in range(THREADS)]
        self._threads = [threading.Thread(target=self._run, args=(number * 10_000_000 + lane,)) for lane in lanes]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _run(self, key: int) -> None:
        dice = random.Random(key)
        while not self._stop.is_set():
            for kind, field in ((self.models.Customer, "email"), (self.models.Note, "body")):
                table = kind.__tablename__
                try:
                    self._insert(kind, field, table, key, dice)
                    known = self.journal.keys[table, key % LANES]
                    self._change(kind, field, table, dice.choice(known), dice)
                    self._read(kind, field, table, dice.choice(known))
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not have happened
                    self.journal.failures.append(_said(self.models.__name__, table, error))
            key += LANES
            self._stop.wait(0.002)

    def _insert(self, kind: Any, field: str, table: str, key: int, dice: random.Random) -> None:
        tenant, value = self.journal.tenant(key), new_value(field, key, dice)
        with self._vault.tenant(tenant), self._sessions.begin() as session:
            session.add(kind(id=key, tenant_id=tenant, **{field: value}))
        self.journal.wrote(table, key, value)

    def _change(self, kind: Any, field: str, table: str, key: int, dice: random.Random) -> None:
        value = None if dice.random() < 0.1 else new_value(field, key, dice)
        with self._vault.tenant(self.journal.tenant(key)), self._sessions.begin() as session:
            row = session.get(kind, key)
            setattr(row, field, value)
        self.journal.wrote(table, key, value)

    def _read(self, kind: Any, field: str, table: str, key: int) -> None:
        value = self.journal.values[table, key]
        query = select(kind).where(kind.id == key)
        if field == "email" and value is not None:
            query = query.where(kind.email == value)
        with self._vault.tenant(self.journal.tenant(key)), self._sessions() as session:
            row = session.scalar(query)
            if row is None or getattr(row, field) != value:
                self.journal.wrong.append(f"{self.models.__name__}, {table}: row {key} was read wrongly")
        self.journal.reads += 1


def _said(release: str, table: str, error: Exception) -> str:
    # The first line: what comes after it shows the statement's parameters.
    return f"{release}, {table}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def new_value(field: str, key: int, dice: random.Random) -> str:
    """Return a value that nobody has written before."""
    return f"{CANARY}{field}-{key}-{dice.randrange(10**12)}@example.com"
