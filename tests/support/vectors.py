"""Read the known-answer files."""

import json
import struct
import uuid
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from pii_vault.context import Identity

FOLDER = Path(__file__).parent.parent / "vectors"


def load(name: str) -> dict[str, Any]:
    """Return a file's document."""
    document: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return document


def cases(name: str, function: str | None = None) -> list[dict[str, Any]]:
    """Return a file's cases, or those of one function."""
    found = [case for case in load(name)["cases"] if function is None or case["function"] == function]
    assert found, f"{name} has no case for {function}"
    return found


def named(case: dict[str, Any]) -> str:
    """Return what a case is called in a test's id."""
    return str(case.get("name") or case.get("context_id"))


def identity(case: dict[str, Any]) -> Identity:
    """Return whose case it is."""
    return Identity(bytes.fromhex(case["app_uid"]), bytes.fromhex(case["tenant_uid"]), case["keyset_id"])


def build(description: dict[str, Any], members: Any = None) -> Any:
    """Return the value that a vector describes."""
    ((kind, text),) = description.items()
    match kind:
        case "list":
            return [build(item, members) for item in text]
        case "tuple":
            return tuple(build(item, members) for item in text)
        case "dict":
            return {build(key): build(item) for key, item in text}
        case "float64":
            return struct.unpack(">d", bytes.fromhex(text))[0]
        case "nested":
            levels, value = text
            return build(value) if levels == 0 else [build({"nested": [levels - 1, value]})]
        case "none" | "str" | "bool":
            return text
        case "member":
            return members[text]
    builders = {
        "int": lambda digits: int(Decimal(digits)),  # int() converts no more digits than the interpreter allows
        "utf16": lambda units: bytes.fromhex(units).decode("utf-16-be", "surrogatepass"),
        "json": json.loads,
        "bytes": bytes.fromhex,
        "decimal": Decimal,
        "date": date.fromisoformat,
        "time": time.fromisoformat,
        "datetime": datetime.fromisoformat,
        "uuid": uuid.UUID,
    }
    return builders[kind](text)
