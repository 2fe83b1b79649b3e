"""The options that several commands share, and the settings that come of them.

An option that is not given is None, and then the variable, the file or the default counts (docs/configuration.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..config import Settings
    from ..keystore import KeyStore
    from ..vault import Vault

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="The key store's database, for example postgresql+psycopg://user@host/name. The variable "
        "PII_VAULT_DATABASE_URL keeps a password out of the list of processes.",
    ),
]

DatabaseSchema = Annotated[
    str | None,
    typer.Option(
        "--database-schema",
        metavar="NAME",
        help="The key store's own schema in its database, on PostgreSQL; without it, the search path decides.",
    ),
]

Kms = Annotated[
    str | None,
    typer.Option(
        "--kms",
        metavar="aws|local:PATH",
        help="Where the KMS keys are: in AWS, or in a key file for development; aws by default.",
    ),
]

EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", metavar="URL", help="Another endpoint for AWS KMS: a VPC endpoint, a test server."),
]

PlatformKey = Annotated[
    str | None,
    typer.Option(
        "--platform-key",
        metavar="ARN",
        help="A KMS key of our own, not a customer's: it protects the audit log, and tenants without a KMS key.",
    ),
]

Actor = Annotated[
    str | None,
    typer.Option("--actor", metavar="NAME", help="Who asks, for the audit log; the system's user by default."),
]

Why = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", help="Why, for the audit log: a ticket's number, say. No personal data."),
]

RoleArn = Annotated[
    str | None, typer.Option("--role-arn", metavar="ARN", help="The role in the customer's account to assume.")
]

ExternalId = Annotated[str | None, typer.Option("--external-id", metavar="ID", help="The ExternalId for that role.")]

ReplicaRegions = Annotated[
    str | None,
    typer.Option(
        "--replica-regions",
        metavar="REGIONS|none",
        help="Where a multi-Region KMS key has replicas, with commas, in the order in which they are tried. They "
        "unwrap while its own region is unavailable.",
    ),
]

SharedKey = Annotated[
    bool,
    typer.Option(
        "--shared-key", help="Allow a KMS key that another tenant has too, because both are the same customer's."
    ),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Make every check, say what would be done, and change nothing.")
]

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask. Needed where there is no terminal to ask on.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as docs/json.md describes it.")]

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]

TenantOrAll = Annotated[str | None, typer.Argument(metavar="TENANT", help="The tenant's name, without --all.")]

Every = Annotated[
    bool, typer.Option("--all", help="Every tenant, one after the other; suspended and erased ones are left out.")
]

Metadata = Annotated[
    str,
    typer.Option(
        "--metadata",
        metavar="MODULE:NAME",
        help="The application's declarative base or MetaData, such as app.models:Base. Its tables are looked into.",
    ),
]

ApplicationUrl = Annotated[
    str | None,
    typer.Option("--application-url", metavar="URL", help="The application's database, if not the key store's."),
]


Batch = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", min=1, max=10_000, help="So many rows at a time; 2,000 by default."),
]

Rate = Annotated[float | None, typer.Option("--rate", metavar="N", min=0.1, help="So many rows a second at most.")]

MaxLag = Annotated[
    float | None,
    typer.Option(
        "--max-lag", metavar="SECONDS", min=0, help="Wait while a replica is further behind than that. PostgreSQL only."
    ),
]


opened: Final = ExitStack()
"""Closes the connections that this command has opened; `run` does it when the command ends."""


def key_store_place(database_url: str | None, database_schema: str | None) -> tuple[Engine, str | None]:
    """Make an engine on the key store's database; return it with the schema that the key store has there, or None.

    Raises:
        ConfigurationError: no URL is set, a setting cannot be used, or the driver is missing.
    """
    found = settings(database_url=database_url, database_schema=database_schema)
    return _closed_later(found.make_engine()), found.database_schema


def key_store(database_url: str | None, database_schema: str | None) -> KeyStore:
    """Return the key store, for commands that need no KMS."""
    from ..keystore import KeyStore

    return KeyStore(*key_store_place(database_url, database_schema))


def vault(**options: Any) -> Vault:
    """Make a vault from the settings that options, variables and the file name.

    Raises:
        ConfigurationError: a setting is missing or cannot be used.
    """
    made = settings(**options).make_vault()
    opened.callback(made.close)
    return made


def application_engine(database_url: str | None, application_url: str | None) -> Engine:
    """Make an engine on the application's own database."""
    found = settings(database_url=database_url, application_url=application_url)
    return _closed_later(found.make_application_engine())


def _closed_later(engine: Engine) -> Engine:
    opened.callback(engine.dispose)
    return engine


def check_external_id(role_arn: str | None, external_id: str | None) -> None:
    """Refuse an ExternalId without the role that asks for it.

    Raises:
        typer.BadParameter: there is none.
    """
    if external_id and not role_arn:
        raise typer.BadParameter("--external-id belongs to --role-arn")


def check_one_or_all(name: str | None, every: bool) -> None:
    """Refuse to guess which tenants are meant.

    Raises:
        typer.BadParameter: neither one nor all are named, or both.
    """
    if (name is None) != every:
        raise typer.BadParameter("name one tenant, or give --all")


def settings(**options: Any) -> Settings:
    """Return the settings that options, variables and the file name.

    Raises:
        ConfigurationError: one of them cannot be used.
    """
    from ..config import load

    return load(**options)


def regions(text: str | None) -> tuple[str, ...]:
    """Read a list of regions; none of them is `none`."""
    return () if text in (None, "none") else tuple(each.strip() for each in text.split(","))
