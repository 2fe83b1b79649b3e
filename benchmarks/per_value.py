"""What each peer takes to seal and to open one value, and how many bytes it adds: 24, 200 and 4,096 characters.

The yardstick is a bare AES-GCM call: a cached `AESGCM` object with a fresh IV from the kernel, bytes in, bytes out. All
take turns, round after round, in an order that changes, and a figure is the median of the rounds' ratios to the
yardstick in the same round. Ours is measured through its column type's own processors, as SQLAlchemy calls them.

    python benchmarks/per_value.py [--json] [--rounds N] [--values N]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hot_path import SIZES, bare, per_value
from peers import Found, Peer, found
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import Column, MetaData, Table, create_engine

from pii_vault import EncryptedString, LocalKms, Vault

YARDSTICK, OURS = "bare AES-GCM call", "pii_vault"
SLOW_PART = 20
"""A slow peer takes its turn with so much fewer values."""


@contextmanager
def ours() -> Iterator[Peer]:
    """The processors of an encrypted column, with the keys of the scope in memory."""
    with tempfile.TemporaryDirectory() as folder:
        kms = LocalKms(Path(folder) / "kms.json")
        vault = Vault(f"sqlite:///{folder}/keys.sqlite3", kms=kms, ttl=36_000)
        vault.create_all()
        vault.add_tenant("acme", key=kms.create_key())
        engine = create_engine("sqlite://")
        vault.attach(engine)
        column = Table("people", MetaData(), Column("email", EncryptedString())).c.email
        kind: Any = column.type.dialect_impl(engine.dialect)
        seal, open_ = kind.bind_processor(engine.dialect), kind.result_processor(engine.dialect, None)
        with vault.tenant("acme"):
            yield Peer(OURS, EncryptedString, seal, open_)
        engine.dispose()
        vault.close()


Work = tuple[Callable[[Any], Any], list[Any]]


def works(peers: list[Peer], size: int, count: int) -> Iterator[tuple[str, str, Work, int]]:
    """For each peer and direction what is called with which values, and how many bytes a value takes."""
    text = "x" * size
    seal, open_ = bare(text.encode())
    sealed = [seal(text.encode()) for _ in range(count)]
    yield YARDSTICK, "seal", (seal, [text.encode()] * count), len(sealed[0])
    yield YARDSTICK, "open", (open_, sealed), len(sealed[0])
    for peer in peers:
        few = max(1, count // SLOW_PART) if peer.slow else count
        values = [peer.seal(text) for _ in range(few)]
        assert peer.open(values[0]) == text, peer.name
        yield peer.name, "seal", (peer.seal, [text] * few), len(values[0])
        yield peer.name, "open", (peer.open, values), len(values[0])


def measure(peers: list[Peer], rounds: int, count: int) -> dict[str, Any]:
    """By size and peer: the ratios, the bytes that a value takes beyond its own, and the yardstick's nanoseconds."""
    chosen = random.Random(1)
    console = Console(stderr=True)
    figures: dict[str, Any] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for size in SIZES:
            calls, more = {}, {}
            for name, direction, work, stored in works(peers, size, count):
                calls[name, direction] = work
                more[name] = stored - size
            taken: dict[tuple[str, str], list[float]] = {each: [] for each in calls}
            for _ in progress.track(range(rounds), description=f"{size:,} characters"):
                order = list(calls)
                chosen.shuffle(order)
                for each in order:
                    taken[each].append(per_value(*calls[each]))
            figures[str(size)] = {
                name: {
                    **{f"{way}_ratio": _ratio(taken[name, way], taken[YARDSTICK, way]) for way in ("seal", "open")},
                    **{f"{way}_ns": round(statistics.median(taken[name, way])) for way in ("seal", "open")},
                    "more_bytes": more[name],
                }
                for name in more
            }
    return figures


def _ratio(each: list[float], other: list[float]) -> float:
    return round(statistics.median(one / two for one, two in zip(each, other, strict=True)), 3)


def run(rounds: int, count: int) -> dict[str, Any]:
    peers: Found = found()
    with ours() as one:
        figures = measure([one, *peers.peers], rounds, count)
    versions = {"python": platform.python_version(), **peers.versions}
    return {"sizes": figures, "left_out": peers.left_out, "versions": versions}


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--values", type=int, default=400)
    options = parser.parse_args()
    if min(options.rounds, options.values) < 1:
        parser.error("--rounds and --values are at least 1")
    figures = run(options.rounds, options.values)
    if options.json:
        print(json.dumps(figures))
        return
    for size, each in figures["sizes"].items():
        print(f"\n{int(size):,} characters: ratios to a bare AES-GCM call")
        print(f"{'':<30}{'seal':>10}{'open':>10}{'seal ns':>10}{'open ns':>10}{'bytes more':>12}")
        for name, one in each.items():
            ratios = f"{one['seal_ratio']:>10}{one['open_ratio']:>10}{one['seal_ns']:>10,}{one['open_ns']:>10,}"
            print(f"{name:<30}{ratios}{one['more_bytes']:>12}")
    for name, reason in figures["left_out"].items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    main()
