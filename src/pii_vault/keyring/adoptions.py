"""How far the adoption of a column is, as this process knows it: asked for when a statement reads such a column.

The key store is asked again after a few seconds of use. When it cannot be, what is known goes on: a value is opened
only with a keyset, and that has its own end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import KeyStoreError
from ..keystore import KeyStore
from ..stages import AdoptionRecord
from .terms import LOOK_AGAIN_SECONDS, NOTICE_SECONDS


class Adoptions:
    """The last steps of all adoptions.

    Args:
        store: Where they are kept.
        monotonic: Seconds of the monotonic clock.
    """

    def __init__(self, store: KeyStore, monotonic: Callable[[], float]) -> None:
        self._store: Final = store
        self._monotonic: Final = monotonic
        self._known: dict[str, AdoptionRecord] = {}
        self._due_at = float("-inf")
        self._again_at = float("-inf")

    def is_due(self) -> bool:
        """Say whether it is time to `look`."""
        return self._monotonic() >= self._due_at

    def look(self) -> None:
        """Ask the key store where adoptions stand. Two threads at once ask twice and learn the same.

        Raises:
            KeyStoreError: it cannot be asked, and never was.
        """
        never = self._due_at == float("-inf")
        until = self._monotonic() + NOTICE_SECONDS
        try:
            known = {each.context: each for each in self._store.adoptions()}
        except KeyStoreError:
            if never:
                raise
            self._due_at = until
            return
        self._known, self._due_at = known, until

    def may_look_again(self) -> bool:
        """Say whether somebody may `look_again` who would refuse a read for what is known."""
        return self._monotonic() >= self._again_at

    def look_again(self) -> None:
        """Ask the key store out of turn. See `look`."""
        self._again_at = self._monotonic() + LOOK_AGAIN_SECONDS
        self.look()

    def known(self, context: str) -> AdoptionRecord | None:
        """Return the last step of an adoption as it was when somebody looked; None where there was none."""
        return self._known.get(context)
