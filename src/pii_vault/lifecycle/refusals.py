"""Write down that a customer's KMS refuses, where nothing else is left to be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..audit.facts import Event
from ..errors import KmsDeniedError, PiiVaultError
from ..keystore import SupersededError
from .parts import Parts


@contextmanager
def refusals_logged(parts: Parts, name: str) -> Iterator[None]:
    """Let a block's refusal stand in the tenant's audit log, once for each time that it begins."""
    try:
        yield
    except KmsDeniedError as error:
        _log(parts, name, error)
        raise


def _log(parts: Parts, name: str, error: KmsDeniedError) -> None:
    # What matters to the caller is the refusal; that our own KMS or database fails too must not hide it.
    with suppress(PiiVaultError, SupersededError):
        snapshot = parts.store.load(name)
        page = parts.ledger.page(snapshot.tenant, snapshot)
        with parts.store.change(snapshot) as change:
            page.write_once(change, Event.KMS_REFUSED, reason=f"{error.operation}: {error.code}")
