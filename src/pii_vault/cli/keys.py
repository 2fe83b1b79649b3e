"""`key`: what a tenant's data keys are, and what becomes of them; and `rotate --due` for a scheduler."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated

import typer

from . import options, output
from .app import app, key
from .application import metadata_of
from .documents import Key
from .output import FAILED
from .words import day, instant, or_none, uses

Version = Annotated[int, typer.Argument(metavar="VERSION", help="The data key's version: key list shows them.")]


@key.command("list")
def key_list(name: options.Tenant, database_url: options.DatabaseUrl = None, json: options.Json = False) -> None:
    """List a tenant's data keys, old ones too."""
    found = [Key.of(each) for each in options.key_store(database_url).load(name).data_keys]
    if json:
        output.show_json(found, list[Key])
        return
    output.show_rows(
        ("version", "state", "reason", "by", "active from", "to", "due", "uses", "KMS material"),
        [
            (
                str(each.version),
                each.state,
                each.reason,
                each.created_by,
                day(each.activated_at),
                day(each.deactivated_at),
                day(each.due_at),
                uses(each.reserved),
                or_none(each.kms_key_material_id),
            )
            for each in found
        ],
    )


@key.command("validate")
def key_validate(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Check a tenant's KMS key and data key, as is done before a new key is used. Changes nothing.

    Exits with 1 when a check does not pass.
    """
    from ..lifecycle.validation import Outcome

    vault = options.vault(database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key)
    with output.waiting(f"checking the keys of {name}"):
        found = vault.validate(name)
    if json:
        output.show_json(found, list[Outcome])
    else:
        words = {True: "ok", False: "FAILED", None: "not made"}
        output.show_rows(
            ("check", "", "what it found"), [(each.check, words[each.passed], each.finding) for each in found]
        )
    if not all(each.passed for each in found):
        raise typer.Exit(FAILED)


@key.command("rotate")
def key_rotate(
    name: options.Tenant,
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="A key may have leaked: make the next one anew, not one that waits."),
    ] = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Make a new data key for a tenant and seal with it from now on. Rows are not touched; old ones stay readable."""
    from ..lifecycle.parts import Reason

    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    with output.waiting(f"rotating {name}"):
        done = vault.rotate(name, Reason.COMPROMISED if compromised else Reason.FORCED)
    if json:
        output.show_json(done)
    elif done.made:
        print(f"tenant {name} seals with data key version {done.version}; earlier versions still open")
    else:
        print(f"tenant {name} was rotated by somebody else meanwhile, to data key version {done.version}")


@app.command("rotate")
def rotate(
    due: Annotated[bool, typer.Option("--due", help="Every tenant whose data key is due: say it.")] = False,
    ahead: Annotated[
        int,
        typer.Option(
            "--ahead",
            metavar="DAYS",
            min=0,
            help="How long before it is due the next key is stored, so that every process knows it in time.",
        ),
    ] = 1,
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Rotate every tenant whose data key is due. Made for cron, a systemd timer or a Kubernetes CronJob.

    May be called as often as one likes and on several machines at once. Exits with 1 when a tenant failed; the others
    are done nevertheless.
    """
    from ..lifecycle.schedule import Due, Step, denied_together

    if not due:
        raise typer.BadParameter("rotate needs --due; one tenant is rotated with `pii-vault key rotate TENANT`")
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    with output.progress("rotating") as progress:
        found = vault.rotate_due(ahead=timedelta(days=ahead), dry_run=dry_run, progress=progress)
    failed = [each for each in found if each.step is Step.FAILED]
    if json:
        output.show_json(found, list[Due])
    else:
        told = [each for each in found if each.step is not Step.NOT_DUE]
        output.show_rows(
            ("tenant", "would be" if dry_run else "what", "why", "version", "due"),
            [(each.tenant, each.step, each.reason, str(each.version or "none"), day(each.due_at)) for each in told],
        )
        if not told and sys.stdout.isatty():
            print("nothing is due")  # not into a pipe: cron mails what is printed
    if denied_together(found):
        output.say(f"{len(failed)} customers refuse at once: look at our own role and its permissions first")
    if failed:
        raise typer.Exit(FAILED)


@key.command("deactivate")
def key_deactivate(
    name: options.Tenant,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Stop sealing for a tenant; what is sealed goes on opening. `key rotate` starts again, with a new key."""
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    done = Key.of(vault.deactivate(name, reason))
    if json:
        output.show_json(done)
    else:
        print(f"data key version {done.version} of tenant {name} opens only; nothing is sealed until it is rotated")


@key.command("compromise")
def key_compromise(
    name: options.Tenant,
    version: Version,
    reason: options.Why = "",
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Mark a data key as compromised: only re-encryption opens what it sealed, the application does not.

    If a key has leaked, rotate first (`key rotate --compromised`), re-encrypt, and mark it then.
    """
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    consequence = f"What data key version {version} of tenant {name} sealed cannot be read until it is re-encrypted."
    output.confirm(consequence, name, yes=yes)
    done = Key.of(vault.compromise(name, version, reason))
    if json:
        output.show_json(done)
    else:
        print(f"data key version {version} of tenant {name} is compromised: only re-encryption opens what it sealed")


@key.command("destroy")
def key_destroy(
    name: options.Tenant,
    version: Version,
    metadata: Annotated[
        str,
        typer.Option(
            "--metadata",
            metavar="MODULE:NAME",
            help="The application's declarative base or MetaData, such as app.models:Base. Its tables are searched for "
            "values that the key has sealed.",
        ),
    ],
    application_url: Annotated[
        str | None,
        typer.Option("--application-url", metavar="URL", help="The application's database, if not the key store's."),
    ] = None,
    reason: options.Why = "",
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Drop a data key from the live key store, once no value is left that it sealed. Its record stays.

    Backups of the key store keep it, and open it as long as the KMS key lives. Refused, with the counts, while values
    are left, and until a day after the key was taken out of use.
    """
    tables = metadata_of(metadata)
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    engine = options.application_engine(database_url, application_url)

    def destroy(*, dry_run: bool) -> Key:
        with output.waiting("counting values"):
            found = vault.destroy_key(name, version, metadata=tables, engine=engine, reason=reason, dry_run=dry_run)
        return Key.of(found)

    done = destroy(dry_run=True)
    if not dry_run:
        consequence = f"Data key version {version} of tenant {name} will be gone from the live key store."
        output.confirm(consequence, name, yes=yes)
        done = destroy(dry_run=False)
    if json:
        output.show_json(done)
    elif dry_run:
        print(f"data key version {version} of tenant {name} has sealed nothing that is left, and can be destroyed")
    else:
        print(
            f"data key version {version} of tenant {name} is destroyed, {instant(done.destroyed_at)}: in the live key "
            "store only; backups open it as long as the KMS key lives"
        )
