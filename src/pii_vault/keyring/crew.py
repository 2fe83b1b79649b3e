"""The threads that fetch keysets for coroutines, so that an event loop neither waits nor lends its own threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from .terms import AT_ONCE

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class Crew:
    """`AT_ONCE` threads, started when they are needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> Future[ResultT]:
        """Let a thread do something, in the caller's context.

        Raises:
            RuntimeError: the interpreter ends.
        """
        if self._pool is None:
            # Two at once may make two: each works, and the one that is not kept ends with its work.
            self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pii-vault")
        return self._pool.submit(copy_context().run, partial(work, *args, **kwargs))
