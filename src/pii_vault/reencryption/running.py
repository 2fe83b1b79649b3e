"""Seal all tables anew: in this thread or by a crew, at a pace, and say how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Final

from sqlalchemy import Engine

from ..scope import Scope
from ..telemetry import telemetry
from .crews import Crew
from .pacing import Pace, Pacing
from .resealing import Resealing
from .targets import Problem, Target, Wanted

_PARTS_EACH: Final = 16
"""How many parts each of several workers gets, if there is much to do: none of them waits long for the last one."""

_LARGEST_PART: Final = 100_000
"""Rows of a part at most: what a worker that is lost has begun is looked through again."""

_PART_SECONDS: Final = 10
"""How long a part takes at most where there is a rate: whoever stops the job waits for those that have begun."""

Progress = Callable[[str, int, int], object]
"""Told a table, how many of its rows are done, and of how many."""


def reseal(
    engine: Engine,
    scope: Scope,
    targets: Sequence[Target],
    wanted: Wanted,
    progress: Progress,
    pace: Pace = Pace(),  # noqa: B008 - it cannot be changed
    crew: Crew | None = None,
) -> list[Problem]:
    """Seal anew what is not sealed as wanted, in all tables, for the tenant in scope.

    Args:
        engine: On the application's database, attached to the scope's vault.
        scope: The tenant's scope, entered.
        targets: The tables.
        wanted: What values are to be sealed with.
        progress: Told a table, how many of its rows are done, and of how many.
        pace: How fast.
        crew: Who does it; None for this thread.
    """
    jobs = [Resealing(engine, scope, target, wanted, pace.rows) for target in targets]
    Pacing(engine, pace).check()
    for job in jobs:
        job.declare()
    counts = Counts({job.table: job.count() for job in jobs}, progress)
    if crew is not None:
        return _by_crew(jobs, crew, pace, counts)
    problems = []
    for job in jobs:
        tenant = scope.renew().identity.tenant_uid.hex()
        counts.add(job.table, 0)  # it is begun now
        pacing = Pacing(engine, pace, partial(counts.add, job.table, 0))
        with telemetry().resealing(job.table, tenant), closing(job.run()) as steps:
            for written in steps:
                counts.add(job.table, written)
                pacing.wrote(written)
        problems += job.problems
    return problems


def _by_crew(jobs: Sequence[Resealing], crew: Crew, pace: Pace, counts: Counts) -> list[Problem]:
    """Let a crew do it: parts of all tables, so that nobody waits for the last part of one."""
    each = pace.shared(crew.size)
    most = _LARGEST_PART if each.rate is None else int(each.rate * _PART_SECONDS)
    rows = max(each.rows, min(counts.total // (_PARTS_EACH * crew.size), most))
    parts = [part for job in jobs if counts.left[job.table] for part in job.parts(each, rows)]
    problems: list[Problem] = []
    with closing(crew.do(parts)) as outcomes:
        for done in outcomes:
            counts.add(done.table, done.written)
            counts.others_begin()
            problems += done.problems
    return problems


class Counts:
    """How many rows of each table are done, and of how many.

    Args:
        left: How many rows of each table are left.
        progress: Told of them.
    """

    def __init__(self, left: Mapping[str, int], progress: Progress) -> None:
        self.total: Final = sum(left.values())
        self.left: Final = left
        self._done: Final = dict.fromkeys(left, 0)
        self._progress: Final = progress
        for table, rows in left.items():
            progress(table, 0, rows)

    def add(self, table: str, rows: int) -> None:
        """Take note of rows that were written; of none, that the table is begun or that the job still runs."""
        self._done[table] += rows
        self._progress(table, min(self._done[table], self.left[table]), self.left[table])

    def others_begin(self) -> None:
        """Say that tables of which no row is done are begun at the earliest now."""
        for table in [each for each, done in self._done.items() if not done]:
            self.add(table, 0)
