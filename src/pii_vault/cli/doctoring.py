"""`doctor`: what must work works, what must be denied is denied, and how our own side is set up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import options, output
from .app import app
from .application import engine_of, metadata_of, sessions_of
from .doctor_reports import Examined
from .output import FAILED
from .table import FIXED, TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..doctor.findings import Finding

_WORDS: Final = {
    "passed": "✓ passed",
    "failed": "✗ FAILED",
    "not_made": "? not made",
    "ask_again": "? ask again",
    "warning": "! warning",
    "info": "· info",
    "not_checked": "- not checked",
}

_HEADS: Final = {
    "must_work": "What must work",
    "must_be_denied": "What must be denied",
    "our_side": "Our side",
}


@app.command("doctor")
def doctor(
    name: options.Tenant,
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata", metavar="MODULE:NAME", help="The application's declarative base, such as app.models:Base."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="MODULE:NAME", help="The application's engine, such as app.db:engine."),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="MODULE:NAME", help="Its session maker or class, such as app.db:Session."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            max=300,
            help="Something was changed at AWS just now: ask again for so long where it is not seen yet.",
        ),
    ] = 0,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Prove what a tenant's KMS allows and denies; check our side.

    It asks as the identity that rotates keys, and changes nothing. Where something is wrong it names the statement of
    the policy, or the setting, to change. What is not named with --metadata, --engine and --session is listed as not
    checked. Exits with 1 when something failed or could not be asked. docs/doctor.md explains every line.
    """
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    tables = metadata_of(metadata) if metadata is not None else None
    application_engine = engine_of(engine) if engine is not None else None
    sessions = sessions_of(session) if session is not None else None
    with output.progress(f"asking the KMS of {name}") as progress:
        found = vault.doctor(
            name, metadata=tables, engine=application_engine, sessions=sessions, wait=wait, progress=progress
        )
    if json:
        output.show_json("doctor", [Examined.of(each) for each in found])
    else:
        show_findings(found)
    if any(each.verdict.is_bad for each in found):
        raise typer.Exit(FAILED)


def show_findings(found: Sequence[Finding]) -> None:
    """Print findings, a table for each group, and below it what is to be changed."""
    on_terminal = sys.stdout.isatty()
    for group, head in _HEADS.items():
        rows = [each for each in found if each.group == group]
        # A pipe has no heads, so its lines name the group.
        lines = [(group, each.check, str(each.verdict), each.finding, each.change or "") for each in rows]
        cells = [(each.check, _WORDS[each.verdict], each.finding) for each in rows]
        shown = ({head: FIXED, "result": FIXED, "finding": TEXT}, cells)
        output.show_rows(dict.fromkeys(Examined.__dataclass_fields__, FIXED), lines, otherwise=shown)
        if on_terminal:
            _show_changes(rows)


def _show_changes(found: Sequence[Finding]) -> None:
    """Print below a table what is to be changed: conditions of policies are too long for a column, and are copied."""
    changes = [each for each in found if each.change]
    if changes:
        print("\nTo change:")
    for each in changes:
        output.show_text(f"{each.check}: {each.change}")
    print()
