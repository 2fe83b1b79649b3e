"""What the demo looks like: Rich on a terminal, the same words without colour into a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..audit.reading import LogEntry
from ..encoding import REGISTRY
from ..envelope import HEADER_BYTES, IV_BYTES, TAG_BYTES, parse
from ..errors import PiiVaultError
from .model import Patient

WIDTH: Final = 100
_SIDE_BY_SIDE: Final = 96

_FORMAT, _KEYSET, _VERSION, _CODEC, _INDEX, _IV, _VALUE, _TAG = (
    "magenta",
    "cyan",
    "bold yellow",
    "green",
    "bright_black",
    "blue",
    "bold red",
    "bright_black",
)


class Screen:
    """Prints the demo's steps and keeps count of what failed.

    Args:
        console: Where to; None for standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._steps = 0
        self._refusals: list[bool] = []
        self.claims = 0
        self.failures = 0

    def opening(self, database: str, kms: str) -> None:
        """Say where the demo plays."""
        title = Text("pii_vault", style="bold")
        title.append(f"   a live demo on {database} and {kms}; nothing of it stays behind", style="not bold")
        self._console.print(title)

    def step(self, title: str) -> None:
        """Begin a step."""
        self._steps += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._steps}  ", "bold cyan"), (title, "bold")))

    def tenants(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Show each tenant's name, KMS key and keyset id."""
        table = Table.grid(padding=(0, 2))
        for name, key, keyset in rows:
            table.add_row(name, Text(key, style="dim", overflow="fold"), Text(keyset, style=_KEYSET))
        self._indented(table)

    def side_by_side(self, sealed: bytes, patient: Patient) -> None:
        """Show what is stored beside what the application gets."""
        stored = Panel(
            Group(_hexdump(sealed), Text(), _legend(sealed)),
            title=f"what the database holds: patients.email, {len(sealed)} bytes",
            title_align="left",
            box=ROUNDED,
            border_style="bright_black",
        )
        returned = Panel(
            _as_seen_by_the_application(patient),
            title="what the application gets",
            title_align="left",
            box=ROUNDED,
            border_style="bright_black",
            height=15 if self._console.width >= _SIDE_BY_SIDE else None,
        )
        if self._console.width < _SIDE_BY_SIDE:
            self._indented(Group(stored, returned))
            return
        table = Table.grid(padding=(0, 1))
        table.add_column(width=57)
        table.add_column(width=38)
        table.add_row(stored, returned)
        self._indented(table)

    def searched(self, condition: str) -> None:
        """Show what the database is asked."""
        self._indented(Text.assemble(("SQL  ", "dim"), (" ".join(condition.split()), _INDEX)))

    def versions(self, rows: Iterable[tuple[int, str, bytes, bytes, str]]) -> None:
        """Show two header fields of each row, as the database cut them out, beside the opened value."""
        table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim", pad_edge=False)
        table.add_column("\nrow")
        table.add_column("\ntenant_id")
        table.add_column("keyset\nsubstr(email, 2, 4)", style=_KEYSET)
        table.add_column("key version\nsubstr(email, 6, 2)", style=_VERSION)
        table.add_column("\nemail, as the application gets it")
        for number, tenant, keyset, version, email in rows:
            table.add_row(str(number), tenant, keyset.hex(" "), version.hex(" "), email)
        self._indented(table)

    def log(self, entries: Iterable[LogEntry]) -> None:
        """Show a tenant's audit log."""
        table = Table.grid(padding=(0, 2))
        for each in entries:
            keys = each.details.get("keys", ())
            states = ", ".join(f"version {key['version']} {key['state']}" for key in keys)
            table.add_row(Text(str(each.seq), style="dim"), Text(each.event, style="bold"), each.reason, states)
        self._indented(table)

    def attempt(self, what: str, refusal: PiiVaultError | None) -> None:
        """Show something that must be refused, and how it was."""
        self._refusals.append(refusal is not None)
        self._indented(Text(what))
        if refusal is None:
            self._indented(Text("it was not refused", style="bold red"), by=5)
            return
        message = re.sub(r"arn:\S+:key/(\w{8})\S*", r"arn:...:key/\1...", str(refusal.args[0]))
        self._indented(Text.assemble((f"{type(refusal).__name__}: {message}", "red")), by=5)

    def claim_last_refused(self, count: int, text: str) -> None:
        """Claim that the last attempts were refused."""
        self.claim(all(self._refusals[-count:]) and len(self._refusals) >= count, text)

    def claim(self, holds: bool, text: str) -> None:
        """Print a claim that was just checked."""
        self.claims += 1
        self.failures += not holds
        mark = "does not hold:" if not holds else "✓" if self._console.encoding.startswith("utf") else "ok:"
        self._indented(Text(f"{mark} {text}", style="green" if holds else "bold red"))

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Say on a terminal that something takes a moment."""
        if not self._console.is_terminal or self._console.record:
            return nullcontext()
        return self._console.status(Text(what, style="dim"))

    def closing(self) -> None:
        """Sum up."""
        self._console.print()
        if self.failures:
            summary = Text(f"{self.failures} of {self.claims} claims did not hold.", style="bold red")
        else:
            summary = Text(f"All {self.claims} claims were checked as they were made, and hold.", style="bold green")
        self._console.print(summary)

    def _indented(self, what: RenderableType, by: int = 3) -> None:
        self._console.print(Padding(what, (0, 0, 0, by), expand=False))


def _console() -> Console:
    if not sys.stdout.isatty():
        return Console(width=WIDTH, highlight=False)
    return Console(highlight=False)


def _styles(sealed: bytes) -> list[str]:
    """Return the colour of each byte of a sealed value without tokens."""
    value = len(sealed) - HEADER_BYTES - IV_BYTES - TAG_BYTES
    fields = ((_FORMAT, 1), (_KEYSET, 4), (_VERSION, 2), (_CODEC, 1), (_INDEX, 2), (_IV, IV_BYTES), (_VALUE, value))
    return [style for style, count in (*fields, (_TAG, TAG_BYTES)) for _ in range(count)]


def _hexdump(sealed: bytes) -> Text:
    dump = Text(no_wrap=True)
    styles = _styles(sealed)
    for start in range(0, len(sealed), 16):
        dump.append(f"{start:02x} ", style="dim")
        for position in range(start, min(start + 16, len(sealed))):
            dump.append(f" {sealed[position]:02x}", style=styles[position])
        dump.append("\n" if start + 16 < len(sealed) else "")
    return dump


def _legend(sealed: bytes) -> Table:
    header = parse(sealed)
    value = len(sealed) - HEADER_BYTES - IV_BYTES - TAG_BYTES
    table = Table.grid(padding=(0, 2))
    for style, field, meaning in (
        (_FORMAT, _spaced(sealed[:1]), "format 1, AES-256-GCM"),
        (_KEYSET, _spaced(sealed[1:5]), "keyset: whose keys"),
        (_VERSION, _spaced(sealed[5:7]), f"data key version {header.version}"),
        (_CODEC, _spaced(sealed[7:8]), f"codec: {REGISTRY[header.codec]}"),
        (_INDEX, _spaced(sealed[8:10]), "no search tokens"),
        (_IV, f"{IV_BYTES} bytes", "IV, fresh for every value"),
        (_VALUE, f"{value} bytes", "the value, encrypted"),
        (_TAG, f"{TAG_BYTES} bytes", "tag: proves all of it, tenant and column"),
    ):
        table.add_row(Text(field, style=style), meaning)
    return table


def _as_seen_by_the_application(patient: Patient) -> Text:
    shown = Text()
    shown.append(_CODE, style="dim")
    for name in ("id", "tenant_id", "name", "email", "born"):
        shown.append(f"{name:<10}", style="dim")
        shown.append(f"{getattr(patient, name)}\n", style="bold" if name in ("name", "email", "born") else "")
    shown.rstrip()
    return shown


_CODE: Final = """\
with vault.tenant("acme"):
    session.add(Patient(...))
    session.commit()
    query = select(Patient)
    session.scalars(query).first()

"""


def _spaced(part: bytes) -> str:
    return part.hex(" ")
