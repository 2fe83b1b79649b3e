"""`index plan`: how many bits of a token to keep, before somebody declares one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import options, output
from .app import index
from .index_reports import TokenPlan
from .table import FIXED

if TYPE_CHECKING:
    from ..blind_index import Plan

_MOST_ROWS: Final = 2**63 - 1


@index.command("plan")
def index_plan(
    rows: Annotated[
        int,
        typer.Option("--rows", metavar="N", min=0, max=_MOST_ROWS, help="How many rows of one tenant there will be."),
    ],
    distinct: Annotated[
        int | None,
        typer.Option(
            "--distinct",
            metavar="N",
            min=1,
            max=_MOST_ROWS,
            help="How many values there can be: 10000 for four digits. Without it, more than there are rows.",
        ),
    ] = None,
    others: Annotated[
        int,
        typer.Option(
            "--others",
            metavar="BITS",
            min=0,
            max=14 * 128,
            show_default=False,
            help="The bits of the column's other tokens, added up; 0 by default.",
        ),
    ] = 0,
    json: options.Json = False,
) -> None:
    """Say how many bits of a token to keep. Asks no KMS and no database.

    By the bounds that CipherSweet has published: few bits hide which values are equal, many make searches cheap. Not
    for unique indexes, which need all bits.
    """
    from ..blind_index import plan

    found = plan(rows, distinct=distinct, others=others)
    if json:
        output.show_json("index plan", TokenPlan.of(found, distinct, others))
        return
    output.show_text(found.advice)
    _show_choices(found)


def _show_choices(found: Plan) -> None:
    """Show on a terminal what each number of bits costs."""
    if found.minimum is None or found.maximum is None or not sys.stdout.isatty():
        return
    print()
    bits = range(found.minimum, found.maximum + 1)
    output.show_rows(
        {"bits": FIXED, "rows found by chance": FIXED}, [(str(each), f"{found.by_chance(each):,.1f}") for each in bits]
    )
