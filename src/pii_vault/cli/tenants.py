"""`tenant`: register customers, and say what is agreed with them."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options, output
from .app import tenant
from .documents import Tenant, TenantDetails
from .words import day, instant, or_none, uses

RotationDays = Annotated[
    str | None,
    typer.Option("--rotation-days", metavar="DAYS|default", help="How often its data key is rotated: 1 to 3650 days."),
]

FollowKms = Annotated[
    bool | None,
    typer.Option(
        "--follow-kms/--no-follow-kms",
        help="Rotate as often as the KMS key's own rotation says, and whenever the KMS key was rotated.",
    ),
]


@tenant.command("add")
def tenant_add(
    name: options.Tenant,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="ARN", help="The full ARN of the tenant's KMS key; without it, the platform's."),
    ] = None,
    role_arn: options.RoleArn = None,
    external_id: options.ExternalId = None,
    shared_key: options.SharedKey = False,
    rotation_days: RotationDays = None,
    follow_kms: FollowKms = None,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
) -> None:
    """Register a tenant and make its first keys in its KMS. Doing it again changes nothing."""
    if key is None and (role_arn or external_id):
        raise typer.BadParameter("--role-arn and --external-id belong to --key")
    days = _days(rotation_days)
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    record = vault.add_tenant(
        name,
        key=key,
        role_arn=role_arn,
        external_id=external_id,
        shared_key=shared_key,
        rotation_days=days,
        follows_kms=bool(follow_kms),
    )
    whose = "" if key is not None else ", under the platform's KMS key"
    print(f"tenant {record.name} is registered, keyset {record.identity.keyset_id:08x}{whose}")


@tenant.command("list")
def tenant_list(database_url: options.DatabaseUrl = None, json: options.Json = False) -> None:
    """List the tenants with their key versions and KMS keys."""
    found = [Tenant.of(each) for each in options.key_store(database_url).summaries()]
    if json:
        output.show_json(found, list[Tenant])
        return
    output.show_rows(
        ("tenant", "state", "keyset", "key version", "KMS key", "registered", "due", "uses"),
        [
            (
                each.name,
                "suspended" if each.suspended else "in use",
                each.keyset_id,
                or_none(each.version),
                or_none(each.kms_key_arn),
                day(each.created_at),
                day(each.due_at),
                uses(each.reserved),
            )
            for each in found
        ],
    )


@tenant.command("show")
def tenant_show(name: options.Tenant, database_url: options.DatabaseUrl = None, json: options.Json = False) -> None:
    """Show everything that the key store knows about a tenant. Asks no KMS."""
    found = TenantDetails.of(options.key_store(database_url).load(name))
    if json:
        output.show_json(found)
        return
    if found.follows_kms:
        period = "as its KMS key's"
    else:
        period = f"every {found.rotation_days} days" if found.rotation_days else "the default"
    output.show_facts(
        {
            "tenant": found.name,
            "state": "suspended" if found.suspended else "in use",
            "registered": instant(found.created_at),
            "tenant uid": found.uid,
            "application uid": found.application,
            "keyset": found.keyset_id,
            "data key": f"version {or_none(found.version)} of {found.versions}, {uses(found.reserved)} uses",
            "rotation": f"{period}; due {instant(found.due_at)}",
            "KMS key": found.kms_key_arn,
            "KMS material": or_none(found.kms_key_material_id),
            "expected in": f"account {found.kms_account}, region {found.kms_region}",
            "role": or_none(found.role_arn),
            "KEK generation": str(found.kek_generation),
            "audit log": f"{found.audit_entries} entries",
        }
    )


@tenant.command("set")
def tenant_set(
    name: options.Tenant,
    rotation_days: RotationDays = None,
    follow_kms: FollowKms = None,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
) -> None:
    """Change how often a tenant's data key is rotated. The day on which the present key is due moves with it."""
    if rotation_days is None and follow_kms is None:
        raise typer.BadParameter("say what to change: --rotation-days, --follow-kms or --no-follow-kms")
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    before = options.key_store(database_url).load(name).tenant.policy
    days = before.rotation_days if rotation_days is None else _days(rotation_days)
    follows = before.follows_kms if follow_kms is None else follow_kms
    vault.set_rotation(name, days=days, follows_kms=follows)
    active = options.key_store(database_url).load(name).active
    print(f"tenant {name} is rotated next on {day(active.due_at if active is not None else None)}")


@tenant.command("suspend")
def tenant_suspend(
    name: options.Tenant,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
) -> None:
    """Let a tenant neither seal nor open until it is resumed. Its KMS is not asked."""
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    changed = vault.suspend(name, reason)
    print(f"tenant {name} is suspended" if changed else f"tenant {name} was suspended already")


@tenant.command("resume")
def tenant_resume(
    name: options.Tenant,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
) -> None:
    """End a tenant's suspension."""
    vault = options.vault(
        database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key, actor=actor
    )
    changed = vault.resume(name, reason)
    print(f"tenant {name} is in use again" if changed else f"tenant {name} was not suspended")


def _days(text: str | None) -> int | None:
    if text is None or text == "default":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"--rotation-days is a number of days or the word default, not {text!r}")
    return int(text)
