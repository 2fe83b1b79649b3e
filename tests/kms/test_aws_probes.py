"""What answers of AWS say about permission, and what they do not."""

from __future__ import annotations

import logging
import time

import pytest
from tests.support.strict_kms import VENDOR, FaultRule, StrictKms

from pii_vault.errors import (
    ConfigurationError,
    KmsConfigurationError,
    KmsCredentialsError,
    KmsDeniedError,
    KmsUnavailableError,
)
from pii_vault.kms import KmsKey, KmsProber, Ruling, Trial
from pii_vault.kms.measured import MeasuredKms
from pii_vault.telemetry import Telemetry

CONTEXT = {"pii-vault:tenant": "t"}
DRY = ("GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "Encrypt", "CreateGrant")
HARMLESS = ("EnableKey", "CancelKeyDeletion", "GetKeyPolicy")


@pytest.fixture
def key(strict_kms: StrictKms) -> KmsKey:
    return strict_kms.customer_key()


@pytest.fixture
def prober(strict_kms: StrictKms) -> KmsProber:
    return strict_kms.provider(attempts=1).prober()


def trial(strict_kms: StrictKms, key: KmsKey, action: str, **context: str) -> Trial:
    blob = strict_kms.provider().generate(key, CONTEXT).wrapped.blob
    return Trial(action, context or CONTEXT, blob, CONTEXT)


@pytest.mark.parametrize("action", DRY + HARMLESS)
def test_what_is_allowed_is_told_from_what_is_denied_and_nothing_is_done(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber, action: str
) -> None:
    asked = trial(strict_kms, key, action)
    strict_kms.put_key_policy(key.arn, {"Statement": []})
    assert prober.probe(key, asked) is Ruling.DENIED
    strict_kms.allow(key.arn, str(key.role_arn), actions=["kms:*"])
    assert prober.probe(key, asked) is Ruling.ALLOWED
    assert strict_kms.state(key.arn) == "Enabled"
    assert strict_kms.grants == []


@pytest.mark.parametrize("action", ["Decrypt", "ReEncryptFrom"])
def test_a_ciphertext_that_does_not_fit_its_context_was_allowed(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber, action: str
) -> None:
    assert prober.probe(key, trial(strict_kms, key, action, other="context")) is Ruling.ALLOWED


@pytest.mark.parametrize("action", DRY)
def test_a_dry_run_that_was_none_is_recognised_and_what_came_of_it_is_gone(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = trial(strict_kms, key, action)
    strict_kms.allow(key.arn, str(key.role_arn), actions=["kms:*"])
    strict_kms.forget_dry_runs()
    with caplog.at_level(logging.DEBUG):
        assert prober.probe(key, asked) is Ruling.DONE
    assert "Plaintext" not in caplog.text


def test_a_role_that_cannot_be_assumed_is_no_word_about_the_key(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber
) -> None:
    asked = trial(strict_kms, key, "Encrypt")
    strict_kms.remove_role(str(key.role_arn))
    with pytest.raises(KmsDeniedError):
        prober.probe(key, asked)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ThrottlingException", KmsUnavailableError),
        ("ExpiredTokenException", KmsCredentialsError),
        ("NotFoundException", KmsConfigurationError),
        ("DisabledException", KmsDeniedError),
        ("KMSInvalidStateException", KmsDeniedError),
        ("SomethingNewException", Exception),
    ],
)
def test_what_says_nothing_about_permission_is_an_error(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber, code: str, error: type[Exception]
) -> None:
    asked = trial(strict_kms, key, "GenerateDataKey")
    strict_kms.script(FaultRule("GenerateDataKey", error=code, times=None))
    with pytest.raises(error):
        prober.probe(key, asked)


def test_an_invalid_state_says_that_a_deletion_could_be_cancelled_and_nothing_else(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber
) -> None:
    strict_kms.script(FaultRule("CancelKeyDeletion", error="KMSInvalidStateException"))
    assert prober.probe(key, Trial("CancelKeyDeletion")) is Ruling.ALLOWED
    strict_kms.script(FaultRule("EnableKey", error="KMSInvalidStateException"))
    with pytest.raises(KmsDeniedError):
        prober.probe(key, Trial("EnableKey"))


@pytest.mark.parametrize("action", ["PutKeyPolicy", "DisableKey", "ScheduleKeyDeletion", "DeleteAlias", "*"])
def test_what_cannot_be_tried_without_harm_is_never_sent(
    strict_kms: StrictKms, key: KmsKey, prober: KmsProber, action: str
) -> None:
    with strict_kms.counting() as calls, pytest.raises(ConfigurationError, match="without doing it"):
        prober.probe(key, Trial(action))
    assert calls.calls == []


def test_a_role_is_assumed_as_it_is_named(strict_kms: StrictKms, key: KmsKey, prober: KmsProber) -> None:
    assert prober.probe_role(key) is Ruling.ALLOWED
    assert prober.probe_role(KmsKey(key.arn, key.role_arn)) is Ruling.DENIED
    assert prober.probe_role(KmsKey(key.arn, key.role_arn, "wrong")) is Ruling.DENIED
    strict_kms.script(FaultRule("AssumeRole", error="Throttling", times=None))
    with pytest.raises(KmsUnavailableError):
        prober.probe_role(key)


def test_a_grant_is_tried_for_the_role_or_for_the_keys_own_account(strict_kms: StrictKms, prober: KmsProber) -> None:
    roleless = KmsKey(strict_kms.create_key("999900001111"))
    strict_kms.allow(roleless.arn, VENDOR, actions=["kms:CreateGrant"])
    with strict_kms.counting() as calls:
        assert prober.probe(roleless, Trial("CreateGrant")) is Ruling.ALLOWED
    (call,) = calls.matching("CreateGrant")
    assert call.parameters["GranteePrincipal"] == "arn:aws:iam::999900001111:root"


def test_the_clock_is_compared_by_every_answer(strict_kms: StrictKms, key: KmsKey) -> None:
    provider = strict_kms.provider(attempts=1, clock=lambda: time.time() - 1000)
    prober = provider.prober()
    assert prober.clock_offset is None
    prober.probe(key, Trial("GetKeyPolicy"))  # refused, and the refusal has a date
    assert prober.clock_offset == pytest.approx(1000, abs=2)
    strict_kms.script(FaultRule("GetKeyPolicy", error="RequestTimeTooSkewed", times=None))
    late = provider.prober()
    with pytest.raises(KmsCredentialsError):
        late.probe(key, Trial("GetKeyPolicy"))
    assert late.clock_offset == pytest.approx(1000, abs=2)


def test_a_measured_kms_asks_the_one_behind_it(strict_kms: StrictKms, key: KmsKey) -> None:
    prober = MeasuredKms(strict_kms.provider(), Telemetry()).prober()
    assert prober is not None
    assert prober.probe_role(key) is Ruling.ALLOWED


def test_a_trial_does_not_show_its_blob() -> None:
    assert "secret" not in repr(Trial("Decrypt", blob=b"secret"))
