"""`report`: the page for a customer's security officer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, output
from .app import app
from .application import metadata_of
from .new_file import new_file
from .output import FAILED

if TYPE_CHECKING:
    from ..report.facts import Report

Metadata = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        metavar="MODULE:NAME",
        help="The application's declarative base or MetaData, such as app.models:Base: count what is in its tables.",
    ),
]

TenantColumn = Annotated[
    str | None,
    typer.Option(
        "--tenant-column",
        metavar="NAME",
        help="The column that says whose row it is, such as tenant_id. Without it, what was never sealed is counted in "
        "everybody's rows.",
    ),
]

Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        max=1_000_000,
        metavar="N",
        help="How many processes the application runs as, to reckon KMS requests a day.",
    ),
]

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the page there as HTML, for its owner only. A new file."),
]

WithoutKms = Annotated[
    bool, typer.Option("--without-kms", help="Do not ask the customer's KMS: its key's state is not told then.")
]


@app.command("report")
def report(
    name: options.Tenant,
    metadata: Metadata = None,
    application_url: options.ApplicationUrl = None,
    tenant_column: TenantColumn = None,
    processes: Processes = None,
    out: Out = None,
    without_kms: WithoutKms = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Report to a customer how its data is protected.

    Changes nothing. Makes every check on the KMS key and the data key, verifies the audit log and counts what is
    stored, where the application's tables are named. Prints the verdict; --out writes the page for the customer. Exits
    with 1 when something is not as promised; the page is written then, too.
    """
    if tenant_column is not None and metadata is None:
        raise typer.BadParameter("--tenant-column belongs to --metadata")
    tables = metadata_of(metadata) if metadata is not None else None
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    engine = options.application_engine(database_url, application_url) if tables is not None else None
    with ExitStack() as stack:
        write = stack.enter_context(new_file(out)) if out is not None else None
        with output.progress("counting values in tables") as progress:
            found = vault.report(
                name,
                metadata=tables,
                engine=engine,
                tenant_column=tenant_column,
                processes=processes,
                ask_kms=not without_kms,
                progress=progress,
            )
        if write is not None:
            from ..report.page import page

            write(page(found).encode())
    if json:
        output.show_json("report", found)
    else:
        _show(found, out)
    if found.verdict == "not_as_promised":
        raise typer.Exit(FAILED)


def _show(found: Report, out: Path | None) -> None:
    output.show_text(found.summary)
    for each in found.findings:
        output.show_text(f"{'problem' if each.problem else 'note'}: {each.text}")
    for text in found.not_looked_at:
        output.show_text(f"not looked at: {text}")
    if out is not None:
        output.say(f"the page is in {out}")
