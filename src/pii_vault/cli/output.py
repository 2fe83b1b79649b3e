"""Print: tables on a terminal, tab-separated lines into a pipe, JSON on demand.

Progress and questions go to standard error, and only to a terminal. Names and reasons come from other people: control
characters in them are written as escapes, so that they can neither move a cursor nor end a line.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

FAILED = 1
USAGE = 2


def show_json(command: str, document: Any) -> None:
    """Print a document as JSON: as the one that a command promises (`reports.kinds`)."""
    _write(json_of(command, document))


def json_of(command: str, document: Any) -> bytes:
    """Return a document as JSON: as the one that a command promises (`reports.kinds`)."""
    from pydantic import TypeAdapter

    from .reports import kinds

    return TypeAdapter(kinds()[command]).dump_json(document, indent=2)


def show_json_lines(command: str, documents: Iterable[Any]) -> None:
    """Print documents as JSON, one line each."""
    from pydantic import TypeAdapter

    from .reports import kinds

    adapter = TypeAdapter(kinds()[command])
    for document in documents:
        _write(adapter.dump_json(document))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines that a program reads, in UTF-8; on a terminal without control characters."""
    shown = map(printable, lines) if sys.stdout.isatty() else lines
    _write("\n".join(shown).encode())


def _write(line: bytes) -> None:
    # What programs read is UTF-8 whatever the terminal's encoding is.
    sys.stdout.flush()
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def show_rows(
    columns: Mapping[str, str], rows: Iterable[Iterable[str]], *, empty: str = "", otherwise: Any = None
) -> None:
    """Print a table on a terminal; into a pipe one line a row, tabs between, no head.

    Args:
        columns: The head: names, and what may become of each on a narrow terminal (`table.fitted`).
        rows: The cells.
        empty: What to print on a terminal when there is no row. A pipe gets nothing.
        otherwise: Columns and rows for a terminal, where a person reads something else than a script.
    """
    found = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in found:
            print("\t".join(row))
        return
    if not found:
        if empty:
            print(empty)
        return
    from .table import show_table

    if otherwise is not None:
        columns, rows = otherwise
        found = [[printable(cell) for cell in row] for row in rows]
    show_table(columns, found)


def show_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, names and values aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {printable(value)}")


def show_text(text: str) -> None:
    """Print sentences: in lines on a terminal, in one line into a pipe."""
    text = printable(text)
    if sys.stdout.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    print(text)


def say(message: str) -> None:
    """Print a message for the person at the terminal, or for the log."""
    print(_said(message), file=sys.stderr)


def say_at_once(message: str) -> None:
    """Print a message from a signal's handler, which may have come in the middle of another message."""
    # Not through sys.stderr: its buffer cannot be written to while it is being written to.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, f"{_said(message)}\n".encode())


def _said(message: str) -> str:
    return f"pii-vault: {printable(' '.join(message.split()))}"


def printable(text: str) -> str:
    r"""Return a text with its control characters as escapes, such as ``\x1b`` or ``\t``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a block a function that shows how many of how many are done, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # A tenant's name may be in it: braces and brackets are to be shown, not obeyed.
    said = TextColumn("{task.description}", markup=False)
    columns = (said, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal that something takes a moment, for the length of a block."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(what))):
        yield


def confirm(consequence: str, name: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone: the answer is the tenant's name.

    Raises:
        typer.Exit: the answer is another one (1), or there is nobody to ask (2).
        KeyboardInterrupt: the answer is Ctrl-C.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("this cannot be undone, and there is no terminal to ask on: give --yes if it is meant")
        raise typer.Exit(USAGE)
    print(printable(consequence), file=sys.stderr)
    print(f"This cannot be undone. Type {printable(name)} to go on: ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise
    if not answer.endswith("\n"):
        print(file=sys.stderr)  # Ctrl-D leaves the cursor behind the question
    if answer.removesuffix("\n") != name:
        say("nothing was changed")
        raise typer.Exit(FAILED)
