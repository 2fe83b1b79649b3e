"""`kms cost`: what the time to live costs, before somebody chooses one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from ..errors import ConfigurationError
from . import options, output
from .app import kms
from .reports import Cost
from .table import FIXED, SPARE
from .words import NONE

_MOST = 1_000_000_000
_WHAT_IT_MEANS = (
    "This is what it comes to if every tenant is in use in every process all the time. A tenant that nobody uses is "
    "not asked about, so you will pay less. Not in it are the dollar a month that each KMS key costs its owner, our "
    "customer, and what people do with this command, which is a few requests each."
)


@kms.command("cost")
def kms_cost(
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, metavar="N", help="How many processes the application runs as."),
    ],
    tenants: Annotated[
        int | None,
        typer.Option(
            "--tenants",
            min=1,
            metavar="N",
            help="How many tenants are in use. Without it they are counted in the key store, without those that are "
            "suspended or erased, or have no PII encryption.",
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="SECONDS", help="The time to live to reckon with; by default the setting ttl."),
    ] = None,
    scopes_per_second: Annotated[
        float | None,
        typer.Option(
            "--scopes-per-second",
            metavar="N",
            help="How many scopes are opened, over all processes. Needed for a ttl of 0, with which every scope asks.",
        ),
    ] = None,
    rotation_days: Annotated[
        int | None,
        typer.Option(
            "--rotation-days",
            min=1,
            max=3650,
            metavar="DAYS",
            help="How often data keys are rotated. Without it, rotations are not counted.",
        ),
    ] = None,
    starts_per_day: Annotated[
        float,
        typer.Option(
            "--starts-per-day",
            metavar="N",
            show_default=False,
            help="How often a day all processes start anew, as with a deployment; 0 by default.",
        ),
    ] = 0.0,
    region: Annotated[
        str | None,
        typer.Option(
            "--region",
            metavar="REGION",
            help="The AWS region whose quota is compared. Without it, the lowest quota of all regions.",
        ),
    ] = None,
    database_url: options.DatabaseUrl = None,
    database_schema: options.DatabaseSchema = None,
    json: options.Json = False,
) -> None:
    """Estimate what KMS requests cost, for several times to live. Asks no KMS."""
    from ..cost import Load, compared

    _check_numbers(
        {
            "--tenants": tenants,
            "--processes": processes,
            "--scopes-per-second": scopes_per_second,
            "--starts-per-day": starts_per_day,
        }
    )
    _check_region(region)
    chosen = _ttl(ttl, scopes_per_second)
    load = Load(
        tenants=_tenants(database_url, database_schema) if tenants is None else tenants,
        processes=processes,
        rotation_days=rotation_days,
        starts_per_day=starts_per_day,
        scopes_per_second=scopes_per_second,
    )
    found = [Cost.of(each, load, region, chosen=each.ttl == chosen) for each in compared(load, chosen)]
    if json:
        output.show_json("kms cost", found)
        return
    _show(found)


def _check_numbers(given: Mapping[str, float | None]) -> None:
    for name, value in given.items():
        if value is not None and not 0 <= value <= _MOST:  # so is no NaN
            raise typer.BadParameter(f"{name} is a number up to {_MOST:,}, not below 0")


def _check_region(region: str | None) -> None:
    from ..kms.pricing import is_region

    if region is not None and not is_region(region):
        raise typer.BadParameter(f"--region is the name of an AWS region, such as eu-west-1, not {region!r}")


def _ttl(ttl: float | None, scopes_per_second: float | None) -> float:
    found = options.settings(ttl=ttl).ttl
    if 0 < found < 1:
        raise typer.BadParameter("a ttl below 1 second asks in nearly every scope: say --ttl 0")
    if not found and scopes_per_second is None:
        raise typer.BadParameter("with a ttl of 0 every scope asks the KMS: say --scopes-per-second")
    return found


def _tenants(database_url: str | None, database_schema: str | None) -> int:
    if options.settings(database_url=database_url).database_url is None:
        raise ConfigurationError(
            "nobody said how many tenants there are, and no database_url is set in which to count them",
            hint="--tenants; or --database-url, PII_VAULT_DATABASE_URL, or the file pii-vault.toml",
        )
    found = sum(
        each.pii_encryption and not (each.suspended or each.erased)
        for each in options.key_store(database_url, database_schema).summaries()
    )
    if not found:
        raise ConfigurationError(
            "the key store has no tenant that is in use", hint="say how many there will be: --tenants"
        )
    return found


def _show(found: list[Cost]) -> None:
    (chosen,) = (each for each in found if each.chosen)
    output.show_facts(
        {
            "reckoned with": f"{chosen.tenants:,} tenants, {chosen.processes:,} processes",
            "and with": _besides(chosen),
            "time to live": _seconds(chosen.ttl),
            "requests a month": f"{chosen.requests_per_month:,}, at most {chosen.most_requests_per_month:,}",
            "requests a second": f"{_rate(chosen.requests_per_second)} on average, {_peak(chosen)}",
            "price a month": f"{_dollars(chosen.dollars_per_month)}, at most {_dollars(chosen.most_dollars_per_month)}",
            "AWS answers": f"{chosen.quota_per_second:,} a second, {_where(chosen.region)}",
            "of that used": _share(chosen.quota_share) + _share_at_start(chosen),
        }
    )
    print()
    _show_choices(found)
    print()
    for text in (_WHAT_IT_MEANS, *_warnings(chosen)):
        output.show_text(text)


def _show_choices(found: list[Cost]) -> None:
    output.show_rows(
        {
            "time to live": FIXED,
            "requests a month": FIXED,
            "at most": SPARE,
            "a second": FIXED,
            "price a month": FIXED,
            "price at most": SPARE,
            "": FIXED,
        },
        [
            (
                _seconds(each.ttl),
                f"{each.requests_per_month:,}",
                f"{each.most_requests_per_month:,}",
                _rate(each.requests_per_second),
                _dollars(each.dollars_per_month),
                _dollars(each.most_dollars_per_month),
                "chosen" if each.chosen else "",
            )
            for each in found
        ],
    )


def _warnings(chosen: Cost) -> list[str]:
    from ..keyring.terms import KEPT_TENANTS

    found = []
    if chosen.quota_share > 1:
        found.append("AWS would refuse a part of these requests: choose a longer time to live, or ask AWS for more.")
    elif chosen.cold_start_quota_share > 1:
        found.append("At a start of all processes AWS may refuse a part of the requests: start them one by one.")
    if chosen.tenants > KEPT_TENANTS:
        found.append(
            f"A process keeps the keys of {KEPT_TENANTS:,} tenants. Where more are in use at once, it asks oftener "
            "than this says."
        )
    return found


def _besides(chosen: Cost) -> str:
    parts = [f"a rotation every {chosen.rotation_days} days" if chosen.rotation_days else "no rotations"]
    if chosen.starts_per_day:
        parts.append(f"{chosen.starts_per_day:g} starts a day")
    if chosen.scopes_per_second is not None:
        parts.append(f"{chosen.scopes_per_second:g} scopes a second")
    return ", ".join(parts)


def _seconds(ttl: float) -> str:
    return f"{ttl:g} s" if ttl else NONE


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _dollars(dollars: float) -> str:
    return f"${dollars:,.2f}"


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _peak(chosen: Cost) -> str:
    if not chosen.ttl:
        return "as many as scopes"
    return f"up to {_rate(chosen.cold_start_requests_per_second)} when all processes start"


def _share_at_start(chosen: Cost) -> str:
    return f", {_share(chosen.cold_start_quota_share)} when all processes start" if chosen.ttl else ""


def _where(region: str | None) -> str:
    return f"in {region}" if region else "the least of all regions: see --region"
