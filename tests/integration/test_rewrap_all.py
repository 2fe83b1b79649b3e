"""Re-wrap many tenants in one go, or one tenant from several places at once, while others write and read."""

import base64
import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from operator import ge
from typing import Any

import pytest
from sqlalchemy import event, update
from tests.integration.test_rewrap import (
    OURS,
    THEIRS,
    Application,
    asked,
    aws,
    customer,
    join,
    lets_in,
    local,
    move,
    start,
)
from tests.support.command import SOURCES
from tests.support.strict_kms import VENDOR, FaultRule

from pii_vault import LocalKms, Vault
from pii_vault.context import kms_context
from pii_vault.errors import ConfigurationError
from pii_vault.keyring import kms_key
from pii_vault.keys import KEK_PURPOSE
from pii_vault.keystore.schema import keks
from pii_vault.kms import KmsKey
from pii_vault.lifecycle.rewrap import Way

__all__ = ["aws", "local", "start"]


@contextmanager
def writing(*processes: Application) -> Iterator[Callable[[], None]]:
    """Let a thread for each process write and read all the time; give what waits until each has done both once more."""
    stop, moved = threading.Event(), threading.Condition()
    written = [0] * len(processes)
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            while not stop.is_set():
                email = f"{index}-{written[index]}@example.com"
                processes[index].write(email)
                assert email in processes[index].read()
                with moved:
                    written[index] += 1
                    moved.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            with moved:
                errors.append(error)
                moved.notify_all()

    def once_more() -> None:
        with moved:
            # What is under way has begun before now, so the one after it counts.
            goal = [count + 2 for count in written]
            assert moved.wait_for(lambda: errors or all(map(ge, written, goal)), timeout=60)
            assert errors == []

    with ThreadPoolExecutor(len(processes)) as pool:
        for index in range(len(processes)):
            pool.submit(work, index)
        try:
            yield once_more
        finally:
            stop.set()
    assert errors == []
    expected = {f"{index}-{number}@example.com" for index, count in enumerate(written) for number in range(count)}
    found = processes[0].restarted().read()
    assert (set(found), len(found)) == (expected, len(expected))


def test_writers_in_aws_notice_nothing_of_a_tenant_that_moves_to_and_fro(aws: Application) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    lets_in(aws.kms, home, away)
    with writing(aws.restarted(ttl=0), aws.restarted(ttl=0), aws.restarted()) as once_more:
        for key, new_kek in itertools.product((away, home), (False, True)):
            once_more()
            move(aws, key, new_kek=new_kek)
        once_more()
    aws.check()


def test_writers_notice_nothing_of_twenty_moves_with_rotations_between_them(local: Application) -> None:
    keys = [local.kms.create_key(), local.kms.create_key()]
    join(local, KmsKey(keys[0]))
    with writing(local.restarted(ttl=0), local.restarted()) as once_more:
        for number in range(20):
            local.vault.rewrap("acme", to=keys[(number + 1) % 2], new_kek=number % 3 == 0)
            if number % 5 == 0:
                local.vault.rotate("acme")
                once_more()
        once_more()
    local.check()


# One tenant, from several places at once.

OPERATIONS: dict[str, Callable[[Vault, str, list[str]], object]] = {
    "to the second key": lambda vault, name, keys: vault.rewrap(name, to=keys[1], shared_key=True),
    "to the third key": lambda vault, name, keys: vault.rewrap(name, to=keys[2], shared_key=True),
    "new kek": lambda vault, name, keys: vault.rewrap(name, to=keys[1], new_kek=True, shared_key=True),
    "rotation": lambda vault, name, keys: vault.rotate(name),
}


@contextmanager
def between_transactions(vault: Vault, number: int, act: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Let something happen before the n-th transaction of a vault begins; give what tells whether it did."""
    begun = itertools.count(1)
    happened = threading.Event()

    def begin(_: object) -> None:
        if next(begun) == number:
            happened.set()
            act()

    event.listen(vault._engine, "begin", begin)
    try:
        yield happened.is_set
    finally:
        event.remove(vault._engine, "begin", begin)


@pytest.mark.parametrize("slower", OPERATIONS)
def test_whatever_comes_between_two_transactions_of_a_re_wrap_or_a_rotation_both_end_well(
    local: Application, slower: str
) -> None:
    keys = [local.kms.create_key() for _ in range(3)]
    other = local.restarted()
    for faster, operation in OPERATIONS.items():
        rotations = [slower, faster].count("rotation")
        if rotations == 2:
            continue
        for number in itertools.count(1):
            name = f"{faster} {number}"
            join(local, KmsKey(keys[0]), name, shared_key=True)
            local.write("ada@example.com", name)
            act = partial(operation, other.vault, name, keys)
            with between_transactions(local.vault, number, act) as happened:
                OPERATIONS[slower](local.vault, name, keys)
            if not happened():
                assert number > 2
                break
            local.check(name)
            assert len(local.records(name).data_keys) == 1 + rotations
            assert local.restarted().read(name) == ["ada@example.com"]


def test_re_wraps_and_rotations_of_one_tenant_at_the_same_time_end_with_one_kek(aws: Application) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    lets_in(aws.kms, home, away)
    aws.write("ada@example.com")
    actions: list[Callable[[Application], object]] = [
        lambda process: move(process, away),
        lambda process: move(process, home),
        lambda process: move(process, away, new_kek=True),
        lambda process: process.vault.rotate("acme"),
    ]
    processes = [aws.restarted() for _ in actions]
    together = threading.Barrier(len(actions))

    def act(number: int) -> None:
        for _ in range(3):
            together.wait(timeout=60)
            actions[number](processes[number])

    with ThreadPoolExecutor(len(actions)) as pool:
        for done in [pool.submit(act, number) for number in range(len(actions))]:
            done.result()
    aws.check()
    assert aws.restarted().read() == ["ada@example.com"]
    assert aws.records().kek.generation == 4


def test_a_wrapping_that_somebody_changed_in_between_is_not_overwritten_but_moved_itself(aws: Application) -> None:
    home, away = join(aws, customer(aws.kms)), customer(aws.kms, THEIRS)
    lets_in(aws.kms, away, home)
    aws.write("ada@example.com")
    records = aws.records()
    context = kms_context(records.tenant.identity, KEK_PURPOSE, 1)
    kek = kms_key(records.tenant, records.kek)
    another = aws.vault._parts.kms.rewrap(kek, kek, records.kek.wrapped, context)

    def meanwhile(answer: dict[str, Any]) -> dict[str, Any]:
        with aws.engine.begin() as connection:
            connection.execute(update(keks).values(wrapped=another.blob))
        return answer

    aws.kms.script(FaultRule("ReEncrypt", key=home.arn, alter=meanwhile))
    with aws.kms.counting() as calls:
        move(aws, away)
    sent = [call.parameters["CiphertextBlob"] for call in calls.matching("ReEncrypt", key=home.arn)]
    assert [base64.b64decode(blob) for blob in sent] == [records.kek.wrapped, another.blob]
    assert asked(calls.calls) == ["DescribeKey", "ReEncrypt", "ReEncrypt"] * 2
    aws.check()
    assert aws.restarted().read() == ["ada@example.com"]


# Whose KMS key it is.


def test_a_kms_key_that_is_another_tenants_is_refused_before_any_call_unless_it_is_said_to_be_shared(
    aws: Application,
) -> None:
    key = join(aws, customer(aws.kms))
    aws.vault.add_tenant("glob")
    refused: list[Callable[[], object]] = [
        lambda: join(aws, key, "third"),
        lambda: move(aws, key, "glob"),
        lambda: move(aws, key, "glob", new_kek=True),
        lambda: move(aws, key, "glob", dry_run=True),
        # By another role it is the same key.
        lambda: aws.vault.add_tenant("third", key=key.arn),
    ]
    key_store = aws.key_store()
    for use in refused:
        with aws.kms.counting() as calls, pytest.raises(ConfigurationError, match="that of tenant 'acme'"):
            use()
        assert calls.count() == 0
    assert aws.key_store() == key_store
    join(aws, key, "third", shared_key=True)
    lets_in(aws.kms, key, KmsKey(aws.vault.platform_key))
    move(aws, key, "glob", shared_key=True)
    for name in ("acme", "glob", "third"):
        aws.check(name)


def test_the_platforms_key_is_nobodys_own(local: Application) -> None:
    local.vault.add_tenant("acme")
    local.vault.add_tenant("glob")
    local.vault.add_tenant("third", key=local.vault.platform_key)
    own = local.kms.create_key()
    local.vault.rewrap("acme", to=own)
    local.vault.rewrap("acme", to=local.vault.platform_key)
    # What a tenant has left may become another's.
    local.vault.rewrap("glob", to=own)
    assert {name: local.records(name).kek.kms_key_arn for name in local.vault.tenants()} == {
        "acme": local.vault.platform_key,
        "glob": own,
        "third": local.vault.platform_key,
    }


# Many tenants.


def managed(application: Application, count: int) -> list[str]:
    """Register tenants under the platform's key, and rotate that."""
    names = [f"t{number:02}" for number in range(count)]
    for name in names:
        application.vault.add_tenant(name)
    platform = application.vault.platform_key
    rotate = application.kms.rotate_key if isinstance(application.kms, LocalKms) else application.kms.rotate
    rotate(platform)
    return names


def all_open(application: Application) -> None:
    """See that each tenant's records are whole, and that a process that begins now unwraps its keys."""
    process = application.restarted()
    for name in process.vault.tenants():
        records = process.records(name)
        assert {key.kek_generation for key in records.keys} == {records.kek.generation}
        assert process.vault.audit.verify(name).problems == ()
        with process.vault.tenant(name):
            pass


def test_forty_tenants_under_one_kms_key_cost_one_look_at_it_and_two_re_encryptions_each(aws: Application) -> None:
    names = managed(aws, 40)
    told: list[tuple[int, int]] = []
    with aws.kms.counting() as calls:
        moved = aws.vault.rewrap_all(progress=lambda done, total: told.append((done, total)))
    assert Counter(call.operation for call in calls.calls) == {"DescribeKey": 1, "ReEncrypt": 80}
    assert [(each.tenant, each.way, each.failure) for each in moved] == [
        (name, Way.RE_ENCRYPTED, None) for name in names
    ]
    assert told == [(done, 40) for done in range(41)]
    all_open(aws)
    key_store = aws.key_store()
    with aws.kms.counting() as calls:
        again = aws.vault.rewrap_all(rate=1000)
    assert Counter(call.operation for call in calls.calls) == {"DescribeKey": 1}
    assert {each.way for each in again} == {Way.UNCHANGED}
    assert aws.key_store() == key_store


def test_workers_that_begin_together_look_at_a_kms_key_once(aws: Application) -> None:
    managed(aws, 4)
    aws.kms.script(FaultRule("DescribeKey", latency=0.3, times=None))
    with aws.kms.counting() as calls:
        aws.vault.rewrap_all(rate=1000)
    assert asked(calls.calls).count("DescribeKey") == 1


def test_tenants_whose_kms_refuses_are_named_and_the_rest_is_done(aws: Application) -> None:
    names = managed(aws, 4)
    own = {name: join(aws, customer(aws.kms, account), name) for name, account in (("acme", OURS), ("glob", THEIRS))}
    for key in own.values():
        aws.kms.rotate(key.arn)
    aws.kms.disable(own["acme"].arn)
    policy = aws.kms.key_policy(own["glob"].arn)
    aws.kms.deny_all(own["glob"].arn)
    before = {name: aws.records(name).kek for name in own}
    moved = {each.tenant: each for each in aws.vault.rewrap_all(rate=1000)}
    assert {name for name, each in moved.items() if each.way is None} == set(own)
    assert "is Disabled" in str(moved["acme"].failure)
    assert "AccessDeniedException" in str(moved["glob"].failure)
    assert aws.events("glob")[-1] == ("kms.refused", "DescribeKey: AccessDeniedException")
    for name, key in own.items():
        assert key.arn in str(moved[name].failure)
        assert moved[name].kms_key_arn == key.arn
        assert aws.records(name).kek == before[name]
    assert {moved[name].way for name in names} == {Way.RE_ENCRYPTED}

    aws.kms.enable(own["acme"].arn)
    aws.kms.put_key_policy(own["glob"].arn, policy)
    with aws.kms.counting() as calls:
        again = {each.tenant: each.way for each in aws.vault.rewrap_all(rate=1000)}
    assert again == dict.fromkeys(names, Way.UNCHANGED) | dict.fromkeys(own, Way.RE_ENCRYPTED)
    assert asked(calls.calls).count("ReEncrypt") == 4
    all_open(aws)


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
def test_those_under_one_kms_key_are_put_under_another_and_nobody_else(aws: Application, new_kek: bool) -> None:
    names, platform = managed(aws, 3), aws.vault.platform_key
    own = join(aws, customer(aws.kms)).arn
    other = aws.kms.create_key(VENDOR.split(":")[4])
    aws.kms.allow(other, VENDOR)
    acme = aws.records("acme")
    for under, to in ((platform, other), (other, platform)):
        moved = aws.vault.rewrap_all(under=under, to=to, new_kek=new_kek, shared_key=True, rate=1000, workers=1)
        assert [(each.tenant, each.failure, each.kms_key_arn) for each in moved] == [(name, None, to) for name in names]
        assert aws.records("acme") == acme
        assert aws.vault.rewrap_all(under=under, to=to, new_kek=new_kek) == []
        all_open(aws)
    assert aws.vault.rewrap_all(under=own)[0].tenant == "acme"


def test_a_move_to_one_kms_key_that_was_stopped_goes_on_with_the_tenants_that_are_left(local: Application) -> None:
    names, other = managed(local, 4), local.kms.create_key()
    local.vault.rewrap(names[0], to=other)
    platform = local.vault.platform_key
    with pytest.raises(ConfigurationError, match=f"KMS key {other} would be that of 4 tenants"):
        local.vault.rewrap_all(under=platform, to=other)
    moved = local.vault.rewrap_all(under=platform, to=other, shared_key=True, rate=1000, workers=1)
    assert [(each.tenant, each.failure) for each in moved] == [(name, None) for name in names[1:]]
    all_open(local)


def test_many_tenants_are_not_put_under_a_kms_key_that_is_another_customers(local: Application) -> None:
    managed(local, 2)
    own = join(local, KmsKey(local.kms.create_key())).arn
    key_store = local.key_store()
    with pytest.raises(ConfigurationError, match="would be that of 3 tenants, 'acme' and"):
        local.vault.rewrap_all(under=local.vault.platform_key, to=own)
    assert local.key_store() == key_store


def test_all_tenants_are_not_put_under_one_kms_key(local: Application) -> None:
    managed(local, 2)
    key_store = local.key_store()
    with pytest.raises(ConfigurationError, match="every customer's key"):
        local.vault.rewrap_all(to=local.kms.create_key())
    for wrong in ({"rate": 0}, {"rate": -1}, {"workers": 0}):
        with pytest.raises(ConfigurationError):
            local.vault.rewrap_all(**wrong)
    assert local.key_store() == key_store


def test_a_dry_run_of_all_says_what_would_be_and_changes_nothing(local: Application) -> None:
    names, key_store = managed(local, 3), None
    local.kms.disable_key(join(local, KmsKey(local.kms.create_key())).arn)
    key_store = local.key_store()
    planned = local.vault.rewrap_all(rate=1000, dry_run=True)
    assert local.key_store() == key_store
    assert planned == local.vault.rewrap_all(rate=1000)
    assert {each.tenant: each.way for each in planned} == {"acme": None} | dict.fromkeys(names, Way.RE_ENCRYPTED)


def test_no_more_tenants_a_second_are_begun_than_is_wished(local: Application) -> None:
    managed(local, 10)
    began = time.monotonic()
    moved = local.vault.rewrap_all(rate=20)
    assert time.monotonic() - began >= 0.4
    assert {each.way for each in moved} == {Way.RE_ENCRYPTED}


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pii-vault-rewrap")]


def test_as_many_tenants_as_there_are_workers_are_under_way_together_and_no_more(aws: Application) -> None:
    managed(aws, 12)
    four, seen = threading.Barrier(4), []

    def meet(answer: dict[str, Any]) -> dict[str, Any]:
        four.wait(timeout=60)
        seen.append(len(workers()))
        return answer

    aws.kms.script(FaultRule("ReEncrypt", times=None, alter=meet))
    moved = aws.vault.rewrap_all(workers=4, rate=1000)
    assert {each.way for each in moved} == {Way.RE_ENCRYPTED}
    assert max(seen) == 4
    aws.kms.clear_script()
    all_open(aws)


def test_an_interrupted_call_leaves_whole_tenants_and_the_next_one_goes_on(local: Application) -> None:
    names = managed(local, 14)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.vault.rewrap_all(rate=100, progress=interrupt)
    assert workers() == []
    all_open(local)
    again = {each.tenant: each.way for each in local.vault.rewrap_all(rate=1000)}
    assert sorted(again) == names
    assert 3 <= list(again.values()).count(Way.UNCHANGED) < 14
    assert set(again.values()) == {Way.UNCHANGED, Way.RE_ENCRYPTED}
    all_open(local)


_KILLED = """
import sys
from pii_vault import LocalKms, Vault
url, kms_file, new_kek = sys.argv[1:]
vault = Vault(url, kms=LocalKms(kms_file))
vault.rewrap_all(rate=40, new_kek=new_kek == "new", progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
def test_a_process_that_is_killed_in_the_middle_leaves_whole_tenants(local: Application, new_kek: bool) -> None:
    names = managed(local, 10)
    for name in names:
        local.write(f"{name}@example.com", name)
    url = local.engine.url.render_as_string(hide_password=False)
    arguments = [sys.executable, "-c", _KILLED, url, str(local.kms._path), "new" if new_kek else "same"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": SOURCES}) as process:
        assert process.stdout is not None
        assert [next(process.stdout) for _ in range(4)][-1] == "3\n"
        process.kill()
    assert process.returncode == -9
    all_open(local)
    generations = Counter(local.records(name).kek.generation for name in names)
    assert set(generations) == ({1, 2} if new_kek else {1})
    again = Counter(each.way for each in local.vault.rewrap_all(rate=400))
    assert set(again) == {Way.UNCHANGED, Way.RE_ENCRYPTED}
    assert 3 <= again[Way.UNCHANGED] < 10
    all_open(local)
    process_after = local.restarted()
    assert [process_after.read(name) for name in names] == [[f"{name}@example.com"] for name in names]
