"""Whose values a column holds, found out before anything is changed: each tenant's KMS is asked whether it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import Connection

from ..errors import BackfillError, PiiVaultError
from ..scope import Scope
from .rows import Place, Rows

NAMED: Final = 20
"""How many problems, or rows, an error names."""


class Owners:
    """Tells the tenant of a row.

    Args:
        scopes: Returns a tenant's scope.
        known: The tenants that are registered and not erased.
        only: The tenant of all rows, where no column says whose they are.
    """

    def __init__(self, scopes: Callable[[str], Scope], known: Iterable[str], only: str | None) -> None:
        self.scopes: Final = scopes
        self.known: Final = frozenset(known)
        self._only: Final = only

    def tenant(self, owner: Any) -> str | None:
        """Return the name of a row's tenant, by what its tenant column holds; None where nobody has it."""
        name = self._only if self._only is not None else None if owner is None else str(owner)
        return name if name in self.known else None

    def concerned(self, connection: Connection, rows: Rows, place: Place) -> list[str]:
        """Return the tenants that have values in a column.

        Raises:
            BackfillError: some rows have no tenant; names them.
        """
        tenants, strange = [], []
        for owner, count in rows.owners(connection):
            tenant = self.tenant(owner)
            if tenant is not None:
                tenants += [tenant] if count else []
            elif self._only is None:
                keys = [_text(key) for key in rows.keys(connection, owner, NAMED)]
                more = ", …" if count > len(keys) else ""
                whose = "no tenant" if owner is None else f"tenant {str(owner)!r}, who is not registered or is erased"
                strange.append(f"{whose}: {count:,} ({', '.join(place.key)} = {'; '.join(keys)}{more})")
        if self._only is not None and self._only not in self.known:
            strange.append(f"tenant {self._only!r}, who is not registered or is erased: all of them")
        if strange:
            raise BackfillError(
                f"rows of {place.name!r} hold values and belong to nobody whose keys there are: {listed(strange)}",
                hint=f"register them, or correct {place.tenant_column or 'default_tenant'!r}; nothing is changed",
            )
        return sorted(set(tenants))

    def ask(self, tenants: Iterable[str]) -> None:
        """Make sure that all tenants' keys are to be had.

        Raises:
            PiiVaultError: the error of the first one whose are not; names all of them.
        """
        failures: list[tuple[str, PiiVaultError]] = []
        for tenant in tenants:
            try:
                with self.scopes(tenant):
                    pass
            except PiiVaultError as error:
                failures.append((tenant, error.with_traceback(None)))
        if failures:
            raise _like(failures[0][1], listed([said(*each) for each in failures]))


def said(tenant: str, error: PiiVaultError) -> str:
    """Return what an error says, with the tenant in front of it."""
    message = str(error.args[0]) if error.args else type(error).__name__
    return message if f"tenant {tenant!r}" in message else f"tenant {tenant!r}: {message}"


def named(tenant: str, error: PiiVaultError) -> PiiVaultError:
    """Return the same error, with the tenant in front of what it says."""
    return _like(error, said(tenant, error))


def listed(problems: list[str]) -> str:
    """Return problems as one text, the first of them if they are many."""
    more = f"; and {len(problems) - NAMED:,} more" if len(problems) > NAMED else ""
    return f"{'; '.join(problems[:NAMED])}{more}"


def _like(error: PiiVaultError, message: str) -> PiiVaultError:
    return type(error)(message, hint=error.hint)


def _text(key: tuple[Any, ...]) -> str:
    return ", ".join(map(str, key))
