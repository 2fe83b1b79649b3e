"""Print: tables on a terminal, tab-separated lines into a pipe, JSON on demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..keystore import TenantSummary


def show_json(document: Any) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def plain(tenant: TenantSummary) -> dict[str, Any]:
    """Return a tenant's summary as JSON can hold it."""
    return asdict(tenant) | {
        "uid": tenant.uid.hex(),
        "keyset_id": f"{tenant.keyset_id:08x}",
        "created_at": tenant.created_at.isoformat(),
        "due_at": tenant.due_at.isoformat() if tenant.due_at is not None else None,
    }


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
