"""A WSGI application that gunicorn builds in its master, warms there, and forks workers from.

`make` leaves behind what is worst to fork from: keys and clients that were used, a thread in the middle of a fetch of a
tenant's keys, and another one that holds every lock of the vault. No child has these threads.
"""

from __future__ import annotations

import base64
import gc
import json
import multiprocessing
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import String, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from pii_vault import AwsKms, EncryptedString, Vault

WORKERS = 8
SEALS = 10_000
WARM, COLD = "acme", "glob"
"""The tenant whose keys the master has, and the one whose keys it is fetching while it forks."""


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class Application:
    """Reads, writes and seals for whatever tenant a request names."""

    def __init__(self, url: str) -> None:
        self.kms = AwsKms(read_timeout=60)
        self.vault = Vault(url, kms=self.kms)
        event.listen(self.vault._engine, "connect", lambda _, record: record.info.update(pid=os.getpid()))
        self.engine = create_engine(url, poolclass=NullPool)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")
        self.together = multiprocessing.get_context("fork").Barrier(WORKERS)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
        self.together.wait(30)  # each request keeps a worker until every worker has one
        found = self.work(asked["tenant"])
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(found).encode()]

    def work(self, tenant: str) -> dict[str, Any]:
        self.write(tenant, f"by {os.getpid()}")
        return {
            "pid": os.getpid(),
            "bodies": self.read(tenant),
            "ivs": base64.b64encode(self.seal(tenant, SEALS)).decode(),
            "connected_by": self.connected_by(),
        }

    def write(self, tenant: str, body: str) -> None:
        with self.vault.tenant(tenant), self.sessions.begin() as session:
            session.add(Note(body=body))

    def read(self, tenant: str) -> list[str]:
        with self.vault.tenant(tenant), self.sessions() as session:
            return list(session.scalars(select(Note.body).where(Note.tenant_id == tenant).order_by(Note.id)))

    def seal(self, tenant: str, count: int) -> bytes:
        """Seal values, without storing them; return their IVs."""
        column = Note.__table__.c.body.type.dialect_impl(self.engine.dialect)
        seal = column.bind_processor(self.engine.dialect)
        with self.vault.tenant(tenant):
            return b"".join(seal("x")[10:22] for _ in range(count))

    def connected_by(self) -> int:
        """Return the process that opened the connection over which the vault asks the key store."""
        with self.vault._engine.connect() as connection:
            return int(connection.info["pid"])

    def hold_every_lock(self, until: Path) -> None:
        keyring, kms = self.vault._keyring, self.kms
        places = keyring.fetching._places._all
        held = threading.Event()
        locks = (
            *(keyring._memory.lock, keyring._loader._lock, keyring._notices._lock, keyring._metering._lock),
            *(each.lock for each in keyring._metering._allowances.values()),
            *(kms._session_lock, kms._clients._lock, kms._retries._lock),
        )

        def hold() -> None:
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                while places.acquire(blocking=False):
                    stack.callback(places.release)
                held.set()
                wait_for(until)

        threading.Thread(target=hold, daemon=True).start()
        assert held.wait(30)


def wait_for(file: Path) -> None:
    """Wait until somebody has made a file; not for ever."""
    started = time.monotonic()
    while not file.exists() and time.monotonic() < started + 60:
        time.sleep(0.01)


def make() -> Application:
    """Build the application as a master does, and return it when it is time to fork."""
    folder = Path(os.environ["PREFORK_FOLDER"])
    app = Application(os.environ["PREFORK_DATABASE_URL"])
    (folder / "master.json").write_text(json.dumps(app.work(WARM)))
    threading.Thread(target=app.read, args=(COLD,), daemon=True).start()
    wait_for(folder / "fetching")
    app.hold_every_lock(folder / "released")
    gc.freeze()  # what was made so far is the children's garbage too: without this each of them looks through all of it
    return app
