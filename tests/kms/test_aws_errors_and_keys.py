"""How long keys in memory are used after the KMS has failed, for every way in which it can."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from tests.support.aws_codes import CODES, STS_CODES, C, F, R, T, V, rows
from tests.support.clocks import Clocks
from tests.support.kms_http import FaultRule, HttpServer, Reply
from tests.support.strict_kms import StrictKms

from pii_vault import Vault
from pii_vault.errors import KmsError
from pii_vault.keyring.terms import FAILED_SECONDS_AT_MOST

SAT_OUT = {T, V}
"""What keys in memory are used through, until time to live and grace have run out. After the others they are gone."""

TTL, GRACE = 100.0, 50.0
DUE = 0.96 * TTL
"""When another keyset is to be fetched, whatever chance says."""

LATER = FAILED_SECONDS_AT_MOST
"""When no failure is answered from memory any more."""


class Tenant:
    """A tenant whose keys a vault holds, and whose KMS key can be made to fail in many ways."""

    def __init__(self, kms: StrictKms, folder: Path) -> None:
        self.kms, self.clocks = kms, Clocks()
        self.provider = kms.provider(attempts=1)
        self._intact = (self.provider._endpoint_url, self.provider._given_session, self.provider._timeouts)
        self.vault = Vault(
            f"sqlite:///{folder / 'keys.sqlite3'}",
            kms=self.provider,
            platform_key=kms.platform_key(),
            ttl=TTL,
            grace=GRACE,
            clock=self.clocks.as_clock,
        )
        self.vault.create_all()
        self.key = kms.customer_key()
        self.vault.add_tenant("acme", key=self.key.arn, role_arn=self.key.role_arn, external_id=self.key.external_id)

    def enter(self) -> None:
        with self.vault.tenant("acme"):
            pass

    def is_held(self) -> bool:
        return self.vault._keyring.cached("acme") is not None

    def reach(
        self,
        *,
        endpoint_url: str | None = None,
        session: boto3.session.Session | None = None,
        timeouts: tuple[float, float] | None = None,
    ) -> None:
        """Let the provider find the KMS elsewhere, as somebody else, or wait less, from the next request on."""
        intact_url, intact_session, intact_timeouts = self._intact
        self.provider._endpoint_url = endpoint_url or intact_url
        self.provider._given_session = session or intact_session
        self.provider._timeouts = timeouts or intact_timeouts
        self.provider._forget_clients()

    def mend(self) -> None:
        self.kms.clear_script()
        self.reach()
        self.clocks.pass_(LATER)


@pytest.fixture(scope="module")
def shared_tenant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    with StrictKms() as kms:
        made = Tenant(kms, tmp_path_factory.mktemp("tenant"))
        yield made
        made.vault.close()


@pytest.fixture
def tenant(shared_tenant: Tenant) -> Iterator[Tenant]:
    """The tenant, whose keys were fetched just now."""
    shared_tenant.vault.evict("acme")
    shared_tenant.enter()
    yield shared_tenant
    shared_tenant.mend()
    shared_tenant.enter()  # nothing is remembered for long


def ends_as_it_has_to(tenant: Tenant, expected: type[KmsError], *, known: bool = True) -> None:
    """The KMS fails from now on: keys are used to the bound, or end at once."""
    tenant.enter()
    tenant.clocks.pass_(DUE)
    if expected in SAT_OUT and known:
        tenant.enter()
        tenant.clocks.pass_(TTL + GRACE - DUE - 0.001)
        tenant.enter()
        assert tenant.is_held()
        tenant.clocks.pass_(0.001)
    with pytest.raises(KmsError) as caught:
        tenant.enter()
    assert type(caught.value) is expected
    assert not tenant.is_held()


@pytest.mark.parametrize(("code", "expected"), [*rows(CODES), ("NotFoundException", R)])
def test_the_class_of_a_code_decides_how_long_keys_are_used(
    code: str, expected: type[KmsError], tenant: Tenant
) -> None:
    tenant.kms.script(FaultRule("Decrypt", key=tenant.key.arn, error=code, times=None))
    ends_as_it_has_to(tenant, expected)


def test_a_code_that_nobody_knows_may_mean_anything_so_nothing_is_sat_out(tenant: Tenant) -> None:
    tenant.kms.script(FaultRule("Decrypt", key=tenant.key.arn, error="BrandNewException", times=None))
    ends_as_it_has_to(tenant, T, known=False)


@pytest.mark.parametrize(("code", "expected"), rows(STS_CODES))
def test_so_does_the_class_of_a_code_of_sts(code: str, expected: type[KmsError], tenant: Tenant) -> None:
    tenant.kms.script(FaultRule("AssumeRole", key=tenant.key.role_arn, error=code, times=None))
    tenant.provider._forget_clients()  # else the role is assumed again only when its credentials near their end
    ends_as_it_has_to(tenant, expected)


FAULTS: dict[str, tuple[dict[str, Any], type[KmsError]]] = {
    "the key is being made": ({"error": "KMSInvalidStateException", "message": "arn is creating."}, T),
    "the key is being updated": ({"error": "KMSInvalidStateException", "message": "arn is updating."}, T),
    "HTTP 500 without a code": ({"status": 500}, T),
    "HTTP 503 with a new code": ({"status": 503, "error": "BrandNewException"}, T),
    "HTTP 429 with a new code": ({"status": 429, "error": "BrandNewException"}, T),
    "the connection drops": ({"drop": True}, T),
    # boto3 reads it as an answer without members, and that is nothing which the KMS says.
    "the answer is no JSON": ({"alter": lambda _: b"<html>proxy login</html>"}, C),
    "the answer has no plaintext": ({"alter": lambda answer: {"KeyId": answer["KeyId"]}}, C),
    "the answer names another key": ({"alter": lambda answer: {**answer, "KeyId": f"{answer['KeyId']}0"}}, C),
}


@pytest.mark.parametrize(("fault", "expected"), FAULTS.values(), ids=FAULTS)
def test_so_does_that_of_an_answer_that_is_none(
    fault: dict[str, Any], expected: type[KmsError], tenant: Tenant
) -> None:
    tenant.kms.script(FaultRule("Decrypt", key=tenant.key.arn, times=None, **fault))
    ends_as_it_has_to(tenant, expected)


def test_silence_is_sat_out(tenant: Tenant) -> None:
    tenant.kms.script(FaultRule("Decrypt", key=tenant.key.arn, times=None, black_hole=True))
    tenant.reach(timeouts=(1.0, 0.3))
    ends_as_it_has_to(tenant, T)


def test_an_endpoint_where_nobody_listens_is_sat_out(tenant: Tenant) -> None:
    server = HttpServer(lambda headers, body: Reply(200, b"{}"))
    server.close()
    tenant.reach(endpoint_url=server.url)
    ends_as_it_has_to(tenant, T)


def test_a_certificate_that_does_not_fit_ends_keys_at_once(tenant: Tenant, self_signed: ssl.SSLContext) -> None:
    server = HttpServer(lambda headers, body: Reply(200, b"{}"), tls=self_signed)
    tenant.reach(endpoint_url=server.url)
    try:
        ends_as_it_has_to(tenant, F)
    finally:
        server.close()


def test_the_want_of_our_own_credentials_is_sat_out(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nothing = {
        "AWS_EC2_METADATA_DISABLED": "true",
        **dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull),
    }
    for name, value in nothing.items():
        monkeypatch.setenv(name, value)
    tenant.reach(session=boto3.session.Session())
    ends_as_it_has_to(tenant, V)
