"""How long an event loop stands still while coroutines wait for keys that a slow KMS does not send yet.

A KMS in a process of its own answers over HTTP after some seconds. On one event loop, many coroutines want one tenant's
keys at once, and another one wakes up every few milliseconds and looks how late it is. The same loop doing nothing but
waking up is measured before, in the same process: what is late then is the machine's.

    python benchmarks/event_loop.py [--json] [--coroutines N] [--latency SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import AwsKms, Vault

TICK = 0.002


def serve(latency: float, control: Connection) -> None:
    """Be the KMS: send how it is reached, then on each word count the unwraps so far."""
    with StrictKms() as kms:
        key, platform = kms.customer_key(), kms.platform_key()
        control.send((kms.environment(), platform, key))
        control.recv()  # the tenant is there
        kms.script(FaultRule("Decrypt", key=key.arn, times=None, latency=latency))
        before = kms.count("Decrypt", key=key.arn)
        control.send(None)
        control.recv()
        control.send(kms.count("Decrypt", key=key.arn) - before)


async def stalls(until: asyncio.Event) -> list[float]:
    """By how many seconds each wake-up was late."""
    late = []
    while not until.is_set():
        began = time.perf_counter()
        await asyncio.sleep(TICK)
        late.append(time.perf_counter() - began - TICK)
    return late


async def measured(vault: Vault, coroutines: int, latency: float) -> dict[str, Any]:
    idle, done = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(latency, idle.set)
    quiet = await stalls(idle)

    async def enter() -> None:
        async with vault.tenant("acme"):
            pass

    watching = asyncio.create_task(stalls(done))
    began = time.perf_counter()
    waiting = [asyncio.create_task(enter()) for _ in range(coroutines)]
    await asyncio.sleep(latency / 2)
    threads = sum(thread.name.startswith("pii-vault") for thread in threading.enumerate())
    await asyncio.gather(*waiting)
    seconds = time.perf_counter() - began
    done.set()
    busy = await watching
    return {
        "coroutines": coroutines,
        "latency_s": latency,
        "seconds": round(seconds, 3),
        "threads": threads,
        "longest_stall_ms": round(1000 * max(busy), 1),
        "longest_stall_idle_ms": round(1000 * max(quiet), 1),
    }


def run(coroutines: int, latency: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    kms = context.Process(target=serve, args=(latency, theirs), daemon=True)
    kms.start()
    try:
        environment, platform, key = ours.recv()
        os.environ.update(environment)
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/keys.sqlite3"
            vault = Vault(url, kms=AwsKms(read_timeout=latency + 5, attempts=1), platform_key=platform)
            vault.create_all()
            vault.add_tenant("acme", key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
            ours.send("ready")
            ours.recv()
            figures = asyncio.run(measured(vault, coroutines, latency))
            ours.send("count")
            figures["kms_calls"] = ours.recv()
            vault.close()
    finally:
        kms.terminate()
        kms.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--coroutines", type=int, default=500)
    parser.add_argument("--latency", type=float, default=2.0, metavar="SECONDS")
    options = parser.parse_args()
    figures = run(options.coroutines, options.latency)
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"{figures['coroutines']} coroutines, keys after {figures['latency_s']:g} s: {figures['kms_calls']} KMS call, "
        f"{figures['threads']} thread, all done after {figures['seconds']:g} s\n"
        f"the loop was late by {figures['longest_stall_ms']:g} ms at most; with nothing to do by "
        f"{figures['longest_stall_idle_ms']:g} ms"
    )


if __name__ == "__main__":
    main()
