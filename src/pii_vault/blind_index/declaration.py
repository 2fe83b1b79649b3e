"""What a column declares: an index and further tokens, each in a slot of its own inside the sealed value.

A slot is for ever, as the values that were sealed with it are: what is declared anew takes one that nothing stood in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final

from ..encoding import Encoding
from ..envelope import HEADER_BYTES, MAX_TOKENS, TOKEN_BYTES
from ..errors import ConfigurationError
from .buckets import Bucket
from .form import FULL_BITS, Form
from .messages import kind_of
from .parts import Part, Whole

_LABEL: Final = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_LOW_ENTROPY: Final = frozenset(("bool", "enum"))


@dataclass(frozen=True, slots=True, repr=False)
class BlindIndex:
    """How a column's values are found without being opened.

    Args:
        unique: Whether no two rows of a tenant may have the same value; then the database checks it.
        normalise: The names of normalisers, in the order in which they are applied: ``("nfkc", "casefold")``.
        part: Which part of a text, or which `Bucket` of a date or a number; all of it by default.
        bits: How many bits of a token are kept. Fewer than 128 find other values too, and tell less.
        name: The index's name, by default the column's context. Columns that share it can be compared with each other.
        slot: Its place in the sealed value, 0 to 14; by default the first that is free, the index before the tokens.
        low_entropy: Say True for a boolean or an enumeration: how many rows have the same value is then seen by
            everybody who reads the database, and with few values that is often as good as the value.
        create: Whether the table gets a database index for it.
    """

    unique: bool = False
    normalise: tuple[str, ...] = ()
    part: Part | Bucket = field(default_factory=Whole)
    bits: int = FULL_BITS
    name: str | None = None
    slot: int | None = None
    low_entropy: bool = False
    create: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.normalise, tuple):
            raise ConfigurationError("normalise= is a tuple of names", hint=f"normalise=({self.normalise!r},)")
        if self.unique and (self.bits != FULL_BITS or not isinstance(self.part, Whole)):
            raise ConfigurationError(
                f"a unique index is over whole values and all {FULL_BITS} bits: else values that differ would clash"
            )
        if self.slot is not None and not 0 <= self.slot < MAX_TOKENS:
            raise ConfigurationError(f"a slot is 0 to {MAX_TOKENS - 1}")

    def __repr__(self) -> str:
        given = ((each.name, getattr(self, each.name)) for each in fields(self))
        changed = (f"{name}={value!r}" for name, value in given if value != getattr(_DEFAULT, name))
        return f"{type(self).__name__}({', '.join(changed)})"


_DEFAULT: Final = BlindIndex()

INDEX: Final = ""
"""The label of a column's index among its tokens."""

Token = Part | Bucket | BlindIndex
"""What a token can be declared with."""

Declared = tuple[tuple[str, BlindIndex], ...]
"""What a column declares: its index, labelled `INDEX`, and its tokens by their labels."""


def declared(index: bool | BlindIndex, tokens: Mapping[str, Token] | None) -> Declared:
    """Return what a column declares, from the arguments of its type.

    Raises:
        ConfigurationError: they are none of these.
    """
    found: list[tuple[str, BlindIndex]] = []
    if index:
        found.append((INDEX, index if isinstance(index, BlindIndex) else BlindIndex()))
    for label, token in (tokens or {}).items():
        if not _LABEL.fullmatch(label):
            raise ConfigurationError("a token's name is 1 to 32 of a-z 0-9 _, beginning with a letter")
        if not isinstance(token, Part | Bucket | BlindIndex):
            raise ConfigurationError(
                f"token {label!r} is a {type(token).__name__}", hint="declare LastChars(4), or BlindIndex(part=…)"
            )
        found.append((label, token if isinstance(token, BlindIndex) else BlindIndex(part=token)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a column's sealed values, and what stands there.

    Attributes:
        number: From 0.
        label: The token's name; `INDEX` for the index.
        index: The name of the index: which subkey.
        form: How a value becomes its token: which subkey, and which message.
        unique: Whether the database refuses a second row with the same token.
        create: Whether the table gets a database index for it.
    """

    number: int
    label: str
    index: str
    form: Form
    unique: bool
    create: bool

    @property
    def start(self) -> int:
        """Where the token starts in the sealed value, counted from 1 as SQL does."""
        return HEADER_BYTES + TOKEN_BYTES * self.number + 1

    @property
    def exact(self) -> bool:
        """Whether two values have the same token only if they are equal, in what the token is made of."""
        return self.form.bits == FULL_BITS

    def comparable(self, other: Slot) -> bool:
        """Say whether tokens here are equal to tokens there when the values are."""
        return self.index == other.index and self.form == other.form


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What is known of a slot in the sealed values of one tenant's column. What it holds never changes.

    Attributes:
        context: The column's context id.
        number: The slot.
        index: The name of the index that its tokens are made with; empty where values were sealed with nothing there.
        form: The text of the form that they are made with; likewise.
        ready_at: Since when, as far as is known, each value has its token there, UTC; None while that is not so.
        settled: Whether that was found once more, after nobody could be writing values without tokens any longer.
    """

    context: str
    number: int
    index: str
    form: str
    ready_at: datetime | None = None
    settled: bool = False

    def holds(self, slot: Slot | None) -> bool:
        """Say whether what is declared for the slot is what it holds."""
        return (self.index, self.form) == contents(slot)


NOTHING: Final = ("", "")
"""What a slot holds where values were sealed with none declared: 16 zero bytes."""


def contents(slot: Slot | None) -> tuple[str, str]:
    """Return what values hold in a slot: the index's name and the text of the form, or nothing."""
    return NOTHING if slot is None else (slot.index, slot.form.text)


def slots_of(encoding: Encoding[Any], context: str, what: Declared) -> tuple[Slot | None, ...]:
    """Return a column's slots by number; None where nothing is declared, or no longer.

    Raises:
        ConfigurationError: it cannot be declared so, above all: low entropy without having said so.
    """
    free = iter(sorted(set(range(MAX_TOKENS)) - {each.slot for _, each in what if each.slot is not None}))
    placed: dict[int, Slot] = {}
    for label, each in what:
        number = next(free, None) if each.slot is None else each.slot
        if number is None or number in placed:
            raise ConfigurationError(f"{context!r} declares two tokens for one slot, or more than {MAX_TOKENS}")
        form = Form.of(encoding, normalise=each.normalise, part=each.part, bits=each.bits)
        kind, _ = kind_of(encoding)
        if kind in _LOW_ENTROPY and not each.low_entropy:
            raise ConfigurationError(
                f"{context!r} has so few values that its tokens tell them: everybody who reads the database sees which "
                "rows are equal, and how many",
                hint="if that may be seen, say so: index=BlindIndex(low_entropy=True)",
            )
        placed[number] = Slot(number, label, each.name or context, form, each.unique, each.create)
    return tuple(placed.get(number) for number in range(max(placed, default=-1) + 1))
