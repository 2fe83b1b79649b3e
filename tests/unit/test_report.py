"""What a report makes of its facts, and the page that shows them, without a database, a KMS or a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pii_vault.context import Identity
from pii_vault.keys import Policy, TenantRecord
from pii_vault.report.facts import (
    AuditFacts,
    BoundFacts,
    CallFacts,
    CheckFacts,
    ColumnFacts,
    EventFacts,
    KmsKeyFacts,
    Report,
    RewrapFacts,
    RotationFacts,
    Share,
    VersionFacts,
)
from pii_vault.report.findings import Found, findings, not_known, not_looked_at, summary, verdict
from pii_vault.report.logged import _without_external_id
from pii_vault.report.page import bar, duration, page, timeline
from pii_vault.stages import AdoptionRecord, Stage

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=UTC)
ARN = "arn:aws:kms:eu-west-1:111122223333:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"
ROOT = Path(__file__).resolve().parents[2]
CSS = (files("pii_vault.report") / "report.css").read_text("utf-8")

KEY = KmsKeyFacts(
    arn=ARN,
    account="111122223333",
    region="eu-west-1",
    ours=False,
    role_arn=None,
    has_external_id=False,
    kek_generation=1,
    wrapped_with="m1",
    answer="answered",
    failure=None,
    state="Enabled",
    newest_material="m1",
    made_at=NOW,
    deleted_at=None,
    rotations=None,
    replica_regions=(),
)
VERSION = VersionFacts(1, "active", "initial", "ops", NOW, NOW, None, None, 1024, ARN, 4)
COLUMN = ColumnFacts("people", "email", True, (Share(1, "active", 4, False),))
ROTATION = RotationFacts(NOW + timedelta(days=90), 90, False, True, False)
BOUND = BoundFacts(300.0, 300.0, 0.0, 300.0, 600.0, True)
AUDIT = AuditFacts(1, "ab" * 32, True, (), (EventFacts(1, NOW, "ops", "tenant.added", ""),))
STEP = AdoptionRecord("people.email", 1, Stage.FILLED, "people", "mail", "email", None, 3, NOW, "ops")

GOOD = Found(
    tenant=TenantRecord(Identity(b"a" * 16, b"t" * 16, 7), "acme", False, NOW, Policy("111122223333", "eu-west-1")),
    erased=False,
    now=NOW,
    kms_key=KEY,
    checks=(CheckFacts("canary", True, "it seals and opens"),),
    versions=(VERSION,),
    columns=(COLUMN,),
    not_counted=None,
    rotation=ROTATION,
    bound=BOUND,
    audit=AUDIT,
    adoptions=(),
    processes=2,
)


def told(found: Found, **changes: Any) -> Report:
    noted, missed = findings(found), not_looked_at(found)
    word = verdict(noted, missed)
    report = Report(
        tenant=found.tenant.name,
        uid="ab" * 16,
        application="cd" * 16,
        keyset_id="00000007",
        made_at=NOW,
        made_by="ops",
        release="1",
        verdict=str(word),
        summary=summary(word, noted),
        findings=noted,
        not_looked_at=missed,
        not_known=not_known(found),
        registered_at=NOW,
        suspended=found.tenant.suspended,
        erased=found.erased,
        kms_key=found.kms_key,
        checks=found.checks,
        versions=found.versions,
        rewraps=(RewrapFacts(NOW, "ops", "moved", True, ARN),),
        columns=found.columns,
        rotation=found.rotation,
        bound=found.bound,
        kms_calls=CallFacts(2, 658, 720),
        audit=found.audit,
    )
    return replace(report, **changes)


def of(found: Found) -> list[tuple[str, bool]]:
    return [(each.kind, each.problem) for each in findings(found)]


def test_in_order_there_is_nothing_to_find() -> None:
    assert (of(GOOD), not_looked_at(GOOD)) == ([], ())
    assert told(GOOD).summary == "Everything is as promised."


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        ({"kms_key": replace(KEY, answer="refused", state=None, failure="no")}, "kms", True),
        ({"kms_key": replace(KEY, answer="failed", state=None, failure="no")}, "kms", True),
        ({"kms_key": replace(KEY, state="PendingDeletion")}, "kms_key", True),
        ({"kms_key": replace(KEY, ours=True)}, "provider_key", False),
        ({"kms_key": replace(KEY, arn="arn:local:kms:local:000000000000:key/x")}, "development", True),
        ({"checks": (CheckFacts("canary", False, "it does not open"),)}, "check", True),
        ({"audit": replace(AUDIT, verified=False, problems=("entry 1 was changed",))}, "audit", True),
        ({"columns": None, "not_counted": "no such table"}, "not_counted", True),
        ({"adoptions": (STEP,)}, "adoption", True),
        ({"versions": (VERSION, replace(VERSION, version=2, state="compromised", values=0))}, "compromised_key", False),
        ({"versions": (VERSION, replace(VERSION, version=2, state="compromised", values=3))}, "compromised_key", True),
        ({"versions": (VERSION, replace(VERSION, state="compromised", values=None))}, "compromised_key", True),
        ({"versions": (replace(VERSION, state="deactivated"),)}, "rotation", True),
        ({"rotation": replace(ROTATION, overdue=True)}, "rotation", True),
        ({"tenant": replace(GOOD.tenant, suspended=True)}, "suspended", False),
        ({"erased": True, "versions": (), "bound": None}, "erased", False),
    ],
)
def test_each_thing_that_is_wrong_is_found(change: dict[str, Any], kind: str, problem: bool) -> None:
    found = replace(GOOD, **change)
    assert of(found) == [(kind, problem)]
    assert told(found).verdict == ("not_as_promised" if problem else "as_promised")
    assert findings(found)[0].text in "".join(_Text(page(told(found))).said)


@pytest.mark.parametrize("state", ["plaintext", "malformed", "unsupported", "foreign", "unknown_version", "destroyed"])
def test_values_that_are_not_sealed_as_promised_are_a_problem(state: str) -> None:
    found = replace(GOOD, columns=(replace(COLUMN, shares=(*COLUMN.shares, Share(None, state, 1, True))),))
    assert of(found) == [("stored", True)]
    assert findings(found)[0].text.startswith("1 value was ")
    assert findings(found)[0].text.endswith(", in people.email.")


def test_a_fallback_is_told_as_long_as_it_lasts() -> None:
    until = NOW + timedelta(days=1)
    assert ("fallback", False) in of(replace(GOOD, adoptions=(replace(STEP, fallback_until=until),)))
    assert ("fallback", False) not in of(replace(GOOD, adoptions=(replace(STEP, fallback_until=NOW),)))
    for stage in (Stage.NONE, Stage.EMPTIED):
        assert of(replace(GOOD, adoptions=(replace(STEP, stage=stage),))) == []


def test_a_kms_that_refuses_hides_no_check_of_our_own_records() -> None:
    refused = replace(KEY, answer="refused", state=None, failure="no")
    checks = (CheckFacts("kms-unwrap", False, "no"), CheckFacts("record-stored", False, "changed"))
    assert of(replace(GOOD, kms_key=refused, checks=checks)) == [("kms", True), ("check", True)]
    disabled = replace(KEY, state="Disabled")
    assert of(replace(GOOD, kms_key=disabled, checks=checks)) == [("kms_key", True), ("check", True)]


@pytest.mark.parametrize(
    "change",
    [
        {"kms_key": replace(KEY, answer="not_asked", state=None), "checks": ()},
        {"columns": None},
        {"audit": replace(AUDIT, verified=None, problems=("no platform key",))},
        {"processes": None},
        {"bound": replace(BOUND, ttl_seconds=0.0)},
    ],
)
def test_what_was_not_looked_at_is_never_as_promised(change: dict[str, Any]) -> None:
    found = replace(GOOD, **change)
    assert len(not_looked_at(found)) == 1
    assert told(found).verdict == "not_all_looked_at"


def test_terms_that_are_not_agreed_are_not_taken_for_everybodys() -> None:
    assert not any("time to live" in each for each in not_known(GOOD))
    assert any("time to live" in each for each in not_known(replace(GOOD, bound=replace(BOUND, agreed=False))))


def test_an_external_id_is_not_told_by_a_difference() -> None:
    told = _without_external_id("the active KEK: external_id is forged, the log says right")
    assert told == "the active KEK: external_id is not what the log says"


def test_a_bar_shows_the_smallest_part_and_ends_at_its_end() -> None:
    shares = (Share(1, "active", 10**9, False), Share(None, "plaintext", 1, True), Share(None, "null", 5, False))
    first, last = bar(replace(COLUMN, shares=shares))
    assert (first.look, last.look, last.words) == ("active", "problem", "1 plaintext: never sealed")
    assert last.width > 0.5
    assert last.x + last.width == pytest.approx(100)
    assert bar(replace(COLUMN, shares=())) == []


def test_the_time_line_leaves_out_what_takes_no_time_and_says_so_without_a_time_to_live() -> None:
    assert [each.look for each in timeline(BOUND)] == ["kms", "held"]
    assert [each.look for each in timeline(replace(BOUND, grace_seconds=60.0))] == ["kms", "held", "grace"]
    assert "The longest scope ends" in timeline(replace(BOUND, ttl_seconds=0.0, held_seconds=60.0))[1].words


def test_durations_in_words() -> None:
    assert [duration(each) for each in (0, 1, 61, 3600, 7325)] == [
        "0 seconds",
        "1 second",
        "1 minute 1 second",
        "1 hour",
        "2 hours 2 minutes",
    ]


# The page.


class _Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]


HOSTILE = "</style><script>alert(1)</script>\" onload='x' {{ 7*7 }} &lt;"


def hostile() -> Report:
    """A report in which every text that can come from elsewhere is hostile."""
    return told(
        GOOD,
        tenant=HOSTILE,
        made_by=HOSTILE,
        not_looked_at=(HOSTILE,),
        not_known=(HOSTILE,),
        summary=HOSTILE,
        findings=(replace(findings(replace(GOOD, adoptions=(STEP,)))[0], text=HOSTILE, way_out=HOSTILE),),
        kms_key=replace(KEY, arn=HOSTILE, account=HOSTILE, role_arn=HOSTILE, state=HOSTILE, wrapped_with=HOSTILE),
        checks=(CheckFacts("x", True, HOSTILE),),
        versions=(replace(VERSION, state=HOSTILE, reason=HOSTILE, made_by=HOSTILE),),
        rewraps=(RewrapFacts(NOW, HOSTILE, HOSTILE, True, HOSTILE),),
        columns=(ColumnFacts(HOSTILE, HOSTILE, True, (Share(1, HOSTILE, 1, False),)),),
        audit=AuditFacts(1, HOSTILE, True, (), (EventFacts(1, NOW, HOSTILE, HOSTILE, HOSTILE),)),
    )


def test_whatever_comes_from_elsewhere_is_text() -> None:
    plain, shown = _Text(page(told(GOOD))), _Text(page(hostile()))
    assert {tag for tag, _, _ in shown.attributes} <= {tag for tag, _, _ in plain.attributes} | {"li", "span"}
    assert {name for _, name, _ in shown.attributes} == {name for _, name, _ in plain.attributes} | {"class"}
    assert "".join(shown.said).count(HOSTILE) >= 15


def test_the_page_loads_nothing_and_its_policy_allows_its_own_style_alone() -> None:
    html = page(told(GOOD))
    parsed = _Text(html)
    assert re.findall(r"(?:https?:)?//|@import|url\((?!#)", html) == []
    assert [each for each in parsed.attributes if each[1] in ("src", "href", "style", "action", "srcset")] == []
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    (policy,) = [value for tag, name, value in parsed.attributes if tag == "meta" and value.startswith("default-src")]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_the_page_of_each_kind_of_tenant_can_be_made() -> None:
    for found in (
        GOOD,
        replace(GOOD, erased=True, bound=None, versions=(), rotation=RotationFacts(None, None, False, False, False)),
        replace(GOOD, columns=None, kms_key=replace(KEY, ours=True, state=None, answer="not_asked"), checks=()),
        replace(GOOD, bound=None, audit=AuditFacts(0, None, None, ("x",), ())),
    ):
        assert page(told(found)).startswith("<!doctype html>")
        assert page(told(found, rewraps=None, kms_calls=None)).endswith("</html>")
    assert "31 October 2026" in page(told(replace(GOOD, kms_key=replace(KEY, rotations=(NOW - timedelta(days=27),)))))


def colours() -> list[dict[str, str]]:
    """The colours by name, in light and in dark."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[:2]
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", each)) for each in (light, dark)]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2, "contrast ratio" and "relative luminance")."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_stands_out_from_what_is_behind_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for named in colours():
        texts = {"text": ("ground", "panel"), "quiet": ("ground", "panel"), "accent": ("ground", "panel")}
        texts["warn"] = ("ground", "warn-panel")
        for text, grounds in texts.items():
            for ground in grounds:
                assert contrast(named[text], named[ground]) >= 4.5, (text, ground)
        assert contrast(named["warn"], named["warn-2"]) >= 3 or contrast(named["warn-2"], named["ground"]) >= 3


def test_every_colour_of_the_style_sheet_is_a_named_one_and_both_schemes_have_them() -> None:
    light, dark = colours()
    assert light.keys() == dark.keys()
    used = re.findall(r"(?:^|\s)(?:color|background|fill|stroke|border[\w-]*): ([^;]+);", CSS)
    assert [each for each in used if "#" in each or "rgb" in each] == []
    assert set(re.findall(r"var\(--([\w-]+)\)", CSS)) == light.keys()


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pii_vault/report/report.html.j2", "pii_vault/report/report.css"} <= names
