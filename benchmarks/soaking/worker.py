"""A worker process: its threads visit tenants, read and write, and write down when.

Most threads are brisk: a short scope, one read or write. Every fourth is patient: it keeps a scope open for longer than
the bound and goes on using it, or reads rows that stream as slowly. All of them forget a tenant's keys now and then.

Two of three visits go to tenants that something is done to, or soon will be: that makes what is measured finer.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.soaking.application import Application, Note, Place, open_application, value_of
from benchmarks.soaking.child import GONE
from benchmarks.soaking.journal import Journal, Kind, Outcome, Record
from benchmarks.soaking.plan import ROWS_AT_FIRST, Plan, tenant_name
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pii_vault.errors import ForeignValueError, KmsDeniedError, KmsUnavailableError

Counted = tuple[int, int]
"""How many values were right, and how many wrong."""

_ROWS: Final[Any] = select(Note.tenant_id, Note.number, Note.revision, Note.body)
_NICENESS: Final = 5
_ATTENTION: Final = 2 / 3


class Surprises:
    """Errors that nobody expects: how often each class, and one traceback of each."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.samples: dict[str, str] = {}

    def note(self, error: BaseException) -> None:
        name = type(error).__name__
        self.count[name] += 1
        self.samples.setdefault(name, "".join(traceback.format_exception(error)))


def work(plan: Plan, place: Place, number: int, journal: Path, watched: Sequence[int], control: Connection) -> None:
    """Be a worker process, until `control` says so or its other end is gone."""
    os.environ.update(place.environment)
    # The KMS is another machine's in real life: it must not wait for a processor while workers have it.
    os.nice(_NICENESS)
    # What the library has to say about outages is not news here.
    logging.getLogger("pii_vault").addHandler(logging.NullHandler())
    application, surprises, stop = open_application(plan, place), Surprises(), threading.Event()
    with closing(application), closing(Journal(journal)) as written:
        visitors = [
            Visitor(application, plan, written, watched, number * plan.threads + each, stop, surprises)
            for each in range(plan.threads)
        ]
        with suppress(*GONE):
            control.send("ready")
            control.recv()  # go
            for visitor in visitors:
                visitor.start()
            try:
                control.recv()  # stop
            finally:
                stop.set()
                for visitor in visitors:
                    visitor.join()
            control.send((surprises.count, surprises.samples))


class Visitor(threading.Thread):
    """One thread, of a number that no thread of another process has."""

    def __init__(
        self,
        application: Application,
        plan: Plan,
        journal: Journal,
        watched: Sequence[int],
        number: int,
        stop: threading.Event,
        surprises: Surprises,
    ) -> None:
        super().__init__(daemon=True)
        self._application: Final = application
        self._plan: Final = plan
        self._journal: Final = journal
        self._watched: Final = watched
        self._number: Final = number
        self._ended: Final = stop
        self._surprises: Final = surprises
        self._random: Final = random.Random(f"{plan.seed} {number}")
        self._written = 0

    def run(self) -> None:
        weights: dict[Callable[[int], None], int] = {self._stay: 1, self._stream: 1}
        if self._number % 4 != 3:
            weights = {self._read: 58, self._write: 30, self._rewrite: 8, self._evict: 2, self._trespass: 2}
        while not self._ended.is_set():
            (visit,) = self._random.choices(list(weights), list(weights.values()))
            try:
                visit(self._chosen())
            except Exception as error:  # noqa: BLE001 - it is counted, and a thread must go on
                self._surprises.note(error)
            self._ended.wait(self._random.uniform(0, 2 * self._plan.pause))

    def _chosen(self) -> int:
        if self._random.random() < _ATTENTION:
            watched = [tenant for tenant, flag in enumerate(self._watched) if flag]
            if watched:
                return self._random.choice(watched)
        return self._random.randrange(self._plan.tenants)

    # Visits.

    def _read(self, tenant: int) -> None:
        self._try(tenant, Kind.OPEN, lambda: self._in_session(tenant, self._look))

    def _write(self, tenant: int) -> None:
        self._try(tenant, Kind.SEAL, lambda: self._in_session(tenant, self._add))

    def _rewrite(self, tenant: int) -> None:
        def change() -> Counted:
            with self._application.vault.tenant(tenant_name(tenant)):
                return self._change(tenant_name(tenant))

        self._try(tenant, Kind.SEAL, change)

    def _evict(self, tenant: int) -> None:
        start = time.monotonic()
        self._application.vault.evict(tenant_name(tenant))
        self._journal.write(Record(start, time.monotonic(), tenant, Kind.EVICT, Outcome.DONE))

    def _trespass(self, tenant: int) -> None:
        """Read another tenant's rows in a tenant's scope: a value that opens is wrong, whatever it says."""
        other = tenant_name((tenant + self._random.randrange(1, self._plan.tenants)) % self._plan.tenants)

        def look(session: Session, _name: str) -> Counted:
            try:
                return 0, len(session.execute(_ROWS.where(Note.tenant_id == other).limit(1)).all())
            except ForeignValueError:
                return 0, 0

        self._try(tenant, Kind.FOREIGN, lambda: self._in_session(tenant, look))

    def _stay(self, tenant: int) -> None:
        """Keep a scope open for longer than the bound, and use it all the time."""
        name, until = tenant_name(tenant), time.monotonic() + self._plan.bound + 2

        def stay() -> Counted:
            with self._application.vault.tenant(name):
                while time.monotonic() < until and not self._ended.is_set():
                    kind, use = self._random.choice(((Kind.OPEN, self._look), (Kind.SEAL, self._add)))
                    self._try(tenant, kind, partial(self._transaction, name, use))
                    self._ended.wait(self._random.uniform(0.05, 0.2))
            return 0, 0

        self._unless_dark(tenant, stay)

    def _stream(self, tenant: int) -> None:
        """Read rows that come one by one, for longer than the bound."""
        name, pause = tenant_name(tenant), (self._plan.bound + 2) / ROWS_AT_FIRST
        query = _ROWS.where(Note.tenant_id == name).order_by(Note.id).execution_options(yield_per=1)

        def read() -> Counted:
            # What is not closed keeps its place in a SQLite file, also when its connection serves somebody else.
            with self._application.vault.tenant(name), self._application.sessions() as session, ExitStack() as ending:
                rows: Iterator[Any] | None = None

                def next_row() -> Counted:
                    nonlocal rows
                    if rows is None:
                        rows = iter(ending.enter_context(closing(session.execute(query))))
                    return _compared(name, list(islice(rows, 1)))

                for _ in range(ROWS_AT_FIRST):
                    # An error ends a stream: what comes after it is not asked for.
                    if self._ended.is_set() or not self._try(tenant, Kind.OPEN, next_row):
                        break
                    self._ended.wait(pause)
            return 0, 0

        self._unless_dark(tenant, read)

    # What is done in them.

    def _in_session(self, tenant: int, use: Callable[[Session, str], Counted]) -> Counted:
        name = tenant_name(tenant)
        with self._application.vault.tenant(name):
            return self._transaction(name, use)

    def _transaction(self, name: str, use: Callable[[Session, str], Counted]) -> Counted:
        with self._application.sessions.begin() as session:
            return use(session, name)

    def _look(self, session: Session, name: str) -> Counted:
        rows = _ROWS.where(Note.tenant_id == name).order_by(Note.id.desc())
        return _compared(name, session.execute(rows.offset(self._random.randrange(9)).limit(3)).all())

    def _add(self, session: Session, name: str) -> Counted:
        self._written += 1
        number = self._number * 10**9 + self._written
        session.add(Note(number=number, revision=0, body=value_of(name, number, 0)))
        session.flush()
        return 1, 0

    def _change(self, name: str) -> Counted:
        """Read a row, and write it anew in a transaction of its own: SQLite lets nobody write who has read first."""
        notes = _ROWS.add_columns(Note.id).where(Note.tenant_id == name).order_by(Note.id.desc())
        with self._application.sessions() as session:
            (row,) = session.execute(notes.offset(self._random.randrange(9)).limit(1)).all()
        if row.body != value_of(name, row.number, row.revision):
            return 0, 1
        # Somebody else may do the same at the same time. Both write one row whose columns agree.
        newer = {"revision": row.revision + 1, "body": value_of(name, row.number, row.revision + 1)}
        with self._application.sessions.begin() as session:
            session.execute(update(Note).where(Note.id == row.id).values(newer))
        return 1, 0

    # How it is written down.

    def _try(self, tenant: int, kind: Kind, use: Callable[[], Counted]) -> bool:
        """Do something between two stamps, and write down what came of it; say whether it went well."""
        counted, outcome, start = (0, 0), Outcome.DONE, time.monotonic()
        try:
            counted = use()
        except Exception as error:  # noqa: BLE001 - each is judged
            outcome = self._outcome(error)
        self._journal.write(Record(start, time.monotonic(), tenant, kind, outcome, *counted))
        return outcome is Outcome.DONE

    def _unless_dark(self, tenant: int, use: Callable[[], Counted]) -> None:
        """Do something that writes itself down; an error is one of entering its scope."""
        start = time.monotonic()
        try:
            use()
        except Exception as error:  # noqa: BLE001 - each is judged
            self._journal.write(Record(start, time.monotonic(), tenant, Kind.OPEN, self._outcome(error)))

    def _outcome(self, error: Exception) -> Outcome:
        # No subclasses: what is expected is expected by name.
        if type(error) is KmsDeniedError:
            return Outcome.DENIED
        if type(error) is KmsUnavailableError:
            return Outcome.UNAVAILABLE
        self._surprises.note(error)
        return Outcome.UNEXPECTED


def _compared(name: str, rows: Sequence[Any]) -> Counted:
    right = sum(tenant == name and body == value_of(name, number, revision) for tenant, number, revision, body in rows)
    return right, len(rows) - right
