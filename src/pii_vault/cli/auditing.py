"""`audit`: read the log, verify it, and print its end for storage elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AuditError, ConfigurationError
from . import options, output
from .app import audit
from .output import FAILED
from .reports import Entry, Verified
from .table import FIXED, TEXT
from .words import instant

if TYPE_CHECKING:
    from ..audit.reading import Anchor, LogEntry

Tenants = Annotated[list[str] | None, typer.Argument(metavar="TENANT", help="Tenants' names; without any, all.")]


@audit.command("log")
def audit_log(
    name: options.Tenant,
    after: Annotated[int, typer.Option("--after", metavar="ENTRY", min=0, help="Begin behind this entry.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Print so many entries at most.")
    ] = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """Print a tenant's audit log. It is not verified, and no KMS is asked: `audit verify` does that."""
    from ..audit.reading import entries

    found = entries(options.key_store(database_url, database_schema), name, after=after, limit=limit)
    if json:
        output.show_json("audit log", [Entry.of(each) for each in found])
        return
    output.show_rows(
        {"entry": FIXED, "at": FIXED, "by": FIXED, "what": FIXED, "why": TEXT, "about": TEXT},
        [
            (str(each.seq), instant(each.at), each.actor, each.event, each.reason, _about(each.details))
            for each in found
        ],
        empty="there is no entry",
        otherwise=(
            {"entry": FIXED, "at (UTC)": FIXED, "by": FIXED, "what": TEXT},
            [(str(each.seq), f"{each.at:%Y-%m-%d %H:%M:%S}", each.actor, _sentence(each)) for each in found],
        ),
    )


@audit.command("verify")
def audit_verify(
    names: Tenants = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            "--anchor",
            metavar="FILE",
            help="What `audit anchor` printed earlier; - reads standard input. Only this shows that the newest entries "
            "were cut off, and the keys put back to match.",
        ),
    ] = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
    json: options.Json = False,
) -> None:
    """Check that nobody changed the audit log, or the keys.

    The log has to be what was written, and the key store what the log says. Asks the platform's KMS, not the
    customers'. Exits with 1 when something is wrong, and names the first bad entry.
    """
    anchors = _anchors(anchor) if anchor is not None else {}
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    wanted = list(dict.fromkeys(names or [])) or (sorted(anchors) if anchors else vault.tenants(even_erased=True))
    if anchors and (missing := [name for name in wanted if name not in anchors]):
        raise ConfigurationError(f"the anchor file has no anchor of tenant {missing[0]!r}", hint="name others, or none")
    found = []
    with output.progress("verifying") as progress:
        for done, name in enumerate(wanted):
            progress(done, len(wanted))
            found.append(vault.audit.verify(name, anchors.get(name)))
    in_order = "in order, and it continues the anchor" if anchors else "in order"
    if json:
        output.show_json("audit verify", [Verified.of(each) for each in found])
    else:
        output.show_rows(
            {"tenant": FIXED, "entries": FIXED, "finding": TEXT},
            [(each.tenant, str(each.entries), problem) for each in found for problem in each.problems or (in_order,)],
            empty="there is no tenant",
        )
    if any(each.problems for each in found):
        raise typer.Exit(FAILED)


@audit.command("anchor")
def audit_anchor(
    names: Tenants = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    kms: options.Kms = None,
    endpoint_url: options.EndpointUrl = None,
    platform_key: options.PlatformKey = None,
) -> None:
    """Verify the audit logs and print where they end.

    One line of JSON a tenant. Keep them where nobody who can write to the key store can change them, and give them to
    `audit verify --anchor`. Exits with 1 when a log is not in order: it gets no anchor, the others do.
    """
    vault = options.vault(
        database_url=database_url,
        database_schema=database_schema,
        kms=kms,
        endpoint_url=endpoint_url,
        platform_key=platform_key,
    )
    wanted = list(dict.fromkeys(names or [])) or vault.tenants(even_erased=True)
    made, failures = [], []
    with output.progress("anchoring") as progress:
        for done, name in enumerate(wanted):
            progress(done, len(wanted))
            try:
                made.append(vault.audit.anchor(name))
            except AuditError as error:
                failures.append(str(error))
    output.show_json_lines("audit anchor", made)
    for each in failures:
        output.say(each)
    if failures:
        raise typer.Exit(FAILED)


def _anchors(file: Path) -> dict[str, Anchor]:
    """Return the anchors of a file, by tenant; the last one of a tenant counts."""
    from pydantic import TypeAdapter, ValidationError

    from ..audit.reading import ANCHOR_FORMAT, Anchor

    source = "standard input" if str(file) == "-" else str(file)
    try:
        text = (sys.stdin.buffer.read() if source != str(file) else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"the anchors in {source} cannot be read: {reason}") from None
    adapter = TypeAdapter(Anchor)
    found: dict[str, Anchor] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            anchor = adapter.validate_json(line)
        except ValidationError:
            anchor = None
        if anchor is None or anchor.format != ANCHOR_FORMAT:
            raise ConfigurationError(
                f"line {number} of {source} is not an anchor", hint="give what `audit anchor` printed"
            )
        found[anchor.tenant] = anchor
    if not found:
        raise ConfigurationError(f"{source} holds no anchor", hint="give what `audit anchor` printed")
    return found


def _sentence(entry: LogEntry) -> str:
    """Return what an entry says, in one line for a person."""
    why = f" ({entry.reason})" if entry.reason else ""
    about = _about(entry.details)
    return f"{entry.event}{why}{f': {about}' if about else ''}"


def _about(details: dict[str, Any]) -> str:
    """Return what an entry touched, in few words."""
    try:
        keys = [f"{key['purpose']} key {key['version']} {key['state']}" for key in details.get("keys", ())]
        keks = [f"KEK {kek['generation']} {kek['state']}" for kek in details.get("keks", ())]
        kms_keys = [str(details["kms_key"]["arn"])] if "kms_key" in details else []
        adoption = details.get("adoption")
        columns = [f"{adoption['context']} {adoption['stage']}"] if adoption is not None else []
    except (AttributeError, KeyError, TypeError):
        return "not to be read: pii_vault did not write this"  # whoever may write to the database may write anything
    if len(keys) > 3:
        keys = [f"{len(keys)} keys"]
    return ", ".join([*keks, *keys, *kms_keys, *columns]) or ("the tenant" if "tenant" in details else "")
