"""The judge of the soak, on logs that are made up: it finds what it is there for, and accuses nobody without proof."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.soaking.aftermath import is_sealed
from benchmarks.soaking.checker import Episode, Findings, check
from benchmarks.soaking.journal import Journal, JournalFile, Kind, Outcome, Record

BOUND = 8.0
CUT, LIFT = 100.0, 120.0
REVOKED = Episode("revoked", 1, CUT, LIFT, refuses=True)
SILENT = Episode("black_hole", 1, CUT, LIFT)


def opened(start: float, end: float | None = None, *, tenant: int = 1, right: int = 1, wrong: int = 0) -> Record:
    return Record(start, start + 0.1 if end is None else end, tenant, Kind.OPEN, Outcome.DONE, right, wrong)


def sealed(start: float, end: float) -> Record:
    return Record(start, end, 1, Kind.SEAL, Outcome.DONE, 1)


def failed(start: float, end: float, outcome: Outcome = Outcome.UNAVAILABLE) -> Record:
    return Record(start, end, 1, Kind.OPEN, outcome)


def evicted(start: float) -> Record:
    return Record(start, start + 0.01, 1, Kind.EVICT, Outcome.DONE)


def judged(*processes: list[Record], episode: Episode = SILENT) -> Findings:
    return check([episode], processes, BOUND)


def accusations(found: Findings) -> tuple[int, int, int]:
    return found.after_bound, found.after_refusal, found.after_evict


@pytest.mark.parametrize("episode", [REVOKED, SILENT], ids=["revoked", "silent"])
def test_a_value_opened_after_the_bound_is_counted(episode: Episode) -> None:
    found = judged([opened(99), opened(107.9), opened(108.001, right=3)], episode=episode)
    assert accusations(found) == (3, 0, 0)
    assert found.faults[episode.fault].max_time_to_dark == pytest.approx(8.001)


def test_a_value_sealed_after_the_bound_is_counted_whichever_process_did_it() -> None:
    assert accusations(judged([opened(99)], [sealed(119, 119.9)])) == (1, 0, 0)


def test_a_value_that_may_have_been_opened_in_time_is_undecided() -> None:
    # It started before the bound: its keys may have been looked at then, however long it took.
    found = judged([opened(107.999, 109)])
    assert (accusations(found), found.undecided) == ((0, 0, 0), 1)


def test_a_value_that_may_have_been_opened_with_keys_of_after_the_end_is_undecided() -> None:
    found = judged([opened(119.5, 120.5)])
    assert (accusations(found), found.undecided) == ((0, 0, 0), 1)
    assert accusations(judged([opened(120.1)])) == (0, 0, 0)


def test_what_another_tenant_does_is_no_concern_of_an_episode() -> None:
    found = judged([opened(110, tenant=2)])
    assert accusations(found) == (0, 0, 0)
    assert found.faults["black_hole"].judged == 0


def test_the_right_one_of_a_tenants_episodes_is_compared() -> None:
    later = Episode("throttled", 1, 200, 220)
    found = check([later, SILENT], [[opened(99), opened(150), opened(199), opened(205), opened(215)]], BOUND)
    assert accusations(found) == (1, 0, 0)
    assert found.faults["throttled"].max_time_to_dark == pytest.approx(15)
    assert found.faults["black_hole"].max_time_to_dark is None


def test_a_process_that_heard_a_refusal_opens_nothing_more_and_another_one_may() -> None:
    heard = failed(102, 102.5, Outcome.DENIED)
    assert accusations(judged([heard, opened(102.4), opened(102.6)], [opened(103)], episode=REVOKED)) == (0, 1, 0)


def test_an_outage_is_no_refusal() -> None:
    assert accusations(judged([failed(102, 102.5), opened(102.6)])) == (0, 0, 0)
    assert accusations(judged([failed(102, 102.5, Outcome.DENIED), opened(102.6)])) == (0, 0, 0)


def test_a_process_that_evicted_a_tenant_that_is_cut_off_opens_nothing_more_and_another_one_may() -> None:
    found = judged([evicted(99), opened(101), evicted(102), opened(102.005), opened(103)], [opened(104)])
    assert accusations(found) == (0, 0, 1)
    assert found.evictions == 2


def test_the_order_in_which_a_process_wrote_does_not_matter() -> None:
    assert accusations(judged([opened(103), evicted(102), opened(109)])) == (1, 0, 2)


def test_wrong_values_are_counted_wherever_they_are() -> None:
    found = judged([opened(50, right=2, wrong=1), opened(110, right=0, wrong=1)])
    assert (found.wrong_values, found.opened, found.after_bound) == (2, 2, 1)


def test_an_episode_that_nobody_could_have_noticed_proves_nothing() -> None:
    def how_many(*records: Record, episode: Episode = SILENT) -> int:
        return judged(list(records), episode=episode).faults["black_hole"].judged

    before, after = opened(99), failed(109, 110)
    assert how_many(before, after) == 1
    assert how_many(after) == how_many(before) == 0
    assert how_many(opened(91), after) == 0  # too long before: nobody had keys
    assert how_many(before, failed(107, 109)) == 0  # it need not have been refused
    assert how_many(before, failed(105, 106), episode=Episode("black_hole", 1, 100, 107)) == 0


def test_an_episode_in_which_keys_can_be_had_is_not_judged() -> None:
    slow = Episode("latency", 1, CUT, LIFT, cuts=False)
    found = judged([opened(99), opened(110)], episode=slow)
    assert accusations(found) == (0, 0, 0)
    assert (found.faults["latency"].episodes, found.faults["latency"].judges) == (1, False)


def test_a_class_without_an_episode_is_reported() -> None:
    found = check([], [], BOUND, {"revoked": True})
    assert (found.faults["revoked"].episodes, found.faults["revoked"].judged) == (0, 0)


@pytest.mark.parametrize(
    "stored",
    [b"plaintext of acme", "plaintext of acme", b"\xfa\x00 plaintext of acme", b"\xfb\x00", b"", None, 7],
    ids=repr,
)
def test_a_stored_value_that_is_not_sealed_is_found(stored: object) -> None:
    assert not is_sealed(stored)


def test_a_sealed_value_is_none_of_these() -> None:
    assert is_sealed(bytes.fromhex("FA489945A00001010000B5B279D39A632A719CFC3681807FAE3EF66D625041CC"))


def test_a_journal_is_read_as_it_was_written_also_by_a_process_that_was_killed(tmp_path: Path) -> None:
    records = [opened(1.25, 2.5, tenant=65_535, right=3, wrong=2), failed(3, 4, Outcome.UNEXPECTED)]
    journal = Journal(tmp_path / "0")
    for record in records:
        journal.write(record)
    journal.close()
    with (tmp_path / "0").open("ab") as file:
        file.write(b"half a record")
    written = JournalFile(tmp_path / "0")
    assert list(written) == list(written) == records
    assert list(JournalFile(tmp_path / "never")) == []
