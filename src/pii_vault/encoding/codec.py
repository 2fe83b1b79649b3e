"""What a codec is, the frozen registry of their numbers, and what a column type needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from ..errors import ConfigurationError, EncodingError, FormatError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

REGISTRY: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "text",
        2: "bytes",
        3: "int64",
        4: "bigint",
        5: "float64",
        6: "decimal",
        7: "bool",
        8: "date",
        9: "time",
        10: "datetime_aware",
        11: "datetime_naive",
        12: "uuid",
        13: "enum",
        14: "json",
        15: "array",
    }
)
"""The name of every codec id. Only ever added to; 0 and 255 are never assigned."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[T_co]):
    """A codec is a registered number and the two functions that it stands for.

    Attributes:
        id: The number, as it stands in the header of a sealed value.
        encode: Value to bytes; raises `EncodingError`.
        decode: Bytes to value, never None; raises `FormatError`.
    """

    id: int
    encode: Callable[[object], bytes] = field(repr=False)
    decode: Callable[[bytes], T_co] = field(repr=False)

    def __post_init__(self) -> None:
        if self.id not in REGISTRY:
            raise ConfigurationError(f"codec {self.id} is not registered")

    @property
    def name(self) -> str:
        """The name in the registry."""
        return REGISTRY[self.id]


@dataclass(frozen=True, slots=True)
class Encoding(Generic[T_co]):
    """An encoding is what a column type needs: one codec or, where the value decides, several.

    Attributes:
        codecs: Every codec that the column accepts when it reads.
        encode: Value to codec id and bytes; raises `EncodingError`.
    """

    codecs: tuple[Codec[T_co], ...]
    encode: Callable[[object], tuple[int, bytes]] = field(repr=False)

    @staticmethod
    def of(codec: Codec[T]) -> Encoding[T]:
        """Return the encoding that always uses this codec."""
        number, encode = codec.id, codec.encode
        return Encoding((codec,), lambda value: (number, encode(value)))

    @property
    def single(self) -> Codec[T_co] | None:
        """The codec when there is only one, so that a caller can bind its functions directly."""
        return self.codecs[0] if len(self.codecs) == 1 else None

    def decoders(self) -> dict[int, Callable[[bytes], T_co]]:
        """Return the decode function of each accepted codec id."""
        return {codec.id: codec.decode for codec in self.codecs}


def refused(expected: str, value: object, *, hint: str | None = None) -> EncodingError:
    """Return the error for a value of another type; it names types only."""
    return EncodingError(f"expected {expected}, got {type(value).__name__}", hint=hint)


def malformed(name: str) -> FormatError:
    """Return the error for bytes that no value of this codec encodes to; it holds nothing of them."""
    return FormatError(f"the opened bytes are not a canonical {name} value")
