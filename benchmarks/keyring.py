"""What it costs to enter a scope whose keys are in memory, and one whose are not, as tenants, versions, threads grow.

The keys are in a development KMS in this process and the key store in a SQLite file, so a miss is all of our own work
and none of the network's. Compare the ratios to one tenant, one version and one thread, which are measured in the same
run. A miss unwraps every version of the tenant's data key, so it grows with them; that it calls the KMS once does not.
Threads share one interpreter, so the time for a hit of theirs is the time that passes, divided by all their hits.

    python benchmarks/keyring.py [--json] [--tenants N] [--versions N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
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


def versioned(vault: Vault, kms: LocalKms, count: int) -> dict[str, Any]:
    """Nanoseconds of a hit and microseconds of a miss of one tenant, while its data key has so many versions."""
    vault.add_tenant("versioned", key=kms.create_key())
    found, made = {}, 1
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rotating", total=count - 1)
        for size in sorted({each for each in (1, 10, 100, 1_000) if each < count} | {count}):
            while made < size:
                vault.rotate("versioned")
                made += 1
                progress.advance(task)
            misses = []
            for _ in range(MISSES):
                vault._keyring.evict("versioned")
                misses.append(per_call(lambda name: enter(vault, name), ["versioned"]))
            hits = [per_call(lambda name: enter(vault, name), ["versioned"] * HITS) for _ in range(ROUNDS)]
            found[str(size)] = {
                "hit_ns": round(statistics.median(hits)),
                "miss_us": round(statistics.median(misses) / 1000),
            }
    return found


def threaded(vault: Vault, names: list[str], count: int) -> dict[str, Any]:
    """By number of threads: nanoseconds that pass for each hit, over all of them."""
    found = {}
    for size in sorted({each for each in (1, 2, 4, 8, 16) if each < count} | {count}):
        each_round = []
        for _ in range(ROUNDS):
            barrier = threading.Barrier(size + 1)

            def work(name: str, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                for _ in range(HITS):
                    enter(vault, name)

            threads = [threading.Thread(target=work, args=(names[number % len(names)],)) for number in range(size)]
            for each in threads:
                each.start()
            barrier.wait()
            start = time.perf_counter_ns()
            for each in threads:
                each.join()
            each_round.append((time.perf_counter_ns() - start) / HITS / size)
        found[str(size)] = {"hit_ns": round(statistics.median(each_round))}
    return found


def run(count: int, versions: int, threads: int) -> dict[str, Any]:
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
        for name in some:
            enter(vault, name)
        by_versions, by_threads = versioned(vault, kms, versions), threaded(vault, some, threads)
        figures = {
            "tenants": found,
            "versions": by_versions,
            "threads": by_threads,
            **_ratios("versions", by_versions, versions),
            **_ratios("threads", by_threads, threads),
            "kept_at_most": KEPT_TENANTS,
            "hit_ratio": round(found[str(count)]["hit_ns"] / found["1"]["hit_ns"], 2) if count > 1 else 1.0,
            "miss_ratio": round(found[str(count)]["miss_us"] / found["1"]["miss_us"], 2) if count > 1 else 1.0,
            "bytes_each": bytes_each(vault, some),
        }
        vault.close()
    return figures


def _ratios(what: str, found: dict[str, Any], most: int) -> dict[str, float]:
    """Of the most to one."""
    one, many = found["1"], found[str(most)]
    return {f"{what}_{name.partition('_')[0]}_ratio": round(many[name] / one[name], 2) for name in one}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--versions", type=int, default=1_000, help="versions of one tenant's data key (1000)")
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    if min(options.tenants, options.versions, options.threads) < 1:
        parser.error("--tenants, --versions and --threads are at least 1")
    figures = run(options.tenants, options.versions, options.threads)
    if options.json:
        print(json.dumps(figures))
        return
    for count, each in figures["tenants"].items():
        print(
            f"{int(count):>6,} tenants, {each['held']:,} held: a hit {each['hit_ns']:,} ns, "
            f"a miss {each['miss_us']:,} us, an eviction {each['evict_us']:,} us"
        )
    for count, each in figures["versions"].items():
        print(f"{int(count):>6,} versions: a hit {each['hit_ns']:,} ns, a miss {each['miss_us']:,} us")
    for count, each in figures["threads"].items():
        print(f"{int(count):>6,} threads: a hit each {each['hit_ns']:,} ns")
    print(
        f"with the most tenants, a hit takes {figures['hit_ratio']:g} times and a miss {figures['miss_ratio']:g} times "
        f"what it takes with one; a keyset takes {figures['bytes_each']:,} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
