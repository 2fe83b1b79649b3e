"""How often calls to one customer's KMS are tried again, and that the others' do not suffer from it."""

from __future__ import annotations

import time

import pytest
from tests.support.clocks import Clocks
from tests.support.strict_kms import FaultRule, StrictKms

from pii_vault.errors import KmsUnavailableError
from pii_vault.kms.aws_clients import ClientKey
from pii_vault.kms.aws_retries import AT_ONCE, EVERY_SECONDS, RetryBudget

ACME, GLOB = (ClientKey("eu-west-1", f"arn:aws:iam::{number:012}:role/r", None) for number in (1, 2))


def test_a_bucket_holds_so_many_and_fills_up_again() -> None:
    clocks = Clocks()
    budget = RetryBudget(10, lambda: clocks.monotonic)
    for _ in range(3):
        assert [budget.take(ACME) for _ in range(AT_ONCE + 2)] == [True] * AT_ONCE + [False] * 2
        assert budget.take(GLOB)
        clocks.pass_(EVERY_SECONDS - 0.001)
        assert not budget.take(ACME)
        clocks.pass_(0.001)
        assert [budget.take(ACME) for _ in range(2)] == [True, False]
        clocks.pass_(1000)


def test_so_many_callers_are_remembered_and_no_more() -> None:
    budget = RetryBudget(2, lambda: 0.0)
    for account in range(100):
        assert budget.take(ClientKey("eu-west-1", f"{account}", None))
    assert len(budget._filling_since) == 2


def test_calls_to_a_kms_that_stays_out_are_tried_once_and_those_to_another_as_ever(strict_kms: StrictKms) -> None:
    provider = strict_kms.provider(attempts=2, sleep=lambda _: None)
    dark, light = strict_kms.customer_key(), strict_kms.customer_key()
    strict_kms.script(FaultRule("GenerateDataKey", key=dark.arn, times=None, error="ThrottlingException"))
    context = {"pii-vault:tenant": "t"}
    began = time.monotonic()
    for _ in range(AT_ONCE + 5):
        with pytest.raises(KmsUnavailableError):
            provider.generate(dark, context)
    filled = (time.monotonic() - began) / EVERY_SECONDS
    tried_again = strict_kms.count("GenerateDataKey", key=dark.arn) - (AT_ONCE + 5)
    assert AT_ONCE <= tried_again <= AT_ONCE + filled
    assert tried_again < AT_ONCE + 5
    strict_kms.script(FaultRule("GenerateDataKey", key=light.arn, times=1, error="ThrottlingException"))
    provider.generate(light, context)
    assert strict_kms.count("GenerateDataKey", key=light.arn) == 2
