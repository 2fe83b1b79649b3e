"""`rewrap`: put key-encryption keys under other KMS keys, or under newer material of the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, output
from .app import app
from .output import FAILED

if TYPE_CHECKING:
    from ..vault import Vault


@app.command("rewrap")
def rewrap(
    name: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="The tenant; or --all.")] = None,
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
            "--to", metavar="ARN", help="The new KMS key's full ARN; without it, the present key's newer material."
        ),
    ] = None,
    to_platform: Annotated[bool, typer.Option("--to-platform", help="To the platform's KMS key.")] = False,
    role_arn: options.RoleArn = None,
    external_id: options.ExternalId = None,
    new_kek: Annotated[
        bool,
        typer.Option(
            "--new-kek",
            help="Make a new key-encryption key instead of re-encrypting the present one inside the KMS.",
        ),
    ] = False,
    shared_key: options.SharedKey = False,
    reason: options.Why = "",
    rate: Annotated[float, typer.Option("--rate", metavar="N", help="With --all: tenants a second, at most.")] = 50.0,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, max=8, help="With --all: tenants at a time; 1 on SQLite.")
    ] = 4,
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Put a tenant's key-encryption key under another KMS key, or newer material of the same. No row is touched.

    The report says what holds afterwards, also against backups. Exits with 1 when a tenant failed; its old wrapping
    stays, and the others are done nevertheless.
    """
    if every == (name is not None):
        raise typer.BadParameter("name one tenant, or give --all")
    if not every and under is not None:
        raise typer.BadParameter("--from belongs to --all")
    if to_platform and to is not None:
        raise typer.BadParameter("give --to or --to-platform, not both")
    if to is None and (role_arn or external_id):
        raise typer.BadParameter("--role-arn and --external-id belong to --to")
    if every and (role_arn or external_id or shared_key):
        raise typer.BadParameter("--role-arn, --external-id and --shared-key are for one tenant")
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    if to_platform:
        to = vault.platform_key
    if name is None:
        how = {"reason": reason, "rate": rate, "workers": workers, "dry_run": dry_run}
        _all(vault, json, under=under, to=to, new_kek=new_kek, **how)
        return
    with output.waiting(f"re-wrapping {name}"):
        done = vault.rewrap(
            name,
            to=to,
            role_arn=role_arn,
            external_id=external_id,
            new_kek=new_kek,
            shared_key=shared_key,
            reason=reason,
            dry_run=dry_run,
        )
    if json:
        output.show_json(done)
        return
    output.show_facts(
        {
            "tenant": done.tenant,
            "would be" if dry_run else "done": done.way,
            "KEK generation": str(done.generation),
            "KMS key": done.kms_key_arn,
            "before": done.previous_arn,
        }
    )
    print(done.promise)


def _all(vault: Vault, json: bool, **how: Any) -> None:
    from ..lifecycle.rewrap_all import Moved

    counted = [0, 0]

    try:
        with output.progress("re-wrapping") as shown:

            def progress(done: int, total: int) -> None:
                counted[:] = done, total
                shown(done, total)

            found = vault.rewrap_all(**how, progress=progress)
    except KeyboardInterrupt:
        output.say(f"stopped after {counted[0]} of {counted[1]} tenants; the same command goes on from there")
        raise
    failed = [each for each in found if each.failure is not None]
    if json:
        output.show_json(found, list[Moved])
    else:
        ways = [each.way for each in found if each.way is not None]
        output.show_rows(("tenant", "failed with"), [(each.tenant, each.failure or "") for each in failed])
        counts = [f"{ways.count(way)} {way}" for way in dict.fromkeys(ways)]
        print(", ".join([*counts, *([f"{len(failed)} failed"] if failed else [])]) or "there is no tenant to re-wrap")
    if failed:
        raise typer.Exit(FAILED)
