"""The cache of clients: bounded, renewed in time, one maker at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pii_vault.errors import KmsDeniedError, KmsUnavailableError
from pii_vault.kms.aws_clients import ClientCache, ClientKey, Lease

KEY = ClientKey("eu-west-1", "role", "external")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes clients 1, 2, 3 … that are good for 900 seconds, or raises."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.made = 0
        self.error: Exception | None = None

    def __call__(self) -> Lease[int]:
        self.made += 1
        if self.error is not None:
            raise self.error
        return Lease.until(self.made, self.clock(), self.clock() + 900)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Maker:
    return Maker(clock)


@pytest.fixture
def cache(clock: Clock) -> ClientCache[int]:
    return ClientCache(capacity=3, clock=clock)


def test_a_client_is_kept_until_five_minutes_before_its_end(cache: ClientCache[int], clock: Clock, make: Maker) -> None:
    assert cache.get(KEY, make) == 1
    clock.now += 599
    assert cache.get(KEY, make) == 1
    clock.now += 1
    assert cache.get(KEY, make) == 2


def test_every_part_of_the_identity_counts(cache: ClientCache[int], make: Maker) -> None:
    others = [
        ClientKey("eu-west-2", "role", "external"),
        ClientKey("eu-west-1", "other", "external"),
        ClientKey("eu-west-1", "role", "other"),
        ClientKey("eu-west-1", "role", None),
    ]
    clients = {ClientCache[int](capacity=9).get(key, make) for key in [KEY, *others]}
    assert len(clients) == 5
    shared = ClientCache[int](capacity=9)
    assert len({shared.get(key, make) for key in [KEY, *others]}) == 5


def test_the_one_used_longest_ago_goes_first(cache: ClientCache[int], make: Maker) -> None:
    keys = [ClientKey(str(number), None, None) for number in range(4)]
    for key in keys[:3]:
        cache.get(key, make)
    cache.get(keys[0], make)
    cache.get(keys[3], make)
    assert len(cache) == 3
    assert cache.get(keys[0], make) == 1
    assert cache.get(keys[1], make) == 5


def test_an_outage_while_renewing_leaves_the_old_client_until_its_end(
    cache: ClientCache[int], clock: Clock, make: Maker
) -> None:
    cache.get(KEY, make)
    make.error = KmsUnavailableError("down")
    clock.now += 600
    assert cache.get(KEY, make) == 1
    assert cache.get(KEY, make) == 1
    assert make.made == 2
    clock.now += 30
    assert cache.get(KEY, make) == 1
    assert make.made == 3
    clock.now += 270
    with pytest.raises(KmsUnavailableError):
        cache.get(KEY, make)


def test_a_refusal_while_renewing_ends_the_old_client_at_once(
    cache: ClientCache[int], clock: Clock, make: Maker
) -> None:
    cache.get(KEY, make)
    make.error = KmsDeniedError("no")
    clock.now += 600
    for _ in range(2):
        with pytest.raises(KmsDeniedError):
            cache.get(KEY, make)


def test_nobody_waits_for_a_renewal(cache: ClientCache[int], clock: Clock, make: Maker) -> None:
    cache.get(KEY, make)
    clock.now += 600
    started, release = threading.Event(), threading.Event()

    def slow() -> Lease[int]:
        started.set()
        assert release.wait(10)
        return make()

    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.get, KEY, slow)
        assert started.wait(10)
        assert cache.get(KEY, make) == 1
        release.set()
        assert renewing.result() == 2
    assert cache.get(KEY, make) == 2


def test_a_slow_identity_does_not_stop_another(cache: ClientCache[int], make: Maker) -> None:
    started, release = threading.Event(), threading.Event()

    def slow() -> Lease[int]:
        started.set()
        assert release.wait(10)
        return make()

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(cache.get, KEY, slow)
        assert started.wait(10)
        assert cache.get(ClientKey("eu-west-2", None, None), make) == 1
        release.set()
        pending.result()


def test_threads_that_wait_share_the_failure_and_the_next_one_tries_again(cache: ClientCache[int], make: Maker) -> None:
    release, calls = threading.Event(), []

    def failing() -> Lease[int]:
        calls.append(1)
        assert release.wait(10)
        raise KmsUnavailableError("down", code="ConnectTimeoutError", hint="later")

    with ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(cache.get, KEY, failing) for _ in range(8)]
        while cache._slots[KEY].turns == 0 and pool._work_queue.qsize():
            pass
        threading.Event().wait(0.2)
        release.set()
        errors = [one.exception() for one in pending]
    assert len(calls) == 1
    assert {type(error) for error in errors} == {KmsUnavailableError}
    assert len({id(error) for error in errors}) == 8
    assert all(isinstance(error, KmsUnavailableError) and error.hint == "later" for error in errors)
    assert cache.get(KEY, make) == 1


def test_a_dropped_client_is_made_anew(cache: ClientCache[int], make: Maker) -> None:
    cache.get(KEY, make)
    cache.drop(KEY)
    cache.drop(KEY)
    assert cache.get(KEY, make) == 2
