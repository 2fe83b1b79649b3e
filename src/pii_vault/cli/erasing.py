"""`tenant erase`: destroy a tenant's keys, and say what that reaches and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from . import options, output
from .app import tenant
from .application import metadata_of
from .erasure_reports import Erased
from .new_file import new_file
from .output import FAILED
from .table import FIXED, SPARE
from .words import NONE, instant, or_none

if TYPE_CHECKING:
    from ..lifecycle.erasure import KeyDeletion
    from ..lifecycle.evidence import Erasure

Metadata = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        metavar="MODULE:NAME",
        help="The application's declarative base or MetaData, such as app.models:Base: count what is left in its "
        "tables.",
    ),
]

Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write the report there as JSON, for its owner only. A new file."),
]

ScheduleKeyDeletion = Annotated[
    int | None,
    typer.Option(
        "--schedule-key-deletion",
        metavar="DAYS",
        min=7,
        max=30,
        help="Have the tenant's KMS key deleted after so many days, where it is our own and nobody else's keys lie "
        "under it; with the credentials of whoever runs this.",
    ),
]


@tenant.command("erase")
def tenant_erase(
    name: options.Tenant,
    metadata: Metadata = None,
    application_url: options.ApplicationUrl = None,
    report: Report = None,
    schedule_key_deletion: ScheduleKeyDeletion = None,
    reason: options.Why = "",
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Destroy all keys of a tenant, so that nothing it sealed opens.

    Final, and for the live key store: the report says what backups and search tokens still mean, and which KMS keys
    have to be deleted. Other processes forget the keys within 5 seconds of use. The customer's KMS is not asked. Done
    again, it changes nothing and reports the same. Exits with 1 when only the KMS key's deletion failed.
    """
    if dry_run and report is not None:
        raise typer.BadParameter("--report tells what was done: leave out --dry-run")
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
    wish = _wish(schedule_key_deletion, kms, endpoint_url)

    def erase(*, dry_run: bool) -> Erasure:
        with output.waiting(f"{'looking at' if dry_run else 'erasing'} {name}"):
            return vault.erase(name, reason=reason, metadata=tables, engine=engine, key_deletion=wish, dry_run=dry_run)

    with ExitStack() as stack:
        write = stack.enter_context(new_file(report)) if report is not None else None
        done = erase(dry_run=True)
        if not dry_run:
            if done.at is None:
                output.confirm(f"All {len(done.keys)} keys of tenant {name} will be destroyed.", name, yes=yes)
            done = erase(dry_run=False)
        told = Erased.of(done, dry_run=dry_run)
        unwritten = _written(write, told) if write is not None else None
    if json:
        output.show_json("tenant erase", told)
    else:
        _show(told)
    if unwritten is not None:
        raise unwritten
    if told.key_deletion_failure is not None:
        output.say(f"the keys are destroyed, but not the KMS key: {told.key_deletion_failure}")
        raise typer.Exit(FAILED)


def _wish(days: int | None, kms: str | None, endpoint_url: str | None) -> KeyDeletion | None:
    if days is None:
        return None
    from ..lifecycle.erasure import KeyDeletion

    return KeyDeletion(options.settings(kms=kms, endpoint_url=endpoint_url).make_key_owner(), days)


def _written(write: Callable[[bytes], None], told: Erased) -> ConfigurationError | None:
    """Write the report; return why that failed, or None. What was done is to be told nevertheless."""
    try:
        write(output.json_of("tenant erase", told) + b"\n")
    except ConfigurationError as error:
        return ConfigurationError(f"the keys are destroyed, but the report was not written: {error}")
    return None


def _show(told: Erased) -> None:
    if told.erased_at is None:
        output.show_text(f"tenant {told.tenant} would be erased: all of these keys would be destroyed")
    elif told.made:
        output.show_text(f"tenant {told.tenant} is erased")
    else:
        output.show_text(f"tenant {told.tenant} was erased already; this is what was done then")
    output.show_facts({"tenant uid": told.uid, "keyset": told.keyset_id, **_facts(told)})
    output.show_rows(
        {"key": FIXED, "version": FIXED, "state before": FIXED, "destroyed": FIXED, "commitment": SPARE},
        [
            (each.kind, str(each.version), each.state_before, instant(each.destroyed_at), each.commitment)
            for each in told.keys
        ],
    )
    if told.looked_into_tables:
        output.show_rows(
            {"table": FIXED, "column": FIXED, "values left": FIXED, "with tokens": FIXED},
            [(each.table, each.column, f"{each.values:,}", f"{each.with_tokens:,}") for each in told.remains],
        )
    for sentence in told.meaning:
        output.show_text(sentence)


def _facts(told: Erased) -> dict[str, str]:
    if told.erased_at is None:
        return {}
    return {
        "erased": instant(told.erased_at),
        "by": or_none(told.actor),
        "reason": told.reason or NONE,
        "audit entry": f"{told.audit_entry}, {told.audit_head}",
        "eviction": or_none(told.eviction),
        "keys in memory": f"forgotten within 5 s of use, used until {instant(told.held_until)} at most",
    }
