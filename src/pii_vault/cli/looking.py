"""`demo`, `inspect`, `version`, and the key store's schema: `db`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from . import options, output
from .app import app, db
from .documents import Revision, SchemaStatus
from .output import FAILED
from .words import or_none


@app.command()
def demo(
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            metavar="URL",
            help="Run on this PostgreSQL database, in a schema that is made for it and dropped afterwards. Without "
            "it, on a SQLite file in a temporary folder.",
        ),
    ] = None,
    kms: Annotated[
        str, typer.Option("--kms", metavar="local|aws", help="A key file that is thrown away, or AWS KMS.")
    ] = "local",
    endpoint_url: options.EndpointUrl = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="ARN",
            help="An AWS KMS key; give three: two customers', then the platform's. The second is disabled for some "
            "seconds and enabled again: use keys that are made for this. With --endpoint-url the demo makes its own.",
        ),
    ] = None,
) -> None:
    """Show what pii_vault does, and check every claim on the way.

    One screen. Exits with 1 when a claim does not hold. Leaves nothing behind.
    """
    from ..demo import run

    # Ended by a signal, the demo clears away what it made, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if not run(database_url=database_url, kms=kms, endpoint_url=endpoint_url, keys=key or []):
        raise typer.Exit(FAILED)


@db.command("upgrade")
def db_upgrade(
    database_url: options.DatabaseUrl = None, database_schema: options.DatabaseSchema = None, json: options.Json = False
) -> None:
    """Make the key store's tables, or bring them to this release. Doing it again changes nothing."""
    from ..keystore.upgrade import upgrade

    revision = upgrade(*options.key_store_place(database_url, database_schema))
    if json:
        output.show_json("db upgrade", Revision(revision))
    else:
        print(f"the key store is at revision {revision}")


@db.command("current")
def db_current(
    database_url: options.DatabaseUrl = None, database_schema: options.DatabaseSchema = None, json: options.Json = False
) -> None:
    """Print the revision of the key store's tables."""
    from ..keystore.upgrade import current

    revision = current(*options.key_store_place(database_url, database_schema))
    if json:
        output.show_json("db current", Revision(revision))
    else:
        print(revision or "none")


@db.command("check")
def db_check(
    database_url: options.DatabaseUrl = None, database_schema: options.DatabaseSchema = None, json: options.Json = False
) -> None:
    """Compare the key store's schema with this release's.

    Looks at tables, columns, indexes, constraints and triggers. Exits with 1 when something is wrong.
    """
    from ..keystore.upgrade import check

    status = check(*options.key_store_place(database_url, database_schema))
    if json:
        output.show_json("db check", SchemaStatus.of(status))
    else:
        for line in status.problems or (f"the key store is in order, at revision {status.revision}",):
            print(line)
    if status.problems:
        raise typer.Exit(FAILED)


@app.command()
def inspect(
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="A sealed value in hex, as psql and sqlite3 print it, or in base64; - reads standard input.",
        ),
    ],
    json: options.Json = False,
) -> None:
    """Show the header of a sealed value. Needs no key, and proves nothing: the header is not authenticated here."""
    from .sealed import describe, parse_text

    found = describe(parse_text(value))
    if json:
        output.show_json("inspect", found)
        return
    output.show_facts(
        {
            "format": str(found.format),
            "suite": found.suite,
            "algorithm": found.algorithm,
            "bound to": ", ".join(found.bound_to),
            "keyset": found.keyset_id,
            "key version": str(found.key_version),
            "codec": found.codec or f"unknown ({found.codec_id})",
            "index generation": or_none(found.index_generation),
            "tokens": str(found.tokens),
            "token bytes": str(found.token_bytes),
            "plaintext bytes": str(found.plaintext_bytes),
            "stored bytes": str(found.stored_bytes),
        }
    )


@app.command()
def version() -> None:
    """Print the version."""
    from .._version import __version__

    print(f"pii-vault {__version__}")
