"""Tenants whose multi-Region KMS key has replicas: an outage of its region is sat out elsewhere, a refusal is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, String, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.support.clocks import Clocks
from tests.support.kms_http import FaultRule
from tests.support.strict_kms import StrictKms

from pii_vault import EncryptedString, LocalKms, Vault
from pii_vault.errors import (
    KeyValidationError,
    KmsConfigurationError,
    KmsDeniedError,
    KmsError,
    KmsUnavailableError,
    TenantExistsError,
)
from pii_vault.keyring.terms import NOTICE_SECONDS
from pii_vault.kms import KmsKey

TTL, GRACE = 100.0, 50.0
FIRST, SECOND = "eu-central-1", "us-east-1"


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(EncryptedString())


class App:
    """An application with one tenant, whose multi-Region key has replicas in two regions."""

    def __init__(self, url: str, kms: StrictKms, make_engine: Callable[..., Engine]) -> None:
        self.kms, self.clocks, self.url = kms, Clocks(), url
        self.vault = self.process()
        self.vault.create_all()
        self.key: KmsKey = kms.customer_key(multi_region=True)
        self.first, self.second = (kms.replicate(self.key.arn, region) for region in (FIRST, SECOND))
        self.vault.add_tenant("acme", key=self.key.arn, role_arn=self.key.role_arn, external_id=self.key.external_id)
        self.engine = make_engine(url)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.vault.attach(self.engine, self.sessions, tenant_column="tenant_id")
        Base.metadata.create_all(self.engine)
        with self.vault.tenant("acme"), self.sessions.begin() as session:
            session.add(Note(body="of acme"))

    def process(self) -> Vault:
        return Vault(
            self.url,
            kms=self.kms.provider(attempts=1),
            platform_key=self.kms.platform_key(),
            ttl=TTL,
            grace=GRACE,
            clock=self.clocks.as_clock,
        )

    def read(self) -> list[str]:
        with self.vault.tenant("acme"), self.sessions() as session:
            return list(session.scalars(select(Note.body)))

    def asked(self) -> list[str]:
        """Fetch the keys anew, and return whose KMS keys were asked."""
        self.vault.evict("acme")
        with self.kms.counting() as calls:
            try:
                assert self.read() == ["of acme"]
            finally:
                self.keys_asked = [call.key for call in calls.matching("Decrypt")]
        return self.keys_asked

    def out(self, *arns: str) -> None:
        for arn in arns:
            self.kms.script(FaultRule("Decrypt", key=arn, error="KMSInternalException", status=500, times=None))

    def regions(self) -> tuple[str, ...]:
        return self.vault._store.load("acme").kek.replica_regions

    def events(self) -> list[dict[str, Any]]:
        uid = self.vault._store.load("acme").tenant.identity.tenant_uid
        return [json.loads(each.text) for each in self.vault._store.entries(uid)]


@pytest.fixture
def app(database_url: str, strict_kms: StrictKms, make_engine: Callable[..., Engine]) -> Iterator[App]:
    app = App(database_url, strict_kms, make_engine)
    yield app
    app.vault.close()


def test_an_outage_of_the_region_is_none_of_the_application_s(app: App) -> None:
    app.out(app.key.arn)
    with pytest.raises(KmsUnavailableError):
        app.asked()
    app.kms.clear_script()
    app.vault.set_replica_regions("acme", [FIRST, SECOND], "two more regions")
    app.out(app.key.arn)
    app.clocks.pass_(5)
    assert app.asked() == [app.key.arn, app.first]
    app.out(app.first)
    assert app.asked() == [app.key.arn, app.first, app.second]
    assert app.vault.audit.verify("acme").problems == ()


def test_when_all_regions_are_out_time_to_live_and_grace_decide_as_ever(app: App) -> None:
    app.vault.set_replica_regions("acme", [FIRST, SECOND])
    app.clocks.pass_(NOTICE_SECONDS)  # this process hears of its own change too
    assert app.read() == ["of acme"]
    app.out(app.key.arn, app.first, app.second)
    app.clocks.pass_(TTL + GRACE - 0.001)
    assert app.read() == ["of acme"]
    app.clocks.pass_(0.001)
    with pytest.raises(KmsUnavailableError):
        app.read()


@pytest.mark.parametrize("who", ["key", "replica"])
def test_a_refusal_anywhere_ends_what_is_in_memory(app: App, who: str) -> None:
    app.vault.set_replica_regions("acme", [FIRST, SECOND])
    app.clocks.pass_(NOTICE_SECONDS)
    assert app.read() == ["of acme"]
    if who == "key":
        app.kms.disable(app.key.arn)
    else:
        app.out(app.key.arn)
        app.kms.disable(app.first)
    app.clocks.pass_(0.96 * TTL)  # another keyset is due; the present one would be good for a while
    with pytest.raises(KmsDeniedError):
        app.read()


def test_other_processes_follow_within_seconds(app: App) -> None:
    other = app.process()
    other.set_replica_regions("acme", [FIRST])
    app.out(app.key.arn)
    assert app.read() == ["of acme"]  # from memory
    app.clocks.pass_(NOTICE_SECONDS)
    with app.kms.counting() as calls:
        assert app.read() == ["of acme"]
    assert [call.key for call in calls.matching("Decrypt")] == [app.key.arn, app.first]
    other.set_replica_regions("acme", [])
    app.clocks.pass_(NOTICE_SECONDS)
    with pytest.raises(KmsUnavailableError):
        app.read()
    other.close()


def test_it_is_written_down_once_and_the_log_notices_who_changes_it_behind_its_back(app: App) -> None:
    before = app.events()
    app.vault.set_replica_regions("acme", [FIRST], "INC-3")
    app.vault.set_replica_regions("acme", [FIRST], "INC-3")
    (entry,) = app.events()[len(before) :]
    assert (entry["event"], entry["reason"]) == ("tenant.changed", "INC-3")
    assert [each["replica_regions"] for each in entry["details"]["keks"]] == [[FIRST]]
    assert all("replica_regions" not in each for event in before for each in event["details"].get("keks", ()))
    assert app.vault.audit.verify("acme").problems == ()
    with app.engine.begin() as connection:
        connection.execute(text(f"UPDATE pii_vault_keks SET replica_regions = '{SECOND}'"))
    assert any("replica_regions" in each for each in app.vault.audit.verify("acme").problems)


def disable_first(app: App) -> None:
    app.kms.disable(app.first)


def allow_nothing(app: App) -> None:
    app.kms.put_key_policy(app.first, {"Statement": []})


def say_another_key(app: App) -> None:
    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        return {"KeyMetadata": answer["KeyMetadata"] | {"Arn": app.second}}

    app.kms.script(FaultRule("DescribeKey", key=app.first, alter=alter))


def say_one_region(app: App) -> None:
    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        return {"KeyMetadata": answer["KeyMetadata"] | {"MultiRegion": False}}

    app.kms.script(FaultRule("DescribeKey", key=app.first, alter=alter))


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (disable_first, KeyValidationError),
        (allow_nothing, KmsDeniedError),
        (say_another_key, KeyValidationError),
        (say_one_region, KeyValidationError),
    ],
)
def test_a_region_without_a_replica_that_could_serve_is_refused(
    app: App, what: Callable[[App], None], error: type[Exception]
) -> None:
    what(app)
    before = app.events()
    with pytest.raises(error):
        app.vault.set_replica_regions("acme", [SECOND, FIRST])
    assert (app.regions(), app.events()) == ((), before)


def test_a_region_where_there_is_none_is_refused(app: App) -> None:
    with pytest.raises(KmsError):
        app.vault.set_replica_regions("acme", ["ap-southeast-2"])
    assert app.regions() == ()


def test_a_key_of_one_region_has_none(app: App, tmp_path: Any) -> None:
    single = app.kms.customer_key()
    app.vault.add_tenant("glob", key=single.arn, role_arn=single.role_arn, external_id=single.external_id)
    with pytest.raises(KmsConfigurationError, match="only a multi-Region key has replicas"):
        app.vault.set_replica_regions("glob", [FIRST])
    local = LocalKms(tmp_path / "kms.json")
    with pytest.raises(KmsConfigurationError, match="has no replicas"):
        local.validate_key(KmsKey(local.create_key(), replica_regions=(FIRST,)))


def test_a_tenant_can_be_added_with_them(app: App) -> None:
    key = app.kms.customer_key(multi_region=True)
    how: dict[str, Any] = {"key": key.arn, "role_arn": key.role_arn, "external_id": key.external_id}
    with pytest.raises(KmsError):
        app.vault.add_tenant("glob", replica_regions=[FIRST], **how)
    assert app.vault.tenants() == ["acme"]
    app.kms.replicate(key.arn, FIRST)
    app.vault.add_tenant("glob", replica_regions=[FIRST], **how)
    assert app.vault.add_tenant("glob", **how).name == "glob"  # again, it changes nothing
    assert app.vault._store.load("glob").kek.replica_regions == (FIRST,)
    with pytest.raises(TenantExistsError):
        app.vault.add_tenant("glob", key=key.arn)
    assert app.vault.audit.verify("glob").problems == ()


@pytest.mark.parametrize("new_kek", [False, True])
def test_another_kms_key_has_those_that_are_named_with_it(app: App, new_kek: bool) -> None:
    app.vault.set_replica_regions("acme", [FIRST, SECOND])
    app.kms.rotate(app.key.arn)
    app.vault.rewrap("acme", new_kek=new_kek)
    assert app.regions() == (FIRST, SECOND)  # the KMS key is the same
    moved = app.kms.customer_key(multi_region=True)
    assert app.key.role_arn is not None
    app.kms.allow(moved.arn, app.key.role_arn)
    app.kms.replicate(moved.arn, SECOND)
    how: dict[str, Any] = {"role_arn": moved.role_arn, "external_id": moved.external_id, "new_kek": new_kek}
    app.vault.rewrap("acme", to=moved.arn, replica_regions=[SECOND], **how)
    assert app.regions() == (SECOND,)
    app.out(moved.arn)
    assert app.asked()[1:] == [moved.arn.replace("eu-west-1", SECOND)]
    app.kms.clear_script()
    last = app.kms.customer_key()
    assert moved.role_arn is not None
    app.kms.allow(last.arn, moved.role_arn)
    app.vault.rewrap("acme", to=last.arn, role_arn=last.role_arn, external_id=last.external_id, new_kek=new_kek)
    assert app.regions() == ()
    assert app.asked() == [last.arn]
    assert app.vault.audit.verify("acme").problems == ()
