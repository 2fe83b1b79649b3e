"""Print: tables on a terminal, tab-separated lines into a pipe, JSON on demand.

Progress and questions go to standard error, and only to a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

FAILED = 1
USAGE = 2


def show_json(document: Any, kind: Any = None) -> None:
    """Print a document as JSON; `kind` is its type where that is not told by the document, as for a list."""
    from pydantic import TypeAdapter

    print(TypeAdapter(kind or type(document)).dump_json(document, indent=2).decode())


def show_line(document: Any) -> None:
    """Print a document as one line of JSON."""
    from pydantic import TypeAdapter

    print(TypeAdapter(type(document)).dump_json(document).decode())


def show_rows(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table on a terminal; into a pipe one line a row, tabs between, no head."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def show_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, names and values aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def say(message: str) -> None:
    """Print a message for the person at the terminal, or for the log."""
    print(f"pii-vault: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a block a function that shows how many of how many are done, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal that something takes a moment, for the length of a block."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def confirm(consequence: str, name: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone: the answer is the tenant's name.

    Raises:
        typer.Exit: the answer is another one (1), or there is nobody to ask (2).
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("this cannot be undone, and nobody is at a terminal to be asked: give --yes if it is meant")
        raise typer.Exit(USAGE)
    print(consequence, file=sys.stderr)
    if typer.prompt(f"This cannot be undone. Type {name} to go on", err=True, default="", show_default=False) != name:
        say("nothing was changed")
        raise typer.Exit(FAILED)
