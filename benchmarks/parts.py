"""Where the time of one opened value, and of one small query, goes: the same thing with a part more each time.

    python benchmarks/parts.py [--json] [--rounds N]

The first table builds up what `open_processor` does, from a bare AES-GCM call. The second one asks what SQLAlchemy
takes for engine events by themselves: `session.get` on a plain model, with listeners that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, String, create_engine, event, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

HEADER, IV, BODY = slice(10), slice(10, 22), slice(22, None)
VALUES, GETS = 400, 200


class Keyset:
    __slots__ = ("checked_until", "openings")

    def __init__(self, openings: dict[str, Any]) -> None:
        self.openings = openings
        self.checked_until = monotonic() + 1e6


class Scope:
    __slots__ = ("keyset",)

    def __init__(self, keyset: Keyset) -> None:
        self.keyset = keyset


def openings() -> dict[str, Callable[[], float]]:
    """Return what measures opening a value, each with one part more than the one before."""
    aes, iv = AESGCM(os.urandom(32)), os.urandom(12)
    header, aad, decrypt = os.urandom(10), os.urandom(110), aes.decrypt
    plain = iv + aes.encrypt(iv, b"x" * 24, None)
    bound = header + iv + aes.encrypt(iv, b"x" * 24, aad)
    keyset = Keyset({"people.email": {header: (decrypt, aad)}})
    current: ContextVar[Scope] = ContextVar("current")
    current.set(Scope(keyset))
    get, decode, mine = current.get, bytes.decode, keyset.openings["people.email"]

    def bare(value: bytes) -> Any:
        return decrypt(value[:12], value[12:], None)

    def with_context(value: bytes) -> Any:
        return decrypt(value[IV], value[BODY], aad)

    def with_text(value: bytes) -> Any:
        return decode(decrypt(value[IV], value[BODY], aad))

    def with_header(value: bytes) -> Any:
        found, more = mine[value[HEADER]]
        return decode(found(value[IV], value[BODY], more))

    def with_scope(value: bytes) -> Any:
        found, more = get().keyset.openings["people.email"][value[HEADER]]
        return decode(found(value[IV], value[BODY], more))

    def with_expiry(value: bytes) -> Any:
        held = get().keyset
        found, more = held.openings["people.email"][value[HEADER]]
        if monotonic() < held.checked_until:
            return decode(found(value[IV], value[BODY], more))
        return None

    return {
        "a bare call": partial(opened, bare, plain),
        "+ what it is bound to (AAD)": partial(opened, with_context, bound),
        "+ bytes to text": partial(opened, with_text, bound),
        "+ the key by the header": partial(opened, with_header, bound),
        "+ the tenant in scope": partial(opened, with_scope, bound),
        "+ the keys' expiry": partial(opened, with_expiry, bound),
    }


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(60))


EVENTS = ("before_execute", "before_cursor_execute", "after_cursor_execute", "commit", "rollback")


def engines() -> dict[str, Engine]:
    """Return engines with more and more listeners that do nothing."""
    made = {}
    for name, names in (("no event", ()), ("one event", EVENTS[:1]), ("five events", EVENTS)):
        engine = create_engine("sqlite://", poolclass=StaticPool)
        for each in names:
            event.listen(engine, each, lambda *_: None)
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(insert(Person), [{"id": n, "email": f"{n}@example.com"} for n in range(GETS)])
        made[name] = engine
    return made


def opened(function: Callable[[bytes], Any], value: bytes) -> float:
    """Nanoseconds a value."""
    values = [value] * VALUES
    start = time.perf_counter_ns()
    for each in values:
        function(each)
    return (time.perf_counter_ns() - start) / VALUES


def got(engine: Engine) -> float:
    """Nanoseconds a row, each in a session of its own."""
    start = time.perf_counter_ns()
    for key in range(GETS):
        with Session(engine) as session:
            session.get(Person, key)
    return (time.perf_counter_ns() - start) / GETS


def in_turn(what: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Measure all in turn; return median and the median ratio to the first one."""
    taken: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(rounds):
        for name, measure in what.items():
            taken[name].append(measure())
    first = next(iter(taken.values()))
    return {
        name: {
            "ns": round(statistics.median(each)),
            "ratio": round(statistics.median(a / b for a, b in zip(each, first, strict=True)), 3),
        }
        for name, each in taken.items()
    }


def main() -> None:
    """Print two tables, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    listening = engines()
    queries = {name: partial(got, engine) for name, engine in listening.items()}
    results = {
        "open": in_turn(openings(), given.rounds),
        "session_get": in_turn(queries, max(given.rounds // 5, 3)),
    }
    for engine in listening.values():
        engine.dispose()
    if given.json:
        print(json.dumps(results))
        return
    for title, figures in results.items():
        print(f"{title:<30}{'ratio':>8}{'ns':>10}")
        for name, each in figures.items():
            print(f"{name:<30}{each['ratio']:>8}{each['ns']:>10,}")


if __name__ == "__main__":
    main()
