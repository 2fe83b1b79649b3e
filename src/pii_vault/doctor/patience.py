"""Ask again while AWS may still answer as before a change: with growing pauses, for as long as somebody wants to wait.

IAM and KMS are eventually consistent. A key policy takes some seconds, a new role or its trust policy up to minutes,
and grants, tags and aliases up to five (AWS KMS developer guide, "Eventual consistency").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..errors import ConfigurationError
from .findings import Finding, Verdict

MOST_SECONDS: Final = 300.0
"""How long it makes sense to wait: nothing in AWS takes longer to be seen."""

KEY_SECONDS: Final = 300.0
"""How long what a key allows may be what it was before. A policy takes seconds, but by an answer nobody can tell
whether a policy, a grant or a tag has let somebody in."""

ROLE_SECONDS: Final = 180.0
"""How long a role that was just made, or its trust policy, may be what it was before."""

_FIRST: Final = 1.0
_LONGEST: Final = 20.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that can be asked again.

    Attributes:
        check: The name of the finding.
        ask: Asks, and says what was found.
    """

    check: str
    ask: Callable[[], Finding]


class Patience:
    """For how long it is asked again, over all questions together.

    Args:
        seconds: 0 to 300; 0 for nobody having changed anything just now, so that a first answer counts.
        progress: Told how many findings have settled, of how many, before each pause.
        sleep: Waits.
        monotonic: Seconds of the monotonic clock.

    Raises:
        ConfigurationError: it is longer than anything takes.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        *,
        progress: Callable[[int, int], object] = lambda done, total: None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= seconds <= MOST_SECONDS:
            raise ConfigurationError(f"waiting makes sense for 0 to {MOST_SECONDS:g} seconds, not {seconds:g}")
        self._seconds: Final = seconds
        self._progress: Final = progress
        self._sleep: Final = sleep
        self._monotonic: Final = monotonic
        self._end: Final = monotonic() + seconds

    def settle(self, probes: Sequence[Probe]) -> list[Finding]:
        """Ask each question, and those that may still settle again until they do or the time is over."""
        found = [probe.ask() for probe in probes]
        pause = _FIRST
        while (left := self._end - self._monotonic()) > 0 and any(map(_is_open, found)):
            self._progress(sum(not _is_open(each) for each in found), len(found))
            self._sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST)
            found = [
                probe.ask() if _is_open(earlier) else earlier for probe, earlier in zip(probes, found, strict=True)
            ]
        return [self._said(each) for each in found]

    def _said(self, found: Finding) -> Finding:
        """Return a finding that is final, or says that it may not be."""
        if found.verdict is not Verdict.FAILED or not 0 < self._seconds < found.settles:
            return found
        longer = f"or ask again: after a change AWS may take {found.settles / 60:g} min to answer by it"
        return replace(found, verdict=Verdict.ASK_AGAIN, change=f"{found.change}; {longer}" if found.change else longer)


def _is_open(found: Finding) -> bool:
    return found.settles > 0 and found.verdict in (Verdict.FAILED, Verdict.NOT_MADE)
