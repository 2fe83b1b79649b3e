"""`rewrap`: put key-encryption keys under other KMS keys, or under newer material of the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, output
from .app import app
from .output import FAILED
from .reports import Rewrapped, RewrappedTenant
from .table import FIXED, TEXT

if TYPE_CHECKING:
    from ..vault import Vault


@app.command("rewrap")
def rewrap(
    name: options.TenantOrAll = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every tenant, or those under --from. Run again, it goes on where it stopped.")
    ] = False,
    under: Annotated[
        str | None,
        typer.Option("--from", metavar="ARN", help="With --all: only tenants under this KMS key."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="ARN", help="The new KMS key's full ARN. Without it, the present key's newer material."
        ),
    ] = None,
    to_platform: Annotated[bool, typer.Option("--to-platform", help="To the platform's KMS key.")] = False,
    role_arn: options.RoleArn = None,
    external_id: options.ExternalId = None,
    replica_regions: options.ReplicaRegions = None,
    new_kek: Annotated[
        bool,
        typer.Option(
            "--new-kek",
            help="Make a new key-encryption key instead of re-encrypting the present one inside the KMS.",
        ),
    ] = False,
    shared_key: options.SharedKey = False,
    reason: options.Why = "",
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="With --all: so many tenants a second, at most; 50 by default."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            max=8,
            help="With --all: so many tenants at a time; 4 by default. Give 1 where the key store is on SQLite.",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Put a tenant's key-encryption key under another KMS key.

    Or under newer material of the same KMS key. No data key changes, and no row is touched. The report says what holds
    afterwards, also against backups. Exits with 1 when a tenant failed: its old wrapping stays, and the
    others are done nevertheless.
    """
    options.check_one_or_all(name, every)
    _check_destination(to, to_platform, role_arn, external_id, shared_key)
    if replica_regions is not None and (to is None or every):
        raise typer.BadParameter("--replica-regions belongs to --to, for one tenant; of the present key: tenant set")
    if every:
        _check_all(under, to, to_platform, role_arn, rate)
    elif under is not None or rate is not None or workers is not None:
        raise typer.BadParameter("--from, --rate and --workers belong to --all")
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    if to_platform:
        to = vault.platform_key
    how: dict[str, Any] = {"to": to, "new_kek": new_kek, "shared_key": shared_key, "reason": reason}
    if name is not None:
        how |= {"role_arn": role_arn, "external_id": external_id, "replica_regions": options.regions(replica_regions)}
        _one(vault, name, json, dry_run=dry_run, **how)
        return
    how |= {"rate": rate} if rate is not None else {}
    how |= {"workers": workers} if workers is not None else {}
    _all(vault, json, dry_run=dry_run, under=under, **how)


def _check_destination(
    to: str | None, to_platform: bool, role_arn: str | None, external_id: str | None, shared_key: bool
) -> None:
    if to_platform and to is not None:
        raise typer.BadParameter("give --to or --to-platform, not both")
    if to is None and shared_key:
        raise typer.BadParameter("--shared-key belongs to --to")
    if to is None and (role_arn or external_id):
        raise typer.BadParameter("--role-arn and --external-id belong to --to")
    options.check_external_id(role_arn, external_id)


def _check_all(
    under: str | None,
    to: str | None,
    to_platform: bool,
    role_arn: str | None,
    rate: float | None,
) -> None:
    if role_arn:
        raise typer.BadParameter("--role-arn and --external-id are for one tenant")
    if under is None and (to is not None or to_platform):
        raise typer.BadParameter(
            "with --all, --to and --to-platform need --from: they would take every customer's key away"
        )
    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("--rate is a number of tenants a second, above 0")


def _one(vault: Vault, name: str, json: bool, *, dry_run: bool, **how: Any) -> None:
    with output.waiting(f"re-wrapping {name}"):
        done = vault.rewrap(name, dry_run=dry_run, **how)
    if json:
        output.show_json("rewrap", Rewrapped.of(done, dry_run))
        return
    output.show_facts(
        {
            "tenant": done.tenant,
            "would be" if dry_run else "was": done.way,
            "KEK generation": str(done.generation),
            "KMS key": done.kms_key_arn,
            "before": done.previous_arn,
        }
    )
    output.show_text(done.promise)


def _all(vault: Vault, json: bool, *, dry_run: bool, **how: Any) -> None:
    from ..lifecycle.rewrap import Way

    counted = [0, 0]
    try:
        with output.progress("re-wrapping") as shown:

            def progress(done: int, total: int) -> None:
                counted[:] = done, total
                shown(done, total)

            found = vault.rewrap_all(**how, dry_run=dry_run, progress=progress)
    except KeyboardInterrupt:
        if not dry_run:
            stopped = f"stopped: {counted[0]} of {counted[1]} tenants are done"
            begins_anew = how["new_kek"] and how["under"] is None
            output.say(
                f"{stopped}; the same command {'begins with all of them' if begins_anew else 'goes on from there'}"
            )
        raise
    if how["under"] is None:
        for name in sorted({*vault.tenants(even_erased=True)} - {*vault.tenants()}):
            output.say(f"tenant {name!r} is erased and was left out")
    failed = [each for each in found if each.failure is not None]
    if json:
        output.show_json("rewrap --all", [RewrappedTenant.of(each, dry_run) for each in found])
    else:
        output.show_rows({"tenant": FIXED, "failed with": TEXT}, [(each.tenant, each.failure or "") for each in failed])
        ways = [each.way for each in found if each.way is not None]
        counts = [f"{ways.count(way)} {'would be ' if dry_run else ''}{way}" for way in dict.fromkeys(ways)]
        counts += [f"{len(failed)} failed"] if failed else []
        output.show_text(", ".join(counts) or "there is no tenant to re-wrap")
        done = [each for each in found if each.way not in (None, Way.UNCHANGED)]
        for promise in dict.fromkeys(each.promise for each in done):
            output.show_text(promise or "")
    if failed:
        raise typer.Exit(FAILED)
