"""The options that several commands share, and what their texts mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..kms import KmsLifecycle
    from ..vault import Vault

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="PII_VAULT_DATABASE_URL",
        metavar="URL",
        help="The key store's database, for example postgresql+psycopg://user@host/name. The environment variable "
        "keeps a password out of the list of processes.",
    ),
]

Kms = Annotated[
    str,
    typer.Option("--kms", envvar="PII_VAULT_KMS", metavar="aws|local:PATH", help="Where the customers' KMS keys are."),
]

EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", metavar="URL", help="Another endpoint for AWS KMS: a VPC endpoint, a test server."),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def engine_on(database_url: str) -> Engine:
    """Make an engine on the key store's database.

    Raises:
        ConfigurationError: the URL cannot be read, or its driver is missing. The URL is not shown.
    """
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    from ..keystore.engine import open_engine

    try:
        return open_engine(database_url)
    except NoSuchModuleError as error:
        reason, hint = f"SQLAlchemy has no such database: {error}", "postgresql+psycopg://… or sqlite:///…"
    except ArgumentError:
        reason, hint = "the database URL cannot be read", "postgresql+psycopg://user@host/name or sqlite:///file"
    except ModuleNotFoundError as error:
        reason, hint = f"the database driver {error.name} is not installed", "pip install 'pii-vault[postgres]'"
    raise ConfigurationError(reason, hint=hint)


def kms_of(kms: str, endpoint_url: str | None) -> KmsLifecycle:
    """Make the KMS that `--kms` and `--endpoint-url` name."""
    kind, _, path = kms.partition(":")
    if kind == "aws" and not path:
        from ..kms.aws import AwsKms

        return AwsKms(endpoint_url=endpoint_url)
    if kind == "local" and path:
        if endpoint_url is not None:
            raise typer.BadParameter("a local KMS has no --endpoint-url")
        from ..kms.local import LocalKms

        return LocalKms(path)
    raise typer.BadParameter(f"--kms is aws or local:PATH, not {kms!r}")


def vault_on(database_url: str, kms: str, endpoint_url: str | None) -> Vault:
    """Make a vault on the key store's database and the KMS."""
    from ..vault import Vault

    return Vault(engine_on(database_url), kms=kms_of(kms, endpoint_url))
