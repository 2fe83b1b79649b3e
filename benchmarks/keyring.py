"""What it costs to enter a scope whose keys are in memory, and one whose are not, as tenants become more.

The keys are in a development KMS in this process and the key store in a SQLite file, so a miss is all of our own work
and none of the network's. Compare the ratios to one tenant, which are measured in the same run.

    python benchmarks/keyring.py [--json] [--tenants N]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from pii_vault import LocalKms, Vault
from pii_vault.keyring.terms import KEPT_TENANTS

HITS, MISSES, ROUNDS = 2_000, 20, 5


def tenants_of(vault: Vault, kms: LocalKms, count: int) -> list[str]:
    # One KMS key for all: a file with ten thousand of them would be read anew for each call.
    names, key = [f"tenant {number}" for number in range(count)], kms.create_key()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name in progress.track(names, description="registering"):
            vault.add_tenant(name, key=key, shared_key=True)
    return names


def enter(vault: Vault, name: str) -> None:
    with vault.tenant(name):
        pass


def per_call(work: Callable[[str], object], names: Sequence[str]) -> float:
    """Nanoseconds."""
    start = time.perf_counter_ns()
    for name in names:
        work(name)
    return (time.perf_counter_ns() - start) / len(names)


def measured(vault: Vault, names: list[str]) -> dict[str, Any]:
    """Nanoseconds of a hit, microseconds of a miss and of an eviction, while so many tenants' keys are held."""
    for name in names:
        enter(vault, name)
    held, _ = vault._keyring._memory.held()
    chosen = random.Random(1)
    recent = names[-held:]
    hits = [per_call(lambda name: enter(vault, name), chosen.choices(recent, k=HITS)) for _ in range(ROUNDS)]
    misses, evictions = [], []
    for _ in range(ROUNDS):
        some = chosen.choices(recent, k=MISSES)
        evictions.append(per_call(vault._keyring.evict, some))
        misses.append(per_call(lambda name: enter(vault, name), list(dict.fromkeys(some))))
    return {
        "held": held,
        "hit_ns": round(statistics.median(hits)),
        "miss_us": round(statistics.median(misses) / 1000),
        "evict_us": round(statistics.median(evictions) / 1000),
    }


def bytes_each(vault: Vault, names: list[str]) -> int:
    """What a keyset takes in memory, while no column has used it yet."""
    for name in names:
        vault._keyring.evict(name)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for name in names:
        enter(vault, name)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken // len(names)


def run(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kms = LocalKms(Path(folder) / "kms.json")
        vault = Vault(f"sqlite:///{folder}/keys.sqlite3", kms=kms, ttl=36_000)
        vault.create_all()
        names = tenants_of(vault, kms, count)
        sizes = sorted({each for each in (1, 10, 100, 1_000) if each < count} | {count})
        found = {}
        for size in sizes:
            for name in names:
                vault._keyring.evict(name)
            found[str(size)] = measured(vault, names[:size])
        some = names[: min(count, 500)]
        figures = {
            "tenants": found,
            "kept_at_most": KEPT_TENANTS,
            "hit_ratio": round(found[str(count)]["hit_ns"] / found["1"]["hit_ns"], 2) if count > 1 else 1.0,
            "miss_ratio": round(found[str(count)]["miss_us"] / found["1"]["miss_us"], 2) if count > 1 else 1.0,
            "bytes_each": bytes_each(vault, some),
        }
        vault.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tenants", type=int, default=1_000)
    options = parser.parse_args()
    figures = run(options.tenants)
    if options.json:
        print(json.dumps(figures))
        return
    for count, each in figures["tenants"].items():
        print(
            f"{int(count):>6,} tenants, {each['held']:,} held: a hit {each['hit_ns']:,} ns, "
            f"a miss {each['miss_us']:,} us, an eviction {each['evict_us']:,} us"
        )
    print(
        f"with the most, a hit takes {figures['hit_ratio']:g} times and a miss {figures['miss_ratio']:g} times "
        f"what it takes with one; a keyset takes {figures['bytes_each']:,} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
