"""Prove from time stamps that a tenant goes dark in time, whatever happens to its KMS key.

Worker processes read and write encrypted rows of many tenants on a real database, through attached sessions. The KMS
answers over HTTP, from a process of its own. There, tenants' keys are disabled, denied, scheduled for deletion,
throttled, slow, silent or broken, and well again. All processes write down when they did what. Afterwards it is judged
whether anything was sealed or opened later than time to live + grace after a tenant was cut off, whether every value
that was opened is what was written, and whether every stored value is sealed.

It exits with 1 if a promise was broken, or if the run was too short to tell; with 130 when it was interrupted and
nothing was wrong until then.

    python benchmarks/soak.py [--seconds N] [--json] [--processes N] [--threads N] [--tenants N] [--ttl S] [--grace S]
                              [--pause S] [--seed N] [--sqlite]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import create_engine, text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.soaking import aftermath, checker, report
from benchmarks.soaking.application import Application, Base, Note, Place, open_application, value_of
from benchmarks.soaking.chaos import FAULTS
from benchmarks.soaking.child import Child, ChildLostError
from benchmarks.soaking.journal import JournalFile
from benchmarks.soaking.kms_process import Address, Requests, Torment, serve
from benchmarks.soaking.plan import ROWS_AT_FIRST, Plan, tenant_name
from benchmarks.soaking.worker import work
from tests.support.postgres import start_postgres

SPARE_CONNECTIONS = 10
"""How many of PostgreSQL's are left to this process."""

Say = Callable[[str], None]


class Soak:
    """One run: `prepare`, `run`, `judge`."""

    def __init__(self, plan: Plan, folder: Path, say: Say, ending: ExitStack) -> None:
        self._plan = plan
        self._say = say
        self._ending = ending
        self._journals = [folder / f"{number}.journal" for number in range(plan.processes)]
        self._watched: MutableSequence[int] = multiprocessing.get_context("spawn").RawArray("B", plan.tenants)
        self._workers: list[Child] = []
        self._surprises: Counter[str] = Counter()
        self._lost: list[str] = []
        self._torment: Torment | None = None
        self.samples: dict[str, str] = {}

    def prepare(self, folder: Path) -> None:
        """Start the KMS and the workers, register the tenants, and give them rows."""
        plan = self._plan
        self._say("starting the KMS and the database")
        self._kms = self._child("the KMS", serve, plan, self._watched)
        databases = _databases(plan, folder, self._ending)
        address: Address = self._kms.hear()
        self._place = Place(*databases, _connections(plan, databases[0]), address.environment, address.platform_key)
        self._say(f"starting {plan.processes} processes, and registering {plan.tenants} tenants")
        for number, journal in enumerate(self._journals):
            arguments = (plan, self._place, number, journal, self._watched)
            self._workers.append(self._child(f"worker {number}", work, *arguments))
        with self._application() as application:
            application.vault.create_all()
            Base.metadata.create_all(application.engine)
            with ThreadPoolExecutor(1 if plan.sqlite else 4) as pool:
                list(pool.map(lambda number: _move_in(application, number, address), range(plan.tenants)))
        for worker in self._workers:
            worker.hear()

    def run(self) -> tuple[float, bool]:
        """Let them work; return for how long they did, and whether somebody ended it."""
        start, interrupted = time.monotonic(), False
        for child in (self._kms, *self._workers):
            child.say("go")
        try:
            while (left := start + self._plan.seconds - time.monotonic()) > 0:
                self._say(f"{left:.0f} s to go")
                time.sleep(min(left, 1.0))
                if any(child.lost for child in (self._kms, *self._workers)):
                    break
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.monotonic() - start
        self._say("stopping")
        for worker in self._workers:
            self._unless_lost(worker, partial(worker.say, "stop"))
        for worker in self._workers:
            self._unless_lost(worker, partial(self._hear_out, worker))
        self._unless_lost(self._kms, self._end_torment)
        return seconds, interrupted

    def judge(self, seconds: float, interrupted: bool) -> report.Run:
        """Compare what they wrote down with what was promised."""
        self._say("judging")
        torment = self._torment or Torment([], Requests())
        found = checker.check(
            torment.episodes,
            [JournalFile(journal) for journal in self._journals],
            self._plan.bound,
            {fault.name: fault.cuts for fault in FAULTS},
        )
        left = aftermath.Aftermath()
        if self._torment is not None:
            with self._application() as application:
                left = aftermath.look_at(application, map(tenant_name, range(self._plan.tenants)))
        surprises = dict(self._surprises)
        return report.Run(self._plan, found, left, torment.requests, seconds, surprises, self._lost, interrupted)

    def _child(self, name: str, target: Callable[..., None], *arguments: Any) -> Child:
        child = Child(name, target, *arguments)
        self._ending.callback(child.close)
        return child

    @contextmanager
    def _application(self) -> Iterator[Application]:
        """The application in this process, which is in no hurry: nothing is tormented while it works."""
        os.environ.update(self._place.environment)
        application = open_application(self._plan, self._place, attempts=3, read_timeout=10.0)
        try:
            yield application
        finally:
            application.close()

    def _hear_out(self, worker: Child) -> None:
        count, samples = worker.hear()
        self._surprises.update(count)
        self.samples |= samples

    def _end_torment(self) -> None:
        self._kms.say("stop")
        self._torment = self._kms.hear()

    def _unless_lost(self, child: Child, use: Callable[[], None]) -> None:
        try:
            use()
        except ChildLostError:
            if child.name not in self._lost:
                self._lost.append(child.name)


def _databases(plan: Plan, folder: Path, ending: ExitStack) -> tuple[str, str]:
    """The application's database and the key store's."""
    if plan.sqlite:
        # Two files: a key store that counts values does not wait for an application that is writing.
        return f"sqlite:///{folder}/rows.sqlite3", f"sqlite:///{folder}/keys.sqlite3"
    with _uninterrupted():
        server = start_postgres()
        ending.callback(server.close)
    name = server.create_database()
    ending.callback(server.drop_database, name)
    return server.url(name), server.url(name)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off what would interrupt a block until its end: a database that is half made cannot be removed whole."""
    asked: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _frame: asked.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if asked:
            raise KeyboardInterrupt


def _connections(plan: Plan, database: str) -> tuple[int, int]:
    """How many connections a process may have, for rows and for keys."""
    if plan.sqlite:
        return plan.threads, plan.threads
    engine = create_engine(database)
    with engine.connect() as connection:
        most = int(connection.scalar(text("SHOW max_connections")) or 0) - SPARE_CONNECTIONS
    engine.dispose()
    for_keys = most // plan.processes - plan.threads
    if for_keys < 1:
        raise SystemExit(f"PostgreSQL takes {most} connections: too few for that many processes and threads")
    return plan.threads, min(for_keys, plan.threads)


def _move_in(application: Application, number: int, address: Address) -> None:
    """Register a tenant and write its first rows."""
    name, key = tenant_name(number), address.keys[number]
    application.vault.add_tenant(name, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    with application.vault.tenant(name), application.sessions.begin() as session:
        session.add_all(
            Note(number=-row, revision=0, body=value_of(name, -row, 0)) for row in range(1, ROWS_AT_FIRST + 1)
        )


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the workers work (60)")
    parser.add_argument("--processes", type=int, default=8, help="worker processes (8)")
    parser.add_argument("--threads", type=int, default=8, help="threads in each (8)")
    parser.add_argument("--tenants", type=int, default=200, help="tenants (200)")
    parser.add_argument("--ttl", type=float, default=5.0, help="the vault's time to live, in seconds (5)")
    parser.add_argument("--grace", type=float, default=3.0, help="its grace, in seconds (3)")
    parser.add_argument("--pause", type=float, default=0.05, help="what a thread waits between visits (0.05)")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which things go wrong (1)")
    parser.add_argument("--sqlite", action="store_true", help="on SQLite instead of PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(given)
    if min(arguments.processes, arguments.threads) < 1 or arguments.tenants < len(FAULTS):
        parser.error(f"at least one process, one thread and {len(FAULTS)} tenants are needed")
    if arguments.ttl <= 0:
        parser.error("without a time to live nothing is kept, and there is nothing to prove")
    return arguments


def main() -> int:
    """Run it, print what was found, and return the exit code."""
    arguments = vars(_arguments())
    as_json = arguments.pop("json")
    # Whoever ends us otherwise gets the same: children that end, nothing left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    errors = Console(stderr=True)
    with ExitStack() as ending:
        status = ending.enter_context(errors.status("")) if errors.is_terminal else None
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="pii-vault-soak-")))
        soak = Soak(Plan(**arguments), folder, status.update if status else lambda _text: None, ending)
        try:
            soak.prepare(folder)
            run = soak.judge(*soak.run())
        except KeyboardInterrupt:
            errors.print("Interrupted before it was judged.")
            return 130
    for sample in soak.samples.values():
        print(sample, file=sys.stderr)
    if as_json:
        print(json.dumps(report.figures(run)))
    else:
        report.show(run, Console())
    return 1 if report.broken(run) else 130 if run.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
