"""`adopt`: where plaintext columns are on their way to sealed ones, the next step, and the one back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..stages import Stage
from . import options, output
from .adoption_reports import AdoptionFound
from .app import adopt
from .application import metadata_of
from .output import FAILED
from .progress import rows_done
from .table import FIXED, SPARE, TEXT
from .words import NONE, instant

if TYPE_CHECKING:
    from ..adoption.adopt import Adoption
    from ..reencryption.pacing import Pace

Context = Annotated[
    str,
    typer.Argument(metavar="COLUMN", help="The plaintext column, table.column; or the sealed one's context id."),
]

ContextOrAll = Annotated[
    str | None,
    typer.Argument(metavar="COLUMN", help="The plaintext column, table.column; all that are known by default."),
]

TenantColumn = Annotated[
    str | None,
    typer.Option(
        "--tenant-column",
        metavar="NAME",
        help="The column that says whose row it is. Not needed where the application has one tenant, named with "
        "--tenant.",
    ),
]

OnlyTenant = Annotated[
    str | None, typer.Option("--tenant", metavar="TENANT", help="The tenant of all rows, where no column says it.")
]

Quiet = Annotated[
    float,
    typer.Option(
        "--quiet",
        metavar="SECONDS",
        min=0,
        max=86_400,
        help="Before something is refused, watch for so long whether somebody still does it.",
    ),
]

Days = Annotated[
    int | None,
    typer.Option("--days", metavar="N", min=1, max=90, help="For so many days from now."),
]

End = Annotated[bool, typer.Option("--end", help="End it now, instead.")]


@adopt.command("status")
def adopt_status(
    metadata: options.Metadata,
    name: ContextOrAll = None,
    application_url: options.ApplicationUrl = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Show how far columns are, and what is not as it should be.

    What was decided is in the key store; what is, in the application's tables: columns, guard and rows are looked at,
    and nothing is changed. No KMS is asked. Exits with 1 when something is not as the stage says.
    """
    settings: dict[str, Any] = {"kms": kms, "endpoint_url": endpoint_url, "platform_key": platform_key}
    vault = options.vault(database_url=database_url, database_schema=database_schema, **settings)
    tables = metadata_of(metadata)
    engine = options.application_engine(database_url, application_url)
    names = [name] if name is not None else vault.adoptions(tables)
    found = []
    for each in names:
        with output.waiting(f"counting rows of {each}"):
            found.append(AdoptionFound.of(vault.adoption(each, metadata=tables, engine=engine).status()))
    if json:
        output.show_json("adopt status", found)
    else:
        _show(found)
    if any(each.drift for each in found):
        raise typer.Exit(FAILED)


@adopt.command("next")
def adopt_next(
    name: Context,
    metadata: options.Metadata,
    application_url: options.ApplicationUrl = None,
    tenant_column: TenantColumn = None,
    tenant: OnlyTenant = None,
    batch: options.Batch = None,
    rate: options.Rate = None,
    max_lag: options.MaxLag = None,
    quiet: Quiet = 10.0,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Take the next step with a column.

    The application goes on meanwhile. `adopt status` says what the next step does, and what to deploy before it. Ended
    in any way, it is taken again and goes on. Exits with 1 when something is in the way, and says what.
    """
    settings: dict[str, Any] = {"kms": kms, "endpoint_url": endpoint_url, "platform_key": platform_key, "actor": actor}
    settings |= {"database_schema": database_schema}
    adoption = _adoption(name, metadata, application_url, tenant_column, tenant, database_url, settings)
    if quiet and sys.stderr.isatty() and adoption.status(count=False).stage in (Stage.VERIFIED, Stage.RETIRED):
        output.say(f"for {quiet:g} s it watches whether somebody still writes as before; --quiet says for how long")
    with rows_done(None, lines=json) as progress:
        adoption.next(reason=reason, pace=_pace(batch, rate, max_lag), quiet=quiet, progress=progress)
    _tell(adoption, "adopt next", json=json)


@adopt.command("rollback")
def adopt_rollback(
    name: Context,
    metadata: options.Metadata,
    application_url: options.ApplicationUrl = None,
    tenant_column: TenantColumn = None,
    tenant: OnlyTenant = None,
    batch: options.Batch = None,
    rate: options.Rate = None,
    max_lag: options.MaxLag = None,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Take one step back with a column. No value is lost.

    Deploy the release that fits the stage before it first: what it reads and writes is what counts then.
    """
    settings: dict[str, Any] = {"kms": kms, "endpoint_url": endpoint_url, "platform_key": platform_key, "actor": actor}
    settings |= {"database_schema": database_schema}
    adoption = _adoption(name, metadata, application_url, tenant_column, tenant, database_url, settings)
    with rows_done(None, lines=json) as progress:
        adoption.rollback(reason=reason, pace=_pace(batch, rate, max_lag), progress=progress)
    _tell(adoption, "adopt rollback", json=json)


@adopt.command("fallback")
def adopt_fallback(
    name: Context,
    metadata: options.Metadata,
    days: Days = None,
    end: End = False,
    application_url: options.ApplicationUrl = None,
    tenant_column: TenantColumn = None,
    tenant: OnlyTenant = None,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Let reads take the plaintext where no value is sealed, for days.

    Only where the model declares it (falls_back=True), and only until the switch. It is written into every tenant's
    audit log, and each value that is read so is counted (docs/telemetry.md).
    """
    if end == (days is not None):
        raise typer.BadParameter("name the days, or give --end")
    settings: dict[str, Any] = {"kms": kms, "endpoint_url": endpoint_url, "platform_key": platform_key, "actor": actor}
    settings |= {"database_schema": database_schema}
    adoption = _adoption(name, metadata, application_url, tenant_column, tenant, database_url, settings)
    until = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with output.waiting(f"writing into audit logs of {name}"):
        adoption.allow_fallback(until, reason=reason)
    _tell(adoption, "adopt fallback", json=json)


def _adoption(
    name: str,
    metadata: str,
    application_url: str | None,
    tenant_column: str | None,
    tenant: str | None,
    database_url: str | None,
    settings: dict[str, Any],
) -> Adoption:
    if (tenant_column is None) == (tenant is None):
        raise typer.BadParameter("say whose rows are whose: --tenant-column, or --tenant")
    vault = options.vault(database_url=database_url, **settings)
    engine, tables = options.application_engine(database_url, application_url), metadata_of(metadata)
    return vault.adoption(name, metadata=tables, engine=engine, tenant_column=tenant_column, tenant=tenant)


def _pace(batch: int | None, rate: float | None, max_lag: float | None) -> Pace:
    from ..reencryption.pacing import BATCH, Pace

    return Pace(batch or BATCH, rate, max_lag)


def _tell(adoption: Adoption, command: str, *, json: bool) -> None:
    with output.waiting(f"counting rows of {adoption.pair.name}"):
        found = AdoptionFound.of(adoption.status())
    if json:
        output.show_json(command, found)
    else:
        _show([found])


def _show(found: Sequence[AdoptionFound]) -> None:
    output.show_rows(
        {
            "column": FIXED,
            "stage": FIXED,
            "plaintext": FIXED,
            "sealed": FIXED,
            "plaintext only": SPARE,
            "since": SPARE,
            "next": TEXT,
        },
        [
            (
                each.context,
                each.stage,
                _count(each.rows_with_plaintext, there=each.has_plaintext),
                _count(each.rows_with_sealed, there=each.has_sealed),
                _count(each.rows_with_plaintext_only, there=each.has_plaintext),
                instant(each.steps[-1].at) if each.steps else NONE,
                each.next_step,
            )
            for each in found
        ],
        empty="no column adopts another one: EncryptedString().adopting('email') declares it" if not found else "",
    )
    for each in found:
        if each.fallback_until is not None:
            output.say(f"{each.context}: reads may take the plaintext until {instant(each.fallback_until)}")
        for sentence in each.drift:
            output.say(f"{each.context}: {sentence}")


def _count(rows: int | None, *, there: bool) -> str:
    return "no column" if not there else "?" if rows is None else f"{rows:,}"
