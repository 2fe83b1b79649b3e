"""The releases of examples/alembic_migration as processes of their own, on key store and database of the test's.

A process is told what its rows hold, and says what it has written when it is asked to stop.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "alembic_migration"


def example(module: str) -> Any:
    """Return a module of the example."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return importlib.import_module(module)


class ProcessRelease:
    """A release that runs as a process."""

    def __init__(self, number: int, models: Any, url: str, vault: Any, journal: Any) -> None:
        self._journal = journal
        key_store = vault._engine.url.render_as_string(hide_password=False)
        told = {
            "number": number,
            "models": models.__name__,
            "url": url,
            "key_store": key_store,
            "kms": str(Path(vault._engine.url.database).with_name("kms.json")),
            "tenants": journal.tenants,
            "values": [[table, key, value] for (table, key), value in journal.values.items()],
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.adoption_app"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "running\n"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        said = json.loads(self._process.communicate()[0])
        assert self._process.returncode == 0
        for table, key, value in said["written"]:
            self._journal.wrote(table, key, value)
        self._journal.writes += said["writes"] - len(said["written"])
        self._journal.reads += said["reads"]
        self._journal.failures += said["failures"]
        self._journal.wrong += said["wrong"]


def main() -> None:
    """Be one of those processes."""
    from pii_vault import LocalKms, Vault

    told = json.loads(sys.stdin.readline())
    writers, releases = example("writers"), example("releases")
    vault = Vault(told["key_store"], kms=LocalKms(Path(told["kms"])))
    journal = writers.Journal(told["tenants"])
    for table, key, value in told["values"]:
        journal.wrote(table, key, value)
    before, journal.writes = dict(journal.values), 0
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    release = writers.Release(told["number"], getattr(releases, told["models"]), told["url"], vault, journal)
    print("running", flush=True)
    ended.wait()
    release.stop()
    written = [
        [*place, value] for place, value in journal.values.items() if place not in before or before[place] != value
    ]
    counts = {"writes": journal.writes, "reads": journal.reads}
    print(json.dumps({"written": written, **counts, "failures": journal.failures, "wrong": journal.wrong}))
    vault.close()


if __name__ == "__main__":
    main()
