"""The commands. Each parses its arguments, calls one library function and prints what it returns."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from . import options, output

FAILED = 1


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _group(
    "Keep personal data encrypted under keys that each customer holds in its own KMS.\n\n"
    "Exit codes: 0 done; 1 it failed, or a check found a problem; 2 wrong usage; 130 interrupted."
)
db = _group("The key store's schema.")
tenant = _group("The tenants: customers, each with a KMS key of its own.")
app.add_typer(db, name="db")
app.add_typer(tenant, name="tenant")


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
def db_upgrade(database_url: options.DatabaseUrl) -> None:
    """Create the key store's tables, or bring them to this release. Doing it again changes nothing."""
    from ..keystore.upgrade import upgrade

    print(f"the key store is at revision {upgrade(options.engine_on(database_url))}")


@db.command("current")
def db_current(database_url: options.DatabaseUrl, json: options.Json = False) -> None:
    """Print the revision of the key store's tables."""
    from ..keystore.upgrade import current

    revision = current(options.engine_on(database_url))
    if json:
        output.show_json({"revision": revision})
    else:
        print(revision or "none")


@db.command("check")
def db_check(database_url: options.DatabaseUrl, json: options.Json = False) -> None:
    """Compare the key store's tables, indexes and triggers with this release; exit with 1 when something is wrong."""
    from ..keystore.upgrade import check

    status = check(options.engine_on(database_url))
    if json:
        output.show_json(asdict(status))
    else:
        for line in status.problems or (f"the key store is in order, at revision {status.revision}",):
            print(line)
    if status.problems:
        raise typer.Exit(FAILED)


@tenant.command("add")
def tenant_add(
    name: Annotated[str, typer.Argument(help="How the application calls the tenant.")],
    key: Annotated[str, typer.Option("--key", metavar="ARN", help="The full ARN of the tenant's KMS key.")],
    database_url: options.DatabaseUrl,
    role_arn: Annotated[
        str | None, typer.Option("--role-arn", metavar="ARN", help="The role in the customer's account to assume.")
    ] = None,
    external_id: Annotated[str | None, typer.Option("--external-id", help="The ExternalId for that role.")] = None,
    kms: options.Kms = "aws",
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Register a tenant and make its first keys in its KMS. Doing it again changes nothing."""
    vault = options.vault_on(database_url, kms, endpoint_url)
    record = vault.add_tenant(name, key=key, role_arn=role_arn, external_id=external_id)
    print(f"tenant {record.name} is registered, keyset {record.identity.keyset_id:08x}")


@tenant.command("list")
def tenant_list(database_url: options.DatabaseUrl, json: options.Json = False) -> None:
    """List the tenants with their key versions and KMS keys."""
    from ..keystore import KeyStore

    tenants = KeyStore(options.engine_on(database_url)).summaries()
    if json:
        output.show_json([output.plain(each) for each in tenants])
        return
    output.show_rows(
        ("tenant", "state", "keyset", "key version", "KMS key", "registered"),
        [
            (
                each.name,
                "suspended" if each.suspended else "in use",
                f"{each.keyset_id:08x}",
                str(each.version or "none"),
                each.kms_key_arn or "none",
                f"{each.created_at:%Y-%m-%d}",
            )
            for each in tenants
        ],
    )


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(metavar="TENANT")],
    database_url: options.DatabaseUrl,
    kms: options.Kms = "aws",
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Make a new data key for a tenant and seal with it from now on. Rows are not touched; old ones stay readable."""
    version = options.vault_on(database_url, kms, endpoint_url).rotate(name).version
    print(f"tenant {name} seals with data key version {version}; earlier versions still open")


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
