"""A form: how a column's values become tokens, with the text that stands for it for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from .. import primitives
from ..encoding import Encoding
from ..envelope import TOKEN_BYTES
from ..errors import ConfigurationError, UnsupportedOperationError
from .buckets import Bucket, Buckets
from .messages import kind_of
from .normalisers import named
from .parts import Part, Whole

FULL_BITS: Final = 8 * TOKEN_BYTES
"""A token of all its bits: two values share one by chance in one of 2^128 cases."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that a query asks for as it is: that of a bucket, which no one value stands for.

    Attributes:
        content: The message. It tells as much as a value does, and is not shown.
    """

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Form:
    """How values of one kind become tokens.

    Attributes:
        text: What stands for it in the subkey's derivation: ``text;nfkc/1;casefold/1;whole;128``. Two forms with one
            text make the same tokens.
        bits: How many bits of a token are kept, 1 to 128; the others are zero.
    """

    text: str
    bits: int
    _message: Callable[[Any], bytes] = field(repr=False, compare=False)
    _normalise: tuple[Callable[[str], str], ...] = field(repr=False, compare=False)
    _part: Part = field(repr=False, compare=False)
    _buckets: Buckets | None = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        encoding: Encoding[Any],
        *,
        normalise: tuple[str, ...] = (),
        part: Part | Bucket | None = None,
        bits: int = FULL_BITS,
    ) -> Form:
        """Return the form of a column.

        Args:
            encoding: How the column's values are encoded.
            normalise: The names of normalisers, in the order in which they are applied; for text only.
            part: Which part of the text, all of it by default; or the bucket of a date or a number.
            bits: How many bits of a token are kept.

        Raises:
            ConfigurationError: values of this kind have no index, or no such normalisers, parts or buckets.
        """
        kind, message = kind_of(encoding)
        buckets = Buckets.of(part, kind, message) if isinstance(part, Bucket) else None
        part = part or Whole()
        if kind != "text" and (normalise or not isinstance(part, Whole | Bucket)):
            raise ConfigurationError(f"a column of {kind} values has neither normalisers nor parts: only text has")
        if not 1 <= bits <= FULL_BITS:
            raise ConfigurationError(f"a token keeps 1 to {FULL_BITS} bits")
        functions = [named(name) for name in normalise]
        text = ";".join((kind, *(name for name, _ in functions), part.text(), str(bits)))
        normalisers = tuple(function for _, function in functions)
        if buckets is not None:
            message = buckets.message
        return cls(text, bits, message, normalisers, part if isinstance(part, Part) else Whole(), buckets)

    def message(self, value: Any) -> bytes | None:
        """Return a stored value's message, or None if it has no such part.

        Raises:
            EncodingError: the column does not take this value; the error does not hold it.
        """
        if not isinstance(value, str):
            return self._message(value)
        found = self._part.of(self._normalised(value))
        return None if found is None else self._message(found)

    def asked(self, value: Any) -> bytes:
        """Return the message of what a query asks for: the part itself, where the form has one; any value of a bucket.

        Raises:
            EncodingError: no value of the column has this part; the error does not hold it.
        """
        if isinstance(value, Message):
            return value.content
        return self._message(self._normalised(value) if isinstance(value, str) else value)

    def span(self, low: Any, below: Any) -> list[bytes]:
        """Return the messages of the buckets of a range: those of all values from `low` to less than `below`.

        Raises:
            EncodingError: a bound is no value of the column; the error does not hold it.
            UnsupportedOperationError: the form has no buckets, a bound is in the middle of one, or there are too many.
        """
        if self._buckets is None:
            raise UnsupportedOperationError(
                "a token that is not made of a Bucket answers no range", hint="declare one with part Bucket(...)"
            )
        return self._buckets.span(low, below)

    def _normalised(self, text: str) -> str:
        self._message(text)  # what is no text of the column's is refused before anybody works on it
        for function in self._normalise:
            text = function(text)
        return text


def token_maker(subkey: bytes, form: Form) -> Callable[[bytes | None], bytes]:
    """Return the function that makes tokens of messages, 16 bytes each, with the key schedule done once.

    Where there is no message, it makes a random token, which nobody asks for.

    Args:
        subkey: 32 bytes, derived with the text of this form.
        form: How many bits are kept. Its messages are from `Form.message` or `Form.asked`.
    """
    mac, dropped = primitives.authenticator(subkey), FULL_BITS - form.bits

    def whole(message: bytes | None) -> bytes:
        return os.urandom(TOKEN_BYTES) if message is None else mac(message)[:TOKEN_BYTES]

    def cut(message: bytes | None) -> bytes:
        return (int.from_bytes(whole(message), "big") >> dropped << dropped).to_bytes(TOKEN_BYTES, "big")

    return cut if dropped else whole


def token(subkey: bytes, form: Form, message: bytes | None) -> bytes:
    """Return the token of one message."""
    return token_maker(subkey, form)(message)
