"""Writers, who know what each of their rows holds, and notice at their next visit when it holds something else.

A commit whose answer got lost may or may not have happened: until the row is read again, either content is right.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from tests.support.processes import forking
from tests.support.reencryption.patients import (
    COLUMNS,
    FIRST,
    TENANT,
    Application,
    Patient,
    Place,
    Turns,
    content,
    open_application,
    value,
)

from pii_vault.errors import KeyStoreError, KmsError

PASSES: Final = (DBAPIError, KeyStoreError, KmsError)
"""What may fail while servers are killed and throttled; everything else is a failure of the test."""

BREATH: Final = 0.3
"""How long a writer waits at most before it goes on with another row: jobs are to have a processor, too."""


@dataclass
class Report:
    """What writers know in the end.

    Attributes:
        known: Each row's possible contents: one, or two where an answer got lost.
        writes: How many commits were answered.
        failed: How many attempts were refused or lost.
        lost: How many answers to a commit got lost.
        wrong: What they found that nobody has written, or an error that nobody expected.
    """

    known: dict[int, list[Turns]] = field(default_factory=dict)
    writes: int = 0
    failed: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.known |= other.known
        self.writes += other.writes
        self.failed += other.failed
        self.lost += other.lost
        self.wrong += other.wrong


class Writer(threading.Thread):
    """Reads and updates its own rows, one after the other, until it is told to stop."""

    def __init__(self, app: Application, name: str, rows: Sequence[int], stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._app: Final = app
        self._rows: Final = rows
        self._ended: Final = stop
        self._random: Final = random.Random(name)
        self._turn = 0
        self.report: Final = Report({number: [FIRST] for number in rows})

    def run(self) -> None:
        while not self._ended.is_set() and len(self.report.wrong) < 5:
            number = self._random.choice(self._rows)
            try:
                self._visit(number)
            except PASSES:
                self.report.failed += 1
                self.report.lost += len(self.report.known[number]) > 1
            except Exception as error:  # noqa: BLE001 - the test shows it
                self.report.wrong.append(f"{self.name}, row {number}: {type(error).__name__}: {error}")
            self._ended.wait(self._random.uniform(0, BREATH))

    def _visit(self, number: int) -> None:
        known, self._turn = self.report.known, self._turn + 1
        with self._app.vault.tenant(TENANT), self._app.sessions() as session:
            patient = session.get_one(Patient, number)
            found = tuple(getattr(patient, each) for each in COLUMNS)
            before = next((each for each in known[number] if content(number, each) == found), None)
            if before is None:
                self.report.wrong.append(f"{self.name}, row {number}: {found} instead of {known[number]}")
                return
            known[number] = [before]
            after = self._change(patient, before)
            session.flush()
            known[number] = [before, after]  # from here on it may have happened
            session.commit()
            known[number] = [after]
            self.report.writes += 1

    def _change(self, patient: Patient, before: Turns) -> Turns:
        """Change all encrypted columns, or some."""
        patient.written_by, patient.turn = self.name, self._turn
        changed = self._random.sample(COLUMNS, self._random.choice((1, 2, 3, 3)))
        for each in changed:
            setattr(patient, each, value(patient.id, each, self._turn))
        return tuple(self._turn if each in changed else turn for each, turn in zip(COLUMNS, before, strict=True))


def write(place: Place, rows: Mapping[str, Sequence[int]], control: Connection) -> None:
    """Be a process of writers until the other end says stop, or is gone."""
    app, stop = open_application(place), threading.Event()
    writers = [Writer(app, name, mine, stop) for name, mine in rows.items()]
    for each in writers:
        each.start()
    try:
        control.recv()
    except EOFError:
        return
    stop.set()
    report = Report()
    for each in writers:
        each.join()
        report.add(each.report)
    control.send(report)
    app.close()


@contextmanager
def writing(place: Place, rows: int, processes: int, threads: int) -> Iterator[Any]:
    """Let writers write during a block; what it is given stops them and returns their report."""
    context = forking()
    owned = {f"w{n}": range(n, rows, processes * threads) for n in range(processes * threads)}
    ends, started = [], []
    for number in range(processes):
        mine, theirs = context.Pipe()
        names = [f"w{n}" for n in range(number, processes * threads, processes)]
        process = context.Process(target=write, args=(place, {name: owned[name] for name in names}, theirs))
        process.start()
        theirs.close()
        ends.append(mine)
        started.append(process)

    def stop() -> Report:
        for end in ends:
            end.send("stop")
        report = Report()
        for end in ends:
            assert end.poll(60), "a process of writers does not end"
            report.add(end.recv())
        return report

    try:
        yield stop
    finally:
        for end in ends:
            end.close()
        for process in started:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
