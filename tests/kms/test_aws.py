"""AWS KMS over HTTP: requests, answers that are not to be believed, timeouts, attempts, threads, forks."""

import base64
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.support.kms_http import FaultRule, moto_address
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.errors import (
    ConfigurationError,
    KmsConfigurationError,
    KmsCorruptError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
)
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:purpose": "kek"}


# What is sent.


def test_each_call_names_the_full_arn_and_the_context(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(context=CONTEXT), strict_kms.provider()
    blob = provider.generate(key, CONTEXT).wrapped.blob
    provider.unwrap(key, blob, CONTEXT)
    generate, decrypt = (
        next(call for call in strict_kms.calls if call.operation == name) for name in ("GenerateDataKey", "Decrypt")
    )
    assert generate.parameters == {"KeyId": key.arn, "NumberOfBytes": 32, "EncryptionContext": CONTEXT}
    assert decrypt.parameters == {
        "KeyId": key.arn,
        "CiphertextBlob": base64.b64encode(blob).decode(),
        "EncryptionContext": CONTEXT,
    }


def test_rewrap_is_one_reencrypt_with_one_context(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    blob = provider.generate(key, CONTEXT).wrapped.blob
    with strict_kms.counting() as calls:
        provider.rewrap(key, key, blob, CONTEXT)
    assert [call.operation for call in calls.calls] == ["ReEncrypt"]
    sent = calls.calls[0].parameters
    assert (sent["SourceKeyId"], sent["DestinationKeyId"]) == (key.arn, key.arn)
    assert sent["SourceEncryptionContext"] == sent["DestinationEncryptionContext"] == CONTEXT


def test_a_check_is_one_dry_run_of_decrypt(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(context=CONTEXT), strict_kms.provider()
    blob = provider.generate(key, CONTEXT).wrapped.blob
    with strict_kms.counting() as calls:
        provider.check_unwrap(key, blob, CONTEXT)
    (call,) = calls.calls
    assert (call.operation, call.outcome) == ("Decrypt", "DryRunOperationException")
    assert call.parameters == {
        "KeyId": key.arn,
        "CiphertextBlob": base64.b64encode(blob).decode(),
        "EncryptionContext": CONTEXT,
        "DryRun": True,
    }


def test_a_check_needs_the_permission_that_unwrap_needs(strict_kms: StrictKms) -> None:
    provider, arn = strict_kms.provider(), strict_kms.create_key()
    key = KmsKey(arn)
    strict_kms.allow(arn, VENDOR, actions=["kms:GenerateDataKey"])
    blob = provider.generate(key, CONTEXT).wrapped.blob
    with pytest.raises(KmsDeniedError):
        provider.check_unwrap(key, blob, CONTEXT)
    strict_kms.allow(arn, VENDOR, actions=["kms:Decrypt"], context={"pii-vault:purpose": "kek"}, describe=False)
    provider.check_unwrap(key, blob, CONTEXT)
    with pytest.raises(KmsDeniedError):
        provider.check_unwrap(key, blob, {**CONTEXT, "pii-vault:purpose": "audit"})


def test_a_dry_run_that_is_answered_with_a_key_is_refused(strict_kms: StrictKms) -> None:
    """As moto does, which does not know dry runs: other stand-ins for AWS may not know them either."""
    host, port = moto_address()
    session = strict_kms.session()
    endpoint = f"http://{host}:{port}"
    arn = session.client("kms", endpoint_url=endpoint).create_key()["KeyMetadata"]["Arn"]
    provider = AwsKms(endpoint_url=endpoint, session=session)
    generated = provider.generate(KmsKey(arn), CONTEXT)
    with pytest.raises(KmsCorruptError) as caught:
        provider.check_unwrap(KmsKey(arn), generated.wrapped.blob, CONTEXT)
    assert (caught.value.code, caught.value.operation) == ("UnexpectedAnswer", "Decrypt")
    assert repr(generated.plaintext) not in _frames(caught.value)


def test_only_decrypt_itself_can_say_that_a_dry_run_would_succeed(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    strict_kms.script(FaultRule("AssumeRole", error="DryRunOperationException", times=None))
    with pytest.raises(KmsConfigurationError) as caught:
        provider.check_unwrap(key, b"x" * 80, CONTEXT)
    assert caught.value.code == "DryRunOperationException"
    assert strict_kms.count("Decrypt") == 0


def test_a_rotation_period_is_365_days_when_aws_does_not_say(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    strict_kms.set_rotation_period(key.arn, 90)
    strict_kms.script(FaultRule("GetKeyRotationStatus", alter=_without("RotationPeriodInDays")))
    assert provider.rotation_period(key) == timedelta(days=365)


def test_a_key_that_cannot_rotate_by_itself_has_no_period(strict_kms: StrictKms) -> None:
    arn, provider = strict_kms.create_key(origin="EXTERNAL"), strict_kms.provider()
    strict_kms.allow(arn, VENDOR)
    strict_kms.set_state(arn, "Enabled")
    assert provider.rotation_period(KmsKey(arn)) is None


def test_a_rotation_period_that_we_may_not_see_is_an_error_and_not_none(strict_kms: StrictKms) -> None:
    arn, provider = strict_kms.create_key(), strict_kms.provider()
    strict_kms.allow(arn, VENDOR, actions=["kms:*"], context=CONTEXT, describe=False)
    with pytest.raises(KmsDeniedError):
        provider.rotation_period(KmsKey(arn))
    strict_kms.script(FaultRule("GetKeyRotationStatus", error="ThrottlingException", times=None))
    with pytest.raises(KmsUnavailableError):
        provider.rotation_period(KmsKey(arn))


def test_rewrap_between_regions_is_refused_before_any_call(strict_kms: StrictKms) -> None:
    here, there = strict_kms.customer_key(), strict_kms.customer_key(region="us-east-1")
    with strict_kms.counting() as calls, pytest.raises(KmsConfigurationError) as caught:
        strict_kms.provider().rewrap(here, there, b"x" * 80, CONTEXT)
    assert calls.count() == 0
    assert here.arn in str(caught.value)
    assert there.arn in str(caught.value)


def test_the_region_comes_from_the_arn(strict_kms: StrictKms) -> None:
    provider = strict_kms.provider()
    for region in ("eu-west-1", "us-east-1", "ap-southeast-2"):
        key = strict_kms.customer_key(region=region)
        assert provider.describe(key).region == region


def test_a_blob_that_is_too_long_is_not_sent(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    with strict_kms.counting() as calls:
        for blob in (b"", b"x" * 6145):
            with pytest.raises(KmsCorruptError):
                provider.unwrap(key, blob, CONTEXT)
            with pytest.raises(KmsCorruptError):
                provider.rewrap(key, key, blob, CONTEXT)
            with pytest.raises(KmsCorruptError):
                provider.check_unwrap(key, blob, CONTEXT)
    assert calls.count() == 0


# What is answered.


def _other_key(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "KeyId": answer["KeyId"][:-1] + ("0" if answer["KeyId"][-1] != "0" else "1")}


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda answer: {field: value for field, value in answer.items() if field != name}


def _with(name: str, value: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda answer: {**answer, name: base64.b64encode(value).decode()}


@pytest.mark.parametrize(
    ("operation", "alter"),
    [
        ("GenerateDataKey", _other_key),
        ("GenerateDataKey", _without("KeyId")),
        ("GenerateDataKey", _without("Plaintext")),
        ("GenerateDataKey", _without("CiphertextBlob")),
        ("GenerateDataKey", _with("Plaintext", b"CANARY!!" * 5)),
        ("GenerateDataKey", _with("Plaintext", b"CANARY!!" * 2)),
        ("GenerateDataKey", _with("CiphertextBlob", b"")),
        ("GenerateDataKey", _with("CiphertextBlob", b"x" * 6145)),
        ("Decrypt", _other_key),
        ("Decrypt", _without("KeyId")),
        ("Decrypt", _without("Plaintext")),
        ("Decrypt", _with("Plaintext", b"CANARY!!" * 3)),
        ("Decrypt", _with("Plaintext", b"")),
        ("ReEncrypt", _other_key),
        ("ReEncrypt", _without("SourceKeyId")),
        ("ReEncrypt", _without("CiphertextBlob")),
        ("DescribeKey", _without("KeyMetadata")),
        ("GetKeyRotationStatus", _without("KeyRotationEnabled")),
        ("GetKeyRotationStatus", lambda answer: {**answer, "RotationPeriodInDays": 0}),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    operation: str, alter: Callable[[dict[str, Any]], dict[str, Any]], strict_kms: StrictKms
) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    generated = provider.generate(key, CONTEXT)
    blob = generated.wrapped.blob
    calls: dict[str, Callable[[], object]] = {
        "GenerateDataKey": lambda: provider.generate(key, CONTEXT),
        "Decrypt": lambda: provider.unwrap(key, blob, CONTEXT),
        "ReEncrypt": lambda: provider.rewrap(key, key, blob, CONTEXT),
        "DescribeKey": lambda: provider.describe(key),
        "GetKeyRotationStatus": lambda: provider.rotation_period(key),
    }
    seen: list[str] = []

    def altered(answer: dict[str, Any]) -> dict[str, Any]:
        seen.append(base64.b64decode(answer.get("Plaintext", "")).hex())
        return alter(answer)

    strict_kms.script(FaultRule(operation, alter=altered))
    with strict_kms.counting() as counter, pytest.raises(KmsCorruptError) as caught:
        calls[operation]()
    assert counter.count(operation) == 1
    # An error reporter that prints frames must not print the key that came with a wrong answer.
    frames = _frames(caught.value)
    assert "CANARY" not in frames
    assert not seen[0] or repr(bytes.fromhex(seen[0])) not in frames


def _frames(error: BaseException) -> str:
    """What an error reporter prints of the library's own frames."""
    return "".join(
        line
        for summary in traceback.TracebackException.from_exception(error, capture_locals=True).stack
        if "pii_vault" in summary.filename
        for line in (summary.locals or {}).values()
    )


# Time.


def test_a_black_hole_ends_within_the_bound(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    provider = strict_kms.provider(connect_timeout=0.5, read_timeout=0.5, attempts=2)
    provider.describe(key)
    strict_kms.script(FaultRule("Decrypt", black_hole=True, times=None))
    started = time.monotonic()
    with strict_kms.counting() as calls, pytest.raises(KmsUnavailableError) as caught:
        provider.unwrap(key, b"x" * 80, CONTEXT)
    assert calls.count("Decrypt") == 2
    assert caught.value.code == "HTTPClientError"
    # 2 x read timeout, back-off of at most 0.2 s, and room for a busy machine.
    assert 1.0 <= time.monotonic() - started < 5.0


def test_a_black_hole_in_sts_ends_within_the_bound(strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    provider = strict_kms.provider(read_timeout=0.5, attempts=1)
    strict_kms.script(FaultRule("AssumeRole", black_hole=True, times=None))
    started = time.monotonic()
    with pytest.raises(KmsUnavailableError):
        provider.describe(key)
    assert time.monotonic() - started < 4.0


def test_an_endpoint_that_does_not_accept_ends_within_the_bound(strict_kms: StrictKms) -> None:
    key = KmsKey(strict_kms.create_key())
    with _full_backlog() as url:
        provider = AwsKms(endpoint_url=url, session=strict_kms.session(), connect_timeout=0.4, attempts=2)
        started = time.monotonic()
        with pytest.raises(KmsUnavailableError):
            provider.describe(key)
    assert 0.8 <= time.monotonic() - started < 5.0


@contextmanager
def _full_backlog() -> Iterator[str]:
    """A port whose queue is full, so that nobody answers the first packet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_the_number_of_requests_equals_attempts(attempts: int, strict_kms: StrictKms) -> None:
    key = strict_kms.customer_key()
    provider = strict_kms.provider(attempts=attempts, sleep=lambda _: None)
    provider.describe(key)
    for fault in ({"error": "KMSInternalException"}, {"error": "ThrottlingException"}, {"drop": True}):
        strict_kms.script(FaultRule("Decrypt", times=None, **fault))  # type: ignore[arg-type]
        with strict_kms.counting() as calls, pytest.raises(KmsUnavailableError):
            provider.unwrap(key, b"x" * 80, CONTEXT)
        assert calls.count() == attempts
        strict_kms.clear_script()


@pytest.mark.parametrize(
    "code",
    ["LimitExceededException", "AccessDeniedException", "DisabledException", "InvalidCiphertextException"],
)
def test_only_an_outage_is_tried_again(code: str, strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider(attempts=3)
    provider.describe(key)
    strict_kms.script(FaultRule("Decrypt", error=code, times=None))
    with strict_kms.counting() as calls, pytest.raises(KmsError):
        provider.unwrap(key, b"x" * 80, CONTEXT)
    assert calls.count() == 1


def test_a_short_outage_is_not_noticed(strict_kms: StrictKms) -> None:
    waits: list[float] = []
    key, provider = strict_kms.customer_key(), strict_kms.provider(attempts=3, sleep=waits.append)
    strict_kms.script(FaultRule("GenerateDataKey", error="ThrottlingException", times=2))
    provider.generate(key, CONTEXT)
    assert len(waits) == 2
    assert 0 <= waits[0] <= 0.2
    assert 0 <= waits[1] <= 0.4


def test_no_client_waits_as_long_as_botocore_would(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    for service in ("kms", "sts"):
        config: Any = provider._new_client("Decrypt", key, service).meta
        assert (config.config.connect_timeout, config.config.read_timeout) == (1.0, 3.0)
        assert config.config.retries["total_max_attempts"] == 1


# Threads and processes.


def test_many_threads_assume_a_role_once(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    strict_kms.script(FaultRule("AssumeRole", latency=0.2))
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: provider.generate(key, CONTEXT).plaintext, range(16)))
    assert len(set(made)) == 16
    assert strict_kms.count("AssumeRole") == 1


def test_many_threads_with_many_identities(strict_kms: StrictKms) -> None:
    keys = [strict_kms.customer_key() for _ in range(8)]
    provider = strict_kms.provider(max_clients=4)
    with ThreadPoolExecutor(8) as pool:
        states = pool.map(lambda number: provider.describe(keys[number % 8]).state, range(64))
    assert set(states) == {"Enabled"}
    assert len(provider._clients) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_its_own_clients(strict_kms: StrictKms) -> None:
    """A lock that another thread holds at the fork stays locked in the child for ever, unless it is
    replaced."""
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    plaintext = provider.generate(key, CONTEXT)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with provider._session_lock, provider._clients._lock:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 2
        try:
            fresh = len(provider._clients) == 0
            opened = provider.unwrap(key, plaintext.wrapped.blob, CONTEXT) == plaintext.plaintext
            status = 0 if fresh and opened else 1
        finally:
            os._exit(status)
    try:
        assert _status_of(child) == 0
    finally:
        release.set()
        holder.join()
    assert provider.unwrap(key, plaintext.wrapped.blob, CONTEXT) == plaintext.plaintext


def _status_of(child: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


# What must not be seen.


def test_debug_logging_shows_no_key_and_no_credentials(strict_kms: StrictKms, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    generated = provider.generate(key, CONTEXT)
    provider.unwrap(key, generated.wrapped.blob, CONTEXT)
    assumed = [one for one in strict_kms._state.credentials.values() if one.role]
    secrets = [
        base64.b64encode(generated.plaintext).decode(),
        repr(generated.plaintext),
        generated.plaintext.hex(),
        *(one.token for one in assumed),
        *(one.secret_key for one in assumed),
    ]
    assert assumed
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert [secret for secret in secrets if secret in log] == []


def test_the_applications_own_debug_records_stay(strict_kms: StrictKms, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    strict_kms.provider().generate(strict_kms.customer_key(), CONTEXT)
    logging.getLogger("botocore.parsers").debug("the application's own call")
    assert "the application's own call" in caplog.text


def test_no_representation_shows_credentials(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    provider.generate(key, CONTEXT)
    shown = repr(provider) + str(provider) + repr(vars(provider))
    for one in strict_kms._state.credentials.values():
        assert one.secret_key not in shown
        assert not one.token or one.token not in shown


def test_a_provider_is_not_pickled(strict_kms: StrictKms) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(strict_kms.provider())


def test_a_parameter_that_botocore_refuses_is_not_quoted(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    with pytest.raises(KmsConfigurationError) as caught:
        provider.generate(key, {"pii-vault:tenant": ["CANARY"]})  # type: ignore[dict-item]
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert caught.value.code == "ParamValidationError"
    assert not any("CANARY" in str(one) for one in chain)


# Construction.


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"connect_timeout": 0},
        {"read_timeout": -1},
        {"max_clients": 0},
        {"session_seconds": 899},
        {"session_seconds": 43_201},
        {"role_session_name": "x"},
        {"role_session_name": "with space"},
        {"role_session_name": "x" * 65},
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AwsKms(**options)


def test_without_boto3_the_module_imports_and_the_class_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from pii_vault.errors import ConfigurationError\n"
        "from pii_vault.kms.aws import AwsKms\n"
        "try: AwsKms()\n"
        "except ConfigurationError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install boto3"


def test_importing_the_package_imports_no_adapter() -> None:
    program = "import sys, pii_vault.kms, pii_vault.kms.aws; print('boto3' in sys.modules, 'botocore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
