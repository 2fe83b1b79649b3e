"""What the workers did and when, in 24 bytes each: one file for each process.

Times are `time.monotonic`, which on Linux is one clock for all processes of a machine.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

_FORMAT: Final = struct.Struct("<ddHBBHH")
_AT_ONCE: Final = 4096 * _FORMAT.size


class Kind(IntEnum):
    """What was tried."""

    OPEN = 0
    SEAL = 1
    EVICT = 2
    FOREIGN = 3


class Outcome(IntEnum):
    """What came of it."""

    DONE = 0
    DENIED = 1
    UNAVAILABLE = 2
    UNEXPECTED = 3


class Record(NamedTuple):
    """One attempt.

    Attributes:
        start: A moment before the library was called.
        end: A moment after it had returned.
        tenant: The tenant's number.
        kind: What was tried.
        outcome: What came of it.
        right: How many values were sealed, or opened and as they were written.
        wrong: How many were opened and are not.
    """

    start: float
    end: float
    tenant: int
    kind: int
    outcome: int
    right: int = 0
    wrong: int = 0


class Journal:
    """The file of one process; its threads write to it."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: what a killed process has done is known all the same.
        self._file: Final = path.open("ab", buffering=0)
        self._lock: Final = threading.Lock()

    def write(self, record: Record) -> None:
        packed = _FORMAT.pack(*record)
        with self._lock:
            self._file.write(packed)

    def close(self) -> None:
        self._file.close()


class JournalFile:
    """Such a file, to be read as often as one likes."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def __iter__(self) -> Iterator[Record]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            while block := file.read(_AT_ONCE):
                whole = len(block) - len(block) % _FORMAT.size  # a killed process may leave half a record
                yield from map(Record._make, _FORMAT.iter_unpack(block[:whole]))
