"""A role that asks for its ExternalId, and one that does not: who finds out, and what is not done with the latter."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import select
from tests.support.kms_http import FaultRule
from tests.support.kms_policy import ALLOW_EVERYTHING
from tests.support.strict_kms import VENDOR, StrictKms

from pii_vault import Vault
from pii_vault.errors import KmsConfigurationError, KmsCredentialsError, KmsError, KmsUnavailableError
from pii_vault.keystore.schema import metadata
from pii_vault.kms import KmsKey
from pii_vault.kms.aws import AwsKms

CONTEXT = {"pii-vault:tenant": "0123", "pii-vault:purpose": "kek"}


def role_of(key: KmsKey) -> str:
    assert key.role_arn is not None
    return key.role_arn


def lax(kms: StrictKms, key: KmsKey | None = None) -> KmsKey:
    """A customer's key whose role can be assumed with any ExternalId, and without."""
    key = key or customer(kms)
    kms.register_role(role_of(key), external_id=None, identity_policy=ALLOW_EVERYTHING)
    return key


def customer(kms: StrictKms) -> KmsKey:
    return kms.customer_key(identity_policy=ALLOW_EVERYTHING)


def refused(check: Callable[[], object], key: KmsKey) -> None:
    with pytest.raises(KmsConfigurationError, match="can be assumed without its ExternalId") as caught:
        check()
    assert (caught.value.code, caught.value.operation) == ("ExternalIdNotRequired", "AssumeRole")
    assert role_of(key) in str(caught.value)
    assert "sts:ExternalId" in str(caught.value.hint)
    assert not caught.value.retryable


def test_a_role_that_asks_for_its_external_id_passes_with_one_attempt_that_is_denied(strict_kms: StrictKms) -> None:
    key, provider = strict_kms.customer_key(), strict_kms.provider()
    with strict_kms.counting() as calls:
        provider.check_role(key)
    (attempt,) = calls.calls
    assert (attempt.operation, attempt.key, attempt.outcome) == ("AssumeRole", key.role_arn, "AccessDenied")
    assert "ExternalId" not in attempt.parameters


def test_a_role_that_does_not_is_refused_also_while_its_own_session_is_good(strict_kms: StrictKms) -> None:
    key, provider = lax(strict_kms), strict_kms.provider()
    refused(lambda: provider.check_role(key), key)
    provider.generate(key, CONTEXT)
    refused(lambda: provider.check_role(key), key)


def test_a_condition_that_only_counts_if_there_is_an_external_id_is_none(strict_kms: StrictKms) -> None:
    key = customer(strict_kms)
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": VENDOR},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEqualsIfExists": {"sts:ExternalId": key.external_id}},
    }
    strict_kms.register_role(role_of(key), trust_policy={"Statement": [statement]})
    refused(lambda: strict_kms.provider().check_role(key), key)


def test_the_session_that_a_check_got_is_not_used(strict_kms: StrictKms) -> None:
    key, provider = lax(strict_kms), strict_kms.provider()
    refused(lambda: provider.check_role(key), key)
    with strict_kms.counting() as calls:
        provider.generate(key, CONTEXT)
        provider.generate(replace(key, external_id=None), CONTEXT)
    with_and_without = calls.matching("AssumeRole")
    assert [call.parameters.get("ExternalId") for call in with_and_without] == [key.external_id, None]


def test_without_a_role_or_without_an_external_id_nobody_is_asked(strict_kms: StrictKms) -> None:
    key, provider = lax(strict_kms), strict_kms.provider()
    with strict_kms.counting() as calls:
        provider.check_role(KmsKey(strict_kms.platform_key()))
        provider.check_role(replace(key, external_id=None))
    assert calls.count() == 0


@pytest.mark.parametrize("strictness", [lax, lambda kms: kms.customer_key()], ids=["lax", "strict"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (FaultRule(error="ServiceUnavailable", times=None), KmsUnavailableError),
        (FaultRule(error="Throttling", times=None), KmsUnavailableError),
        (FaultRule(error="SomethingNew", times=None), KmsUnavailableError),
        (FaultRule(drop=True, times=None), KmsUnavailableError),
        (FaultRule(error="ExpiredToken", times=None), KmsCredentialsError),
        (FaultRule(error="InvalidClientTokenId", times=None), KmsCredentialsError),
    ],
    ids=lambda value: value.error or "no answer" if isinstance(value, FaultRule) else None,
)
def test_what_sts_did_not_say_about_the_role_is_neither_a_pass_nor_a_fault_of_the_role(
    strict_kms: StrictKms, strictness: Callable[[StrictKms], KmsKey], fault: FaultRule, expected: type[KmsError]
) -> None:
    key = strictness(strict_kms)
    strict_kms.script(replace(fault, operation="AssumeRole"))
    with pytest.raises(KmsError) as caught:
        strict_kms.provider().check_role(key)
    assert type(caught.value) is expected
    assert caught.value.retryable


def test_a_refusal_of_our_own_credentials_is_no_pass(strict_kms: StrictKms) -> None:
    class Refused:
        def get_frozen_credentials(self) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": ""}}, "AssumeRole")

    session: Any = strict_kms.session()
    session.get_credentials = Refused
    with pytest.raises(KmsCredentialsError):
        strict_kms.provider(session=session).check_role(lax(strict_kms))


@pytest.fixture
def vault(strict_kms: StrictKms, sqlite_url: str) -> Iterator[Vault]:
    vault = Vault(sqlite_url, kms=strict_kms.provider(attempts=1), platform_key=strict_kms.platform_key())
    vault.create_all()
    yield vault
    vault.close()


def join(vault: Vault, key: KmsKey, tenant: str = "acme") -> None:
    vault.add_tenant(tenant, key=key.arn, role_arn=key.role_arn, external_id=key.external_id)


def key_store(vault: Vault) -> list[Any]:
    with vault._engine.connect() as connection:
        return [connection.execute(select(table)).all() for table in metadata.sorted_tables]


def test_no_tenant_is_registered_with_a_role_that_does_not_ask_for_its_external_id(
    strict_kms: StrictKms, vault: Vault
) -> None:
    key, before = lax(strict_kms), key_store(vault)
    with strict_kms.counting() as calls:
        refused(lambda: join(vault, key), key)
    assert [call.operation for call in calls.calls] == ["AssumeRole"]
    assert key_store(vault) == before
    strict_kms.register_role(role_of(key), external_id=key.external_id)
    join(vault, key)
    assert vault.tenants() == ["acme"]


@pytest.mark.parametrize("new_kek", [False, True], ids=["re-encrypted", "new kek"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["real", "dry run"])
def test_no_tenant_is_moved_to_a_role_that_does_not_ask_for_its_external_id(
    strict_kms: StrictKms, vault: Vault, new_kek: bool, dry_run: bool
) -> None:
    key = lax(strict_kms)
    strict_kms.allow(key.arn, VENDOR, actions=["kms:ReEncryptTo"])
    vault.add_tenant("acme")
    before = key_store(vault)

    def move() -> object:
        where = {"to": key.arn, "role_arn": key.role_arn, "external_id": key.external_id}
        return vault.rewrap("acme", **where, new_kek=new_kek, dry_run=dry_run)

    with strict_kms.counting() as calls:
        refused(move, key)
    assert [call.operation for call in calls.calls] == ["AssumeRole"]
    assert key_store(vault) == before
    strict_kms.register_role(role_of(key), external_id=key.external_id)
    move()


def test_a_role_that_was_made_lax_later_is_reported_and_hinders_neither_rotation_nor_re_wrap(
    strict_kms: StrictKms, vault: Vault
) -> None:
    key = customer(strict_kms)
    join(vault, key)
    assert [outcome.check for outcome in vault.validate("acme") if not outcome.passed] == []
    lax(strict_kms, key)
    (failed,) = (outcome for outcome in vault.validate("acme") if not outcome.passed)
    assert (failed.check, failed.passed) == ("kms-role", False)
    assert f"role {key.role_arn} can be assumed without its ExternalId" in failed.finding
    assert vault.rotate("acme").version == 2
    strict_kms.rotate(key.arn)
    assert vault.rewrap("acme").way == "re-encrypted"
    join(vault, key)
    strict_kms.register_role(role_of(key), external_id=key.external_id)
    checks = {outcome.check: outcome for outcome in vault.validate("acme")}
    assert checks["kms-role"].passed
    assert checks["kms-role"].finding == f"{key.role_arn} wants its ExternalId"


def test_what_a_validation_says_of_keys_without_a_role_or_an_external_id(strict_kms: StrictKms, vault: Vault) -> None:
    key = replace(lax(strict_kms), external_id=None)
    join(vault, key)
    vault.add_tenant("glob")
    findings = {name: vault.validate(name)[-1] for name in ("acme", "glob")}
    assert {outcome.check for outcome in findings.values()} == {"kms-role"}
    assert {name: (outcome.passed, outcome.finding) for name, outcome in findings.items()} == {
        "acme": (True, f"{key.role_arn} is assumed without an ExternalId"),
        "glob": (True, "no role is assumed"),
    }


def test_the_check_needs_no_kms_at_all(strict_kms: StrictKms) -> None:
    provider = AwsKms(
        endpoint_url="http://127.0.0.1:1", sts_endpoint_url=strict_kms.endpoint_url, session=strict_kms.session()
    )
    provider.check_role(strict_kms.customer_key())
