"""The two clocks that keys expire by, put forward by hand."""

from __future__ import annotations

from dataclasses import dataclass

from pii_vault.keyring import Clock


@dataclass
class Clocks:
    """The two clocks of a computer."""

    monotonic: float = 1_000.0
    wall: float = 1_700_000_000.0

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    @property
    def as_clock(self) -> Clock:
        return Clock(lambda: self.monotonic, lambda: self.wall)
