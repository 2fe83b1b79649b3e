"""An allowance gives each use once, whatever threads do, and ends when it is spent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pii_vault.allowance import FIRST, LARGEST, Allowance


def granted(count: int) -> Allowance:
    allowance = Allowance(1)
    allowance.grant(count)
    return allowance


def test_it_gives_as_many_fresh_ivs_as_were_granted_and_no_more() -> None:
    allowance = granted(1000)
    ivs = list(allowance.ivs)
    assert len(ivs) == len(set(ivs)) == 1000
    assert {len(iv) for iv in ivs} == {12}
    assert allowance.left == 0
    assert next(allowance.ivs, None) is None


def test_nothing_is_left_before_the_first_grant() -> None:
    allowance = Allowance(1)
    assert allowance.left == 0
    assert not allowance.enough(0)
    assert next(allowance.ivs, None) is None


def test_threads_that_spend_together_spend_what_was_granted() -> None:
    allowance = granted(200_000)
    start = threading.Barrier(8)

    def spend(_: int) -> list[bytes]:
        start.wait()
        return list(allowance.ivs)

    with ThreadPoolExecutor(8) as pool:
        ivs = [iv for mine in pool.map(spend, range(8)) for iv in mine]
    assert len(ivs) == len(set(ivs)) == 200_000


def test_a_piece_is_asked_for_anew_at_half() -> None:
    allowance = granted(100)
    for _ in range(50):
        assert allowance.enough(1)
        next(allowance.ivs)
    assert allowance.enough(50)
    next(allowance.ivs)
    assert not allowance.enough(1)


def test_a_statement_that_needs_more_than_is_left_has_not_enough() -> None:
    allowance = granted(100)
    assert allowance.enough(100)
    assert not allowance.enough(101)


def test_what_is_owed_is_asked_about_every_time() -> None:
    allowance = granted(100)
    allowance.owed = 1
    assert not allowance.enough(0)


def test_pieces_double_up_to_the_largest_and_are_never_smaller_than_what_is_needed() -> None:
    allowance = Allowance(1)
    sizes = []
    for _ in range(13):
        sizes.append(allowance.size(1))
        allowance.grant(sizes[-1])
    assert sizes == [min(FIRST * 2**n, LARGEST) for n in range(13)]
    assert allowance.size(LARGEST + 1) == LARGEST + 1


def test_what_was_left_of_a_piece_goes_on_for_whoever_holds_it() -> None:
    allowance = granted(10)
    held = allowance.ivs
    next(held)
    allowance.grant(5)
    assert len(list(held)) == 9
    assert len(list(allowance.ivs)) == 5


def test_it_shows_no_iv() -> None:
    assert repr(granted(3)) == "<Allowance of 3 more uses of data key version 1>"


@pytest.mark.parametrize("need", [0, 1])
def test_an_empty_allowance_is_never_enough(need: int) -> None:
    allowance = granted(1)
    next(allowance.ivs)
    assert not allowance.enough(need)


def test_uses_can_be_taken_together_until_nothing_is_left() -> None:
    allowance = granted(1000)
    ivs = [*allowance.take(700), next(allowance.ivs), *allowance.take(0), *allowance.take(700)]
    assert len(ivs) == len(set(ivs)) == 1000
    assert {len(iv) for iv in ivs} == {12}
    assert (allowance.left, allowance.take(1), next(allowance.ivs, None)) == (0, [], None)


def test_threads_that_take_together_take_what_was_granted() -> None:
    allowance, start = granted(100_000), threading.Barrier(8)

    def take(_: int) -> list[bytes]:
        start.wait()
        return [iv for _ in range(200) for iv in allowance.take(97)]

    with ThreadPoolExecutor(8) as pool:
        ivs = [iv for each in pool.map(take, range(8)) for iv in each]
    assert len(ivs) == len(set(ivs)) == 100_000
