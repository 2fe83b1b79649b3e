"""The Alembic operation that gives stored values their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Engine, MetaData

from ..errors import BlindIndexError, ConfigurationError, PiiVaultError
from ..reencryption.indexing import Built, State
from .transactions import committed

if TYPE_CHECKING:
    from ..vault import Vault

_MOST: Final = 20
"""How many problems an error names."""


@Operations.register_operation("build_index")
class BuildIndexOp(MigrateOperation):
    """Give stored values the tokens that their columns declare.

    Args:
        vault: Holds the keys.
        metadata: The application's tables, as the models are now.
        tenants: Whose values; everybody's by default.
    """

    def __init__(self, vault: Any, metadata: MetaData, tenants: Sequence[str] | None = None) -> None:
        self.vault: Vault = vault
        self.metadata = metadata
        self.tenants = tenants

    @classmethod
    def build_index(
        cls, operations: Operations, vault: Any, metadata: MetaData, tenants: Sequence[str] | None = None
    ) -> None:
        """Give every value of the tenants its tokens, as ``pii-vault index build`` does.

        It works in transactions of its own, so what the migration has done before is committed first. Ended in any way
        and run again, it goes on where it was: let it be the only operation of its revision.

        Args:
            operations: Alembic's.
            vault: Holds the keys.
            metadata: The application's tables, as the models are now.
            tenants: Whose values; everybody's by default.

        Raises:
            ConfigurationError: SQL is to be written to a file, or the transaction is not the migration's own.
            BlindIndexError: an index is not complete; names columns and primary keys.
        """
        operations.invoke(cls(vault, metadata, tenants))


@Operations.implementation_for(BuildIndexOp)
def _build(operations: Operations, operation: BuildIndexOp) -> None:
    context = operations.migration_context
    if context.as_sql:
        raise ConfigurationError(
            "op.build_index seals values anew, which cannot be written as SQL",
            hint="run `pii-vault index build` for each tenant after the migration's SQL",
        )
    with committed(operations, "build_index"):
        problems = list(_problems(operation, operations.get_bind().engine))
    if problems:
        more = f"; and {len(problems) - _MOST:,} more" if len(problems) > _MOST else ""
        raise BlindIndexError(
            f"not every value has its tokens: {'; '.join(problems[:_MOST])}{more}",
            hint="mend that and run the migration again: it goes on where it was",
        )


def _problems(operation: BuildIndexOp, engine: Engine) -> Iterator[str]:
    vault = operation.vault
    for tenant in vault.tenants() if operation.tenants is None else operation.tenants:
        try:
            built = vault.build_index(tenant, metadata=operation.metadata, engine=engine)
        except ConfigurationError:  # it is nobody's in particular
            raise
        except PiiVaultError as error:  # one customer's KMS is no reason to leave out the others
            yield f"tenant {tenant!r}: {error.args[0]}"
        else:
            yield from _left(tenant, built)


def _left(tenant: str, built: Built) -> Iterator[str]:
    for problem in built.problems:
        yield f"tenant {tenant!r}, {problem.column} of row {problem.key}: {problem.why}"
    named = {problem.column for problem in built.problems}
    for status in built.statuses:
        what = f"tenant {tenant!r}, {f'token {status.token!r}' if status.token else 'index'} of {status.column}"
        if status.state is State.CHANGED:
            yield f"{what}: its slot {status.slot} holds tokens that were made in another way"
        elif status.state is not State.READY and status.column not in named:
            yield f"{what}: {status.missing:,} of {status.total:,} values lack it"
