"""Do a batch again when a database could not do it just now: bounded, and with pauses that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy.exc import DBAPIError

from ..telemetry import telemetry

T = TypeVar("T")

ATTEMPTS: Final = 8
"""With pauses of at most 0.2, 0.4, 0.8 … 10 seconds: a server that starts again has half a minute."""

_SQLSTATES: Final = frozenset(("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300"))
"""Serialization failure, deadlock, lock not available, shutdown, crash, starting up, too many connections."""

_MYSQL: Final = frozenset((1040, 1205, 1213, 2003, 2006, 2013))
"""Too many connections, lock wait time-out, deadlock, cannot connect, gone away, lost."""


def passes(error: BaseException) -> bool:
    """Say whether a database's error may be gone the next time."""
    if not isinstance(error, DBAPIError):
        return False
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if error.connection_invalidated or state in _SQLSTATES or (state or "").startswith("08"):
        return True
    if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return True
    numbers = getattr(cause, "args", ())
    if numbers and numbers[0] in _MYSQL:
        return True
    # A connection that cannot be opened has no state: psycopg says so in words, and not in one language.
    return type(cause).__name__ == "OperationalError" and state is None and not hasattr(cause, "sqlite_errorname")


def with_retries(do: Callable[[], T]) -> T:
    """Do something that is a transaction of its own, again while the database cannot do it just now.

    Raises:
        sqlalchemy.exc.DBAPIError: the last attempt's error, or one that will not pass.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    wait = wait_exponential(multiplier=0.2, max=10) + wait_random(0, 0.2)
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait,
        retry=retry_if_exception(passes),
        before_sleep=lambda _: telemetry().tried_again(),
        reraise=True,
    )(do)
