"""Several workers: the work is cut into parts by primary key, and each part can be done anywhere, and again.

What a part says is where its rows are and which keys they are to have, never a key or a value: a worker opens the
tenant's keys itself. Done twice it changes nothing the second time, because the rows' headers say what is left.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any, Final

from ..errors import ConfigurationError, PiiVaultError
from .pacing import Pace
from .rows import Span
from .targets import Problem, Wanted


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one table, to be sealed anew for one tenant.

    Attributes:
        tenant: The tenant's name.
        table: The table, with its schema if it has one.
        span: Which piece of it.
        wanted: What its values are to be sealed with.
        pace: How fast.
    """

    tenant: str
    table: str
    span: Span
    wanted: Wanted
    pace: Pace


@dataclass(frozen=True, slots=True)
class PartDone:
    """What a part came to.

    Attributes:
        table: The table.
        written: How many rows were written.
        problems: Values that could not be sealed anew.
    """

    table: str
    written: int
    problems: tuple[Problem, ...]


_SECONDS: Final = 10.0
"""How long a Dask scheduler is waited for."""

Task = Callable[[Part], PartDone]
"""Does a part, where a worker runs: with `Vault.reencrypt_part` of a vault that is opened there. It is pickled."""


class Crew(ABC):
    """Workers that do parts.

    Attributes:
        size: How many parts are done at once.
    """

    def __init__(self, size: int) -> None:
        self.size: Final = size

    @abstractmethod
    def do(self, parts: Sequence[Part]) -> Generator[PartDone]:
        """Do parts, in any order; yield what each came to.

        Whoever stops asking leaves parts that have begun to be finished, and others undone.
        """


class LocalCrew(Crew):
    """Processes on this machine.

    Args:
        task: Does a part; something that can be pickled, such as a function of a module.
        size: How many processes.

    Raises:
        ConfigurationError: the task cannot be pickled.
    """

    def __init__(self, task: Task, size: int) -> None:
        super().__init__(size)
        self._task: Final = _pickled(task)

    def do(self, parts: Sequence[Part]) -> Generator[PartDone]:
        """Do parts in the processes; one that dies ends it, and what it has written stays."""
        if not parts:
            return
        # Spawned: a fork would take along connections, locks and keys of this process.
        spawning, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.size, mp_context=spawning, initializer=_begin)
        with _impatient(others):  # while parts that have begun are waited for
            try:
                with _impatient(others):
                    for future in as_completed([pool.submit(_do, self._task, part) for part in parts]):
                        yield _result(future)
            finally:
                pool.shutdown(cancel_futures=True)


@contextmanager
def _impatient(others: Collection[BaseProcess]) -> Iterator[None]:
    """End processes when somebody does not want to wait for what they have begun: after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()).difference(others):
            process.terminate()
        raise


def _pickled(task: Task) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:  # noqa: BLE001 - what pickling raises depends on the thing
        failure = type(error).__name__
    raise ConfigurationError(
        f"the task cannot be handed to another process: {failure}", hint="make it a function of a module"
    )


def _begin() -> None:
    """Leave Ctrl-C to the parent: a worker finishes the part that it has begun. It ends with the parent, however."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: bytes, part: Part) -> PartDone:
    do: Task = pickle.loads(task)  # noqa: S301 - our parent's; what cannot be imported here is this part's error
    return do(part)


class DaskCrew(Crew):
    """Workers of a Dask cluster; one that is lost has its parts done by others.

    Args:
        task: Does a part on a worker: it opens a vault from what that worker's own environment says.
        scheduler: The scheduler's address, such as ``tcp://scheduler:8786``.

    Raises:
        ConfigurationError: distributed is not installed, or there is no scheduler or worker there.
    """

    def __init__(self, task: Task, scheduler: str) -> None:
        self._distributed: Final = _distributed()
        self._task: Final = task
        self._client: Final = self._connected(scheduler)
        super().__init__(sum(self._client.nthreads().values()))
        if not self.size:
            self._client.close()
            raise ConfigurationError(
                f"the Dask scheduler at {scheduler} has no worker", hint=f"start some: dask worker {scheduler}"
            )

    def _connected(self, scheduler: str) -> Any:
        try:
            return self._distributed.Client(scheduler, timeout=_SECONDS, set_as_default=False)
        except Exception as error:  # noqa: BLE001 - each way to talk to a scheduler has errors of its own
            failure = type(error).__name__
        raise ConfigurationError(
            f"no Dask scheduler answers at {scheduler}: {failure}",
            hint="start one with `dask scheduler`, and workers with `dask worker`",
        )

    def do(self, parts: Sequence[Part]) -> Generator[PartDone]:
        """Do parts on the cluster."""
        # Not pure: what a part comes to depends on the rows. Parts of a worker that is lost are given to others.
        futures = self._client.map(self._task, parts, key="pii-vault", pure=False)
        try:
            for future in self._distributed.as_completed(futures, loop=self._client.loop):
                yield _result(future)
        finally:
            self._client.cancel(futures)

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


def _result(future: Any) -> PartDone:
    """Return what a part came to.

    Raises:
        ConfigurationError: the worker could not do it for a reason that is none of ours: it died, or lacks a module.
    """
    try:
        done: PartDone = future.result()
        return done
    except PiiVaultError:
        raise
    except BrokenProcessPool:
        failure, hint = "it died", "was it out of memory? What is done stays; run it again"
    except CancelledError:
        failure, hint = "the scheduler is gone", "what is done stays; run it again when it is back"
    except Exception as error:  # noqa: BLE001 - what a worker raises may quote anything
        failure = type(error).__name__
        hint = "it needs the models, settings and drivers that the command has; what is done stays, run it again"
    raise ConfigurationError(f"a worker failed: {failure}", hint=hint)


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ModuleNotFoundError:
        raise ConfigurationError("Dask is not installed", hint="pip install 'pii-vault[dask]'") from None
