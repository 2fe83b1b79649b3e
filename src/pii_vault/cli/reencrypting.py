"""`reencrypt`: move values to their tenant's newest data key, so that older ones have nothing left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigurationError
from . import options, output
from .app import app
from .application import metadata_of
from .by_tenant import each_tenant, rows_done, say_problems, say_who_was_left_out
from .output import FAILED
from .reencryption_reports import Reencrypted
from .table import FIXED
from .words import instant, or_none

if TYPE_CHECKING:
    from sqlalchemy import MetaData


@app.command("reencrypt")
def reencrypt(
    metadata: options.Metadata,
    name: options.TenantOrAll = None,
    every: options.Every = False,
    application_url: options.ApplicationUrl = None,
    tenant_column: Annotated[
        str | None,
        typer.Option(
            "--tenant-column",
            metavar="NAME",
            help="The column that says whose row it is. With it, values in a tenant's rows that were not sealed for it "
            "are counted.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, max=10_000, help="So many rows at a time; 2,000 by default."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what is left, and write nothing.")] = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Seal all values of a tenant with its newest data key.

    While the application goes on: rows are sealed anew in batches, each only if nobody has changed it meanwhile. Run
    again, it goes on where it stopped. It is complete, and older keys can be destroyed, when nothing is left a day
    after the rotation; until then it says when to run it again, which is no failure. Exits with 1 when a value could
    not be sealed anew, when one was not sealed for the tenant in whose row it is, and when a tenant failed.
    """
    options.check_one_or_all(name, every)
    tables = metadata_of(metadata)
    _check_tenant_column(tables, tenant_column)
    vault = options.vault(database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key)
    engine = options.application_engine(database_url, application_url)
    vault.attach(engine, tenant_column=tenant_column)
    how: dict[str, Any] = {"batch": batch} if batch is not None else {}

    def one(tenant: str) -> Reencrypted:
        if dry_run:
            with output.waiting(f"counting rows of {tenant}"):
                done = vault.reencrypt(tenant, metadata=tables, engine=engine, dry_run=True)
        else:
            with rows_done(tenant) as progress:
                done = vault.reencrypt(tenant, metadata=tables, engine=engine, progress=progress, **how)
        return Reencrypted.of(done, dry_run)

    found = each_tenant(vault, name, one, partial(Reencrypted.not_looked_at, dry_run=dry_run))
    if json:
        output.show_json("reencrypt", found)
    else:
        _show(found)
    if any(each.is_bad for each in found):
        raise typer.Exit(FAILED)


def _check_tenant_column(tables: MetaData, tenant_column: str | None) -> None:
    if tenant_column is not None and not any(tenant_column in each.columns for each in tables.tables.values()):
        raise ConfigurationError(
            f"no table of the metadata has a column {tenant_column!r}",
            hint="give --tenant-column as the tables name it",
        )


def _show(found: Sequence[Reencrypted]) -> None:
    output.show_rows(
        {"tenant": FIXED, "version": FIXED, "rows left": FIXED, "state": FIXED},
        [
            (each.tenant, or_none(each.version), f"{each.rows_left:,}", _state(each))
            for each in found
            if each.rows_left is not None
        ],
        empty="there is no tenant" if not found else "",
    )
    for each in found:
        say_who_was_left_out(each.tenant, suspended=each.suspended, failure=each.failure)
        say_problems(each.tenant, each.problems)
        for misplaced, where in (
            (each.foreign, "in its rows, not sealed for it"),
            (each.astray, "sealed for it, in other tenants' rows"),
        ):
            for strange in misplaced:
                values = "1 value" if strange.count == 1 else f"{strange.count:,} values"
                output.say(
                    f"tenant {each.tenant!r}: {values} of {strange.column} {where} and left alone "
                    "(find out how that came about)"
                )
        if each.rows_left and not (each.problems or each.astray or each.dry_run):
            rows = "1 row" if each.rows_left == 1 else f"{each.rows_left:,} rows"
            output.say(f"tenant {each.tenant!r}: {rows} changed meanwhile and left (run the same command again)")


def _state(found: Reencrypted) -> str:
    if found.complete:
        return "complete"
    return f"{'not complete before' if found.dry_run else 'run again after'} {instant(found.drained_at)}"
