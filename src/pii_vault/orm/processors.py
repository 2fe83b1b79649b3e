"""The hot path: for each column one function that seals and one that opens.

A hit is a context variable, two dictionary look-ups, one clock reading and one AES-GCM call; nothing is locked and
nobody is asked. The IV of a sealed value comes from the key's allowance, which counts it. Whatever is out of the
ordinary, an exception included, takes the careful way, which returns the value or an error.

Safety: SQLAlchemy prints all parameters of a statement when a processor raises a foreign exception, and a traceback
shows the locals of every frame. So the whole body is guarded, errors are raised where no other exception is being
handled, and the value is deleted from our frame before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .. import encoding
from ..blind_index import Slot
from ..encoding import Encoding
from ..envelope import HEADER_BYTES, IV_BYTES, PLAINTEXT_MARK, TOKEN_BYTES, parse
from ..errors import (
    AdoptionError,
    CodecMismatchError,
    EncodingError,
    FormatError,
    NotEncryptedError,
    OpenError,
    PiiVaultError,
)
from ..scope import current, no_tenant
from .attachment import Attachment

Processor = Callable[[Any], Any]
Slots = tuple[Slot | None, ...]

# Text goes through the C functions themselves. What they raise, with the value in it, is caught here like everything
# else, and the codec's own functions then say what was wrong.
_ENCODE: Final[dict[int, Callable[[Any], bytes]]] = {encoding.TEXT.id: str.encode}
_DECODE: Final[dict[int, Callable[[bytes], Any]]] = {encoding.TEXT.id: bytes.decode}

# The parts of a sealed value without tokens. Slices made once cost less than slices made for every value.
_HEADER: Final = slice(HEADER_BYTES)
_IV: Final = slice(HEADER_BYTES, HEADER_BYTES + IV_BYTES)
_BODY: Final = slice(HEADER_BYTES + IV_BYTES, None)
_CODEC: Final = 7

_BYTES: Final = (bytes, memoryview, bytearray)


def seal_processor(attachment: Attachment, context: str, how: Encoding[Any]) -> Processor:
    """Return the function that SQLAlchemy calls with each value it binds: value to sealed bytes, None to None."""
    codec = how.single
    if codec is None:
        return _seal_by_value(attachment, context, how)
    slot, encode = _slot(context, how), _ENCODE.get(codec.id, codec.encode)
    scope, default = current.get, attachment.default
    monotonic = attachment.keyring.clock.monotonic

    def seal(value: Any) -> Any:
        if value is None:
            return None
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            header, encrypt, aad, ivs = keyset.sealings[slot]
            if monotonic() < keyset.checked_until:
                for iv in ivs:  # one, or none when the allowance is spent; a loop takes it faster than a call
                    return header + iv + encrypt(iv, encode(value), aad)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        outcome = _seal_carefully(attachment, context, how, slot, value)
        del value
        if isinstance(outcome, PiiVaultError):
            raise outcome
        return outcome

    return seal


def open_processor(attachment: Attachment, context: str, how: Encoding[Any]) -> Processor:
    """Return the function that SQLAlchemy calls with each stored value: sealed bytes to value, NULL to None."""
    slot = _slot(context, how)
    codec = how.single
    decode = _DECODE.get(codec.id, codec.decode) if codec is not None else None
    decoders = how.decoders()
    scope, default, header, iv, body = current.get, attachment.default, _HEADER, _IV, _BODY
    monotonic = attachment.keyring.clock.monotonic

    def open_(sealed: Any) -> Any:
        if sealed is None:
            return None
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            decrypt, aad = keyset.openings[slot][sealed[header]]
            if monotonic() < keyset.checked_until:
                if decode is not None:
                    return decode(decrypt(sealed[iv], sealed[body], aad))
                return decoders[sealed[_CODEC]](decrypt(sealed[iv], sealed[body], aad))
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        opened, error = _open_carefully(attachment, context, how, slot, sealed)
        del sealed  # it may be plaintext that was never sealed
        if error is not None:
            raise error
        return opened

    return open_


def indexed_seal_processor(attachment: Attachment, context: str, how: Encoding[Any], slots: Slots) -> Processor:
    """Return the function that seals the values of a column with tokens."""
    encode, places = how.encode, _places(context, how, slots)
    scope, default = current.get, attachment.default
    monotonic = attachment.keyring.clock.monotonic

    def seal(value: Any) -> Any:
        if value is None:
            return None
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            number, plaintext = encode(value)
            header, encrypt, before, after, ivs, tokens = keyset.indexed_sealings[places[number]]
            if monotonic() < keyset.checked_until:
                start = header + tokens(value)
                for iv in ivs:
                    return start + iv + encrypt(iv, plaintext, before + start + after)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        plaintext = b""
        outcome = _seal_indexed_carefully(attachment, context, how, slots, value)
        del value
        if isinstance(outcome, PiiVaultError):
            raise outcome
        return outcome

    return seal


def indexed_open_processor(attachment: Attachment, context: str, how: Encoding[Any]) -> Processor:
    """Return the function that opens the values of a column with tokens, and those that were sealed without."""
    slot = _slot(context, how)
    decoders = how.decoders()
    scope, default, header = current.get, attachment.default, _HEADER
    monotonic = attachment.keyring.clock.monotonic

    def open_(sealed: Any) -> Any:
        if sealed is None:
            return None
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            decrypt, before, after, clear, iv, body = keyset.indexed_openings[slot][sealed[header]]
            if monotonic() < keyset.checked_until:
                plaintext = decrypt(sealed[iv], sealed[body], before + sealed[clear] + after)
                return decoders[sealed[_CODEC]](plaintext)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        opened, error = _open_carefully(attachment, context, how, slot, sealed)
        del sealed  # it may be plaintext that was never sealed
        if error is not None:
            raise error
        return opened

    return open_


def fallback_processor(attachment: Attachment, context: str, column: str, open_: Processor) -> Processor:
    """Return the function that takes the plaintext where the database has delivered that, and opens a value else."""

    def read(stored: Any) -> Any:
        if not isinstance(stored, _BYTES) or stored[:1] != PLAINTEXT_MARK:
            return open_(stored)
        value, error = _take_plaintext(attachment, context, column, stored)
        del stored
        if error is not None:
            raise error
        return value

    return read


class Asked:
    """An element of a list that is looked for, as it was in one of two live generations of index keys."""

    __slots__ = ("later", "value")

    def __init__(self, value: Any, later: bool) -> None:
        self.value = value
        self.later = later


def lookup_processor(attachment: Attachment, context: str, slot: Slot, pair: bool) -> Processor:
    """Return the function that makes of a value the tokens by which it is found."""
    key = (slot.index, slot.form.text)
    scope, default = current.get, attachment.default
    monotonic = attachment.keyring.clock.monotonic

    def find(value: Any) -> Any:
        if value is None:
            return None
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            make = keyset.lookups[key]
            if monotonic() < keyset.checked_until:
                return make(value)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        return _look_up_carefully(attachment, context, slot, value)

    def both(value: Any) -> Any:
        outcome = find(value)
        del value
        if isinstance(outcome, PiiVaultError):
            raise outcome
        return outcome

    def one(value: Any) -> Any:
        asked = isinstance(value, Asked)
        later = asked and value.later
        outcome = find(value.value if asked else value)
        del value
        if isinstance(outcome, PiiVaultError):
            raise outcome
        return outcome and (outcome[TOKEN_BYTES:] if later else outcome[:TOKEN_BYTES])

    return both if pair else one


def _seal_by_value(attachment: Attachment, context: str, how: Encoding[Any]) -> Processor:
    """Where the value decides on the codec, there is one prepared sealing for each."""
    slots = {codec.id: f"{codec.id} {context}" for codec in how.codecs}
    encode = how.encode
    scope, default = current.get, attachment.default
    monotonic = attachment.keyring.clock.monotonic

    def seal(value: Any) -> Any:
        if value is None:
            return None
        slot = ""
        try:
            keyset: Any = (scope() or default).keyset  # type: ignore[union-attr]
            number, plaintext = encode(value)
            slot = slots[number]
            header, encrypt, aad, ivs = keyset.sealings[slot]
            if monotonic() < keyset.checked_until:
                for iv in ivs:
                    return header + iv + encrypt(iv, plaintext, aad)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way finds it again and names it
            pass
        plaintext = b""
        outcome = _seal_carefully(attachment, context, how, slot, value)
        del value
        if isinstance(outcome, PiiVaultError):
            raise outcome
        return outcome

    return seal


def _slot(context: str, how: Encoding[Any]) -> str:
    """Name a column's place in a keyset: with the codecs, lest two types of one context share what they decode with."""
    return " ".join(str(codec.id) for codec in how.codecs) + " " + context


def _places(context: str, how: Encoding[Any], slots: Slots) -> dict[int, str]:
    """Name the places of a column with tokens in a keyset, by codec: text, whose hash is computed once."""
    tokens = ",".join("" if slot is None else f"{slot.number} {slot.index} {slot.form.text}" for slot in slots)
    return {codec.id: f"{codec.id} {tokens} {context}" for codec in how.codecs}


def _seal_carefully(
    attachment: Attachment, context: str, how: Encoding[Any], slot: str, value: Any
) -> bytes | PiiVaultError:
    try:
        scope = attachment.scope()
        if scope is None:
            return no_tenant()
        number, plaintext = how.encode(value)
        keyset = scope.renew()
        iv = scope.keyring.next_iv(keyset)
        header, encrypt, aad, _ = keyset.sealings[slot] = keyset.sealing(context, number)
        return header + iv + encrypt(iv, plaintext, aad)
    except EncodingError as error:
        return EncodingError(f"column {context!r}: {error.args[0]}", hint=error.hint)
    except PiiVaultError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a foreign exception would make SQLAlchemy print the value
        return EncodingError(f"column {context!r}: the value could not be sealed ({type(error).__name__})")


def _seal_indexed_carefully(
    attachment: Attachment, context: str, how: Encoding[Any], slots: Slots, value: Any
) -> bytes | PiiVaultError:
    try:
        scope = attachment.scope()
        if scope is None:
            return no_tenant()
        number, plaintext = how.encode(value)
        keyset = scope.renew()
        iv = scope.keyring.next_iv(keyset)
        place = _places(context, how, slots)[number]
        prepared = keyset.indexed_sealings[place] = keyset.indexed_sealing(context, number, slots)
        header, encrypt, before, after, _, tokens = prepared
        start = header + tokens(value)
        return start + iv + encrypt(iv, plaintext, before + start + after)
    except EncodingError as error:
        return EncodingError(f"column {context!r}: {error.args[0]}", hint=error.hint)
    except PiiVaultError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a foreign exception would make SQLAlchemy print the value
        return EncodingError(f"column {context!r}: the value could not be sealed ({type(error).__name__})")


def _look_up_carefully(attachment: Attachment, context: str, slot: Slot, value: Any) -> bytes | PiiVaultError:
    try:
        scope = attachment.scope()
        if scope is None:
            return no_tenant()
        keyset = scope.renew()
        make = keyset.lookups[slot.index, slot.form.text] = keyset.lookup(slot)
        return make(value)
    except EncodingError as error:
        return EncodingError(f"column {context!r}: {error.args[0]}", hint=error.hint)
    except PiiVaultError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a foreign exception would make SQLAlchemy print the value
        return EncodingError(f"column {context!r}: the value could not be looked for ({type(error).__name__})")


def _take_plaintext(attachment: Attachment, context: str, column: str, stored: Any) -> tuple[Any, PiiVaultError | None]:
    try:
        scope = attachment.scope()
        if scope is None:
            return None, no_tenant()
        scope.renew()  # as for a sealed value: who may not read those does not read this
        if not attachment.keyring.takes_plaintext(context):
            return None, AdoptionError(
                f"a value of {column} was never sealed, and to read its plaintext instead is not allowed now",
                hint="`pii-vault adopt status` says how far the adoption is; before the switch `pii-vault adopt "
                "fallback` allows it for a time",
            )
        return bytes(stored[1:]).decode(), None
    except PiiVaultError as error:
        return None, error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - it could carry the value
        return None, OpenError(f"a plaintext of {column} could not be read ({type(error).__name__})")


def _open_carefully(
    attachment: Attachment, context: str, how: Encoding[Any], slot: str, sealed: Any
) -> tuple[Any, PiiVaultError | None]:
    try:
        scope = attachment.scope()
        if scope is None:
            return None, no_tenant()
        if not isinstance(sealed, bytes | bytearray | memoryview):
            return None, NotEncryptedError(
                f"{context!r} holds a {type(sealed).__name__} that was never sealed",
                hint="it was written past the vault; find such rows and seal them before reading",
            )
        sealed = bytes(sealed)
        number, plaintext = scope.open_(context, sealed)
        decode = how.decoders().get(number)
        if decode is None:
            return None, CodecMismatchError(
                f"a value of {context!r} was sealed with codec {number}, which its column type does not read",
                hint="the column's type was changed; re-seal its values, or declare the type they were written with",
            )
        opened = decode(plaintext)
        header, keyset = sealed[:HEADER_BYTES], scope.keyset
        # In a scope that threads share, another one may have put a keyset in its place that lacks this version.
        if keyset is not None and parse(sealed).version in keyset.versions:
            keyset.doubt(context, parse(sealed))
            keyset.indexed_openings.setdefault(slot, {})[header] = keyset.indexed_opening(context, header)
            if not sealed[9]:  # no tokens: ten bytes of header tell all that is needed next time
                keyset.openings.setdefault(slot, {})[header] = keyset.opening(context, header)
        return opened, None
    except FormatError as error:
        return None, type(error)(f"column {context!r}: {error.args[0]}", hint=error.hint)
    except PiiVaultError as error:
        return None, error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a foreign exception could carry the value
        return None, OpenError(f"a value of {context!r} could not be opened ({type(error).__name__})")
