"""Re-encryption in processes of its own, which are killed at a given point."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from tests.support.processes import forking
from tests.support.reencryption.patients import TENANT, Base, Place, open_application

from pii_vault.errors import PiiVaultError

_SILENCE: Final = 60.0
"""Longer than anything that a job may wait for: one that says nothing for so long hangs."""


@dataclass(frozen=True)
class Ended:
    """How a job ended by itself: with so many rows left and these problems, or with a failure."""

    left: int = -1
    problems: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Run:
    """What became of a job.

    Attributes:
        killed: Whether SIGKILL has met it.
        done: How many rows it had said to be done.
        total: Of how many; 0 if it had not begun.
        ended: How it ended, if it was not killed.
    """

    killed: bool
    done: int
    total: int
    ended: Ended | None

    @property
    def failure(self) -> str:
        return self.ended.failure if self.ended is not None else ""


def work(place: Place, batch: int, told: Connection) -> None:
    app = open_application(place)
    told.send("begun")
    try:
        done = app.vault.reencrypt(
            TENANT, metadata=Base.metadata, engine=app.engine, batch=batch, progress=lambda _, *each: told.send(each)
        )
    except PiiVaultError as error:
        told.send(Ended(failure=f"{type(error).__name__}: {error}"))
    else:
        told.send(Ended(done.left, tuple(f"{each.column} {each.key} {each.why}" for each in done.problems)))


class Job:
    """A process that seals anew. End it with `finish` or `kill_at`."""

    def __init__(self, place: Place, batch: int) -> None:
        context = forking()
        self._told, theirs = context.Pipe(duplex=False)
        self._process: Any = context.Process(target=work, args=(place, batch, theirs))
        self._process.start()
        theirs.close()
        self.begun = False
        self.done = self.total = 0
        self.ended: Ended | None = None

    def wait_for(self, share: float) -> bool:
        """Wait until so much of its rows is done, or it has ended; say whether it goes on."""
        while self.ended is None and not (self.total and self.done >= share * self.total):
            self._hear()
        return self.ended is None

    def kill_at(self, share: float, later: float) -> Run:
        """Kill it once so much is done and so many seconds more have passed; 0 means as soon as it lives."""
        while not self.begun:
            self._hear()
        if share:
            self.wait_for(share)
        self._process.join(later)
        killed = self._process.is_alive()
        if killed:
            os.kill(self._process.pid, signal.SIGKILL)
        return self._end()

    def finish(self) -> Run:
        """Let it come to its end."""
        while self.ended is None:
            self._hear()
        return self._end()

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._told.close()

    def _end(self) -> Run:
        self._process.join()
        with suppress(EOFError, OSError):  # or it was killed in the middle of a word
            while self.ended is None and self._told.poll():
                self._take(self._told.recv())
        self.close()
        killed = self._process.exitcode == -signal.SIGKILL
        return Run(killed, self.done, self.total, self.ended)

    def _hear(self) -> None:
        assert self._told.poll(_SILENCE), f"a job has said nothing for {_SILENCE:g} s, after {self.done}/{self.total}"
        try:
            self._take(self._told.recv())
        except EOFError:
            self._process.join()
            self.begun, self.ended = True, Ended(failure=f"it ended with code {self._process.exitcode}")

    def _take(self, word: Any) -> None:
        self.begun = True
        if isinstance(word, Ended):
            self.ended = word
        elif isinstance(word, tuple):
            self.done, self.total = word
