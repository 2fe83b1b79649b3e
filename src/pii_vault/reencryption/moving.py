"""Seal the values of one column anew, many at a time.

Values with one header have one key and one way to be moved, which is looked up once for all of them. Whatever is out of
the ordinary, a value that does not authenticate included, is opened and sealed as the application would do it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Dialect

from ..envelope import HEADER_BYTES, SUITE_COLUMN, Header, parse
from ..errors import OpenError, PiiVaultError
from ..orm.encrypted_type import EncryptedType
from ..primitives import INVALID_TAG
from ..scope import Scope
from ..sealing import Keyset, Mover
from .targets import Wanted

_HEADER: Final = slice(HEADER_BYTES)

Failed = Callable[[int, str], object]
"""Told the place of a value that cannot be sealed anew, and what is wrong with it."""


class Moving:
    """Seals values of one column anew, for the tenant in scope.

    Args:
        dialect: Of the application's database.
        scope: The tenant's scope, entered.
        kind: The column's type.
        wanted: What its values are to be sealed with.
    """

    def __init__(self, dialect: Dialect, scope: Scope, kind: EncryptedType[Any], wanted: Wanted) -> None:
        self._scope: Final = scope
        self._kind: Final = kind
        self._wanted: Final = wanted
        self._context: Final = str(kind.context)
        self._codecs: Final = frozenset(kind.encoding().decoders())
        self._open: Final = kind.result_processor(dialect, None)
        self._seal: Final = kind.bind_processor(dialect)
        self._keyset: Keyset | None = None
        self._movers: dict[bytes, Mover] = {}

    def moved(self, stored: Sequence[Any], failed: Failed) -> list[Any]:
        """Return for each stored value, bytes or None, the bytes to write in its place; None where it is to stay."""
        after: list[Any] = [None] * len(stored)
        for header, places in _by_header(stored).items():
            if not self._is_left(header):
                continue
            values = [stored[place] for place in places]
            moved = self._moved_at_once(header, values)
            if moved is None:
                moved = [self._moved_one(value, place, failed) for value, place in zip(values, places, strict=True)]
            if len(moved) == len(after):
                return moved
            for place, value in zip(places, moved, strict=True):
                after[place] = value
        return after

    def open_all(self, stored: Sequence[Any]) -> None:
        """Open values, and forget them: how long that takes is what somebody wants to know."""
        for sealed in stored:
            if sealed is not None and self._is_left(sealed[_HEADER]):
                with suppress(OpenError):
                    self._open(sealed)

    def _moved_at_once(self, header: bytes, values: Sequence[Any]) -> list[Any] | None:
        """Move values with one header; None when one of them is out of the ordinary."""
        keyset = self._scope.renew()
        if keyset is not self._keyset:
            self._keyset, self._movers = keyset, {}
        mover = self._movers.get(header) or self._mover(keyset, header, values[0])
        if mover is None:
            return None
        self._movers[header] = mover
        ivs = keyset.allowance.take(len(values))
        if len(ivs) < len(values):
            return None
        try:
            return mover(values, ivs)
        except (INVALID_TAG, ValueError):
            return None

    def _mover(self, keyset: Keyset, header: bytes, sample: bytes) -> Mover | None:
        """Return how values with one header are moved; None when each has to be looked at."""
        try:
            known = parse(sample)
            if (
                known.suite != SUITE_COLUMN
                or known.tokens
                or self._kind.slots  # they need their tokens, and these are made of the value
                or known.codec not in self._codecs
            ):
                return None
            return keyset.mover(self._context, header)
        except PiiVaultError:
            return None

    def _moved_one(self, sealed: bytes, place: int, failed: Failed) -> bytes | None:
        try:
            moved: bytes = self._seal(self._open(sealed))
            return moved
        except OpenError as error:
            failure = error.args[0]
        failed(place, failure)
        return None

    def _is_left(self, start: bytes) -> bool:
        """Say what the condition in SQL says, of what stands where the header should; another tenant's never is."""
        read = start.ljust(HEADER_BYTES, b"\0")
        header = Header(
            read[0], int.from_bytes(read[1:5], "big"), int.from_bytes(read[5:7], "big"), read[7], read[8], read[9]
        )
        mine = self._scope.renew().identity.keyset_id
        return header.keyset_id == mine and self._wanted.is_lacking(header, self._kind)


def _by_header(stored: Sequence[Any]) -> dict[bytes, Sequence[int]]:
    if None not in stored and len(headers := set(map(itemgetter(_HEADER), stored))) == 1:  # as a rule
        return {headers.pop(): range(len(stored))}
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, sealed in enumerate(stored):
        if sealed is not None:
            places[sealed[_HEADER]].append(place)
    return {**places}
