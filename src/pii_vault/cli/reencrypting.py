"""`reencrypt`: move values to their tenant's newest data key, so that older ones have nothing left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigurationError
from . import options, output
from .app import app
from .application import metadata_of
from .by_tenant import each_tenant, say_problems, say_who_was_left_out
from .output import FAILED
from .progress import rows_done
from .reencryption_reports import Reencrypted
from .table import FIXED
from .words import duration, instant, or_none
from .working import ApplicationTask

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from ..config import Settings
    from ..reencryption.crews import Crew


class Where(StrEnum):
    """Where workers are."""

    LOCAL = "local"
    DASK = "dask"


TenantColumn = Annotated[
    str | None,
    typer.Option(
        "--tenant-column",
        metavar="NAME",
        help="The column that says whose row it is. With it, values in a tenant's rows that were not sealed for it are "
        "counted.",
    ),
]

Workplace = Annotated[
    Where, typer.Option("--engine", help="Where the workers are: processes of this machine, or a Dask cluster.")
]

Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, max=64, help="So many processes of this machine; 1 by default."),
]

Scheduler = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="The Dask scheduler, such as tcp://scheduler:8786.")
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Count what is left and reckon the time, and write nothing.")]


@app.command("reencrypt")
def reencrypt(
    metadata: options.Metadata,
    name: options.TenantOrAll = None,
    every: options.Every = False,
    application_url: options.ApplicationUrl = None,
    tenant_column: TenantColumn = None,
    batch: options.Batch = None,
    rate: options.Rate = None,
    max_lag: options.MaxLag = None,
    engine: Workplace = Where.LOCAL,
    workers: Workers = None,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
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
    _check_workers(engine, workers, scheduler)
    tables = metadata_of(metadata)
    _check_tenant_column(tables, tenant_column)
    settings: dict[str, Any] = {"kms": kms, "endpoint_url": endpoint_url, "platform_key": platform_key}
    settings |= {"database_url": database_url, "database_schema": database_schema}
    vault = options.vault(**settings)
    database = options.application_engine(database_url, application_url)
    vault.attach(database, tenant_column=tenant_column)
    task = ApplicationTask(metadata, tenant_column)
    whole = options.settings(application_url=application_url, **settings)
    crew = _crew(task, whole, workers, scheduler)
    how: dict[str, Any] = {"rate": rate, "max_lag": max_lag, "crew": crew}
    how |= {"batch": batch} if batch is not None else {}

    def one(tenant: str) -> Reencrypted:
        if dry_run:
            with output.waiting(f"counting rows of {tenant}"):
                done = vault.reencrypt(tenant, metadata=tables, engine=database, dry_run=True, **how)
        else:
            with rows_done(tenant, lines=json, others=crew is not None) as progress:
                done = vault.reencrypt(tenant, metadata=tables, engine=database, progress=progress, **how)
        return Reencrypted.of(done, dry_run)

    found = each_tenant(vault, name, one, partial(Reencrypted.not_looked_at, dry_run=dry_run))
    if json:
        output.show_json("reencrypt", found)
    else:
        _show(found)
    if any(each.is_bad for each in found):
        raise typer.Exit(FAILED)


def _crew(task: ApplicationTask, settings: Settings, workers: int | None, scheduler: str | None) -> Crew | None:
    from ..reencryption.crews import DaskCrew, LocalCrew

    if scheduler is not None:
        crew = options.opened.enter_context(closing(DaskCrew(task, scheduler)))
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it would say is said in one line
        return crew
    if workers is None or workers == 1:
        return None
    return LocalCrew(replace(task, settings=settings), workers)


def _check_workers(engine: Where, workers: int | None, scheduler: str | None) -> None:
    if engine is Where.DASK and scheduler is None:
        raise typer.BadParameter("--engine dask needs --scheduler")
    if engine is Where.LOCAL and scheduler is not None:
        raise typer.BadParameter("--scheduler belongs to --engine dask")
    if engine is Where.DASK and workers is not None:
        raise typer.BadParameter("--workers belongs to --engine local: a Dask cluster has the workers that it has")


def _check_tenant_column(tables: MetaData, tenant_column: str | None) -> None:
    named = {column.name for table in tables.tables.values() for column in table.columns}
    if tenant_column is not None and tenant_column not in named:
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
        if each.seconds is not None and each.seconds >= 1:
            time = duration(each.seconds)
            output.say(f"tenant {each.tenant!r}: it takes about {time}, reckoned from some of the rows")
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
