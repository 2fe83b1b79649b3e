"""Normalisers: named pure functions that make texts equal which are to be found by each other.

A name and a version stand for one function for ever, because tokens made with it are stored. Somebody who changes a
normaliser of their own gives it another version; the examples that it is registered with find whoever forgets to.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final

from ..errors import ConfigurationError

Function = Callable[[str], str]

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)


def _digits(text: str) -> str:
    """Keep decimal digits of any script (general category Nd), as ASCII digits."""
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


_registered: Final[dict[str, tuple[int, Function]]] = {
    "strip": (1, str.strip),
    "casefold": (1, str.casefold),
    "nfkc": (1, _nfkc),
    "digits": (1, _digits),
}


def normaliser(name: str, function: Function, *, version: int = 1, examples: Mapping[str, str]) -> None:
    """Register a normaliser of the application's own, before a column names it.

    Args:
        name: 1 to 32 of ``a-z 0-9 _ -``, beginning with a letter.
        function: Text to text, the same result for ever; it sees values, and must not keep or log them.
        version: From 1; another one for a function that gives other results.
        examples: What it makes of some texts, at least one. They are checked here, so that a change of the function
            that nobody meant is found when the application starts, and not by searches that find nothing.

    Raises:
        ConfigurationError: the name is taken or cannot be used, or an example does not hold.
    """
    if not _NAME.fullmatch(name) or version < 1:
        raise ConfigurationError("a normaliser's name is 1 to 32 of a-z 0-9 _ -, and its version 1 or more")
    known = _registered.get(name)
    if known is not None and known != (version, function):
        raise ConfigurationError(f"there is a normaliser {name!r} already", hint="register it once, under its own name")
    if not examples:
        raise ConfigurationError(f"normaliser {name!r} is registered without an example")
    for given, expected in examples.items():
        if function(given) != expected:
            raise ConfigurationError(
                f"normaliser {name!r} no longer makes {expected!r} of {given!r}",
                hint="a function that gives other results gets another version, and its columns are re-sealed",
            )
    _registered[name] = (version, function)


def named(name: str) -> tuple[str, Function]:
    """Return ``name/version`` and the function of a normaliser.

    Raises:
        ConfigurationError: there is none of this name.
    """
    found = _registered.get(name)
    if found is None:
        known = ", ".join(sorted(_registered))
        raise ConfigurationError(f"there is no normaliser {name!r}", hint=f"there are {known}; register your own first")
    return f"{name}/{found[0]}", found[1]
