"""A vault that was built and used before the process forked works in each child, as if the child had built it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from tests.support.command import SOURCES
from tests.support.postgres import PostgresServer
from tests.support.prefork_app import COLD, SEALS, WARM, WORKERS, Base, Note, wait_for
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault import Vault
from pii_vault.kms import KmsKey

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


class Server:
    """gunicorn, with workers that were forked from a master in which much was under way."""

    def __init__(self, url: str, kms: StrictKms, folder: Path) -> None:
        self.kms, self.folder = kms, folder
        self.keys: dict[str, KmsKey] = {}
        self._answered = threading.Event()
        self._set_up(url)
        # What the master asks for COLD is answered when the test says so, and no other question waits for that.
        kms.script(FaultRule("Decrypt", key=self.keys[COLD].arn, alter=self._answer_later))
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with listener:
            self.process = self._start(url, listener)
        wait_for(folder / "fetching")

    def get(self, query: str) -> list[dict[str, Any]]:
        """Ask each worker the same, at once."""

        def ask(_: int) -> dict[str, Any]:
            with urllib.request.urlopen(f"{self.address}/?{query}", timeout=60) as answer:
                return dict(json.load(answer))

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(ask, range(WORKERS)))

    def asked(self, tenant: str) -> tuple[int, int]:
        """How often a tenant's keys were unwrapped, and its role assumed."""
        key = self.keys[tenant]
        return self.kms.count("Decrypt", key=key.arn), self.kms.count("AssumeRole", key=key.role_arn)

    def stop(self) -> tuple[int, str]:
        """Let the master's threads go on, and gunicorn stop; return its exit code, and what it said."""
        self._answered.set()
        (self.folder / "released").touch()
        self.process.send_signal(signal.SIGTERM)
        log, _ = self.process.communicate(timeout=40)
        return self.process.returncode, log

    def kill(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def _set_up(self, url: str) -> None:
        vault = Vault(url, kms=self.kms.provider(), platform_key=self.kms.platform_key())
        vault.create_all()
        engine = create_engine(url)
        sessions = sessionmaker(engine)
        vault.attach(engine, sessions, tenant_column="tenant_id")
        Base.metadata.create_all(engine)
        for tenant in (WARM, COLD):
            key = self.keys[tenant] = self.kms.customer_key()
            vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)
            with vault.tenant(tenant), sessions.begin() as session:
                session.add(Note(body=f"of {tenant}"))
        vault.close()
        engine.dispose()

    def _answer_later(self, answer: dict[str, Any]) -> dict[str, Any]:
        (self.folder / "fetching").touch()
        self._answered.wait(60)
        return answer

    def _start(self, url: str, listener: socket.socket) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PII_VAULT_", "AWS_"))}
        more = {"PREFORK_DATABASE_URL": url, "PREFORK_FOLDER": str(self.folder)}
        path = os.pathsep.join(filter(None, (SOURCES, str(ROOT), kept.get("PYTHONPATH"))))
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--no-control-socket"),
                *("--bind", f"fd://{listener.fileno()}", "--timeout", "50", "tests.support.prefork_app:make()"),
            ],
            pass_fds=[listener.fileno()],
            env={**kept, **self.kms.environment(), **more, "PYTHONPATH": path},
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@dataclass
class Run:
    """What was seen of a server from its start to its end.

    Attributes:
        master: What the master did with WARM before it forked.
        cold: What each worker did with COLD, while the master's fetch of the same keys was under way.
        warm: What each did with WARM afterwards.
        asked: How many requests came of `cold` and of `warm`: unwraps of that tenant's keys, and its role assumed.
        under_way: How many requests of the master were without an answer at the end of `cold`.
        exit_code: gunicorn's.
        log: What gunicorn and its workers said.
    """

    master: dict[str, Any]
    cold: list[dict[str, Any]]
    warm: list[dict[str, Any]]
    asked: dict[str, tuple[int, int]]
    under_way: int
    exit_code: int
    log: str

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [*self.cold, *self.warm]


def observe(server: Server) -> Run:
    answers, asked = {}, {}
    for tenant in (COLD, WARM):
        before = server.asked(tenant)
        answers[tenant] = server.get(f"tenant={tenant}")
        unwraps, assumes = server.asked(tenant)
        asked[tenant] = (unwraps - before[0], assumes - before[1])
    under_way = server.kms.count("Decrypt", key=server.keys[COLD].arn, outcome="open")
    exit_code, log = server.stop()
    master = json.loads((server.folder / "master.json").read_text("utf-8"))
    return Run(master, answers[COLD], answers[WARM], asked, under_way, exit_code, log)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("prefork")
    url = f"sqlite:///{folder / 'app.sqlite3'}"
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        url = postgres.url(postgres.create_database())
    with StrictKms() as kms:
        server = Server(url, kms, folder)
        try:
            yield observe(server)
        finally:
            server.kill()


def test_every_worker_does_its_work_although_the_master_was_in_the_middle_of_much(run: Run) -> None:
    """Its locks were held, its places taken, and a fetch under way that nobody in a child would ever end."""
    for answers, first in ((run.cold, f"of {COLD}"), (run.warm, f"of {WARM}")):
        assert len({each["pid"] for each in answers}) == WORKERS
        for each in answers:
            assert each["bodies"][0] == first
            assert f"by {each['pid']}" in each["bodies"]
            assert set(each["bodies"]) <= {first, *(f"by {other['pid']}" for other in [run.master, *answers])}
    assert run.master["pid"] not in {each["pid"] for each in run.answers}
    assert run.under_way == 1


def test_each_worker_has_keys_clients_and_credentials_of_its_own(run: Run) -> None:
    assert run.asked == {COLD: (WORKERS, WORKERS), WARM: (WORKERS, WORKERS)}


def test_each_worker_has_database_connections_of_its_own(run: Run) -> None:
    """Two processes on one connection read each other's answers, or do not see each other's locks."""
    assert run.master["connected_by"] == run.master["pid"]
    assert [each["connected_by"] for each in run.answers] == [each["pid"] for each in run.answers]


def test_no_two_processes_seal_with_one_iv(run: Run) -> None:
    ivs: list[bytes] = []
    for each in (run.master, *run.answers):
        sealed = base64.b64decode(each["ivs"])
        ivs.extend(sealed[at : at + 12] for at in range(0, len(sealed), 12))
    assert len(set(ivs)) == len(ivs) == (1 + 2 * WORKERS) * SEALS


def test_the_server_ends_when_it_is_told_to_and_nobody_complains(run: Run) -> None:
    assert run.exit_code == 0, run.log
    assert run.log.count("Booting worker") == run.log.count("Worker exiting") == WORKERS
    assert not re.search("ERROR|CRITICAL|WARNING|Traceback", run.log), run.log
