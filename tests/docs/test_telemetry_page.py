"""docs/telemetry.md names every metric and every word that is told, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pii_vault import telemetry
from pii_vault.telemetry import Lookup, OpenTelemetry, Reason

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text("utf-8")


def test_the_page_lists_the_metrics_with_their_kinds_units_and_attributes() -> None:
    reader = InMemoryMetricReader()
    told = OpenTelemetry(MeterProvider([reader]).get_meter("pii_vault"))
    told.looked_up(Lookup.HIT)
    told.evicted(Reason.ASKED)
    told.went_on("0" * 32, 1.0)
    told.resealed("people", 1)
    told.tried_again()
    told.fell_back("people.email")
    told.opened_by_replica("eu-central-1")
    try:
        with told.fetching(ahead=True), told.calling("Decrypt", "0" * 32):
            raise ValueError
    except ValueError:
        pass
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        kind = {"Sum": "counter", "Histogram": "histogram", "Gauge": "gauge"}[type(metric.data).__name__]
        (point,) = metric.data.data_points
        found[metric.name] = (kind, metric.unit.strip("{}"), set(point.attributes or {}))
    rows = re.findall(r"^\| `(pii_vault\.[\w.]+)` \| (\w+) \| (\w+) \| (.*?)\| .+ \|$", PAGE, re.MULTILINE)
    assert found == {
        name: (kind, unit, set(re.findall(r"`(.+?)`", attributes))) for name, kind, unit, attributes in rows
    }


def test_the_page_lists_the_spans() -> None:
    source = Path(telemetry.__file__).read_text("utf-8")
    (span,) = re.findall(r'start_as_current_span\("(.+?)"', source)
    paragraph = PAGE.split(f"`{span}`", 1)[1].split("\n\n")[0]
    assert set(re.findall(r"`(pii_vault\..+?)`", paragraph)) == {telemetry.TABLE, telemetry.TENANT}


def test_the_page_lists_the_reasons_and_the_outcomes() -> None:
    table = PAGE.split("`pii_vault.reason` is one of", 1)[1].split("\n\n")[1]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [str(each) for each in Reason]
    for outcome in Lookup:
        assert f"`{outcome}`" in PAGE


def test_the_page_lists_the_events() -> None:
    source = Path(telemetry.__file__).read_text("utf-8")
    events = set(re.findall(r'_event\("(.+?)"', source)) | set(
        re.findall(r'_timed\(self\._\w+\.record, "(.+?)"', source)
    )
    said = PAGE.split("The span that is current", 1)[1].split("So a request", 1)[0]
    assert set(re.findall(r"`(.+?)`", said)) == events
