"""How often each system that has a KMS calls it, and what that costs: requests over HTTP, counted by the KMS.

Every tenant has a KMS key of its own. One process registers the tenants, where there is such a thing; one seals values
under one key version after another, which counts what new versions cost too; then a cold process opens all of them. All
is done with some values and with twice as many, which tells what grows with values from what does not: a million values
are reckoned from the two. These are counts, so they do not depend on the machine.

    python benchmarks/kms_calls.py [--json] [--tenants N] [--versions N] [--values N]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kms_users import USERS, Place, make
from kms_users.ours import PLATFORM
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pii_vault.kms.pricing import DOLLARS_PER_REQUEST

MILLION = 1_000_000
PHASES = ("set_up", "seal", "open")


def seal(name: str, place: Place, versions: int, values: int) -> None:
    """What the first process does."""
    user = make(name, place)
    tenants = [each for each in place.keys if each != PLATFORM]
    sealed = []
    for version in range(versions):
        if version:
            user.next_version()
        for tenant in tenants:
            for number in range(values):
                text = f"{version}.{number}@{tenant}"
                sealed.append((tenant, text, user.seal(tenant, text)))
    (place.folder / "sealed").write_bytes(pickle.dumps(sealed))


def open_all(name: str, place: Place) -> None:
    """What the second process does."""
    user = make(name, place)
    for tenant, text, sealed in pickle.loads((place.folder / "sealed").read_bytes()):
        assert user.open(tenant, sealed) == text


def process(phase: str, job: dict[str, Any]) -> None:
    """Be one of the processes that are counted."""
    name, place = job["name"], Place(Path(job["folder"]), job["keys"])
    if phase == "set_up":
        make(name, place)
    elif phase == "seal":
        seal(name, place, job["versions"], job["values"])
    else:
        open_all(name, place)


class Bench:
    """A KMS, and keys in it for all tenants."""

    def __init__(self, kms: Any, tenants: int, versions: int) -> None:
        from tests.support.kms_policy import account_of
        from tests.support.strict_kms import RUNTIME_ACTIONS, VENDOR

        self._kms, self._versions = kms, versions
        self._keys: dict[str, str] = {}
        for name in (*(f"tenant-{number}" for number in range(tenants)), PLATFORM):
            self._keys[name] = kms.create_key(account_of(VENDOR))
            kms.allow(self._keys[name], VENDOR, actions=(*RUNTIME_ACTIONS, "kms:Encrypt"))

    def counted(self, name: str, values: int) -> dict[str, dict[str, int]] | str:
        """Count the requests of each process by operation, or say why there are none."""
        with tempfile.TemporaryDirectory() as folder:
            job = {"name": name, "folder": folder, "keys": self._keys, "versions": self._versions, "values": values}
            found: dict[str, dict[str, int]] = {}
            for phase in PHASES:
                with self._kms.counting() as calls:
                    done = subprocess.run(
                        [sys.executable, __file__, "--process", phase, json.dumps(job)],
                        env={**os.environ, **self._kms.environment()},
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                if done.returncode:
                    return done.stderr.strip().splitlines()[-1]
                operations = [call.operation for call in calls.calls]
                found[phase] = {each: operations.count(each) for each in sorted(set(operations))}
        return found


def figures_of(few: dict[str, Any], many: dict[str, Any], values: int, more: int) -> dict[str, Any]:
    """Reckon a million from two runs."""
    figures: dict[str, Any] = {"counted": many, "values": more, "set_up_calls": sum(many["set_up"].values())}
    for phase in ("seal", "open"):
        first, second = (sum(each[phase].values()) for each in (few, many))
        each_value = (second - first) / (more - values)
        calls = first - each_value * values + each_value * MILLION
        figures[phase] = {
            "calls_per_value": round(each_value, 3),
            "calls_besides": round(first - each_value * values),
            "calls_per_million": round(calls),
            "dollars_per_million": round(calls * DOLLARS_PER_REQUEST, 4),
        }
    return figures


def run(tenants: int, versions: int, values: int, names: Sequence[str]) -> dict[str, Any]:
    from tests.support.strict_kms import StrictKms

    console = Console(stderr=True)
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    each = tenants * versions
    with StrictKms() as kms, Progress(console=console, disable=not console.is_terminal) as progress:
        bench = Bench(kms, tenants, versions)
        for name in progress.track(names, description="calling"):
            few = bench.counted(name, values)
            many = bench.counted(name, 2 * values) if not isinstance(few, str) else few
            if isinstance(few, str) or isinstance(many, str):
                left_out[name] = str(many)
            else:
                figures[name] = figures_of(few, many, each * values, 2 * each * values)
    return {"tenants": tenants, "versions": versions, "systems": figures, "left_out": left_out}


def main() -> None:
    """Print a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--versions", type=int, default=10, help="key versions of each tenant (10)")
    parser.add_argument("--values", type=int, default=3, help="values of each version, and then twice as many (3)")
    parser.add_argument("--system", action="append", choices=list(USERS), help="only this one; may be repeated")
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        process(options.process[0], json.loads(options.process[1]))
        return
    if min(options.tenants, options.versions, options.values) < 1:
        parser.error("--tenants, --versions and --values are at least 1")
    figures = run(options.tenants, options.versions, options.values, options.system or list(USERS))
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{figures['tenants']} tenants with {figures['versions']} key versions each: calls and dollars per million")
    print(f"{'':<28}{'seal':>12}{'':>10}{'open, cold':>14}")
    for name, each in figures["systems"].items():
        cells = "".join(
            f"{each[way]['calls_per_million']:>12,}{each[way]['dollars_per_million']:>9.2f}$"
            for way in ("seal", "open")
        )
        print(f"{name:<28}{cells}")
    for name, reason in figures["left_out"].items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    main()
