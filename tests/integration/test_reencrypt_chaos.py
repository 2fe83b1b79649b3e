"""Writers write, jobs are killed, the database dies, the KMS throttles: nothing is lost, and nothing stays old."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest
from sqlalchemy import Engine, insert, select, text
from tests.support.postgres import PostgresServer
from tests.support.reencryption.jobs import Ended, Job, Run
from tests.support.reencryption.patients import (
    COLUMNS,
    FIRST,
    TENANT,
    Application,
    Base,
    Patient,
    Place,
    content,
    log_updates,
    open_application,
    read_log,
)
from tests.support.reencryption.writers import Report, writing
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault.keystore.schema import keys

ROWS: Final = 10_000
PROCESSES, THREADS = 4, 5
TTL: Final = 4.0
BATCH: Final = 100
ROUNDS: Final = 10
SHARES: Final = (0.0, 0.15, 0.3, 0.5, 0.7, 0.95)
"""How much of what was left when it began a job has done when it is killed; 0 for one that has hardly begun."""
KILLS: Final = 50


@dataclass
class Story:
    """What happened, for whoever reads a failure.

    Attributes:
        runs: What became of each job.
        versions: How many versions there are.
        throttled: How the jobs failed that ran while the KMS throttled.
        database_died: How the jobs failed that ran when the database died; empty for one that did not.
        seconds: How long it took.
    """

    runs: list[Run] = field(default_factory=list)
    versions: int = 1
    throttled: list[str] = field(default_factory=list)
    database_died: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(run.killed for run in self.runs)

    @property
    def killed_while_running(self) -> int:
        """How many were killed after they had counted what there is to do, and before it was done."""
        return sum(run.killed and run.total > 0 and run.ended is None for run in self.runs)

    def __str__(self) -> str:
        places = dict(sorted(Counter(self._place(run) for run in self.runs if run.killed).items()))
        ends = Counter(run.ended.failure.partition(":")[0] or "done" for run in self.runs if run.ended)
        return (
            f"{len(self.runs)} jobs, {self.kills} killed: {places}; the others: {dict(ends)}; "
            f"{self.versions} versions; {self.seconds:.0f} s"
        )

    @staticmethod
    def _place(run: Run) -> str:
        if not run.total:
            return "early"
        return f"{10 * run.done // run.total * 10}%"


@dataclass
class Chaos:
    place: Place
    app: Application
    server: PostgresServer
    kms: StrictKms
    story: Story = field(default_factory=Story)
    chance: random.Random = field(default_factory=lambda: random.Random(20))

    def rotate(self) -> None:
        self.app.vault.rotate(TENANT)
        self.story.versions += 1

    def kill_a_job(self, share: float) -> None:
        """Kill one where it has done about this share of its rows, at any point within a batch."""
        early = not share
        share = share and min(share + self.chance.uniform(-0.15, 0.15), 0.99)
        later = self.chance.uniform(0.0, 0.6 if early else 0.03)
        self.story.runs.append(Job(self.place, BATCH).kill_at(share, later))

    def finish_a_job(self) -> Run:
        run = Job(self.place, BATCH).finish()
        self.story.runs.append(run)
        return run

    def kill_the_database_under_a_job(self) -> None:
        job = Job(self.place, BATCH)
        job.wait_for(0.1 + self.chance.random() * 0.5)
        self.server.kill()
        self.server.start()
        self.app.close()  # its connections are to the server that has died
        self.app = open_application(self.place, self.kms.provider())
        run = job.finish()
        self.story.runs.append(run)
        self.story.database_died.append(run.failure)

    def throttle_jobs(self) -> None:
        """Longer than keys are kept: no job gets to its end, and writers have to stop."""
        self.kms.script(FaultRule(error="ThrottlingException", times=None))
        until = time.monotonic() + 1.5 * TTL
        while time.monotonic() < until:
            self.story.throttled.append(self.finish_a_job().failure)
        self.kms.clear_script()


@pytest.fixture
def chaos(crashable_postgres: PostgresServer, strict_kms: StrictKms) -> Iterator[Chaos]:
    url = crashable_postgres.url(crashable_postgres.create_database())
    place = Place(url, strict_kms.environment(), strict_kms.platform_key(), TTL)
    app = open_application(place, strict_kms.provider())
    app.vault.create_all()
    key = strict_kms.customer_key()
    app.vault.add_tenant(TENANT, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
    Base.metadata.create_all(app.engine)
    log_updates(app.engine)
    rows = [
        {"id": n, "tenant_id": TENANT, "revision": 1} | dict(zip(COLUMNS, content(n, FIRST), strict=True))
        for n in range(ROWS)
    ]
    with app.vault.tenant(TENANT), app.engine.begin() as connection:
        connection.execute(insert(Patient), rows)
    chaos = Chaos(place, app, crashable_postgres, strict_kms)
    yield chaos
    chaos.app.close()


def play(chaos: Chaos) -> Report:
    """Let everything happen at once."""
    began, story = time.monotonic(), chaos.story
    with writing(chaos.place, ROWS, PROCESSES, THREADS) as stop:
        while story.kills < KILLS:
            chaos.rotate()
            for share in SHARES:
                chaos.kill_a_job(share)
            if story.versions in (3, 6, 9):
                chaos.kill_the_database_under_a_job()
            elif story.versions == 5:
                chaos.throttle_jobs()
            elif story.versions % 2:
                chaos.finish_a_job()
            assert len(story.runs) < 2 * KILLS, f"hardly a kill has met a job: {story}"
        report: Report = stop()
    story.seconds = time.monotonic() - began
    return report


def contents(app: Application) -> dict[int, tuple[object, ...]]:
    with app.vault.tenant(TENANT), app.sessions() as session:
        rows = session.execute(select(Patient.id, Patient.email, Patient.note, Patient.age))
        return {number: tuple(values) for number, *values in rows}


def stored_versions(engine: Engine) -> set[int | None]:
    query = " UNION ALL ".join(f"SELECT version_of({each}) AS version FROM patients" for each in COLUMNS)
    with engine.connect() as connection:
        return set(connection.scalars(text(f"SELECT DISTINCT version FROM ({query}) WHERE version IS NOT NULL")))


def wrong_revisions(engine: Engine) -> int:
    """Count the rows whose version counter does not say how often the application has written them."""
    query = """
        SELECT count(*) FROM patients LEFT JOIN
            (SELECT id, count(*) AS writes FROM updates WHERE by_application GROUP BY id) USING (id)
        WHERE revision <> 1 + coalesce(writes, 0)
    """
    with engine.connect() as connection:
        return int(connection.scalar(text(query)) or 0)


def data_keys(engine: Engine) -> list[tuple[int, str]]:
    with engine.connect() as connection:
        query = select(keys.c.version, keys.c.state).where(keys.c.purpose == "data").order_by(keys.c.version)
        return [(row.version, row.state) for row in connection.execute(query)]


def test_with_writers_kills_a_crash_and_a_throttling_kms_nothing_is_lost_or_written_twice(chaos: Chaos) -> None:
    report = play(chaos)
    last, story, app = chaos.finish_a_job(), chaos.story, chaos.app
    log = read_log(app.engine)
    what = (
        f"{story}; {report.writes:,} writes, {report.failed} failed, {report.lost} whose answer got lost; the job has "
        f"moved rows {log.moves:,} times"
    )
    print(what)
    found = contents(app)
    lost = [
        f"row {number}: {found[number]}, turns {known}"
        for number, known in report.known.items()
        if found[number] not in [content(number, turns) for turns in known]
    ]
    assert (report.wrong, lost[:5], len(found)) == ([], [], ROWS), what
    assert last.ended == Ended(left=0), what
    assert stored_versions(app.engine) == {story.versions}, what
    assert (log.twice[:5], log.not_forward[:5], log.idle, log.beside) == ([], [], 0, 0), what
    assert wrong_revisions(app.engine) == 0, what
    assert report.writes <= log.writes <= report.writes + report.lost, what
    expected = [(n, "deactivated") for n in range(1, story.versions)] + [(story.versions, "active")]
    assert data_keys(app.engine) == expected, what
    assert app.vault.audit.verify(TENANT).problems == (), what
    # And it was as wild as it is meant to be.
    assert story.killed_while_running >= KILLS / 2, what
    assert story.throttled, what
    assert all("ThrottlingException" in each for each in story.throttled), what
    assert story.database_died, what
    assert report.lost > 0, what
    assert report.writes > 1_000, what
    assert log.moves > ROWS, what
