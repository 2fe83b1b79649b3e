"""What is done to tenants' KMS keys, and when: by threads beside the KMS, which stamp each change.

A tormentor has some tenants of its own and goes round them, one at a time, with one class of fault after the other.
Most episodes last longer than the bound; the others end before it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.soaking.checker import Episode
from benchmarks.soaking.plan import READ_TIMEOUT, Plan
from tests.support.strict_kms import FaultRule, StrictKms

Undo = Callable[[], None]
Step = Callable[[StrictKms, str, random.Random], Undo]
"""Do something to a key; return what undoes it."""

LATE: Final = 1.0
"""How late late answers are: within the library's patience."""


@dataclass(frozen=True)
class Fault:
    """A class of fault.

    Attributes:
        name: The class.
        step: What begins it.
        cuts: Whether nothing can be unwrapped from then on.
        refuses: Whether the KMS says no.
        before: What happens a moment before it.
    """

    name: str
    step: Step
    cuts: bool = True
    refuses: bool = False
    before: Step | None = None


def _rule(**fault: Any) -> Step:
    def step(kms: StrictKms, arn: str, _random: random.Random) -> Undo:
        kms.script(FaultRule(key=arn, times=None, **fault))
        return lambda: kms.clear_script(key=arn)

    return step


def _disable(kms: StrictKms, arn: str, _random: random.Random) -> Undo:
    kms.disable(arn)
    return lambda: kms.enable(arn)


def _deny(kms: StrictKms, arn: str, _random: random.Random) -> Undo:
    before = kms.key_policy(arn)
    kms.deny_all(arn)
    return lambda: kms.put_key_policy(arn, before)


def _delete(kms: StrictKms, arn: str, _random: random.Random) -> Undo:
    kms.schedule_deletion(arn)

    def undo() -> None:
        kms.cancel_deletion(arn)
        kms.enable(arn)

    return undo


def _revoke(kms: StrictKms, arn: str, chance: random.Random) -> Undo:
    """One of the ways in which a customer revokes."""
    return chance.choice((_disable, _deny, _delete))(kms, arn, chance)


def _late(answer: dict[str, Any]) -> dict[str, Any]:
    time.sleep(LATE)
    return answer


# For the library this is a KMS that never answers: it has given up when the connection is closed. One that really waits
# for ever would keep a thread of the server for each request.
_black_hole: Final = _rule(latency=READ_TIMEOUT + 1, drop=True)


def _revoke_unheard(kms: StrictKms, arn: str, chance: random.Random) -> Undo:
    silence, revoked = _black_hole(kms, arn, chance), _revoke(kms, arn, chance)

    def undo() -> None:
        revoked()
        silence()

    return undo


def _silence_instead(kms: StrictKms, arn: str, chance: random.Random) -> Undo:
    """A black hole in place of what is done to the key already."""
    kms.clear_script(key=arn)
    return _black_hole(kms, arn, chance)


# The KMS has unwrapped, then the tenant is cut off, and only then the answer arrives: what counts is when it was asked.
_answers_late: Final = _rule(alter=_late)

FAULTS: Final = (
    Fault("revoked", _revoke, refuses=True),
    Fault("revoked_answers_late", _revoke, refuses=True, before=_answers_late),
    # The customer revokes while the network is down: no refusal is heard.
    Fault("revoked_unheard", _revoke_unheard),
    Fault("throttled", _rule(error="ThrottlingException")),
    Fault("server_error", _rule(error="KMSInternalException")),
    Fault("black_hole", _black_hole),
    Fault("black_hole_answers_late", _silence_instead, before=_answers_late),
    Fault("answers_too_late", _rule(latency=READ_TIMEOUT + 0.5)),
    # Within the library's patience, so the tenant need not go dark.
    Fault("latency", _rule(latency=LATE), cuts=False),
)


class Chaos:
    """All tormentors of a run.

    Args:
        plan: The options.
        kms: Whose keys they torment.
        keys: Each tenant's ARN.
        watched: Where they say which tenants something is done to, for the workers.
    """

    def __init__(self, plan: Plan, kms: StrictKms, keys: Sequence[str], watched: MutableSequence[int]) -> None:
        self.episodes: Final[list[Episode]] = []
        self._ended: Final = threading.Event()
        count = min(plan.tenants, max(len(FAULTS), plan.tenants // 10))
        self._tormentors: Final = [
            _Tormentor(plan, kms, keys, watched, (number, count), self._ended, self.episodes) for number in range(count)
        ]

    def start(self) -> None:
        for tormentor in self._tormentors:
            tormentor.start()

    def stop(self) -> list[Episode]:
        """Undo what is going on, and return all that was."""
        self._ended.set()
        for tormentor in self._tormentors:
            tormentor.join()
        return self.episodes


class _Tormentor(threading.Thread):
    def __init__(
        self,
        plan: Plan,
        kms: StrictKms,
        keys: Sequence[str],
        watched: MutableSequence[int],
        place: tuple[int, int],
        stop: threading.Event,
        episodes: list[Episode],
    ) -> None:
        super().__init__(daemon=True)
        number, count = place
        self._plan: Final = plan
        self._kms: Final = kms
        self._keys: Final = keys
        self._watched: Final = watched
        self._ended: Final = stop
        self._episodes: Final = episodes
        self._random: Final = random.Random(f"{plan.seed} {number}")
        self._tenants: Final = list(range(number, plan.tenants, count))
        self._faults: Final = [FAULTS[(number + each) % len(FAULTS)] for each in range(len(FAULTS))]

    def run(self) -> None:
        turn, lifted = 0, dict.fromkeys(self._tenants, 0.0)
        while not self._ended.is_set():
            tenant, fault = self._tenants[turn % len(self._tenants)], self._faults[turn % len(self._faults)]
            # Later than this after its last episode no process remembers a refusal of that.
            self._ended.wait(max(0.0, lifted[tenant] + self._plan.ttl + 1 - time.monotonic()))
            self._watched[tenant] = 1
            self._ended.wait(self._random.uniform(0.5, 1.5))
            if not self._ended.is_set():
                self._torment(tenant, fault, self._length(turn))
            self._watched[tenant] = 0
            lifted[tenant] = time.monotonic()
            turn += 1

    def _length(self, turn: int) -> float:
        """Longer than the bound at first, and in three of four cases."""
        bound = self._plan.bound
        if turn and self._random.random() < 0.25:
            return self._random.uniform(0.1, bound)
        # Long enough for two calls that nobody answers: who is told of a failure from memory is told at once.
        return bound + self._random.uniform(2.0, 3.0) * READ_TIMEOUT

    def _torment(self, tenant: int, fault: Fault, seconds: float) -> None:
        arn, undo = self._keys[tenant], []
        if fault.before is not None:
            undo.append(fault.before(self._kms, arn, self._random))
            self._ended.wait(1.2 * LATE)  # answers that are under way are late ones then
        undo.append(fault.step(self._kms, arn, self._random))
        cut = time.monotonic()
        self._ended.wait(seconds)
        lift = time.monotonic()
        for each in reversed(undo):
            each()
        self._episodes.append(Episode(fault.name, tenant, cut, lift, fault.cuts, fault.refuses))
