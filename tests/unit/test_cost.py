"""The arithmetic of what the KMS costs; that it is true of requests over HTTP, integration tests show."""

from __future__ import annotations

import pytest

from pii_vault.cost import ANSWER_SECONDS, CHOICES, PER_ROTATION, Load, compared, estimate
from pii_vault.errors import ConfigurationError
from pii_vault.keyring.terms import AT_ONCE
from pii_vault.kms.pricing import FREE_REQUESTS, dollars, is_region, quota

MONTH = 30 * 86_400


def test_a_worked_example() -> None:
    found = estimate(Load(tenants=1000, processes=20), 300)
    assert found.rate == pytest.approx(20_000 / (300 * 0.875))
    assert found.most_rate == pytest.approx(20_000 / (300 * 0.8))
    assert found.requests == pytest.approx(found.rate * MONTH)
    assert (round(found.price, 2), round(found.most_price, 2)) == (592.40, 647.94)
    assert (found.cold_start_requests, found.cold_start_rate) == (20_000, 20_000)


@pytest.mark.parametrize("factor", [2, 10])
def test_requests_grow_with_tenants_and_processes_and_fall_with_the_time_to_live(factor: int) -> None:
    one = estimate(Load(10, 4), 300)
    for other in (estimate(Load(10 * factor, 4), 300), estimate(Load(10, 4 * factor), 300)):
        assert other.requests == pytest.approx(factor * one.requests)
    assert estimate(Load(10, 4), 300 * factor).requests == pytest.approx(one.requests / factor)


def test_rotations_and_starts_come_on_top() -> None:
    bare, full = (estimate(load, 300) for load in (Load(10, 4), Load(10, 4, rotation_days=15, starts_per_day=2)))
    rotations, starts = 10 * 2, 60
    assert full.requests - bare.requests == pytest.approx(rotations * PER_ROTATION + starts * 10 * 4)
    # A key that was rotated by hand is asked for by every process that meets a value of it.
    assert full.most_requests - bare.most_requests == pytest.approx(rotations * (PER_ROTATION + 4) + starts * 10 * 4)


def test_a_process_asks_no_faster_than_it_is_answered() -> None:
    assert estimate(Load(100_000, 2), 300).cold_start_rate == 2 * AT_ONCE / ANSWER_SECONDS


def test_without_a_time_to_live_scopes_are_what_counts() -> None:
    found = estimate(Load(10, 4, scopes_per_second=7), 0)
    assert (found.requests, found.most_requests) == (7 * MONTH, 7 * MONTH)
    assert (found.cold_start_requests, found.cold_start_rate) == (0, 7)
    with pytest.raises(ConfigurationError, match="how many scopes are opened a second"):
        estimate(Load(10, 4), 0)


def test_a_time_to_live_that_no_keyring_takes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        estimate(Load(10, 4), 43_201)


def test_others_stand_beside_the_chosen_time_to_live_and_none_stands_there_twice() -> None:
    assert [each.ttl for each in compared(Load(1, 1), 120)] == sorted({120, *CHOICES})
    assert [each.ttl for each in compared(Load(1, 1), 300)] == list(CHOICES)
    assert [each.ttl for each in compared(Load(1, 1, scopes_per_second=1), 300)] == [0, *CHOICES]


def test_nobody_in_use_costs_nothing() -> None:
    assert estimate(Load(0, 4), 300).price == 0


def test_the_first_requests_of_a_month_are_free() -> None:
    assert (dollars(0), dollars(FREE_REQUESTS)) == (0, 0)
    assert dollars(FREE_REQUESTS + 10_000) == pytest.approx(0.03)


def test_a_quota_is_that_of_the_region_and_the_lowest_where_none_is_named() -> None:
    regions = (None, "eu-west-3", "eu-central-1", "eu-west-1")
    assert [quota(each) for each in regions] == [10_000, 10_000, 20_000, 100_000]


def test_what_cannot_be_a_region_is_told_from_what_can() -> None:
    assert all(map(is_region, ("eu-west-1", "us-gov-east-1", "ap-southeast-7", "cn-north-1", "us-iso-east-1")))
    assert not any(map(is_region, ("", "Ireland", "eu", "eu-west", "EU-WEST-1", "eu-west-1a", "eu-west-1 ")))
