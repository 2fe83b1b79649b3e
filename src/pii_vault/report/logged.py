"""What the audit log tells a report: its end, its last entries, the re-wraps, and whether it is what was written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..audit.facts import Event
from ..audit.reading import AuditLog, LogEntry
from ..errors import AuditError, ConfigurationError, KmsError
from ..keystore import Snapshot
from .facts import AuditFacts, EventFacts, RewrapFacts

LAST: Final = 10
"""How many entries a report shows."""

_EXTERNAL_ID: Final = re.compile(r": external_id is .*", re.DOTALL)


def logged(log: AuditLog, snapshot: Snapshot) -> tuple[AuditFacts, tuple[RewrapFacts, ...] | None]:
    """Return what the log says of itself, and the re-wraps that it tells of; None of those if it cannot be read."""
    tenant, chain = snapshot.tenant.name, snapshot.chain
    verified, problems = _verified(log, tenant)
    try:
        entries = log.entries(tenant)[: chain.seq if chain is not None else 0]
    except AuditError as error:
        return _facts(snapshot, False, (*problems, str(error)), ()), None
    return _facts(snapshot, verified, problems, entries[-LAST:]), _rewraps(entries)


def _facts(
    snapshot: Snapshot, verified: bool | None, problems: tuple[str, ...], last: Iterable[LogEntry]
) -> AuditFacts:
    chain = snapshot.chain
    events = [EventFacts(each.seq, each.at, each.actor, each.event, each.reason) for each in last]
    return AuditFacts(
        entries=chain.seq if chain is not None else 0,
        head=chain.head.hex() if chain is not None else None,
        verified=verified,
        problems=problems,
        last=tuple(reversed(events)),
    )


def _verified(log: AuditLog, tenant: str) -> tuple[bool | None, tuple[str, ...]]:
    try:
        found = log.verify(tenant)
    except (ConfigurationError, KmsError) as error:
        return None, (str(error),)
    return not found.problems, tuple(map(_without_external_id, found.problems))


def _without_external_id(problem: str) -> str:
    # An ExternalId is no secret to AWS, and yet the report does not show it: neither the right one nor a forged one.
    return _EXTERNAL_ID.sub(": external_id is not what the log says", problem)


def _rewraps(entries: Iterable[LogEntry]) -> tuple[RewrapFacts, ...]:
    found = [
        RewrapFacts(each.at, each.actor, each.reason, each.event == Event.KEK_REPLACED, _kms_key(each))
        for each in entries
        if each.event in (Event.KEK_REWRAPPED, Event.KEK_REPLACED)
    ]
    return tuple(reversed(found))


def _kms_key(entry: LogEntry) -> str | None:
    try:
        arn = entry.details["keks"][-1]["kms_key_arn"]
    except (LookupError, TypeError):
        return None  # whoever may write to the database may write anything; verification says so
    return arn if isinstance(arn, str) else None
