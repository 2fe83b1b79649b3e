"""Tables that fit a terminal: what can be left out or shortened is, before a word is broken."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from typing import Final

FIXED = "fixed"
"""A column whose cells stay on one line."""

TEXT = "text"
"""A column of prose, whose lines break between words."""

SPARE = "spare"
"""A column that a narrow terminal does without: other commands show what stands in it."""

_GAP: Final = 2
_LEAST_TEXT: Final = 24
_KEY_ARN: Final = re.compile(r"\barn:[\w-]+:kms:[\w-]*:\d*:(key/[\w-]+)")
_KEY_ID: Final = re.compile(r"\bkey/(mrk-[0-9a-f]{8}|[0-9a-f]{8})[0-9a-f-]+")
_LONG_HEX: Final = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")

_AS_IT_IS, _SHORTER, _SHORTEST = range(3)
_ATTEMPTS: Final = ((_AS_IT_IS, True), (_SHORTER, True), (_SHORTER, False), (_SHORTEST, True), (_SHORTEST, False))
"""How much is shortened, and whether spare columns are shown; the first that fits is taken."""


def show_table(columns: Mapping[str, str], rows: list[list[str]]) -> None:
    """Print a table; or one block a row, where no form of the table fits.

    Args:
        columns: Names, and for each one of `FIXED`, `TEXT` and `SPARE`.
        rows: The cells.
    """
    width = shutil.get_terminal_size().columns
    found = fitted(columns, rows, width)
    if found is None:
        _show_blocks(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown, cells = found
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(name, no_wrap=columns[name] != TEXT, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(width=width).print(table)


def fitted(columns: Mapping[str, str], rows: list[list[str]], width: int) -> tuple[list[str], list[list[str]]] | None:
    """Return the columns and cells that fit into a width, or None if nothing does."""
    for how, with_spare in _ATTEMPTS:
        kept = [place for place, kind in enumerate(columns.values()) if with_spare or kind != SPARE]
        cells = [[_shortened(row[place], how) for place in kept] for row in rows]
        shown = [list(columns)[place] for place in kept]
        needed = sum(_least(name, columns[name], [row[n] for row in cells]) for n, name in enumerate(shown))
        if needed + _GAP * (len(shown) - 1) <= width:
            return shown, cells
    return None


def _show_blocks(columns: Mapping[str, str], rows: list[list[str]]) -> None:
    label = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            print()
        for name, cell in zip(columns, row, strict=True):
            if cell:
                print(f"{name:<{label}}  {cell}")


def _least(name: str, kind: str, cells: list[str]) -> int:
    """Return how wide a column has to be."""
    from rich.cells import cell_len

    widest = max(map(cell_len, [name, *cells]))
    if kind != TEXT:
        return widest
    words = [word for cell in [name, *cells] for word in cell.split()]
    return max(min(widest, _LEAST_TEXT), *map(cell_len, words))


def _shortened(cell: str, how: int) -> str:
    if how >= _SHORTER:
        cell = _LONG_HEX.sub(r"\1…", _KEY_ARN.sub(r"…:\1", cell))
    if how >= _SHORTEST:
        cell = _KEY_ID.sub(r"key/\1…", cell)
    return cell
