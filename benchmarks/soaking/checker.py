"""Judge a run from its time stamps alone. Knows neither the library nor the database.

An episode is the time in which one tenant's KMS key did not unwrap anything. Its two ends are stamped on the safe side:
`cut` after the last step that cut the tenant off, `lift` before the first step that lets it in again. So whatever the
KMS has unwrapped was sent before `cut`, and may be used until `cut` + bound.

A success counts as too late only if it *started* after `cut` + bound and ended before `lift`. The library looks at its
keys somewhere between the two stamps of an attempt. If the first one is too late already, so was the look, however long
the scheduler then kept the thread waiting: no allowance is needed and none is given. If only the second one is too
late, the stamps cannot tell when the look was; these are counted as `undecided`. An attempt that ended after `lift` may
have been let in by the KMS again.

The same way, a success is wrong if it started after this process had heard a refusal in this episode, or had evicted
the tenant in it: from then on it cannot have got any keys.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.soaking.journal import Kind, Outcome, Record


@dataclass(frozen=True)
class Episode:
    """Something that was done to one tenant's KMS key, and undone.

    Attributes:
        fault: Its class.
        tenant: The tenant's number.
        cut: When all of it was in force.
        lift: When it began to be undone.
        cuts: Whether nothing could be unwrapped meanwhile. If not, it is counted and not judged.
        refuses: Whether the KMS said no, so that a refusal can be told from an outage.
    """

    fault: str
    tenant: int
    cut: float
    lift: float
    cuts: bool = True
    refuses: bool = False


@dataclass
class _Trace:
    """What was seen of one episode."""

    last_start: float = -math.inf
    used_before: int = 0
    tried_after_bound: int = 0
    refused: dict[int, float] = field(default_factory=dict)
    evicted: dict[int, float] = field(default_factory=dict)


@dataclass
class FaultFindings:
    """What was seen of all episodes of a class.

    Attributes:
        episodes: How many there were.
        judged: How many of them tell something: the tenant was in use before, and was tried to be used after the bound.
        tried_after_bound: How many attempts there were after the bound and before the end, in all.
        max_time_to_dark: From the cut to the start of the last success, at most; of those that were judged.
        judges: Whether nothing could be unwrapped in them. If it could, they are counted only.
    """

    episodes: int = 0
    judged: int = 0
    tried_after_bound: int = 0
    max_time_to_dark: float | None = None
    judges: bool = True


@dataclass
class Findings:
    """What a run has shown.

    Attributes:
        attempts: How often anything was tried.
        operations: How often values were opened or sealed.
        opened: Values opened and right.
        sealed: Values sealed.
        evictions: How often a process was told to forget a tenant's keys.
        wrong_values: Values opened that are not what was written there.
        after_bound: Values opened or sealed too late.
        after_refusal: Values opened or sealed by a process that had heard that the KMS refuses.
        after_evict: Values opened or sealed by a process that had evicted the tenant, while nothing could be unwrapped.
        undecided: Successes that straddle the bound or the end of an episode.
        outcomes: How often what came of attempts.
        faults: What was seen by class of fault.
    """

    attempts: int = 0
    operations: int = 0
    opened: int = 0
    sealed: int = 0
    evictions: int = 0
    wrong_values: int = 0
    after_bound: int = 0
    after_refusal: int = 0
    after_evict: int = 0
    undecided: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    faults: dict[str, FaultFindings] = field(default_factory=dict)


def check(
    episodes: Sequence[Episode],
    journals: Sequence[Iterable[Record]],
    bound: float,
    faults: Mapping[str, bool] | None = None,
) -> Findings:
    """Judge what processes did while episodes went on.

    Args:
        episodes: All of them, in any order; those of one tenant do not overlap.
        journals: Of each process its records, in any order; each is read twice.
        bound: Seconds.
        faults: Classes to report on although they have no episode, and whether nothing can be unwrapped in them.
    """
    checker = _Checker(episodes, bound)
    for process, records in enumerate(journals):
        for record in records:
            checker.learn(process, record)
    for process, records in enumerate(journals):
        for record in records:
            checker.judge(process, record)
    return checker.conclude(faults or {})


class _Checker:
    def __init__(self, episodes: Sequence[Episode], bound: float) -> None:
        self._bound: Final = bound
        self._by_tenant: Final[Mapping[int, list[Episode]]] = _by_tenant(episodes)
        self._cuts: Final = {tenant: [each.cut for each in those] for tenant, those in self._by_tenant.items()}
        self._traces: Final = {id(each): _Trace() for each in episodes}
        self._findings: Final = Findings()

    def learn(self, process: int, record: Record) -> None:
        """Note when a process heard a refusal, or evicted a tenant, for the first time in an episode."""
        episode = self._around(record)
        if episode is None or record.end >= episode.lift:
            return
        trace = self._traces[id(episode)]
        if record.kind == Kind.EVICT:
            trace.evicted[process] = min(record.end, trace.evicted.get(process, math.inf))
        elif record.outcome == Outcome.DENIED and episode.refuses:
            trace.refused[process] = min(record.end, trace.refused.get(process, math.inf))

    def judge(self, process: int, record: Record) -> None:
        """Count an attempt, and compare it with the episode that it falls into."""
        findings = self._findings
        if record.kind == Kind.EVICT:
            findings.evictions += 1
            return
        findings.attempts += 1
        findings.outcomes[Outcome(record.outcome)] += 1
        findings.wrong_values += record.wrong
        values = record.right + record.wrong
        if values:
            findings.operations += 1
            if record.kind == Kind.SEAL:
                findings.sealed += record.right
            else:
                findings.opened += record.right
            self._note_use(record)
        episode = self._around(record)
        if episode is not None and episode.cuts:
            self._compare(process, record, values, episode, self._traces[id(episode)])

    def _compare(self, process: int, record: Record, values: int, episode: Episode, trace: _Trace) -> None:
        end_of_bound = episode.cut + self._bound
        decided = record.end < episode.lift
        if record.start > end_of_bound and decided and record.kind != Kind.FOREIGN:
            trace.tried_after_bound += 1
        if not values:
            return
        if not decided:
            self._findings.undecided += 1
            return
        trace.last_start = max(trace.last_start, record.start)
        if record.start > end_of_bound:
            self._findings.after_bound += values
        elif record.end > end_of_bound:
            self._findings.undecided += 1
        if record.start > trace.refused.get(process, math.inf):
            self._findings.after_refusal += values
        if record.start > trace.evicted.get(process, math.inf):
            self._findings.after_evict += values

    def conclude(self, faults: Mapping[str, bool]) -> Findings:
        found = self._findings.faults
        for name, cuts in faults.items():
            found[name] = FaultFindings(judges=cuts)
        for episode in (each for those in self._by_tenant.values() for each in those):
            trace = self._traces[id(episode)]
            fault = found.setdefault(episode.fault, FaultFindings(judges=episode.cuts))
            fault.episodes += 1
            fault.tried_after_bound += trace.tried_after_bound
            if trace.used_before and trace.tried_after_bound:
                fault.judged += 1
                dark = max(0.0, trace.last_start - episode.cut)
                fault.max_time_to_dark = max(dark, fault.max_time_to_dark or 0.0)
        return self._findings

    def _around(self, record: Record) -> Episode | None:
        """Return the episode in which an attempt started."""
        place = bisect_left(self._cuts.get(record.tenant, ()), record.start)
        episode = self._by_tenant[record.tenant][place - 1] if place else None
        return episode if episode is not None and record.start < episode.lift else None

    def _note_use(self, record: Record) -> None:
        """Note that the next episode's tenant was in use so shortly before that keys are in memory still."""
        place = bisect_left(self._cuts.get(record.tenant, ()), record.start)
        those = self._by_tenant.get(record.tenant, ())
        if place < len(those) and record.start > those[place].cut - self._bound:
            self._traces[id(those[place])].used_before += 1


def _by_tenant(episodes: Sequence[Episode]) -> dict[int, list[Episode]]:
    found: defaultdict[int, list[Episode]] = defaultdict(list)
    for episode in sorted(episodes, key=lambda each: each.cut):
        found[episode.tenant].append(episode)
    return dict(found)
