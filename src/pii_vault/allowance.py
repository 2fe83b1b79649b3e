"""How many more values this process may seal with one data key, counted down without asking anybody.

An allowance is a piece of the 2^32 uses of a key (SP 800-38D, section 8.3) that the key store has counted as used
already. So a process that dies with a piece half spent has used the key less often than the key store says, never
more often. What is limited is the number of random IVs under one key, and so an IV is what a use of an allowance gives.
Who grants pieces is not known here.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator
from itertools import islice, repeat
from typing import Final

from . import primitives

FIRST: Final = 2**10
"""How many uses a process asks for at first. Short-lived processes waste what is left of them."""

LARGEST: Final = 2**20
"""How many at most: each piece is twice as large as the one before, up to this."""


class Allowance:
    """What one process may still do with one data key.

    Attributes:
        version: The data key's version.
        ivs: Gives a fresh IV, 12 bytes from the kernel, for each use that is spent, and ends when nothing is left.
            Iterators in C do the counting: it costs next to nothing, and the interpreter lets no two threads into it.
        counted: How often the key was used, by everybody, when the key store was last asked.
        owed: How many uses were granted without having been counted, because the key store could not be written.
        tried_until: Until when, in seconds of a monotonic clock, a grant that is not urgent need not be tried again.
        lock: Held by the one who asks for more.
    """

    __slots__ = ("_granted", "_left", "_next", "counted", "ivs", "lock", "owed", "tried_until", "version")

    def __init__(self, version: int) -> None:
        self.version: Final = version
        self.counted = 0
        self.owed = 0
        self._next = FIRST
        self.tried_until = 0.0
        self.lock: Final = threading.Lock()
        self._give(0)

    def __repr__(self) -> str:
        return f"<Allowance of {self.left} more uses of data key version {self.version}>"

    @property
    def left(self) -> int:
        """How many uses are left."""
        return operator.length_hint(self._left)

    def enough(self, need: int) -> bool:
        """Say whether nobody has to be asked: `need` and half of what was granted are left, and nothing is owed."""
        return self.left >= max(need, 1, self._granted // 2) and not self.owed

    def size(self, need: int) -> int:
        """Return how many uses to ask for when `need` are wanted at once."""
        return max(need, self._next)

    def grant(self, count: int) -> None:
        """Give `count` uses in place of those that are left.

        Those are not lost: they were counted, and whoever holds their `ivs` goes on with it.
        """
        self._next = min(2 * self._next, LARGEST)
        self._give(count)

    def take(self, count: int) -> list[bytes]:
        """Spend `count` uses at once, or as many as are left; return an IV for each.

        The IVs are cut from one piece of random bytes, which nobody keeps: a process that forks meanwhile does not
        leave them to its child.
        """
        spent, size = len(list(islice(self._left, count))), primitives.IV_BYTES
        random = primitives.new_iv(spent * size)
        return [random[start : start + size] for start in range(0, spent * size, size)]

    def _give(self, count: int) -> None:
        self._granted = count
        self._left = repeat(primitives.IV_BYTES, count)
        self.ivs: Iterator[bytes] = map(primitives.new_iv, self._left)
