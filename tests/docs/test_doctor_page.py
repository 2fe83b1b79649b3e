"""docs/doctor.md names every check and every verdict, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from pii_vault.cli.doctoring import _WORDS
from pii_vault.context import Identity
from pii_vault.doctor import application, doctor, own_side, probes
from pii_vault.doctor.contexts import Contexts
from pii_vault.doctor.findings import Verdict
from pii_vault.lifecycle import validation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text("utf-8")


def said_by_the_code() -> set[str]:
    """The names of checks in the doctor's modules, as they stand in the source."""
    found = {*probes._NEEDED, *probes._NEVER, "role", "kms-describe"}
    for module in (application, doctor, own_side, probes):
        source = Path(str(module.__file__)).read_text("utf-8")
        found |= set(re.findall(r'(?:OURS|WORKS|DENIED), "([a-z-]+)"', source))
        found |= set(re.findall(r'_not_named\("([a-z-]+)"', source))
        found |= set(re.findall(r'check(?:, role)? = "([a-z-]+)"', source))
    source = Path(str(validation.__file__)).read_text("utf-8")
    keys = set(re.findall(r'^            \("([a-z-]+)", self\._', source, re.MULTILINE))
    contexts = {each.check for each in Contexts.of("acme", Identity(bytes(16), bytes(16), 1)).wrong}
    return found | contexts | keys - doctor._ASKED_OTHERWISE


def test_the_page_names_every_check_and_no_other() -> None:
    tables = PAGE.partition("## What must work\n")[2]
    named = {
        name for cell in re.findall(r"^\| (`.+?`) \|", tables, re.MULTILINE) for name in re.findall("`(.+?)`", cell)
    }
    assert named == said_by_the_code() - {"policies"}


def test_the_page_names_every_verdict_as_it_is_shown() -> None:
    rows = re.findall(r"^\| (\S+ `\w+`) \| .+? \|( yes)? \|$", PAGE, re.MULTILINE)
    assert [each for each, _ in rows] == [f"{_WORDS[each][0]} `{each}`" for each in Verdict]
    assert {each.split("`")[1] for each, bad in rows if bad} == {each for each in Verdict if each.is_bad}


def test_there_is_a_word_for_every_verdict() -> None:
    assert set(_WORDS) == set(Verdict)
