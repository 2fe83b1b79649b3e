"""One tenant or all of them: do something for each, and say which rows and which tenants cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import typer

from ..errors import (
    ConfigurationError,
    KmsError,
    PiiEncryptionDisabledError,
    PiiVaultError,
    TenantErasedError,
    TenantSuspendedError,
)
from . import output

if TYPE_CHECKING:
    from ..vault import Vault
    from .index_reports import RowProblem

Report = TypeVar("Report")


def each_tenant(
    vault: Vault,
    name: str | None,
    one: Callable[[str], Report],
    not_looked_at: Callable[..., Report],
) -> list[Report]:
    """Do something for one tenant, or for all; of all, one that fails does not keep the others."""
    if name is not None:
        try:
            return [one(name)]
        except KmsError as error:  # it names the customer's key
            output.say(f"tenant {name!r}: {error}")
            raise typer.Exit(output.FAILED) from None
    found = []
    for tenant in vault.tenants(even_erased=True):
        try:
            found.append(one(tenant))
        except ConfigurationError:
            raise  # what is wrong is the same for all of them
        except TenantErasedError:
            output.say(f"tenant {tenant!r} is erased and was left out")
        except PiiEncryptionDisabledError:
            output.say(f"PII encryption is off for tenant {tenant!r}, which was left out")
        except TenantSuspendedError:
            found.append(not_looked_at(tenant, suspended=True, failure=None))
        except PiiVaultError as error:
            found.append(not_looked_at(tenant, suspended=False, failure=str(error)))
    return found


def say_problems(tenant: str, problems: Sequence[RowProblem]) -> None:
    """Name the values that stay as they are."""
    for each in problems:
        output.say(f"tenant {tenant!r}: {each.column} of the row {each.key}: {each.problem}")
    if problems:
        output.say("what is named stays as it is (mend it or delete it, and run the same command again)")


def say_who_was_left_out(tenant: str, *, suspended: bool, failure: str | None) -> None:
    """Say why nothing was done for a tenant, if so."""
    if suspended:
        output.say(f"tenant {tenant!r} is suspended and was left out")
    if failure is not None:
        output.say(f"tenant {tenant!r}: {failure}")
