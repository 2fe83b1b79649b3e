"""What a database could not do: whether it may be possible the next time, and how to say it without parameters."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError

_SQLSTATES: Final = frozenset(("40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "53300"))
"""Serialization failure, deadlock, lock not available, statement cancelled by its time-out or by somebody, shutdown,
crash, starting up, too many connections."""

_MYSQL: Final = frozenset((1040, 1205, 1213, 2003, 2006, 2013))
"""Too many connections, lock wait time-out, deadlock, cannot connect, gone away, lost."""

_FULL: Final = frozenset(("DiskFull", "SQLITE_FULL"))


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


def named(error: DBAPIError) -> str:
    """Return what a database's error is called. Its text would quote parameters."""
    return str(getattr(error.orig, "sqlite_errorname", None) or type(error.orig).__name__)


def way_out(failure: str) -> str:
    """Return what to do when rows could not be written."""
    what = "make room for the database" if failure in _FULL else "SELECT and UPDATE on it are needed"
    return f"{what}; what is done stays, and doing it again goes on from there"
