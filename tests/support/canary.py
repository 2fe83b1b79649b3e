"""Find secrets in whatever an error, a log record or an object shows.

A secret is a value that a test has put into an encrypted column, or the bytes of a key. `leaks` walks an error as a
careless handler would: text, arguments, attributes, notes, causes, contexts and the locals of frames. Frames are those
of pii_vault only, since a traceback through SQLAlchemy holds the statement's plaintext parameters and nobody can
prevent that.
"""

import base64
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pii_vault
from pii_vault import primitives

OUR_FILES = str(Path(pii_vault.__file__).parent)
_DEPTH = 6


class Secrets:
    """What must not be seen, in every form in which it is likely to be."""

    def __init__(self, *values: str | bytes) -> None:
        self._forms: dict[str, str] = {}
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return len(set(self._forms.values()))

    def add(self, value: str | bytes) -> None:
        raw = value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value)
        name = f"secret {len(self) + 1} ({type(value).__name__})"
        padded = base64.b64encode(raw).decode().rstrip("=")
        forms = [raw.hex(), raw.hex().upper(), padded, padded.replace("+", "-").replace("/", "_")]
        # Whoever decodes bytes has their text, and whoever prints them their repr.
        forms += [raw.decode("latin-1"), repr(raw)[2:-1], ", ".join(map(str, raw))]
        if isinstance(value, str):
            forms += [value, repr(value)[1:-1]]
        for form in forms:
            self._forms.setdefault(form, name)

    def in_text(self, text: str) -> set[str]:
        return {name for form, name in self._forms.items() if form in text}

    def in_bytes(self, data: bytes) -> set[str]:
        return self.in_text(data.decode("latin-1")) | self.in_text(data.hex())


@contextmanager
def watched_keys(secrets: Secrets) -> Iterator[Secrets]:
    """Add every key that a primitive is used with, while the block runs."""
    check = primitives._check_key

    def noting(key: bytes) -> None:
        secrets.add(key)
        check(key)

    with patch.object(primitives, "_check_key", noting):
        yield secrets


def leaks(error: BaseException, secrets: Secrets) -> list[str]:
    """Return where an error, or what hangs on it, shows a secret."""
    return sorted({f"{place}: {name}" for place, text in _shown_by(error) for name in secrets.in_text(text)})


def log_leaks(records: Iterable[logging.LogRecord], secrets: Secrets) -> list[str]:
    """Return which log records show a secret, in their text, their arguments or their exception."""
    found = set()
    for record in records:
        shown = [("text", record.getMessage()), *_values("args", record.args, 0)]
        if record.exc_info and record.exc_info[1]:
            shown += _shown_by(record.exc_info[1])
        found |= {f"{record.name} {place}: {name}" for place, text in shown for name in secrets.in_text(text)}
    return sorted(found)


def object_leaks(thing: Any, secrets: Secrets) -> list[str]:
    """Return which ways of showing an object show a secret."""
    shown = {"repr": repr(thing), "str": str(thing), "format": f"{thing}", "percent": "%s %r" % (thing, thing)}  # noqa: UP031
    shown["vars"] = repr(getattr(thing, "__dict__", None))
    shown["in a list"] = repr([thing])
    return sorted({f"{place}: {name}" for place, text in shown.items() for name in secrets.in_text(text)})


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it drags along, each once: an error can be its own cause."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        each = pending.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.__cause__, each.__context__, getattr(each, "orig", None)]
        pending += [*getattr(each, "exceptions", ()), *each.args, *vars(each).values()]


def _shown_by(error: BaseException) -> Iterator[tuple[str, str]]:
    for each in chain(error):
        name = type(each).__name__
        yield f"str({name})", str(each)
        yield f"repr({name})", repr(each)
        yield f"print of {name}", "".join(traceback.format_exception_only(type(each), each))
        for attribute in ("args", "__dict__", "__notes__", "params", "statement", "orig", "detail", "object"):
            yield from _values(f"{name}.{attribute}", getattr(each, attribute, None), 0)
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename.startswith(OUR_FILES):
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
                for local, value in frame.f_locals.items():
                    yield f"{where} local {local}", _safe_repr(value)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - for example of an object that is not complete yet
        return f"<no repr of a {type(value).__name__}>"


def _values(place: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseException) or value is None:
        return  # an error in another's attributes is visited for itself
    if isinstance(value, bytes | bytearray | memoryview):
        yield place, bytes(value).decode("latin-1")
        return
    yield place, f"{value} {value!r}"
    if depth < _DEPTH and isinstance(value, Mapping):
        for key, each in value.items():
            yield from _values(f"{place}[{key!r}]", each, depth + 1)
    elif depth < _DEPTH and isinstance(value, tuple | list | set | frozenset):
        for position, each in enumerate(value):
            yield from _values(f"{place}[{position}]", each, depth + 1)
