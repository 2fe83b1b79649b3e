"""What becomes of KMS rate, key store, memory and re-encryption as an application grows: reckoned, and checked.

The model is arithmetic over `pii_vault.cost` and a few figures that were measured. What it says of requests, statements
and bytes is then counted with real vaults of a smaller application, under clocks that are put forward by hand: the two
have to agree. What follows a start of all processes at once is played, second by second.

    python benchmarks/scaling.py [--json] [--tenants N] [--processes N] [--rows N] [--ttl SECONDS] [--page]
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import random
import sys
import tempfile
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, MetaData, Table, create_engine, event

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.clocks import Clocks

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.cost import ANSWER_SECONDS, DAY_SECONDS, Estimate, Load, estimate
from pii_vault.keyring.terms import AT_ONCE, EARLY, KEPT_TENANTS, NOTICE_SECONDS
from pii_vault.kms.pricing import LOWEST_QUOTA, quota

STATEMENTS_OF_A_FETCH = 3
"""What one fetch of a keyset asks the key store: the tenant, its keys, its index slots."""

KEYSET_BYTES, COLUMN_BYTES = 3_000, 2_000
"""What a keyset takes in memory, and what each column that uses it adds for each version that is met."""

APPLICATION_US, SERVER_US = 14.0, 14.0
"""What re-encrypting a row of three columns takes of a processor, in the job and in PostgreSQL: reencrypt.py."""

VALUE_BYTES, TOKEN_BYTES, RECORD_BYTES = 38, 16, 300
"""What a value and a token add to a row, and about what a key record takes in the key store."""

ROLE_SECONDS = 3_300
"""For how long a customer's role is used before its credentials, which last an hour, are asked for anew."""

STS_QUOTA = 600
"""How many requests a second AWS STS answers one account in one region, unless more were asked for."""


@dataclass(frozen=True)
class Size:
    """How large an application is."""

    tenants: int = 10_000
    processes: int = 50
    rows: int = 1_000_000_000
    columns: int = 3
    ttl: float = 300.0
    rotation_days: int = 90
    workers: int = 4
    database_cores: int = 8
    rows_per_s: int = 5_000
    """To what the job is held down, so that an application in use notices nothing."""

    @property
    def keysets(self) -> int:
        return self.tenants * self.processes

    def requests(self) -> Estimate:
        return estimate(Load(self.tenants, self.processes, self.rotation_days), self.ttl)


@dataclass(frozen=True)
class Played:
    """What one process asks second by second, after it was started cold with all tenants in use."""

    loaded_after_s: int
    most_a_second: int
    settled_a_second: float


def played(size: Size, seconds: int, seed: int = 1) -> Played:
    """Play one process: it asks for every tenant at once, then renews each keyset ahead of its end."""
    chosen = random.Random(seed)
    at_once = AT_ONCE / ANSWER_SECONDS
    due = [number / at_once for number in range(min(size.tenants, KEPT_TENANTS))]
    loaded = int(due[-1]) + 1
    heapq.heapify(due)
    asked: Counter[int] = Counter()
    while due and due[0] < seconds:
        moment = heapq.heappop(due)
        asked[int(moment)] += 1
        heapq.heappush(due, moment + size.ttl * chosen.uniform(*EARLY))
    renewals = [asked[second] for second in range(loaded, seconds)]
    late = renewals[len(renewals) // 2 :]
    return Played(loaded, max(renewals, default=0), sum(late) / max(1, len(late)))


def reckoned(size: Size) -> dict[str, Any]:
    """Return what a size comes to."""
    requests = size.requests()
    one = played(size, int(size.ttl * 20))
    held = min(size.tenants, KEPT_TENANTS)
    unhindered = min(size.workers * 1e6 / APPLICATION_US, size.database_cores * 1e6 / SERVER_US)
    rotations_a_day = size.tenants / size.rotation_days
    return {
        "kms_requests_per_s": round(requests.rate),
        "kms_requests_per_s_at_most": round(requests.most_rate),
        "kms_dollars_a_month": round(requests.price),
        "kms_lowest_quota_used": round(requests.rate / LOWEST_QUOTA, 3),
        "kms_requests_per_s_of_one_customer": round(requests.rate / size.tenants, 3),
        "cold_start_requests": round(requests.cold_start_requests),
        "cold_start_requests_per_s_at_most": round(requests.cold_start_rate),
        "cold_start_seconds": one.loaded_after_s,
        "wave_after_cold_start_per_s": one.most_a_second * size.processes,
        "settled_per_s": round(one.settled_a_second * size.processes),
        "sts_requests_per_s": round(size.keysets / ROLE_SECONDS),
        "sts_quota_used": round(size.keysets / ROLE_SECONDS / STS_QUOTA, 3),
        "key_store_statements_per_s": round(requests.rate * STATEMENTS_OF_A_FETCH + size.processes / NOTICE_SECONDS),
        "key_store_rows_a_year": round(rotations_a_day * 365),
        "key_store_mb_a_year": round(rotations_a_day * 365 * RECORD_BYTES / 1e6),
        "memory_mb_per_process": round(held * (KEYSET_BYTES + size.columns * COLUMN_BYTES) / 1e6),
        "rotations_per_day": round(rotations_a_day),
        "sealed_bytes_added_gb": round(size.rows * size.columns * VALUE_BYTES / 1e9),
        "token_bytes_added_gb": round(size.rows * TOKEN_BYTES / 1e9),
        "reencrypt_processor_hours": round(size.rows * (APPLICATION_US + SERVER_US) / 1e6 / 3_600, 1),
        "reencrypt_days_unhindered": round(size.rows / unhindered / DAY_SECONDS, 2),
        "reencrypt_days_held_down": round(size.rows / size.rows_per_s / DAY_SECONDS, 1),
        "reencrypt_rows_per_s_to_keep_up": round(size.rows / (size.rotation_days * DAY_SECONDS)),
    }


def checked(tenants: int = 8, processes: int = 3, periods: int = 12, ttl: float = 100.0) -> dict[str, Any]:
    """Count what real vaults do, beside what is reckoned for the same size."""
    clocks, size = Clocks(), Size(tenants, processes, ttl=ttl)
    with tempfile.TemporaryDirectory() as folder:
        kms = _Counting(Path(folder) / "kms.json")
        url = f"sqlite:///{folder}/keys.sqlite3"
        operator = Vault(url, kms=kms)
        operator.create_all()
        key = kms.create_key()
        names = [f"tenant {number}" for number in range(tenants)]
        for name in names:
            operator.add_tenant(name, key=key, shared_key=True)
        operator.close()
        vaults = [Vault(url, kms=kms, ttl=ttl, clock=clocks.as_clock) for _ in range(processes)]
        asked: list[str] = []
        for vault in vaults:
            event.listen(vault._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        _use(vaults, names)
        asked.clear()
        kms.unwraps = 0
        for _ in range(50 * periods):
            clocks.pass_(ttl / 50)
            _use(vaults, names)
        fetches, statements = kms.unwraps, sum(each.startswith("SELECT") for each in asked)
        notices = sum("evictions" in each for each in asked)
        used = _bytes_of(vaults[0], names, size.columns)
        for vault in vaults:
            vault.close()
    seconds, step = periods * ttl, ttl / 50
    looked_every = -(-NOTICE_SECONDS // step) * step  # at the first use that comes late enough
    bare = estimate(Load(tenants, processes), ttl)
    # Each keyset's last interval is under way at the end: half of one on average.
    reckoned_fetches = bare.rate * seconds - size.keysets / 2
    return {
        "kms_requests": fetches,
        "kms_requests_reckoned": round(reckoned_fetches),
        "statements_of_a_fetch": round((statements - notices) / max(1, fetches), 2),
        "statements_of_a_fetch_reckoned": STATEMENTS_OF_A_FETCH,
        "notices": notices,
        "notices_reckoned": round(processes * seconds / looked_every),
        "keyset_bytes": used,
        "keyset_bytes_reckoned": KEYSET_BYTES + size.columns * COLUMN_BYTES,
    }


class _Counting(LocalKms):
    unwraps = 0

    def unwrap(self, *arguments: Any) -> bytes:
        self.unwraps += 1
        return super().unwrap(*arguments)


def _use(vaults: list[Vault], names: list[str]) -> None:
    for vault in vaults:
        for name in names:
            with vault.tenant(name):
                pass


def _bytes_of(vault: Vault, names: list[str], columns: int) -> int:
    """What a keyset takes once so many columns have sealed and opened with it."""
    engine = create_engine("sqlite://")
    vault.attach(engine)
    table = Table("t", MetaData(), *(Column(f"c{number}", EncryptedString()) for number in range(columns)))
    works: list[tuple[Any, Any]] = []
    for column in table.c:
        kind: Any = column.type.dialect_impl(engine.dialect)
        works.append((kind.bind_processor(engine.dialect), kind.result_processor(engine.dialect, None)))
    for name in names:
        vault._keyring.evict(name)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for name in names:
        with vault.tenant(name):
            for seal, open_ in works:
                open_(seal("x"))
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    engine.dispose()
    return taken // len(names)


EXAMPLES = (
    Size(100, 4, 10_000_000),
    Size(1_000, 20, 100_000_000),
    Size(),
    Size(ttl=3_600),
)
"""What the page shows."""

LINES = {
    "kms_requests_per_s": "KMS requests a second, on average",
    "kms_dollars_a_month": "dollars a month for them",
    "kms_requests_per_s_of_one_customer": "of them for one customer's key",
    "cold_start_requests": "requests after a start of all processes",
    "wave_after_cold_start_per_s": "the wave of renewals after it, a second at most",
    "sts_requests_per_s": "STS requests a second, with a role for each customer",
    "key_store_statements_per_s": "key-store statements a second",
    "memory_mb_per_process": "memory of a process for keys, MB",
    "key_store_rows_a_year": "key records a year",
    "sealed_bytes_added_gb": "what sealing adds to the tables, GB",
    "reencrypt_processor_hours": "processor hours to re-encrypt all",
    "reencrypt_days_held_down": "days for that at 5,000 rows a second",
    "reencrypt_rows_per_s_to_keep_up": "rows a second to keep up with rotation",
}


def page() -> str:
    """Return the table of docs/scaling.md."""
    found = [reckoned(each) for each in EXAMPLES]
    head = [
        "",
        *(f"{each.tenants:,} × {each.processes} × {each.rows:,}, {each.ttl:,.0f} s" for each in EXAMPLES),
    ]
    lines = [head, ["---", *(["---:"] * len(EXAMPLES))]]
    lines += [[label, *(f"{each[name]:,}" for each in found)] for name, label in LINES.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the figures, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--page", action="store_true", help="print the table of docs/scaling.md, and nothing else")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1_000_000_000)
    parser.add_argument("--ttl", type=float, default=300.0, help="the time to live in seconds (300)")
    options = parser.parse_args()
    if options.page:
        print(page())
        return
    if min(options.tenants, options.processes, options.rows, options.ttl) < 1:
        parser.error("--tenants, --processes, --rows and --ttl are at least 1")
    size = Size(options.tenants, options.processes, options.rows, ttl=options.ttl)
    figures = {**reckoned(size), "checked": checked()}
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"{size.tenants:,} tenants, {size.processes:,} processes, {size.rows:,} rows, a time to live of {size.ttl:g} s"
    )
    for name, value in figures.items():
        if name != "checked":
            print(f"  {name:<38}{value:>16,}")
    print("checked with real vaults of 8 tenants and 3 processes")
    for name, value in figures["checked"].items():
        print(f"  {name:<38}{value:>16,}")
    print(f"quotas: KMS {LOWEST_QUOTA:,} a second, {quota('eu-west-1'):,} in the largest regions; STS {STS_QUOTA:,}")


if __name__ == "__main__":
    main()
