"""`kms history` and `kms rotation`: when a tenant's KMS key was rotated, and how often it is."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options, output
from .app import kms as kms_group
from .documents import KmsEvents, KmsRotationPeriod
from .table import FIXED, SPARE, TEXT
from .words import NONE, instant, or_none


@kms_group.command("history")
def kms_history(
    name: options.Tenant,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    json: options.Json = False,
) -> None:
    """List the rotations of a tenant's KMS key, and ours beside them.

    One list by time: the KMS key's rotations, as far as its KMS shows them to us; our data-key versions; and when the
    key-encryption key was wrapped. Each line says what it means.
    """
    vault = options.vault(
        database_url=database_url, database_schema=database_schema, kms=kms, endpoint_url=endpoint_url
    )
    with output.waiting(f"asking the KMS of {name}"):
        found = KmsEvents.of(name, vault.kms_history(name))
    if json:
        output.show_json("kms history", found)
        return
    output.show_rows(
        {"when": FIXED, "what": FIXED, "which": FIXED, "why": FIXED, "KMS material": SPARE, "meaning": TEXT},
        [
            (
                instant(each.at),
                each.what.replace("_", " "),
                or_none(each.version),
                each.kind or NONE,
                or_none(each.kms_key_material_id),
                each.meaning,
            )
            for each in found.events
        ],
    )
    if found.rotations_unseen_because is not None:
        output.say(f"the KMS key's own rotations are not to be seen: {found.rotations_unseen_because}")


@kms_group.command("rotation")
def kms_rotation(
    name: options.Tenant,
    every: Annotated[
        int | None,
        typer.Option("--every", metavar="DAYS", help="Let it rotate by itself every 90 to 2560 days."),
    ] = None,
    role_arn: options.RoleArn = None,
    external_id: options.ExternalId = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    json: options.Json = False,
) -> None:
    """Show or set how often a tenant's KMS key rotates by itself.

    With --every it is set, by whoever runs this and may: the customer, or a role of the customer's that --role-arn
    names. The library's own role need not be allowed to. Our data keys follow with `tenant set --follow-kms`.
    """
    if every is None and (role_arn or external_id):
        raise typer.BadParameter("--role-arn and --external-id belong to --every")
    options.check_external_id(role_arn, external_id)
    vault = options.vault(
        database_url=database_url, database_schema=database_schema, kms=kms, endpoint_url=endpoint_url
    )
    with output.waiting(f"asking the KMS of {name}"):
        if every is None:
            found = KmsRotationPeriod.of(name, vault.kms_rotation(name))
        else:
            settings = options.settings(kms=kms, endpoint_url=endpoint_url)
            owner = settings.make_rotation_owner(role_arn, external_id)
            found = KmsRotationPeriod.of(name, vault.set_kms_rotation(name, every, owner))
    if json:
        output.show_json("kms rotation", found)
        return
    _show(found)


def _show(found: KmsRotationPeriod) -> None:
    last = instant(found.last_at) if found.last_unseen_because is None else "not to be seen"
    output.show_facts(
        {
            "tenant": found.tenant,
            "KMS key": found.kms_key_arn,
            "rotates": f"every {found.rotation_days} days" if found.rotation_days else "never by itself",
            "next": instant(found.next_at),
            "last": last,
        }
    )
    if found.last_unseen_because is not None:
        output.say(f"when it was rotated last is not to be seen: {found.last_unseen_because}")
    output.show_text("A rotation of the KMS key changes no data key, and needs nothing from us.")
