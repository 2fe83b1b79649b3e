"""The command and its groups. The modules of the groups add their commands to them when they are imported."""

from __future__ import annotations

import typer


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
tenant = _group("The tenants: customers, each with a KMS key of its own or the platform's.")
key = _group("A tenant's data keys: look at them, check them, rotate them, end them.")
audit = _group("The audit log: who did what to which keys, and whether the log and the keys are as they were left.")
app.add_typer(tenant, name="tenant")
app.add_typer(key, name="key")
app.add_typer(audit, name="audit")
app.add_typer(db, name="db")
