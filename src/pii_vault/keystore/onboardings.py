"""What is arranged with customers before their first keys exist: one row each, which is never deleted.

The uid, the keyset id and the ExternalId stand in documents that customers have put into force. The database refuses
to change them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import KeyStoreError
from .onboarding_record import OnboardingRecord, OnboardingStep, Way
from .rows import values
from .schema import onboardings

_COLUMNS: Final = tuple(field.name for field in fields(OnboardingRecord))


class Onboardings:
    """The onboardings of one key store: each method is one short transaction of its own.

    Args:
        transaction: Gives a block a transaction on the key store's database.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction: Final = transaction

    def begin(self, record: OnboardingRecord) -> OnboardingRecord:
        """Store a new onboarding; return what is stored, which is another's where the name was there already.

        Raises:
            KeyStoreError: the uid or the keyset id is another onboarding's.
        """
        try:
            with self._transaction() as connection:
                connection.execute(insert(onboardings).values(**values(record, _COLUMNS)))
        except IntegrityError:
            pass  # there already, or another process was first: what it has stored is what is handed over
        stored = self.load(record.tenant_name)
        if stored is None:
            raise KeyStoreError(
                f"the onboarding of {record.tenant_name!r} cannot be stored: its uid or keyset id is taken",
                hint="begin it again: both are made at random",
            )
        return stored

    def load(self, name: str) -> OnboardingRecord | None:
        """Return an onboarding by the tenant's name, or None."""
        with self._transaction() as connection:
            return _found(connection, name)

    def advance(
        self, before: OnboardingRecord, after: OnboardingStep, now: datetime, **changes: Any
    ) -> OnboardingRecord:
        """Take an onboarding from one step to another, if nobody else has meanwhile; return it as it is then.

        Args:
            before: The onboarding as it was read: it must still be at that step, with that KMS key or none.
            after: The step that it is at from now on; the same one to change something without a step.
            now: The present instant.
            changes: Columns that change with it: ``kms_key_arn`` once it is known, say.

        Raises:
            KeyStoreError: it is another one by now, or there is none, or a change is not allowed. Nothing was changed.
        """
        name = before.tenant_name
        same_key = onboardings.c.kms_key_arn.is_not_distinct_from(before.kms_key_arn)
        mine = (onboardings.c.tenant_name == name, onboardings.c.step == before.step, same_key)
        try:
            with self._transaction() as connection:
                moved = update(onboardings).where(*mine).values(step=after, step_at=now, **changes)
                if connection.execute(moved).rowcount == 1:
                    found = _found(connection, name)
                    assert found is not None
                    return found
        except IntegrityError:
            raise KeyStoreError(
                f"the key store refuses a change of the onboarding of {name!r}",
                hint="what was handed over never changes: to arrange something else, take another name",
            ) from None
        raise KeyStoreError(
            f"the onboarding of {name!r} is not at {before.step} any longer, or has another KMS key",
            hint="somebody else goes on with it: look where it stands now",
        )

    def all(self) -> list[OnboardingRecord]:
        """Return all onboardings, by the tenants' names."""
        with self._transaction() as connection:
            return [_record(row) for row in connection.execute(select(onboardings).order_by(onboardings.c.tenant_name))]


def _found(connection: Connection, name: str) -> OnboardingRecord | None:
    row = connection.execute(select(onboardings).where(onboardings.c.tenant_name == name)).one_or_none()
    # Compared again here, byte for byte: a database may fold case or trailing spaces.
    return None if row is None or row.tenant_name != name else _record(row)


def _record(row: Row[Any]) -> OnboardingRecord:
    found = dict(row._mapping)
    found |= {
        "tenant_uid": bytes(row.tenant_uid),
        "way": Way(row.way),
        "step": OnboardingStep(row.step),
    }
    return OnboardingRecord(**found)
