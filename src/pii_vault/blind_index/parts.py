"""Which part of a text a token is made of. A part of a text is a text, so a query names it as one."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError

_MOST = 1_000


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a text by which it is found."""

    def of(self, text: str) -> str | None:
        """Return the part of a normalised text; None where there is none."""
        raise NotImplementedError

    def text(self) -> str:
        """Return how a form names this part."""
        raise NotImplementedError


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
class Prefix(Part):
    """Its first characters, or all of it if it is shorter.

    Args:
        count: How many Unicode code points.
    """

    count: int

    def __post_init__(self) -> None:
        _check(self.count)

    def of(self, text: str) -> str:
        """Return the first characters."""
        return text[: self.count]

    def text(self) -> str:
        """Return ``prefix(3)``."""
        return f"prefix({self.count})"


@dataclass(frozen=True, slots=True)
class LastChars(Part):
    """Its last characters, or all of it if it is shorter.

    Args:
        count: How many Unicode code points.
    """

    count: int

    def __post_init__(self) -> None:
        _check(self.count)

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


def _check(count: int) -> None:
    if not 1 <= count <= _MOST:
        raise ConfigurationError(f"a part of a text has 1 to {_MOST} characters")
