"""`report`: what a customer's security officer is told, on a page and as JSON, with exit codes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from tests.support.application import ROWS, Application
from tests.support.operator import Operator, StrictKeys, operator
from tests.support.reported import PLAINTEXT, go_wrong, live
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault.keystore import KeyStore
from pii_vault.keystore.schema import audit, keks, keys
from pii_vault.stages import AdoptionRecord, Stage

IN_ROWS = ("--tenant-column", "tenant_id", "--processes", "4")


def told(app: Application, *options: str, code: int = 0, base: str = "Old") -> Any:
    return app.ops.json("report", "acme", *app.named(base), *(options or IN_ROWS), code=code)


def kinds(report: Any, *, problem: bool = True) -> list[str]:
    return [each["kind"] for each in report["findings"] if each["problem"] is problem]


def is_strict(app: Application) -> bool:
    return app.engine.dialect.name == "postgresql"


def real_problems(report: Any) -> list[str]:
    """The problems, without that of a key file for development, which the local KMS always is."""
    return [each for each in kinds(report) if each != "development"]


def test_of_a_tenant_in_order_everything_is_as_promised(app: Application) -> None:
    live(app)
    report = told(app, code=0 if is_strict(app) else 1)
    assert real_problems(report) == []
    assert report["not_looked_at"] == []
    assert report["verdict"] == ("as_promised" if is_strict(app) else "not_as_promised")
    assert [(each["version"], each["state"], each["values"]) for each in report["versions"]] == [
        (3, "active", 16),
        (2, "deactivated", 24),
        (1, "deactivated", 2 * ROWS),
    ]
    assert [each["reason"] for each in report["versions"]] == ["forced", "forced", "initial"]
    assert [(each["reason"], each["new_kek"]) for each in report["rewraps"]] == [("newer material", False)]
    assert report["audit"]["verified"] is True
    assert len(report["audit"]["last"]) == min(10, report["audit"]["entries"])
    assert report["bound"]["most_seconds"] == 300 + 60 + 300
    assert report["bound"]["agreed"] is True
    assert report["rotation"]["period_days"] == 90
    assert report["kms_calls"]["per_day"] == pytest.approx(4 * 86_400 / 300 / 0.875, rel=0.01)
    assert report["kms_key"]["state"] == "Enabled"
    assert report["kms_key"]["has_external_id"] is is_strict(app)
    assert all(each["passed"] for each in report["checks"])


def test_what_is_wrong_is_said_and_the_command_exits_with_1(app: Application) -> None:
    live(app)
    go_wrong(app)
    report = told(app, code=1)
    assert report["verdict"] == "not_as_promised"
    assert sorted(real_problems(report)) == ["compromised_key", "stored"]
    (stored,) = [each for each in report["findings"] if each["kind"] == "stored"]
    assert stored["text"] == "1 value was never sealed, in patients.email."
    (key,) = [each for each in report["findings"] if each["kind"] == "compromised_key"]
    assert "Data key 2 is compromised, and seals 24 values still" in key["text"]


def test_without_a_tenant_column_the_plaintext_of_others_is_counted_and_nobody_says_whose_it_is(
    app: Application,
) -> None:
    live(app)
    report = told(app, "--processes", "4", code=1)
    (stored,) = [each for each in report["findings"] if each["kind"] == "stored"]
    assert stored["text"] == "1 value was never sealed, in patients.email."
    assert any("Whose the values are" in each for each in report["not_known"])


def test_another_tenants_values_and_name_are_not_told(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("tenant", "add", "glob-secret-customer", *ops.kms.new_key())
    local_app.write("glob-secret-customer", 7)
    for options in ([*IN_ROWS], ["--processes", "4"]):
        done = ops.run("report", "acme", *local_app.named("Old"), *options, "--json", code=1)
        assert "glob-secret" not in done.out
        assert '"count": 7' not in done.out


def test_a_value_of_another_tenants_key_in_a_row_of_this_one_is_foreign(local_app: Application) -> None:
    ops = local_app.ops
    ops.run("tenant", "add", "glob", *ops.kms.new_key())
    local_app.write("glob", 3)
    with local_app.engine.begin() as connection:
        connection.execute(text("UPDATE patients SET tenant_id = 'acme' WHERE tenant_id = 'glob'"))
    report = told(local_app, code=1)
    assert "stored" in kinds(report)
    assert {(each["state"], each["count"]) for each in report["columns"][0]["shares"]} == {
        ("active", ROWS),
        ("foreign", 3),
    }


def test_what_nobody_asked_for_is_said_and_is_not_taken_for_in_order(ops: Operator) -> None:
    ops.run("tenant", "add", "acme", *ops.kms.new_key())
    strict = "PII_VAULT_KMS" not in ops.settings
    report = ops.json("report", "acme", "--without-kms", code=0 if strict else 1)
    assert report["verdict"] == ("not_all_looked_at" if strict else "not_as_promised")
    assert report["columns"] is report["kms_calls"] is None
    assert (report["kms_key"]["answer"], report["kms_key"]["state"], report["checks"]) == ("not_asked", None, [])
    assert [each.partition(":")[0] for each in report["not_looked_at"]] == [
        "The KMS key",
        "What is stored",
        "KMS requests a day",
    ]


def test_a_revoked_key_is_one_finding_and_the_page_is_written(app: Application, tmp_path: Path) -> None:
    app.ops.kms.disable(app.kms_key)
    report = told(app, code=1)
    assert real_problems(report) == ["kms_key"]
    assert report["kms_key"]["state"] == "Disabled"
    app.ops.run("report", "acme", "--out", str(tmp_path / "page.html"), code=1)
    assert "Disabled" in (tmp_path / "page.html").read_text("utf-8")


def test_a_forged_record_shows_in_the_audit_log_and_no_external_id_is_shown(app: Application) -> None:
    app.ops.alter(update(keks).values(external_id="EXTERNAL-ID-FORGED"))
    done = app.ops.run("report", "acme", "--without-kms", "--json", code=1)
    assert "external_id is not what the log says" in done.out
    assert "EXTERNAL-ID-FORGED" not in done.out


def test_a_log_that_cannot_be_read_is_no_log_without_re_wraps(local_app: Application) -> None:
    local_app.ops.alter(update(audit).values(entry="{}"))
    report = told(local_app, code=1)
    assert report["rewraps"] is None
    assert (report["audit"]["verified"], report["audit"]["last"]) == (False, [])


def test_tables_that_cannot_be_read_are_a_problem(local_app: Application) -> None:
    with local_app.engine.begin() as connection:
        connection.execute(text("DROP TABLE patients"))
    report = told(local_app, code=1)
    assert report["columns"] is None
    assert "not_counted" in kinds(report)


def test_a_suspended_tenant_and_one_without_a_key_of_its_own(local: Operator) -> None:
    local.run("tenant", "add", "acme")
    local.run("tenant", "suspend", "acme")
    report = local.json("report", "acme", code=1)
    assert sorted(kinds(report, problem=False)) == ["provider_key", "suspended"]
    assert report["suspended"] is True


def test_an_erased_tenant_is_reported_on_and_its_rows_are_no_problem(local_app: Application) -> None:
    local_app.ops.run("tenant", "erase", "acme", "--yes")
    report = told(local_app, code=1)
    assert real_problems(report) == []
    assert kinds(report, problem=False) == ["erased"]
    assert (report["bound"], report["kms_key"]["answer"]) == (None, "not_asked")


def test_the_page_is_whole_private_and_never_written_over_another_file(app: Application, tmp_path: Path) -> None:
    live(app)
    go_wrong(app)
    page = tmp_path / "page.html"
    done = app.ops.run("report", "acme", *app.named("Old"), *IN_ROWS, "--out", str(page), code=1)
    assert done.out.splitlines()[0].startswith("Not everything is as promised")
    assert page.stat().st_mode & 0o777 == 0o600
    shown = page.read_text("utf-8")
    app.ops.outputs.append(shown)  # searched for keys and values at the end
    assert PLAINTEXT not in shown
    assert "patients.email" in shown
    before = page.read_bytes()
    assert "is there already" in app.ops.fails("report", "acme", "--out", str(page))
    assert page.read_bytes() == before


def test_names_from_elsewhere_are_text_on_the_page(local: Operator, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    local.run("tenant", "add", hostile, *local.kms.new_key())
    local.run("tenant", "suspend", hostile, "--reason", "</td><script>3</script>", "--actor", "<b>eve</b>")
    page = tmp_path / "page.html"
    local.run("report", hostile, "--out", str(page), "--actor", "<i>mallory</i>", code=1)
    shown = page.read_text("utf-8")
    assert "<script" not in shown
    assert re.search(r"<(img|b|i)\b", shown) is None
    assert shown.count("&lt;script&gt;") >= 3


def test_an_adoption_that_has_begun_may_have_left_plaintext(local_app: Application) -> None:
    until = datetime.now(UTC) + timedelta(days=2)
    step = AdoptionRecord(
        *("patients.mail", 1, Stage.FILLED, "patients", "mail", "email", until, 20, datetime.now(UTC), "ops")
    )
    KeyStore(local_app.engine).add_adoption_step(step)
    report = told(local_app, code=1)
    assert real_problems(report) == ["adoption"]
    assert kinds(report, problem=False) == ["fallback"]


def test_a_kms_that_lets_us_in_no_longer_and_one_that_does_not_answer(postgres_url: str, strict_kms: StrictKms) -> None:
    with operator(postgres_url, StrictKeys(strict_kms)) as ops:
        ops.run("tenant", "add", "acme", *ops.kms.new_key())
        arn = ops.json("tenant show", "acme")["kms_key_arn"]
        strict_kms.script(FaultRule("DescribeKey", key=arn, times=None, error="KMSInternalException"))
        report = ops.json("report", "acme", code=1)
        assert (report["kms_key"]["answer"], kinds(report), report["checks"]) == ("failed", ["kms"], [])
        strict_kms.clear_script()
        strict_kms.deny_all(arn)
        report = ops.json("report", "acme", code=1)
        assert (report["kms_key"]["answer"], kinds(report)) == ("refused", ["kms"])
        assert report["audit"]["verified"] is True  # our own KMS has not refused


def test_the_kms_key_s_own_rotations_are_told_where_the_kms_shows_them(local: Operator) -> None:
    options = local.kms.new_key()
    local.run("tenant", "add", "acme", *options)
    assert local.json("report", "acme", code=1)["kms_key"]["rotations"] == []
    local.kms.rotate(options[1])
    assert len(local.json("report", "acme", code=1)["kms_key"]["rotations"]) == 1


def test_a_tenant_without_pii_encryption_is_told_apart_from_a_suspended_one(local: Operator) -> None:
    local.run("tenant", "add", "acme", *local.kms.new_key(), "--pii-encryption", "off")
    assert "disabled" in kinds(local.json("report", "acme", code=1), problem=False)


def test_an_overdue_rotation_is_a_problem_after_a_day(local_app: Application) -> None:
    late = datetime.now(UTC) - timedelta(days=2)
    local_app.ops.alter(update(keys).where(keys.c.state == "active", keys.c.purpose == "data").values(due_at=late))
    report = told(local_app, code=1)
    assert report["rotation"]["overdue"] is True
    assert "rotation" in kinds(report)
