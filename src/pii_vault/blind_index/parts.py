"""Which part of a text a token is made of. A part of a text is a text, so a query names it as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..errors import ConfigurationError

_MOST = 1_000


class Part(ABC):
    """The part of a text by which it is found."""

    __slots__ = ()

    @abstractmethod
    def of(self, text: str) -> str | None:
        """Return the part of a normalised text; None where there is none."""

    @abstractmethod
    def text(self) -> str:
        """Return how a form names this part."""


@dataclass(frozen=True, slots=True)
class Whole(Part):
    """All of it: equality."""

    def of(self, text: str) -> str:
        """Return the text."""
        return text

    def text(self) -> str:
        """Return ``whole``."""
        return "whole"


@dataclass(frozen=True, slots=True)
class _Characters(Part):
    """So many characters at one end, or all of the text if it is shorter.

    Args:
        count: How many Unicode code points.
    """

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= _MOST:
            raise ConfigurationError(f"a part of a text has 1 to {_MOST} characters")


class Prefix(_Characters):
    """Its first characters, or all of it if it is shorter: `Prefix(3)`."""

    __slots__ = ()

    def of(self, text: str) -> str:
        """Return the first characters."""
        return text[: self.count]

    def text(self) -> str:
        """Return ``prefix(3)``."""
        return f"prefix({self.count})"


class LastChars(_Characters):
    """Its last characters, or all of it if it is shorter: `LastChars(4)`."""

    __slots__ = ()

    def of(self, text: str) -> str:
        """Return the last characters."""
        return text[-self.count :]

    def text(self) -> str:
        """Return ``last(4)``."""
        return f"last({self.count})"


@dataclass(frozen=True, slots=True)
class After(Part):
    """What stands behind the last occurrence of a separator; a text without it has no such part.

    Args:
        separator: One character of ASCII, other than letters, digits, control characters and `` ;()``.
    """

    separator: str

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator not in "!\"#$%&'*+,-./:<=>?@[\\]^_`{|}~":
            raise ConfigurationError("After takes one ASCII character such as '@', no letter, digit or one of ' ;()'")

    def of(self, text: str) -> str | None:
        """Return what stands behind the last separator."""
        _, found, behind = text.rpartition(self.separator)
        return behind if found else None

    def text(self) -> str:
        """Return ``after(@)``."""
        return f"after({self.separator})"
