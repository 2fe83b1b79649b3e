"""Run every benchmark, one after the other, and write down what they say: tables, plots and the figures themselves.

`scripts/bench` runs it in an environment that has all peers. What is compared is measured in turn within one benchmark,
so the ratios hold on a noisy machine; times do not, and no conclusion rests on them. A benchmark that fails is
named in the results, and the others run all the same.

    scripts/bench [--quick] [--only NAME …] [--into FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plots import draw
from report import written
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

HERE = Path(__file__).resolve().parent

FULL: dict[str, list[str]] = {
    "hot_path": [],
    "per_value": [],
    "orm": ["--async", "--rounds", "7"],
    "keyring": ["--tenants", "10000"],
    "kms_calls": [],
    "space": [],
    "search": [],
    "reencrypt": ["--rows", "1000000", "--rounds", "3"],
    "rotation": [],
    "scaling": [],
}
QUICK: dict[str, list[str]] = {
    "hot_path": ["--rounds", "11", "--values", "50"],
    "per_value": ["--rounds", "5", "--values", "50"],
    "orm": ["--async", "--rows", "500", "--rounds", "2", "--gets", "40"],
    "keyring": ["--tenants", "50", "--versions", "20", "--threads", "4"],
    "kms_calls": ["--tenants", "2", "--versions", "2", "--values", "2"],
    "space": ["--rows", "1000"],
    "search": ["--rows", "1000", "--rounds", "3"],
    "reencrypt": ["--rows", "1000", "--rounds", "1", "--workers", "1"],
    "rotation": ["--rows", "1000", "--versions", "5", "--tenants", "10"],
    "scaling": [],
}
LIBRARIES = (
    *("pii-vault", "sqlalchemy", "cryptography", "psycopg", "asyncpg", "aiosqlite", "boto3", "moto"),
    *("sqlalchemy-utils", "advanced-alchemy", "pydantic-encryption", "tink", "asherah", "aws-encryption-sdk"),
)


def machine() -> dict[str, Any]:
    """Say where this was measured, and with what."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measured(name: str, options: list[str]) -> dict[str, Any]:
    """Run one benchmark and return its figures, or what went wrong."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--json", *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": "\n".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "options": options, "seconds": round(time.monotonic() - start)}


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(written(results, draw(results, folder)), encoding="utf-8")


def main() -> int:
    """Run them, and name the failed ones."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that everything runs, not to compare")
    parser.add_argument("--only", action="append", choices=list(FULL), help="this one; may be repeated")
    parser.add_argument("--into", type=Path, help="where to write (benchmarks/results, with --quick in quick/ there)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; write tables and plots again")
    options = parser.parse_args()
    folder = options.into or HERE / "results" / ("quick" if options.quick else "")
    if options.redraw:
        write(json.loads((folder / "results.json").read_text(encoding="utf-8")), folder)
        return 0
    results: dict[str, Any] = {"machine": {**machine(), "quick": options.quick}}
    sizes = QUICK if options.quick else FULL
    if options.only and (folder / "results.json").exists():
        results = {**json.loads((folder / "results.json").read_text(encoding="utf-8")), **results}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name in options.only or sizes:
            task = progress.add_task(name, total=1)
            results[name] = measured(name, sizes[name])
            progress.update(task, completed=1)
            write(results, folder)
    failed = {name: each["failed"] for name, each in results.items() if "failed" in each}
    for name, reason in failed.items():
        print(f"{name} failed:\n{reason}", file=sys.stderr)
    print(folder / "results.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
