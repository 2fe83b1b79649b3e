"""`demo`, `inspect`, `version`, and the key store's schema: `db`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from . import options, output
from .app import app, db
from .documents import Revision
from .output import FAILED


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
    ] = ("local"),
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
    """Show on one screen what pii_vault does, and check every claim while making it.

    Exits with 1 when a claim does not hold. Leaves nothing behind.
    """
    from ..demo import run

    # Ended by a signal, the demo clears away what it made, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if not run(database_url=database_url, kms=kms, endpoint_url=endpoint_url, keys=key or []):
        raise typer.Exit(FAILED)


@db.command("upgrade")
def db_upgrade(database_url: options.DatabaseUrl = None) -> None:
    """Create the key store's tables, or bring them to this release. Doing it again changes nothing."""
    from ..keystore.upgrade import upgrade

    print(f"the key store is at revision {upgrade(options.engine(database_url))}")


@db.command("current")
def db_current(database_url: options.DatabaseUrl = None, json: options.Json = False) -> None:
    """Print the revision of the key store's tables."""
    from ..keystore.upgrade import current

    revision = current(options.engine(database_url))
    if json:
        output.show_json(Revision(revision))
    else:
        print(revision or "none")


@db.command("check")
def db_check(database_url: options.DatabaseUrl = None, json: options.Json = False) -> None:
    """Compare the key store's tables, indexes and triggers with this release; exit with 1 when something is wrong."""
    from ..keystore.upgrade import check

    status = check(options.engine(database_url))
    if json:
        output.show_json(status)
    else:
        for line in status.problems or (f"the key store is in order, at revision {status.revision}",):
            print(line)
    if status.problems:
        raise typer.Exit(FAILED)


@app.command()
def inspect(
    value: Annotated[
        str,
        typer.Argument(help="A sealed value in hex (as psql and sqlite3 print it) or base64; - reads standard input."),
    ],
    json: options.Json = False,
) -> None:
    """Show the header of a sealed value. Needs no key, and proves nothing: the header is not authenticated here."""
    from .sealed import describe, parse_text

    facts = describe(parse_text(value))
    if json:
        output.show_json(facts)
    else:
        output.show_facts({name.replace("_", " "): str(each) for name, each in facts.items()})


@app.command()
def version() -> None:
    """Print the version."""
    from .._version import __version__

    print(f"pii-vault {__version__}")
