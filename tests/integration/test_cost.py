"""The estimate of what the KMS costs is what requests over HTTP come to, when they are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.calendar import DAY, Calendar
from tests.support.clocks import Clocks
from tests.support.kms_http import Counter
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault import Vault
from pii_vault.cost import DAY_SECONDS, MONTH_DAYS, PER_ROTATION, Load, estimate

TENANTS, PROCESSES, TTL, PERIODS = 4, 3, 100.0, 20
NAMES = [f"tenant {number}" for number in range(TENANTS)]
MONTH = MONTH_DAYS * DAY_SECONDS


class Application:
    """Some tenants, and vaults that stand for processes: each has a keyring and clients of its own."""

    def __init__(self, url: str, kms: StrictKms, ttl: float, calendar: Calendar | None = None) -> None:
        self._url, self._kms, self._ttl = url, kms, ttl
        self.clocks = Clocks()
        self.now = calendar or Calendar()
        self.processes: list[Vault] = []
        operator = self._vault()
        operator.create_all()
        for name in NAMES:
            arn = kms.create_key()
            kms.allow(arn, VENDOR)
            operator.add_tenant(name, key=arn)
        operator.close()

    def start(self) -> None:
        self.stop()
        self.processes = [self._vault() for _ in range(PROCESSES)]

    def stop(self) -> None:
        for vault in self.processes:
            vault.close()

    def use_all(self) -> None:
        """Open a scope for each tenant in each process."""
        for vault in self.processes:
            for name in NAMES:
                with vault.tenant(name):
                    pass

    def _vault(self) -> Vault:
        return Vault(
            self._url,
            kms=self._kms.provider(attempts=1),
            platform_key=self._kms.platform_key(),
            ttl=self._ttl,
            clock=self.clocks.as_clock,
            now=self.now,
        )


@contextmanager
def application(url: str, kms: StrictKms, ttl: float = TTL) -> Iterator[Application]:
    made = Application(url, kms, ttl)
    yield made
    made.stop()


def requests(calls: Counter) -> int:
    """How many requests cost something: those to the KMS."""
    return sum(call.operation != "AssumeRole" for call in calls.calls)


def test_tenants_that_are_always_in_use_ask_as_often_as_reckoned(sqlite_url: str, strict_kms: StrictKms) -> None:
    reckoned = estimate(Load(TENANTS, PROCESSES), TTL)
    with application(sqlite_url, strict_kms) as app:
        app.start()
        with strict_kms.counting() as calls:
            app.use_all()
        assert requests(calls) == reckoned.cold_start_requests == TENANTS * PROCESSES
        with strict_kms.counting() as calls:
            for _ in range(100 * PERIODS):
                app.clocks.pass_(TTL / 100)
                app.use_all()
    # The last interval of each keyset is under way at the end: half an interval on average, and at most a whole one.
    open_intervals = TENANTS * PROCESSES
    passed = PERIODS * TTL
    measured = requests(calls)
    assert {call.operation for call in calls.calls} == {"Decrypt"}
    assert measured + open_intervals / 2 == pytest.approx(reckoned.rate * passed, rel=0.03)
    assert reckoned.rate * passed * 0.875 / 0.95 - open_intervals <= measured <= reckoned.most_rate * passed


def test_tenants_that_are_used_seldom_ask_less(sqlite_url: str, strict_kms: StrictKms) -> None:
    with application(sqlite_url, strict_kms) as app:
        app.start()
        with strict_kms.counting() as calls:
            for _ in range(5):
                app.use_all()
                app.clocks.pass_(2 * TTL)
    assert requests(calls) == 5 * TENANTS * PROCESSES
    assert requests(calls) < estimate(Load(TENANTS, PROCESSES), TTL).rate * 5 * 2 * TTL


def test_a_start_of_all_processes_adds_no_more_than_one_request_for_each_tenant_and_process(
    sqlite_url: str, strict_kms: StrictKms
) -> None:
    without, with_starts = (estimate(Load(TENANTS, PROCESSES, starts_per_day=each), TTL) for each in (0, 2))
    a_start = (with_starts.requests - without.requests) / (2 * MONTH_DAYS)
    with application(sqlite_url, strict_kms) as app, strict_kms.counting() as calls:
        for _ in range(3):
            app.start()
            app.use_all()
            app.clocks.pass_(TTL / 2)
            app.use_all()
    assert requests(calls) == pytest.approx(3 * a_start)


def test_without_a_time_to_live_every_scope_is_a_request(sqlite_url: str, strict_kms: StrictKms) -> None:
    with application(sqlite_url, strict_kms, ttl=0) as app:
        app.start()
        with strict_kms.counting() as calls:
            for _ in range(5):
                app.use_all()
    opened = 5 * TENANTS * PROCESSES
    assert requests(calls) == opened
    assert estimate(Load(TENANTS, PROCESSES, scopes_per_second=opened / MONTH), 0).requests == pytest.approx(opened)


def test_a_rotation_on_schedule_is_as_many_requests_as_reckoned(sqlite_url: str, strict_kms: StrictKms) -> None:
    with application(sqlite_url, strict_kms) as app:
        operator = app._vault()
        with strict_kms.counting() as calls:
            for days in (364, 1):  # stored a day ahead, then taken into use
                app.now.now += days * DAY
                operator.rotate_due()
        with strict_kms.counting() as late:
            app.now.now += 400 * DAY
            operator.rotate_due()
        operator.close()
    opens_the_audit_log = 1
    assert requests(calls) == TENANTS * PER_ROTATION + opens_the_audit_log
    assert requests(late) < requests(calls)
