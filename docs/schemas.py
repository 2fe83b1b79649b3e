"""Write docs/schemas/ and the tables in docs/json.md, from the types that the commands print. Run it when one changes.

What is there is promised: a member may be added, and none is renamed, removed or given another type.
"""

import json
import re
import typing
from pathlib import Path

from pydantic import TypeAdapter

from pii_vault.cli.reports import kinds

FOLDER = Path(__file__).with_name("schemas")
PAGE = Path(__file__).with_name("json.md")

TABLE = re.compile(r"(<!-- members(?: of (?P<member>[\w.]+))?: (?P<command>.+?) -->\n).*?(?=\n\n)", re.DOTALL)
"""A table of members in the page, behind a comment that names a command that prints them; or of what is in a member."""


def file_name(command: str) -> str:
    """Return the name of a command's schema file: its words with dashes."""
    return f"{re.sub(r'[ -]+', '-', command)}.json"


def schema(command: str) -> dict[str, typing.Any]:
    """Return the JSON Schema of what a command prints."""
    kind = kinds()[command]
    (item,) = typing.get_args(kind) or (kind,)
    document = described(item)
    if item is not kind:
        document = {"type": "array", "items": document}
    title = f"pii-vault {command}" + ("" if command == "audit anchor" else " --json")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **document}


def described(item: type) -> dict[str, typing.Any]:
    """Return the schema of a dataclass, with what its docstring says, and in it those of dataclasses that it holds."""
    made = TypeAdapter(item).json_schema(mode="serialization")
    said, types = meanings(item), typing.get_type_hints(item)
    for name, member in made["properties"].items():
        array = member if "items" in member else next(iter(member.get("anyOf", ())), {})
        if "$ref" in array.get("items", {}):
            array["items"] = described(held(types[name]))
        elif "$ref" in array:
            array.update(described(held(types[name])))
            del array["$ref"]
        elif "$ref" in member:
            made["properties"][name] = described(types[name])
    return {
        "type": "object",
        "description": item.__doc__.partition("\n")[0],
        "properties": {
            name: {**plain(made["properties"][name]), "description": said[name]} for name in made["properties"]
        },
        "required": made["required"],
    }


def held(kind: typing.Any) -> type:
    """Return the dataclass that is in an array, or may be null."""
    while arguments := [each for each in typing.get_args(kind) if each not in (type(None), ...)]:
        (kind,) = arguments
    return kind


def plain(member: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Return a member's schema without pydantic's titles, and with "or null" as a second type."""
    if "anyOf" in member:
        one, null = member["anyOf"]
        assert null == {"type": "null"}
        return {**one, "type": [one["type"], "null"]}
    return {name: value for name, value in member.items() if name != "title"}


def meanings(item: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and of what it extends say about each attribute."""
    said = [(each.__doc__ or "").partition("Attributes:\n")[2] for each in reversed(item.__mro__)]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12,}.*)*)", "\n".join(said), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def table(command: str, member: str | None = None) -> str:
    """Return what the page says about each member of a document, or of the objects in one of its members."""
    found = schema(command)
    members = found.get("items", found)["properties"]
    if member is not None:
        for name in member.split("."):
            members = members[name].get("items", members[name])["properties"]
    rows = [f"| `{name}` | {type_of(each)} | {each['description']} |" for name, each in members.items()]
    return "\n".join(["| member | type | meaning |", "|---|---|---|", *rows])


def type_of(member: dict[str, typing.Any]) -> str:
    """Return a member's type in words."""
    types = member["type"] if isinstance(member["type"], list) else [member["type"]]
    words = {"date-time": "time"}.get(member.get("format", ""), types[0])
    if words == "array":
        words = f"array of {member['items']['type']}s"
    return f"{words} or null" if "null" in types else words


def files() -> dict[str, str]:
    """Return the text of each schema file."""
    return {file_name(each): json.dumps(schema(each), indent=2, ensure_ascii=False) + "\n" for each in kinds()}


def page(text: str) -> str:
    """Return the page with its tables as they should be."""
    return TABLE.sub(lambda match: match[1] + "\n" + table(match["command"], match["member"]), text)


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for file in FOLDER.iterdir():
        if file.name not in files():
            file.unlink()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
