"""Re-wrapping on AWS: which identity makes the call, what each key's policy has to grant, and what is refused."""

import pytest
from tests.support.kms_policy import Policy
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault.errors import KmsDeniedError
from pii_vault.kms import KmsKey

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:purpose": "kek"}


def encrypting_role(kms: StrictKms, destination: KmsKey) -> KmsKey:
    """A key in the first account whose role may, for its own account, encrypt under the second account's key."""
    statement = {"Effect": "Allow", "Action": "kms:ReEncryptTo", "Resource": destination.arn}
    policy: Policy = {"Statement": [statement]}
    return kms.customer_key(context=CONTEXT, identity_policy=policy)


def customer_of_another_account(kms: StrictKms) -> KmsKey:
    return kms.customer_key(account="444455556666", context=CONTEXT)


def role_of(key: KmsKey) -> str:
    assert key.role_arn is not None
    return key.role_arn


def assumed(key: KmsKey) -> str:
    """The part of a caller's ARN that names the key's role."""
    return f"::{key.arn.split(':')[4]}:assumed-role/{role_of(key).rpartition('/')[2]}/"


def test_between_two_accounts_the_sources_role_makes_the_one_call(strict_kms: StrictKms) -> None:
    destination, provider = customer_of_another_account(strict_kms), strict_kms.provider()
    source = encrypting_role(strict_kms, destination)
    strict_kms.allow(destination.arn, role_of(source), actions=["kms:ReEncryptTo"], context=CONTEXT, describe=False)
    generated = provider.generate(source, CONTEXT)
    with strict_kms.counting() as calls:
        wrapped = provider.rewrap(source, destination, generated.wrapped.blob, CONTEXT)
    (call,) = calls.calls
    assert call.operation == "ReEncrypt"
    assert assumed(source) in call.principal
    assert provider.unwrap(destination, wrapped.blob, CONTEXT) == generated.plaintext


def test_a_new_wrap_is_proven_by_its_own_keys_role_without_a_plaintext(strict_kms: StrictKms) -> None:
    destination, provider = customer_of_another_account(strict_kms), strict_kms.provider()
    blob = provider.generate(destination, CONTEXT).wrapped.blob
    with strict_kms.counting() as calls:
        provider.rewrap(destination, destination, blob, CONTEXT)
    assert [call.operation for call in calls.calls] == ["ReEncrypt"]
    assert assumed(destination) in calls.calls[0].principal


def test_the_proof_needs_both_permissions_on_the_new_key(strict_kms: StrictKms) -> None:
    provider, arn = strict_kms.provider(), strict_kms.create_key("444455556666")
    role = "arn:aws:iam::444455556666:role/pii-vault"
    strict_kms.register_role(role)
    key = KmsKey(arn, role)
    strict_kms.allow(arn, role, actions=["kms:GenerateDataKey", "kms:Decrypt"])
    blob = provider.generate(key, CONTEXT).wrapped.blob
    for action in ("kms:ReEncryptFrom", "kms:ReEncryptTo"):
        with pytest.raises(KmsDeniedError):
            provider.rewrap(key, key, blob, CONTEXT)
        strict_kms.allow(arn, role, actions=[action], context=CONTEXT, describe=False)
    provider.rewrap(key, key, blob, CONTEXT)


def test_a_new_key_whose_policy_does_not_grant_it_is_refused(strict_kms: StrictKms) -> None:
    destination, provider = customer_of_another_account(strict_kms), strict_kms.provider()
    source = encrypting_role(strict_kms, destination)
    blob = provider.generate(source, CONTEXT).wrapped.blob

    def refused() -> None:
        with pytest.raises(KmsDeniedError) as caught:
            provider.rewrap(source, destination, blob, CONTEXT)
        assert (caught.value.code, caught.value.operation) == ("AccessDeniedException", "ReEncrypt")
        assert caught.value.retryable is False

    refused()
    strict_kms.allow(destination.arn, role_of(source), actions=["kms:Encrypt", "kms:ReEncryptFrom"])
    refused()
    other = {**CONTEXT, "pii-vault:tenant": "4567"}
    strict_kms.allow(destination.arn, role_of(source), actions=["kms:ReEncryptTo"], context=other)
    refused()
    strict_kms.allow(destination.arn, role_of(source), actions=["kms:ReEncryptTo"], context=CONTEXT)
    provider.rewrap(source, destination, blob, CONTEXT)


def test_a_role_without_a_policy_of_its_own_does_not_reach_another_account(strict_kms: StrictKms) -> None:
    destination, provider = customer_of_another_account(strict_kms), strict_kms.provider()
    source = strict_kms.customer_key(context=CONTEXT)
    strict_kms.allow(destination.arn, role_of(source), actions=["kms:ReEncryptTo"])
    blob = provider.generate(source, CONTEXT).wrapped.blob
    with pytest.raises(KmsDeniedError):
        provider.rewrap(source, destination, blob, CONTEXT)


def test_from_the_platform_key_to_a_customers_the_customer_grants_no_more_than_encryption(
    strict_kms: StrictKms,
) -> None:
    source, destination = KmsKey(strict_kms.platform_key()), strict_kms.customer_key()
    provider = strict_kms.provider()
    generated = provider.generate(source, CONTEXT)
    with pytest.raises(KmsDeniedError):
        provider.rewrap(source, destination, generated.wrapped.blob, CONTEXT)
    strict_kms.allow(destination.arn, VENDOR, actions=["kms:ReEncryptTo"])
    wrapped = provider.rewrap(source, destination, generated.wrapped.blob, CONTEXT)
    assert provider.unwrap(destination, wrapped.blob, CONTEXT) == generated.plaintext
