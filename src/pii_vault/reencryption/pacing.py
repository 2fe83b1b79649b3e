"""Leave the database to the others: so many rows a second, and never far ahead of its replicas."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from ..errors import ConfigurationError
from .failures import named
from .retrying import with_retries

_log = logging.getLogger(__name__)

BATCH: Final = 2_000
"""How many rows are read, sealed and written together: locked for some hundredths of a second."""

_LOOK_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 30.0
"""After so long a wait for a replica somebody is told."""

_POSITIONS: Final = text(
    "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS written,"
    " (SELECT min(pg_wal_lsn_diff(replay_lsn, '0/0'))::bigint FROM pg_stat_replication) AS replayed,"
    " (SELECT count(*) FROM pg_stat_replication WHERE state IS NULL) AS hidden"
)
"""Up to where the server has written, and the slowest replica replayed. Backups and `pg_receivewal` replay nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast rows are sealed anew.

    Attributes:
        batch: How many rows are written together, in one transaction.
        rate: How many rows a second are written at most; None for as many as can be.
        max_lag: For how many seconds a replica may not have seen what was written before more is; None for any time.
            PostgreSQL only.
    """

    batch: int = BATCH
    rate: float | None = None
    max_lag: float | None = None

    def __post_init__(self) -> None:
        rated = self.rate is None or 0 < self.rate < math.inf
        lagged = self.max_lag is None or 0 <= self.max_lag < math.inf
        if not (self.batch >= 1 and rated and lagged):  # nothing is true of what is not a number
            raise ConfigurationError("a batch has at least 1 row, a rate is above 0, and a lag is not below 0")

    @property
    def rows(self) -> int:
        """How many rows to write together: no more than a second's."""
        return self.batch if self.rate is None else max(1, min(self.batch, int(self.rate)))

    def shared(self, count: int) -> Pace:
        """Return the pace of each of so many workers."""
        return Pace(self.batch, None if self.rate is None else self.rate / count, self.max_lag)


class Pacing:
    """Waits after what was written until more may be.

    Args:
        engine: On the database that is written.
        pace: How fast.
        meanwhile: Called again and again while it waits; it may raise.

    Raises:
        ConfigurationError: how far replicas are cannot be seen on such a database.
    """

    def __init__(self, engine: Engine, pace: Pace, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._rate: Final = pace.rate
        self._due = time.monotonic()
        self._max_lag: Final = pace.max_lag
        self._replicas: Final = _Replicas(engine) if pace.max_lag is not None else None
        self._meanwhile: Final = meanwhile

    def check(self) -> None:
        """Make sure that there is a replica to wait for, if one is to be waited for.

        Raises:
            ConfigurationError: there is none, or how far it is cannot be seen.
        """
        if self._replicas is not None:
            self._replicas.check()

    def wrote(self, rows: int) -> None:
        """Wait, after so many rows were written."""
        if self._rate is not None:
            self._due = max(self._due, time.monotonic() - 1) + rows / self._rate
            while (left := self._due - time.monotonic()) > 0:
                self._sleep(min(left, _LOOK_SECONDS))
        if self._replicas is not None:
            self._wait_for(self._replicas, self._max_lag or 0.0)

    def _wait_for(self, replicas: _Replicas, limit: float) -> None:
        replicas.wrote()
        began, told = time.monotonic(), False
        while (lag := replicas.lag()) > limit:
            if not told and time.monotonic() - began > _PATIENCE_SECONDS:
                told = True
                _log.warning("a replica is %.0f s behind, and re-encryption waits for it", lag)
            self._sleep(_LOOK_SECONDS)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self._meanwhile()


class _Seen:
    """Where a server was when, as this process has seen it written."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._positions: Final[deque[tuple[int, float]]] = deque()
        self.checked = False

    def wrote(self, written: int) -> None:
        """Take note that the server is there now."""
        with self._lock:
            self._positions.append((written, time.monotonic()))

    def lag(self, replayed: int | None) -> float:
        """Return how long ago the first was written that is not replayed; nobody is behind where nobody replays."""
        with self._lock:
            while self._positions and (replayed is None or self._positions[0][0] <= replayed):
                self._positions.popleft()
            return time.monotonic() - self._positions[0][1] if self._positions else 0.0


_seen: Final[WeakKeyDictionary[Engine, _Seen]] = WeakKeyDictionary()
"""By engine, because a worker does one short part after the other, and a replica does not catch up between them."""

_seen_lock: Final = threading.Lock()


class _Replicas:
    """How far the replicas of a PostgreSQL server are behind, by what this process has seen written itself.

    What a server says of its replicas' delay is what they answered last, and stands still when they do.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.dialect.name != "postgresql":
            raise ConfigurationError(
                f"how far replicas are behind cannot be seen on {engine.dialect.name}",
                hint="leave the limit out, and set a rate",
            )
        self._engine: Final = engine
        with _seen_lock:
            self._seen: Final = _seen.setdefault(engine, _Seen())

    def check(self) -> None:
        """Make sure that there are any: once, because later they may restart."""
        if self._seen.checked:
            return
        found = self._positions()
        if found.hidden:
            raise ConfigurationError(
                "how far this server's replicas are cannot be seen by this database user",
                hint="grant it pg_read_all_stats",
            )
        if found.replayed is None:
            raise ConfigurationError(
                "no replica is connected to this server, so there is none to wait for", hint="leave the limit out"
            )
        self._seen.checked = True

    def wrote(self) -> None:
        """Remember up to where the server has written by now."""
        self._seen.wrote(self._positions().written)

    def lag(self) -> float:
        """Return for how many seconds something was written that the slowest replica has not replayed."""
        return self._seen.lag(self._positions().replayed)

    def _positions(self) -> Any:
        try:
            return with_retries(self._asked)
        except DBAPIError as error:
            failure = named(error)
        raise ConfigurationError(
            f"how far this server's replicas are cannot be seen: {failure}", hint="leave the limit out, and set a rate"
        )

    def _asked(self) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(_POSITIONS).one()
