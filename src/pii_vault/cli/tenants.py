"""`tenant`: register customers, and say what is agreed with them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer

from . import options, output
from .app import tenant
from .documents import Tenant, TenantDetails
from .table import FIXED, SPARE
from .words import day, instant, or_none, uses

RotationDays = Annotated[
    str | None,
    typer.Option(
        "--rotation-days",
        metavar="DAYS|default",
        help="How often its data key is rotated: every 1 to 3650 days, or as often as the setting rotation_days says.",
    ),
]

FollowKms = Annotated[
    bool | None,
    typer.Option(
        "--follow-kms/--no-follow-kms",
        help="Rotate as often as the KMS key's own rotation says, and whenever the KMS key was rotated.",
    ),
]


Ttl = Annotated[
    str | None,
    typer.Option(
        "--ttl",
        metavar="SECONDS|default",
        help="How long its keys are held in memory without another word of its KMS; 0 asks it in every scope. As long "
        "as the setting ttl says: default.",
    ),
]

Grace = Annotated[
    int | None,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        min=0,
        help="How long beyond that while its KMS cannot be reached; 0 if only --ttl is given. A refusal ends all at "
        "once.",
    ),
]


class Switch(StrEnum):
    """Whether a tenant has a feature."""

    ON = "on"
    OFF = "off"


PiiEncryption = Annotated[
    Switch | None,
    typer.Option(
        "--pii-encryption",
        help="Whether PII encryption is on for it. Off, it neither seals nor opens; its keys and its values stay.",
    ),
]


@tenant.command("add")
def tenant_add(
    name: options.Tenant,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="ARN", help="The full ARN of the tenant's KMS key. Without it, the platform's KMS key."
        ),
    ] = None,
    role_arn: options.RoleArn = None,
    external_id: options.ExternalId = None,
    shared_key: options.SharedKey = False,
    replica_regions: options.ReplicaRegions = None,
    rotation_days: RotationDays = None,
    follow_kms: FollowKms = None,
    pii_encryption: PiiEncryption = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Register a tenant and make its first keys in its KMS. Doing it again changes nothing."""
    if key is None and (role_arn or external_id or shared_key or replica_regions):
        raise typer.BadParameter("--role-arn, --external-id, --shared-key and --replica-regions belong to --key")
    options.check_external_id(role_arn, external_id)
    days = _number("--rotation-days", "days", rotation_days)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    with output.waiting(f"registering {name}"):
        record = vault.add_tenant(
            name,
            key=key,
            role_arn=role_arn,
            external_id=external_id,
            shared_key=shared_key,
            replica_regions=options.regions(replica_regions),
            rotation_days=days,
            follows_kms=bool(follow_kms),
            pii_encryption=pii_encryption is not Switch.OFF,
        )
    whose = "" if key is not None else ", under the platform's KMS key"
    said = f"tenant {record.name} is registered, keyset {record.identity.keyset_id:08x}{whose}"
    if not record.policy.pii_encryption:
        said += "; PII encryption is off for it"
    _done("add", name, said, database_url, database_schema, json)


@tenant.command("list")
def tenant_list(
    database_url: options.DatabaseUrl = None, database_schema: options.DatabaseSchema = None, json: options.Json = False
) -> None:
    """List the tenants with their key versions and KMS keys."""
    found = [Tenant.of(each) for each in options.key_store(database_url, database_schema).summaries()]
    if json:
        output.show_json("tenant list", found)
        return
    output.show_rows(
        {
            "tenant": FIXED,
            "state": FIXED,
            "keyset": SPARE,
            "version": FIXED,
            "KMS key": FIXED,
            "registered": SPARE,
            "due": FIXED,
            "uses": FIXED,
        },
        [
            (
                each.name,
                _in_short(each),
                each.keyset_id,
                or_none(each.key_version),
                or_none(each.kms_key_arn),
                day(each.created_at),
                day(each.due_at),
                uses(each.uses),
            )
            for each in found
        ],
        empty="no tenant is registered: `pii-vault tenant add` does it",
    )


@tenant.command("show")
def tenant_show(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """Show everything that the key store knows about a tenant. Asks no KMS."""
    found = TenantDetails.of(options.key_store(database_url, database_schema).load(name, even_erased=True))
    if json:
        output.show_json("tenant show", found)
        return
    if found.erased:
        active = f"none of {found.key_versions}: all are destroyed"
    elif found.key_version is None:
        active = f"none of {found.key_versions} is active: nothing is sealed"
    else:
        active = f"version {found.key_version} of {found.key_versions}"
    output.show_facts(
        {
            "tenant": found.name,
            "state": _state(found),
            "PII encryption": "on" if found.pii_encryption else "off: neither seals nor opens",
            "registered": instant(found.created_at),
            "tenant uid": found.uid,
            "application uid": found.application,
            "keyset": found.keyset_id,
            "data key": active,
            "uses of it": uses(found.uses),
            "rotation": _rotation(found),
            "due": instant(found.due_at),
            "keys held": _terms(found),
            "KMS key": found.kms_key_arn,
            "KMS material": or_none(found.kms_key_material_id),
            "expected in": f"account {found.kms_account}, region {found.kms_region}",
            "replicas": _replicas(found.replica_regions),
            "role": or_none(found.role_arn),
            "KEK generation": str(found.kek_generation),
            "audit log": f"{found.audit_entries} entries",
        }
    )


_CHANGES: Final = "--rotation-days, --follow-kms, --no-follow-kms, --ttl, --pii-encryption or --replica-regions"


@tenant.command("set")
def tenant_set(
    name: options.Tenant,
    rotation_days: RotationDays = None,
    follow_kms: FollowKms = None,
    ttl: Ttl = None,
    grace: Grace = None,
    pii_encryption: PiiEncryption = None,
    replica_regions: options.ReplicaRegions = None,
    reason: options.Why = "",
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    actor: options.Actor = None,
    json: options.Json = False,
) -> None:
    """Change what is agreed with a tenant.

    That is: how often its data key is rotated, how long its keys are held, whether PII encryption is on for it, and
    where its KMS key has replicas. The day on which the present data key is due moves with the period. All processes
    follow at once: a rotation reads what is agreed, and a process that holds the tenant's keys notices within seconds.
    """
    if ttl is None and grace is not None:
        raise typer.BadParameter("--grace belongs to --ttl")
    if pii_encryption is None and replica_regions is None and reason:
        raise typer.BadParameter("--reason belongs to --pii-encryption and --replica-regions")
    if all(each is None for each in (rotation_days, follow_kms, ttl, pii_encryption, replica_regions)):
        raise typer.BadParameter(f"say what to change: {_CHANGES}")
    days, held = _number("--rotation-days", "days", rotation_days), _number("--ttl", "seconds", ttl)
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    said = []
    if pii_encryption is not None:
        vault.set_pii_encryption(name, pii_encryption is Switch.ON, reason)
        said.append(f"tenant {name}: PII encryption is {pii_encryption}")
    if replica_regions is not None:
        kept = vault.set_replica_regions(name, options.regions(replica_regions), reason)
        said.append(f"tenant {name}: {_replicas(kept.replica_regions)}")
    if ttl is not None:
        vault.set_terms(name, ttl=held, grace=grace or 0)
        held_now = TenantDetails.of(options.key_store(database_url, database_schema).load(name))
        said.append(f"tenant {name}: keys are held {_terms(held_now)}")
    if rotation_days is not None or follow_kms is not None:
        before = options.key_store(database_url, database_schema).load(name).tenant.policy
        vault.set_rotation(
            name,
            days=before.rotation_days if rotation_days is None else days,
            follows_kms=before.follows_kms if follow_kms is None else follow_kms,
        )
        found = TenantDetails.of(options.key_store(database_url, database_schema).load(name))
        when = f"next on {day(found.due_at)}" if found.due_at is not None else "but has no active data key now"
        said.append(f"tenant {name} is rotated {_rotation(found)}, {when}")
    _done("set", name, "; ".join(said), database_url, database_schema, json)


@tenant.command("suspend")
def tenant_suspend(
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
    """Let a tenant neither seal nor open until it is resumed. Its KMS is not asked."""
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    changed = vault.suspend(name, reason)
    said = f"tenant {name} is suspended" if changed else f"tenant {name} was suspended already"
    _done("suspend", name, said, database_url, database_schema, json)


@tenant.command("resume")
def tenant_resume(
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
    """End a tenant's suspension. Its KMS is not asked."""
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
        actor=actor,
    )
    changed = vault.resume(name, reason)
    said = f"tenant {name} is in use again" if changed else f"tenant {name} was not suspended"
    _done("resume", name, said, database_url, database_schema, json)


def _done(
    command: str, name: str, said: str, database_url: str | None, database_schema: str | None, json: bool
) -> None:
    """Print what was done; as JSON, how the tenant stands now."""
    if json:
        output.show_json(
            f"tenant {command}", TenantDetails.of(options.key_store(database_url, database_schema).load(name))
        )
    else:
        output.show_text(said)


def _state(found: TenantDetails) -> str:
    if found.erased:
        return "erased: its keys are destroyed"
    return "suspended: neither seals nor opens" if found.suspended else "in use"


def _replicas(regions: Sequence[str]) -> str:
    if not regions:
        return "none: its keys are unwrapped in the KMS key's region only"
    return f"keys are unwrapped in {', then '.join(regions)} while the KMS key's region is unavailable"


def _in_short(found: Tenant) -> str:
    if found.erased:
        return "erased"
    if found.suspended:
        return "suspended"
    return "in use" if found.pii_encryption else "off"


def _rotation(found: TenantDetails) -> str:
    if found.follows_kms:
        return "as often as its KMS key"
    return f"every {found.rotation_days} days" if found.rotation_days else "by default"


def _terms(found: TenantDetails) -> str:
    if found.ttl_seconds is None:
        return "as long as the vault's ttl says"
    if not found.ttl_seconds:
        return "for one scope: its KMS is asked in each"
    grace = f", in an outage {found.grace_seconds} s more" if found.grace_seconds else ""
    return f"for {found.ttl_seconds} s{grace}"


def _number(option: str, unit: str, text: str | None) -> int | None:
    if text is None or text == "default":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise typer.BadParameter(f"{option} is a number of {unit} or the word default, not {text!r}")
    return int(text)
