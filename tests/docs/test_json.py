"""docs/json.md and docs/schemas/ say what the commands print: every document, every member, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
import typing
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import ValidationError
from tests.support.command import commands
from tests.support.documents import SCHEMAS, document, validator

from pii_vault.cli.progress import RowsDone
from pii_vault.cli.reports import kinds

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "json.md").read_text("utf-8")

# The heading names the commands of a section; what has no command in its heading is prose.
SECTIONS = {
    tuple(re.findall(r"`(.+?)`", section.partition("\n")[0])): section
    for section in PAGE.split("\n## ")[1:]
    if section.startswith("`")
}


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas", DOCS / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def members(command: str) -> dict[str, Any]:
    schema = validator(command).schema
    return dict(schema.get("items", schema)["properties"])


def test_the_schemas_are_those_of_what_the_commands_print_now() -> None:
    assert {file.name: file.read_text("utf-8") for file in SCHEMAS.iterdir()} == script().files()


def test_the_tables_of_the_page_are_those_of_what_the_commands_print_now() -> None:
    assert script().page(PAGE) == PAGE
    assert len([each for each in re.finditer(script().TABLE, PAGE) if not each["member"]]) == len(SECTIONS)


def test_every_command_that_prints_json_has_a_document_and_no_other_has() -> None:
    speaking = {name for name, each in commands().items() if any("--json" in param.opts for param in each.params)}
    described = {command.removesuffix(" --all").removesuffix(" --due") for command in kinds()}
    assert described == speaking | {"audit anchor"}
    assert {command for section in SECTIONS for command in section} == set(kinds())


def test_the_commands_of_a_section_print_the_same_members() -> None:
    for section, text in SECTIONS.items():
        (shown,) = re.findall(r"<!-- members: (.+?) -->", text)
        assert shown in section
        for command in section:
            assert members(command) == members(shown), command


def test_the_page_names_every_member_of_every_schema_and_no_other() -> None:
    for section, text in SECTIONS.items():
        table = re.split(r"```json|<!-- members of ", text.partition("<!-- members: ")[2])[0]
        assert named_in(table) == list(members(section[0])), section


def test_the_page_names_every_member_of_what_is_in_a_member() -> None:
    inner = {
        (section, name): member["items"]
        for section in SECTIONS
        for name, member in members(section[0]).items()
        if member.get("items", {}).get("type") == "object"
    }
    assert inner
    for (section, name), found in inner.items():
        elsewhere = re.search(rf"^The objects in `{name}` are those of `(.+?)`\.$", SECTIONS[section], re.MULTILINE)
        (home,) = [each for each in SECTIONS if (elsewhere[1] if elsewhere else section[0]) in each]
        assert found == inner[home, name], (section, name)
        text = SECTIONS[home].partition(f"<!-- members of {name}: {home[0]} -->")[2]
        assert named_in(re.split(r"```json|<!-- members|The objects", text)[0]) == list(found["properties"])
        assert found["required"] == list(found["properties"])
        assert [each for each in found["properties"].values() if not each["description"].endswith(".")] == []


def test_the_page_names_every_member_of_what_is_deeper_in_a_report() -> None:
    section = SECTIONS[("report",)]
    for place in re.findall(r"<!-- members of ([\w.]+): report -->", section):
        found: dict[str, Any] = {"properties": members("report")}
        for name in place.split("."):
            found = found["properties"][name]
            found = found.get("items", found)
        text = section.partition(f"<!-- members of {place}: report -->")[2]
        assert named_in(re.split(r"```json|<!-- members", text)[0]) == list(found["properties"])
        assert found["required"] == list(found["properties"])
        assert [each for each in found["properties"].values() if not each["description"].endswith(".")] == []
    held = [name for name, each in members("report").items() if "properties" in each.get("items", each)]
    assert set(held) == {each.partition(".")[0] for each in re.findall(r"members of ([\w.]+): report", section)}


def named_in(table: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_page_describes_the_lines_that_say_how_far_it_is() -> None:
    section = PAGE.partition("## Progress on standard error\n")[2].partition("\n## ")[0]
    said = script().meanings(RowsDone)
    types = {"str": "string", "str | None": "string or null", "int": "integer", "float | None": "number or null"}
    rows = [f"| `{each.name}` | {types[str(each.type)]} | {said[each.name]} |" for each in fields(RowsDone)]
    assert "\n".join(rows) in section
    (example,) = re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert list(json.loads(example)) == [each.name for each in fields(RowsDone)]


def test_every_member_is_always_there_has_a_meaning_and_others_may_be_added() -> None:
    for command in kinds():
        schema = validator(command).schema
        item = schema.get("items", schema)
        assert item["required"] == list(item["properties"]), command
        assert "additionalProperties" not in item, command
        assert [name for name, each in item["properties"].items() if not each["description"].endswith(".")] == []


def test_every_example_is_what_the_schema_says() -> None:
    for section, text in SECTIONS.items():
        examples = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert examples, section
        for example in examples:
            kind = list if example.startswith("[") else dict
            printing = [each for each in section if (typing.get_origin(kinds()[each]) or dict) is kind]
            assert printing, section
            assert document(printing[0], example)


def test_the_schemas_are_strict_about_what_they_describe() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", SECTIONS[("tenant list",)], re.MULTILINE | re.DOTALL)
    (tenant,) = json.loads(example)
    validator("tenant list").validate([{**tenant, "a member of a later release": 1}])
    wrong = (
        {"name": None},
        {"key_version": "1"},
        {"suspended": 0},
        {"created_at": "yesterday"},
        {"created_at": "2026-01-01T00:00:00+01:00"},
    )
    for each in wrong:
        with pytest.raises(ValidationError):
            validator("tenant list").validate([tenant | each])
    for name in tenant:
        with pytest.raises(ValidationError):
            validator("tenant list").validate([{key: value for key, value in tenant.items() if key != name}])
