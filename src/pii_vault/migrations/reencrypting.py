"""The Alembic operation that seals stored values with their tenants' newest keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, Engine, MetaData, Table

from ..backfill.whose import Owners, listed
from ..errors import BackfillError, ConfigurationError
from ..orm.encrypted_type import EncryptedType
from ..vault import Vault
from .settings import refuse_sql, vault_of
from .transactions import committed


@Operations.register_operation("reencrypt")
class ReencryptOp(MigrateOperation):
    """Seal the values of some tables with their tenants' newest keys.

    Args:
        table_names: The tables.
        vault: Holds the keys; None for the one in ``env.py``.
        metadata: The application's tables; None for ``env.py``'s ``target_metadata``.
        tenants: Whose values; None for everybody's.
    """

    def __init__(
        self,
        table_names: Sequence[str],
        *,
        vault: Any = None,
        metadata: MetaData | None = None,
        tenants: Sequence[str] | None = None,
    ) -> None:
        self.table_names = tuple(table_names)
        self.vault = vault
        self.metadata = metadata
        self.tenants = tenants

    @classmethod
    def reencrypt(
        cls,
        operations: Operations,
        *table_names: str,
        vault: Any = None,
        metadata: MetaData | None = None,
        tenants: Sequence[str] | None = None,
    ) -> None:
        """Seal the values of some tables with their tenants' newest keys, as ``pii-vault reencrypt`` does for all.

        It works in transactions of its own, so what the migration has done before is committed first. Ended in any way
        and run again, it goes on where it was: let it be the only operation of its revision.

        Args:
            operations: Alembic's.
            table_names: The tables, with their schemas if they have one.
            vault: Holds the keys; by default the one that ``env.py`` gives to ``context.configure(pii_vault=…)``.
            metadata: The application's tables, as the models are now; by default ``env.py``'s ``target_metadata``.
            tenants: Whose values; everybody's by default.

        Raises:
            ConfigurationError: SQL is to be written, or there is no such table with encrypted columns.
            BackfillError: some values could not be sealed anew; names them.
            PiiVaultError: a tenant's keys are not to be had; names tenant and reason. Nothing is changed.
        """
        operations.invoke(cls(table_names, vault=vault, metadata=metadata, tenants=tenants))

    def reverse(self) -> MigrateOperation:
        """Return the same: values are not sealed with older keys again, and need not be."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return it as Alembic's comparison does."""
        return ("reencrypt", self.table_names)


@Operations.implementation_for(ReencryptOp)
def _reencrypt(operations: Operations, operation: ReencryptOp) -> None:
    refuse_sql(operations, "reencrypt", "run `pii-vault reencrypt` for each tenant after the migration's SQL")
    vault = vault_of(operations, operation.vault, "reencrypt")
    models = operation.metadata or operations.migration_context.opts.get("target_metadata")
    metadata = _tables(operation, models)
    tenants = vault.tenants() if operation.tenants is None else operation.tenants
    Owners(vault.tenant, tenants, None).ask(tenants)
    with committed(operations, "reencrypt"):
        engine = operations.get_bind().engine
        problems = [each for tenant in tenants for each in _problems(vault, tenant, metadata, engine)]
    if problems:
        raise BackfillError(
            f"not every value is sealed with its tenant's newest key: {listed(problems)}",
            hint="mend that and run the migration again: it goes on where it was",
        )


def _problems(vault: Vault, tenant: str, metadata: MetaData, engine: Engine) -> Iterator[str]:
    done = vault.reencrypt(tenant, metadata=metadata, engine=engine)
    for problem in done.problems:
        yield f"tenant {tenant!r}, {problem.column} of row {problem.key}: {problem.why}"
    if done.left and not done.problems:
        yield f"tenant {tenant!r}: {done.left:,} rows hold a value of an older key"


def _tables(operation: ReencryptOp, models: Any) -> MetaData:
    """Return metadata with the named tables alone, and of them no more than their columns."""
    metadata = MetaData()
    known = {name: table for each in _listed(models) for name, table in each.tables.items()}
    for name in operation.table_names:
        table = known.get(name)
        if table is None or not any(isinstance(column.type, EncryptedType) for column in table.columns):
            raise ConfigurationError(
                f"op.reencrypt: the models have no table {name!r} with encrypted columns",
                hint="name it with its schema if it has one; the models are env.py's target_metadata, or metadata=",
            )
        columns: list[Column[Any]] = [
            Column(each.name, each.type, primary_key=each.primary_key, nullable=each.nullable) for each in table.columns
        ]
        Table(table.name, metadata, *columns, schema=table.schema)
    return metadata


def _listed(models: Any) -> Sequence[MetaData]:
    return [models] if isinstance(models, MetaData) else list(models or ())
