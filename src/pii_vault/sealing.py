"""Seal and open the values of one column with one keyset.

A `Keyset` is what a process holds for one tenant, in memory and for a bounded time: data keys and the two instants at
which it expires, but never the KEK. For each column it derives subkeys on first use and keeps, ready for the hot path,
the header, the additional data and the cipher, so that a value costs one dictionary look-up and one AES-GCM call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, TypeAlias

from . import primitives
from .allowance import Allowance
from .blind_index import Form, Slot, SlotRecord, token, token_maker
from .context import Identity, column_context, index_context, value_aad, value_aad_around
from .envelope import HEADER_BYTES, IV_BYTES, SUITE_COLUMN, TOKEN_BYTES, Header, parse
from .errors import BlindIndexError, ForeignValueError, FormatError, KeyNotFoundError, KeyStateError, OpenError
from .keys import ALGORITHM, KeyState, Secret

Sealing: TypeAlias = tuple[bytes, primitives.Cipher, bytes, Iterator[bytes]]
"""Header, encrypt, AAD and `Allowance.ivs`, prepared: ``header + iv + encrypt(iv, plaintext, aad)`` for an iv of them.

A plain tuple unpacks fastest.
"""

Tokens: TypeAlias = Callable[[Any], bytes]
"""Makes the tokens of one column's value, 16 bytes for each slot."""

IndexedSealing: TypeAlias = tuple[bytes, primitives.Cipher, bytes, bytes, Iterator[bytes], Tokens]
"""Header, encrypt, what stands in the AAD before and after header and tokens, `Allowance.ivs`, tokens."""

Mover: TypeAlias = Callable[[Sequence[bytes], Sequence[bytes]], list[bytes]]
"""Seals values anew, given them and an IV for each."""

LIVE_GENERATIONS: Final = 2
"""How many generations of index keys a tenant has at most, while one takes the place of another."""

_EMPTY_SLOT: Final = bytes(TOKEN_BYTES)

NO_GENERATION: Final = 0
"""The index generation of a keyset without an index key: it makes no tokens."""

NO_VERSION: Final = 0
"""The active version of a keyset that only opens."""

Opening: TypeAlias = tuple[primitives.Cipher, bytes]
"""Decrypt and AAD, prepared: ``decrypt(sealed[10:22], sealed[22:], aad)`` when there are no tokens."""

IndexedOpening: TypeAlias = tuple[primitives.Cipher, bytes, bytes, slice, slice, slice]
"""Decrypt, what stands in the AAD before and after header and tokens, and where these, the IV and the rest stand."""


class Keyset:
    """One tenant's unwrapped data keys, until they expire.

    Attributes:
        tenant: The tenant's name, for messages.
        identity: Whose keys these are.
        active: The version that seals, or `NO_VERSION`.
        index_generation: The generation of the index key that makes tokens, or `NO_GENERATION`.
        ended: What became of the versions that no longer open: compromised or destroyed.
        deadline: When it expires on the monotonic clock, seconds.
        wall_deadline: When it expires on the wall clock, seconds since the epoch. Both count: the monotonic clock
            stands still while a virtual machine is suspended, the wall clock can be set back.
        good_until: Until when it may be used, on the monotonic clock, before somebody has to be asked; not later than
            the deadline. An outage in which nobody can be asked moves it.
        wall_good_until: The same on the wall clock.
        allowance: How many more values this process may seal with the active version.
        checked_until: Until when, on the monotonic clock, the keyring's last look at both clocks is good enough for
            the hot path; never later than `good_until`.
        asked_at: When the KMS was asked for it, on the monotonic clock.
        refresh_at: From when on another keyset is to be fetched in its place, on the monotonic clock.
        overdue: Whether nobody could be asked for that when it was tried.
        sealings: Prepared by the column types, under names of theirs, for their hot path.
        openings: Likewise; under a column's name, by the 10 header bytes.
        indexed_sealings: Likewise, for columns with tokens.
        indexed_openings: Likewise.
        lookups: Likewise: what makes the tokens that a query asks for.
        slots: What is known of the slots of sealed values, by column and number.
        declared: The tables whose columns' slots were written down before this keyset sealed for them.
        searched: What a query has looked for with this keyset, after it was made sure that nothing is missed.
        doubted: The columns and slots that were known to be ready until a value was met that has no token there.
    """

    __slots__ = (
        "__weakref__",
        "_index_keys",
        "_index_subkeys",
        "_keys",
        "_subkeys",
        "active",
        "allowance",
        "asked_at",
        "checked_until",
        "deadline",
        "declared",
        "doubted",
        "ended",
        "good_until",
        "identity",
        "index_generation",
        "indexed_openings",
        "indexed_sealings",
        "lookups",
        "openings",
        "overdue",
        "refresh_at",
        "sealings",
        "searched",
        "slots",
        "tenant",
        "wall_deadline",
        "wall_good_until",
    )

    def __init__(
        self,
        tenant: str,
        identity: Identity,
        active: int,
        keys: Mapping[int, Secret],
        *,
        deadline: float,
        wall_deadline: float,
        good_until: float | None = None,
        wall_good_until: float | None = None,
        refresh_at: float = math.inf,
        asked_at: float = 0.0,
        allowance: Allowance | None = None,
        ended: Mapping[int, KeyState] | None = None,
        index_keys: Mapping[int, Secret] | None = None,
        index_generation: int = NO_GENERATION,
        slots: Iterable[SlotRecord] = (),
    ) -> None:
        self.tenant: Final = tenant
        self.identity: Final = identity
        self.active: Final = active
        self.allowance = allowance or Allowance(active)
        self.ended: Final = dict(ended or {})
        self.deadline = deadline
        self.wall_deadline: Final = wall_deadline
        self.good_until = deadline if good_until is None else good_until
        self.wall_good_until = wall_deadline if wall_good_until is None else wall_good_until
        self.checked_until = 0.0
        self.refresh_at = refresh_at
        self.asked_at: Final = asked_at
        self.overdue = False
        self.sealings: Final[dict[str, Sealing]] = {}
        self.openings: Final[dict[str, dict[bytes, Opening]]] = {}
        self.indexed_sealings: Final[dict[object, IndexedSealing]] = {}
        self.indexed_openings: Final[dict[object, dict[bytes, IndexedOpening]]] = {}
        self.lookups: Final[dict[object, Tokens]] = {}
        self.slots: Final = {(slot.context, slot.number): slot for slot in slots}
        self.declared: Final[set[object]] = set()
        self.doubted: Final[set[tuple[str, int]]] = set()
        self.searched: Final[set[object]] = set()
        self.index_generation: Final = index_generation
        self._keys: Final = dict(keys)
        self._index_keys: Final = dict(index_keys or {})
        self._index_subkeys: Final[dict[tuple[int, str, str], Secret]] = {}
        self._subkeys: Final[dict[tuple[int, int, str], Secret]] = {}

    def __repr__(self) -> str:
        return f"<Keyset of tenant {self.tenant!r}, active version {self.active}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyset is neither pickled nor copied")

    def expire(self) -> None:
        """Make this keyset useless for everybody who holds it: the next use fetches another one."""
        # In this order: whoever looks at the clocks meanwhile looks at `good_until` once more (`Memory.fresh`).
        self.deadline = self.good_until = -math.inf
        self.checked_until = -math.inf

    def extend(self, seconds: float, now: float, wall: float) -> None:
        """Let this keyset be used for some seconds from now, if its deadline allows it: nobody can be asked."""
        self.good_until = max(self.good_until, min(self.deadline, now + seconds))
        self.wall_good_until = max(self.wall_good_until, min(self.wall_deadline, wall + seconds))

    def count_with(self, allowance: Allowance) -> None:
        """Count what is sealed from now on with another allowance."""
        self.allowance = allowance
        self.sealings.clear()
        self.indexed_sealings.clear()

    def now_ready(self, slot: SlotRecord) -> None:
        """Take note that all values of a column have their token in a slot.

        Whether the column may be sealed is looked at once more, and so is what values without that token mean.
        """
        self.slots[slot.context, slot.number] = slot
        self.doubted.discard((slot.context, slot.number))
        for prepared in (self.sealings, self.indexed_sealings, self.indexed_openings):
            prepared.clear()

    @property
    def versions(self) -> frozenset[int]:
        """The versions that this keyset can open."""
        return frozenset(self._keys)

    def sealing(self, context: str, codec: int) -> Sealing:
        """Prepare the sealing of one column's values of one codec, with the active version.

        Raises:
            KeyStateError: there is none.
        """
        if not self.active:
            raise no_active_key(self.tenant)
        self.check_slots(context, ())
        header = Header(SUITE_COLUMN, self.identity.keyset_id, self.active, codec).pack()
        subkey = self._subkey(SUITE_COLUMN, self.active, context)
        aad = value_aad(header, self.identity, context)
        return header, primitives.sealer(subkey.reveal()), aad, self.allowance.ivs

    def indexed_sealing(self, context: str, codec: int, slots: Sequence[Slot | None]) -> IndexedSealing:
        """Prepare the sealing of one column's values with the tokens of its slots.

        Raises:
            KeyStateError: there is no active version.
            KeyNotFoundError: there is no index key.
            BlindIndexError: other processes search the column by other slots than these.
        """
        if not self.active:
            raise no_active_key(self.tenant)
        self.check_slots(context, slots)
        tokens = self._tokens(slots)
        generation = self.index_generation
        header = Header(SUITE_COLUMN, self.identity.keyset_id, self.active, codec, generation, len(slots)).pack()
        subkey = self._subkey(SUITE_COLUMN, self.active, context)
        before, after = value_aad_around(HEADER_BYTES + TOKEN_BYTES * len(slots), self.identity, context)
        return header, primitives.sealer(subkey.reveal()), before, after, self.allowance.ivs, tokens

    def opening(self, context: str, header: bytes) -> Opening:
        """Prepare the opening of one column's values with exactly these 10 header bytes, which name no tokens."""
        subkey = self._subkey(header[0], int.from_bytes(header[5:7], "big"), context)
        return primitives.opener(subkey.reveal()), value_aad(header, self.identity, context)

    def mover(self, context: str, header: bytes) -> Mover:
        """Prepare to move values with exactly these 10 header bytes, which name no tokens, to the active version.

        What is in them is neither decoded nor changed, and keeps its codec. The function raises
        `primitives.INVALID_TAG` or ValueError when one of them does not authenticate, without saying which.

        Raises:
            KeyStateError: there is no active version.
            KeyNotFoundError: the keyset does not hold the version that sealed them.
            BlindIndexError: values of the column are searched by tokens.
        """
        version = int.from_bytes(header[5:7], "big")
        if version not in self._keys:
            raise self._no_key(version, context)
        decrypt, aad = self.opening(context, header)
        new, encrypt, new_aad, _ = self.sealing(context, header[7])
        iv, body = slice(HEADER_BYTES, HEADER_BYTES + IV_BYTES), slice(HEADER_BYTES + IV_BYTES, None)

        def move(sealed: Sequence[bytes], ivs: Sequence[bytes]) -> list[bytes]:
            return [
                new + fresh + encrypt(fresh, decrypt(each[iv], each[body], aad), new_aad)
                for each, fresh in zip(sealed, ivs, strict=True)
            ]

        return move

    def doubt(self, context: str, header: Header) -> None:
        """Take a value without tokens, in a column that is searched by them, as a sign that more may lack theirs.

        Its table was restored from a backup, or somebody has written past everything. The next search looks.
        """
        for (column, number), known in list(self.slots.items()):
            live = header.tokens > number and header.index_generation in self._index_keys
            if column == context and known.ready_at is not None and not live:
                self.slots[column, number] = replace(known, ready_at=None, settled=False)
                self.doubted.add((column, number))
                self.searched.clear()

    def indexed_opening(self, context: str, header: bytes) -> IndexedOpening:
        """Prepare the opening of one column's values with exactly these 10 header bytes."""
        subkey = self._subkey(header[0], int.from_bytes(header[5:7], "big"), context)
        end = HEADER_BYTES + TOKEN_BYTES * header[9]
        before, after = value_aad_around(end, self.identity, context)
        clear, iv, body = slice(end), slice(end, end + IV_BYTES), slice(end + IV_BYTES, None)
        return primitives.opener(subkey.reveal()), before, after, clear, iv, body

    def lookup(self, slot: Slot) -> Tokens:
        """Return the function that makes the tokens by which a value is found: one for each live generation.

        They stand in order of their generations, each 16 bytes; where there is one generation only, it stands twice,
        so that a query is the same whether or not an index key is being replaced.

        Raises:
            KeyNotFoundError: there is no index key.
        """
        generations = sorted(self._index_keys) or [NO_GENERATION]
        if len(generations) > LIVE_GENERATIONS:
            raise BlindIndexError(f"tenant {self.tenant!r} has more than {LIVE_GENERATIONS} index keys")
        makers = [self._token_maker(each, slot) for each in generations]
        asked, first, last = slot.form.asked, makers[0], makers[-1]

        def tokens(value: Any) -> bytes:
            message = asked(value)
            older = first(message)
            return older + (older if last is first else last(message))

        return tokens

    def token(self, index: str, form: Form, message: bytes | None, generation: int | None = None) -> bytes:
        """Return the blind-index token of a message, 16 bytes.

        Args:
            index: The index's name.
            form: How the column's values become tokens.
            message: From `Form.message` or `Form.asked`.
            generation: Of the index key; by default the one that makes tokens now.

        Raises:
            KeyNotFoundError: the keyset holds no index key of this generation.
        """
        generation = self.index_generation if generation is None else generation
        return token(self._index_subkey(generation, index, form.text).reveal(), form, message)

    @property
    def index_generations(self) -> frozenset[int]:
        """The generations of index keys that this keyset holds."""
        return frozenset(self._index_keys)

    def seal(self, context: str, codec: int, plaintext: bytes) -> bytes:
        """Return the sealed value of encoded plaintext, 38 bytes longer. It is not counted."""
        header, encrypt, aad, _ = self.sealing(context, codec)
        iv = primitives.new_iv(IV_BYTES)
        return header + iv + encrypt(iv, plaintext, aad)

    def open_(self, context: str, sealed: bytes) -> tuple[int, bytes]:
        """Return codec id and encoded plaintext of a sealed value.

        Raises:
            NotEncryptedError: the bytes were never sealed.
            FormatError: they are not a sealed value of this release.
            ForeignValueError: they name another keyset.
            KeyNotFoundError: they name a version that this keyset does not hold.
            OpenError: they do not authenticate in this column of this tenant.
        """
        header = parse(sealed)
        if header.suite != SUITE_COLUMN:
            # The declared binding of the column decides, never the header.
            raise FormatError(f"the value of {context!r} is bound to its row, the column is not declared so")
        if header.keyset_id != self.identity.keyset_id:
            raise ForeignValueError(
                f"a value of {context!r} belongs to another tenant than {self.tenant!r}",
                hint="restrict the query to the rows of the tenant in scope",
            )
        if header.version not in self._keys:
            raise self._no_key(header.version, context)
        plaintext = self._decrypt(context, header, sealed)
        if plaintext is None:
            raise OpenError(
                f"a value of {context!r} does not authenticate for tenant {self.tenant!r}, "
                f"data key version {header.version}",
                hint="it was changed, or copied from another column; if the column was renamed, give it context=",
            )
        return header.codec, plaintext

    def _tokens(self, slots: Sequence[Slot | None]) -> Tokens:
        makers = [self._tokens_of(slot) for slot in slots]
        return makers[0] if len(makers) == 1 else lambda value: b"".join([make(value) for make in makers])

    def _tokens_of(self, slot: Slot | None) -> Tokens:
        if slot is None:
            return lambda _value: _EMPTY_SLOT
        make, message = self._token_maker(self.index_generation, slot), slot.form.message
        return lambda value: make(message(value))

    def _token_maker(self, generation: int, slot: Slot) -> Callable[[bytes | None], bytes]:
        return token_maker(self._index_subkey(generation, slot.index, slot.form.text).reveal(), slot.form)

    def check_slots(self, context: str, slots: Sequence[Slot | None]) -> None:
        """Refuse to write values that others, who rely on all values having certain tokens, would not find.

        Raises:
            BlindIndexError: a slot that is searched would lack its token, or holds something else than is declared.
        """
        for (column, number), known in list(self.slots.items()):  # another thread may be adding to them
            if column != context:
                continue
            slot = slots[number] if number < len(slots) else None
            if known.holds(slot) and number < len(slots):
                continue
            if known.ready_at is not None:
                raise BlindIndexError(
                    f"values of {context!r} are searched by tokens in slot {number}, made as {known.form!r}, for "
                    f"tenant {self.tenant!r}, and this process would write values without them",
                    hint="it has an older model, or a newer one that changed or dropped the index: give what changed a "
                    f"slot of its own, or end the old one with `pii-vault index drop {self.tenant} {context} {number}`",
                )
            if slot is not None and known.form and not known.holds(slot):
                raise other_tokens(known, slot)

    def _no_key(self, version: int, context: str) -> KeyNotFoundError:
        what, state = f"data key version {version} of tenant {self.tenant!r}", self.ended.get(version)
        if state is KeyState.COMPROMISED:
            return KeyNotFoundError(
                f"{what} is compromised, and a value of {context!r} was sealed with it", hint="re-encrypt it to read it"
            )
        if state is not None:
            return KeyNotFoundError(f"{what} is {state}: a value of {context!r} that it sealed is lost")
        return KeyNotFoundError(
            f"tenant {self.tenant!r} holds no data key version {version} for a value of {context!r}"
        )

    def _decrypt(self, context: str, header: Header, sealed: bytes) -> bytes | None:
        start = header.iv_offset
        subkey = self._subkey(header.suite, header.version, context)
        aad = value_aad(sealed[:start], self.identity, context)
        try:
            decrypt = primitives.opener(subkey.reveal())
            return decrypt(sealed[start : start + IV_BYTES], sealed[start + IV_BYTES :], aad)
        except primitives.INVALID_TAG:
            return None

    def _index_subkey(self, generation: int, index: str, form: str) -> Secret:
        key = (generation, index, form)
        found = self._index_subkeys.get(key)
        if found is None:
            index_key = self._index_keys.get(generation)
            if index_key is None:
                raise KeyNotFoundError(
                    f"tenant {self.tenant!r} has no index key {generation or ''}".rstrip(),
                    hint=f"it gets one when it is rotated: pii-vault key rotate {self.tenant}",
                )
            derived = primitives.derive(
                index_key.reveal(), "index", index_context(ALGORITHM, self.identity, index, form)
            )
            found = self._index_subkeys.setdefault(key, Secret(derived))
        return found

    def _subkey(self, suite: int, version: int, context: str) -> Secret:
        key = (suite, version, context)
        found = self._subkeys.get(key)
        if found is None:
            derived = primitives.derive(
                self._keys[version].reveal(), "seal", column_context(suite, self.identity, context)
            )
            # setdefault is atomic: two threads that derive at once keep one of two equal secrets.
            found = self._subkeys.setdefault(key, Secret(derived))
        return found


def other_tokens(known: SlotRecord, slot: Slot) -> BlindIndexError:
    """Return the error for a slot that holds something else than is declared: nothing would be found."""
    holds = f"tokens made as {known.form!r} of the index {known.index!r}" if known.form else "nothing"
    return BlindIndexError(
        f"slot {known.number} of {known.context!r} holds {holds}, and {slot.form.text!r} of {slot.index!r} is declared "
        "now: nothing would be found",
        hint="give what is new a slot of its own, that nothing has stood in: BlindIndex(slot=…)",
    )


def no_active_key(tenant: str) -> KeyStateError:
    """Return the error for a tenant whose values can be opened only."""
    return KeyStateError(
        f"tenant {tenant!r} has no active data key, so nothing can be sealed for it",
        hint=f"make one: pii-vault key rotate {tenant}",
    )
