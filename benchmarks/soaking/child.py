"""A process of ours at the other end of a pipe. It ends when the pipe does, so nothing is left behind."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any, Final

# A fresh interpreter: nothing of the parent's threads, locks and connections is in it.
_SPAWN: Final = multiprocessing.get_context("spawn")

GONE: Final = (EOFError, BrokenPipeError, ConnectionResetError)
"""What the other end of a pipe meets when this one is gone."""

_PATIENCE: Final = 20.0
_SILENCE: Final = 120.0
"""Longer than anything that the library may wait for: whoever says nothing for so long hangs."""


class ChildLostError(RuntimeError):
    """A process has ended by itself, or hangs."""


class Child:
    """Start `target(*arguments, control)` in another process.

    Args:
        name: For messages.
        target: What it does; it ends when `control` does.
        arguments: For it.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self.name: Final = name
        self._control, theirs = _SPAWN.Pipe()
        self._process: Final = _SPAWN.Process(target=target, args=(*arguments, theirs), name=name, daemon=True)
        # Ctrl-C reaches every process of a terminal. The children are told by us, when what they know was asked for.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()  # or its end would not be seen

    @property
    def lost(self) -> bool:
        return not self._process.is_alive()

    def say(self, word: object) -> None:
        try:
            self._control.send(word)
        except OSError as error:
            raise ChildLostError(f"{self.name} has ended") from error

    def hear(self) -> Any:
        """Wait for its next word."""
        try:
            if not self._control.poll(_SILENCE):
                raise ChildLostError(f"{self.name} has said nothing for {_SILENCE:g} s")
            return self._control.recv()
        except (EOFError, OSError) as error:
            raise ChildLostError(f"{self.name} has ended") from error

    def close(self) -> None:
        """End it: kindly, then not."""
        self._control.close()
        self._process.join(_PATIENCE)
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(_PATIENCE)
        self._process.close()
