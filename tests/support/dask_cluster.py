"""A Dask cluster of processes: a scheduler and workers that talk over TCP, started as their operators start them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.command import environment

ROOT = str(Path(__file__).resolve().parents[2])
NO_DASHBOARD = "--no-dashboard"


class DaskCluster:
    """A scheduler, and the workers that were started.

    Args:
        folder: Where they keep their files.
        settings: Their environment: from this their vaults are made, not from what is sent to them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = {}) -> None:
        self._folder = folder
        self._environment = environment(**settings, DASK_DISTRIBUTED__ADMIN__TICK__LIMIT="1h")
        self._environment["PYTHONPATH"] = f"{ROOT}:{self._environment['PYTHONPATH']}"
        self.log = folder / "dask.log"
        self._scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1", NO_DASHBOARD)
        self.address = self._wait_for(r"Scheduler at:\s+(tcp://127.0.0.1:\d+)")[0]
        self.workers: list[subprocess.Popen[bytes]] = []

    def add_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker with one thread, without a nanny that would start it again, and wait for it."""
        known = len(self._found(r"Registered to:"))
        options = ("--no-nanny", "--nthreads", "1", NO_DASHBOARD, "--local-directory", str(self._folder))
        self.workers.append(self._start("worker", self.address, *options, **settings))
        self._wait_for(r"Registered to:", known + 1)
        return self.workers[-1]

    def end_scheduler(self) -> None:
        """End the scheduler as a crash would."""
        self._scheduler.kill()
        self._scheduler.wait(30)

    def close(self) -> None:
        """End all of them."""
        for each in (*self.workers, self._scheduler):
            each.kill()
            each.wait(30)

    def _start(self, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=self._folder,
                env=self._environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for(self, pattern: str, count: int = 1) -> list[str]:
        limit = time.monotonic() + 60
        while len(found := self._found(pattern)) < count:
            assert time.monotonic() < limit, self.log.read_text("utf-8")
            time.sleep(0.05)
        return found

    def _found(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text("utf-8"))


class Tap:
    """Lets everything through between a client and a server, and keeps it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").partition(":")
        self._to = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self.seen = bytearray()
        self._sockets = [self._listening]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def close(self) -> None:
        """Hang up."""
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
        for thread in self._threads:
            thread.join(30)

    def _run(self, do: object, *arguments: object) -> None:
        thread = threading.Thread(target=do, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._to)
            self._sockets += [client, server]
            self._run(self._pass_on, client, server)
            self._run(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
