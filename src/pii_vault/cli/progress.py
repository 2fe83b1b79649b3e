"""Show how far a job on the application's rows is, and let Ctrl-C end it between two batches.

On a terminal there is a bar for each table. With ``--json`` there are lines of JSON on standard error, at most one a
second for each table, and one at its end. Otherwise there is nothing.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from . import output

if TYPE_CHECKING:
    from types import FrameType

    from ..reencryption.running import Progress

_LINE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class RowsDone:
    """How far a table is.

    Attributes:
        tenant: The tenant's name; null where rows of all tenants are done.
        table: The table, or the column.
        rows_done: How many rows are done, since the command began.
        rows_total: How many there were to do when it began.
        rows_per_second: How many a second since the table was begun; null before the first one.
        seconds_left: How long the rest of the table takes at that pace; null likewise.
    """

    tenant: str | None
    table: str
    rows_done: int
    rows_total: int
    rows_per_second: float | None
    seconds_left: float | None


@contextmanager
def rows_done(tenant: str | None, *, lines: bool, others: bool = False) -> Iterator[Progress]:
    """Give a block what it tells how far it is, and say that when somebody stops it.

    Args:
        tenant: The tenant's name; None where rows of all tenants are done.
        lines: Whether a program reads it.
        others: Whether other processes do it, and finish rows that nobody hears of when it is stopped.
    """
    counts: dict[str, tuple[int, int]] = {}
    show = _lines if lines else _bars if sys.stderr.isatty() else _nothing
    try:
        with show(tenant) as shown, _between_batches() as stop_here:

            def progress(table: str, done: int, total: int) -> None:
                counts[table] = done, total
                shown(table, done, total)
                stop_here()

            yield progress
    except KeyboardInterrupt:
        done, total = map(sum, zip(*counts.values(), strict=True)) if counts else (0, 0)
        least, whose = "at least " if others else "", f" of tenant {tenant!r}" if tenant is not None else ""
        far = f": {least}{done:,} of {total:,} rows{whose} are done" if total or tenant is not None else ""
        output.say(f"stopped{far}; the same command goes on from there")
        raise


@contextmanager
def _between_batches() -> Iterator[Callable[[], None]]:
    """Give a block a function that raises KeyboardInterrupt once Ctrl-C was pressed. Pressed again, it ends at once."""
    pressed = False

    def press(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        output.say_at_once("the rows that are being written are finished; press Ctrl-C again to leave them as they are")

    def stop_here() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield stop_here
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _nothing(_tenant: str | None) -> Iterator[Progress]:
    yield lambda table, done, total: None


@contextmanager
def _bars(tenant: str | None) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # A tenant's name may be in it: braces and brackets are to be shown, not obeyed.
    said = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    count = TextColumn("{task.completed:,} of {task.total:,}", justify="right", table_column=Column(no_wrap=True))
    speed = TextColumn("{task.fields[speed]}", justify="right", table_column=Column(no_wrap=True))
    columns = (said, BarColumn(16), count, speed, TimeRemainingColumn())
    began: dict[str, float] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bars:
        tasks: dict[str, Any] = {}

        def shown(table: str, done: int, total: int) -> None:
            if not total or (table in tasks and done == total == bars.tasks[tasks[table]].completed):
                return  # what comes after the last row is no longer rows
            if table not in tasks:
                what = f"{table} of {tenant}" if tenant is not None else table
                tasks[table] = bars.add_task(output.printable(what), total=total, speed="")
            speed = _speed(began, table, done)
            bars.update(tasks[table], completed=done, total=total, speed="" if speed is None else f"{speed:,.0f}/s")

        yield shown


@contextmanager
def _lines(tenant: str | None) -> Iterator[Progress]:
    began: dict[str, float] = {}
    told: dict[str, tuple[int, float]] = {}
    untold: dict[str, RowsDone] = {}

    def tell(table: str) -> None:
        line = untold.pop(table)
        told[table] = line.rows_done, time.monotonic()
        print(json.dumps(asdict(line)), file=sys.stderr, flush=True)

    def shown(table: str, done: int, total: int) -> None:
        speed = _speed(began, table, done)
        said, when = told.get(table, (None, -math.inf))
        if said == done:
            return
        left = None if speed is None else round((total - done) / speed, 1)
        untold[table] = RowsDone(tenant, table, done, total, None if speed is None else round(speed, 1), left)
        if time.monotonic() >= when + _LINE_SECONDS:
            tell(table)

    try:
        yield shown
    finally:  # where each table has come to
        for table in list(untold):
            tell(table)


def _speed(began: dict[str, float], table: str, done: int) -> float | None:
    """Return how many rows of a table are done a second since it was begun: since the last word that none was."""
    now = time.monotonic()
    if not done or table not in began:
        began[table] = now
    seconds = now - began[table]
    return done / seconds if done and seconds else None
