"""The command and its groups. The modules of the groups add their commands to them when they are imported."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

ORDER: Final = (
    "db",
    "onboard",
    "tenant",
    "key",
    "doctor",
    "index",
    "rotate",
    "rewrap",
    "reencrypt",
    "coverage",
    "report",
    "adopt",
    "audit",
    "kms",
    "inspect",
    "demo",
    "version",
)
"""The commands as the help lists them: roughly as one comes to need them."""


class _Ordered(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in our order, not in that of imports."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


def _group(help_text: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


# A group's help lists the first sentence of each command: above 62 characters it would be cut at 80 columns.
app = _group(
    "Keep personal data encrypted under keys that each customer holds in its own KMS.\n\n"
    "Exit codes: 0 done; 1 it failed, or a check found a problem; 2 wrong usage; 130 interrupted.",
    _Ordered,
)
db = _group("The key store's tables: make them and check them.")
tenant = _group("Tenants: register customers, say what is agreed with them.")
key = _group("A tenant's data keys: list, check, rotate and end them.")
index = _group("Searching encrypted columns: build indexes, replace their key.")
adopt = _group("Plaintext columns: seal them while the application works.")
audit = _group("The audit log: read it, verify it, keep its end elsewhere.")
kms = _group("The KMS: what asking it costs, how often its keys rotate.")
app.add_typer(tenant, name="tenant")
app.add_typer(key, name="key")
app.add_typer(index, name="index")
app.add_typer(adopt, name="adopt")
app.add_typer(audit, name="audit")
app.add_typer(kms, name="kms")
app.add_typer(db, name="db")
