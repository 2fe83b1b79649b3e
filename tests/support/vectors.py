"""Read the known-answer files."""

import json
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
