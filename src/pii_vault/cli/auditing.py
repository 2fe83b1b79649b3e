"""`audit`: read the log, verify it, and print its end for storage elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigurationError
from . import options, output
from .app import audit
from .output import FAILED
from .words import instant

if TYPE_CHECKING:
    from ..audit.reading import Anchor

Tenants = Annotated[list[str] | None, typer.Argument(metavar="[TENANT]...", help="The tenants; all without a name.")]


@audit.command("log")
def audit_log(
    name: options.Tenant,
    after: Annotated[int, typer.Option("--after", metavar="SEQ", min=0, help="Begin behind this entry.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Print so many entries at most.")
    ] = None,
    database_url: options.DatabaseUrl = None,
    json: options.Json = False,
) -> None:
    """Print a tenant's audit log. It is not verified, and no KMS is asked: `audit verify` does that."""
    from ..audit.reading import LogEntry, entries

    found = entries(options.key_store(database_url), name, after=after, limit=limit)
    if json:
        output.show_json(found, list[LogEntry])
        return
    output.show_rows(
        ("entry", "at", "by", "what", "why", "about"),
        [
            (str(each.seq), instant(each.at), each.actor, each.event, each.reason, _about(each.details))
            for each in found
        ],
    )


@audit.command("verify")
def audit_verify(
    names: Tenants = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            "--anchor",
            metavar="FILE",
            help="What `audit anchor` printed earlier; - reads standard input. It shows what else cannot be seen: that "
            "the newest entries were cut off, and the keys put back to match.",
        ),
    ] = None,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Check that the audit log is what was written, and the key store what the log says.

    Asks the platform's KMS, not the customers'. Exits with 1 when something is wrong, and names the first bad entry.
    """
    from ..audit.reading import Verification

    anchors = _anchors(anchor) if anchor is not None else {}
    vault = options.vault(database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key)
    wanted = names or (sorted(anchors) if anchors else vault.tenants())
    if anchors and (missing := [name for name in wanted if name not in anchors]):
        raise ConfigurationError(f"the anchor file has no anchor of tenant {missing[0]!r}", hint="name others, or none")
    found = []
    with output.progress("verifying") as progress:
        for done, name in enumerate(wanted):
            progress(done, len(wanted))
            found.append(vault.audit.verify(name, anchors.get(name)))
    if json:
        output.show_json(found, list[Verification])
    else:
        output.show_rows(
            ("tenant", "entries", "found"),
            [
                (each.tenant, str(each.entries), problem)
                for each in found
                for problem in each.problems or (f"in order{', and it continues the anchor' if anchors else ''}",)
            ],
        )
    if any(each.problems for each in found):
        raise typer.Exit(FAILED)


@audit.command("anchor")
def audit_anchor(
    names: Tenants = None,
    database_url: options.DatabaseUrl = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
) -> None:
    """Verify the audit logs and print their ends, one line of JSON a tenant.

    Keep them where nobody who can write to the key store can change them, and give them to `audit verify --anchor`.
    """
    vault = options.vault(database_url=database_url, kms=kms, endpoint_url=endpoint_url, platform_key=platform_key)
    wanted = names or vault.tenants()
    with output.progress("anchoring") as progress:
        for done, name in enumerate(wanted):
            progress(done, len(wanted))
            output.show_line(vault.audit.anchor(name))


def _anchors(file: Path) -> dict[str, Anchor]:
    """Return the anchors of a file, by tenant; the last one of a tenant counts."""
    from pydantic import TypeAdapter, ValidationError

    from ..audit.reading import ANCHOR_FORMAT, Anchor

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"the anchor file {file} cannot be read: {reason}") from None
    adapter = TypeAdapter(Anchor)
    found: dict[str, Anchor] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            anchor = adapter.validate_json(line)
        except ValidationError:
            anchor = None
        if anchor is None or anchor.format != ANCHOR_FORMAT:
            raise ConfigurationError(
                f"line {number} of {file} is not an anchor", hint="give what `audit anchor` printed"
            )
        found[anchor.tenant] = anchor
    if not found:
        raise ConfigurationError(f"{file} holds no anchor", hint="give what `audit anchor` printed")
    return found


def _about(details: dict[str, Any]) -> str:
    """Return what an entry touched, in few words."""
    keys = [f"{key['purpose']} key {key['version']} {key['state']}" for key in details.get("keys", ())]
    keks = [f"KEK {kek['generation']} {kek['state']}" for kek in details.get("keks", ())]
    if len(keys) > 3:
        keys = [f"{len(keys)} keys"]
    return ", ".join([*keks, *keys]) or ("the tenant" if "tenant" in details else "")
