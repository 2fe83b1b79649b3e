"""`key`: what a tenant's data keys are, and what becomes of them; and `rotate --due` for a scheduler."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from . import options, output
from .app import app, key
from .application import metadata_of
from .documents import DestroyedKey, Key
from .output import FAILED
from .reports import Check, DueTenant, Evicted, Rotated
from .table import FIXED, SPARE, TEXT
from .words import NONE, day, instant, or_none, uses

Version = Annotated[int, typer.Argument(metavar="VERSION", help="The data key's version: `key list` shows them.")]


@key.command("list")
def key_list(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """List a tenant's data keys, old ones too."""
    found = [
        Key.of(name, each)
        for each in options.key_store(database_url, database_schema).load(name, even_erased=True).data_keys
    ]
    if json:
        output.show_json("key list", found)
        return
    output.show_rows(
        {
            "version": FIXED,
            "state": FIXED,
            "made": FIXED,
            "by": SPARE,
            "active from": FIXED,
            "until": FIXED,
            "due": FIXED,
            "uses": FIXED,
            "KMS material": SPARE,
        },
        [
            (
                str(each.version),
                each.state,
                each.reason,
                each.created_by,
                day(each.activated_at),
                day(each.deactivated_at),
                day(each.due_at if each.state == "active" else None),
                uses(each.uses),
                or_none(each.kms_key_material_id),
            )
            for each in found
        ],
    )


@key.command("validate")
def key_validate(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Check a tenant's KMS key and data key.

    The checks are those that a new key has to pass before it is used. They change nothing. Exits with 1 when one of
    them does not pass.
    """
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    with output.waiting(f"checking the keys of {name}"):
        found = vault.validate(name)
    if json:
        output.show_json("key validate", [Check.of(each) for each in found])
    else:
        words = {True: "ok", False: "FAILED", None: "not made"}
        output.show_rows(
            {"check": FIXED, "result": FIXED, "finding": TEXT},
            [(each.check, words[each.passed], each.finding) for each in found],
        )
    if not all(each.passed for each in found):
        raise typer.Exit(FAILED)


@key.command("rotate")
def key_rotate(
    name: options.Tenant,
    compromised: Annotated[
        bool,
        typer.Option(
            "--compromised",
            help="A key may have leaked: make the new one now, and do not take one that was made before and waits.",
        ),
    ] = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Give a tenant a new data key and seal with it from now on.

    The new key has to pass all checks first. No row is touched, and old rows stay readable.
    """
    from ..lifecycle.parts import Reason

    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    with output.waiting(f"rotating {name}"):
        done = vault.rotate(name, Reason.COMPROMISED if compromised else Reason.FORCED)
    if json:
        output.show_json("key rotate", Rotated.of(done))
    elif done.made:
        output.show_text(f"tenant {name} seals with data key version {done.version}; earlier versions still open")
    else:
        output.show_text(f"tenant {name} was rotated by somebody else meanwhile, to data key version {done.version}")


@app.command("rotate")
def rotate(
    due: Annotated[bool, typer.Option("--due", help="Rotate what is due. It has to be said.")] = False,
    ahead: Annotated[
        int,
        typer.Option(
            "--ahead",
            metavar="DAYS",
            min=0,
            max=3650,
            help="How long before a key is due the next one is stored, so that every process knows it in time.",
        ),
    ] = 1,
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Rotate every tenant whose data key is due.

    Made for cron, a systemd timer or a Kubernetes CronJob: it may be called as often as one likes and on several
    machines at once. Exits with 1 when a tenant failed; the others are done nevertheless.
    """
    from ..lifecycle.schedule import Step, denied_together

    if not due:
        raise typer.BadParameter("rotate needs --due; one tenant is rotated with `pii-vault key rotate TENANT`")
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    with output.progress("rotating") as progress:
        found = vault.rotate_due(ahead=timedelta(days=ahead), dry_run=dry_run, progress=progress)
    failed = [each for each in found if each.step is Step.FAILED]
    if json:
        output.show_json("rotate --due", [DueTenant.of(each, dry_run) for each in found])
    else:
        # Nothing into a pipe when nothing is due: cron mails what is printed.
        output.show_rows(
            {"tenant": FIXED, "would be" if dry_run else "was": FIXED, "why": TEXT, "version": FIXED, "due": FIXED},
            [
                (each.tenant, each.step, each.reason, str(each.version or NONE), day(each.due_at))
                for each in found
                if each.step is not Step.NOT_DUE
            ],
            empty="nothing is due",
        )
    if denied_together(found):
        denied = sum(each.denied for each in found)
        output.say(f"{denied} customers refuse at once: look at our own role and its permissions first")
    if failed:
        raise typer.Exit(FAILED)


@key.command("evict")
def key_evict(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """Let all processes forget a tenant's keys and ask its KMS anew.

    Each process that is in use looks into the key store every 5 seconds. Nothing else changes, and no KMS is asked.
    """
    from ..keyring.terms import NOTICE_SECONDS

    options.key_store(database_url, database_schema).evict(name)
    if json:
        output.show_json("key evict", Evicted(name, int(NOTICE_SECONDS)))
    else:
        output.show_text(f"every process that holds keys of tenant {name} forgets them within {NOTICE_SECONDS:g} s")


@key.command("deactivate")
def key_deactivate(
    name: options.Tenant,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Stop sealing for a tenant; what is sealed goes on opening.

    `key rotate` starts again, with a new key. The customer's KMS is not asked.
    """
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    done = Key.of(name, vault.deactivate(name, reason))
    if json:
        output.show_json("key deactivate", done)
    else:
        output.show_text(
            f"data key version {done.version} of tenant {name} opens only; nothing is sealed until it is rotated"
        )


@key.command("compromise")
def key_compromise(
    name: options.Tenant,
    version: Version,
    reason: options.Why = "",
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Let only re-encryption open what a data key has sealed.

    The application no longer reads it, and nothing makes it usable again. If a key has leaked, rotate first
    (`key rotate --compromised`), re-encrypt, and mark it then. The customer's KMS is not asked.
    """
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    consequence = f"What data key version {version} of tenant {name} sealed cannot be read until it is re-encrypted."
    output.confirm(consequence, name, yes=yes)
    done = Key.of(name, vault.compromise(name, version, reason))
    if json:
        output.show_json("key compromise", done)
    else:
        said = f"data key version {version} of tenant {name} is compromised: only re-encryption opens what it sealed"
        output.show_text(said)


@key.command("destroy")
def key_destroy(
    name: options.Tenant,
    version: Version,
    metadata: options.Metadata,
    application_url: options.ApplicationUrl = None,
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
    """Drop a data key that has sealed nothing that is left.

    It is gone from the live key store, and its record stays. Backups of the key store keep it, and open it as long as
    the KMS key lives: the report names that, and how to end it. Refused, with the counts, while values are left, and
    until a day after the key was taken out of use. The customer's KMS is not asked.
    """
    tables = metadata_of(metadata)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    engine = options.application_engine(database_url, application_url)

    def destroy(*, dry_run: bool) -> DestroyedKey:
        with output.waiting("counting values"):
            found = vault.destroy_key(name, version, metadata=tables, engine=engine, reason=reason, dry_run=dry_run)
        return DestroyedKey.told(name, found, dry_run=dry_run)

    done = destroy(dry_run=True)
    if not dry_run:
        consequence = f"Data key version {version} of tenant {name} will be gone from the live key store."
        output.confirm(consequence, name, yes=yes)
        done = destroy(dry_run=False)
    if json:
        output.show_json("key destroy", done)
        return
    which = f"data key version {version} of tenant {name}"
    if dry_run:
        output.show_text(f"{which} has sealed nothing that is left, and can be destroyed")
    else:
        output.show_text(f"{which} is destroyed in the live key store, {instant(done.destroyed_at)}")
    output.show_text(done.promise)
