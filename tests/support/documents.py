"""What commands print as JSON, compared with the schemas that docs/ promises."""

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"

_FORMATS = FormatChecker(formats=())


@_FORMATS.checks("date-time", raises=ValueError)
def _is_utc(value: object) -> bool:
    return not isinstance(value, str) or (value.endswith("Z") and bool(datetime.fromisoformat(value)))


@cache
def validator(command: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{re.sub(r'[ -]+', '-', command)}.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=_FORMATS)


def document(command: str, printed: str) -> Any:
    """Return what a command printed; it is one JSON document, described by the command's schema, with nothing else."""
    found = json.loads(printed)
    validator(command).validate(found)
    schema = validator(command).schema
    described = set(schema.get("items", schema)["properties"])
    for each in found if isinstance(found, list) else [found]:
        assert set(each) == described, command
    return found
