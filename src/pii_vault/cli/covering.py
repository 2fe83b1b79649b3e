"""`coverage`: where which data key still seals something, and what is stored that no known key has sealed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import options, output
from .app import app
from .application import metadata_of
from .coverage_reports import Covered
from .openmetrics import Gauge, exposition
from .output import FAILED
from .table import FIXED
from .words import or_none

if TYPE_CHECKING:
    from ..reencryption.coverage import Coverage, Stored


@app.command("coverage")
def coverage(
    metadata: options.Metadata,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="TENANT", help="Count only what this tenant's keys have sealed. Without it, everything."
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="On PostgreSQL, look at 40 MiB of each larger table. Keys that sealed little may be missed.",
        ),
    ] = False,
    application_url: options.ApplicationUrl = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
    openmetrics: Annotated[
        bool, typer.Option("--openmetrics", help="Print OpenMetrics text, for a scraper or the textfile collector.")
    ] = False,
) -> None:
    """Count where which data key seals stored values.

    They are counted by their headers, inside the application's database. No KMS is asked, and nothing is changed. Exits
    with 1 when there are values that the application cannot read: never sealed, malformed, or under a data key that is
    compromised, destroyed or unknown.
    """
    if json and openmetrics:
        raise typer.BadParameter("give --json or --openmetrics, not both")
    tables = metadata_of(metadata)
    from ..reencryption import coverage as counting

    store = options.key_store(database_url, database_schema)
    engine = options.application_engine(database_url, application_url)
    with output.progress("counting values in tables") as progress:
        found = counting.coverage(store, engine, tables, tenant=name, estimate=estimate, progress=progress)
    if json:
        output.show_json("coverage", Covered.of(name, found))
    elif openmetrics:
        output.show_lines(exposition(_gauges(found)))
    else:
        _show(found, estimate)
        _say_problems(found)
    if found.problems:
        raise typer.Exit(FAILED)


def _show(found: Coverage, estimate: bool) -> None:
    totals: Counter[tuple[str, str]] = Counter()
    for each in found.stored:
        totals[each.table, each.column] += each.count if each.state != "null" else 0
    columns = ("table.column", "tenant", "version", "state", "values", "share")
    rows = [(each, _share(each, totals[each.table, each.column])) for each in found.stored]
    output.show_rows(
        dict.fromkeys(columns, FIXED),
        [(*_cells(each), str(each.count), share) for each, share in rows],
        empty="nothing is stored",
        otherwise=(dict.fromkeys(columns, FIXED), [(*_cells(each), f"{each.count:,}", share) for each, share in rows]),
    )
    if not estimate:
        return
    sampled = [f"{100 * each.share:.3g} % of {each.table}" for each in found.tables if each.share < 1]
    if sampled:
        output.say(f"these are estimates: looked at {', '.join(sampled)} (a key that sealed little may be missing)")
    else:
        output.say("nothing is estimated: the tables are small, or this database can take no sample")


def _cells(each: Stored) -> tuple[str, ...]:
    return f"{each.table}.{each.column}", or_none(each.tenant), or_none(each.version), str(each.state)


def _share(each: Stored, total: int) -> str:
    """Return which part of a column's values these are; NULL is none of them."""
    if each.state == "null" or not total:
        return ""
    share = f"{100 * each.count / total:.1f} %"
    return share if share != "0.0 %" else "< 0.1 %"


_SAID: Final = {
    "plaintext": ("that were never sealed", "they were written past the vault: seal them"),
    "malformed": ("that begin as sealed ones and are none", "cut off or overwritten: restore or delete them"),
    "unsupported": ("of an unknown format", "they may need a newer release of pii_vault"),
    "unknown_version": ("under data keys that the key store does not have", "was an old backup of it restored?"),
    "unknown_keyset": ("of keysets that no tenant has", "is it the right key store? --json shows the keyset ids"),
    "compromised": ("under compromised data keys", "re-encrypt them to read them"),
    "destroyed": ("under destroyed data keys", "nobody can read them: a backup of the key store may have the key"),
}


def _say_problems(found: Coverage) -> None:
    for state, (which, way) in _SAID.items():
        counts: Counter[str] = Counter()
        for each in found.problems:
            if each.state == state:
                counts[f"{each.table}.{each.column}"] += each.count
        if counts:
            output.say(f"values {which}: {', '.join(f'{count:,} in {name}' for name, count in counts.items())} ({way})")


def _gauges(found: Coverage) -> Iterator[Gauge]:
    # A series for each of many unknown keysets would be one for each damaged row.
    values: Counter[tuple[str, ...]] = Counter()
    for each in found.stored:
        version = str(each.version) if each.tenant is not None else ""
        values[each.table, each.column, each.tenant or "", version, str(each.state)] += each.count
    labels = ("table", "column", "tenant", "version", "state")
    yield Gauge(
        "pii_vault_values",
        "Stored values, by the data key that sealed them and its state.",
        [(dict(zip(labels, each, strict=True)), count) for each, count in values.items()],
    )
    yield Gauge(
        "pii_vault_values_sampled_ratio",
        "How much of a table was looked at. Below 1, its counts are estimates.",
        [({"table": each.table}, each.share) for each in found.tables],
    )
