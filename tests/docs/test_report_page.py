"""docs/report.md: the parts that it explains are those of the page, its options are there, its numbers are so."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

from tests.support.command import commands
from tests.support.sample_report import year_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "report.md").read_text("utf-8")
TEMPLATE = (files("pii_vault.report") / "report.html.j2").read_text("utf-8")


def test_each_part_of_the_page_is_explained() -> None:
    parts = re.findall(r"^\| ([a-z][\w ]+) \|", PAGE.partition("## What each part says")[2], re.MULTILINE)[1:]
    headings = [
        re.sub(r"\{\{.* else \"(.*?)\" \}\}", r"\1", each) for each in re.findall(r"<h2.*?>(.*)</h2>", TEMPLATE)
    ]
    shown = [each.lower().replace(", column by column", "").replace(" made for this report", "") for each in headings]
    assert [each.lower() for each in parts] == ["verdict", "exceptions", "not looked at", *shown[1:]]


def test_its_options_are_those_of_the_command() -> None:
    options = {option for param in commands()["report"].params for option in param.opts}
    assert set(re.findall(r"(?<![\w-])--(?!ttl|grace)[a-z][a-z-]*", PAGE)) <= options


def test_the_picture_is_there_and_small() -> None:
    picture = (DOCS / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) <= 200_000


def test_the_customers_kms_is_asked_as_the_page_says(tmp_path: Path) -> None:
    with year_of(tmp_path) as year:
        with year.kms.counting() as counter:
            year.report()
        theirs = (year.key.arn, year.key.role_arn)
        asked = Counter((each.operation, each.outcome) for each in counter.calls if each.key in theirs)
        with year.kms.counting() as silent:
            year.report(ask_kms=False)
    assert [each for each in silent.calls if each.key in theirs] == []
    # "two `DescribeKey`, one `ListKeyRotations`, one `Decrypt`, one more that is refused, … one `AssumeRole`"
    assert asked == {
        ("DescribeKey", "ok"): 2,
        ("ListKeyRotations", "ok"): 1,
        ("Decrypt", "ok"): 1,
        ("Decrypt", "InvalidCiphertextException"): 1,
        ("AssumeRole", "AccessDenied"): 1,
    }
